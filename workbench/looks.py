"""How a view looks in a notebook: its line, and a table of the edits it holds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from workbench.edits import Edit

__all__ = ["stack_html"]

_HEAD = "<tr><th>#</th><th>editor</th><th>prompt</th><th>target</th><th>facts</th></tr>"


def stack_html(line: str, stack: Sequence[Edit]) -> str:
    """A line of text, and below it a row for each edit of a stack; everything is escaped."""
    rows = "".join(_row(i, edit) for i, edit in enumerate(stack))
    table = f"<table>{_HEAD}{rows}</table>" if rows else ""
    return f"<b>{escape(line)}</b>{table}"


def _row(number: int, edit: Edit) -> str:
    prompt = edit.requests[0].text if edit.requests else ""
    target = edit.requests[0].target_new if edit.requests else ""
    return (
        f"<tr><td>{number}</td><td>{escape(edit.editor)}</td><td>{escape(prompt)}</td>"
        f"<td>{escape(target)}</td><td>{len(edit.requests)}</td></tr>"
    )
