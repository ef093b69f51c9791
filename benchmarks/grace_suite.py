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

import workbench as wb


def main() -> None:
    """Run what is missing of a task, then print its table."""
    args = _arguments()
    suite = wb.suite(args.task, args.setting, model=args.model)
    record = wb.run_suite(
        suite,
        data=args.data,
        out=args.out,
        device=args.device,
        only=args.only,
        edits=args.edits,
        record_only=args.record,
        keep=args.keep,
    )
    print(record.table().round(3).to_string(index=False))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the data sets; the tiny models need none")
    parser.add_argument("--task", default="zsre", help="zsre, topics, hallucination or tiny")
    parser.add_argument("--setting", default="default", help="default or paper")
    parser.add_argument("--model", help="instead of the setting's")
    parser.add_argument("--edits", type=int, help="of every run, instead of the setting's")
    parser.add_argument("--only", nargs="+", help="names of trials, such as GRACE FTEWC")
    parser.add_argument("--record", action="store_true", help="only record what is there")
    parser.add_argument("--keep", action="store_true", help="keep the working folders")
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
