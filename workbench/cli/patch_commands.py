"""What ``workbench patch`` does: thin words around the functions of the same names."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from workbench.atomic import write_atomically
from workbench.errors import OptionError
from workbench.export import export_peft
from workbench.inspectors import compare_models
from workbench.patches import (
    apply_patch,
    count,
    load_patch,
    merge_patches,
    model_line,
    patch_conflicts,
    show_patch,
)
from workbench.pretrained import load
from workbench.verification import verify_patch

__all__ = ["run_patch"]


def run_patch(word: str, args: argparse.Namespace) -> int:
    """Run ``workbench patch WORD``; returns the exit code."""
    words: dict[str, Callable[[argparse.Namespace], int]] = {
        "show": _show,
        "verify": _verify,
        "apply": _apply,
        "merge": _merge,
        "export": _export,
        "diff": _diff,
    }
    with _said():
        return words[word](args)


def _show(args: argparse.Namespace) -> int:
    table = show_patch(args.patch)
    if args.json:
        print(json.dumps(table.attrs["manifests"], indent=2, ensure_ascii=False))
        return 0
    about = table.attrs
    size = f"{about['file_bytes']:,} bytes, format {about['format']}"
    print(f"{args.patch}: {count(len(table), 'edit')}, {size}")
    print(f"  base      {model_line(about['model'])}")
    print(f"  made with {', '.join(f'{k} {v}' for k, v in about['versions'].items())}")
    print(table.to_string(index=False, max_colwidth=48))
    return 0


def _verify(args: argparse.Namespace) -> int:
    table = verify_patch(args.patch, load(args.model) if args.model else None)
    for check, ok, finding in table.itertuples(index=False):
        mark = {True: "ok", False: "FAILED", None: "note"}[ok]
        print(f"{check:<10} {mark:<7} {finding}")
    return 0 if table.attrs["ok"] else 1


def _apply(args: argparse.Namespace) -> int:
    patch, view = load_patch(args.patch), load(args.model)
    edits = apply_patch(patch, view)
    view.save_pretrained(args.out)
    print(f"{view.describe()}; {count(len(edits), 'edit')} applied")
    print(f"saved: {args.out}")
    return 0


def _merge(args: argparse.Namespace) -> int:
    merged = merge_patches(args.patches, keep=args.keep, drop=args.drop)
    conflicts = patch_conflicts(merged)
    if len(conflicts):
        shown = ["kind", "a", "b", "overlap", "prompt_a", "target_a", "prompt_b", "target_b"]
        print(conflicts[shown].round(3).to_string(index=False, max_colwidth=40))
    print(merged)
    print(f"saved: {merged.save(args.out)}")
    return 0


def _export(args: argparse.Namespace) -> int:
    patch, view = load_patch(args.patch), load(args.model)
    folder = export_peft(patch.edits, view, args.out, rank=args.rank)
    modules = json.loads((folder / "workbench.json").read_text(encoding="utf-8"))["modules"]
    for name, about in modules.items():
        print(f"{name}: rank {about['rank']}, leaves out {about['error']:.2g} of the change")
    print(f"saved: {folder}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise OptionError(f"--top {args.top}: it must be at least 1.")
    table = _compared(args)
    if args.out:
        write_atomically(args.out, table.to_csv(index=False).encode())
    about = table.attrs
    print(f"{about['a']} / {about['b']}: {about['finding']}.")
    for side in ("a", "b"):
        if about[f"only_{side}"]:
            print(f"only in {about[side]}: {', '.join(about[f'only_{side}'])}")
    if len(table):
        shown = table.drop(columns=["layer", "part", "norm"]).round(5)
        print(shown.to_string(index=False, max_colwidth=60))
    return 0


def _compared(args: argparse.Namespace) -> pd.DataFrame:
    path = Path(args.b).expanduser()
    if path.suffix != ".safetensors" and not (path / "stack.json").is_file():
        return compare_models(args.a, args.b, top_k=args.top)
    view = load(args.a)
    apply_patch(path, view)
    return compare_models(view, top_k=args.top)


@contextmanager
def _said() -> Iterator[None]:
    """Warnings as sentences, without the line of code they come from."""
    before = warnings.showwarning
    try:
        warnings.showwarning = lambda message, *rest, **more: print(f"note: {message}")
        yield
    finally:
        warnings.showwarning = before
