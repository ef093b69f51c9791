"""Key statistics of five layers: one truncated pass against one full pass a layer.

    python benchmarks/key_statistics.py [--model smollm2-135m] [--tokens 8192]

The straightforward way runs the whole model, head included, once for every layer, as the field's
code does without its early exit, and sums float32 products. Same machine, same run, same token
rows; medians of three alternating runs; CPU seconds beside wall seconds, for machines that others
use too. Prints a table and exits with 1 below the required ratio.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from workbench.keysums import collect, plan_batches
from workbench.model import ModelView
from workbench.pretrained import load
from workbench.progress import progress_to
from workbench.trace import Site, trace

REQUIRED = 4.0


def token_rows(view: ModelView, n_tokens: int, length: int) -> list[list[int]]:
    """Random token ids: the time does not depend on what the text says."""
    generator = torch.Generator().manual_seed(0)
    vocab = view.model.config.get_text_config(decoder=True).vocab_size
    size = (n_tokens // length, length)
    return torch.randint(5, vocab, size, generator=generator).tolist()


@torch.no_grad()
def one_pass(view: ModelView, layers: list[int], rows: list[list[int]]) -> dict[int, torch.Tensor]:
    """Workbench's pass, down to the matrices."""
    plan = plan_batches(rows, batch_tokens=4096, skipped=0, n_picked=512, seed=0)
    sums = collect(view, layers, plan, seed=0)
    return {i: s.second / plan.n_tokens for i, s in sums.items()}


@torch.no_grad()
def pass_per_layer(
    view: ModelView, layers: list[int], rows: list[list[int]], batch_rows: int = 4
) -> dict[int, torch.Tensor]:
    """A full forward for every layer and batch (about 1,000 tokens, as logits take memory)."""
    found = {}
    for layer in layers:
        total = torch.zeros(view.d_mlp, view.d_mlp)
        for start in range(0, len(rows), batch_rows):
            ids = torch.tensor(rows[start : start + batch_rows], device=view.device)
            with trace(view, [Site(layer, "key")]) as seen:
                view.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            keys = seen[Site(layer, "key")].flatten(0, 1).float()
            total += (keys.T @ keys).cpu()
        found[layer] = total / sum(map(len, rows))
    return found


def timed(run: Callable[..., Any], *args: Any) -> tuple[float, float, Any]:
    """Wall seconds, CPU seconds, result."""
    start, cpu = time.perf_counter(), time.process_time()
    result = run(*args)
    return time.perf_counter() - start, time.process_time() - cpu, result


def peak_mb() -> float:
    """Largest resident size of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 6, 7, 8, 9])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    view = load(args.model)
    rows = token_rows(view, args.tokens, args.length)
    memory = [peak_mb()]
    wall: dict[str, list[float]] = {"one pass": [], "pass per layer": []}
    cpu: dict[str, list[float]] = {"one pass": [], "pass per layer": []}
    print(f"{args.model}, layers {args.layers}, {len(rows)} rows of {args.length} tokens")
    results = {}
    for _ in range(args.repeats):
        for name, run in (("one pass", one_pass), ("pass per layer", pass_per_layer)):
            seconds, busy, results[name] = timed(run, view, args.layers, rows)
            wall[name].append(seconds)
            cpu[name].append(busy)
            memory.append(peak_mb())
            print(f"  {name:15} {seconds:8.2f} s wall {busy:8.2f} s CPU", flush=True)
    ours, theirs = results.values()
    error = max(float((ours[i] - theirs[i]).norm() / ours[i].norm()) for i in args.layers)
    ratio, ratio_cpu = (
        statistics.median(t["pass per layer"]) / statistics.median(t["one pass"])
        for t in (wall, cpu)
    )
    print(
        f"  ratio of medians {ratio:.1f} wall, {ratio_cpu:.1f} CPU (required {REQUIRED:.0f}); "
        f"largest relative difference {error:.1e}"
    )
    print(
        f"  peak memory: model {memory[0]:.0f} MB, + one pass {memory[1] - memory[0]:.0f} MB, "
        f"+ pass per layer {memory[2] - memory[1]:.0f} MB more"
    )
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    with progress_to(lambda phase, done, total: None):
        sys.exit(main())
