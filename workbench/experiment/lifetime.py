"""``lifelong``: a stream of mistakes, each mended when it is made (arXiv 2211.11031, section 4).

A case is edited only if the model, as it is by then, has it wrong. On the way the run measures what
the task asks for: ES (the newest edit), ERR (all edits), TRR (what the model could do before), ARR
(what it had right), holdout (other wordings of what was edited). It is a :func:`stream` otherwise:
the same folder, the same tables, the same resuming.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.editors.base import Editor
from workbench.editors.memory.grace import GRACE
from workbench.errors import OptionError
from workbench.experiment.configuration import config_of, digest
from workbench.experiment.curves import Asked, codebook_curves
from workbench.experiment.exam import Exam
from workbench.experiment.foresight import Foresight
from workbench.experiment.running import OnStep, Plan, Run, rewind
from workbench.experiment.schedule import Schedule
from workbench.experiment.streaming import check_cases, parents_of
from workbench.experiment.watch import Material, Moment, Row, Watcher
from workbench.facts import EditCase, Probe
from workbench.layouts import DECODER
from workbench.memories import Codebook
from workbench.metrics.judging import averages, judge
from workbench.metrics.prefixes import BUDGET, Prefixes
from workbench.model import ModelView
from workbench.runs import RunFolder
from workbench.tasks import Task

__all__ = ["AHEAD", "holdout_of", "lifelong", "own_probe", "wrong_by"]

#: Cases that GRACE asks in one batch.
AHEAD = 32
#: Probes whose reading is timed, and how often.
TIMED, REPEATS = 16, 5


def lifelong(
    out: str | os.PathLike[str],
    view: ModelView,
    editor: Editor,
    task: Task,
    *,
    edits: int | None = None,
    every: int = 50,
    sample: int | None = 100,
    ahead: int = AHEAD,
    curves: bool = True,
    on_step: OnStep | None = None,
    cache_bytes: int = BUDGET,
    fresh: bool = False,
) -> pd.DataFrame:
    """Edit the cases of a task that the model has wrong, one after another, and measure.

    Everything is written to ``out`` as it comes. A process that dies loses at most the edit in
    flight (with GRACE, the group in flight); the same call again continues.

    Args:
        out: the run's folder; made if missing.
        view: the model, without edits; afterwards it holds all edits of the run.
        editor: any editor that can take the task's requests.
        task: what comes and what shall stay, see :mod:`workbench.tasks`.
        edits: the run ends after so many edits; None goes through all cases.
        every: ERR, TRR, ARR and holdout are measured every so many edits, before and at the end.
        sample: between, ERR and holdout are taken on at most so many edits, spread over all; None
            takes all. At the end all are asked.
        ahead: GRACE's edits are computed together for up to so many cases, with the result of
            one after another; 1 computes them one by one.
        curves: with GRACE, every measure after every edit from one pass at the end, in place of
            measuring on the way.
        on_step: told of every finished case, as in :func:`stream`.
        cache_bytes: memory for states below the edited layer.
        fresh: delete an older run in this folder first.

    Returns:
        The rows of :func:`stream` (teacher-forced answers of each edited case right after its edit
        and of all at the end). ``wb.moments(out)`` has the task's metrics: ``es, err, trr, arr,
        holdout`` with ``task`` = measure, or set and measure (``nq: f1``), ``keys,
        edits_per_key, slowdown`` (reading with all edits over reading without, processor time),
        ``seconds_editing``; ``n`` and the 95 % interval where it was measured on the way.

    Raises:
        OptionError: for options out of range, a folder with another run, a view with edits.
        WorkbenchError: whatever the editor raises; batches with NaN or too long texts are skipped.

    Example:
        >>> task = wb.tasks.tiny_task(view)  # doctest: +SKIP
        >>> wb.lifelong("data/runs/grace", view, wb.GRACE.preset(view), task, edits=100)
        ... # doctest: +SKIP
    """
    given = {"edits": edits, "every": every, "sample": sample, "ahead": ahead}
    for name, value in given.items():
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"{name}={value!r}: it must be a whole number from 1 on.")
    cases = check_cases(task.cases)
    drawn = isinstance(editor, GRACE) and curves
    folder = RunFolder(out)
    with folder.locked(), view.writing(f"{task.name} into {folder.name}"):
        layers = tuple(getattr(editor, "layers", ())) or tuple(range(view.n_layers))
        prefixes = Prefixes(view, min(layers), budget=cache_bytes)
        plan = _plan(view, editor, task, cases, edits, every, drawn, on_step)
        if isinstance(editor, GRACE) and ahead > 1:
            wrong = wrong_by(view, task.kind)
            plan = replace(plan, foresee=Foresight(view, editor, cases, wrong, edits, ahead))
        parents = parents_of(folder, view, fresh, continue_on=False)
        config = config_of(view, editor, plan, None, parents, 0) | {
            "task": {"name": task.name, "kind": task.kind, "most": edits, "every": every},
            "measured": {"sample": sample, "curves": drawn, "ahead": ahead if plan.foresee else 1},
            "material": digest([_plain(p) for p in _all_probes(task)]),
        }
        if folder.start(config, fresh=fresh):
            rewind(view, len(parents))
        exam = Exam(view, cases, prefixes=prefixes, kinds=("efficacy", "holdout"))
        watcher = TaskWatcher(view, layers, task, prefixes=prefixes, sample=sample, drawn=drawn)
        with warnings.catch_warnings():  # what was forgotten may be written again
            warnings.filterwarnings("ignore", message="the same request was already written")
            return Run(folder, view, editor, plan, exam, watcher).drain()


def _plan(
    view: ModelView,
    editor: Editor,
    task: Task,
    cases: list[EditCase],
    edits: int | None,
    every: int,
    drawn: bool,
    on_step: OnStep | None,
) -> Plan:
    wrong = wrong_by(view, task.kind)
    never, always = Schedule(), Schedule(every=1)
    watch = {"task": never if drawn else Schedule(every=every), "seconds": always}
    if not drawn:
        watch["newest"] = always
    return Plan(
        cases=cases,
        batch_size=1,
        marks=never,
        dense=never,
        subset=[],
        watch=watch | {"cost": never},
        before=False,
        skip=True,
        stop_on=None,
        on_step=on_step,
        keep_at=never,
        given={},
        errs=lambda case: wrong([case])[0],
        most=edits,
    )


def wrong_by(view: ModelView, kind: str) -> Callable[[Sequence[EditCase]], list[bool]]:
    """Which of some cases the model as it is has wrong."""

    def wrong(cases: Sequence[EditCase]) -> list[bool]:
        if kind == "text":
            return [True] * len(cases)
        table = judge(view, kind, [own_probe(c) for c in cases])
        return [not right for right in table["match" if kind == "qa" else "accuracy"]]

    return wrong


class TaskWatcher(Watcher):
    """Measures a task beside what every stream can watch.

    Args:
        view, layers: as of :class:`Watcher`.
        task: what is measured.
        prefixes: keeps states below the edited layers.
        sample: see :func:`lifelong`.
        drawn: whether the curves of a codebook stand for measuring on the way.
    """

    def __init__(
        self,
        view: ModelView,
        layers: Sequence[int],
        task: Task,
        *,
        prefixes: Prefixes,
        sample: int | None,
        drawn: bool,
    ) -> None:
        super().__init__(view, layers, Material())
        self.task, self.prefixes, self.sample, self.drawn = task, prefixes, sample, drawn
        self.of_request = {c.request: c for c in task.cases}

    def _held(self) -> list[EditCase]:
        """Cases that were edited, in order."""
        return [self.of_request[r] for e in self.view.stack[self.start :] for r in e.requests]

    def _newest(self, moment: Moment) -> list[Row]:
        """ES: the case that was edited last."""
        if moment.edit is None:
            return []
        probes = [own_probe(self.of_request[r]) for r in moment.edit.requests]
        return list(self._rows(Asked("es", "", probes)))

    def _task(self, moment: Moment) -> list[Row]:
        if self.drawn:
            return self._curves() if moment.step else []
        held = self._held()
        spread = held if moment.last else self._spread(held)
        return [row for each in self._sets(spread) for row in self._rows(each)]

    def _cost(self, moment: Moment) -> list[Row]:
        """Entries of a codebook, and what reading costs with all edits."""
        if not moment.step:
            return []
        rows: list[Row] = [{"metric": "slowdown", "value": self._slowdown(), "unit": "times"}]
        keys = _entries(self.view)
        if keys:
            rows.append({"metric": "keys", "value": float(keys), "unit": "entries"})
            rows.append({"metric": "edits_per_key", "value": moment.step / keys, "unit": ""})
        return rows

    def _spread(self, held: list[EditCase]) -> list[EditCase]:
        """At most ``sample`` of them, evenly over all."""
        if self.sample is None or len(held) <= self.sample:
            return held
        return [held[int(i)] for i in np.linspace(0, len(held) - 1, self.sample).round()]

    def _sets(self, held: Sequence[EditCase]) -> Iterator[Asked]:
        for name, probes in self.task.upstream.items():
            yield Asked("trr", name, probes)
        yield Asked("arr", "", self.task.accurate)
        yield Asked("err", "", [own_probe(c) for c in held])
        yield Asked("holdout", "", [p for c in held for p in holdout_of(c)])

    def _rows(self, asked: Asked) -> Iterator[Row]:
        if not asked.probes:
            return
        states = self.prefixes if self.task.kind == "text" else None
        table = judge(self.view, self.task.kind, asked.probes, states=states)
        for measure, value in averages(self.task.kind, table).items():
            name = f"{asked.task}: {measure}" if asked.task else measure
            row: Row = {"metric": asked.metric, "task": name, "value": value, "n": len(table)}
            if measure in table and len(table) > 1:
                half = 1.96 * float(table[measure].std(ddof=1)) / len(table) ** 0.5
                row |= {"low": value - half, "high": value + half}
            yield row

    def _curves(self) -> list[Row]:
        """Everything at every number of edits; each edit counts from its own on."""
        held = self._held()
        step_of = range(1, len(held) + 1)
        sets = list(self._sets(held))
        asked = [s for s in sets if s.metric in ("trr", "arr")]
        own = [own_probe(c) for c in held]
        asked.append(Asked("err", "", own, since=list(step_of)))
        asked.append(Asked("es", "", own, since=list(step_of), only=True))
        pairs = [(p, i) for c, i in zip(held, step_of, strict=True) for p in holdout_of(c)]
        asked.append(Asked("holdout", "", [p for p, _ in pairs], since=[i for _, i in pairs]))
        table = codebook_curves(self.view, self.task.kind, asked)
        grown = [
            {"metric": "keys", "step": i, "value": float(n), "unit": "entries"}
            for i, n in enumerate(_growth(self.view), 1)
        ]
        return grown + [
            {
                "metric": r.metric,
                "task": f"{r.task}: {r.measure}" if r.task else r.measure,
                "step": int(r.step),
                "value": float(r.value),
                "n": int(r.n),
            }
            for r in table.itertuples()
        ]

    @torch.no_grad()
    def _slowdown(self) -> float:
        """Median of the ratios of times in turn, so that the machine's mood meets both."""
        prompts = [own_probe(c).prompt for c in self.task.cases[:TIMED]]
        inputs = self.view.tokenizer(prompts, return_tensors="pt", padding=True)
        given: dict[str, Any] = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        given = {k: v.to(self.view.device) for k, v in given.items()}
        if self.view.kind == DECODER:
            given["use_cache"] = False
        elif not self.view.labels:
            given["decoder_input_ids"] = given["input_ids"][:, :1]
        ratios = []
        for _ in range(REPEATS):
            with self.view.at(self.start):
                plain = _seconds(lambda: self.view.model(**given))
            ratios.append(_seconds(lambda: self.view.model(**given)) / plain)
        return statistics.median(ratios)


def _seconds(work: Callable[[], Any]) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def _entries(view: ModelView) -> int:
    """Entries of the codebooks on the stack."""
    names = {
        a.parameter for e in view.stack for a in getattr(e, "adapters", ()) if a.kind == "codebook"
    }
    books = [view.memory(name, Codebook) for name in names]
    return sum(len(b) for b in books if b is not None)


def _growth(view: ModelView) -> list[int]:
    return [int(e.report["size"]) for e in view.stack]


def own_probe(case: EditCase) -> Probe:
    """The case's own question."""
    return Probe(prompt=case.request.text, target=case.request.target_new)


def holdout_of(case: EditCase) -> list[Probe]:
    return [p for p in case.probes if p.kind == "holdout"]


def _all_probes(task: Task) -> list[Probe]:
    return [*(p for probes in task.upstream.values() for p in probes), *task.accurate]


def _plain(probe: Probe) -> list[str]:
    return [probe.prompt, probe.target]
