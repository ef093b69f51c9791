"""Run GRACE's suite: a lifelong run an editor, resumable, each leaving a small record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from workbench import datasets
from workbench.atomic import write_atomically
from workbench.classifiers import Classifier, finetune_classifier
from workbench.editors import EDITORS
from workbench.editors.base import Editor
from workbench.editors.memory.grace import GRACE
from workbench.errors import OptionError
from workbench.experiment import lifelong
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.pretrained import load
from workbench.runs import RunFolder, csv_gz
from workbench.studies.base import Trial
from workbench.studies.records import Pathlike
from workbench.studies.suiterecords import CLASSIFIER, SuiteRecord, recorded_suite
from workbench.studies.suites import Suite
from workbench.tasks import Task, hallucination_task, tiny_task, topics_task, zsre_task

__all__ = ["classifier_of", "run_suite", "task_of"]

#: Encoders without a head of ours: they are fine-tuned on the task first.
HEADLESS = ("minilm-l6", "google-bert/bert-base-uncased")
#: Files of a data folder, as :mod:`workbench.datasets` reads them.
FILES = {
    "zsre": "zsre.json",
    "nq": "nq_open_dev.jsonl",
    "topics": "scotus_justice.jsonl",
    "hallucination": "hallucination.json",
    "texts": "wikipedia_paragraphs.jsonl.gz",
}
#: Plain texts that are looked through for those long enough to be kept.
TEXTS = 2000
#: Why a case was passed over.
SKIPPED_RIGHT = "right already"


def run_suite(
    suite: Suite,
    *,
    data: Pathlike | None = None,
    out: Pathlike | None = None,
    view: ModelView | None = None,
    device: str | None = None,
    only: Sequence[str] | None = None,
    edits: int | None = None,
    record_only: bool = False,
    keep: bool = False,
) -> SuiteRecord:
    """Run what has not been run yet, and read the record.

    A trial whose record is there is not run again; one that was interrupted goes on.

    Args:
        suite: as from :func:`workbench.suite`.
        data: a folder with the task's files; None fetches the canonical sources (the tiny models
            take their world).
        out: the record's folder; None takes the suite's own.
        view: the model, without edits; None loads the suite's, and fine-tunes its head if it has
            none.
        device: where to load it.
        only: names of trials; None runs all.
        edits: of the runs that are made now, instead of the suite's; the number stands in their
            rows.
        record_only: run nothing; record what interrupted runs have so far.
        keep: keep the working folders (edits and stacks), too.

    Returns:
        The record, as :func:`workbench.recorded_suite` reads it.

    Raises:
        OptionError: for unknown trials, or a view that holds edits.
        DataError: if nothing could be recorded.
        WorkbenchError: whatever an editor raises.

    Example:
        >>> wb.run_suite(wb.suite(model="tiny-t5", edits=20), only=["GRACE", "FT"]).table()
        ... # doctest: +SKIP
    """
    chosen = suite if only is None else suite.only(only)
    out = Path(out) if out is not None else suite.path
    task: Task | None = None
    for trial in chosen.trials:
        n = edits if edits is not None else suite.size(trial)
        if _recorded(out / trial.slug, n):
            continue
        work = cache_dir("runs") / f"{suite.path.name}-{trial.slug}-{n}"
        if not record_only:
            view = view if view is not None else _view(suite, data, device, out)
            task = task if task is not None else task_of(suite, view, data)
            _run(view, task, suite, trial, n, work)
        if (work / "run.json").exists():
            _record(work, out / trial.slug, trial, suite)
            _write_table(out, suite)
            if RunFolder(work).complete and not keep:
                shutil.rmtree(work)
    _write_table(out, suite)
    return _read(out, chosen)


def task_of(suite: Suite, view: ModelView, data: Pathlike | None = None) -> Task:
    """What comes and what shall stay, for the model that is given.

    Args:
        suite: as from :func:`workbench.suite`.
        view: the model.
        data: a folder with the task's files; None fetches them.

    Raises:
        OptionError: for hallucinations without a folder: their plain texts have no source here.
    """
    n = suite.upstream
    if suite.task == "tiny":
        return tiny_task(view, upstream=n)
    if suite.task == "zsre":
        return zsre_task(view, _file(data, "zsre"), _file(data, "nq"), upstream=n)
    if suite.task == "topics":
        words = suite.words or 512
        return topics_task(_file(data, "topics"), upstream=n, words=words)
    return hallucination_task(
        _file(data, "hallucination"),
        _texts(data),
        upstream=n,
        accurate=suite.accurate,
        words=suite.words,
    )


def classifier_of(
    suite: Suite, data: Pathlike | None = None, *, device: str | None = None
) -> Classifier:
    """The encoder of the topics task with its head: fine-tuned once, or found in the cache.

    Returns:
        A :class:`~workbench.classifiers.Classifier`, which states its accuracy before editing.

    Example:
        >>> wb.classifier_of(wb.suite("topics"), "data/grace").accuracy  # doctest: +SKIP
    """

    def texts(part: str) -> tuple[list[str], list[str]]:
        words = suite.words or 512
        found = datasets.topics(_file(data, "topics"), part=part, words=words)
        return [c.request.text for c in found], [c.request.target_new for c in found]

    return finetune_classifier(
        *texts("train"), model=suite.model, tests=texts("upstream"), device=device
    )


# ---------------------------------------------------------------------- what is run


def _view(suite: Suite, data: Pathlike | None, device: str | None, out: Path) -> ModelView:
    """The suite's model; what a head of ours makes right before editing is kept with the record."""
    if suite.model not in HEADLESS:
        return load(suite.model, device=device)
    made = classifier_of(suite, data, device=device)
    told = {"model": suite.model} | {
        name: getattr(made, name)
        for name in ("labels", "train_accuracy", "accuracy", "most_frequent")
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / CLASSIFIER, json.dumps(told, indent=1).encode())
    return load(made.path, device=device)


def _run(view: ModelView, task: Task, suite: Suite, trial: Trial, edits: int, work: Path) -> None:
    """One editor's run; nothing if it cannot take the task."""
    editor = _editor(view, trial)
    if editor.needs_subject:
        cases = [c for c in task.cases if c.request.subject]
        task = replace(task, cases=cases) if cases else task
    if editor.unsupported(view) is not None or (
        editor.needs_subject and not task.cases[0].request.subject
    ):
        return
    view.reset()
    lifelong(work, view, editor, task, edits=edits, every=suite.every, sample=suite.sample)
    view.reset()


def _editor(view: ModelView, trial: Trial) -> Editor:
    """All at the layer of GRACE's preset, so that the editors differ and not the place."""
    options = dict(trial.options)
    if trial.common:
        options = {"layers": GRACE.preset(view, trial.preset).layers} | options
    return EDITORS[trial.editor].preset(view, trial.preset, **options)


def _file(data: Pathlike | None, name: str) -> Path | None:
    return None if data is None else Path(data) / FILES[name]


def _texts(data: Pathlike | None) -> Iterator[str]:
    if data is None:
        raise OptionError(
            "data=None: the hallucination task keeps plain texts, which no source is named for; "
            f"give a folder with {FILES['hallucination']} and {FILES['texts']}."
        )
    return datasets.texts(Path(data) / FILES["texts"], limit=TEXTS)


# ---------------------------------------------------------------------- records


def _recorded(folder: Path, edits: int) -> bool:
    file = folder / "run.json"
    if not file.exists():
        return False
    held = json.loads(file.read_text())
    return bool(held["complete"]) and held["task"]["most"] == edits


def _record(work: Path, target: Path, trial: Trial, suite: Suite) -> None:
    """Numbers and ids of a run, finished or not, without texts; ``run.json`` last.

    A model out of the cache is called by the name it was fine-tuned from, not by its folder.
    """
    folder = RunFolder(work)
    moments = folder.moments().drop(columns=["run", "layer"]).dropna(axis=1, how="all")
    rows = folder.rows().drop(columns=["run", "target", "foil", "nll_foil"], errors="ignore")
    records = folder.records()[1:]
    made = folder.config()
    model = suite.model if Path(made["model"]).is_absolute() else made["model"]
    moments, rows = moments.assign(model=model), rows.assign(model=model)
    config = {"name": trial.name} | made | {"model": model}
    config |= {
        "complete": folder.complete,
        "edited": [c for r in records if r.get("edit") for c in r["case_ids"]],
        "right_already": sum(r.get("skipped") == SKIPPED_RIGHT for r in records),
        "skipped": sum(r.get("skipped") not in (None, SKIPPED_RIGHT) for r in records),
        "seconds": [round(r["seconds"], 3) for r in records if r.get("edit")],
        "kind": made["task"]["kind"],
        "case_ids": made["case_ids"][: len(records)],
    }
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "moments.csv.gz", csv_gz(moments.round(5)))
    write_atomically(target / "rows.csv.gz", csv_gz(rows.round(4)))
    write_atomically(target / "run.json", json.dumps(config).encode())


def _read(out: Path, suite: Suite) -> SuiteRecord:
    """A suite's record in any folder, its trials in their order."""
    found = recorded_suite(out)
    names = [t.name for t in suite.trials if t.name in found.configs]
    return replace(found.only(*names), suite=suite)


def _write_table(out: Path, suite: Suite) -> None:
    """The table of all that is there, also of runs that were not asked for."""
    if list(out.glob("*/run.json")):
        table = _read(out, suite).written().round(4)
        write_atomically(out / "table.csv", table.to_csv(index=False).encode())
