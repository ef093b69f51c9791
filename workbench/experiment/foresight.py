"""Edits of a codebook computed together that are those of one after another.

A model's answer depends on the codebook only where an entry answers. So the next cases are asked
in one batch, and their edits are decided in turn until a case is answered by an entry that this
batch has made or changed: that one has to wait for its value (spec memory-and-meta 1.11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from workbench.editors.memory.codebook import decide, noted
from workbench.editors.memory.examples import queries
from workbench.editors.memory.grace import GRACE, codebook_of
from workbench.edits import Edit
from workbench.facts import EditCase
from workbench.memories import Codebook
from workbench.model import ModelView

__all__ = ["Foresight"]


@dataclass(frozen=True)
class Foresight:
    """Groups of cases whose edits do not depend on each other's values.

    Args:
        view: the model.
        editor: GRACE.
        cases: of the run.
        wrong: which of some cases the model as it is has wrong.
        most: edits that the run may hold.
        size: cases that are asked in one batch.
    """

    view: ModelView
    editor: GRACE
    cases: Sequence[EditCase]
    wrong: Callable[[Sequence[EditCase]], Sequence[bool]]
    most: int | None
    size: int

    def __call__(self, position: int) -> dict[int, Edit | None]:
        """Edits of the case at a position and of those after it; None for what needs none."""
        window = range(position, min(position + self.size, len(self.cases)))
        chosen = [self.cases[i] for i in window]
        needed = self._needed(chosen, self.wrong(chosen))
        requests = [c.request for c, wanted in zip(chosen, needed, strict=False) if wanted]
        made = iter(self.editor.edits(self.view, requests) if requests else ())
        return {
            i: next(made) if wanted else None for i, wanted in zip(window, needed, strict=False)
        }

    def _needed(self, chosen: Sequence[EditCase], wrong: Sequence[bool]) -> list[bool]:
        """Whether each case needs an edit, up to the first that has to wait or is one too many."""
        view, editor = self.view, self.editor
        settings, rules = editor.settings(view), editor.rules(view)
        requests = [c.request for c in chosen]
        keys, _ = queries(view, [r.text for r in requests], editor.place(view), settings)
        before = book = codebook_of(view, editor, settings)
        room = len(chosen) if self.most is None else self.most - self._held()
        touched: set[int] = set()
        found: list[bool] = []
        for request, key, errs in zip(requests, keys, wrong, strict=True):
            now, then = (_answering(each, key) for each in (book, before))
            if found and (now in touched or now != then or sum(found) == room):
                break
            found.append(bool(errs))
            if errs:
                label = editor.label(view, request)
                decision = decide(book, key, label, rules, tag=request.text)
                book = noted(book, settings, decision)
                touched.add(decision.entry)
        return found

    def _held(self) -> int:
        return sum(len(edit.requests) for edit in self.view.stack)


def _answering(book: Codebook, key: Tensor) -> int | None:
    """Name of the entry that answers a query, None for none."""
    if not len(book):
        return None
    index = int(book.fired(key[None])[0])
    return int(book.ids[index]) if index >= 0 else None
