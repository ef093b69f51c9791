"""What an edit did to everything else: free prompts and probes, before and after.

A prompt's effect is KL(before || after) of the next token, in nats, over the whole vocabulary; a
probe's is whether its answer flipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from workbench.edits import Edit
from workbench.errors import OptionError, RequestError
from workbench.facts import KINDS, EditCase, EditRequest, Probe
from workbench.inspectors.sides import Sides, sides_of
from workbench.metrics.answers import Watch, answer, kl_divergence
from workbench.metrics.forward import Reading, run
from workbench.metrics.generation import token_text
from workbench.metrics.plan import Pair, Plan, plan_prompts
from workbench.metrics.scoring import pairs_of, probes_of, table_of
from workbench.model import ModelView

__all__ = [
    "OTHERS",
    "AskedProbe",
    "effects_on",
    "next_token_shift",
    "ordered",
    "probe_shift",
    "side_effects",
]

Asked: TypeAlias = str | EditCase | EditRequest
#: Case id, position among the case's probes, probe.
AskedProbe: TypeAlias = tuple[int | str, int, Probe]

#: Prompts whose distributions are held at once.
CHUNK = 256
#: Kind of a prompt that is no probe.
FREE = "free"
#: What is kept of a score table, before and after.
MEASURED = {
    "p": "p_target",
    "nll": "nll_target",
    "p_foil": "p_foil",
    "exact": "exact",
    "success": "success",
    "predicted": "predicted",
}
#: Everything but the fact itself.
OTHERS = tuple(k for k in KINDS if k != "efficacy")
COLUMNS = (
    *("case_id", "kind", "prompt", "target", "foil", "top_before", "p_top_before"),
    *("top_after", "p_top_after", "changed", "kl", "p_before", "p_after"),
    *("success_before", "success_after", "flipped"),
)


def side_effects(
    view: ModelView,
    edits: Edit | int | Sequence[Edit],
    prompts: Asked | Iterable[Asked],
    *,
    before: int | None = None,
    kinds: Iterable[str] | None = None,
) -> pd.DataFrame:
    """What the model says to other prompts before and after edits; the view is as before.

    Args:
        view: the model.
        edits: not on the stack (tried on top of it), on it (compared where they stand; also an
            entry's number), or ``()`` for whatever the stack did since ``before``.
        prompts: literal prompts, cases (their probes are asked), or both.
        before: compare with the state after so many edits; 0 is the unedited model, and the
            default where ``edits`` is empty.
        kinds: probes of the cases that are asked; None takes all but the edited fact itself.

    Returns:
        One row a prompt or probe, changed ones first, then by ``kl``: ``case_id`` (None for a
        literal prompt), ``kind`` (``free`` for one), ``prompt, target, foil, top_before,
        p_top_before, top_after, p_top_after`` (likeliest next token and its probability),
        ``changed`` (another token leads), ``kl`` (nats), ``p_before, p_after`` (of the target, a
        token), ``success_before, success_after`` (as in ``wb.score``; None without a target),
        ``flipped``.

    Raises:
        OptionError: if nothing is asked, and as :func:`~workbench.inspectors.sides.sides_of`.
        RequestError: for a prompt that the model cannot take.

    Example:
        >>> wb.side_effects(view, edit, ["The capital of Spain is"])  # doctest: +SKIP
    """
    free, cases = _sorted_out(prompts)
    probes = _probes(cases, OTHERS if kinds is None else kinds)
    if not free and not probes:
        raise OptionError(
            f"nothing to ask: {len(cases)} cases have no probes beside their own fact. Give "
            "prompts as texts, or cases with neighborhood probes."
        )
    with view.writing("side effects"):
        return effects_on(sides_of(view, edits, before=before), free, probes)


def effects_on(sides: Sides, free: Sequence[str], probes: Sequence[AskedProbe]) -> pd.DataFrame:
    """The table of :func:`side_effects` for prompts and probes; without rows if there are none."""
    tables = []
    if free:
        tables.append(next_token_shift(sides, free).assign(kind=FREE))
    if probes:
        tables.append(probe_shift(sides, probes))
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    held = [t.reindex(columns=list(COLUMNS)).astype(object) for t in tables]
    return ordered(pd.concat(held, ignore_index=True))


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """A table of shifts with the columns of :func:`side_effects`, changed rows first."""
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    table = table.reindex(columns=list(COLUMNS))
    for name in ("case_id", "target", "foil", "success_before", "success_after"):
        column = table[name].astype(object)
        table[name] = column.where(column.notna(), None)
    for name in ("p_top_before", "p_top_after", "kl", "p_before", "p_after"):
        table[name] = table[name].astype(float)
    pairs = zip(table["success_before"], table["success_after"], strict=True)
    table["flipped"] = [a != b for a, b in pairs]
    table["changed"] = table["changed"].astype(bool)
    moved = table["changed"] | table["flipped"]
    order = table.assign(moved=moved).sort_values(["moved", "kl"], ascending=False, kind="stable")
    return table.loc[order.index].reset_index(drop=True)


@torch.no_grad()
def probe_shift(sides: Sides, probes: Sequence[AskedProbe]) -> pd.DataFrame:
    """How probes' answers moved, and the next token's distribution after their prompts.

    Returns:
        One row a probe, in order: ``case_id, probe, kind, prompt, target, foil``; each with
        ``_before`` and ``_after``: ``p, nll`` (of the target), ``p_foil, exact, success`` and
        ``predicted`` (as in ``wb.score``); and the columns of :func:`next_token_shift`.
    """
    parts = [probes[i : i + CHUNK] for i in range(0, len(probes), CHUNK)]
    return pd.concat([_probe_part(sides, part) for part in parts], ignore_index=True)


def _probe_part(sides: Sides, probes: Sequence[AskedProbe]) -> pd.DataFrame:
    pairs = pairs_of(probes)
    log_probs, tables = [], []
    for state in (sides.before(), sides.after()):
        ends = _Ends(pairs)
        with state:
            answers = answer(sides.view, pairs, watch=ends)
        log_probs.append(ends.log_probs([(p.prompt, p.target) for _, _, p in probes]))
        tables.append(table_of(probes, answers))
    table = tables[0][["case_id", "probe", "kind", "prompt", "target", "foil"]].copy()
    for name, source in MEASURED.items():
        for when, scores in zip(("before", "after"), tables, strict=True):
            table[f"{name}_{when}"] = scores[source]
    shift = pd.DataFrame(_shifts(sides.view, list(table["prompt"]), *log_probs))
    return table.join(shift.drop(columns="prompt"))


class _Ends:
    """Collects the next token's distribution at the ends of prompts while probes are answered."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.rows: dict[Pair, int] = {}
        self.kept: list[Tensor] = []

    def __call__(self, plan: Plan) -> Watch:
        """Start on a plan."""
        spots = sorted(set(plan.first_spots))
        place = {spot: i for i, spot in enumerate(spots)}
        self.rows = {p: place[s] for p, s in zip(self.pairs, plan.first_spots, strict=True)}
        wanted = torch.tensor(spots)

        def keep(reading: Reading, norm: Tensor) -> None:
            end = reading.start + len(reading.logits)
            local = wanted[(wanted >= reading.start) & (wanted < end)] - reading.start
            local = local.to(norm.device)
            self.kept.append((reading.logits[local] - norm[local, None]).cpu())

        return keep

    def log_probs(self, pairs: Sequence[Pair]) -> Tensor:
        """``[n, d_vocab]`` for the pairs asked for."""
        return torch.cat(self.kept)[[self.rows[pair] for pair in pairs]]


@torch.no_grad()
def next_token_shift(sides: Sides, prompts: Iterable[str]) -> pd.DataFrame:
    """How the next token's distribution moved.

    Returns:
        One row a prompt, repeated ones once: ``prompt, top_before, p_top_before, top_after,
        p_top_after, changed, kl, equal`` (every probability is the same to the bit).
    """
    texts = list(dict.fromkeys(prompts))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(texts), CHUNK):
        part = texts[start : start + CHUNK]
        with sides.before():
            old = _log_probs(sides.view, part)
        with sides.after():
            new = _log_probs(sides.view, part)
        rows += _shifts(sides.view, part, old, new)
    return pd.DataFrame(rows)


def _log_probs(view: ModelView, prompts: Sequence[str]) -> Tensor:
    """``[n, d_vocab]`` log-probabilities of the next token (classes, for a classifier)."""
    plan = plan_prompts(view, prompts)
    logits = torch.cat([r.logits.cpu() for r in run(view, plan, phase="side effects")])
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[
        plan.first_spots
    ]


def _shifts(
    view: ModelView, prompts: Sequence[str], old: Tensor, new: Tensor
) -> list[dict[str, Any]]:
    kl = kl_divergence(old, new).tolist()
    rows = []
    for i, prompt in enumerate(prompts):
        before, after = int(old[i].argmax()), int(new[i].argmax())
        rows.append(
            {
                "prompt": prompt,
                "top_before": token_text(view, before),
                "p_top_before": float(old[i, before].exp()),
                "top_after": token_text(view, after),
                "p_top_after": float(new[i, after].exp()),
                "changed": before != after,
                "kl": kl[i],
                "equal": bool(torch.equal(old[i], new[i])),
            }
        )
    return rows


def _sorted_out(prompts: Asked | Iterable[Asked]) -> tuple[list[str], list[EditCase]]:
    """Literal prompts and cases."""
    if isinstance(prompts, str | EditCase | EditRequest):
        prompts = [prompts]
    free: list[str] = []
    cases: list[EditCase] = []
    for i, item in enumerate(prompts):
        if isinstance(item, str):
            free.append(item)
        elif isinstance(item, EditRequest):
            cases.append(EditCase(request=item, case_id=i))
        elif isinstance(item, EditCase):
            cases.append(item)
        else:
            raise RequestError(
                f"prompts[{i}] is a {type(item).__name__} ({item!r}): give a text or an EditCase."
            )
    return list(dict.fromkeys(free)), cases


def _probes(cases: Sequence[EditCase], kinds: Iterable[str]) -> list[AskedProbe]:
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    if cases and any(p.kind in wanted for c in cases for p in c.all_probes):
        return probes_of(cases, wanted)
    return []
