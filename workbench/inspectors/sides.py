"""Two states of one view, before and after edits: what receipts and side effects compare."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from workbench.edits import Edit
from workbench.errors import OptionError
from workbench.model import ModelView

__all__ = ["Sides", "sides_of"]


@dataclass(frozen=True)
class Sides:
    """A view before and after edits; make one with :func:`sides_of`.

    Attributes:
        view: the model.
        edits: what happens in between.
        start: number of edits held before.
        stop: number of edits held after; None if the edits are put on top of the stack on trial.
    """

    view: ModelView
    edits: tuple[Edit, ...]
    start: int
    stop: int | None

    def before(self) -> AbstractContextManager[ModelView]:
        """The view as it was before, for the length of a ``with`` block."""
        return self.view.at(self.start)

    def after(self) -> AbstractContextManager[ModelView]:
        """The view as it is after, for the length of a ``with`` block."""
        if self.stop is None:
            return self.view.applied(*self.edits)
        return self.view.at(self.stop)

    @property
    def where(self) -> str:
        """Which model, how many edits it holds, and where the compared ones stand."""
        n = len(self.view.stack)
        held = f"{self.view.name} + {n} edit{'' if n == 1 else 's'}"
        if self.stop is None:
            return f"{held}, on trial (not on the stack)"
        if self.start == self.stop - 1:
            return f"{held}, entry {self.start} of the stack"
        return f"{held}, after {self.start} against after {self.stop}"


def sides_of(
    view: ModelView, edits: Edit | int | Sequence[Edit] = (), *, before: int | None = None
) -> Sides:
    """The states just before and just after some edits.

    Args:
        view: the model.
        edits: edits that are not on the stack (compared: as it is, and with them on top), or
            neighboring ones that are (compared: before the oldest, after the newest; also one
            entry's number), or none (compared: ``before``, and as it is).
        before: compare with the state after so many edits instead; 0 is the unedited model.

    Raises:
        OptionError: for anything else, edits that do not stand side by side, or an entry or a
            state that does not exist.
    """
    n = len(view.stack)
    if before is not None and not (type(before) is int and 0 <= before <= n):
        raise OptionError(f"before={before!r}: the stack holds {n} edits; give 0 to {n}.")
    chosen = _edits(view, edits)
    if not chosen:
        return Sides(view, (), 0 if before is None else before, n)
    ids = [e.id for e in view.stack]
    places = [ids.index(e.id) if e.id in ids else -1 for e in chosen]
    if all(p < 0 for p in places):
        return Sides(view, chosen, n if before is None else before, None)
    low, high = min(places), max(places)
    if low < 0 or high - low + 1 != len(set(places)):
        raise OptionError(
            f"edits stand at {places} of the stack (-1: not on it): give edits that are neighbors "
            "there, or edits that are not on it."
        )
    return Sides(view, chosen, low if before is None else before, high + 1)


def _edits(view: ModelView, edits: Edit | int | Sequence[Edit]) -> tuple[Edit, ...]:
    if isinstance(edits, int) and not isinstance(edits, bool):
        n = len(view.stack)
        if not -n <= edits < n:
            raise OptionError(f"entry {edits} does not exist: the stack holds {n} edits.")
        return (view.stack[edits],)
    found = (edits,) if isinstance(edits, Edit) else edits
    if not isinstance(found, Sequence) or not all(isinstance(e, Edit) for e in found):
        raise OptionError(
            f"expected an edit, an entry's number or a list of edits, not {edits!r}: compute one "
            "with editor.edit(view, requests)."
        )
    return tuple(found)
