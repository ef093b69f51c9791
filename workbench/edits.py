"""Edits as data: changes of named parameters, functions beside them, and their files.

An edit never touches a model; :class:`workbench.model.ModelView` applies it. Factors are stored in
the dtype in which they are applied (float32, float64 for float64 models), so an edit that was saved
and loaded writes the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from workbench.atomic import write_atomically
from workbench.errors import DataError
from workbench.facts import EditRequest

__all__ = ["Adapter", "AdapterEdit", "Delta", "Edit", "WeightEdit", "load_edit"]

FORMAT = "workbench-edit/1"


@dataclass(frozen=True)
class Delta:
    """A change of one parameter, always in (out, in) orientation, whatever the storage.

    Make one with :meth:`low_rank`, :meth:`dense` or :meth:`sparse`.

    Args:
        parameter: its name in ``model.named_parameters()``.
        form: ``low_rank``, ``dense`` or ``sparse``.
        shape: of the change, (out, in) or (out,).
        tensors: the stored pieces.
    """

    parameter: str
    form: str
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def low_rank(
        cls, parameter: str, left: Float[Tensor, "d_out r"], right: Float[Tensor, "d_in r"]
    ) -> Delta:
        """``left @ right.T``."""
        shape = (left.shape[0], right.shape[0])
        return cls(parameter, "low_rank", shape, {"left": _own(left), "right": _own(right)})

    @classmethod
    def dense(cls, parameter: str, change: Tensor) -> Delta:
        """The change itself."""
        return cls(parameter, "dense", tuple(change.shape), {"change": _own(change)})

    @classmethod
    def sparse(
        cls,
        parameter: str,
        shape: tuple[int, ...],
        index: Int[Tensor, " n"],
        values: Float[Tensor, " n"],
    ) -> Delta:
        """``values`` at flat positions ``index`` of a tensor of ``shape``, zero elsewhere."""
        return cls(
            parameter, "sparse", tuple(shape), {"index": _own(index), "values": _own(values)}
        )

    @property
    def rank(self) -> int | None:
        """Number of columns of the factors, None unless low-rank."""
        return self.tensors["left"].shape[1] if self.form == "low_rank" else None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored floating-point pieces."""
        return next(t.dtype for t in self.tensors.values() if t.is_floating_point())

    @property
    def nbytes(self) -> int:
        """Bytes of the stored pieces."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def materialize(self, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """The full change as a tensor of :attr:`shape`."""
        t = {k: v.to(device) for k, v in self.tensors.items()}
        if self.form == "low_rank":
            return t["left"].to(dtype) @ t["right"].to(dtype).T
        if self.form == "dense":
            return t["change"].to(dtype)
        out = torch.zeros(self.shape, dtype=dtype, device=device).flatten()
        return out.index_put((t["index"],), t["values"].to(dtype)).view(self.shape)

    def flaw(self) -> str | None:
        """Why the pieces do not make a change of :attr:`shape`, None if they do."""
        found = {name: tuple(t.shape) for name, t in self.tensors.items()}
        if self.form == "sparse":
            return self._sparse_flaw()
        if self.form == "dense":
            fits = found == {"change": self.shape}
        else:
            left, right = found.get("left", ()), found.get("right", ())
            fits = len(left) == len(right) == 2 and left[1] == right[1]
            fits = fits and (left[0], right[0]) == self.shape
        return None if fits else f"pieces of shapes {found} make no change of shape {self.shape}"

    def _sparse_flaw(self) -> str | None:
        index, values = self.tensors["index"], self.tensors["values"]
        if index.is_floating_point() or index.ndim != 1 or index.shape != values.shape:
            return f"{tuple(values.shape)} values cannot stand at {tuple(index.shape)} positions"
        room = math.prod(self.shape)
        outside = index[(index < 0) | (index >= room)]
        if len(outside):
            return f"position {int(outside[0])} is outside shape {self.shape} (0 to {room - 1})"
        return None

    def is_finite(self) -> bool:
        """True if no piece holds NaN or Inf."""
        return all(bool(t.isfinite().all()) for t in self.tensors.values() if t.is_floating_point())


@dataclass(frozen=True)
class Adapter:
    """A function beside one module, as data; :mod:`workbench.adapters` says what it does.

    Args:
        parameter: name of the module's weight in ``model.named_parameters()``.
        kind: which function.
        tensors: its stored pieces.
        options: its other settings, JSON-ready.
    """

    parameter: str
    kind: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", {k: _own(t) for k, t in self.tensors.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of the stored pieces."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def is_finite(self) -> bool:
        """True if no piece holds NaN or Inf."""
        return all(bool(t.isfinite().all()) for t in self.tensors.values() if t.is_floating_point())


class Edit(ABC):
    """What can stand on a view's stack: a :class:`WeightEdit` or an :class:`AdapterEdit`."""

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
        tensors, manifest = _core(self)
        manifest |= {"report": dict(self.report), "meta": dict(self.meta)}
        manifest = json.loads(json.dumps(manifest))  # as it will be read: keys are texts
        manifest["digest"] = _hash(tensors, manifest)
        return safetensors_bytes(tensors, metadata={"workbench": json.dumps(manifest)})

    def _digest(self) -> str:
        cached = self.__dict__.get("_digest_cache")
        if cached is None:
            cached = _hash(*_core(self))
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


@dataclass(frozen=True, repr=False)
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


@dataclass(frozen=True, repr=False)
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
    """Read an edit that :meth:`WeightEdit.save` wrote; its checksum is verified.

    Raises:
        DataError: if the file is missing, truncated, changed, or not an edit of this format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no edit file at {path}: check the path.")
    tensors, manifest = _read(path)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT!r}."
        )
    if manifest.pop("digest", None) != _hash(tensors, manifest):
        raise DataError(f"{path} does not match its checksum: it was changed or damaged.")
    try:
        return _unpack(tensors, manifest)
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise DataError(f"{path} is damaged ({err!r}): get the file again.") from err


def _own(t: Tensor) -> Tensor:
    return t.detach().to("cpu").contiguous().clone()


def _core(edit: Edit) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What identifies an edit: its tensors and the manifest without report and meta."""
    tensors: dict[str, Tensor] = {}
    pieces: tuple[Delta | Adapter, ...] = edit.pieces
    for i, piece in enumerate(pieces):
        tensors |= {f"delta.{i}.{name}": t for name, t in piece.tensors.items()}
    names = list(edit.keys)
    tensors |= {f"keys.{i}": _own(edit.keys[n]) for i, n in enumerate(names)}
    manifest: dict[str, Any] = {
        "format": FORMAT,
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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as handle:
            meta = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        manifest = json.loads(meta["workbench"])
    except KeyError as err:
        raise DataError(f"{path} is a safetensors file but not a Workbench edit.") from err
    except (SafetensorError, OSError, ValueError, struct.error) as err:
        raise DataError(f"{path} is truncated or damaged ({err}): get the file again.") from err
    if not isinstance(manifest, dict):
        raise DataError(f"{path} is damaged (its manifest is no table): get the file again.")
    return tensors, manifest


def _hash(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
