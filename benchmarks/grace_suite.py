"""GRACE against its baselines on the tasks of its paper: one table a task, resumable and recorded.

    python benchmarks/grace_suite.py --data FOLDER --task zsre --only GRACE --edits 300

``FOLDER`` holds zsre.json, nq_open_dev.jsonl, scotus_justice.jsonl, hallucination.json and texts
(wikipedia_paragraphs.jsonl.gz). Every editor gets the same stream and mends only what the model, as
it is by then, has wrong. ``data/results/grace_suite_TASK/`` gets a folder a run (numbers and ids
alone) and ``table.csv`` with the paper's numbers beside ours. A run that is there is not run again;
one that was interrupted goes on, and what it has so far can be recorded with ``--record``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import workbench as wb
from workbench.atomic import write_atomically
from workbench.metrics.judging import MEASURES
from workbench.places import cache_dir
from workbench.runs import RunFolder

#: Words of a court case, and of what stands before a sentence.
TOPIC_WORDS, BEGINNING_WORDS = 64, 64
UPSTREAM = {"zsre": 100, "tiny-t5": 200, "topics": 200, "hallucination": 60}
#: GRACE, Defer and the soft memory at the layer of GRACE's preset; FT and its kin, too.
LAYERS = {"smollm2-135m": 24, "tiny-t5": 1, "minilm": 4}
#: Steps of Adam for the memories on SmolLM2-135M (published: 100): answers of a few tokens are
#: learned in 40, whole sentences are not.
STEPS = {"zsre": 40, "hallucination": 100}
#: Adam's rate for FT and its kin, as in FT's presets; published: 1e-2.
RATES = {"smollm2-135m": 5e-4, "tiny-t5": 5e-3, "minilm": 5e-4}


@dataclass(frozen=True)
class Job:
    """A task, the model it is given to, and what the paper says of it."""

    model: str
    make: Callable[[wb.ModelView, Any], wb.tasks.Task]
    #: editor → (TRR, ERR, ARR or None), arXiv 2211.11031 as others quote it.
    paper: dict[str, tuple[float, float, float | None]]
    paper_model: str
    gap: str


_T5 = "T5-small (60M), 1,000 edits, TRR on NQ that the model was trained on (.72 unedited), F1"
JOBS = {
    "zsre": Job(
        "smollm2-135m",
        lambda view, args: wb.tasks.zsre_task(
            view,
            args.data / "zsre.json",
            args.data / "nq_open_dev.jsonl",
            upstream=UPSTREAM["zsre"],
        ),
        {
            "FT": (0.56, 0.82, None),
            "FTEWC": (0.51, 0.82, None),
            "FTRetrain": (0.27, 0.99, None),
            "Defer": (0.72, 0.31, None),
            "MemoryNetwork": (0.25, 0.27, None),
            "GRACE": (0.69, 0.96, None),
        },
        _T5,
        "another kind of model (a decoder of 135M, asked Question: ... Answer:) that knows little "
        "of NQ; two wordings a fact instead of up to eleven, so hardly any two edits share a key; "
        "the value stands at one token; F1 of words instead of token ids",
    ),
    "tiny-t5": Job(
        "tiny-t5",
        lambda view, args: wb.tasks.tiny_task(view, upstream=UPSTREAM["tiny-t5"]),
        {},
        "no number of the paper: a tiny model of an invented world",
        "a tiny model of an invented world, not to be set beside the paper",
    ),
    "topics": Job(
        "minilm",
        lambda view, args: wb.tasks.topics_task(
            args.data / "scotus_justice.jsonl", upstream=UPSTREAM["topics"], words=TOPIC_WORDS
        ),
        {
            "FT": (0.52, 0.52, None),
            "FTEWC": (0.67, 0.50, None),
            "FTRetrain": (0.67, 0.83, None),
            "Defer": (0.33, 0.41, None),
            "MemoryNetwork": (0.21, 0.20, None),
            "GRACE": (0.81, 0.82, None),
        },
        "BERT-base fine-tuned on 7,400 cases, 381 edits, 11 topics, TRR on its training cases",
        "other data (short facts of 2,711 cases, eight areas), a smaller encoder trained on 1,083 "
        "texts, TRR on held-out cases of 1994 to 1998 that it has 57 % right before",
    ),
    "hallucination": Job(
        "smollm2-135m",
        lambda view, args: wb.tasks.hallucination_task(
            args.data / "hallucination.json",
            wb.datasets.texts(args.data / "wikipedia_paragraphs.jsonl.gz", limit=2000),
            upstream=UPSTREAM["hallucination"],
            accurate=UPSTREAM["hallucination"],
            words=BEGINNING_WORDS,
        ),
        {
            "FT": (1449, 28.1, 107.8),
            "FTEWC": (1486, 29.2, 109.6),
            "FTRetrain": (2394, 35.3, 195.8),
            "Defer": (8184, 133.3, 10.04),
            "MemoryNetwork": (25.5, 79.3, 10.1),
            "ROME": (30.3, 103.8, 14.0),
            "GRACE": (15.84, 7.14, 10.00),
        },
        "GPT2-XL fine-tuned on these biographies, 1,392 edits, perplexity (lower is better)",
        "a decoder of 135M that never saw these texts, so accurate sentences and plain texts are "
        "less likely from the start; beginnings cut to 64 words; TRR on Wikipedia paragraphs",
    ),
}
#: Editors in the order in which they are worth having, and their edits.
EDITS = {
    "GRACE": 1000,
    "FT": 1000,
    "Defer": 1000,
    "MemoryNetwork": 1000,
    "FTEWC": 300,
    "ROME": 300,
    "FTRetrain": 300,
}


def main() -> None:
    """Run what is missing of a task, then write its table."""
    args = _arguments()
    job = JOBS[args.task]
    out = Path(args.out or f"data/results/grace_suite_{args.task}")
    view = _view(job, args)
    task = job.make(view, args)
    for name, most in EDITS.items():
        if args.only and name not in args.only:
            continue
        editor = _editor(name, view, job.model, args.task)
        if editor is None or (name == "ROME" and args.task not in ("zsre",)):
            continue  # no decoder, or no subject
        edits = args.edits or most
        work = cache_dir("runs") / f"grace_suite-{args.task}-{name}-{edits}"
        if not args.record and not _recorded(out / name, edits):
            began = time.perf_counter()
            view.reset()
            chosen = _with_subject(task) if editor.needs_subject else task
            wb.lifelong(
                work, view, editor, chosen, edits=edits, every=args.every, sample=args.sample
            )
            print(f"{args.task} {name}: {time.perf_counter() - began:.0f} s", flush=True)
        if (work / "run.json").exists():
            _record(work, out / name, task)
        table = summarize(out, args.task)
        if len(table):
            write_atomically(out / "table.csv", table.round(4).to_csv(index=False).encode())
    print(summarize(out, args.task).to_string(index=False))


def _view(job: Job, args: argparse.Namespace) -> wb.ModelView:
    if job.model != "minilm":
        return wb.load(job.model, device=args.device)

    def texts(part: str) -> tuple[list[str], list[str]]:
        file = args.data / "scotus_justice.jsonl"
        found = wb.datasets.topics(file, part=part, words=TOPIC_WORDS)
        return [c.request.text for c in found], [c.request.target_new for c in found]

    made = wb.finetune_classifier(*texts("train"), tests=texts("upstream"), device=args.device)
    print(f"classifier: {made.accuracy:.3f} before editing ({made.most_frequent:.3f} by chance)")
    return wb.load(made.path, device=args.device)


def _editor(name: str, view: wb.ModelView, model: str, task: str) -> wb.Editor | None:
    layers = (LAYERS[model],)
    options: dict[str, Any] = {}
    if name in ("FT", "FTEWC", "FTRetrain"):
        options = {"layers": layers, "steps": 100, "lr": RATES[model], "stop": "correct"}
    elif name == "ROME":
        if view.kind != "decoder":
            return None
    else:
        options = {"layers": layers}
        if task in STEPS:
            options["steps"] = STEPS[task]
    return wb.EDITORS[name].preset(view, **options)


def _with_subject(task: wb.tasks.Task) -> wb.tasks.Task:
    """Only cases that name their subject, for editors that need one."""
    cases = [c for c in task.cases if c.request.subject]
    return wb.tasks.Task(
        name=task.name, kind=task.kind, cases=cases, upstream=task.upstream, accurate=task.accurate
    )


# ---------------------------------------------------------------------- records


def _recorded(folder: Path, edits: int) -> bool:
    file = folder / "run.json"
    if not file.exists():
        return False
    held = json.loads(file.read_text())
    return bool(held["complete"]) and held["task"]["most"] == edits


def _record(work: Path, target: Path, task: wb.tasks.Task) -> None:
    """Numbers and ids of a run, finished or not."""
    folder = RunFolder(work)
    moments = folder.moments().drop(columns=["run", "layer"]).dropna(axis=1, how="all")
    rows = folder.rows()
    shown = rows.drop(columns=["run", "target", "foil", "nll_foil"], errors="ignore").round(4)
    records = folder.records()[1:]
    config = folder.config() | {
        "complete": folder.complete,
        "edited": [c for r in records if r.get("edit") for c in r["case_ids"]],
        "right_already": sum(r.get("skipped") == "right already" for r in records),
        "skipped": sum(bool(r.get("skipped")) and r["skipped"] != "right already" for r in records),
        "seconds": [round(r["seconds"], 3) for r in records if r.get("edit")],
        "kind": task.kind,
    }
    config["case_ids"] = config["case_ids"][: len(records)]
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "moments.csv.gz", _gzip(moments.round(5)))
    write_atomically(target / "rows.csv.gz", _gzip(shown))
    write_atomically(target / "run.json", json.dumps(config).encode())


def _gzip(table: pd.DataFrame) -> bytes:
    return gzip.compress(table.to_csv(index=False).encode(), mtime=0)


def summarize(out: Path, task: str) -> pd.DataFrame:
    """One row an editor, from the recorded runs, the unedited model first."""
    rows: list[dict[str, Any]] = []
    for name in EDITS:
        if (out / name / "run.json").exists():
            rows += _rows(out / name, name, task, first=not rows)
    return pd.DataFrame(rows)


def _rows(folder: Path, name: str, task: str, *, first: bool) -> list[dict[str, Any]]:
    config = json.loads((folder / "run.json").read_text())
    moments = pd.read_csv(folder / "moments.csv.gz")
    main, job = MEASURES[config["kind"]][0], JOBS[task]
    trr, err, arr = job.paper.get(name, (None, None, None))
    found = {
        "editor": name,
        "model": job.model,
        "edits": len(config["edited"]),
        "complete": config["complete"],
        "measure": main,
        **_at(moments, "last", config["kind"]),
        "seconds an edit, median": float(pd.Series(config["seconds"]).median()),
        "paper TRR": trr,
        "paper ERR": err,
        "paper ARR": arr,
        "paper's setting": job.paper_model,
        "why they differ": job.gap,
    }
    before = {"editor": "unedited", "model": job.model, "edits": 0, "measure": main}
    return [before | _at(moments, "first", config["kind"]), found] if first else [found]


def _at(moments: pd.DataFrame, when: str, kind: str) -> dict[str, float]:
    """The task's metrics at the first or last moment; ES over all edits."""
    found: dict[str, float] = {}
    known = moments[moments["metric"].isin(["trr", "err", "arr", "holdout", "keys", "slowdown"])]
    edge = moments["step"].min() if when == "first" else None
    for (metric, task), part in known.groupby(["metric", "task"], sort=False, dropna=False):
        if edge is not None:
            part = part[part["step"] == edge]
        if len(part) and not (edge is not None and metric in ("keys", "slowdown", "err")):
            label = metric.upper() if metric in ("trr", "err", "arr") else metric
            name = label if pd.isna(task) else f"{label} {task}"
            found[name] = float(part.sort_values("step")["value"].iloc[-1])
            if metric == "trr" and "ratio" not in name:
                begun = moments[(moments["metric"] == "trr") & (moments["task"] == task)]
                start = float(begun.sort_values("step")["value"].iloc[0])
                if str(task).split(": ")[-1] == MEASURES[kind][0]:
                    found[f"{name} over unedited"] = found[name] / start if start else float("nan")
    own = moments[moments["metric"] == "es"]
    if when == "last":
        for task, part in own.groupby("task", sort=False):
            found[f"ES {task}"] = float(part["value"].mean())
        if "keys" in found:
            edits = float(moments["step"].max())
            found["edits a key"] = edits / found["keys"]
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--task", choices=list(JOBS), default="zsre")
    parser.add_argument("--only", nargs="+", choices=list(EDITS), help="names of editors")
    parser.add_argument("--edits", type=int, help="of every run; default: 1,000 or 300")
    parser.add_argument("--every", type=int, default=100, help="edits between measurements")
    parser.add_argument("--sample", type=int, default=50, help="edits asked in between")
    parser.add_argument("--record", action="store_true", help="only record what is there")
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
