"""What an edit did: did it take, under teacher forcing and in free writing, and what else moved.

Teacher forcing feeds the target in and asks whether the model would have agreed; benchmarks count
that as success. Free writing asks what the model says by itself. The difference of the two is the
gap that a receipt shows. An edit that changes nothing says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import torch

from workbench.edits import AdapterEdit, Edit
from workbench.errors import OptionError
from workbench.facts import EditCase, EditRequest, Probe
from workbench.inspectors.effects import (
    OTHERS,
    AskedProbe,
    next_token_shift,
    ordered,
    probe_shift,
)
from workbench.inspectors.sides import Sides, sides_of
from workbench.inspectors.updates import updates_of
from workbench.looks import table_html
from workbench.metrics.generation import add_generation, starts_with
from workbench.metrics.scoring import probes_of
from workbench.model import ModelView
from workbench.plots.theme import percent

__all__ = ["OUTCOMES", "Receipt", "receipt"]

#: What can have become of a fact; the first two count as taken.
OUTCOMES = (
    "took",
    "held before",
    "later in the text",
    "teacher-forced only",
    "did not take",
    "lost",
)
TAKEN = OUTCOMES[:2]
#: Columns of ``facts`` that a notebook shows.
SHOWN = (
    *("prompt", "target_new", "p_before", "p_after", "exact_after", "wrote_after", "outcome"),
    "gap",
)
EFFECTS_SHOWN = ("kind", "prompt", "top_before", "top_after", "kl", "changed", "flipped")
#: Batches of other shapes differ by rounding: so many units of the dtype are no effect.
ROUNDING = 64
#: Edge of a receipt in a notebook: good, partly, bad. The sentence says it as well.
_EDGES = ("#009E73", "#CC79A7", "#D55E00")


@dataclass(frozen=True, repr=False)
class Receipt:
    """What an edit did to a model; make one with :func:`receipt`.

    Attributes:
        editor, edit_id: of the edit.
        where: which model, how many edits it holds, and where this one stands.
        took: of one fact whether it took; of several the share that did. A fact took if the
            model writes it freely (if the arg-max says it, where nothing was written).
        verdict: the finding in a sentence.
        no_effect: nothing moved: no weight, or not one probability on the edit's own prompts.
        facts: one row a request: ``request, prompt, subject, target_new, target_true``;
            ``p_before, p_after`` (of the target, a token), ``nll_before, nll_after`` (mean nats a
            token), ``exact_before, exact_after`` (every token is the arg-max), ``forced_before,
            forced_after`` (success under teacher forcing: likelier than ``target_true``; exact if
            a request of the edit has none), ``p_true_before, p_true_after``; ``wrote_before,
            wrote_after`` (greedy continuation), ``starts_before, starts_after, contains_before,
            contains_after`` (it begins with, or has somewhere, the target as whole words),
            ``gap_before, gap`` (teacher-forced minus written success, 1, 0 or -1); ``outcome``
            (one of :data:`OUTCOMES`). What was not generated is None.
        side_effects: as from :func:`workbench.side_effects`, for the cases' probes.
        weights: as from :func:`workbench.weight_updates`.
        cost: ``seconds`` (NaN if not recorded), ``file_bytes`` (of the file that ``save`` writes),
            ``parameters`` (touched), ``numbers`` (that changed).
    """

    editor: str
    edit_id: str
    where: str
    took: bool | float
    verdict: str
    no_effect: bool
    facts: pd.DataFrame
    side_effects: pd.DataFrame
    weights: pd.DataFrame
    cost: Mapping[str, float]

    @property
    def gap(self) -> float:
        """Teacher-forced minus freely written success, mean over facts; NaN if not generated."""
        return float(self.facts["gap"].astype(float).mean())

    @property
    def moved(self) -> str:
        """What else moved, in a sentence; empty if nothing was asked.

        A probe counts as changed if another token leads, or if its success flipped.
        """
        follow, others = self._two_tables()
        moved = others["changed"].astype(bool) | others["flipped"].astype(bool)
        changed = [f"{k} {int(m.sum())} of {len(m)}" for k, m in moved.groupby(others["kind"])]
        said = []
        if changed:
            median = others["kl"].median()
            said.append(f"changed: {', '.join(changed)} (median KL {median:.2g} nats)")
        if len(follow):
            right = int(follow["success_after"].astype(bool).sum())
            said.append(f"paraphrases follow: {right} of {len(follow)}")
        return "; ".join(said)

    def _worst_first(self) -> pd.DataFrame:
        """The facts that did not take come first: a notebook shows ten."""
        rank = self.facts["outcome"].map(OUTCOMES.index)
        return self.facts.loc[rank.sort_values(ascending=False, kind="stable").index]

    def _two_tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Probes that should follow the fact, and those that should stay."""
        table = self.side_effects
        follows = table["kind"] == "paraphrase"
        return table[follows], table[~follows]

    @property
    def price(self) -> str:
        """The cost in a line."""
        seconds, cost = self.cost["seconds"], self.cost
        time = "time not recorded" if math.isnan(seconds) else f"{seconds:.2g} s"
        n = int(cost["parameters"])
        return (
            f"{time}, {_bytes(cost['file_bytes'])} as a file, {n} parameter"
            f"{'' if n == 1 else 's'} touched"
        )

    def __repr__(self) -> str:
        moved = f"; {self.moved}" if self.moved else ""
        return f"<Receipt of {self.editor} on {self.where}: {self.verdict}{moved}>"

    def _repr_html_(self) -> str:
        follow, others = self._two_tables()
        full = not self.no_effect and bool(self.took == 1)
        edge = _EDGES[0 if full else 2 if self.no_effect or not self.took else 1]
        lines = [self.moved, self.price]
        if not math.isnan(self.gap):
            lines.insert(0, f"gap between teacher forcing and free writing: {self.gap:+.2f}")
        said = "".join(f"<div>{escape(line)}</div>" for line in lines if line)
        return (
            f'<div style="border-left:4px solid {edge};padding-left:10px">'
            f"<div>{escape(self.editor)} edit {escape(self.edit_id)} on {escape(self.where)}</div>"
            f"<div><b>{escape(self.verdict)}</b></div>{said}"
            + table_html(self._worst_first(), columns=SHOWN, caption="Facts")
            + table_html(others, columns=EFFECTS_SHOWN, caption="Side effects")
            + table_html(follow, columns=EFFECTS_SHOWN, caption="Paraphrases")
            + table_html(self.weights, caption="Weights")
            + "</div>"
        )


def receipt(
    view: ModelView,
    edit: Edit | int,
    cases: EditCase | Iterable[EditCase | EditRequest] | None = None,
    *,
    generate: bool | int = True,
) -> Receipt:
    """Measure what an edit did, or would do; the view is as before.

    Args:
        view: the model.
        edit: an edit that is not on the stack (compared: as is, and with it on top), one that is
            (compared: just before it, just after it), or an entry's number.
        cases: cases whose other probes tell the side effects; usually those that were edited.
        generate: also write freely, this many tokens (True: a few more than the longest target).

    Raises:
        OptionError: for an entry that does not exist.
        EditMismatchError: for an edit of another model.
        RequestError: if a prompt and what is written after it do not fit the model's context.

    Example:
        >>> wb.receipt(view, edit, cases)  # doctest: +SKIP
    """
    sides = sides_of(view, edit)
    if len(sides.edits) != 1:
        raise OptionError(f"receipt speaks of one edit, not of {len(sides.edits)}: give one.")
    (chosen,) = sides.edits
    with view.writing("receipt"):
        weights = updates_of(sides)
        own = _own(chosen.requests)
        shift = probe_shift(sides, [*own, *_others(cases)])
        written = _written(sides, shift[: len(own)], generate)
        facts = _facts(chosen.requests, shift[: len(own)], written)
        idle = _idle(sides, facts, weights, shift[: len(own)])
    effects = ordered(shift[len(own) :])
    taken = facts["outcome"].isin(TAKEN)
    return Receipt(
        editor=chosen.editor,
        edit_id=chosen.id,
        where=sides.where,
        took=bool(taken.iloc[0]) if len(facts) == 1 else float(taken.mean()),
        verdict=idle or _verdict(facts),
        no_effect=bool(idle),
        facts=facts,
        side_effects=effects,
        weights=weights,
        cost={
            "seconds": float(chosen.meta.get("seconds", math.nan)),
            "file_bytes": float(len(chosen.to_bytes())),
            "parameters": float(len(chosen.parameters)),
            "numbers": float(weights["changed"].sum()) if len(weights) else 0.0,
        },
    )


# -------------------------------------------------------------------- measuring


def _others(cases: Any) -> list[AskedProbe]:
    if cases is None:
        return []
    items = [cases] if isinstance(cases, EditCase | EditRequest) else list(cases)
    held = [c for c in items if isinstance(c, EditCase) and any(p.kind in OTHERS for p in c.probes)]
    return probes_of(held, OTHERS) if held else []


def _own(requests: Sequence[EditRequest]) -> list[AskedProbe]:
    probes = (Probe(prompt=r.text, target=r.target_new, foil=r.target_true) for r in requests)
    return [(i, 0, probe) for i, probe in enumerate(probes)]


def _written(
    sides: Sides, own: pd.DataFrame, generate: bool | int
) -> list[pd.DataFrame] | list[None]:
    """What the model writes before and after, if it is asked to."""
    if generate is False:
        return [None, None]
    tables = []
    for state, when in ((sides.before(), "before"), (sides.after(), "after")):
        with state as view:
            table = own.rename(columns={f"predicted_{when}": "predicted"}).reset_index(drop=True)
            add_generation(view, table, None if generate is True else int(generate))
        tables.append(table)
    return tables


def _facts(
    requests: Sequence[EditRequest],
    own: pd.DataFrame,
    written: Sequence[pd.DataFrame | None],
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "request": range(len(requests)),
            "prompt": [r.text for r in requests],
            "subject": [r.subject for r in requests],
            "target_new": [r.target_new for r in requests],
            "target_true": [r.target_true for r in requests],
        }
    )
    two_way = all(r.target_true for r in requests)  # else exact for all: the two are never mixed
    forced = "success" if two_way else "exact"
    sources = {"p": "p", "nll": "nll", "exact": "exact", "forced": forced, "p_true": "p_foil"}
    for name, source in sources.items():
        for when in ("before", "after"):
            table[f"{name}_{when}"] = own[f"{source}_{when}"]
    for name, said in _WRITTEN.items():
        for when, texts in zip(("before", "after"), written, strict=True):
            table[f"{name}_{when}"] = None if texts is None else said(texts)
    for when, column in (("before", "gap_before"), ("after", "gap")):
        free = table[f"starts_{when}"].astype(float)
        table[column] = table[f"forced_{when}"].astype(float) - free
    table["outcome"] = [_outcome(row) for row in table.to_dict("records")]
    return table


def _contains(texts: pd.DataFrame) -> list[bool]:
    """Whether a text has the target somewhere, as whole words."""
    pairs = zip(texts["generated"], texts["target"], strict=True)
    return [_has(str(text), str(target).strip()) for text, target in pairs]


def _has(text: str, target: str) -> bool:
    at = text.find(target)
    while at >= 0:
        joined = at > 0 and text[at - 1].isalnum() and target[:1].isalnum()
        if not joined and starts_with(text[at:], target):
            return True
        at = text.find(target, at + 1)
    return False


#: Column of ``facts`` → where it stands beside what was written.
_WRITTEN: dict[str, Callable[[pd.DataFrame], Any]] = {
    "wrote": lambda t: t["generated"],
    "starts": lambda t: t["generated_match"],
    "contains": _contains,
}


# -------------------------------------------------------------------- judging


def _outcome(fact: Mapping[str, Any]) -> str:
    written = fact["starts_after"] is not None
    says = {w: bool(fact[f"{'starts' if written else 'exact'}_{w}"]) for w in ("before", "after")}
    if says["after"]:
        return "held before" if says["before"] else "took"
    if written and fact["contains_after"]:
        return "later in the text"
    if fact["forced_after"]:
        return "teacher-forced only"
    return "lost" if says["before"] else "did not take"


def _idle(sides: Sides, facts: pd.DataFrame, weights: pd.DataFrame, own: pd.DataFrame) -> str:
    """Why the edit has no effect, empty if it has one."""
    if isinstance(sides.edits[0], AdapterEdit):
        return _closed(sides, facts)
    if weights.empty or not weights["changed"].any():
        return "NO EFFECT: every weight is what it was, to the bit."
    if not own["equal"].all() or (facts["nll_before"] != facts["nll_after"]).any():
        return ""
    norm = float(weights["update_norm"].max())
    return (
        f"NO EFFECT: weights changed (by {norm:.2g} at most), but not one probability on the "
        "edit's own prompts."
    )


def _closed(sides: Sides, facts: pd.DataFrame) -> str:
    """As :func:`_idle` for a hook layer, with which texts are run in other batches."""
    slack = ROUNDING * torch.finfo(sides.view.dtype).eps
    apart = (facts["nll_after"] - facts["nll_before"]).abs() > slack * facts["nll_before"].clip(1)
    if apart.any() or not next_token_shift(sides, facts["prompt"])["equal"].all():
        return ""
    return "NO EFFECT: the hook layer stays closed, not one probability moved on its prompts."


def _verdict(facts: pd.DataFrame) -> str:
    if len(facts) == 1:
        return _one(facts.iloc[0])
    taken = int(facts["outcome"].isin(TAKEN).sum())
    counts = facts["outcome"].value_counts()
    rest = [f"{counts[name]} {name}" for name in OUTCOMES[1:] if name in counts]
    moved = f"median p {percent(facts['p_before'].median())} → {percent(facts['p_after'].median())}"
    word = "took" if taken == len(facts) else "partly" if taken else "did not take"
    return "; ".join([f"{word}: {taken} of {len(facts)} facts", *rest, moved])


def _one(fact: pd.Series) -> str:
    target, outcome = fact["target_new"], fact["outcome"]
    move = f"{target} {percent(fact['p_before'])} → {percent(fact['p_after'])}"
    wrote = "" if fact["wrote_after"] is None else f" (“{str(fact['wrote_after']).strip()}”)"
    if outcome == "took":
        return f"took: {move}"
    if outcome == "held before":
        return f"held before the edit, and after: {move}"
    if outcome == "later in the text":
        return f"partly: {move}, but the text it writes{wrote} says it only later"
    if outcome == "teacher-forced only" and wrote:
        return f"teacher-forced only: {move}, the text it writes{wrote} does not contain it"
    if outcome == "teacher-forced only":
        return f"teacher-forced only: {move}, likelier than {fact['target_true']} but not the first"
    return f"{outcome}: {move}{', it writes' + wrote if wrote else ''}"


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"
