"""What an edit does to a codebook: add, expand, refine, split, overwrite (GRACE, arXiv 2211.11031).

A decision looks at the nearest entry only, and at nothing but keys, radii and labels, so a whole
stream can be decided before a single value is trained (spec memory-and-meta 1.4 and 1.11).

Departures from the published code (``released=True`` reproduces it): labels are equal when all
their tokens are; a split never widens the older ball; a query that is already a key (up to the
tolerance) and gets another label is overwritten in place, where the released code makes a twin that
never answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.memories import Codebook, Entries, Label, Settings

__all__ = ["EXPANSIONS", "Decision", "Rules", "decide", "entries_of", "noted"]

#: ``coverage`` grows the ball until it holds the query; ``moving_average`` moves its key halfway.
EXPANSIONS = ("coverage", "moving_average")
#: Distance kept between two balls after a split: absolute, or relative where that is more.
MARGIN, RELATIVE_MARGIN = 1e-5, 1e-6


@dataclass(frozen=True)
class Rules:
    """How a codebook grows.

    Args:
        epsilon: radius of a new entry.
        expand: one of :data:`EXPANSIONS`.
        strict_overlap: new balls are kept apart from every ball with another label, not only from
            the nearest.
        cap_expand: a ball never grows beyond half the way to the nearest key with another label;
            the query gets an entry of its own instead.
        same: distance up to which two queries are one.
        released: as published, see above.
    """

    epsilon: float
    expand: str = "coverage"
    strict_overlap: bool = False
    cap_expand: bool = False
    same: float = 0.0
    released: bool = False


@dataclass(frozen=True)
class Decision:
    """What one query does to a codebook.

    Attributes:
        op: ``add, expand, refine, split`` or ``overwrite``.
        entry: name of the entry that answers from now on.
        key, radius, label: of this entry afterwards.
        nearest: name of the entry that was nearest, None in an empty codebook.
        distance: to it.
        radius_before: of the entry that answers; None where it is new.
        shrunk: name → (radius before, radius after) of balls that made room.
        trained: False where the entry cannot answer its own query (``released`` twins).
    """

    op: str
    entry: int
    key: Float[Tensor, " d_in"]
    radius: float
    label: Label
    nearest: int | None
    distance: float | None
    radius_before: float | None = None
    shrunk: tuple[tuple[int, float, float], ...] = ()
    trained: bool = True

    @property
    def is_new(self) -> bool:
        """Whether the codebook has one entry more afterwards."""
        return self.op in ("add", "split")


def decide(
    book: Codebook, query: Float[Tensor, " d_in"], label: Label, rules: Rules, *, tag: str = ""
) -> Decision:
    """What to do about a query that shall be answered with ``label``.

    Args:
        book: the codebook as it is.
        query: float32.
        label: of the answer.
        rules: how the codebook grows.
        tag: enters the name of a new entry, such as the text of the prompt.
    """
    made = _decision(book, query, label, rules)
    return replace(made, entry=_name(tag, label, book)) if made.is_new else made


def _decision(book: Codebook, query: Tensor, label: Label, rules: Rules) -> Decision:
    if not len(book):
        return _new(book, query, label, rules, "add", rules.epsilon, None, None)
    found, index = (t[0, 0] for t in book.search(query[None]))
    distance, near = float(found), int(index)
    radius, name = float(book.radii[near]), int(book.ids[near])
    if distance > rules.epsilon + radius:
        return _new(book, query, label, rules, "add", rules.epsilon, name, distance)
    if book.labels[near] == label:
        return _same_label(book, query, label, rules, near, distance)
    if distance <= rules.same and not rules.released:
        key = book.key(near)
        return Decision("overwrite", name, key, radius, label, name, distance, radius)
    half = distance / 2
    kept = half - max(MARGIN, RELATIVE_MARGIN * distance)
    if rules.released:
        kept = half - MARGIN
    after = kept if rules.released else min(radius, kept)
    made = _new(book, query, label, rules, "split", half, name, distance, ((name, radius, after),))
    return made


def _same_label(
    book: Codebook, query: Tensor, label: Label, rules: Rules, near: int, distance: float
) -> Decision:
    radius, name, key = float(book.radii[near]), int(book.ids[near]), book.key(near)
    if distance <= radius + rules.same:
        return Decision("refine", name, key, radius, label, name, distance, radius)
    if rules.cap_expand and distance > _half_way(book, key, label):
        epsilon = min(rules.epsilon, _half_way(book, query, label))
        return _new(book, query, label, rules, "add", epsilon, name, distance)
    if rules.expand == "moving_average":
        key = (key + query.to(key)) / 2
    return Decision("expand", name, key, distance, label, name, distance, radius)


def _half_way(book: Codebook, point: Tensor, label: Label) -> float:
    """Half the distance to the nearest key with another label."""
    others = [i for i, each in enumerate(book.labels) if each != label]
    if not others:
        return float("inf")
    return float((book.keys.data[others] - point.to(book.radii)).norm(dim=1).min()) / 2


def _new(
    book: Codebook,
    query: Tensor,
    label: Label,
    rules: Rules,
    op: str,
    radius: float,
    nearest: int | None,
    distance: float | None,
    shrunk: tuple[tuple[int, float, float], ...] = (),
) -> Decision:
    if rules.strict_overlap and len(book):
        radius, more = _made_room(book, query, label, radius)
        shrunk = (*shrunk, *(row for row in more if row[0] not in {s[0] for s in shrunk}))
    twin = rules.released and distance == 0
    return Decision(op, 0, query, radius, label, nearest, distance, shrunk=shrunk, trained=not twin)


def _made_room(
    book: Codebook, query: Tensor, label: Label, radius: float
) -> tuple[float, list[tuple[int, float, float]]]:
    """The radius that fits, and the balls with other labels that have to shrink for it."""
    distance = (book.keys.data[: len(book)] - query.to(book.radii)).norm(dim=1)
    other = torch.tensor([each != label for each in book.labels], device=distance.device)
    close = (other & (distance <= radius + book.radii)).nonzero()[:, 0].tolist()
    rows = []
    for i in close:
        half = float(distance[i]) / 2
        before = float(book.radii[i])
        after = min(before, half - max(MARGIN, 2 * RELATIVE_MARGIN * half))
        radius = min(radius, half)
        rows.append((int(book.ids[i]), before, after))
    return radius, rows


def _name(tag: str, label: Label, book: Codebook) -> int:
    """A name that follows from what the entry is for and how many came before it.

    The query's bits do not enter: they differ between batches.
    """
    digest = hashlib.sha256(f"{tag}|{label}|{len(book)}".encode())
    return int.from_bytes(digest.digest()[:7], "big")


def entries_of(
    decisions: list[Decision], values: dict[int, Float[Tensor, " d_out"]] | None = None
) -> Entries:
    """Everything that decisions, made one after another, change.

    Args:
        decisions: at least one.
        values: name → value of every entry that answers one of them; None where only decisions
            count.
    """
    last = {d.entry: d for d in decisions}
    radii = {name: d.radius for name, d in last.items()}
    shrunk: dict[int, float] = {}
    for d in decisions:  # in this order: an entry that grew may shrink afterwards, and back
        radii[d.entry] = d.radius
        shrunk.pop(d.entry, None)
        for name, _, after in d.shrunk:
            (radii if name in radii else shrunk)[name] = after
    names = list(last)
    return Entries(
        ids=torch.tensor(names),
        keys=torch.stack([last[n].key.float() for n in names]),
        values=None if values is None else torch.stack([values[n] for n in names]),
        radii=torch.tensor([radii[n] for n in names]),
        labels=tuple(last[n].label for n in names),
        shrunk=torch.tensor(list(shrunk), dtype=torch.long),
        shrunk_radii=torch.tensor(list(shrunk.values())),
    )


def noted(book: Codebook, settings: Settings, decision: Decision) -> Codebook:
    """The codebook after a decision, without a value: enough to make the next decision."""
    return book.after(settings, entries_of([decision]))


def event_of(request: int, decision: Decision) -> dict[str, Any]:
    """A decision as a row of an edit's report."""
    return {
        "request": request,
        "op": decision.op,
        "entry": decision.entry,
        "nearest": decision.nearest,
        "distance": decision.distance,
        "radius_before": decision.radius_before,
        "radius": decision.radius,
        "shrunk": [list(row) for row in decision.shrunk],
        "label": list(decision.label),
    }
