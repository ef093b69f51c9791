"""``stream``: thousands of edits in sequence, every earlier one measured again, resumable.

Regimes (spec locate-then-edit 4.5): *sequential* (one edit at a time, never reset; each is measured
right after it was made, all of them at checkpoints) and *sequential-batched*.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.editors.base import Editor
from workbench.errors import OptionError, RequestError
from workbench.experiment.alarm import StopOn
from workbench.experiment.configuration import config_of, digest
from workbench.experiment.exam import Exam
from workbench.experiment.running import OnStep, Plan, Run, rewind
from workbench.experiment.schedule import Schedule, checkpoints, parse_watch, spread
from workbench.experiment.watch import METRICS, Watcher, default_watch, material_for
from workbench.facts import EditCase, EditRequest
from workbench.metrics.prefixes import BUDGET, Prefixes
from workbench.model import ModelView
from workbench.runs import RunFolder

__all__ = ["check_cases", "moments", "parents_of", "stream", "stream_rows"]

ON_ERROR = ("stop", "skip")


def stream(
    out: str | os.PathLike[str],
    view: ModelView,
    editor: Editor,
    cases: Iterable[EditCase | EditRequest],
    *,
    batch_size: int = 1,
    evaluate_at: Sequence[int] | None = None,
    dense_every: int | None = None,
    subset: int = 100,
    kinds: Iterable[str] | None = None,
    watch: Mapping[str, Any] | None = None,
    texts: Iterable[str] | None = None,
    upstream: Sequence[EditCase] | None = None,
    downstream: Mapping[str, Any] | None = None,
    before: bool = True,
    on_error: str = "stop",
    stop_on: StopOn | None = None,
    on_step: OnStep | None = None,
    keep_model_at: Sequence[int] = (),
    keep_deltas: bool = True,
    statistics: Mapping[int, Any] | None = None,
    cache_bytes: int = BUDGET,
    continue_on: bool = False,
    fresh: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Edit cases one batch after the other, never resetting, and measure on the way.

    Everything is written to ``out`` as it comes. A process that dies loses at most the batch in
    flight; the same call again continues, and ends with the same tables: bit for bit, except
    for columns of time and memory, on the same machine with the same number of threads.

    Args:
        out: the run's folder; made if missing.
        view: the model; afterwards it holds all edits of the run.
        editor: any editor.
        cases: what to write, in this order, with the probes that judge it; ids must differ.
        batch_size: facts an edit; the last batch may be smaller.
        evaluate_at: numbers of edits at which everything edited so far is measured, as at the
            end; default 1, 2, 5, 10, 20 … from the first batch on. Where a batch goes past one,
            the moment is after that batch.
        dense_every: measure a fixed subset of the cases every so many edits as well.
        subset: size of that subset; one case is drawn from each of as many stretches of the run.
        kinds: only probes of these kinds.
        watch: metric → every so many edits, steps, or ``"checkpoints"`` (those of
            ``evaluate_at``); all of them before the run and at its end, too. Metrics: ``weights``,
            ``hidden_shift``, ``perplexity``, ``upstream``, ``downstream``, ``memory``,
            ``seconds``. These change or switch off (None) single defaults: weights, memory and
            seconds after every batch, on a decoder the others at checkpoints.
        texts: for perplexity; default: sentences of facts that the run does not edit.
        upstream: facts that shall not move; default: shipped ones whose subject is not edited.
        downstream: arguments of ``workbench.downstream``, such as ``{"tasks": ("sst2",)}``.
        before: measure all cases on the model as it is first (step 0).
        on_error: a batch that cannot be edited (NaN, infeasible, prompt too long) ends the run
            (``"stop"``) or is left out and recorded (``"skip"``).
        stop_on: given step, newest rows and moments after each batch, returns a reason to stop or
            None; :class:`workbench.Alarm` stops at a collapse. Another one may be given when a
            stopped run is started again, and it goes on.
        on_step: told of every finished and recorded batch (:class:`workbench.StreamStep`), those of
            an earlier start included; for live displays.
        keep_model_at: numbers of edits at which the stack is kept as a folder of its own, for
            :func:`workbench.open_stack`.
        keep_deltas: must be True; every edit is kept, so any moment can be opened again.
        statistics: key statistics, for editors that take them.
        cache_bytes: memory for states below the first edited layer, which no edit can change.
        continue_on: the view may hold edits already; step counts those of the run.
        fresh: delete an older run in this folder first.
        seed: of the subset.

    Returns:
        One row a probe and moment: ``run, editor, model, step`` (edits held when measured; 0:
        before), ``edit_step`` (edits held right after this case was edited), ``case_id, probe``
        (position in ``case.all_probes``), ``kind, target, foil, nll_target, nll_foil, exact,
        token_accuracy, success, seconds`` (an edit of this case's batch took). ``attrs``:
        ``complete``, ``stopped`` (the alarm's reason) and ``skipped`` (batch → error).

    Raises:
        OptionError: for options out of range, a folder with another run or other things, a view
            that holds edits.
        WorkbenchError: whatever the editor raises; the view then holds the finished batches.
        BusyError: if another process writes the run.
        DataError: if a recorded edit is damaged and cannot be computed again.

    Example:
        >>> rows = wb.stream("data/runs/memit", view, wb.MEMIT.preset(view), cases, batch_size=100)
        ... # doctest: +SKIP
    """
    if on_error not in ON_ERROR:
        raise OptionError(f"on_error={on_error!r}: choose {' or '.join(map(repr, ON_ERROR))}.")
    if not keep_deltas:
        raise OptionError(
            "keep_deltas=False is not possible: a run is resumed, and its curves are drawn again, "
            "from its edits. Leave it out; low-rank edits are small."
        )
    facts = check_cases(cases)
    _check_numbers(batch_size=batch_size, subset=subset, dense_every=dense_every or 1)
    for size in {batch_size, len(facts) % batch_size} - {0}:
        editor.check_batch_size(min(size, len(facts)))
    marks = checkpoints(evaluate_at, len(facts), batch_size)
    material = material_for(view, facts, texts, upstream, downstream)
    wanted = default_watch(view, material) | dict(watch or {})
    chosen = spread(len(facts), subset, seed) if dense_every else []
    asked = None if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    plan = Plan(
        cases=facts,
        batch_size=batch_size,
        marks=marks,
        dense=Schedule(every=dense_every or 0),
        subset=chosen,
        watch=parse_watch(wanted, METRICS, marks),
        before=before,
        skip=on_error == "skip",
        stop_on=stop_on,
        on_step=on_step,
        keep_at=Schedule(steps=tuple(keep_model_at)),
        given={} if statistics is None else {"statistics": statistics},
    )
    folder = RunFolder(out)
    with folder.locked(), view.writing(f"streaming into {folder.name}"):
        parents = parents_of(folder, view, fresh, continue_on)
        config = config_of(view, editor, plan, asked, parents, seed) | {
            "material": digest([material.texts, material.upstream, dict(material.downstream)]),
            "statistics": "given" if statistics is not None else "of the editor",
        }
        resumed = folder.start(config, fresh=fresh)
        if resumed:
            rewind(view, len(parents))
        layers = tuple(getattr(editor, "layers", ())) or tuple(range(view.n_layers))
        prefixes = Prefixes(view, min(layers), budget=cache_bytes)
        exam = Exam(view, facts, subset=chosen, kinds=asked, prefixes=prefixes)
        run = Run(folder, view, editor, plan, exam, Watcher(view, layers, material))
        return run.drain()


def stream_rows(out: str | os.PathLike[str]) -> pd.DataFrame:
    """What a run measured of its own facts so far, finished or not.

    Args:
        out: the run's folder; another thread or process may be writing it.

    Returns:
        The table of :func:`stream`, up to the last finished batch.

    Raises:
        DataError: if there is no run, or a table was changed.

    Example:
        >>> wb.retention(wb.stream_rows("data/runs/memit"))  # doctest: +SKIP
    """
    return RunFolder(out).rows()


def moments(out: str | os.PathLike[str]) -> pd.DataFrame:
    """What a run watched beside its own facts, finished or not.

    Args:
        out: the run's folder.

    Returns:
        One row a metric and moment: ``run, editor, model, step, metric, layer, task, value, unit,
        n, low, high`` (95 % interval). Metrics: ``weight_distance`` (‖W − W₀‖ in the Frobenius
        norm, W₀ as the run began), ``weight_distance_per_weight`` (over the number of weights),
        ``weight_norm, update_norm`` (of the newest edit), ``hidden_shift`` (mean relative L2 of
        the last edited block's output at the subject's end), ``hidden_cosine, perplexity,
        perplexity_ratio, upstream_agreement`` (share of answers as before), ``upstream_exact,
        upstream_kl, downstream_accuracy, downstream_f1, process_peak, cuda_peak,
        seconds_editing, seconds_measuring, edits_per_second``.

    Raises:
        DataError: if there is no run, or a table was changed.

    Example:
        >>> wb.moments("data/runs/memit")  # doctest: +SKIP
    """
    return RunFolder(out).moments()


# -------------------------------------------------------------------- before a run


def check_cases(items: Iterable[EditCase | EditRequest]) -> list[EditCase]:
    """Cases with ids of their own.

    Raises:
        RequestError: for anything but cases and requests.
        OptionError: for no cases, or an id that occurs twice.
    """
    found = list(items)
    for i, item in enumerate(found):
        if isinstance(item, EditRequest):
            found[i] = EditCase(request=item, case_id=i)
        elif not isinstance(item, EditCase):
            raise RequestError(f"cases[{i}] is a {type(item).__name__}, not an EditCase.")
    if not found:
        raise OptionError("cases is empty: give at least one.")
    names = [str(c.case_id) for c in found if isinstance(c, EditCase)]
    twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise OptionError(f"case id {twice[0]} occurs twice: each case needs an id of its own.")
    return found  # type: ignore[return-value]


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise OptionError(f"{name}={value!r}: it must be a whole number from 1 on.")


def parents_of(folder: RunFolder, view: ModelView, fresh: bool, continue_on: bool) -> list[str]:
    """Ids of the edits below the run's own; a view that holds the run already is fine."""
    held = [e.id for e in view.stack]
    if not fresh and (folder.path / "run.json").exists():
        recorded = list(folder.config().get("parents", []))
        ours = [r["edit"] for r in folder.records() if r.get("edit")]
        if (
            held[: len(recorded)] == recorded
            and held[len(recorded) :] == ours[: len(held) - len(recorded)]
        ):
            return recorded
    if held and not continue_on:
        raise OptionError(
            f"the view holds {len(held)} edits: view.reset() for a run on the unedited model, or "
            "continue_on=True for one on top of them."
        )
    return held
