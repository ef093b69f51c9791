"""What a codebook costs: inference beside it, exact search in it, and a batch of its values.

    python benchmarks/grace.py --model smollm2-135m

Four comparisons, each within one run; figures are medians of the repeats. ``--only`` chooses.

- ``inference``: reading prompts and generating, with and without a codebook of 10,000 keys drawn
  around the model's own queries, so that none of them answers;
- ``search``: the nearest of 100,000 keys by matrix product and re-measuring against differences to
  every key, with the same answers, and the memory it takes beyond the keys;
- ``values``: a batch of edits trained together against one after another;
- ``retention``: every measure after every one of 1,000 edits (``codebook_curves``) against judging
  everything once at the end, in questions asked of the model and in seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from workbench.editors.memory.examples import queries
from workbench.edits import AdapterEdit
from workbench.experiment.curves import Asked, codebook_curves
from workbench.memories import Codebook, Entries, Settings, as_adapter
from workbench.metrics import judge
from workbench.shelves import Shelf, nearest


def main() -> None:
    """Measure, compare, print."""
    args = _arguments()
    view = wb.load(args.model, device=args.device)
    cases = (wb.datasets.tiny if "tiny" in args.model else wb.datasets.facts)(limit=args.edits)
    result: dict[str, Any] = {
        "model": view.name,
        "device": str(view.device),
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
    }
    parts: dict[str, Callable[[], Any]] = {
        "search": lambda: _search(args.stored, args.width, args.repeats, args.device),
        "inference": lambda: _inference(view, cases, args.keys, args.repeats),
        "values": lambda: _values(view, cases, args.repeats),
        "retention": lambda: _retention(view, args.stream),
    }
    result |= {name: parts[name]() for name in args.only or parts}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text)


def _inference(view: wb.ModelView, cases: list, n: int, repeats: int) -> dict[str, Any]:
    grace = wb.GRACE.preset(view)
    prompts = [c.request.text for c in cases][:8]
    asked, _ = queries(
        view, [c.request.text for c in cases], grace.place(view), grace.settings(view)
    )
    edit = _edit(view, grace, asked, n)
    inputs = view.tokenizer(prompts, return_tensors="pt", padding=True).to(view.device)
    model: Any = view.model
    ids, mask = inputs["input_ids"], inputs["attention_mask"]

    def read() -> Any:
        return model(input_ids=ids, attention_mask=mask, use_cache=False)

    def write() -> Any:
        return wb.metrics.generate_text(view, prompts, max_new_tokens=16)

    found: dict[str, Any] = {"keys": n, "prompts": len(prompts), "tokens": int(mask.sum())}
    for name, work in (("read", read), ("generate", write)):
        times: dict[str, list[float]] = {"plain": [], "beside": []}
        for _ in range(repeats):  # in turn: the machine's mood meets both
            times["plain"].append(_seconds(work))
            with view.applied(edit):
                times["beside"].append(_seconds(work))
        plain, beside = (statistics.median(times[k]) for k in ("plain", "beside"))
        found[name] = {
            "plain_seconds": plain,
            "beside_seconds": beside,
            "overhead": statistics.median(
                b / a - 1 for a, b in zip(times["plain"], times["beside"], strict=True)
            ),
        }
    return found


def _edit(view: wb.ModelView, grace: Any, asked: torch.Tensor, n: int) -> AdapterEdit:
    """A codebook of ``n`` keys around real queries, with balls too small for any of them."""
    generator = torch.Generator().manual_seed(0)
    base = asked.cpu()[torch.randint(len(asked), (n,), generator=generator)]
    spread = asked.std(0).mean().item()
    keys = base + spread * torch.randn(n, asked.shape[1], generator=generator)
    place, settings = grace.place(view), grace.settings(view)
    d_out = view.module_of(place.parameter)(asked[:1].to(view.dtype)).shape[-1]
    none = torch.zeros(0)
    entries = Entries(
        torch.arange(n), keys, torch.zeros(n, d_out), torch.full((n,), 1e-3), ((0,),) * n,
        none.long(), none,
    )  # fmt: skip
    request = wb.EditRequest(prompt="made up", target_new="nothing")
    return AdapterEdit(
        adapters=(as_adapter(place.parameter, settings, entries),),
        requests=(request,),
        editor="GRACE",
        config=grace.config(),
        base=view.fingerprint,
    )


def _search(n: int, d: int, repeats: int, device: str | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(n, d, generator=generator)
    keys[:, 7] += 500.0  # a coordinate that all keys share, as hidden states have
    asked = keys[torch.randint(n, (16,), generator=generator)] + 0.5 * torch.randn(
        16, d, generator=generator
    )
    keys, asked = keys.to(device or "cpu"), asked.to(device or "cpu")
    settings = Settings()
    book = Codebook.empty(d, 1, settings, device=keys.device)
    entries = Entries(
        torch.arange(n), keys, torch.zeros(n, 1), torch.ones(n), ((0,),) * n,
        torch.zeros(0, dtype=torch.long), torch.zeros(0),
    )  # fmt: skip
    book = book.after(settings, entries)
    del entries, keys
    gc.collect()
    shelf: Shelf = book.keys
    rows = shelf.data[:n]

    def plain() -> Any:
        return torch.cdist(asked, rows, compute_mode="donot_use_mm_for_euclid_dist").min(1)

    def ours() -> Any:
        return nearest(shelf, n, asked)

    before = _peak(reset=True)
    distance, index = ours()
    beyond = _peak() - before
    truth = plain()
    times = {"plain": [], "ours": []}
    for _ in range(repeats):
        times["plain"].append(_seconds(plain))
        times["ours"].append(_seconds(ours))
    held = sum(t.numel() * t.element_size() for t in (book.radii, book.value_rows, book.ids))
    held += shelf.squares.numel() * 4 if shelf.squares is not None else 0
    return {
        "keys": n,
        "width": d,
        "queries": len(asked),
        "equal": bool((index[:, 0] == truth.indices).all()),
        "largest_error": float((distance[:, 0] - truth.values).abs().max()),
        "plain_seconds": statistics.median(times["plain"]),
        "seconds": statistics.median(times["ours"]),
        "ratio": statistics.median(
            a / b for a, b in zip(times["plain"], times["ours"], strict=True)
        ),
        "keys_mb": n * d * 4 / 1e6,
        "kept_beside_keys_mb": held / 1e6,
        "search_mb": beyond / 1e6,
    }


def _values(view: wb.ModelView, cases: list, repeats: int) -> dict[str, Any]:
    grace = wb.GRACE.preset(view, steps=20)
    requests = [c.request for c in cases]

    def together() -> Any:
        return grace.edit(view, requests)

    def apart() -> Any:
        return [grace.edit(view, r) for r in requests]

    together()
    times: dict[str, list[float]] = {"together": [], "apart": []}
    for _ in range(max(1, repeats // 2)):
        times["together"].append(_seconds(together))
        times["apart"].append(_seconds(apart))
    a, b = (statistics.median(times[k]) for k in ("together", "apart"))
    return {"edits": len(requests), "steps": 20, "together": a, "apart": b, "ratio": b / a}


def _retention(view: wb.ModelView, n: int) -> dict[str, Any]:
    """Values are trained one step: what they say does not matter here."""
    facts = (wb.datasets.tiny if "tiny" in view.name else wb.datasets.facts)()
    asked = {p.prompt: p for c in facts for p in c.all_probes}
    probes = list(asked.values())
    edited, kept = probes[:n], probes[n : n + n // 2]
    grace = wb.GRACE.preset(view, steps=1)
    for begin in range(0, len(edited), 64):
        part = edited[begin : begin + 64]
        for edit in grace.edits(
            view, [wb.EditRequest(prompt=p.prompt, target_new=p.target) for p in part]
        ):
            view.push(edit)
    steps = list(range(1, len(edited) + 1))
    sets = [
        Asked("err", "", edited, since=steps),
        Asked("es", "", edited, since=steps, only=True),
        Asked("trr", "", kept),
    ]
    found: dict[str, Any] = {"edits": len(edited), "probes": len(edited) + len(kept)}
    found["keys"] = view.stack[-1].report["size"]
    kinds = ("qa",) if view.kind == "encoder_decoder" else ("text", "qa")
    for kind in kinds:
        began = time.process_time()
        table = codebook_curves(view, kind, sets)
        after_every = time.process_time() - began
        began = time.process_time()
        judge(view, kind, [*edited, *kept])
        once = time.process_time() - began
        found[kind] = {
            "moments": int(table["step"].nunique()),
            "after_every_edit_seconds": after_every,
            "once_at_the_end_seconds": once,
            "full_evaluations": after_every / once,
        }
    view.reset()
    return found


def _seconds(work: Callable[[], Any]) -> float:
    """Of the processor on a CPU, so that other work on the machine does not count."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    with torch.no_grad() if work.__name__ in ("read", "plain", "ours") else torch.enable_grad():
        began = clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return clock() - began


def _peak(*, reset: bool = False) -> int:
    """Highest resident memory of this process since the last reset, bytes (Linux)."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.max_memory_allocated())
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keys", type=int, default=10_000, help="beside the model")
    parser.add_argument("--stored", type=int, default=100_000, help="in the search")
    parser.add_argument("--width", type=int, default=1024, help="of a key in the search")
    parser.add_argument("--edits", type=int, default=16)
    parser.add_argument("--stream", type=int, default=1000, help="edits in retention")
    parser.add_argument("--only", nargs="+", help="parts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
