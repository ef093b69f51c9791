"""``workbench train``: a learned editor for a model."""

from __future__ import annotations

import argparse

import pandas as pd

from workbench.cli.asked import options_of
from workbench.datasets import load_cases
from workbench.editors import EDITORS
from workbench.editors.learned.base import LearnedEditor
from workbench.editors.learned.files import locate
from workbench.editors.learned.lessons import Lessons
from workbench.editors.learned.tasks import make_lessons
from workbench.errors import OptionError, did_you_mean
from workbench.inspectors import training_curve
from workbench.model import ModelView
from workbench.pretrained import load

__all__ = ["train"]

#: Columns of a training that are printed.
SHOWN = ("step", "train_edit", "train_local", "edit", "local", "success", "drawdown")

#: Files of a task beside its data.
FILES = ("local", "validation", "rewordings")


def train(args: argparse.Namespace) -> int:
    cls = _learned(args.editor)
    view = load(args.model, device=args.device, dtype=args.dtype)
    editor = cls.train(
        view,
        _lessons(view, args),
        out=args.out,
        steps=args.steps,
        seed=args.seed,
        preset=args.preset,
        fresh=args.fresh,
        **options_of(args.option),
    )
    trained = editor.trained()
    print(training_curve(editor)[list(SHOWN)].to_string(index=False))
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
        files = {name: getattr(args, name) for name in FILES}
        return make_lessons(
            view, task, data=data, locality=args.locality, limit=args.limit, seed=args.seed, **files
        )
    for name in FILES:
        if getattr(args, name) is not None:
            raise OptionError(f"--{name} is for lessons of a task: say which with --task.")
    return Lessons.from_cases(load_cases(args.data, limit=args.limit), seed=args.seed)
