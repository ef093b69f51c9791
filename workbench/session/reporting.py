"""A session as one self-contained page: the facts, the figures, the numbers, how it was made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from workbench.edits import Edit
from workbench.plots import plot_receipt
from workbench.receipts import Receipt
from workbench.report import Report
from workbench.session.desk import Session

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["write_report"]


def write_report(
    session: Session, path: str | os.PathLike[str], *, figures: Sequence[go.Figure] = ()
) -> Path:
    """Write what a session holds as one HTML file that opens offline.

    Args:
        session: edits with receipts are shown with them.
        path: the file.
        figures: more of them, such as those in sight on the bench.

    Raises:
        StorageError: if the file cannot be written; an older one is left as it was.

    Example:
        >>> write_report(session, "edits.html")  # doctest: +SKIP
    """
    view = session.view
    report = Report(f"Edits of {view.name}").text(view.describe())
    for fig in figures:
        report.figure(fig)
    report.heading("The edits, oldest first").table(session.timeline(), caption="The stack")
    ids = tuple(e.id for e in view.stack)
    for i, edit in enumerate(view.stack):
        _edit(report, edit, session.receipts.get(ids[: i + 1]))
    return report.save(path)


def _edit(report: Report, edit: Edit, found: Receipt | None) -> None:
    first = edit.requests[0]
    report.heading(f"{edit.editor}: {first.text} → {first.target_new}")
    if found is not None:
        report.text(found.verdict).figure(plot_receipt(found), numbers=found.facts)
        report.table(found.side_effects, caption="What else changed")
    report.table(_pairs(edit.config), caption=f"Configuration of {edit.editor}")
    report.table(_pairs({"id": edit.id, "base": edit.base, **edit.meta}), caption="How it was made")


def _pairs(values: object) -> pd.DataFrame:
    items = dict(values)  # type: ignore[call-overload]
    return pd.DataFrame({"what": list(items), "value": list(map(str, items.values()))})
