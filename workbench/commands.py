"""The commands ``edit``, ``score``, ``stats``, ``stream``, ``train``, ``summary``: thin words."""

from __future__ import annotations

import argparse
import ast
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from workbench import datasets
from workbench.atomic import write_atomically
from workbench.editors import EDITORS, find_editor
from workbench.editors.learned.base import LearnedEditor
from workbench.editors.learned.files import locate
from workbench.editors.learned.lessons import Lessons
from workbench.editors.learned.tasks import make_lessons
from workbench.edits import load_edit
from workbench.errors import DataError, OptionError, did_you_mean
from workbench.experiment import stream
from workbench.facts import EditCase, EditRequest
from workbench.forgetting import retention
from workbench.inspectors import training_curve
from workbench.metrics import next_tokens, score, summary
from workbench.model import ModelView
from workbench.pretrained import load
from workbench.stats import second_moments

__all__ = ["run"]

#: Columns of a training that are printed.
SHOWN = ("step", "train_edit", "train_local", "edit", "local", "success", "drawdown")


def run(name: str, args: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "edit": _edit,
        "score": _score,
        "stats": _stats,
        "stream": _stream,
        "train": _train,
        "summary": _summary,
    }
    return commands[name](args)


def _edit(args: argparse.Namespace) -> int:
    request = EditRequest(
        prompt=args.prompt, subject=args.subject, target_new=args.target, target_true=args.true
    )
    view = load(args.model)
    editor = find_editor(args.editor).preset(view, **_options(args.option))
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
    view = load(args.model)
    cases = _cases(args.data, args.limit)
    for path in args.edit:
        view.push(load_edit(path))
    table = score(view, cases, protocol=args.protocol)
    if args.out:
        write_atomically(args.out, table.to_csv(index=False).encode())
    print(f"{view.describe()}; {len(cases)} cases")
    _print(summary(table))
    return 0


def _train(args: argparse.Namespace) -> int:
    cls = _learned(args.editor)
    view = load(args.model)
    editor = cls.train(
        view,
        _lessons(view, args),
        out=args.out,
        steps=args.steps,
        seed=args.seed,
        preset=args.preset,
        fresh=args.fresh,
        **_options(args.option),
    )
    trained = editor.trained()
    _print(training_curve(editor)[list(SHOWN)])
    print(pd.Series(trained.training["evaluation"], dtype=object).to_string())
    print(f"trained: {locate(editor.weights)} ({trained.training['note']})")
    return 0


def _learned(name: str) -> type[LearnedEditor]:
    """The class of a learned editor; KE is known as efk as well."""
    known = {n.lower(): c for n, c in EDITORS.items() if issubclass(c, LearnedEditor)}
    known["efk"] = known["ke"]
    if name.lower() not in known:
        raise OptionError(f"editor {name!r} cannot be trained." + did_you_mean(name, known))
    return known[name.lower()]


def _lessons(view: ModelView, args: argparse.Namespace) -> Lessons:
    """Lessons of a task; without one, of cases."""
    if args.task or args.data in (None, "tiny"):
        if not (args.task or args.data):
            raise OptionError("say what to learn from: --data tiny, --data FILE, or --task gen.")
        data = None if args.data == "tiny" else args.data
        task = args.task or "tiny"
        found = make_lessons(
            view, task, data=data, locality=args.locality, limit=args.limit, seed=args.seed
        )
        return found
    return Lessons.from_cases(_cases(args.data, args.limit), seed=args.seed)


def _stats(args: argparse.Namespace) -> int:
    view = load(args.model)
    moments = second_moments(view, args.layers, corpus=args.corpus, n_tokens=args.tokens)
    _print(pd.DataFrame([{"layer": x, **dict(m.check())} for x, m in moments.items()]))
    return 0


def _stream(args: argparse.Namespace) -> int:
    view = load(args.model)
    editor = find_editor(args.editor).preset(view, **_options(args.option))
    rows = stream(
        args.out,
        view,
        editor,
        _cases(args.data, args.limit),
        batch_size=args.batch_size,
        evaluate_at=args.evaluate_at,
        dense_every=args.dense_every,
        on_error="skip" if args.skip_errors else "stop",
        fresh=args.fresh,
    )
    curves = retention(rows).pivot(index="step", columns="curve", values="value")
    print(f"{view.describe()}; {editor}")
    _print(curves.reset_index())
    _print(summary(rows))
    print(f"saved: {args.out}")
    return 0


def _summary(args: argparse.Namespace) -> int:
    tables = [_read(r) if r.endswith((".csv", ".csv.gz")) else r for r in args.runs]
    over = "runs" if args.over_runs else "cases"
    together = [tables] if args.over_runs else [[t] for t in tables]
    names = [", ".join(args.runs)] if args.over_runs else args.runs
    for name, part in zip(names, together, strict=True):
        if len(together) > 1:
            print(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said below
            found = summary(part, first=args.first, over=over)
        _print(found)
        for run_name in found.attrs["incomplete"]:
            print(f"not finished: {run_name}")
    return 0


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


def _cases(data: str, limit: int | None) -> list[EditCase]:
    if data in ("tiny", "facts"):
        return getattr(datasets, data)(limit=limit)  # type: ignore[no-any-return]
    return datasets.load_cases(data, limit=limit)


def _options(words: Sequence[str]) -> dict[str, Any]:
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise OptionError(f"--option {word!r}: write NAME=VALUE, such as layers=(5,).")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _print(table: pd.DataFrame) -> None:
    print(table.round(4).to_string(index=False))
