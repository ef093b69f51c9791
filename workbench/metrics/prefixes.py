"""States below the first edited block, kept: what an edit cannot change is not computed again.

Edits of a stream touch blocks from some layer on. What a text makes of the blocks below is the same
at every moment, so it is kept on the CPU (up to a budget) and only the blocks above are run (spec
locate-then-edit 6.5). A kept batch holds the same rows as the full pass would, so both give the
same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from workbench.edits import WeightEdit
from workbench.layouts import DECODER
from workbench.metrics.plan import TokenRow
from workbench.model import ModelView
from workbench.replay import Blocks, capture_blocks

__all__ = ["BUDGET", "Prefixes"]

#: Bytes of states that are kept.
BUDGET = 1 << 30


@dataclass
class Prefixes:
    """Last residuals of batches of rows, from kept inputs of one block.

    Args:
        view: a decoder.
        first: the lowest block that any edit will touch.
        budget: bytes to keep; batches beyond it are run in full.

    Attributes:
        used: bytes kept.
    """

    view: ModelView
    first: int
    budget: int = BUDGET
    used: int = 0
    _kept: dict[tuple[TokenRow, ...], Blocks] = field(default_factory=dict)
    _checked: dict[str, bool] = field(default_factory=dict)
    _base: tuple[str, ...] = ()
    _answer: tuple[tuple[int, str], bool] | None = None

    def __post_init__(self) -> None:
        self._base = tuple(e.id for e in self.view.stack)

    def usable(self) -> bool:
        """True if the states below are still those of the view as it was at the beginning."""
        view, stack = self.view, self.view.stack
        if view.kind != DECODER or not view.capabilities.readout or self.first < 1:
            return False
        now = (len(stack), stack[-1].id if stack else "")
        if self._answer is None or self._answer[0] != now:
            same = tuple(e.id for e in stack[: len(self._base)]) == self._base
            spared = all(self._spares(edit) for edit in stack[len(self._base) :])
            self._answer = (now, same and spared)
        return self._answer[1]

    def __call__(self, rows: Sequence[TokenRow]) -> Tensor | None:
        """``[batch, pos, d_model]`` output of the last block, None if it has to be run in full."""
        if not self.usable():
            return None
        key = tuple(rows)
        blocks = self._kept.get(key)
        if blocks is None:
            blocks = self._keep(key)
        return None if blocks is None else self._run(blocks)

    def _run(self, blocks: Blocks) -> Tensor:
        hidden = blocks.hidden.to(self.view.device)
        for layer in range(self.first, self.view.n_layers):
            hidden = blocks.run(layer, hidden)
        return hidden

    def _keep(self, key: tuple[TokenRow, ...]) -> Blocks | None:
        if self.used >= self.budget:
            return None
        rows = [row[0] for row in key]
        blocks = capture_blocks(self.view, rows, self.first, self.view.n_layers)
        size = _bytes(blocks)
        if self.used + size > self.budget:
            return None
        self.used += size
        self._kept[key] = replace(blocks, hidden=blocks.hidden.cpu())
        return blocks

    def _spares(self, edit: Any) -> bool:
        if edit.id not in self._checked:
            self._checked[edit.id] = isinstance(edit, WeightEdit) and all(
                self._above(name) for name in edit.parameters
            )
        return self._checked[edit.id]

    def _above(self, parameter: str) -> bool:
        layers = range(self.first, self.view.n_layers)
        return any(parameter.startswith(f"{self.view.layout.block(i)}.") for i in layers)


def _bytes(blocks: Blocks) -> int:
    """Bytes of every distinct tensor of a capture."""
    held = {t.data_ptr(): t.numel() * t.element_size() for t in _tensors(blocks.calls)}
    return sum(held.values()) + blocks.hidden.numel() * blocks.hidden.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif hasattr(value, "args") and hasattr(value, "kwargs"):
        yield from _tensors((value.args, value.kwargs))
