"""What a session looks at: two sides of a change, and the tables that compare them.

Tables are kept by the edits they speak of, so that scrubbing back and forth computes nothing twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from workbench.edits import AdapterEdit, Edit
from workbench.errors import OptionError
from workbench.facts import EditCase, EditRequest
from workbench.inspectors import (
    codebook_history,
    codebook_map,
    codebook_table,
    hook_gates,
    logit_lens,
    moved_neurons,
    nearest_entries,
    promoted_tokens,
    residual_shift,
    side_effects,
)
from workbench.metrics.generation import first_tokens, next_probs, token_table
from workbench.model import ModelView
from workbench.receipts import Receipt, receipt
from workbench.session.desk import Session

__all__ = ["Answers", "Focus", "Looker", "Memory", "Side"]

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


@dataclass(frozen=True)
class Memory:
    """What a codebook holds: tables of the functions of these names; ``plane`` is None for fewer
    than three points."""

    entries: pd.DataFrame
    history: pd.DataFrame
    nearest: pd.DataFrame
    plane: pd.DataFrame | None


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
        s, view = self.session, self.session.view
        below = tuple(e.id for e in view.stack[: focus.depth])
        known = s.receipts.get((*below, focus.edit.id))
        if known is not None:
            return known
        place = focus.edit if focus.edit is s.preview else focus.depth
        about = [c for c in s.cases if c.request in focus.edit.requests]
        side = Side("", (*below, focus.edit.id), nullcontext)
        key = ("receipt", _content(about))
        return self._at(side, key, lambda: receipt(view, place, about or None))

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
        view, side = self.session.view, self._holding("hook_layer")
        if side is None:
            return None
        return self._at(side, ("gates", prompt), lambda: hook_gates(view, prompt))

    def memory(self, prompts: tuple[str, ...]) -> Memory | None:
        """The codebook that the looked-at state has, asked for prompts; None without one."""
        view, side = self.session.view, self._holding("codebook")
        if side is None:
            return None
        return self._at(side, ("memory", prompts), lambda: _memory(view, prompts))

    def effects(self, prompts: tuple[str | EditCase, ...]) -> pd.DataFrame:
        """Free prompts and near subjects, before and after the edit looked at."""
        asked = list(prompts)
        key = _content(prompts)
        view = self.session.view
        return self._of_edit("effects", lambda e: side_effects(view, [e], asked), key)

    # ------------------------------------------------------------------ inside

    def _holding(self, kind: str) -> Side | None:
        """The state looked at, if its edits have adapters of a kind."""
        before, after = self.sides()
        side, preview = after or before, self.session.preview
        held = [*self.session.view.stack, *([preview] if preview is not None else [])]
        kinds = {
            a.kind
            for e in held
            if isinstance(e, AdapterEdit) and e.id in side.edits
            for a in e.adapters
        }
        return side if kind in kinds else None

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


def _content(asked: Iterable[str | EditCase]) -> Hashable:
    """What is asked, whatever it is called; ids repeat from file to file."""
    return tuple(a if isinstance(a, str) else (a.request, a.probes) for a in asked)


def _memory(view: ModelView, prompts: tuple[str, ...]) -> Memory:
    entries, asked = codebook_table(view), list(prompts)
    enough = len(entries) + len(asked) >= 3
    return Memory(
        entries=entries,
        history=codebook_history(view),
        nearest=nearest_entries(view, asked) if asked else pd.DataFrame(),
        plane=codebook_map(view, asked) if enough else None,
    )
