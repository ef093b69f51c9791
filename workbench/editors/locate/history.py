"""What earlier edits left for later ones: keys on the stack, folded into solvers once.

History is the state (design 9.2): an accumulating editor reads the keys of every edit on the stack
at the same site, whoever wrote them. What follows from them is remembered beside the view and
extended edit by edit, in stack order, so a stream costs the same a batch at any length and a
resumed one gives the same bits. If the stack is not a continuation, it is derived anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.linalg import Factor, Grown
from workbench.model import ModelView

__all__ = ["KeyGram", "folded", "grown_factor", "key_gram"]


class Grows(Protocol):
    """Anything that takes up keys."""

    def append(self, keys: Tensor) -> None: ...


T = TypeVar("T", bound=Grows)


class KeyGram:
    """``Σ K Kᵀ`` over appended keys, float64 ``[m, m]``."""

    def __init__(self, m: int) -> None:
        self.matrix = torch.zeros(m, m, dtype=torch.float64)

    def append(self, keys: Float[Tensor, "m n"]) -> None:
        """Add ``K Kᵀ``."""
        wide = keys.to(self.matrix)
        self.matrix = self.matrix.addmm(wide, wide.T)


@dataclass
class _Held:
    kind: tuple[Any, ...]
    anchor: Any
    ids: tuple[str, ...]
    value: Any


def folded(
    view: ModelView,
    layer: int,
    kind: tuple[Any, ...],
    anchor: Any,
    start: Callable[[], T],
    project: Callable[[Tensor], Tensor] | None = None,
) -> T:
    """A value that took up the keys of every edit on the stack at a layer, in stack order.

    Args:
        view: the model; its stack is the history.
        layer: the site.
        kind: what sort of value; its parameters follow. One of a sort is kept a layer.
        anchor: what the value was built on; another object starts it anew.
        start: an empty value.
        project: applied to keys first.
    """
    name = view.weight_name(layer)
    edits = [e for e in view.stack if name in e.keys]
    ids = tuple(e.id for e in edits)
    memory = view.cache.setdefault("history", {})
    place = (layer, kind[0])
    held = memory.get(place)
    same = held is not None and held.kind == kind and held.anchor is anchor
    if not same or ids[: len(held.ids)] != held.ids:
        held = _Held(kind, anchor, (), start())
    memory.pop(place, None)  # an interrupted update must not be found again
    for edit in edits[len(held.ids) :]:
        keys = edit.keys[name].to(torch.float64)
        held.value.append(keys if project is None else project(keys))
    memory[place] = _Held(kind, anchor, ids, held.value)
    return held.value  # type: ignore[no-any-return]


def grown_factor(view: ModelView, layer: int, factor: Factor, scale: float) -> Grown:
    """``scale · C + K_p K_pᵀ`` over all keys on the stack."""
    return folded(view, layer, ("grown", scale), factor, lambda: Grown(factor, scale))


def key_gram(view: ModelView, layer: int) -> Tensor:
    """``K_p K_pᵀ`` over all keys on the stack, ``[d_mlp, d_mlp]``."""
    return folded(view, layer, ("gram",), None, lambda: KeyGram(view.d_mlp)).matrix
