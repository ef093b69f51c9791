"""Evaluation of a stream from kept states against plain ``score``: seconds and equality, one run.

    python benchmarks/stream_evaluation.py --cases 60

Both measure the same probes of a model after the same edit, several times each in turn; figures are
medians. The first measurement of a panel fills what it keeps and is reported on its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import workbench as wb
from workbench.edits import Delta, WeightEdit
from workbench.metrics.panel import Panel
from workbench.metrics.prefixes import Prefixes


def main() -> None:
    """Measure, compare, print."""
    args = _arguments()
    view = wb.load(args.model, device=args.device)
    tiny = args.model == "tiny"
    cases = (wb.datasets.tiny if tiny else wb.datasets.facts)(limit=args.cases)
    found = [_at(view, cases, first, args.repeats) for first in args.layers]
    result = {
        "model": view.name,
        "blocks": view.n_layers,
        "cases": len(cases),
        "probes": sum(len(c.all_probes) for c in cases),
        "threads": torch.get_num_threads(),
        "device": str(view.device),
        "first_edited_layer": found,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text)


def _at(view: wb.ModelView, cases: list, first: int, repeats: int) -> dict[str, float]:
    """Seconds of plain and kept evaluation for edits from one layer on."""
    prefixes = Prefixes(view, first, budget=8 << 30)
    panel, began = Panel(view, cases, prefixes=prefixes), time.perf_counter()
    panel.measure()
    filling = time.perf_counter() - began
    with view.applied(_edit(view, first)):
        plain, kept, difference = [], [], 0.0
        for _ in range(repeats):
            began = time.perf_counter()
            scores = wb.score(view, cases)
            plain.append(time.perf_counter() - began)
            began = time.perf_counter()
            table = panel.measure()
            kept.append(time.perf_counter() - began)
            apart = (table["nll_target"] - scores["nll_target"]).abs().max()
            difference = max(difference, float(apart))
    seconds = {"plain": statistics.median(plain), "kept": statistics.median(kept)}
    return {
        "layer": first,
        **{f"{k}_seconds": round(v, 3) for k, v in seconds.items()},
        "first_time_seconds": round(filling, 3),
        "ratio": round(seconds["plain"] / seconds["kept"], 2),
        "kept_mib": round(prefixes.used / 2**20, 1),
        "max_nll_difference": difference,
    }


def _edit(view: wb.ModelView, layer: int) -> WeightEdit:
    chance = torch.Generator().manual_seed(0)
    d, m = view.weight(layer).shape
    left, right = torch.randn(d, 1, generator=chance), torch.randn(m, 1, generator=chance)
    delta = Delta.low_rank(view.weight_name(layer), 1e-3 * left, right)
    request = wb.EditRequest(prompt="{} is", subject="It", target_new="so")
    parents = tuple(e.id for e in view.stack)
    return WeightEdit((delta,), (request,), "random", {}, view.fingerprint, parents)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default=None)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 15, 25])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
