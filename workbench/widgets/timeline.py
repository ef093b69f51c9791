"""The stack as a timeline: scrub through it, undo, redo, take any entry out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, column, field, number, row, slider, table_html

__all__ = ["TimelinePanel"]


class TimelinePanel(Panel):
    """Entries, a slider over time, and what can be done with an entry."""

    title: ClassVar[str] = "Timeline"
    name: ClassVar[str] = "timeline"

    def _build(self) -> Any:
        self.slider = slider(
            ipw.IntSlider, "Look at", name="wb-moment", value=0, min=0, max=0,
            continuous_update=False,
        )  # fmt: skip
        self.slider.observe(self._scrubbed, "value")
        self.entry = number("Entry", 0, name="wb-entry", low=0)
        self.note = field("Note", name="wb-note", hint="words for the edit looked at")
        self.note.observe(self._noted, "value")
        self.undo = button(
            "Undo", self.take_back, name="wb-undo", hint="Take the newest edit off, exactly"
        )
        self.redo = button("Redo", self.put_back, name="wb-redo")
        drop = button(
            "Drop",
            self.drop,
            name="wb-drop",
            hint="Take this entry out; later ones stay as they were computed",
        )
        replay = button(
            "Drop and recompute",
            self.replay,
            name="wb-replay",
            hint="Take this entry out and compute later ones again",
        )
        self.table = ipw.HTML()
        return column(
            self.slider,
            row(self.undo, self.redo),
            row(self.entry, drop, replay),
            self.note,
            self.message,
            self.table,
        )

    def load(self) -> pd.DataFrame:
        """The stack."""
        table: pd.DataFrame = self.session.timeline()
        return table

    def draw(self, found: pd.DataFrame) -> None:
        """Show it; slider and buttons follow."""
        held, moment = len(found), self.session.moment
        with self.bench.quiet():
            self.slider.max = held
            self.slider.value = held if moment is None else moment
            self.entry.max = max(held - 1, 0)
            edit = self._looked_at()
            self.note.value = "" if edit is None else self.session.notes.get(edit.id, "")
        self.slider.disabled = not held
        self.undo.disabled, self.redo.disabled = not held, not self.session.redoable
        self.table.value = table_html(found.iloc[::-1], "The edits the model holds, newest first")

    def take_back(self) -> None:
        """Undo."""
        self._move("undo", self.session.undo, "Undone")

    def put_back(self) -> None:
        """Redo."""
        self._move("redo", self.session.redo, "Put back")

    def _move(self, what: str, does: Callable[[], Any], told: str) -> None:
        self.act(
            what,
            lambda job: does(),
            lambda edit: self.message.say(f"{told}: {_said(edit)}."),
            light=True,
            repeats=True,
        )

    def drop(self, *, replay: bool = False) -> None:
        """Take the chosen entry out."""
        entry = self.entry.value
        how = "later edits were computed again" if replay else "later edits stay as computed"
        self.act(
            "drop",
            lambda job: self.session.drop(entry, replay=replay),
            lambda edit: self.message.say(f"Dropped: {_said(edit)}; {how}."),
        )

    def replay(self) -> None:
        """Take the chosen entry out and compute the later ones again."""
        self.drop(replay=True)

    def _scrubbed(self, change: Any) -> None:
        if not self.bench.is_quiet:
            self.act("go there", lambda job: self.session.look_at(change["new"]), light=True)

    def _noted(self, change: Any) -> None:
        edit = self._looked_at()
        if edit is not None and not self.bench.is_quiet:
            self.session.note(edit.id, change["new"].strip())
            self.bench.later(self)

    def _looked_at(self) -> Any:
        """The newest edit at the moment looked at."""
        held, moment = self.session.view.held, self.session.moment
        held = held if moment is None else held[:moment]
        return held[-1] if held else None


def _said(edit: Any) -> str:
    first = edit.requests[0]
    more = f" and {len(edit.requests) - 1} more" if len(edit.requests) > 1 else ""
    return f"{edit.editor}, {first.text} → {first.target_new}{more}"
