"""What an edit costs: processor seconds a fact and peak memory, one process an editor.

    python benchmarks/cost.py counterfact_large.jsonl.gz --facts 10

Every editor of the sequential study writes the same facts with its preset (in one batch where it
takes batches) into a fresh model, in a process of its own, so that peaks of memory do not mix.
Key statistics are computed before the clock starts. Seconds are those of the process on
``--threads`` threads, so other work on the machine changes them little.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from workbench.atomic import write_atomically

#: Name → editor, options, facts an edit (0: all at once), and whether it takes key statistics.
EDITORS: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "FT": ("FT", {}, 0, False),
    "ROME": ("ROME", {}, 1, True),
    "MEMIT": ("MEMIT", {}, 0, True),
    "MEMIT accumulated": ("MEMIT", {"accumulate": True}, 0, True),
    "EMMET": ("EMMET", {}, 0, True),
    "AlphaEdit": ("AlphaEdit", {}, 0, True),
    "NSE": ("NSE", {}, 0, True),
    "CoachHook, 1 layer": ("CoachHook", {"n_layers": 1}, 0, True),
    "CoachHook, 2 layers": ("CoachHook", {"n_layers": 2}, 0, True),
    "CoachHook, 4 layers": ("CoachHook", {"n_layers": 4}, 0, True),
}


def main() -> None:
    """Start one process an editor, or be one of them."""
    args = _arguments()
    if args.one:
        print(json.dumps(_measure(args)))
        return
    rows = []
    for name in args.only or EDITORS:
        words = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    found = {
        "model": args.model,
        "data": Path(args.data).name,
        "facts": args.facts,
        "corpus": args.corpus and Path(args.corpus).name,
        "threads": args.threads,
        "torch": torch.__version__,
        "editors": rows,
    }
    if args.out:
        write_atomically(Path(args.out), (json.dumps(found, indent=1) + "\n").encode())


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    view = wb.load(args.model, device=args.device)
    cases = wb.datasets.counterfact(args.data, limit=args.facts)
    kind, options, at_once, statistics = EDITORS[args.one]
    if statistics and args.corpus:
        options = options | {"corpus": args.corpus, "corpus_tokens": args.tokens}
    editor = wb.EDITORS[kind].preset(view, **options)
    if statistics:
        editor.with_options(steps=2).edit(view, cases[:1])
    loaded = _peak()
    began = time.process_time()
    for start in range(0, len(cases), at_once or len(cases)):
        view.push(editor.edit(view, cases[start : start + (at_once or len(cases))]))
    seconds = time.process_time() - began
    exact = wb.score(view, cases, kinds=("efficacy",))["exact"].mean()
    return {
        "editor": args.one,
        "seconds_a_fact": round(seconds / len(cases), 3),
        "peak_mib": round(_peak()),
        "peak_mib_before": round(loaded),
        "exact": float(exact),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="counterfact_large.jsonl.gz, or another CounterFact file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--corpus", help="for the key statistics; default: the presets'")
    parser.add_argument("--tokens", type=int, help="tokens of the corpus")
    parser.add_argument("--device", default=None)
    parser.add_argument("--only", nargs="+", choices=list(EDITORS))
    parser.add_argument("--one", choices=list(EDITORS), help="measure it in this very process")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
