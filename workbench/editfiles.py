"""The file of one edit or of a whole stack: safetensors with a manifest that explains every tensor.

The manifest is JSON, the text ``workbench`` of the file's metadata:

- ``format``: ``workbench-edit/2``;
- ``model``: ``name``, ``revision`` and ``fingerprint`` of the base;
- ``edits``: oldest first, each with ``id, editor, config, seed, base, parents, requests, deltas``
  (parameter, form, shape), ``adapters`` (module, kind, options), ``keys, report, meta`` (versions);
- ``tensors``: name → dtype, shape and SHA-256 of everything stored;
- ``outcome``: of a stack, the SHA-256 of every parameter it leaves behind, where that is known;
- ``versions``: of what wrote the file; ``digest``: SHA-256 of all the above.

Before a tensor is read, header, manifest and length of the file have been found to agree; what was
read is compared with its checksum. Files of format 1 (one edit, one checksum) are read too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from workbench.deltas import misfit
from workbench.errors import DataError
from workbench.tensorfiles import DTYPES, Header, checksum, damaged, header_of, tensors_of

__all__ = ["FORMAT", "Contents", "digest_of", "open_contents", "pack", "versions"]

FORMAT = "workbench-edit/2"
#: One edit a file, with one checksum over everything.
OLD_FORMAT = "workbench-edit/1"
#: What every edit of a manifest has, and of which type.
ENTRY = {
    **{"editor": str, "base": str, "config": dict, "report": dict, "meta": dict},
    **{"parents": list, "requests": list, "deltas": list, "keys": list},
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: Tensors of one edit, and its part of the manifest.
Part = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Contents:
    """A file whose header and manifest agree; its tensors have not been read.

    Attributes:
        path: the file.
        manifest: as in the module's description; that of an old file is brought into this form.
        header: of the file.
        old: the manifest of an old file as it stands there, else None.
    """

    path: Path
    manifest: Mapping[str, Any]
    header: Header
    old: Mapping[str, Any] | None = None

    @property
    def edits(self) -> list[dict[str, Any]]:
        """The edits' parts of the manifest, oldest first."""
        return list(self.manifest["edits"])

    def parts(self) -> list[Part]:
        """Tensors, checked, and manifest of every edit.

        Raises:
            DataError: if a checksum does not fit, naming the tensor.
        """
        tensors = tensors_of(self.header)
        if self.old is not None:
            given = {k: v for k, v in self.old.items() if k != "digest"}
            if self.old.get("digest") != digest_of(tensors, given):
                raise DataError(_changed(self.path))
            return [(tensors, self.edits[0])]
        for name, (_, _, expected) in self.manifest["tensors"].items():
            if checksum(tensors[name]) != expected:
                raise DataError(_changed(self.path, f" (tensor {name!r})"))
        return [(_own(tensors, i), entry) for i, entry in enumerate(self.edits)]


def pack(parts: Sequence[Part], *, model: Mapping[str, Any], **more: Any) -> bytes:
    """The content of a file.

    Args:
        parts: of every edit, oldest first.
        model: ``name``, ``revision`` and ``fingerprint`` of the base.
        more: further entries of the manifest, JSON-ready.
    """
    tensors = {f"{i}.{n}": t for i, (own, _) in enumerate(parts) for n, t in own.items()}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "model": dict(model),
        "edits": [entry for _, entry in parts],
        "tensors": {n: [_NAMES[t.dtype], list(t.shape), checksum(t)] for n, t in tensors.items()},
        "versions": versions(),
        **more,
    }
    manifest = json.loads(json.dumps(manifest))  # as it will be read: keys are texts
    manifest["digest"] = digest_of({}, manifest)
    return safetensors_bytes(_apart(tensors), metadata={"workbench": json.dumps(manifest)})


def open_contents(path: Path) -> Contents:
    """Read header and manifest of a file and compare them.

    Raises:
        DataError: if it is missing, damaged, no Workbench edit, of another format, or if manifest
            and tensors do not fit each other.
    """
    header = header_of(path)
    if "workbench" not in header.metadata:
        raise DataError(f"{path} is a safetensors file but not a Workbench edit.")
    try:
        manifest = json.loads(header.metadata["workbench"])
    except (ValueError, RecursionError) as err:
        raise damaged(path, err) from err
    if not isinstance(manifest, dict):
        raise DataError(f"{path} is damaged (its manifest is no table): get the file again.")
    found = manifest.get("format")
    if found not in (FORMAT, OLD_FORMAT):
        raise DataError(
            f"{path} has format {found!r}, this version of Workbench reads {FORMAT!r} and "
            f"{OLD_FORMAT!r}: install the version that wrote it, or get the file in one of these."
        )
    try:
        return _opened(path, header, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise DataError(f"{path} is damaged ({err!r}): get the file again.") from err


def digest_of(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> str:
    """SHA-256 over a manifest and tensors."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions on which the numbers of an edit may depend."""
    found: dict[str, str] = {"torch": str(torch.__version__)}
    for package in ("transformers", "workbench-editing"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------------- what must agree


def _opened(path: Path, header: Header, manifest: dict[str, Any]) -> Contents:
    old = manifest if manifest["format"] == OLD_FORMAT else None
    if old is not None:
        entry = {k: v for k, v in old.items() if k not in ("format", "digest")}
        places = {f"0.{name}": p for name, p in header.places.items()}
        manifest = {"format": OLD_FORMAT, "model": _model_of(entry), "edits": [entry]}
    else:
        given = {k: v for k, v in manifest.items() if k != "digest"}
        if manifest.get("digest") != digest_of({}, given):
            raise DataError(_changed(path))
        places = dict(header.places)
        stated = {n: (d, tuple(s)) for n, (d, s, _) in manifest["tensors"].items()}
        if stated != {n: (p.dtype, p.shape) for n, p in places.items()}:
            raise ValueError("its manifest lists other tensors than it holds")
    explained: set[str] = set()
    for i, entry in enumerate(manifest["edits"]):
        explained |= _fitting(i, entry, {n: p.shape for n, p in places.items()})
    if more := set(places) - explained:
        raise ValueError(f"no edit explains tensor {min(more)!r}")
    return Contents(path, manifest, header, old)


def _fitting(i: int, entry: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Names of the tensors of one edit, whose shapes are those of its manifest."""
    for name, kind in ENTRY.items():
        if not isinstance(entry[name], kind):
            raise TypeError(f"{name} of entry {i} is {type(entry[name]).__name__}")
    if not all(isinstance(r, dict) and isinstance(r.get("prompt"), str) for r in entry["requests"]):
        raise TypeError(f"a request of entry {i} has no prompt")
    names = {f"{i}.keys.{k}" for k in range(len(entry["keys"]))}
    if lost := names - set(shapes):
        raise ValueError(f"tensor {min(lost)!r} is not there")
    for k in range(len(entry.get("adapters", ()))):
        names |= {n for n in shapes if n.startswith(f"{i}.delta.{k}.")}
    for k, (parameter, form, shape) in enumerate(entry["deltas"]):
        start = f"{i}.delta.{k}."
        pieces = {n.removeprefix(start): s for n, s in shapes.items() if n.startswith(start)}
        if flaw := misfit(form, tuple(shape), pieces):
            raise ValueError(f"{parameter}: {flaw}")
        names |= {start + n for n in pieces}
    return names


def _model_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": entry["meta"].get("model"), "revision": None, "fingerprint": entry["base"]}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that are stored under another name already: edits may share theirs."""
    seen: set[int] = set()
    found = {}
    for name, t in tensors.items():
        found[name] = t.clone() if t.data_ptr() in seen else t
        seen.add(t.data_ptr())
    return found


def _own(tensors: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    start = f"{i}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _changed(path: Path, where: str = "") -> str:
    return f"{path} does not match its checksum{where}: it was changed or damaged."
