"""Files of trained editors: where they lie, what is in them, whose they are.

A file holds the tensors of a learner and, as its header, what they belong to: the editor, the
fingerprint of the base model, the settings, and how it was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as tensors_of
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from workbench.atomic import write_atomically
from workbench.errors import DataError
from workbench.places import cache_dir, shipped

__all__ = ["Trained", "file_name", "find", "locate", "read_trained", "write_trained"]

FORMAT = "workbench-learned/1"


@dataclass(frozen=True)
class Trained:
    """A trained editor as data.

    Attributes:
        editor: name of the editor's class.
        base: fingerprint of the model it was trained for.
        model: what that model was called.
        settings: fields of the editor's settings, JSON-ready.
        training: recipe, steps, seed, what the lessons were, curves and the evaluation.
        tensors: state of the learner.
    """

    editor: str
    base: str
    model: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def file_name(editor: str, fingerprint: str, preset: str = "default") -> str:
    """How the file of a model's trained editor is called.

    Example:
        >>> file_name("MEND", "0123456789abcdef", "repo")
        'mend-0123456789ab-repo.safetensors'
    """
    ending = "" if preset == "default" else f"-{preset}"
    return f"{editor.lower()}-{fingerprint[:12]}{ending}.safetensors"


def places() -> tuple[Path, ...]:
    """Folders with trained editors: the shipped ones, then ``WORKBENCH_HOME/editors``."""
    return shipped("tiny") / "editors", cache_dir("editors")


def find(editor: str, fingerprint: str, preset: str = "default") -> Path | None:
    """The trained file of a model, None if there is none."""
    name = file_name(editor, fingerprint, preset)
    return next((p for folder in places() if (p := folder / name).is_file()), None)


def locate(weights: str) -> Path:
    """The file that a path, or a bare name in one of :func:`places`, means.

    Raises:
        DataError: if there is no such file.
    """
    path = Path(weights).expanduser()
    for each in (path, *(folder / path.name for folder in places())):
        if each.is_file():
            return each
    raise DataError(
        f"no trained editor at {weights}: check the path, or train one with `workbench train`."
    )


def write_trained(path: Path, trained: Trained) -> str:
    """Write a file, all or nothing; returns its SHA-256."""
    header = {k: getattr(trained, k) for k in ("editor", "base", "model", "settings", "training")}
    tensors = {n: t.detach().cpu().contiguous() for n, t in trained.tensors.items()}
    text = json.dumps({"format": FORMAT, **header})
    payload = safetensors_bytes(tensors, metadata={"workbench": text})
    write_atomically(path, payload)
    return hashlib.sha256(payload).hexdigest()


def read_trained(path: Path, sha256: str = "") -> tuple[Trained, str]:
    """Read a file and check what it is; returns it with its SHA-256.

    Args:
        sha256: what it must be; empty takes any.

    Raises:
        DataError: if the file is damaged, is no trained editor, or another one than expected.
    """
    try:
        payload = path.read_bytes()
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("workbench", "{}"))
        tensors = tensors_of(payload)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is no trained editor, or damaged ({error}).") from error
    if header.pop("format", None) != FORMAT:
        raise DataError(f"{path} is no trained editor of the format {FORMAT!r}.")
    found = hashlib.sha256(payload).hexdigest()
    if sha256 and found != sha256:
        raise DataError(
            f"{path} is another file than the editor was made with (SHA-256 {found[:12]}…, not "
            f"{sha256[:12]}…): get the file again, or make the editor anew with preset(view)."
        )
    return Trained(**header, tensors=tensors), found
