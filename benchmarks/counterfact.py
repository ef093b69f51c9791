"""ROME, MEMIT and EMMET on the first records of CounterFact, as a recorded, resumable run.

    python benchmarks/counterfact.py PATH/counterfact.json --model smollm2-135m --limit 100

ROME edits one record at a time on a fresh model; MEMIT and EMMET edit all of them in one batch.
Every table lies in ``data/results/NAME/`` with ``run.json`` (configuration, case ids, versions). A
part that is finished is not run again; delete the folder to start over. Texts of the records are
not written.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save

import workbench as wb
from workbench.atomic import write_atomically
from workbench.editors.locate.base import LocateEditor, statistics_for
from workbench.editors.locate.targets import Targets
from workbench.fingerprint import fingerprint_of
from workbench.metrics import Reference, reference
from workbench.places import cache_dir

TEXTS = ["prompt", "target", "foil", "generated", "predicted"]


def main() -> None:
    """Run what is missing and print the summary."""
    args = _arguments()
    view = wb.load(args.model, device=args.device)
    cases = wb.datasets.counterfact(args.path, limit=args.limit)
    out = Path(args.out or f"data/results/counterfact_{args.model.replace('/', '_')}")
    out.mkdir(parents=True, exist_ok=True)
    before = reference(view, cases)
    text = {"corpus": args.corpus, "corpus_tokens": args.tokens} if args.corpus else {}
    editors = {
        "ROME": wb.ROME.preset(view, **text),
        "MEMIT": wb.MEMIT.preset(view, **text),
        "EMMET": wb.EMMET.preset(view, **text),
    }
    _record(out, args, view, cases, editors)
    _part(out, "unedited", lambda: wb.score(view, cases, reference=before, generate=True))
    for name in ("MEMIT", "EMMET"):
        if args.only and name not in args.only:
            continue
        _part(out, name, lambda name=name: _batch(view, editors[name], cases, before))
    if not args.only or "ROME" in args.only:
        _part(out, "ROME", lambda: _singles(view, editors["ROME"], cases, before))
    table = summarize(out)
    write_atomically(out / "summary.csv", table.to_csv(index=False).encode())
    print(table.round(4).to_string(index=False))


def summarize(folder: Path) -> pd.DataFrame:
    """One row per editor and kind, with intervals, exact match, free generation and KL."""
    tables = []
    for name in ("unedited", "ROME", "MEMIT", "EMMET"):
        path = folder / f"{name}.csv"
        if path.is_file():
            rows = pd.read_csv(path)
            tables.append(wb.summary(rows).assign(editor=name, seconds=rows["seconds"].iloc[0]))
    table = pd.concat(tables, ignore_index=True)
    return table[["editor", *[c for c in table.columns if c != "editor"]]]


def _singles(
    view: wb.ModelView, editor: wb.ROME, cases: list[wb.EditCase], before: Reference
) -> pd.DataFrame:
    tables, seconds = [], 0.0
    for start in range(0, len(cases), 10):
        part = cases[start : start + 10]
        began = time.perf_counter()
        edits = editor.edit_each(view, part)
        seconds += time.perf_counter() - began
        for case, edit in zip(part, edits, strict=True):
            with view.applied(edit):
                tables.append(wb.score(view, [case], reference=before, generate=True))
        print(f"ROME {start + len(part)}/{len(cases)}, {seconds:.0f} s", flush=True)
    return pd.concat(tables, ignore_index=True).assign(seconds=seconds)


def _batch(
    view: wb.ModelView,
    editor: LocateEditor,
    cases: list[wb.EditCase],
    before: Reference,
) -> pd.DataFrame:
    """One batch; its targets are kept, since editors with equal options share them."""
    batch = [c.request for c in cases]
    began = time.perf_counter()
    targets, spent = _targets(view, editor, batch)
    texts, moments = editor._contexts(view), statistics_for(editor, view)
    deltas, extra = editor._write(view, batch, texts, moments, targets)
    edit = editor._finish(view, batch, deltas, extra, 0.0)
    seconds = time.perf_counter() - began + spent
    with view.applied(edit):
        return wb.score(view, cases, reference=before, generate=True).assign(seconds=seconds)


def _targets(
    view: wb.ModelView, editor: LocateEditor, batch: list[wb.EditRequest]
) -> tuple[Targets, float]:
    """Target vectors from the cache of an equal run, and the seconds they took there."""
    texts = editor._contexts(view)
    recipe = {
        "model": view.fingerprint,
        "options": asdict(editor.target_options()),
        "templates": list(texts.templates),
        "layer": max(editor.layers),
        "requests": [r.as_dict() for r in batch],
    }
    path = cache_dir("runs") / f"targets-{fingerprint_of(recipe)}.safetensors"
    if path.is_file():
        with safe_open(path, "pt") as kept:
            note = json.loads(kept.metadata()["targets"])
            z, h0 = kept.get_tensor("z"), kept.get_tensor("h0")
        return Targets(z, h0, note["updates"], note["trace"]), note["seconds"]
    began = time.perf_counter()
    found = editor._targets(view, batch, texts)
    keep_targets(path, found, time.perf_counter() - began)
    return found, 0.0


def keep_targets(path: Path, found: Targets, seconds: float) -> None:
    """Write targets with their trace and cost."""
    note = {"updates": found.updates, "trace": found.trace, "seconds": seconds}
    tensors = {"z": found.z.contiguous(), "h0": found.h0.contiguous()}
    write_atomically(path, save(tensors, metadata={"targets": json.dumps(note)}))


def _part(out: Path, name: str, run: Callable[[], pd.DataFrame]) -> None:
    path = out / f"{name}.csv"
    if path.is_file():
        return
    began = time.perf_counter()
    table = run()
    if "seconds" not in table:
        table["seconds"] = 0.0
    kept = table.drop(columns=[c for c in TEXTS if c in table]).round(5)
    write_atomically(path, kept.to_csv(index=False).encode())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {time.perf_counter() - began:.0f} s, peak {peak:.1f} GiB", flush=True)


def _record(
    out: Path,
    args: argparse.Namespace,
    view: wb.ModelView,
    cases: list[wb.EditCase],
    editors: dict[str, wb.Editor],
) -> None:
    run = {
        "question": "efficacy, paraphrase, neighborhood of ROME (single), MEMIT and EMMET (batch)",
        "data": {"name": "counterfact", "case_ids": [c.case_id for c in cases]},
        "model": {"name": view.name, "fingerprint": view.fingerprint, "dtype": str(view.dtype)},
        "editors": {name: _config(editor) for name, editor in editors.items()},
        "regime": {"ROME": "single, fresh model each", "MEMIT": "batch", "EMMET": "batch"},
        "versions": {"workbench": wb.__version__, "torch": torch.__version__},
        "device": str(view.device),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    write_atomically(out / "run.json", json.dumps(run, indent=1).encode())


def _config(editor: wb.Editor) -> dict[str, object]:
    """The editor's options; a corpus by its file name only."""
    options = editor.config()
    return options | {"corpus": Path(str(options["corpus"])).name}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="counterfact.json")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--device", default=None)
    parser.add_argument("--corpus", help="for the key statistics; default: the presets'")
    parser.add_argument("--tokens", type=int, help="tokens of the corpus")
    parser.add_argument("--only", nargs="+", help="editors to run")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
