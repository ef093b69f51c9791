"""Insertion algebra of long streams: time and memory a batch, from the first to the 20,000th edit.

    python benchmarks/accumulate.py --size 1536 --edits 20000 --batch 100

Keys and targets are given (random), so that only the algebra of accumulating editors is timed: the
factor that grows by a block row (:class:`workbench.linalg.Grown`) against the released form, which
solves an ``m × m`` system a batch. Both must give the same update.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from torch import Tensor

from workbench.atomic import write_atomically
from workbench.editors.locate.solvers import ridge_after
from workbench.linalg import Grown, cholesky


def main() -> None:
    """Time both forms and print medians along the stream."""
    args = _arguments()
    g = torch.Generator().manual_seed(0)
    corpus = torch.randn(args.size, 4 * args.size, generator=g, dtype=torch.float64)
    moment = corpus @ corpus.T / corpus.shape[1]
    began = time.perf_counter()
    grown = Grown(cholesky(moment), args.lam)
    once = time.perf_counter() - began
    seen = args.lam * moment
    ours, theirs, error = [], [], 0.0
    n_batches = args.edits // args.batch
    for i in range(n_batches):
        keys = torch.randn(args.size, args.batch, generator=g, dtype=torch.float64)
        x, seconds = _timed(lambda k=keys: _step(grown, k))
        ours.append(seconds)
        seen = seen.addmm(keys, keys.T)
        if i % max(1, n_batches // args.checks) == 0:  # the slow form, now and then
            direct, seconds = _timed(lambda k=keys, a=seen: torch.linalg.solve(a, k))
            theirs.append(seconds)
            error = max(error, float((x - direct).norm() / direct.norm()))
    tenth = max(1, n_batches // 10)
    result = {
        "d_mlp": args.size,
        "edits": n_batches * args.batch,
        "batch": args.batch,
        "threads": torch.get_num_threads(),
        "first_factorization_seconds": once,
        "seconds_a_batch": {
            "first_tenth": sum(ours[:tenth]) / tenth,
            "last_tenth": sum(ours[-tenth:]) / tenth,
            "median": sorted(ours)[len(ours) // 2],
            "largest": max(ours),
        },
        "seconds_a_batch_solving_anew": sorted(theirs)[len(theirs) // 2],
        "total_seconds": sum(ours),
        "ratio": sorted(theirs)[len(theirs) // 2] * n_batches / sum(ours),
        "largest_relative_difference": error,
        "state_mib": _mib(grown.factor.lower, grown.y, grown.gram_lower),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        write_atomically(Path(args.out), text.encode())


def _step(grown: Grown, keys: Tensor) -> Tensor:
    x = ridge_after(grown, keys)
    grown.append(keys)
    return x


def _timed(run) -> tuple[Tensor, float]:
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


def _mib(*tensors: Tensor) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1536, help="d_mlp")
    parser.add_argument("--edits", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lam", type=float, default=200.0)
    parser.add_argument("--checks", type=int, default=10, help="how often the slow form runs")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
