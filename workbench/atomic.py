"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from workbench.errors import StorageError

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], payload: bytes) -> Path:
    """Write bytes beside ``path`` and move them into place; all or nothing.

    Raises:
        StorageError: naming the path and the reason; the old file, if any, is intact.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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
