"""Train the learned editors of a study and measure them; the record is what a notebook reads."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.atomic import write_atomically
from workbench.editors import EDITORS
from workbench.editors.base import Editor
from workbench.editors.finetune import mend_options
from workbench.editors.learned.base import LearnedEditor
from workbench.editors.learned.judging import lesson_summary, score_lessons
from workbench.editors.learned.lessons import Lessons
from workbench.editors.learned.tasks import make_lessons
from workbench.errors import OptionError, WorkbenchError
from workbench.experiment.environment import environment
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.pretrained import load
from workbench.runs import csv_gz
from workbench.studies.base import file_name
from workbench.studies.learned import LearnedRecord, LearnedStudy, LearnedTrial, learned_record

__all__ = ["run_learned"]

#: Learning rates among which fine-tuning chooses on lessons that are not held out.
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
Pathlike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Job:
    """What all trials of a study share."""

    study: LearnedStudy
    view: ModelView
    lessons: Lessons
    out: Path
    trained: Path
    train: bool
    notes: Mapping[str, Any]


def run_learned(
    study: LearnedStudy,
    *,
    out: Pathlike | None = None,
    view: ModelView | None = None,
    lessons: Lessons | None = None,
    data: Pathlike | None = None,
    validation: Pathlike | None = None,
    device: str | None = None,
    train: bool = True,
    trained: Pathlike | None = None,
    notes: Mapping[str, Any] | None = None,
) -> LearnedRecord:
    """Train and measure what is missing, and read the record.

    A trial whose record is there is not run again; a training that was interrupted goes on. An
    editor that cannot be had (there is no trained file and ``train`` is off, or it does not fit the
    model) is left out, and a warning says why.

    Args:
        study: as from :func:`workbench.learned_study`.
        out: the record's folder; None takes the study's own.
        view: the model, without edits; None loads the study's.
        lessons: None makes those of the study's task.
        data, validation: files for :func:`workbench.make_lessons`.
        device: where to load the model.
        train: train editors that are missing; else only those that are there are measured.
        trained: folder of trained editors; None takes the cache.
        notes: more of every trial's run.json, such as how the model got its head; stands above what
            is recorded anyway.

    Returns:
        The record, as :func:`workbench.learned_record` reads it.

    Raises:
        OptionError: for a task that does not fit the model, or a view that holds edits.
        DataError: if nothing could be measured.

    Source: arXiv 2110.11309, section 5.

    Example:
        >>> study = wb.learned_study("tiny", edits=4, at_once=(), options={"FT": {"lr": 1e-3}})
        >>> wb.run_learned(study.only("FT"), out="record").table  # doctest: +SKIP
    """
    view = view if view is not None else load(study.model, device=device)
    if view.held:
        raise OptionError("the view holds edits: a study starts from the model as it came.")
    if lessons is None:
        lessons = make_lessons(view, study.task, data=data, validation=validation, seed=study.seed)
    job = _Job(
        study=study,
        view=view,
        lessons=lessons,
        out=Path(out) if out is not None else study.path,
        trained=Path(trained) if trained is not None else cache_dir("editors"),
        train=train,
        notes=dict(notes or {}),
    )
    for trial in study.trials:
        if not (job.out / trial.slug / "run.json").exists():
            try:
                _record(job, trial)
            except WorkbenchError as error:
                warnings.warn(f"{trial.slug} is left out: {error}", stacklevel=2)
                continue
        _write_table(job)
    return learned_record(job.out, study=study)


def _record(job: _Job, trial: LearnedTrial) -> None:
    """Measure one trial and write its folder, run.json last."""
    editor, study = _editor(job, trial), job.study
    n = max(study.fewest, -(-study.edits // trial.n_edits))
    with _prepared(job.view, editor), warnings.catch_warnings():
        # more edits at once than trained for is what is measured here
        warnings.filterwarnings("ignore", message=".*was trained to write")
        rows = score_lessons(
            job.view, editor, job.lessons, n=n, n_edits=trial.n_edits, n_local=study.n_local
        )
    folder = job.out / trial.slug
    kept = rows.drop(columns=["prompt", "target"]).round(5)
    write_atomically(folder / "rows.csv.gz", csv_gz(kept))
    record = dataclasses.asdict(trial) | {
        "model": job.view.name,
        "task": study.task,
        "setting": study.setting,
        "editor_config": _plain(editor.config()),
        "training": _training(editor),
        "lessons": {"digest": job.lessons.digest, **job.lessons.note},
        "environment": environment(job.view),
        **job.notes,
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=1).encode())


def _write_table(job: _Job) -> None:
    table = learned_record(job.out, study=job.study).table
    write_atomically(job.out / "table.csv", table.round(4).to_csv(index=False).encode())


def _editor(job: _Job, trial: LearnedTrial) -> Editor:
    cls: Any = EDITORS[trial.editor]
    study = job.study
    given = study.options.get(trial.editor, {})
    if not trial.trained_at:
        return _fine_tuning(job, cls, {**_chosen_rate(job.out, trial), **given})
    name = f"learned-{file_name(job.view.name)}-{study.task}-{study.seed}-{trial.training_slug}"
    path = job.trained / f"{name}.safetensors"
    if path.is_file():
        return cls(weights=str(path))  # type: ignore[no-any-return]
    if not job.train:
        if trial.options or trial.trained_at > 1:
            raise OptionError(f"there is no {path.name}: run the study with train=True.")
        return cls.preset(job.view, study.preset)  # type: ignore[no-any-return]
    options = {"steps": study.steps, **given, **trial.options}
    if trial.trained_at > 1:  # a step reads about as many edits as for one at a time
        batch = max(1, int(options.get("batch", 10)) // trial.trained_at)
        options |= {"n_edits": trial.trained_at, "batch": batch, "together": 1}
    options |= study.options.get(trial.training_slug, {})
    return cls.train(  # type: ignore[no-any-return]
        job.view, job.lessons, out=path, seed=study.seed, preset=study.preset, **options
    )


def _chosen_rate(out: Path, trial: LearnedTrial) -> dict[str, float]:
    """The learning rate that fine-tuning chose for one edit at a time, if that trial is there."""
    path = out / replace(trial, n_edits=1).slug / "run.json"
    return {"lr": json.loads(path.read_text())["editor_config"]["lr"]} if path.exists() else {}


def _fine_tuning(job: _Job, cls: Any, given: Mapping[str, Any]) -> Editor:
    """MEND's baselines: the last three layers, at the rate that does best on training lessons."""
    view, lessons = job.view, job.lessons
    layers = tuple(range(max(0, view.n_layers - 3), view.n_layers))
    options = mend_options(layers, 1e-4)
    if view.up_name(layers[0]) is None:
        options["matrices"] = "down"
    options |= given
    if "lr" in given:
        return cls(**options)  # type: ignore[no-any-return]
    tuning = replace(lessons, training=lessons.training[:-100], held_out=lessons.training[-100:])
    found = {}
    for lr in RATES:
        editor = cls(**(options | {"lr": lr}))
        rows = score_lessons(view, editor, tuning, n=job.study.tuning, n_local=job.study.n_local)
        table = lesson_summary(rows, resamples=1).set_index(["metric", "against"])["value"]
        found[lr] = table["edit_success", ""] - table["drawdown", "prepared"]
    return cls(**(options | {"lr": max(found, key=lambda lr: found[lr])}))  # type: ignore[no-any-return]


@contextmanager
def _prepared(view: ModelView, editor: Any) -> Iterator[None]:
    """The view with what an editor has to put under its edits."""
    if type(editor).__name__ != "ENN":
        yield
        return
    view.push(editor.prepare(view))
    try:
        yield
    finally:
        view.pop()


def _training(editor: Any) -> dict[str, Any]:
    if not isinstance(editor, LearnedEditor):
        return {}
    found = editor.trained()
    kept = {k: v for k, v in found.training.items() if k != "lessons"}
    return {"settings": dict(found.settings)} | kept


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with files by their names alone."""
    return {k: Path(v).name if k == "weights" else v for k, v in config.items()}
