"""The stack as a table (what was written, what became of it, a person's notes) and as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from workbench.edits import Edit
from workbench.model import ModelView
from workbench.receipts import Receipt

__all__ = ["timeline", "where"]

COLUMNS = ("entry", "editor", "prompt", "target", "facts", "took", "note", "id")


def timeline(
    stack: Sequence[Edit], receipts: Mapping[tuple[str, ...], Receipt], notes: Mapping[str, str]
) -> pd.DataFrame:
    """The stack, oldest first.

    Args:
        stack: the edits.
        receipts: ids of the edits below and its own → what was measured.
        notes: edit id → words.

    Returns:
        The table of :meth:`workbench.session.Session.timeline`.
    """
    rows, ids = [], tuple(e.id for e in stack)
    for i, edit in enumerate(stack):
        first, known = edit.requests[0], receipts.get(ids[: i + 1])
        took = float(known.took) if known is not None else float("nan")
        note = notes.get(edit.id, "")
        facts = len(edit.requests)
        rows.append((i, edit.editor, first.text, first.target_new, facts, took, note, edit.id))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def where(view: ModelView, preview: Edit | None, moment: int | None) -> str:
    """Model, number of edits, what is looked at."""
    held = len(view.held)
    state = f"{held} edit{'' if held == 1 else 's'}" if held else "unedited"
    if preview is not None:
        state += f", preview of {preview.editor}, not applied"
    if moment is not None:
        state += f", looking at the moment after {moment}"
    return f"{view.name} · {state}"
