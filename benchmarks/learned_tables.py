"""Learned editors against fine-tuning: edit success and drawdown on held-out edits.

    python benchmarks/learned_tables.py --task tiny
    python benchmarks/learned_tables.py --task fc --data fever_claims.jsonl --classifier 3000
    python benchmarks/learned_tables.py --task qa --data zsre_train_10000.tsv \
        --validation zsre.json

Three tables of MEND's paper (arXiv 2110.11309): editors one edit at a time (tables 3 and 4), edits
written at once (table 5), and MEND without its parts (table 6, ``--ablations``). An editor is
trained once; one that is not there and shall not be trained (``--no-train``) is left out. The
record's folder gets a folder a trial (rows without texts, run.json) and ``table.csv``. A trial that
is there is not made again; training and measuring go on where they were stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.atomic import write_atomically
from workbench.places import cache_dir

#: Options that change the study of the same name.
FIELDS = ("steps", "edits", "fewest", "n_local", "tuning", "at_once", "trained_at", "seed")


def main() -> None:
    """Train and measure what is missing, then write the table."""
    args = _arguments()
    study = study_of(args)
    view, notes = _view(args, study)
    wb.check_task(study.task, view.kind, locality=args.locality, name=view.name)
    lessons = wb.make_lessons(
        view, study.task, data=args.data, validation=args.validation, locality=args.locality,
        local=args.local, limit=args.limit, seed=study.seed,
    )  # fmt: skip
    record = wb.run_learned(
        study, out=args.out, view=view, lessons=lessons, train=args.train, trained=args.trained,
        notes=notes,
    )  # fmt: skip
    shown = record.table.drop(columns=[c for c in record.table if c.endswith((" low", " high"))])
    print(shown.round(3).to_string(index=False))


def study_of(args: argparse.Namespace) -> wb.LearnedStudy:
    """The study that the options ask for."""
    changes: dict[str, Any] = {k: getattr(args, k) for k in (*FIELDS, "ablations")}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    if args.options:
        changes["options"] = json.loads(Path(args.options).read_text())
    study = wb.learned_study(args.task, args.setting, model=args.model, **changes)
    return study.only(*args.only) if args.only else study


def _view(args: argparse.Namespace, study: wb.LearnedStudy) -> tuple[wb.ModelView, dict[str, Any]]:
    """The model and what to record of it. For fact checking the first claims give an encoder its
    head, and lessons are made of the others."""
    if study.task != "fc" or not args.classifier:
        return wb.load(study.model, device=args.device), {}
    cases = wb.datasets.fever(args.data)
    taught, rest = cases[: args.classifier], cases[args.classifier :]
    found = wb.finetune_classifier(
        [c.request.text for c in taught],
        [c.request.target_true or "" for c in taught],
        model=study.model,
        tests=([c.request.text for c in rest], [c.request.target_true or "" for c in rest]),
        device=args.device,
    )
    args.data = cache_dir("lessons") / f"claims-after-{args.classifier}.jsonl"
    lines = ({"id": c.case_id, "label": c.request.target_true, "claim": c.request.text}
             for c in rest)  # fmt: skip
    write_atomically(args.data, "".join(json.dumps(x) + "\n" for x in lines).encode())
    said = {k: getattr(found, k) for k in ("train_accuracy", "accuracy", "most_frequent")}
    about = {"claims": [len(taught), len(rest)], **said}
    notes = {"model": study.model, "classifier": about}  # the view's own name is a folder
    return wb.load(found.path, device=args.device), notes


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="tiny", choices=("tiny", "qa", "gen", "fc"))
    parser.add_argument("--setting", default="default", help="default or paper")
    parser.add_argument("--model", help="instead of the setting's")
    parser.add_argument("--data", help="training file of the task; default: its canonical source")
    parser.add_argument("--classifier", type=int, default=0, metavar="N",
                        help="fc: the first N claims give the model its head")  # fmt: skip
    parser.add_argument("--validation", help="file to hold out; default: a share of --data")
    parser.add_argument("--locality", default="same", help="same, nq, openwebtext or wikitext")
    parser.add_argument("--local", help="file of the locality source")
    parser.add_argument("--limit", type=int, help="questions, claims or samples to use")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True,
                        help="train editors that are missing")  # fmt: skip
    parser.add_argument("--trained", help="folder of trained editors; default: the cache")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--options", metavar="FILE",
                        help="JSON file: editor, or name of a training (mend_trained_25, "
                        "mend_no_norm_trained_1) -> its options, steps among them")  # fmt: skip
    parser.add_argument("--edits", type=int, help="held-out edits of a trial")
    parser.add_argument("--fewest", type=int, help="lessons of a trial at least")
    parser.add_argument("--n-local", type=int, help="texts of a lesson that must stay")
    parser.add_argument("--at-once", type=int, nargs="*", help="edits written at once")
    parser.add_argument("--trained-at", type=int, nargs="*", help="edits of a training lesson")
    parser.add_argument("--tuning", type=int, help="lessons to try a rate on")
    parser.add_argument("--ablations", action=argparse.BooleanOptionalAction,
                        help="MEND without its parts")  # fmt: skip
    parser.add_argument("--only", nargs="+", help="editors")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
