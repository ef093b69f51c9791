"""Several editors on the same facts, with one model in memory."""

from __future__ import annotations

from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench.comparison import Comparison
from workbench.editors import EDITORS
from workbench.plots import plot_comparison, plot_comparison_grid
from workbench.widgets.live import FigureArea
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, column, row, table_html

__all__ = ["ComparePanel"]

#: Columns of the table; intervals are in the figure.
SHOWN = (
    *("editor", "efficacy", "paraphrase", "neighborhood", "score", "exact", "written", "gap", "kl"),
    *("seconds", "file_bytes", "update_norm", "problem"),
)


class ComparePanel(Panel):
    """Choose editors, run them on the facts on the desk, see one table and one grid."""

    title: ClassVar[str] = "Compare"
    name: ClassVar[str] = "compare"
    keeps: ClassVar[bool] = True

    def _build(self) -> Any:
        self.editors = ipw.SelectMultiple(
            options=list(EDITORS),
            value=("ROME", "FT"),
            description="Editors",
            rows=6,
            style={"description_width": "120px"},
        ).add_class("wb-compare-editors")
        run = button("Compare", self.run, name="wb-compare-run", style="primary")
        self.areas = FigureArea(), FigureArea()
        self.table = ipw.HTML().add_class("wb-compare-table")
        self.found: Comparison | None = None
        return column(row(self.editors, run), self.message, *self.areas, self.table)

    def load(self) -> Comparison | None:
        """The newest comparison."""
        return self.found

    def draw(self, found: Comparison | None) -> None:
        """Figures and table."""
        if found is None:
            return
        if found.summary.empty:
            return
        for area, plot in zip(self.areas, (plot_comparison, plot_comparison_grid), strict=True):
            area.draw(self.plot(plot, found, where=found.where))
        caption = f"The same facts with each editor, on {found.where}"
        table = pd.concat([found.before, found.summary], ignore_index=True)
        shown = [c for c in SHOWN if c in table and table[c].notna().any()]
        self.table.value = table_html(table[shown], caption)

    def run(self) -> None:
        """Compare the chosen editors; the model is as before afterwards."""
        names, typed = tuple(self.editors.value), self.bench.typed()

        def keep(found: Comparison) -> None:
            self.found = found  # a stop leaves what is known

        def work(job: Any) -> None:
            self.bench.take(typed)
            self.session.compare(names, generate=True, on_step=keep)

        self.act("compare", work)

    def forget(self) -> None:
        """Another model: nothing is compared yet."""
        super().forget()
        self.found, self.table.value = None, ""
        for area in self.areas:
            area.draw(None)

    def figures(self) -> list[Any]:
        """Those that are drawn."""
        return [a.figure for a in self.areas if a.figure is not None]
