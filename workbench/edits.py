"""Edits as data: changes of named parameters, functions beside them, and their files.

An edit never touches a model; :class:`workbench.model.ModelView` applies it. What it is made of is
in :mod:`workbench.deltas`, its file in :mod:`workbench.editfiles`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.atomic import write_atomically
from workbench.deltas import Adapter, Delta, own
from workbench.editfiles import FORMAT, Contents, Part, digest_of, open_contents, pack
from workbench.errors import DataError
from workbench.facts import EditRequest
from workbench.tensorfiles import steadily

__all__ = [
    "FORMAT",
    "Adapter",
    "AdapterEdit",
    "Delta",
    "Edit",
    "WeightEdit",
    "edits_in",
    "load_edit",
    "pack_edits",
]

#: Enters the ids of edits, which stay what they are in whatever format they are stored.
IDENTITY = "workbench-edit/1"


class Edit(ABC):
    """What can stand on a view's stack: a :class:`WeightEdit` or an :class:`AdapterEdit`.

    Edits of the same content, and so of the same id, are equal.
    """

    requests: tuple[EditRequest, ...]
    editor: str
    config: Mapping[str, Any]
    base: str
    parents: tuple[str, ...]
    keys: Mapping[str, Tensor]
    report: Mapping[str, Any]
    meta: Mapping[str, Any]

    @property
    @abstractmethod
    def pieces(self) -> tuple[Delta, ...] | tuple[Adapter, ...]:
        """The changes: deltas of a weight edit, adapters of an adapter edit."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the changed parameters, or of the weights of the adapted modules."""
        return tuple(dict.fromkeys(p.parameter for p in self.pieces))

    @property
    def id(self) -> str:
        """Short content hash over tensors, requests and configuration."""
        return self._digest()[:16]

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        keys = sum(k.numel() * k.element_size() for k in self.keys.values())
        return sum(p.nbytes for p in self.pieces) + keys

    def is_finite(self) -> bool:
        """True if no piece holds NaN or Inf."""
        return all(p.is_finite() for p in self.pieces)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, atomically.

        Raises:
            StorageError: if the disk is full or the folder cannot be written; an older file under
                this name is left as it was.
        """
        return write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that :meth:`save` writes."""
        return pack_edits([self])

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Edit) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def _digest(self) -> str:
        cached = self.__dict__.get("_digest_cache")
        if cached is None:
            tensors, manifest = _core(self)
            cached = digest_of(tensors, {"format": IDENTITY} | manifest)
            object.__setattr__(self, "_digest_cache", cached)
        return str(cached)

    def __repr__(self) -> str:
        facts = "; ".join(f"{r.text} → {r.target_new}" for r in self.requests[:2])
        more = f" and {len(self.requests) - 2} more" if len(self.requests) > 2 else ""
        kib = self.nbytes / 1024
        return (
            f"<{self.editor} edit {self.id}: {facts}{more}; "
            f"{len(self.parameters)} parameters, {kib:.0f} KiB>"
        )

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(r.text)}</td><td>{escape(r.target_true or '')}</td>"
            f"<td>{escape(r.target_new)}</td></tr>"
            for r in self.requests[:10]
        )
        more = f"<p>and {len(self.requests) - 10} more</p>" if len(self.requests) > 10 else ""
        return (
            f"<b>{escape(self.editor)} edit {self.id}</b>, {len(self.parameters)} parameters, "
            f"{self.nbytes / 1024:.0f} KiB<table><tr><th>prompt</th><th>before</th>"
            f"<th>after</th></tr>{rows}</table>{more}"
        )


@dataclass(frozen=True, repr=False, eq=False)
class WeightEdit(Edit):
    """What an editor computed: changes of weights plus everything needed to explain them.

    Args:
        deltas: one per changed parameter, applied in order.
        requests: the facts that were written.
        editor: name of the editor.
        config: the editor's fields, JSON-ready; rebuilds the editor.
        base: fingerprint of the pristine model the edit belongs to.
        parents: what was on the stack when this one was computed (``weights.lineage``).
        keys: parameter name → ``d_mlp n`` keys that were written, for accumulating editors.
        report: tables of the computation as lists of records (target optimization, closure, tau).
        meta: versions, seed, seconds, model name.
    """

    deltas: tuple[Delta, ...]
    requests: tuple[EditRequest, ...]
    editor: str
    config: Mapping[str, Any]
    base: str
    parents: tuple[str, ...] = ()
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pieces(self) -> tuple[Delta, ...]:
        return self.deltas


@dataclass(frozen=True, repr=False, eq=False)
class AdapterEdit(Edit):
    """What an editor put beside the weights, which stay as they are.

    Args:
        adapters: one per adapted module.
        requests, editor, config, base, parents, keys, report, meta: as in :class:`WeightEdit`.
    """

    adapters: tuple[Adapter, ...]
    requests: tuple[EditRequest, ...]
    editor: str
    config: Mapping[str, Any]
    base: str
    parents: tuple[str, ...] = ()
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pieces(self) -> tuple[Adapter, ...]:
        return self.adapters


def load_edit(path: str | os.PathLike[str]) -> Edit:
    """Read an edit that :meth:`Edit.save` wrote; its checksums are verified.

    Raises:
        DataError: if the file is missing, truncated, changed, not an edit of a known format, or
            holds several (:func:`workbench.load_patch` reads these).

    Example:
        >>> edit = load_edit(edit.save("edit.safetensors"))  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no edit file at {path}: check the path.")
    return steadily(path, lambda: _only_edit(path))


def _only_edit(path: Path) -> Edit:
    contents = open_contents(path)
    if len(contents.edits) != 1:
        raise DataError(
            f"{path} holds {len(contents.edits)} edits: read them with load_patch(path), whose "
            "edits are a tuple."
        )
    return edits_in(contents)[0]


def edits_in(contents: Contents) -> tuple[Edit, ...]:
    """The edits of a file, oldest first.

    Raises:
        DataError: if a checksum, an id or a piece does not fit.
    """
    found = []
    for i, (tensors, entry) in enumerate(contents.parts()):
        try:
            edit = _unpack(tensors, entry)
        except (KeyError, TypeError, ValueError, RuntimeError) as err:
            raise DataError(f"{contents.path} is damaged ({err!r}): get the file again.") from err
        if entry.get("id", edit.id) != edit.id:
            raise DataError(
                f"{contents.path} says that entry {i} is edit {entry['id']}, but its content is "
                f"that of {edit.id}: it was put together by hand. Get the file again."
            )
        found.append(edit)
    return tuple(found)


def pack_edits(edits: Sequence[Edit], **more: Any) -> bytes:
    """The content of a file with edits of one base model, oldest first.

    Args:
        edits: at least one.
        more: further entries of the manifest, JSON-ready; ``model`` takes the place of what the
            first edit says of its base.
    """
    first = edits[0]
    model = {
        "name": first.meta.get("model"),
        "revision": first.meta.get("revision"),
        "fingerprint": first.base,
    }
    return pack([_part(e) for e in edits], **({"model": model} | more))


def _part(edit: Edit) -> Part:
    tensors, entry = _core(edit)
    about = {"id": edit.id, "seed": edit.config.get("seed")}
    return tensors, about | entry | {"report": dict(edit.report), "meta": dict(edit.meta)}


def _core(edit: Edit) -> Part:
    """What identifies an edit: its tensors and the manifest without report and meta."""
    tensors: dict[str, Tensor] = {}
    pieces: tuple[Delta | Adapter, ...] = edit.pieces
    for i, piece in enumerate(pieces):
        tensors |= {f"delta.{i}.{name}": t for name, t in piece.tensors.items()}
    names = list(edit.keys)
    tensors |= {f"keys.{i}": own(edit.keys[n]) for i, n in enumerate(names)}
    manifest: dict[str, Any] = {
        "editor": edit.editor,
        "config": dict(edit.config),
        "base": edit.base,
        "parents": list(edit.parents),
        "requests": [r.as_dict() for r in edit.requests],
        "deltas": [
            [d.parameter, d.form, list(d.shape)] for d in edit.pieces if isinstance(d, Delta)
        ],
        "keys": names,
    }
    if isinstance(edit, AdapterEdit):
        manifest["adapters"] = [[a.parameter, a.kind, dict(a.options)] for a in edit.adapters]
    return tensors, manifest


def _unpack(tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Edit:
    def stored(i: int) -> dict[str, Tensor]:
        prefix = f"delta.{i}."
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    common: dict[str, Any] = {
        "requests": tuple(EditRequest(**r) for r in manifest["requests"]),
        "parents": tuple(manifest["parents"]),
        "keys": {name: tensors[f"keys.{i}"] for i, name in enumerate(manifest["keys"])},
        **{k: manifest[k] for k in ("editor", "config", "base", "report", "meta")},
    }
    if "adapters" in manifest:
        rows = enumerate(manifest["adapters"])
        adapters = (Adapter(name, kind, stored(i), options) for i, (name, kind, options) in rows)
        return AdapterEdit(adapters=tuple(adapters), **common)
    deltas = tuple(
        Delta(parameter, form, tuple(shape), stored(i))
        for i, (parameter, form, shape) in enumerate(manifest["deltas"])
    )
    for delta in deltas:
        if flaw := delta.flaw():
            raise ValueError(f"{delta.parameter}: {flaw}")
    return WeightEdit(deltas=deltas, **common)
