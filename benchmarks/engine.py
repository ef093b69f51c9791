"""The engine against a plain one-edit-at-a-time loop: seconds, memory, equality.

    python benchmarks/engine.py --edits 32

Target optimization and insertion of MEMIT for the same requests, templates and statistics, on one
machine in one run. The plain loop (``plain.py``) is written from the papers: full forward passes,
full head, no cache. Both must agree: per-edit stop steps, target vectors, and the negative
log-likelihood of the new targets after editing. The arithmetic bound is the work that remains,
divided by the matrix-product rate measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import plain
import torch
from torch import Tensor

import workbench as wb
from workbench.editors.base import store
from workbench.editors.locate.contexts import Contexts, contexts
from workbench.editors.locate.solvers import ridge
from workbench.editors.locate.sweep import insertion_sweep
from workbench.editors.locate.targets import Targets, optimize_targets
from workbench.edits import Delta, WeightEdit
from workbench.tokens import encode_request


def main() -> None:
    """Measure, compare, print, and write the figures beside the other results."""
    args = _arguments()
    view = wb.load(args.model, device=args.device)
    cases = wb.datasets.facts(known_to="smollm2-135m", limit=args.edits)
    requests = [case.request for case in cases]
    editor = wb.MEMIT.preset(view)
    lam = editor.lam or 1.0
    texts = contexts(view, editor.contexts, editor.seed)
    moments = wb.second_moments(view, editor.layers, corpus=editor.corpus)
    factors = {layer: m.factor for layer, m in moments.items()}
    options, top = editor.target_options(), max(editor.layers)
    rate = _matmul_rate(view.device)

    ours, t_ours = _timed(
        lambda: optimize_targets(view, requests, texts, top, options), args.repeats
    )
    sweep, s_ours = _timed(
        lambda: insertion_sweep(
            view, requests, texts, editor.layers, ours.z, lambda x, k: ridge(factors[x], k, lam)
        ),
        args.repeats,
    )
    peak_ours = _peak()
    theirs, t_plain = _timed(
        lambda: [plain.target(view, r, texts, top, options) for r in requests], 1
    )
    z = torch.stack([found[0].cpu() for found in theirs], dim=1)
    matrices = {layer: m.matrix for layer, m in moments.items()}
    updates, s_plain = _timed(
        lambda: plain.memit(view, requests, texts, editor.layers, z, matrices, lam), 1
    )
    edits = {
        "engine": [store(view, w.layer, w.residual, w.x) for w in sweep],
        "plain": [
            Delta.dense(view.weight_name(layer), u.float())
            for layer, u in zip(editor.layers, updates, strict=True)
        ],
    }
    nll = {name: _nll(view, deltas, cases) for name, deltas in edits.items()}
    bound = _bound(view, requests, texts, ours, top) / rate
    result = {
        "model": view.name,
        "edits": len(requests),
        "layers": list(editor.layers),
        "threads": torch.get_num_threads(),
        "device": str(view.device),
        "targets_seconds": {"engine": t_ours, "plain": t_plain},
        "insertion_seconds": {"engine": s_ours, "plain": s_plain},
        "ratio": {
            "targets": t_plain / t_ours,
            "insertion": s_plain / s_ours,
            "together": (t_plain + s_plain) / (t_ours + s_ours),
        },
        "peak_gib": {"engine": peak_ours, "with_plain": _peak()},
        "gflop_per_second": rate / 1e9,
        "bound_seconds": bound,
        "engine_over_bound": t_ours / bound,
        "updates_differ": sum(a != b[2] for a, b in zip(ours.updates, theirs, strict=True)),
        "z_relative_error": float((ours.z - z).norm() / z.norm()),
        "max_nll_difference": float((nll["engine"] - nll["plain"]).abs().max()),
        "median_nll": {name: float(v.median()) for name, v in nll.items()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text)


def _bound(view: wb.ModelView, requests: list, texts: Contexts, found: Targets, top: int) -> float:
    """Floating-point operations that cannot be avoided: suffix columns, blocks above, head."""
    block = sum(p.numel() for p in view.block(0).parameters())
    head = view.d_model * view.model.config.vocab_size
    total = 0.0
    for request, updates in zip(requests, found.updates, strict=True):
        rows = encode_request(view.tokenizer, request, texts.templates)
        suffix = sum(len(r.ids) - 1 - r.pivot for r in rows) + 1
        labels = sum(len(r.target_ids) for r in rows) + 1
        prefix = sum(r.pivot for r in rows)
        passes = 2 * (updates + 1)  # forward and backward of activations
        total += passes * (2 * block * (view.n_layers - top - 1) * suffix + 2 * head * labels)
        total += 2 * block * view.n_layers * (prefix + suffix)
    return total


def _nll(view: wb.ModelView, deltas: list[Delta], cases: list[wb.EditCase]) -> Tensor:
    edit = WeightEdit(tuple(deltas), (cases[0].request,), "MEMIT", {}, view.fingerprint)
    with view.applied(edit):
        scores = wb.score(view, cases, kinds=["efficacy"])
    return torch.tensor(scores["nll_target"].to_numpy())


def _timed(run: Callable, repeats: int) -> tuple:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - began)
    return result, sorted(times)[len(times) // 2]


def _matmul_rate(device: torch.device) -> float:
    a, b = torch.randn(2048, 2048, device=device), torch.randn(2048, 2048, device=device)
    _, seconds = _timed(lambda: float((a @ b)[0, 0]), 7)
    return 2 * 2048**3 / seconds


def _peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
