"""The memory beside the model: its entries over time, and which one answers a prompt."""

from __future__ import annotations

from typing import Any, ClassVar

import ipywidgets as ipw

from workbench.plots import plot_codebook, plot_codebook_map
from workbench.session.looking import Memory
from workbench.widgets.live import FigureArea
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, column, field, row, table_html

__all__ = ["CodebookPanel"]

HINT = "prompts to look up, one a line; that of the fact is asked as well"
#: Columns of the nearest entries.
SHOWN = ("prompt", "fires", "entry", "label", "made_for", "distance", "radius", "margin")


class CodebookPanel(Panel):
    """A codebook's growth, its entries, and the nearest one to each prompt."""

    title: ClassVar[str] = "Memory"
    name: ClassVar[str] = "codebook"

    def _build(self) -> Any:
        self.prompts = field("Look up", name="wb-lookup", hint=HINT, lines=4)
        look = button("Look", lambda: self.bench.later(self), name="wb-look-codebook")
        self.areas = FigureArea(), FigureArea()
        self.table = ipw.HTML().add_class("wb-codebook-table")
        return column(self.prompts, row(look), self.message, self.table, *self.areas)

    def load(self) -> Memory | None:
        """Its tables; None without a codebook."""
        request = self.session.request
        typed = [line.strip() for line in self.prompts.value.splitlines() if line.strip()]
        own = [request.text] if request is not None else []
        found: Memory | None = self.bench.looker.memory(tuple(dict.fromkeys(own + typed)))
        return found

    def draw(self, found: Memory | None) -> None:
        """Tables and figures."""
        growth, plane = self.areas
        if found is None:
            growth.draw(None)
            plane.draw(None)
            self.table.value = "<p>No codebook here: GRACE makes one.</p>"
            return
        nearest = found.nearest[[c for c in SHOWN if c in found.nearest]]
        self.table.value = table_html(nearest, "Which entry answers") + table_html(
            found.entries, "Entries"
        )
        growth.draw(self.plot(plot_codebook, found.history))
        plane.draw(None if found.plane is None else self.plot(plot_codebook_map, found.plane))

    def figures(self) -> list[Any]:
        """Those that are drawn."""
        return [a.figure for a in self.areas if a.figure is not None]
