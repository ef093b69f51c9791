"""How things look in a notebook: a line of text and a plain table; everything is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from workbench.edits import Edit

__all__ = ["stack_html", "table_html", "view_line"]

_HEAD = "<tr><th>#</th><th>editor</th><th>prompt</th><th>target</th><th>facts</th></tr>"


def view_line(view: Any) -> str:
    """A view in one line: name, family, sizes, dtype, device and number of edits."""
    n, dtype = len(view.stack), str(view.dtype).removeprefix("torch.")
    return (
        f"{view.name}: {view.layout.family} {view.kind}, {view.n_layers} layers × "
        f"{view.d_model}, d_mlp {view.d_mlp}, {dtype} on {view.device}; "
        f"{n} edit{'' if n == 1 else 's'}"
    )


def stack_html(line: str, stack: Sequence[Edit]) -> str:
    """A line of text, and below it a row for each edit of a stack; everything is escaped."""
    rows = "".join(_row(i, edit) for i, edit in enumerate(stack))
    table = f"<table>{_HEAD}{rows}</table>" if rows else ""
    return f"<b>{escape(line)}</b>{table}"


def table_html(
    table: pd.DataFrame, *, columns: Iterable[str] | None = None, caption: str = "", rows: int = 10
) -> str:
    """The first rows of a table as HTML; the rest is counted, an empty table is nothing.

    Args:
        table: any table; the index is left out.
        columns: which ones, in this order; those that the table lacks are left out.
        caption: what it shows.
        rows: how many rows are shown.
    """
    if table.empty:
        return ""
    names = [c for c in (table.columns if columns is None else columns) if c in table.columns]
    head = "".join(f"<th>{escape(str(c).replace('_', ' '))}</th>" for c in names)
    lines = table[names].head(rows).itertuples(index=False, name=None)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in line) + "</tr>" for line in lines
    )
    more = f"<p>and {len(table) - rows} more rows</p>" if len(table) > rows else ""
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{said}<tr>{head}</tr>{body}</table>{more}"


def _row(number: int, edit: Edit) -> str:
    prompt = edit.requests[0].text if edit.requests else ""
    target = edit.requests[0].target_new if edit.requests else ""
    return (
        f"<tr><td>{number}</td><td>{escape(edit.editor)}</td><td>{escape(prompt)}</td>"
        f"<td>{escape(target)}</td><td>{len(edit.requests)}</td></tr>"
    )


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
