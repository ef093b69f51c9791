"""Where the fact is recalled: a causal trace, and an edit at the place it points to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pandas as pd

from workbench.inspectors import causal_trace, edit_site
from workbench.plots import plot_causal
from workbench.widgets.live import FigureArea
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, choice, column, number, row

__all__ = ["TracePanel"]

KINDS = {"whole blocks": "residual", "MLPs": "mlp", "attention": "attention"}


class TracePanel(Panel):
    """Heat map over tokens and layers; a button takes the layer that it suggests."""

    title: ClassVar[str] = "Causal trace"
    name: ClassVar[str] = "trace"
    keeps: ClassVar[bool] = True

    def _build(self) -> Any:
        self.kind = choice("Restore", list(KINDS), name="wb-trace-kind")
        self.samples = number("Noise samples", 5, name="wb-trace-samples", high=100)
        run = button("Trace", self.run, name="wb-trace-run", style="primary")
        self.here = button(
            "Edit here",
            self.edit_here,
            name="wb-edit-here",
            hint="Take the layer that matters most at the subject's last token",
        )
        self.here.disabled = True
        self.area = FigureArea()
        self.found: pd.DataFrame | None = None
        self.traced = ""
        self.kind.observe(lambda change: self.bench.later(self), "value")
        return column(row(self.kind, self.samples), row(run, self.here), self.message, self.area)

    def load(self) -> pd.DataFrame | None:
        """The newest trace."""
        return self.found

    def draw(self, found: pd.DataFrame | None) -> None:
        """The heat map of the chosen kind."""
        self.here.disabled = found is None
        if found is not None:
            figure = self.plot(plot_causal, found, where=self.traced, kind=KINDS[self.kind.value])
            self.area.draw(figure)

    def run(self) -> None:
        """Trace the fact in the fields; the model is as before afterwards."""
        samples, typed = self.samples.value, self.bench.typed()

        def work(job: Any) -> None:
            self.bench.take(typed)
            asked = replace(self.session.request, target_true=None)  # what the model says now
            self.found = causal_trace(self.session.view, asked, samples=samples)
            self.traced = self.session.describe()

        self.act("causal trace", work)

    def edit_here(self) -> None:
        """Take the suggested layer for the editor."""
        found = self.found
        if found is None:
            return

        def work(job: Any) -> int:
            layer = edit_site(found)
            self.session.adjust(layers=(layer,))
            return layer

        self.act("edit here", work, lambda x: self.message.say(f"The editor now writes layer {x}."))

    def forget(self) -> None:
        """Another model: its trace is not made yet."""
        super().forget()
        self.found = None
        self.area.draw(None)

    def figures(self) -> list[Any]:
        """The heat map, if any."""
        return [self.area.figure] if self.area.figure is not None else []
