"""Learned editors against fine-tuning: edit success and drawdown on held-out edits.

    python benchmarks/learned_tables.py --model tiny --task tiny --train --steps 600
    python benchmarks/learned_tables.py --model smollm2-135m --task qa --data zsre_train.tsv \
        --validation zsre.json --train --steps 1500 --options options.json
    python benchmarks/learned_tables.py --model minilm-l6 --task fc --data fever_claims.jsonl \
        --classifier 2000 --train --steps 1500

Three tables of MEND's paper (arXiv 2110.11309): editors one edit at a time (tables 3 and 4), edits
written at once (table 5), and MEND without its parts (table 6, with ``--ablations``). An editor is
trained once (``--train``) or taken from where its file lies; one that is not there is left out with
the reason. ``data/results/learned_MODEL_TASK/`` gets a folder a run (rows without texts, run.json)
and ``table.csv`` with the paper's numbers beside ours. A run that is there is not made again;
training and measuring go on where they were stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import workbench as wb
from workbench.atomic import write_atomically
from workbench.editors.finetune import mend_options
from workbench.editors.learned.tasks import TASKS
from workbench.errors import WorkbenchError
from workbench.experiment.environment import environment
from workbench.places import cache_dir

LEARNED = ("MEND", "KE", "ENN")
AT_ONCE = (1, 5, 25, 75, 125)
#: MEND without a part of it: name → options of its training.
ABLATIONS: dict[str, dict[str, Any]] = {
    "MEND, no sharing": {"shared": False},
    "MEND, no norm": {"norm": False},
    "MEND, no identity": {"identity": False},
    "MEND, only x": {"factors": "x"},
    "MEND, only delta": {"factors": "delta"},
    "MEND, only smaller": {"factors": "smaller"},
}
#: Learning rates among which fine-tuning chooses on lessons that are not held out.
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)

Paper = Mapping[str, tuple[float, float]]
#: Edit success and drawdown of tables 3 and 4; ``0.0009`` stands for "below 0.001".
PAPER: dict[str, tuple[str, Paper]] = {
    "gen": (
        "distilGPT-2, Wikitext",
        {"FT": (0.29, 0.938), "FTKL": (0.17, 0.059), "ENN": (0.93, 0.094), "KE": (0.25, 0.595),
         "MEND": (0.86, 0.225)},
    ),
    "qa": (
        "BART-base, zsRE",
        {"FT": (0.96, 0.0009), "FTKL": (0.89, 0.0009), "ENN": (0.99, 0.0009), "KE": (0.98, 0.0009),
         "MEND": (0.98, 0.002)},
    ),
    "fc": (
        "BERT-base, FEVER",
        {"FT": (0.76, 0.0009), "FTKL": (0.64, 0.0009), "ENN": (0.99, 0.003), "KE": (0.95, 0.004),
         "MEND": (0.99, 0.0009)},
    ),
}  # fmt: skip
#: Table 5 (BART-base, zsRE): editors trained for as many edits as they write.
PAPER_AT_ONCE: dict[str, dict[int, tuple[float, float]]] = {
    "ENN": {1: (0.99, 0.0009), 5: (0.94, 0.007), 25: (0.35, 0.005), 75: (0.16, 0.005),
            125: (0.11, 0.006)},
    "MEND": {1: (0.98, 0.002), 5: (0.97, 0.005), 25: (0.89, 0.011), 75: (0.78, 0.011),
             125: (0.67, 0.012)},
}  # fmt: skip
#: Table 6 (distilGPT-2, Wikitext).
PAPER_ABLATIONS: Paper = {
    "MEND, no sharing": (0.86, 0.195),
    "MEND, no norm": (0.02, 0.370),
    "MEND, no identity": (0.27, 0.898),
    "MEND, only x": (0.63, 0.559),
    "MEND, only delta": (0.80, 0.445),
    "MEND, only smaller": (0.80, 0.593),
    "MEND": (0.86, 0.225),
}


@dataclass(frozen=True)
class Run:
    """One row of a table.

    Attributes:
        name: of the editor, with what is left out of it.
        table: ``editors``, ``at once`` or ``ablations``.
        editor: key of :data:`workbench.EDITORS`.
        n_edits: written at once.
        trained_at: edits of a training lesson; 0 for editors that are not trained.
        options: of the training.
    """

    name: str
    table: str
    editor: str
    n_edits: int = 1
    trained_at: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Name of the run's folder."""
        return f"{self.training_slug}_{self.n_edits}"

    @property
    def training_slug(self) -> str:
        """Name of what was trained; runs with as many edits as they like share it."""
        words = self.name.lower().replace(",", "").replace(" ", "_")
        return f"{words}_trained_{self.trained_at}" if self.trained_at else words


def plan(args: argparse.Namespace) -> list[Run]:
    """Every run, the most telling first."""
    runs = [Run(name, "editors", name, trained_at=int(name in LEARNED))
            for name in ("MEND", "ENN", "KE", "FT", "FTKL")]  # fmt: skip
    for trained_at in args.trained_at:
        for name in ("MEND", "ENN"):
            for n in args.at_once:
                if (n, trained_at) != (1, 1):  # that is the first table's
                    runs.append(Run(name, "at once", name, n, trained_at))
    for n in args.at_once[1:]:
        runs.append(Run("FT", "at once", "FT", n))
    if args.ablations:
        runs += [
            Run(name, "ablations", "MEND", trained_at=1, options=options)
            for name, options in ABLATIONS.items()
        ]
    return [r for r in runs if not args.only or r.editor in args.only]


def main() -> None:
    """Train and measure what is missing, then write the table."""
    args = _arguments()
    view = _view(args)
    wb.check_task(args.task, view.kind, locality=args.locality, name=view.name)
    lessons = wb.make_lessons(
        view, args.task, data=args.data, validation=args.validation, locality=args.locality,
        local=args.local, limit=args.limit, seed=args.seed,
    )  # fmt: skip
    out = Path(args.out or f"data/results/learned_{args.model}_{args.task}")
    given = json.loads(Path(args.options).read_text()) if args.options else {}
    reasons = {}
    for run in plan(args):
        if (out / run.slug / "run.json").exists():
            continue
        began = time.perf_counter()
        try:
            _made(view, lessons, run, out / run.slug, args, given)
        except (WorkbenchError, KeyError) as error:
            reasons[run.slug] = _reason(run, error)
            print(f"{run.slug}: left out: {reasons[run.slug]}", flush=True)
            continue
        print(f"{run.slug}: {time.perf_counter() - began:.0f} s", flush=True)
        _write_table(out, plan(args), args, reasons)
    print(_write_table(out, plan(args), args, reasons).to_string(index=False))


def _view(args: argparse.Namespace) -> wb.ModelView:
    """The model. For fact checking the first claims give an encoder its head, and lessons are made
    of the others."""
    if args.task != "fc" or not args.classifier:
        return wb.load(args.model, device=args.device)
    cases = wb.datasets.fever(args.data)
    taught, rest = cases[: args.classifier], cases[args.classifier :]
    found = wb.finetune_classifier(
        [c.request.text for c in taught],
        [c.request.target_true or "" for c in taught],
        model=args.model,
        tests=([c.request.text for c in rest], [c.request.target_true or "" for c in rest]),
        device=args.device,
    )
    args.data = cache_dir("lessons") / f"claims-after-{args.classifier}.jsonl"
    lines = ({"id": c.case_id, "label": c.request.target_true, "claim": c.request.text}
             for c in rest)  # fmt: skip
    write_atomically(args.data, "".join(json.dumps(x) + "\n" for x in lines).encode())
    return wb.load(found.path, device=args.device)


# ------------------------------------------------------------------ one run


def _made(
    view: wb.ModelView,
    lessons: wb.Lessons,
    run: Run,
    folder: Path,
    args: argparse.Namespace,
    given: Mapping[str, Any],
) -> None:
    """Measure one run and write its folder."""
    editor = _editor(view, lessons, run, folder.parent, args, given)
    n = max(args.fewest, -(-args.edits // run.n_edits))
    with _prepared(view, editor), warnings.catch_warnings():
        # more edits at once than trained for is what is measured here
        warnings.filterwarnings("ignore", message=".*was trained to write")
        rows = wb.score_lessons(
            view, editor, lessons, n=n, n_edits=run.n_edits, n_local=args.n_local
        )
    kept = rows.drop(columns=["prompt", "target"]).round(5)
    payload = gzip.compress(kept.to_csv(index=False).encode(), mtime=0)
    write_atomically(folder / "rows.csv.gz", payload)
    record = dataclasses.asdict(run) | {
        "model": view.name,
        "task": args.task,
        "editor_config": _plain(editor.config()),
        "training": _training(editor),
        "lessons": {"digest": lessons.digest, **lessons.note},
        "environment": environment(view),
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=1).encode())


def _editor(
    view: wb.ModelView,
    lessons: wb.Lessons,
    run: Run,
    out: Path,
    args: argparse.Namespace,
    given: Mapping[str, Any],
) -> wb.Editor:
    cls: Any = wb.EDITORS[run.editor]
    if not run.trained_at:
        chosen = {**_chosen_rate(out, run), **given.get(run.editor, {})}
        return _fine_tuning(view, lessons, cls, args, chosen)
    name = f"learned-{args.model}-{args.task}-{args.seed}-{run.training_slug}.safetensors"
    path = Path(args.trained or cache_dir("editors")) / name.replace("/", "_")
    if path.is_file():
        return cls(weights=str(path))
    if not args.train:
        if run.options or run.trained_at > 1:
            raise WorkbenchError(f"there is no {path.name}: train it with --train")
        return cls.preset(view)
    options = {"steps": args.steps, **given.get(run.editor, {}), **run.options}
    if run.trained_at > 1:  # a step reads about as many edits as for one at a time
        batch = max(1, int(options.get("batch", 10)) // run.trained_at)
        options |= {"n_edits": run.trained_at, "batch": batch, "together": 1}
    options |= given.get(run.training_slug, {})
    return cls.train(view, lessons, out=path, seed=args.seed, **options)


def _chosen_rate(out: Path, run: Run) -> dict[str, float]:
    """The learning rate that fine-tuning chose for one edit at a time, if that run is there."""
    path = out / dataclasses.replace(run, n_edits=1).slug / "run.json"
    return {"lr": json.loads(path.read_text())["editor_config"]["lr"]} if path.exists() else {}


def _fine_tuning(
    view: wb.ModelView,
    lessons: wb.Lessons,
    cls: Any,
    args: argparse.Namespace,
    given: Mapping[str, Any],
) -> wb.Editor:
    """MEND's baselines: the last three layers, at the rate that does best on training lessons."""
    layers = tuple(range(max(0, view.n_layers - 3), view.n_layers))
    options = mend_options(layers, 1e-4)
    if view.up_name(layers[0]) is None:
        options["matrices"] = "down"
    options |= given
    if "lr" in given:
        return cls(**options)
    tuning = dataclasses.replace(
        lessons, training=lessons.training[:-100], held_out=lessons.training[-100:]
    )
    found = {}
    for lr in RATES:
        editor = cls(**(options | {"lr": lr}))
        rows = wb.score_lessons(view, editor, tuning, n=args.tuning, n_local=args.n_local)
        table = wb.lesson_summary(rows, resamples=1).set_index(["metric", "against"])["value"]
        found[lr] = table["edit_success", ""] - table["drawdown", "prepared"]
    return cls(**(options | {"lr": max(found, key=lambda lr: found[lr])}))


@contextmanager
def _prepared(view: wb.ModelView, editor: Any) -> Iterator[None]:
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
    if type(editor).__name__ not in LEARNED:
        return {}
    return {k: v for k, v in editor.trained().training.items() if k != "lessons"}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with files by their names alone."""
    return {k: Path(v).name if k == "weights" else v for k, v in config.items()}


def _reason(run: Run, error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{run.editor} is not in wb.EDITORS"
    return str(error).split(". ")[0]


# ------------------------------------------------------------------ the table


def _write_table(
    out: Path, runs: list[Run], args: argparse.Namespace, reasons: Mapping[str, str]
) -> pd.DataFrame:
    table = pd.DataFrame([_row(out, run, args, reasons.get(run.slug, "")) for run in runs])
    write_atomically(out / "table.csv", table.round(4).to_csv(index=False).encode())
    return table


def _row(out: Path, run: Run, args: argparse.Namespace, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "table": run.table,
        "editor": run.name,
        "edits at once": run.n_edits,
        "trained for": run.trained_at or None,
    }
    path = out / run.slug / "rows.csv.gz"
    if path.exists():
        found = wb.lesson_summary(pd.read_csv(path)).set_index(["metric", "against"])
        for name, metric, against in (
            ("edit success", "edit_success", ""),
            ("drawdown", "drawdown", "pristine"),
            ("drawdown from prepared", "drawdown", "prepared"),
        ):
            picked = found.loc[(metric, against)]
            row |= {name: picked["value"], f"{name} low": picked["low"]}
            row |= {f"{name} high": picked["high"]}
        for name in ("success_flips", "success_kept", "token_accuracy", "seconds"):
            row[name.replace("_", " ")] = found.loc[(name, ""), "value"]
        row |= {"unit": found.loc[("drawdown", "pristine"), "unit"]}
        row |= {"edits": found.loc[("edit_success", ""), "n"]}
    where, paper = _paper(run, args.task)
    row |= {"paper": where, "paper success": None, "paper drawdown": None, "left out": reason}
    if paper is not None:
        row |= {"paper success": paper[0], "paper drawdown": paper[1]}
    return row


def _paper(run: Run, task: str) -> tuple[str, tuple[float, float] | None]:
    """The paper's model and numbers. The tiny world is in no paper; its ablations stand beside
    those of another model, as an order and not as a reproduction."""
    if run.table == "ablations":
        return "distilGPT-2, Wikitext", PAPER_ABLATIONS.get(run.name)
    if run.table == "at once":
        if task == "qa" and run.n_edits == run.trained_at:
            return "BART-base, zsRE", PAPER_AT_ONCE.get(run.name, {}).get(run.n_edits)
        return "", None
    where, numbers = PAPER.get(task, ("", {}))
    return where, numbers.get(run.name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="tiny", choices=tuple(TASKS))
    parser.add_argument("--data", help="training file of the task; default: its canonical source")
    parser.add_argument("--classifier", type=int, default=0, metavar="N",
                        help="fc: the first N claims give the model its head")  # fmt: skip
    parser.add_argument("--validation", help="file to hold out; default: a share of --data")
    parser.add_argument("--locality", default="same", help="same, nq, openwebtext or wikitext")
    parser.add_argument("--local", help="file of the locality source")
    parser.add_argument("--limit", type=int, help="questions, claims or samples to use")
    parser.add_argument("--train", action="store_true", help="train editors that are missing")
    parser.add_argument("--trained", help="folder of trained editors; default: the cache")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--options", metavar="FILE",
                        help="JSON file: editor, or name of a training (mend_trained_25, "
                        "mend_no_norm_trained_1) -> its options, steps among them")  # fmt: skip
    parser.add_argument("--edits", type=int, default=100, help="held-out edits of a run")
    parser.add_argument("--fewest", type=int, default=4, help="lessons of a run at least")
    parser.add_argument("--n-local", type=int, default=10, help="unrelated texts of a lesson")
    parser.add_argument("--at-once", type=int, nargs="*", default=list(AT_ONCE))
    parser.add_argument("--trained-at", type=int, nargs="*", default=[1, 25])
    parser.add_argument("--tuning", type=int, default=15, help="lessons to try a rate on")
    parser.add_argument("--ablations", action="store_true", help="MEND without its parts")
    parser.add_argument("--only", nargs="+", help="editors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
