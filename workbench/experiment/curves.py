"""A task's measures after every single edit of a codebook, from one pass over its questions.

Which value answers a prompt after each edit is known without the model
(:func:`workbench.inspectors.retention.value_spans`). Each (prompt, value) is judged once, in a
codebook made for the occasion in which the prompt is a key of this value; everything else is
counting (spec memory-and-meta 1.11 and 12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.editors.memory.examples import Place
from workbench.edits import AdapterEdit
from workbench.facts import Probe
from workbench.inspectors.codebook import codebook_on
from workbench.inspectors.retention import adapters_of, keys_of, value_spans
from workbench.memories import Codebook, Entries, as_adapter
from workbench.metrics.judging import MEASURES, judge
from workbench.model import ModelView

__all__ = ["Asked", "codebook_curves"]

#: A prompt, its right answer, and the row of the value that is written (-1: none).
Question = tuple[str, str, int]


@dataclass(frozen=True)
class Asked:
    """Probes of one metric.

    Attributes:
        metric: ``trr, err, arr, holdout`` or ``es``.
        task: which set, empty where there is one.
        probes: what is asked.
        since: edits from which each counts; None: always.
        only: each counts at its ``since`` alone.
    """

    metric: str
    task: str
    probes: Sequence[Probe]
    since: Sequence[int] | None = None
    only: bool = False


def codebook_curves(view: ModelView, kind: str, asked: Sequence[Asked]) -> pd.DataFrame:
    """Every measure at every number of edits.

    Args:
        view: a model whose stack holds GRACE edits on one module, and nothing else.
        kind: of the task, see :mod:`workbench.metrics.judging`.
        asked: sets of probes.

    Returns:
        One row a metric, task, measure and step (0 to the number of edits) at which any probe
        counts: ``metric, task, measure, step, n, value``.

    Raises:
        OptionError: if the stack holds anything else.
    """
    place, book = codebook_on(view)
    adapters = adapters_of(view)
    prompts = list(dict.fromkeys(p.prompt for each in asked for p in each.probes))
    with view.pristine():
        asks = keys_of(view, prompts, place, book.settings)
        spans = value_spans(view, prompts, place, adapters, keys=asks)
    keys = dict(zip(prompts, asks.cpu(), strict=True))
    wanted = sorted(set(_wanted(asked, spans)))
    found = _judged(view, kind, lambda chosen: _keyed(view, place, book, keys, chosen), wanted)
    steps = len(adapters) + 1
    tables = [_curves(each, kind, spans, found, steps) for each in asked if each.probes]
    return pd.concat(tables, ignore_index=True)


def _alive(
    each: Asked, spans: dict[str, list[tuple[int, int, int]]]
) -> Iterator[tuple[int, int, int, Question]]:
    """(number of the probe, first step, one past the last, question) of all that counts."""
    for i, probe in enumerate(each.probes):
        begin = 0 if each.since is None else each.since[i]
        for since, until, value in spans[probe.prompt]:
            first, stop = max(since, begin), min(until, begin + 1) if each.only else until
            if first < stop:
                yield i, first, stop, (probe.prompt, probe.target, value)


def _wanted(asked: Sequence[Asked], spans: Any) -> Iterator[Question]:
    for each in asked:
        yield from (question for *_, question in _alive(each, spans))


def _judged(
    view: ModelView,
    kind: str,
    keyed: Callable[[dict[str, int]], AdapterEdit],
    wanted: Sequence[Question],
) -> dict[Question, dict[str, float]]:
    """Each question under its value: all without one first, then a value a prompt at a time."""
    found: dict[Question, dict[str, float]] = {}
    plain = [q for q in wanted if q[2] < 0]
    with view.as_if():
        _note(found, view, kind, plain)
    left = [q for q in wanted if q[2] >= 0]
    while left:
        chosen: dict[str, int] = {}
        for prompt, _, value in left:
            chosen.setdefault(prompt, value)
        part = [q for q in left if chosen[q[0]] == q[2]]
        left = [q for q in left if chosen[q[0]] != q[2]]
        with view.as_if(keyed(chosen)):
            _note(found, view, kind, part)
    return found


def _note(found: Any, view: ModelView, kind: str, part: Sequence[Question]) -> None:
    table = judge(view, kind, [Probe(prompt=p, target=t) for p, t, _ in part])
    names = [c for c in table.columns if c != "said"]
    for question, row in zip(part, table[names].to_dict("records"), strict=True):
        found[question] = {str(k): v for k, v in row.items()}


def _keyed(
    view: ModelView, place: Place, book: Codebook, keys: dict[str, Tensor], chosen: dict[str, int]
) -> AdapterEdit:
    """A codebook in which each prompt is a key with its value."""
    prompts, settings, none = list(chosen), book.settings, torch.zeros(0)
    entries = Entries(
        torch.arange(len(prompts)),
        torch.stack([keys[p] for p in prompts]),
        book.values.data[list(chosen.values())].cpu(),
        torch.full((len(prompts),), max(settings.tolerance, 1e-6)),
        ((0,),) * len(prompts),
        none.long(),
        none,
    )
    newest = view.stack[-1]
    return AdapterEdit(
        adapters=(as_adapter(place.parameter, settings, entries),),
        requests=newest.requests,
        editor="GRACE",
        config=newest.config,
        base=view.fingerprint,
    )


def _curves(
    each: Asked, kind: str, spans: Any, found: dict[Question, dict[str, float]], steps: int
) -> pd.DataFrame:
    columns = list(next(iter(found.values())))
    held = {name: np.full((len(each.probes), steps), np.nan) for name in columns}
    for i, first, stop, question in _alive(each, spans):
        for name, value in found[question].items():
            held[name][i, first:stop] = value
    counted = np.isfinite(held[columns[0]])
    n = counted.sum(0)
    tables = [
        pd.DataFrame({"measure": name, "step": np.arange(steps), "n": n, "value": values})
        for name, values in _averaged(kind, held, counted).items()
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[table["n"] > 0].assign(metric=each.metric, task=each.task)


def _averaged(kind: str, held: dict[str, np.ndarray], counted: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure at every step, as :func:`workbench.metrics.judging.averages`."""
    n = np.maximum(counted.sum(0), 1)
    if kind != "text":
        return {name: np.nansum(held[name], axis=0) / n for name in MEASURES[kind]}
    tokens = np.maximum(np.nansum(held["tokens"], axis=0), 1)
    nll = np.nansum(held["nll"] * held["tokens"], axis=0) / tokens
    each = np.where(counted, held["perplexity"], np.nan)
    median = np.full(counted.shape[1], np.nan)
    some = counted.any(0)
    median[some] = np.nanmedian(each[:, some], axis=0)
    return {
        "perplexity": np.nansum(held["perplexity"], axis=0) / n,
        "corpus_perplexity": np.exp(np.minimum(nll, 700.0)),
        "median_perplexity": median,
    }
