"""``score``: every probe of every case, measured in one batched pass (spec: CounterFact, zsRE).

Two-way success asks whether the target is strictly cheaper than the foil, in mean negative
log-likelihood a token (ROME, arXiv 2202.05262). It saturates and a broken model gets half of it
right, so every table also has the arg-max columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from workbench.errors import OptionError, RequestError, did_you_mean
from workbench.facts import KINDS, EditCase, EditRequest, Probe
from workbench.metrics.answers import Answer, agreement, answer
from workbench.metrics.generation import add_generation
from workbench.metrics.plan import Pair
from workbench.metrics.references import (
    GUARDED,
    KLWatch,
    Reference,
    StateWatch,
    predictions,
)
from workbench.model import ModelView

__all__ = ["PROTOCOLS", "pairs_of", "probes_of", "reference", "score", "table_of"]

#: How the literature reads the same numbers; see :func:`score`.
PROTOCOLS = ("counterfact", "zsre", "easyedit")

Asked = tuple[int | str, int, Probe]


def score(
    view: ModelView,
    cases: EditCase | EditRequest | Iterable[EditCase | EditRequest],
    *,
    protocol: str | None = None,
    reference: Reference | pd.DataFrame | None = None,
    generate: bool | int = False,
    kinds: Iterable[str] | None = None,
    batch_tokens: int | None = None,
) -> pd.DataFrame:
    """Measure a model on the probes of cases.

    Args:
        view: the model, with whatever edits it holds.
        cases: cases, or bare requests (judged on their own prompt).
        protocol: which number counts, as column ``value``: ``"counterfact"`` (default) two-way
            success, exact match for probes without foil; ``"zsre"`` (MEMIT) token accuracy, also
            of locality against the gold answer; ``"easyedit"`` token accuracy, and for locality
            and neighborhood the agreement with the unedited model.
        reference: scores of the unedited model, from :func:`workbench.metrics.reference` (adds
            ``agrees`` and ``kl``) or an earlier table of this function (adds ``agrees``).
            ``"easyedit"`` makes one if there is none.
        generate: also write freely and greedily, this many tokens (True: a few more than the
            longest target); adds ``generated``, ``generated_match`` and ``f1``.
        kinds: only probes of these kinds.
        batch_tokens: padded tokens in a batch; None suits the device.

    Returns:
        One row a probe: ``case_id, probe`` (position in ``case.all_probes``), ``kind, prompt,
        target, foil, nll_target, nll_foil`` (mean nats a token), ``p_target, p_foil``
        (exp(-nll)), ``exact`` (all target tokens are arg-max under teacher forcing),
        ``token_accuracy, success`` (``nll_target < nll_foil``, strictly; ``exact`` without foil),
        ``measure, value`` (what the protocol counts), ``predicted`` (arg-max ids as text); with a
        reference ``agrees`` (share of target positions with the same arg-max) and ``kl``
        (KL(unedited || now) of the next token, nats, on probes that should not move).

    Raises:
        OptionError: for an unknown protocol or kind, or a reference of other cases.
        RequestError: for a probe that the model cannot take, or a target that is no label.
        EditMismatchError: for a reference of another model.

    Example:
        >>> scores = wb.score(view, cases, reference=wb.metrics.reference(view, cases))
        ... # doctest: +SKIP
    """
    protocol = _protocol(protocol)
    asked = probes_of(cases, kinds)
    with view.writing("score"):
        if protocol == "easyedit" and reference is None and view.stack:
            reference = make_reference(view, asked, 0, batch_tokens)
        table = _measure(view, asked, reference, batch_tokens)
        _count(table, protocol)
        if generate is not False:
            add_generation(view, table, None if generate is True else int(generate))
    table.attrs = {"protocol": protocol, "model": view.name}
    return table


def reference(
    view: ModelView,
    cases: EditCase | EditRequest | Iterable[EditCase | EditRequest],
    *,
    at: int = 0,
    kinds: Iterable[str] | None = None,
    batch_tokens: int | None = None,
) -> Reference:
    """Score the unedited model once, to measure edited ones against it.

    Args:
        view: the model; it is rewound for the measurement and put back.
        cases: the cases that will be scored later.
        at: rewind to the state after so many edits; 0 is the pristine model.
        kinds: only probes of these kinds.
        batch_tokens: padded tokens in a batch.

    Returns:
        A :class:`Reference`; its ``scores`` is the unedited model's table.

    Raises:
        OptionError, RequestError: as :func:`score`.

    Example:
        >>> before = wb.metrics.reference(view, cases)  # doctest: +SKIP
    """
    return make_reference(view, probes_of(cases, kinds), at, batch_tokens)


def make_reference(
    view: ModelView, asked: Sequence[Asked], at: int, batch_tokens: int | None
) -> Reference:
    """A reference for probes."""
    pairs = pairs_of(asked)
    guarded = {(p.prompt, p.target) for _, _, p in asked if p.kind in GUARDED}
    watch = StateWatch(pairs, guarded)
    with view.at(at):
        answers = answer(view, pairs, batch_tokens=batch_tokens, watch=watch)
    states = torch.cat(watch.states) if watch.states else torch.empty(0)
    table = table_of(asked, answers)
    return Reference(view.fingerprint, at, table, watch.rows, states, watch.residual)


def probes_of(
    cases: EditCase | EditRequest | Iterable[EditCase | EditRequest],
    kinds: Iterable[str] | None = None,
) -> list[Asked]:
    """(case_id, index, probe) of every probe of the wanted kinds.

    Raises:
        OptionError: for an unknown kind, or if nothing is left.
        RequestError: for anything but cases and requests.
    """
    chosen = KINDS if kinds is None else ([kinds] if isinstance(kinds, str) else list(kinds))
    for kind in chosen:
        if kind not in KINDS:
            raise OptionError(f"kinds has {kind!r}, which is unknown." + did_you_mean(kind, KINDS))
    items = [cases] if isinstance(cases, EditCase | EditRequest) else list(cases)
    found = [
        (case.case_id, index, probe)
        for case in (_as_case(item, i) for i, item in enumerate(items))
        for index, probe in enumerate(case.all_probes)
        if probe.kind in chosen
    ]
    if not found:
        raise OptionError(f"{len(items)} cases have no probe of the kinds {', '.join(chosen)}.")
    return found


def _as_case(item: Any, index: int) -> EditCase:
    if isinstance(item, EditCase):
        return item
    if isinstance(item, EditRequest):
        return EditCase(request=item, case_id=index)
    raise RequestError(f"expected EditCase or EditRequest, found {type(item).__name__} ({item!r}).")


def _protocol(protocol: str | None) -> str:
    name = "counterfact" if protocol is None else protocol
    if name not in PROTOCOLS:
        raise OptionError(f"protocol={name!r} is unknown." + did_you_mean(name, PROTOCOLS))
    return name


def pairs_of(asked: Sequence[Asked]) -> list[Pair]:
    """Every (prompt, completion) that probes ask for, once."""
    pairs = [(p.prompt, text) for _, _, p in asked for text in (p.target, p.foil) if text]
    return list(dict.fromkeys(pairs))


def _measure(
    view: ModelView,
    asked: Sequence[Asked],
    reference: Reference | pd.DataFrame | None,
    batch_tokens: int | None,
) -> pd.DataFrame:
    pairs = pairs_of(asked)
    if reference is None:
        return table_of(asked, answer(view, pairs, batch_tokens=batch_tokens))
    before = predictions(reference)
    _require(before, asked)
    if not isinstance(reference, Reference):
        table = table_of(asked, answer(view, pairs, batch_tokens=batch_tokens))
        return _add_agreement(table, before)
    reference.check(view)
    watch = KLWatch(view, pairs, reference)
    table = table_of(asked, answer(view, pairs, batch_tokens=batch_tokens, watch=watch))
    table["kl"] = [
        watch.kl.get((p.prompt, p.target), math.nan) if p.kind in GUARDED else math.nan
        for _, _, p in asked
    ]
    return _add_agreement(table, before)


def table_of(asked: Sequence[Asked], answers: Mapping[Pair, Answer]) -> pd.DataFrame:
    """One row a probe; the columns that do not depend on a protocol."""
    return pd.DataFrame([_row(case_id, index, p, answers) for case_id, index, p in asked])


def _row(
    case_id: int | str, index: int, probe: Probe, answers: Mapping[Pair, Answer]
) -> dict[str, Any]:
    target = answers[probe.prompt, probe.target]
    foil = math.nan if probe.foil is None else answers[probe.prompt, probe.foil].nll
    return {
        "case_id": case_id,
        "probe": index,
        "kind": probe.kind,
        "prompt": probe.prompt,
        "target": probe.target,
        "foil": probe.foil,
        "nll_target": target.nll,
        "nll_foil": foil,
        "p_target": math.exp(-target.nll),
        "p_foil": math.exp(-foil),
        "exact": target.exact,
        "token_accuracy": target.token_accuracy,
        "success": target.exact if probe.foil is None else target.nll < foil,
        "predicted": " ".join(map(str, target.predicted)),
    }


def _require(before: Mapping[Pair, Any], asked: Sequence[Asked]) -> None:
    absent = [p.prompt for _, _, p in asked if (p.prompt, p.target) not in before]
    if absent:
        raise OptionError(
            f"reference lacks {len(absent)} of {len(asked)} probes (the first: {absent[0]!r}): "
            "make it from the same cases."
        )


def _add_agreement(table: pd.DataFrame, before: Mapping[Pair, Sequence[int]]) -> pd.DataFrame:
    now = predictions(table)
    table["agrees"] = [
        agreement(now[key], before[key])
        for key in zip(table["prompt"], table["target"], strict=True)
    ]
    return table


def _count(table: pd.DataFrame, protocol: str) -> None:
    """Add ``measure`` and ``value``: the number that the protocol counts."""
    if protocol == "counterfact":
        measure = table["foil"].notna().map({True: "two-way", False: "exact"})
        value = table["success"].astype(float)
    else:
        measure = pd.Series("token_accuracy", index=table.index)
        value = table["token_accuracy"]
    if protocol == "easyedit":
        guarded = table["kind"].isin(GUARDED)
        agrees = table.get("agrees", 1.0)
        measure = measure.mask(guarded, "agreement")
        value = value.mask(guarded, agrees)
    table.insert(table.columns.get_loc("success") + 1, "measure", measure)
    table.insert(table.columns.get_loc("measure") + 1, "value", value)
