"""The studies of the notebooks by one command, each trial resumable and recorded.

    python benchmarks/sequential.py nse_sequential --data PATH/counterfact_large.jsonl.gz

Every editor writes the same facts, original records first, in the same order into a fresh model.
Beyond the originals paraphrases are not the benchmark's own. The record's folder gets a folder a
trial (rows without texts, moments, run.json) and ``table.csv``. A trial that is there is not run
again; one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb


def main() -> None:
    """Run what is missing, then write the table."""
    args = _arguments()
    study = wb.study(args.study, args.setting, model=args.model, edits=args.edits, batch=args.batch)
    common: dict[str, Any] = {}
    if args.corpus:
        common = {"corpus": args.corpus, "corpus_tokens": args.tokens}
    down = {"tasks": ("sst2",), "tests": 100, "path": args.downstream} if args.downstream else None
    record = wb.run_study(
        study,
        out=args.out,
        data=args.data,
        device=args.device,
        common=common,
        downstream=down,
        only=args.only,
        keep=args.keep,
    )
    print(record.table().round(2).to_string(index=False))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a notebook's name, such as nse_sequential")
    parser.add_argument("--setting", default="default", help="default or paper")
    parser.add_argument("--data", help="counterfact_large.jsonl.gz, or counterfact.json")
    parser.add_argument("--model", help="instead of the setting's")
    parser.add_argument("--edits", type=int, help="instead of the setting's")
    parser.add_argument("--batch", type=int, help="instead of the setting's")
    parser.add_argument("--device", default=None)
    parser.add_argument("--corpus", help="for the key statistics; default: the presets'")
    parser.add_argument("--tokens", type=int, help="tokens of the corpus")
    parser.add_argument("--downstream", help="folder of the downstream sets")
    parser.add_argument("--only", nargs="+", help="names of trials")
    parser.add_argument("--keep", action="store_true", help="keep the working folders")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
