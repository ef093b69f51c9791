"""All editors that need no training on the same facts, one batch each, by one command.

    python benchmarks/compare_editors.py --data PATH/counterfact.json --snippets PATH/snippets.json

A folder an editor: one row of numbers, which fact it wrote, run.json. An editor that is there is
not run again. What is measured: ``wb.run_comparison``.
"""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb

SHOWN = ("efficacy", "exact", "paraphrase", "neighborhood", "kl", "upstream", "perplexity_ratio")
COSTS = ("fluency", "consistency", "seconds", "peak_mib", "file_bytes")


def main() -> None:
    """Run what is missing, then print the table."""
    args = _arguments()
    study = wb.study("compare_editors", args.setting, model=args.model, edits=args.edits)
    common: dict[str, Any] = {}
    if args.corpus:
        common = {"corpus": args.corpus, "corpus_tokens": args.tokens}
    found = wb.run_comparison(
        study,
        out=args.out,
        data=args.data,
        device=args.device,
        common=common,
        snippets=wb.datasets.snippets(args.snippets) if args.snippets else None,
        texts=args.texts,
        only=args.only,
    )
    columns = ["editor", *SHOWN, *COSTS]
    for table in (found.before, found.summary):
        print(table[[c for c in columns if c in table]].round(3).to_string(index=False))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", default="default", help="default or paper")
    parser.add_argument("--data", help="a CounterFact file; default: the published one")
    parser.add_argument("--snippets", help="attribute_snippets.json, for consistency")
    parser.add_argument("--texts", type=int, default=1, help="written freely about each subject")
    parser.add_argument("--model", help="instead of the setting's")
    parser.add_argument("--edits", type=int, help="instead of the setting's")
    parser.add_argument("--device", default=None)
    parser.add_argument("--corpus", help="for the key statistics; default: the presets'")
    parser.add_argument("--tokens", type=int, help="tokens of the corpus")
    parser.add_argument("--only", nargs="+", help="names of editors")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
