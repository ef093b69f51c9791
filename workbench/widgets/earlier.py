"""The offer to go on with a session that ended, of a killed kernel, say."""

from __future__ import annotations

from html import escape
from typing import Any, ClassVar

import ipywidgets as ipw

from workbench.session.keeping import Kept
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, column, row

__all__ = ["EarlierPanel"]


class EarlierPanel(Panel):
    """A line with two buttons while the model holds nothing and there is something to restore."""

    title: ClassVar[str] = "Earlier session"
    name: ClassVar[str] = "earlier"

    def _build(self) -> Any:
        self.kept: Kept | None = None
        self.said = ipw.HTML()
        restore = button(
            "Restore", self.restore, name="wb-restore", hint="Put its edits back, bit for bit"
        )
        forget = button("Forget", self.forget_it, name="wb-forget", hint="Delete what was kept")
        self.offer = row(self.said, restore, forget)
        return column(self.offer, self.message)

    def load(self) -> Kept | None:
        """The newest session that ended; nothing once the model holds edits."""
        if self.session.view.held:
            return None
        return next(iter(self.session.earlier()), None)

    def draw(self, found: Kept | None) -> None:
        """Offer it."""
        self.kept = found
        self.offer.layout.display = "none" if found is None else ""
        text = "" if found is None else f"An earlier session is kept: {found.describe()}."
        self.said.value = f"<span role='status'>{escape(text)}</span>"

    def restore(self) -> None:
        """Put its edits, facts and notes back."""
        kept = self.kept
        if kept is None:
            return

        def then(edits: tuple[Any, ...]) -> None:
            if self.session.request is not None:
                self.bench.fact.fill(self.session.request)
            self.message.say(f"Restored {len(edits)} edits.")

        self.act("restore", lambda job: self.session.restore(kept), then)

    def forget_it(self) -> None:
        """Delete it; an older one is offered next."""
        kept = self.kept
        if kept is not None:
            self.act("forget", lambda job: self.session.forget(kept), light=True)
