"""Run a study: trial after trial, each resumable; the record is what a notebook reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import datasets
from workbench.atomic import write_atomically
from workbench.editors import EDITORS
from workbench.editors.base import Editor
from workbench.editors.locate.sharing import shared_targets
from workbench.errors import DataError
from workbench.experiment import moments, rounds, stream
from workbench.facts import EditCase
from workbench.metrics import score
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.pretrained import load
from workbench.runs import csv_gz
from workbench.studies.base import Study, Trial
from workbench.studies.records import Record, recorded

__all__ = ["facts_of", "run_study"]

KINDS = ("efficacy", "paraphrase", "neighborhood")
#: What a record keeps of the scores of the unedited model.
SCORES = ["case_id", "probe", "kind", "nll_target", "nll_foil", "exact", "success"]
Pathlike = str | os.PathLike[str]


def run_study(
    study: Study,
    *,
    out: Pathlike | None = None,
    data: Pathlike | None = None,
    view: ModelView | None = None,
    device: str | None = None,
    common: Mapping[str, Any] | None = None,
    downstream: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    keep: bool = False,
) -> Record:
    """Run what has not been run yet, and read the record.

    A trial whose record is there is not run again; one that was interrupted goes on. Targets that
    are trained on the unedited model with equal options are trained once for all trials of the
    call, so the seconds of an edit do not compare between trials that share them.

    Args:
        study: as from :func:`workbench.study`.
        out: the record's folder; None takes the study's own.
        data: the file of facts; None fetches the published one (the tiny models take their world).
        view: the model, without edits; None loads the study's.
        device: where to load it.
        common: options of every locate-then-edit editor, such as ``{"corpus": "wiki.txt"}``.
        downstream: tasks measured on the way, as ``wb.stream`` takes them.
        only: names of trials; None runs all.
        keep: keep the working folders (edits and stacks), too.

    Returns:
        The record, as :func:`workbench.recorded` reads it.

    Raises:
        OptionError: for unknown trials, or a view that holds edits.
        DataError: if there are fewer facts than the study wants.
        WorkbenchError: whatever an editor raises.

    Example:
        >>> wb.run_study(wb.study("nse_sequential", model="tiny", edits=6, batch=3)).table()
        ... # doctest: +SKIP
    """
    chosen = study if only is None else study.only(only)
    out = Path(out) if out is not None else study.path
    view = view if view is not None else load(study.model, device=device)
    cases = facts_of(study, data)
    _unedited(view, cases[: study.edits], out / "unedited.csv")
    for trial in chosen.trials:
        target = out / trial.slug
        if not (target / "run.json").exists():
            mine = cases[trial.start : trial.start + study.size(trial)]
            editor = editor_of(view, trial, {} if study.is_tiny else dict(common or {}))
            work = cache_dir("runs") / f"{_name(study)}-{trial.slug}"
            with shared_targets(view):
                _run(view, editor, mine, study, trial, work, downstream)
            view.reset()
            _record(work, trial, target)
            if not keep:
                shutil.rmtree(work)
        record = recorded(out, study=study)
        write_atomically(out / "table.csv", record.table().round(4).to_csv(index=False).encode())
    return recorded(out, study=study)


def facts_of(study: Study, data: Pathlike | None = None) -> list[EditCase]:
    """The facts of a study, original records first.

    Raises:
        DataError: if there are too few.
    """
    needed = max(t.start + study.size(t) for t in study.trials)
    if study.is_tiny:
        return datasets.tiny(limit=needed)
    cases = getattr(datasets, study.dataset)(data)
    ordered = sorted(cases, key=lambda c: bool(c.tags.get("rebuilt")))[:needed]
    if len(ordered) < needed:
        raise DataError(
            f"the study wants {needed} facts and {data or study.dataset} has {len(ordered)}: give "
            f"a larger file, or edits={len(ordered)}."
        )
    return ordered


def _name(study: Study) -> str:
    return study.path.name


def editor_of(view: ModelView, trial: Trial, common: Mapping[str, Any]) -> Editor:
    """A trial's editor for a model."""
    options = (dict(common) if trial.common else {}) | dict(trial.options)
    preset = EDITORS[trial.editor].preset
    if trial.one_layer:
        start: Any = preset(view, trial.preset, **options)
        options["layers"] = (max(start.layers),)
    return preset(view, trial.preset, **options)


def _run(
    view: ModelView,
    editor: Editor,
    cases: list[EditCase],
    study: Study,
    trial: Trial,
    work: Path,
    downstream: Mapping[str, Any] | None,
) -> None:
    batch, n = study.batch_of(trial), len(cases)
    if trial.apart:
        rounds(work, view, editor, cases, batch_size=batch, kinds=KINDS, before=False)
        return
    stream(
        work,
        view,
        editor,
        cases,
        batch_size=batch,
        kinds=KINDS,
        before=False,
        evaluate_at=tuple(sorted({max(batch, int(n * share)) for share in study.checkpoints})),
        dense_every=study.dense,
        downstream=None if downstream is None else dict(downstream),
        continue_on=False,
    )


def _record(work: Path, trial: Trial, target: Path) -> None:
    """Numbers and ids of a run, without texts; ``run.json`` last."""
    rows = pd.read_csv(work / "rows.csv.gz").drop(columns=["run", "target", "foil"])
    config = json.loads((work / "run.json").read_text())
    config["editor_config"] = named(config["editor_config"])
    write_atomically(target / "rows.csv.gz", csv_gz(rows.round(4)))
    watched = moments(work).round(6).to_csv(index=False).encode()
    write_atomically(target / "moments.csv", watched)
    whole = json.dumps({"name": trial.name} | config, indent=1).encode()
    write_atomically(target / "run.json", whole)


def named(options: Mapping[str, Any]) -> dict[str, Any]:
    """An editor's options for a record: the corpus by its file's name, wherever it lay."""
    corpus = options.get("corpus")
    return dict(options) | ({"corpus": Path(corpus).name} if corpus else {})


def _unedited(view: ModelView, cases: list[EditCase], path: Path) -> None:
    if path.exists():
        return
    scores = score(view, cases, kinds=KINDS)[SCORES]
    write_atomically(path, scores.round(4).to_csv(index=False).encode())
