"""Hook layers over the prompt's tokens, and what another threshold would let through."""

from __future__ import annotations

from html import escape
from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench.inspectors import with_alpha
from workbench.plots import plot_hooks
from workbench.widgets.live import LiveFigure
from workbench.widgets.panel import Panel
from workbench.widgets.parts import column, field, slider

__all__ = ["HookPanel"]


class HookPanel(Panel):
    """Scores a token and layer, the gate outlined; a slider tries another threshold."""

    title: ClassVar[str] = "Hook layers"
    name: ClassVar[str] = "hooks"

    def _build(self) -> Any:
        self.prompt = field("Prompt", name="wb-hook-prompt", hint="empty: that of the fact")
        self.prompt.observe(lambda change: self.bench.later(self), "value")
        self.alpha = slider(
            ipw.FloatSlider, "Threshold α", name="wb-alpha", value=2.0, min=-3.0, max=8.0,
            step=0.05, disabled=True,
        )  # fmt: skip
        self.alpha.observe(self._moved, "value")
        self.place, self.words = (
            column().add_class("wb-gates"),
            ipw.HTML().add_class("wb-hook-words"),
        )
        self.table: pd.DataFrame | None = None
        self.live: LiveFigure | None = None
        return column(self.message, self.prompt, self.alpha, self.place, self.words)

    def load(self) -> pd.DataFrame | None:
        """Scores of the prompt's tokens."""
        request = self.session.request
        text = self.prompt.value.strip() or (request.text if request else "")
        return self.bench.looker.gates(text) if text else None

    def draw(self, found: pd.DataFrame | None) -> None:
        """Show the gates with their own thresholds; the slider starts there."""
        self.table = found
        self.alpha.disabled = found is None
        if found is None:
            self.words.value = "<p>No hook layer here: CoachHook makes some.</p>"
            self.place.children = ()
            return
        with self.bench.quiet():
            self.alpha.value = float(found["alpha"].iloc[0])
        self._show(found)

    def forget(self) -> None:
        """Another model: it has no gates yet."""
        super().forget()
        self.table = None

    def figures(self) -> list[Any]:
        """The heat map, if any."""
        return [] if self.table is None else [self.plot(plot_hooks, self.table)]

    def _moved(self, change: Any) -> None:
        if self.table is not None and not self.bench.is_quiet:
            self._show(with_alpha(self.table, change["new"]))

    def _show(self, table: pd.DataFrame) -> None:
        figure = self.plot(plot_hooks, table)
        if self.live is None:
            self.live = LiveFigure(figure)
        else:
            self.live.become(figure)
        if self.live not in self.place.children:
            self.place.children = (self.live,)
        opened = table[table["open"]]
        tokens = ", ".join(dict.fromkeys(opened["token"].str.strip())) or "none"
        own = self.table is not None and table["alpha"].equals(self.table["alpha"])
        what = "The edit is used at" if own else "With this threshold it would be used at"
        self.words.value = f"<p>{what}: {escape(tokens)}.</p>"
