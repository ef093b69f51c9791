"""What the model says next, before and after; any other prompt can be asked as well."""

from __future__ import annotations

from typing import Any, ClassVar

from workbench.plots import plot_next_tokens
from workbench.plots.theme import words
from workbench.session.looking import Answers, Looker
from workbench.widgets.live import FigureArea
from workbench.widgets.panel import Panel
from workbench.widgets.parts import column, field

__all__ = ["AnswersPanel"]


class AnswersPanel(Panel):
    """Bars of the likeliest next tokens; new and old answer are always among them."""

    title: ClassVar[str] = "Next token"
    name: ClassVar[str] = "answers"

    def _build(self) -> Any:
        self.area = FigureArea()
        self.other = field("Ask instead", name="wb-ask", hint="any prompt; empty: that of the fact")
        self.other.observe(lambda change: self.bench.later(self), "value")
        return column(self.area, self.other, self.message)

    def load(self) -> Answers | None:
        """Tables of both sides."""
        request = self.session.request
        text = self.other.value.strip() or (request.text if request else "")
        if not text:
            return None
        return self.bench.looker.answers(text, Looker.pins(request))

    def draw(self, found: Answers | None) -> None:
        """Draw the bars."""
        self.area.draw(None if found is None else self.figure(found))

    def figure(self, found: Answers) -> Any:
        """The bars as a figure."""
        request = self.session.request
        sides = f" · {found.names[0]} → {found.names[1]}" if found.after is not None else ""
        return self.plot(
            plot_next_tokens,
            found.before,
            found.after,
            target=request.target_new if request else None,
            old=request.target_true if request else None,
            subtitle=f"“{words(found.prompt)}” · {words(self.where)}{sides}",
        )

    def figures(self) -> list[Any]:
        """The bars, if any."""
        return [self.area.figure] if self.area.figure is not None else []
