"""Does an edit late in a stream cost more than an early one? Processor time along 1,000 edits.

    python benchmarks/growth.py counterfact_large.jsonl.gz --edits 1000 --batch 100

Every editor that remembers what earlier edits wrote edits the same facts in sequence, batch after
batch on one stack. Targets are cut short on purpose (``--steps 3``, bare prompts): their cost does
not depend on the stack, so a full optimization would only hide the growth that is looked for.
Seconds are those of the process, of computing an edit and of pushing it.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from workbench.atomic import write_atomically

EDITORS: dict[str, tuple[str, dict[str, Any]]] = {
    "MEMIT accumulated": ("MEMIT", {"accumulate": True}),
    "EMMET accumulated": ("EMMET", {"accumulate": True}),
    "AlphaEdit": ("AlphaEdit", {}),
    "NSE": ("NSE", {}),
    "CoachHook": ("CoachHook", {}),
}
LIMIT = 1.5


def main() -> None:
    """Time every editor and print, and keep with ``--out``, what was found."""
    args = _arguments()
    view = wb.load(args.model, device=args.device)
    cases = wb.datasets.counterfact(args.data, limit=args.edits)
    found = {
        "model": view.name,
        "data": Path(args.data).name,
        "edits": len(cases),
        "batch": args.batch,
        "steps": args.steps,
        "contexts": "bare",
        "corpus": args.corpus and Path(args.corpus).name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "limit": LIMIT,
        "editors": {name: _grow(view, name, cases, args) for name in args.only or EDITORS},
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        write_atomically(Path(args.out), (text + "\n").encode())


def _grow(
    view: wb.ModelView, name: str, cases: list[wb.EditCase], args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of every batch, and how the last two compare with the first two."""
    kind, options = EDITORS[name]
    if args.corpus:
        options = options | {"corpus": args.corpus, "corpus_tokens": args.tokens}
    editor = wb.EDITORS[kind].preset(view, steps=args.steps, contexts="bare", **options)
    editor.edit(view, cases[:2])  # statistics and the factor of the corpus, once
    seconds = []
    for start in range(0, len(cases), args.batch):
        began = time.process_time()
        view.push(editor.edit(view, cases[start : start + args.batch]))
        seconds.append(round(time.process_time() - began, 3))
    view.reset()
    return {
        "seconds_a_batch": seconds,
        "last_two_over_first_two": sum(seconds[-2:]) / sum(seconds[:2]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="counterfact_large.jsonl.gz, or another CounterFact file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3, help="of the target optimization")
    parser.add_argument("--corpus", help="for the key statistics; default: the presets'")
    parser.add_argument("--tokens", type=int, help="tokens of the corpus")
    parser.add_argument("--device", default=None)
    parser.add_argument("--only", nargs="+", choices=list(EDITORS))
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
