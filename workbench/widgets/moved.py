"""What moved inside: layers, neurons, promoted tokens, the readout after every layer."""

from __future__ import annotations

from html import escape
from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.plots import plot_lens, plot_promoted, plot_residual_shift
from workbench.session.looking import Looker
from workbench.widgets.live import FigureArea
from workbench.widgets.panel import Panel
from workbench.widgets.parts import column, table_html

__all__ = ["MovedPanel"]

#: What can be looked at: load name → heading of its table
PARTS = ("shift", "promoted", "lens", "neurons")


class MovedPanel(Panel):
    """Layer strip, promoted and suppressed tokens, logit lens before and after, top neurons."""

    title: ClassVar[str] = "What moved"
    name: ClassVar[str] = "moved"

    def _build(self) -> Any:
        self.areas = {part: FigureArea() for part in PARTS[:3]}
        self.neurons, self.words = ipw.HTML(), ipw.HTML()
        return column(self.message, *self.areas.values(), self.neurons, self.words)

    def load(self) -> dict[str, Any]:
        """The four tables; one that cannot be had is a sentence instead."""
        looker = self.bench.looker
        focus, request = looker.focus(), self.session.request
        if focus is None:
            return {}
        request = request or focus.edit.requests[0]
        pins = Looker.pins(request)
        makers = {
            "shift": lambda: looker.shift(request.text),
            "promoted": looker.promoted,
            "lens": lambda: looker.lens(request.text, pins),
            "neurons": lambda: looker.neurons(request.text),
        }
        return {part: _or_sentence(make) for part, make in makers.items()}

    def draw(self, found: dict[str, Any]) -> None:
        """Figures where there are tables, sentences where there are none."""
        figures = {
            "shift": lambda t: self.plot(plot_residual_shift, t),
            "promoted": lambda t: self.plot(plot_promoted, t),
            "lens": lambda t: self.plot(plot_lens, *t),
        }
        said = [] if found else ["No edit yet: preview one."]
        for part, area in self.areas.items():
            table = found.get(part)
            if isinstance(table, str):
                said.append(table)
            known = table is not None and not isinstance(table, str)
            area.draw(figures[part](table) if known else None)
        neurons = found.get("neurons")
        known = isinstance(neurons, pd.DataFrame)
        self.neurons.value = table_html(neurons, "Neurons that carry the change") if known else ""
        self.words.value = "".join(f"<p>{escape(s)}</p>" for s in dict.fromkeys(said))

    def figures(self) -> list[Any]:
        """Those that are drawn."""
        return [a.figure for a in self.areas.values() if a.figure is not None]


def _or_sentence(make: Any) -> Any:
    try:
        found = make()
    except WorkbenchError as err:
        return str(err)
    if isinstance(found, pd.DataFrame) and found.empty:
        return str(found.attrs.get("why", "There is nothing to show."))
    return found
