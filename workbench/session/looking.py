"""What a session looks at: two sides of a change, and the tables that compare them.

Tables are kept by the edits they speak of, so that scrubbing back and forth computes nothing twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from workbench.edits import AdapterEdit, Edit
from workbench.errors import OptionError
from workbench.facts import EditCase, EditRequest
from workbench.inspectors import (
    hook_gates,
    logit_lens,
    moved_neurons,
    promoted_tokens,
    residual_shift,
    side_effects,
)
from workbench.metrics.generation import first_tokens, next_probs, token_table
from workbench.receipts import Receipt, receipt
from workbench.session.desk import Session

__all__ = ["Answers", "Focus", "Looker", "Side"]

T = TypeVar("T")
#: Tables kept at most.
KEPT = 256
#: Likeliest tokens of each side that both list.
LISTED = 12


@dataclass(frozen=True)
class Side:
    """One state of the model: what it is called, the edits it holds, and how to get there."""

    name: str
    edits: tuple[str, ...]
    enter: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Answers:
    """Next-token tables of both sides; ``after`` is None where there is one state only."""

    prompt: str
    names: tuple[str, str]
    before: pd.DataFrame
    after: pd.DataFrame | None


@dataclass(frozen=True)
class Focus:
    """The edit that is looked at, and how many stand below it."""

    edit: Edit
    depth: int


class Looker:
    """Reads tables off a session's model; the model is as before afterwards.

    Args:
        session: what is looked at.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def sides(self) -> tuple[Side, Side | None]:
        """Before and after: of the preview, of the moment looked at, or of the whole stack."""
        s, view = self.session, self.session.view
        ids = tuple(e.id for e in view.stack)
        now = Side("now", ids, nullcontext)
        if s.preview is not None:
            edit = s.preview
            return now, Side("with the preview", (*ids, edit.id), lambda: view.applied(edit))
        if not ids:
            return now, None
        unedited = Side("unedited", (), view.pristine)
        if s.moment is None:
            return unedited, now
        n = s.moment
        return unedited, Side(f"after {n} of {len(ids)} edits", ids[:n], lambda: view.at(n))

    def focus(self) -> Focus | None:
        """The previewed edit, the newest at the moment looked at, or None."""
        s, stack = self.session, self.session.view.stack
        if s.preview is not None:
            return Focus(s.preview, len(stack))
        n = len(stack) if s.moment is None else s.moment
        return Focus(stack[n - 1], n - 1) if n else None

    # ------------------------------------------------------------------ tables

    def answers(self, prompt: str, pins: tuple[str, ...] = ()) -> Answers:
        """Likeliest next tokens of a prompt on both sides; each lists what the other one does."""
        view = self.session.view
        sides = [side for side in self.sides() if side is not None]
        probs = [self._at(s, ("probs", prompt), lambda: next_probs(view, prompt)) for s in sides]
        pinned = first_tokens(view, prompt, pins)
        likely = {int(i) for p in probs for i in p.topk(min(LISTED, len(p))).indices}
        tables = [token_table(view, p, top_k=LISTED, pinned=pinned, also=likely) for p in probs]
        names = (sides[0].name, sides[-1].name if len(sides) > 1 else "")
        return Answers(prompt, names, tables[0], tables[1] if len(tables) > 1 else None)

    def receipt(self) -> Receipt | None:
        """What the edit looked at did, measured when it was previewed or now."""
        focus = self.focus()
        if focus is None:
            return None
        known = self.session.receipts.get(focus.edit.id)
        return known or self._of(focus, "receipt", lambda e: receipt(self.session.view, e))

    def shift(self, prompt: str) -> pd.DataFrame:
        """How far the residual stream moved, layer by layer."""
        return self._of_edit(
            "shift", lambda e: residual_shift(self.session.view, e, prompt), prompt
        )

    def neurons(self, prompt: str) -> pd.DataFrame:
        """The keys' entries that carry the change."""
        return self._of_edit(
            "neurons", lambda e: moved_neurons(self.session.view, e, prompt), prompt
        )

    def promoted(self) -> pd.DataFrame:
        """Tokens that the change brings up and down."""
        return self._of_edit("promoted", lambda e: promoted_tokens(self.session.view, e))

    def lens(self, prompt: str, track: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """The readout after every layer, on both sides."""
        before, after = self.sides()
        tables = [self._lens(side, prompt, track) for side in (before, after) if side]
        return tables[0], tables[1] if after else None

    def gates(self, prompt: str) -> pd.DataFrame | None:
        """Scores and gates of the hook layers that the looked-at state has; None without any."""
        before, after = self.sides()
        side = after or before
        view = self.session.view
        held = [e for e in (*view.stack, self.session.preview) if isinstance(e, AdapterEdit)]
        if not any(e.id in side.edits for e in held):
            return None
        return self._at(side, ("gates", prompt), lambda: hook_gates(view, prompt))

    def effects(self, prompts: tuple[str | EditCase, ...]) -> pd.DataFrame:
        """Free prompts and near subjects, before and after the edit looked at."""
        asked = list(prompts)
        key = tuple(p if isinstance(p, str) else str(p.case_id) for p in prompts)
        view = self.session.view
        return self._of_edit("effects", lambda e: side_effects(view, [e], asked), key)

    # ------------------------------------------------------------------ inside

    def _lens(self, side: Side, prompt: str, track: tuple[str, ...]) -> pd.DataFrame:
        view = self.session.view
        return self._at(
            side, ("lens", prompt, track), lambda: logit_lens(view, prompt, track=track)
        )

    def _of_edit(self, what: str, make: Callable[[Edit], T], *more: Hashable) -> T:
        focus = self.focus()
        if focus is None:
            raise OptionError("there is no edit to look at: preview one first.")
        return self._of(focus, what, make, *more)

    def _of(self, focus: Focus, what: str, make: Callable[[Edit], T], *more: Hashable) -> T:
        """A table about one edit, on top of those below it."""
        view = self.session.view
        below = tuple(e.id for e in view.stack[: focus.depth])
        side = Side("", (*below, focus.edit.id), lambda: view.at(focus.depth))
        return self._at(side, (what, *more), lambda: make(focus.edit))

    def _at(self, side: Side, key: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        name = (side.edits, *key)
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]  # type: ignore[no-any-return]
        with side.enter():
            table = make()
        self._kept[name] = table
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return table

    @staticmethod
    def pins(request: EditRequest | None) -> tuple[str, ...]:
        """The answers that are always listed: the new one and the old one."""
        if request is None:
            return ()
        return tuple(t for t in (request.target_new, request.target_true) if t)
