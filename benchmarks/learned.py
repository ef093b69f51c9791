"""What an edit of a learned editor costs, in forward and backward passes of its own prompt.

    python benchmarks/learned.py --model tiny --editor MEND KE ENN --edits 20

Median over held-out edits and ``--repeats`` of: one plain forward and backward pass of the edit's
prompt and target (transformers' own loss, gradients of all parameters), and ``editor.edit``. The
target is three passes at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import workbench as wb
from workbench.editors.learned.texts import logits_of, read
from workbench.experiment.environment import environment


def main() -> None:
    """Measure and print; ``--out`` keeps the numbers."""
    args = _arguments()
    view = wb.load(args.model, device="cpu")
    cases = wb.datasets.tiny(limit=args.edits)
    found = {
        "model": view.name,
        "edits": len(cases),
        "repeats": args.repeats,
        "editors": {name: _cost(view, name, cases, args.repeats) for name in args.editor},
        "environment": environment(view),
    }
    print(json.dumps(found, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _cost(
    view: wb.ModelView, name: str, cases: Sequence[wb.EditCase], repeats: int
) -> dict[str, float]:
    """Median seconds of a pass and of an edit, taken in turns, and their ratio."""
    editor = wb.EDITORS[name].preset(view)
    editor.edit(view, cases[0])  # reads the file
    plain, ours = [], []
    for _ in range(repeats):
        for case in cases:
            plain.append(_seconds(lambda c=case: _pass(view, c)))
            ours.append(_seconds(lambda c=case: editor.edit(view, c)))
    seconds = {"pass": statistics.median(plain), "edit": statistics.median(ours)}
    return {
        "seconds_pass": seconds["pass"],
        "seconds_edit": seconds["edit"],
        "ratio": seconds["edit"] / seconds["pass"],
    }


def _pass(view: wb.ModelView, case: wb.EditCase) -> None:
    """Forward and backward, as plainly as it can be written."""
    texts = read(view, [case.request])
    loss = torch.nn.functional.cross_entropy(logits_of(view, texts), texts.label)
    loss.backward()
    view.model.zero_grad()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--editor", nargs="+", default=["MEND", "KE", "ENN"])
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
