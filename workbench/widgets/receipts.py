"""The receipt of the edit looked at: did it take, how strongly, what else changed, what it cost."""

from __future__ import annotations

from typing import Any, ClassVar

import ipywidgets as ipw

from workbench.plots import plot_receipt
from workbench.receipts import Receipt
from workbench.widgets.live import FigureArea
from workbench.widgets.panel import Panel
from workbench.widgets.parts import column

__all__ = ["ReceiptPanel"]


class ReceiptPanel(Panel):
    """Verdict, teacher-forced and free answers with the gap between them, side effects, cost."""

    title: ClassVar[str] = "Receipt"
    name: ClassVar[str] = "receipt"

    def _build(self) -> Any:
        self.verdict = ipw.HTML().add_class("wb-verdict")
        self.area = FigureArea()
        return column(self.message, self.area, self.verdict)

    def load(self) -> Receipt | None:
        """The receipt, if there is an edit to look at."""
        found: Receipt | None = self.bench.looker.receipt()
        return found

    def draw(self, found: Receipt | None) -> None:
        """Show it."""
        if found is None:
            self.area.draw(None)
            self.verdict.value = "<p>No edit yet: preview one.</p>"
            return
        self.verdict.value = found._repr_html_()
        self.area.draw(self.plot(plot_receipt, found))

    def figures(self) -> list[Any]:
        """The figure, if any."""
        return [self.area.figure] if self.area.figure is not None else []
