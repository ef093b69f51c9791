"""Files that are either the old ones or the new ones, never half of each; locks that die with us.

A process that is killed leaves a ``.part`` beside what it was writing and nothing else;
:func:`sweep` takes such parts away.
"""

from __future__ import annotations

import importlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from workbench.errors import StorageError

__all__ = ["sweep", "try_lock", "write_atomically", "write_folder"]

#: A part that nobody wrote to for so long belongs to a process that died, seconds.
STALE_SECONDS = 3600.0


def write_atomically(path: str | os.PathLike[str], payload: bytes) -> Path:
    """Write bytes beside ``path`` and move them into place; all or nothing.

    Raises:
        StorageError: naming the path and the reason; the old file, if any, is intact.
    """
    path = Path(path)
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as err:
        raise StorageError(
            f"could not write {path}: {err.strerror or err}. Free some space or choose another "
            "folder; nothing was changed."
        ) from err
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def write_folder(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Have a folder filled beside ``path``, and move what is in it into place when it is whole.

    Args:
        path: the folder; files of the same names in it are replaced, others stay.
        write: fills the folder it is given.

    Raises:
        StorageError: naming the path and the reason; files that were there are intact.
    """
    path = Path(path)
    part = _part(path)
    try:
        part.mkdir(parents=True)
        write(part)
        path.mkdir(exist_ok=True)
        for file in sorted(part.iterdir()):
            os.replace(file, path / file.name)
    except (OSError, SafetensorError) as err:
        raise StorageError(
            f"could not write {path}: {getattr(err, 'strerror', None) or err}. Free some space or "
            "choose another folder; nothing was changed."
        ) from err
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _part(path: Path) -> Path:
    """Where to write first; threads may write one file at once, and must not share a part."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")


def sweep(folder: Path) -> None:
    """Take away what processes that were killed left half-written in a folder."""
    with suppress(OSError):
        for part in folder.glob(".*.part"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > STALE_SECONDS:
                    part.unlink()


def try_lock(path: Path, *, shared: bool = False) -> IO[str] | None:
    """Hold a lock until the handle is closed or the process ends, however it ends.

    Where the system knows no such locks it is always had.

    Args:
        path: of the lock's own file; made if missing, with its folder.
        shared: others may hold it at once if they share it, too; for a look.

    Returns:
        The handle; None if another holds it.

    Raises:
        StorageError: if the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a")  # noqa: SIM115 - the caller closes it
    except OSError as err:
        raise StorageError(
            f"could not write {path}: {err.strerror or err}. Free some space or choose another "
            "folder; nothing was changed."
        ) from err
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ImportError:
        return handle
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle
