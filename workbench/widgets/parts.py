"""Small parts that every panel is made of: fields, buttons, sentences, tables."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as ipw
import pandas as pd

from workbench import looks

__all__ = [
    "Message",
    "button",
    "choice",
    "column",
    "field",
    "heading",
    "number",
    "row",
    "table_html",
]

_WIDE = {"description_width": "120px"}
#: Rows of a table that a panel shows.
ROWS = 40


def field(label: str, *, name: str, hint: str = "", value: str = "", lines: int = 1) -> Any:
    """A text field; ``name`` is the class by which styles and tests find it."""
    make = ipw.Text if lines == 1 else ipw.Textarea
    made = make(
        value=value,
        description=label,
        placeholder=hint,
        style=_WIDE,
        continuous_update=False,
        layout=ipw.Layout(width="98%", **({} if lines == 1 else {"height": f"{22 * lines}px"})),
    )
    return made.add_class(name)


def number(label: str, value: int, *, name: str, low: int = 1, high: int = 100_000) -> Any:
    """A whole number."""
    made = ipw.BoundedIntText(
        value=value,
        min=low,
        max=high,
        description=label,
        style=_WIDE,
        layout=ipw.Layout(width="220px"),
    )
    return made.add_class(name)


def choice(label: str, options: Any, *, name: str, value: Any = None) -> Any:
    """A drop-down list."""
    made = ipw.Dropdown(
        options=options,
        value=options[0] if value is None else value,
        description=label,
        style=_WIDE,
        layout=ipw.Layout(width="98%"),
    )
    return made.add_class(name)


def slider(make: Any, label: str, *, name: str, **options: Any) -> Any:
    """A slider as wide as the panel.

    Args:
        make: ``ipywidgets.IntSlider`` or ``FloatSlider``.
        label: beside it.
        name: the class by which styles and tests find it.
        options: of the slider.
    """
    made = make(description=label, style=_WIDE, layout=ipw.Layout(width="98%"), **options)
    return made.add_class(name)


def button(label: str, does: Any, *, name: str, hint: str = "", style: str = "") -> Any:
    """A button; ``does`` is called without arguments."""
    made = ipw.Button(
        description=label,
        tooltip=hint or label,
        button_style=style,
        layout=ipw.Layout(width="auto"),
    )
    made.on_click(lambda _: does())
    return made.add_class(name)


def row(*parts: Any) -> Any:
    """Side by side, wrapping where there is no room."""
    return ipw.HBox(parts, layout=ipw.Layout(flex_flow="row wrap", align_items="center"))


def column(*parts: Any, width: str = "100%") -> Any:
    """One below the other."""
    return ipw.VBox(parts, layout=ipw.Layout(width=width))


def heading(text: str) -> Any:
    """A small heading."""
    return ipw.HTML(f"<h4 style='margin:8px 0 0'>{escape(text)}</h4>")


def table_html(table: pd.DataFrame, caption: str) -> str:
    """A table for a panel, in the page's own colors."""
    if table.empty:
        return f"<p>{escape(caption)}: nothing.</p>"
    return f"<div class='wb-table'>{looks.table_html(table, caption=caption, rows=ROWS)}</div>"


class Message(ipw.HTML):
    """A sentence about what went wrong or what happened, with details to unfold."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_class("wb-message").add_class(name)

    def say(self, text: str = "", detail: str = "", *, alert: bool = False) -> None:
        """Replace the sentence; the empty text clears it."""
        color = "var(--jp-error-color0, #b00020)" if alert else "var(--jp-ui-font-color1, inherit)"
        role = "alert" if alert else "status"
        more = (
            f"<details><summary>Details</summary><pre>{escape(detail)}</pre></details>"
            if detail
            else ""
        )
        body = f"<span role='{role}' style='color:{color}'>{escape(text)}</span>{more}"
        self.value = body if text else ""

    def add(self, text: str) -> None:
        """One more sentence below."""
        self.value += f"<div role='status'>{escape(text)}</div>"

    def complain(self, text: str, detail: str = "") -> None:
        """Say it as an error."""
        self.say(text, detail, alert=True)
