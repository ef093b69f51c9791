"""Side effects: near subjects, other facts of the subject, and any prompts a person cares about."""

from __future__ import annotations

from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench.plots import plot_side_effects
from workbench.widgets.live import FigureArea
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, column, field, row, table_html

__all__ = ["EffectsPanel"]

HINT = "prompts to watch, one a line; the probes of the facts on the desk are asked as well"


class EffectsPanel(Panel):
    """Probes and free prompts before and after the edit looked at, changed ones first."""

    title: ClassVar[str] = "Side effects"
    name: ClassVar[str] = "effects"

    def _build(self) -> Any:
        self.prompts = field("Watch", name="wb-watch", hint=HINT, lines=4)
        look = button("Look", lambda: self.bench.later(self), name="wb-look-effects")
        self.area, self.table = FigureArea(), ipw.HTML()
        return column(self.prompts, row(look), self.message, self.area, self.table)

    def load(self) -> pd.DataFrame | None:
        """Before and after; None without an edit or a prompt."""
        free = [line.strip() for line in self.prompts.value.splitlines() if line.strip()]
        probed = [c for c in self.session.cases if any(p.kind != "efficacy" for p in c.probes)]
        if self.bench.looker.focus() is None or not (free or probed):
            return None
        found: pd.DataFrame = self.bench.looker.effects((*free, *probed))
        return found

    def draw(self, found: pd.DataFrame | None) -> None:
        """Figure and table."""
        if found is None:
            self.area.draw(None)
            self.table.value = "<p>Preview an edit, and type prompts to watch.</p>"
            return
        self.area.draw(self.plot(plot_side_effects, found))
        shown = ["kind", "prompt", "top_before", "p_top_before", "top_after", "p_top_after", "kl"]
        self.table.value = table_html(found[shown], "Before and after, changed ones first")

    def figures(self) -> list[Any]:
        """The figure, if any."""
        return [self.area.figure] if self.area.figure is not None else []
