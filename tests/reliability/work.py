"""Work of every kind on a small model, as functions; a new kind is a line in :data:`WORK`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from faults import ANNA, BO
from learned import LEARNED, SETTINGS, few_lessons, untrained
from test_bad_input import make
from test_learned import QUICK

import workbench as wb
from workbench.editors import EDITORS, Editor
from workbench.editors.learned.files import read_trained
from workbench.model import ModelView
from workbench.stats import second_moments

CASES = [wb.EditCase(request=r, case_id=i) for i, r in enumerate((BO, ANNA))]
TEXTS = [
    "Anna was born in Vienna and works as a painter. Bo lives in Oslo and plays the violin.",
    "The capital of France is Paris. The capital of Italy is Rome. Berlin is in Germany.",
    "In 1969 people walked on the moon; it took 8 days, 3 hours and 18 minutes.",
]


def prepared(view: ModelView) -> ModelView:
    """Two edits on the stack, so that there is something to lose."""
    for name in LEARNED:
        untrained(name, view)  # for the model as it came
    for i, request in enumerate((BO, ANNA)):
        if len(view.stack) <= i:
            view.push(make("FT").edit(view, replace(request, target_new="Oslo")))
    return view


def editor_of(name: str, view: ModelView) -> Editor:
    """A small editor of each kind."""
    cls: Any = EDITORS[name]
    return cls(weights=str(untrained(name, view))) if name in LEARNED else make(name)


def edit(name: str, view: ModelView) -> str:
    view.cache.pop("rewound", None)  # NSE keeps what it finished: it would do less next time
    return editor_of(name, view).edit(view, [BO, ANNA]).id


def pushed(name: str, view: ModelView) -> Any:
    """Push and take back; what fails changes nothing."""
    stack, edit = view.stack, make(name).edit(view, replace(BO, target_new="Berlin"))
    try:
        view.push(edit)
        return view.pop().id
    except BaseException:
        assert view.stack in (stack, (*stack, edit))
        restack(view, stack)
        raise


def dropped(view: ModelView, *, replay: bool = False) -> Any:
    """Take an entry out; what fails changes nothing. Afterwards the stack is built anew."""
    stack = view.stack
    try:
        view.replay(without=0) if replay else view.drop(0)
        return [e.id for e in view.stack]
    except BaseException:
        assert view.stack == stack
        raise
    finally:
        restack(view, stack)


def restack(view: ModelView, stack: Any) -> None:
    """The same edits on the bare model; a fault comes once, so the second try succeeds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            with suppress(torch.OutOfMemoryError, MemoryError):
                view.reset()
                for each in stack:
                    view.push(each)
                return


def statistics(view: ModelView) -> Any:
    moment = second_moments(view, [1], corpus=TEXTS * 3, n_tokens=64, cache=None, n_reservoir=4)[1]
    return moment.matrix.sum().item()


def shown(view: ModelView) -> Any:
    with view.at(1), view.pristine():
        return wb.score(view, CASES)["nll_target"].sum()


def trained(view: ModelView, folder: Path) -> Any:
    """A few steps of training, from wherever an earlier one in this folder got to."""
    path = folder / "mend.safetensors"
    mend: Any = EDITORS["MEND"]
    mend.train(view, few_lessons(view), out=path, steps=6, seed=0, **QUICK, **SETTINGS["MEND"])
    return {k: t.tolist() for k, t in read_trained(path)[0].tensors.items()}


#: What → work on a view that holds two edits; what it returns is the same every time.
WORK: dict[str, Callable[[ModelView], Any]] = {
    **{f"edit with {name}": partial(edit, name) for name in EDITORS},
    "push a change of weights and take it back": partial(pushed, "FT"),
    "push a memory and take it back": partial(pushed, "GRACE"),
    "push a hook layer and take it back": partial(pushed, "CoachHook"),
    "drop": dropped,
    "drop and compute the later ones again": partial(dropped, replay=True),
    "look at another moment": shown,
    "score": lambda v: wb.score(v, CASES)["nll_target"].sum(),
    "key statistics": statistics,
    "receipt": lambda v: wb.receipt(v, v.stack[-1], CASES).took,
    "trace": lambda v: wb.causal_trace(v, BO, samples=1)["prob_clean"].sum(),
    "next tokens": lambda v: wb.next_tokens(v, BO.text)["prob"].sum(),
}


def model_folder(make_model: Any, tokenizer: Any, folder: Path) -> Path:
    """A model as files."""
    make_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
