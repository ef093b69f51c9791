"""The commands ``edit``, ``score``, ``stats``, ``stream``, ``train``, ``summary``: thin words."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from workbench import datasets
from workbench.atomic import write_atomically
from workbench.cli.asked import cases_of, options_of, tasks_of, watch_of
from workbench.cli.train import train
from workbench.editors import find_editor
from workbench.editors.base import Editor
from workbench.errors import DataError, OptionError
from workbench.experiment import open_stack, rounds, stream
from workbench.facts import EditCase, EditRequest
from workbench.forgetting import retention
from workbench.metrics import downstream, free_writing, next_tokens, score, summary
from workbench.model import ModelView
from workbench.patches import apply_patch
from workbench.pretrained import load
from workbench.stats import second_moments

__all__ = ["run"]

#: What a folder with something to summarize holds.
TABLES = ("run.json", "rows.csv", "rows.csv.gz", "scores.csv", "scores.csv.gz")


def run(name: str, args: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "edit": _edit,
        "score": _score,
        "stats": _stats,
        "stream": _stream,
        "train": train,
        "summary": _summary,
    }
    return commands[name](args)


def _edit(args: argparse.Namespace) -> int:
    request = EditRequest(
        prompt=args.prompt, subject=args.subject, target_new=args.target, target_true=args.true
    )
    view = _load(args)
    editor = find_editor(args.editor).preset(view, args.preset, **options_of(args.option))
    edit = editor.edit(view, request)
    before = _tokens(view, request)
    with view.applied(edit):
        after = _tokens(view, request)
    print(_side_by_side(before, after).round(4).to_string())
    print(edit)
    if args.out:
        print(f"saved: {edit.save(args.out)}")
    return 0


def _score(args: argparse.Namespace) -> int:
    if args.at is not None and args.held is None:
        raise OptionError("--at is a moment of --run: give its folder, too.")
    view, tasks = _load(args), tasks_of(args)
    cases = cases_of(args)
    for path in args.edit:
        apply_patch(path, view)
    if args.held is not None:
        open_stack(args.held, view, at=args.at)
    table = score(
        view, cases, protocol=args.protocol, generate=args.generate, kinds=args.kinds or None
    )
    if args.out:
        _save(table, args.out)
    print(f"{view.describe()}; {len(cases)} cases")
    _print(summary(table))
    if tasks:
        _print(downstream(view, **tasks))
    _write(args, view, cases, None if args.out is None else f"{args.out}.writing.csv")
    return 0


def _stats(args: argparse.Namespace) -> int:
    view = _load(args)
    moments = second_moments(view, args.layers, corpus=args.corpus, n_tokens=args.tokens)
    _print(pd.DataFrame([{"layer": x, **dict(m.check())} for x, m in moments.items()]))
    return 0


def _stream(args: argparse.Namespace) -> int:
    view, tasks = _load(args), tasks_of(args)
    editor = find_editor(args.editor).preset(view, args.preset, **options_of(args.option))
    cases = cases_of(args)
    if args.single_round:
        return _rounds(args, view, editor, cases)
    rows = stream(
        args.out,
        view,
        editor,
        cases,
        batch_size=args.batch_size,
        evaluate_at=args.evaluate_at,
        dense_every=args.dense_every,
        kinds=args.kinds,
        before=not args.no_before,
        watch=watch_of(args.watch),
        texts=None if args.texts is None else list(datasets.texts(args.texts)),
        downstream=tasks,
        keep_model_at=args.keep_model_at or (),
        on_error="skip" if args.skip_errors else "stop",
        fresh=args.fresh,
    )
    curves = retention(rows).pivot(index="step", columns="curve", values="value")
    print(f"{view.describe()}; {editor}")
    _print(curves.reset_index())
    _print(summary(rows))
    _write(args, view, cases, f"{args.out}/writing.csv")
    print(f"saved: {args.out}")
    return 0


#: Options of a stream that mean nothing where nothing adds up.
ADDS_UP = (
    *("evaluate_at", "dense_every", "watch", "texts", "tasks", "keep_model_at"),
    *("skip_errors", "write_every"),
)


def _rounds(
    args: argparse.Namespace, view: ModelView, editor: Editor, cases: Sequence[EditCase]
) -> int:
    for name in ADDS_UP:
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise OptionError(f"{flag} needs edits that add up: leave it or --single-round out.")
    rows = rounds(
        args.out,
        view,
        editor,
        cases,
        batch_size=args.batch_size,
        kinds=args.kinds,
        before=not args.no_before,
        fresh=args.fresh,
    )
    print(f"{view.describe()}; {editor}, each batch on its own")
    _print(summary(rows))
    print(f"saved: {args.out}")
    return 0


def _write(
    args: argparse.Namespace, view: ModelView, cases: Sequence[EditCase], out: str | None
) -> None:
    """Free writing about the cases, if it is asked for."""
    if args.write_every is None:
        if args.snippets is not None:
            raise OptionError("--snippets is for free writing: give --write-every, too.")
        return
    table = free_writing(
        view,
        cases,
        snippets=None if args.snippets is None else datasets.snippets(args.snippets),
        every=args.write_every,
        max_new_tokens=args.write_tokens,
    )
    _print(table[["texts", "fluency", "consistency"]].mean().to_frame().T)
    if out is not None:
        _save(table, out)


def _summary(args: argparse.Namespace) -> int:
    names = [run for name in args.runs for run in _runs(name)]
    tables = [_read(r) if r.endswith((".csv", ".csv.gz")) else r for r in names]
    over = "runs" if args.over_runs else "cases"
    together = [tables] if args.over_runs else [[t] for t in tables]
    titles = [", ".join(names)] if args.over_runs else names
    found = []
    for title, part in zip(titles, together, strict=True):
        if len(together) > 1:
            print(title)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said below
            found.append(summary(part, first=args.first, over=over))
        _print(found[-1])
        for run_name in found[-1].attrs["incomplete"]:
            print(f"not finished: {run_name}")
    if args.out:
        named = [t.assign(source=n) for n, t in zip(titles, found, strict=True)]
        _save(pd.concat(named, ignore_index=True), args.out)
    return 0


def _runs(name: str) -> list[str]:
    """A table or a run as it is; of a folder of runs, the runs."""
    path = Path(name).expanduser()
    if not path.is_dir() or _holds_table(path):
        return [name]
    return sorted(str(p) for p in path.iterdir() if _holds_table(p)) or [name]


def _holds_table(folder: Path) -> bool:
    return any((folder / file).is_file() for file in TABLES)


def _read(path: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as err:
        raise DataError(f"{path} is no table of scores ({err}): check the path.") from err


def _tokens(view: ModelView, request: EditRequest) -> pd.DataFrame:
    pins = [t for t in (request.target_new, request.target_true) if t]
    return next_tokens(view, request.text, top_k=5, pin=pins)


def _side_by_side(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Probabilities of the same tokens, likeliest afterwards first; two tokens may print alike."""
    keyed = [table.set_index(["token_id", "token"])["prob"] for table in (before, after)]
    joined = pd.concat(keyed, axis=1, keys=["before", "after"])
    return joined.sort_values("after", ascending=False).droplevel("token_id")


def _load(args: argparse.Namespace) -> ModelView:
    return load(args.model, device=args.device, dtype=args.dtype)


def _save(table: pd.DataFrame, path: str) -> None:
    write_atomically(path, table.to_csv(index=False).encode())


def _print(table: pd.DataFrame) -> None:
    print(table.round(4).to_string(index=False))
