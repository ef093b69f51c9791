"""Time and memory of MEMIT on the shapes of large models, with random weights.

    python benchmarks/large_shapes.py --shape llama-3-8b --device cuda --out llama.json
    python benchmarks/large_shapes.py --shape gpt-j-6b --device cuda --batch 10000
    python benchmarks/large_shapes.py --shape small                      # seconds on a CPU

What a model says does not decide how long an edit takes, its shape does. Random weights never reach
a target early, so every edit makes all of its updates: these are upper bounds. Measured: key
statistics of the edited layers in one pass, target optimization and insertion of a batch, the same
by the plain loop (``plain.py``) in the same run, and peak memory. ``--batch`` inserts that many
facts at once, towards random targets.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain
import torch
import transformers
from key_statistics import one_pass, token_rows

import workbench as wb
from workbench.editors.locate.contexts import Contexts, contexts
from workbench.editors.locate.solvers import ridge
from workbench.editors.locate.sweep import insertion_sweep
from workbench.editors.locate.targets import optimize_targets
from workbench.secondmoments import identity_moment

#: shape → (model type, configuration, edited layers)
SHAPES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "gpt-j-6b": ("gptj", {"n_embd": 4096, "n_layer": 28, "n_head": 16}, (3, 4, 5, 6, 7, 8)),
    "llama-3-8b": (
        "llama",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256},
        (4, 5, 6, 7, 8),
    ),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}, (13, 14, 15, 16, 17)),
    "small": (
        "llama",
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8}
        | {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 4096},
        (2, 3),
    ),
}
TEMPLATES = ("{}", "The {}", "Therefore, {}", "Because of it, {}", "I know that {}", "You said {}")


def main() -> None:
    """Measure, print, and write the figures."""
    args = _arguments()
    torch.manual_seed(args.seed)
    view, layers = _view(args)
    requests = _requests(max(args.edits, args.batch))
    texts = contexts(view, "memit", args.seed, TEMPLATES)
    result: dict[str, Any] = {
        "shape": args.shape,
        "parameters": sum(p.numel() for p in view.model.parameters()),
        "dtype": str(view.dtype),
        "device": _device(view),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layers": list(layers),
        "d_mlp": view.d_mlp,
        "peak_gib": {"model": _peak(view)},
    }
    if args.tokens:
        rows = token_rows(view, args.tokens, args.length)
        _, seconds = _timed(view, lambda: one_pass(view, list(layers), rows))
        result["statistics_seconds_per_1000_tokens"] = 1000 * seconds / sum(map(len, rows))
        result["peak_gib"]["statistics"] = _peak(view)
    moments = {x: identity_moment(view, x) for x in layers}
    _, seconds = _timed(view, lambda: [m.factor for m in moments.values()])
    result["factoring_seconds_a_layer"] = seconds / len(layers)
    result |= _edits(view, requests[: args.edits], texts, moments, args, result["peak_gib"])
    if args.batch:
        z = torch.randn(view.d_model, args.batch)
        _, seconds = _timed(view, lambda: _insert(view, requests, texts, moments, z, args.lam))
        result["batch"] = {"facts": args.batch, "insertion_seconds": seconds}
        result["peak_gib"]["batch"] = _peak(view)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text)


def _edits(
    view: wb.ModelView,
    requests: list[wb.EditRequest],
    texts: Contexts,
    moments: dict[int, Any],
    args: argparse.Namespace,
    peaks: dict[str, float],
) -> dict[str, Any]:
    """Seconds an edit: targets and insertion, ours and the plain loop's."""
    options, top = wb.MEMIT(layers=tuple(moments), steps=args.steps).target_options(), max(moments)
    found, targets = _timed(view, lambda: optimize_targets(view, requests, texts, top, options))
    _, insertion = _timed(view, lambda: _insert(view, requests, texts, moments, found.z, args.lam))
    peaks["editing"] = _peak(view)
    n, few = len(requests), requests[: args.plain]
    seconds = {"targets": {"engine": targets / n}, "insertion": {"engine": insertion / n}}
    if few:
        alone, slow = _timed(
            view, lambda: [plain.target(view, r, texts, top, options) for r in few]
        )
        seconds["targets"] |= {"plain": slow / len(few), "ratio": slow / len(few) / (targets / n)}
        z = torch.stack([each[0].cpu() for each in alone], dim=1)
        matrices = {layer: m.matrix for layer, m in moments.items()}
        _, slow = _timed(
            view,
            lambda: plain.memit(view, few, texts, tuple(moments), z, matrices, args.lam),
        )
        seconds["insertion"] |= {"plain": slow / len(few), "plain_facts": len(few)}
        peaks["plain loop"] = _peak(view)
    return {"edits": n, "steps": args.steps, "seconds_an_edit": seconds}


def _insert(
    view: wb.ModelView,
    requests: list[wb.EditRequest],
    texts: Contexts,
    moments: dict[int, Any],
    z: torch.Tensor,
    lam: float,
) -> Any:
    factors = {layer: m.factor for layer, m in moments.items()}
    return insertion_sweep(
        view, requests, texts, tuple(moments), z, lambda x, k: ridge(factors[x], k, lam)
    )


def _view(args: argparse.Namespace) -> tuple[wb.ModelView, tuple[int, ...]]:
    """A model of that shape with random weights, made where it will stay."""
    kind, options, layers = SHAPES[args.shape]
    config = transformers.AutoConfig.for_model(kind, **options)
    dtype = getattr(torch, args.dtype)
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return wb.load(model.eval(), tokenizer=wb.load("tiny").tokenizer), layers


def _requests(n: int) -> list[wb.EditRequest]:
    """Invented subjects; a target's length is what counts."""
    cases = wb.datasets.tiny()
    return [
        wb.EditRequest(
            prompt=case.request.prompt,
            subject=f"{case.request.subject} {i // len(cases)}".removesuffix(" 0"),
            target_new=case.request.target_new,
        )
        for i in range(n)
        for case in [cases[i % len(cases)]]
    ]


def _timed(view: wb.ModelView, run: Callable[[], Any]) -> tuple[Any, float]:
    _wait(view)
    began = time.perf_counter()
    result = run()
    _wait(view)
    return result, time.perf_counter() - began


def _wait(view: wb.ModelView) -> None:
    if view.device.type == "cuda":
        torch.cuda.synchronize(view.device)


def _peak(view: wb.ModelView) -> float:
    """GiB so far: of the GPU, or of the process."""
    if view.device.type == "cuda":
        return torch.cuda.max_memory_allocated(view.device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _device(view: wb.ModelView) -> str:
    on_gpu = view.device.type == "cuda"
    return torch.cuda.get_device_name(view.device) if on_gpu else view.device.type


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--edits", type=int, default=32, help="in one batch, by the engine")
    parser.add_argument("--plain", type=int, default=2, help="of them by the plain loop; 0: none")
    parser.add_argument("--batch", type=int, default=0, help="facts of one large insertion")
    parser.add_argument("--steps", type=int, default=25, help="of a target")
    parser.add_argument("--lam", type=float, default=15_000.0)
    parser.add_argument("--tokens", type=int, default=8192, help="of the statistics; 0: none")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
