"""The stack when something goes wrong: refusals, Ctrl-C anywhere, a second writer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_model import make_edit, params, same, wrap

from workbench.edits import Delta, WeightEdit
from workbench.errors import BusyError, EditMismatchError, NumericalError, OptionError
from workbench.model import ModelView


def test_refusals_change_nothing(make_view) -> None:
    view, other = make_view("llama", torch.float16), make_view("llama", torch.float16, seed=1)
    name, shape = view.weight_name(1), (view.d_model, view.d_mlp)
    good = wrap(view, Delta.dense(view.weight_name(0), torch.full(shape, 0.1)))
    view.push(good)
    before = params(view)
    fine = Delta.dense(view.weight_name(2), torch.ones(shape))  # is not written on its own either
    out = shape[0] * shape[1]  # one past the last position
    zero, nan = torch.zeros(shape), torch.full(shape, float("nan"))
    cases: list[tuple[WeightEdit, type[Exception], str]] = [
        (wrap(other, fine, n=1), EditMismatchError, "base model"),
        (wrap(view, fine, Delta.dense(name, zero.T), n=1), EditMismatchError, "shape"),
        (wrap(view, fine, Delta.dense("model.nope", zero), n=1), EditMismatchError, "nope"),
        (wrap(view, fine, Delta.sparse(name, shape, torch.tensor([out]), torch.ones(1)), n=1),
         EditMismatchError, f"position {out} is outside"),
        (wrap(view, fine, Delta.sparse(name, shape, torch.tensor([-1]), torch.ones(1)), n=1),
         EditMismatchError, "position -1 is outside"),
        (wrap(view, fine, Delta.dense(name, nan), n=1), NumericalError, "NaN"),
        (wrap(view, fine, Delta.dense(name, zero + 1e5), n=1), NumericalError, "float16"),
        (wrap(view, fine, Delta.low_rank(name, zero[:, :1] + 1e5, zero[:1].T + 1e5), n=1),
         NumericalError, "nothing was changed"),
    ]  # fmt: skip
    for edit, error, words in cases:
        edit = replace(edit, parents=(good.id,))
        for action in (lambda e: view.push(e), lambda e: view.applied(e).__enter__()):
            with pytest.raises(error, match=words):
                action(edit)
            assert same(view, before) and view.stack == (good,)
    with pytest.raises(OptionError, match="list"):
        view.push([good])
    with pytest.warns(UserWarning, match="is on the stack already"):
        view.push(good)
    assert same(view, before) and view.stack == (good,)
    with pytest.warns(UserWarning, match="same request"):
        view.push(wrap(view, fine))
    with pytest.warns(UserWarning, match="a stack of 1 edits"):
        view.push(wrap(view, fine, n=7, parents=("else",)))
    assert len(view.stack) == 3


def test_warnings_name_the_line_of_the_caller(make_view) -> None:
    view = make_view("llama")
    first = make_edit(view, 0)
    view.push(first)
    other = replace(first, config={"lr": 1.0}, parents=("else",))
    with pytest.warns(UserWarning) as told:
        view.push(first)
        view.push(other)
    sentences = [str(w.message) for w in told]
    words = ("stack already", "a stack of 1 edits", "same request")
    assert len(sentences) == 3
    assert all(word in text for word, text in zip(words, sentences, strict=True))
    assert {w.filename for w in told} == {__file__}


def test_bounds(make_view) -> None:
    view = make_view("llama")
    with pytest.raises(OptionError, match="stack is empty"):
        view.pop()
    view.push(make_edit(view, 0))
    before = params(view)
    for n in (-1, 2):
        with pytest.raises(OptionError, match=f"n={n}"), view.at(n):
            pass
    for index in (-2, 1):
        with pytest.raises(OptionError, match=f"entry {index}"):
            view.drop(index)
        with pytest.raises(OptionError, match=f"entry {index}"):
            view.replay(without=index)
    assert same(view, before)


@pytest.mark.parametrize("n_edits", [0, 2])
def test_a_model_that_was_converted_elsewhere_is_refused(make_view, n_edits: int) -> None:
    view = make_view("gpt2", torch.bfloat16)
    for i in range(n_edits):
        view.push(make_edit(view, i))
    view.model.double()
    before, stack = params(view), view.stack
    for what in ACTIONS if n_edits else ("push", "pop", "reset", "applied"):
        with pytest.raises(EditMismatchError, match="outside the view .*float64.*load"):
            ACTIONS[what](view)
        assert same(view, before) and view.stack == stack and not view._busy
    view.model.bfloat16()  # the values may be rounded: touched parameters are not ours any more
    if n_edits:
        with pytest.raises(EditMismatchError, match="outside the view"):
            view.pop()
        assert view.stack == stack
    else:  # nothing was touched: the model is what it was
        view.push(make_edit(view, 0))


class Interrupting(dict):
    """Ctrl-C at the n-th look-up of a parameter."""

    left = 0

    def __getitem__(self, name: str) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().__getitem__(name)


def _show(context: Any) -> None:
    with context:
        pass


ACTIONS: dict[str, Callable[[ModelView], Any]] = {
    "push": lambda v: v.push(wrap(v, *(d for i in (1, 3) for d in make_edit(v, i).deltas), n=9)),
    "pop": lambda v: v.pop(),
    "reset": lambda v: v.reset(),
    "drop": lambda v: v.drop(0),
    "at": lambda v: _show(v.at(1)),
    "applied": lambda v: _show(v.applied(make_edit(v, 3))),
}


@pytest.mark.parametrize("what", ACTIONS)
def test_interruption_anywhere_changes_nothing(make_view, what: str) -> None:
    view = make_view("gpt2")
    for i in range(3):
        view.push(make_edit(view, i))
    before, stack = params(view), view.stack
    with view.at(2):
        two = params(view)
    plain = view._weights.parameters
    for n in range(1, 200):
        view._weights.parameters = Interrupting(plain)
        view._weights.parameters.left = n
        try:
            ACTIONS[what](view)
        except KeyboardInterrupt:
            view._weights.parameters = plain
            assert same(view, before) and view.stack == stack and not view._busy
            with view.at(2):
                assert same(view, two)
        else:
            break
    assert n > 2
    view._weights.parameters = plain
    view.reset()
    assert same(view, params(make_view("gpt2")))


def test_a_second_writer_is_told(make_view) -> None:
    view = make_view("llama")
    edit = make_edit(view, 0)
    told: list[str] = []

    def second(action: Callable[[ModelView], Any]) -> None:
        def run() -> None:
            try:
                action(view)
            except BusyError as err:
                told.append(str(err))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    with view.writing("ROME edit of 3 facts"):
        second(lambda v: v.push(edit))
        view.push(edit)  # the holder itself may go on
        for name in ("pop", "reset", "drop", "at", "applied"):
            second(ACTIONS[name])
        view.say("streaming edit 12/20")
        second(lambda v: v.pop())
    assert len(told) == 7 and view.stack == (edit,)
    assert all("busy: ROME edit of 3 facts" in text for text in told[:6])
    assert "busy: streaming edit 12/20" in told[6]
    second(lambda v: v.pop())
    assert len(told) == 7 and view.stack == ()


def test_lasting_changes_inside_a_temporary_view_are_refused(make_view) -> None:
    view = make_view("gpt2")
    edit = wb_edit(view)
    with view.pristine(), pytest.raises(BusyError, match="leave the block first"):
        view.push(edit)
    view.push(edit)
    with view.at(0), pytest.raises(BusyError, match="pop inside"):
        view.pop()
    assert view.stack == (edit,)


def wb_edit(view):
    import torch

    from workbench.edits import Delta, WeightEdit
    from workbench.facts import EditRequest

    name = view.weight_name(1)
    left, right = torch.ones(view.d_model, 1), torch.ones(view.d_mlp, 1)
    request = EditRequest(prompt="{} is", subject="Bo", target_new="here")
    return WeightEdit(
        (Delta.low_rank(name, left, right),), (request,), "ROME", {}, view.fingerprint
    )
