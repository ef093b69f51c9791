"""What edits are made of: changes of named parameters, and functions beside them. Data only.

Factors are stored in the dtype in which they are applied (float32, float64 for float64 models), so
a change that was saved and loaded writes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.linalg import leading

__all__ = ["Adapter", "Delta", "compact", "misfit", "own"]

#: Numerical ranks above this one are not looked for.
LOW = 64


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
        return cls(parameter, "low_rank", shape, {"left": own(left), "right": own(right)})

    @classmethod
    def dense(cls, parameter: str, change: Tensor) -> Delta:
        """The change itself."""
        return cls(parameter, "dense", tuple(change.shape), {"change": own(change)})

    @classmethod
    def sparse(
        cls,
        parameter: str,
        shape: tuple[int, ...],
        index: Int[Tensor, " n"],
        values: Float[Tensor, " n"],
    ) -> Delta:
        """``values`` at flat positions ``index`` of a tensor of ``shape``, zero elsewhere."""
        return cls(parameter, "sparse", tuple(shape), {"index": own(index), "values": own(values)})

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
        if (why := misfit(self.form, self.shape, found)) or self.form != "sparse":
            return why
        index, room = self.tensors["index"], math.prod(self.shape)
        if index.is_floating_point():
            return f"positions are whole numbers, not {index.dtype}"
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
        object.__setattr__(self, "tensors", {k: own(t) for k, t in self.tensors.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of the stored pieces."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def is_finite(self) -> bool:
        """True if no piece holds NaN or Inf."""
        return all(bool(t.isfinite().all()) for t in self.tensors.values() if t.is_floating_point())


def misfit(form: str, shape: tuple[int, ...], found: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why pieces of these shapes make no change of a form and shape, None if they do.

    Args:
        form: ``low_rank``, ``dense`` or ``sparse``.
        shape: of the change.
        found: name → shape of each piece.
    """
    if form == "sparse":
        index, values = found.get("index", ()), found.get("values", ())
        if set(found) != {"index", "values"} or len(index) != 1 or index != values:
            return f"{values} values cannot stand at {index} positions"
        return None
    if form == "dense":
        fits = dict(found) == {"change": shape}
    else:
        left, right = found.get("left", ()), found.get("right", ())
        fits = form == "low_rank" and set(found) == {"left", "right"}
        fits = fits and len(left) == len(right) == 2 and left[1] == right[1]
        fits = fits and (left[0], right[0]) == shape
    return None if fits else f"pieces of shapes {dict(found)} make no change of shape {shape}"


def compact(delta: Delta) -> Delta:
    """A dense change in fewer bytes where the same bits come out; else, and others, as it is.

    Changes of few entries become sparse, of few rows or columns low-rank. A change of low
    numerical rank becomes its factors only if their product is it, to the bit: rounding seldom
    allows that, and a change that is almost the same is another change.
    """
    if delta.form != "dense":
        return delta
    change = delta.tensors["change"]
    found = [each for each in (_few_entries(delta), *_factored(delta)) if each is not None]
    for each in sorted(found, key=lambda d: d.nbytes):
        if each.nbytes < delta.nbytes and _same_bits(each.materialize(dtype=change.dtype), change):
            return each
    return delta


def _few_entries(delta: Delta) -> Delta | None:
    flat = delta.tensors["change"].flatten()
    index = flat.nonzero()[:, 0]
    if len(index) * (index.element_size() + flat.element_size()) >= delta.nbytes:
        return None
    return Delta.sparse(delta.parameter, delta.shape, index, flat[index])


def _factored(delta: Delta) -> list[Delta]:
    change = delta.tensors["change"]
    if change.ndim != 2 or not bool(change.isfinite().all()):
        return []
    name, (d, m) = delta.parameter, change.shape
    rows, columns = ((change != 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    found, limit = [], d * m // (d + m)
    if len(rows) <= limit:
        found.append(Delta.low_rank(name, _units(rows, d, change), change[rows].T))
    if len(columns) <= limit:
        found.append(Delta.low_rank(name, change[:, columns], _units(columns, m, change)))
    factors = leading(change, min(LOW, limit)) if _may_be_low(change) else None
    if factors is not None:
        left, sizes, right = factors
        r = int((sizes > sizes.max() * 1e-6).sum())
        found.append(Delta.low_rank(name, left[:, :r] * sizes[:r], right[:, :r]))
    return [
        Delta.low_rank(name, *(t.to(change.dtype) for t in (f.tensors["left"], f.tensors["right"])))
        for f in found
    ]


def _units(index: Tensor, n: int, like: Tensor) -> Float[Tensor, "n r"]:
    out = like.new_zeros(n, len(index))
    out[index, torch.arange(len(index))] = 1
    return out


def _may_be_low(change: Tensor) -> bool:
    """Whether a corner's rank leaves room for a low one: a cheap look that most changes fail."""
    corner = change[: LOW + 1, : LOW + 1].double()
    sizes = torch.linalg.svdvals(corner)
    return min(change.shape) > LOW and bool(sizes[-1] <= sizes[0] * 1e-6)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return a.shape == b.shape and bool((a.view(whole) == b.view(whole)).all())


def own(t: Tensor) -> Tensor:
    """A copy that nothing else can change, on the CPU."""
    return t.detach().to("cpu").contiguous().clone()
