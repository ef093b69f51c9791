"""What an edit of a learned editor costs, in forward and backward passes of its own prompt.

    python benchmarks/learned.py --model tiny --editor MEND --edits 20

Median over held-out edits and ``--repeats`` of: one plain forward and backward pass of the edit's
prompt and target (transformers' own loss, gradients of all parameters), and ``editor.edit``. The
target is three passes at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import workbench as wb
from workbench.editors.learned.texts import logits_of, read


def main() -> None:
    """Measure and print; ``--out`` keeps the numbers."""
    args = _arguments()
    view = wb.load(args.model)
    editor = wb.EDITORS[args.editor].preset(view)
    cases = wb.datasets.tiny(limit=args.edits)
    editor.edit(view, cases[0])  # reads the file
    plain, ours = [], []
    for _ in range(args.repeats):
        for case in cases:
            plain.append(_seconds(lambda c=case: _pass(view, c)))
            ours.append(_seconds(lambda c=case: editor.edit(view, c)))
    found = {
        "model": view.name,
        "editor": args.editor,
        "edits": len(cases),
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "seconds_pass": statistics.median(plain),
        "seconds_edit": statistics.median(ours),
        "ratio": statistics.median(ours) / statistics.median(plain),
    }
    print(json.dumps(found, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


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
    parser.add_argument("--editor", default="MEND")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
