"""What GRACE is compared with: fine-tuning that remembers, Defer and the soft memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.editors.continual import fisher, written_before
from workbench.editors.finetune import loss_function
from workbench.errors import OptionError
from workbench.model import ModelView
from workbench.networks import Deferral, SoftMemory

A = wb.EditRequest(prompt="The mother tongue of {} is", subject="Danielle Darrieux",
                   target_new="English")  # fmt: skip
B = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
FAR = ["In 1969 people walked on the", "I saw it. The"]


def change(edit: wb.Edit) -> torch.Tensor:
    assert isinstance(edit, wb.WeightEdit)
    return edit.deltas[0].materialize(dtype=torch.float64)


def nll(view: ModelView, request: wb.EditRequest) -> float:
    return float(wb.score(view, request)["nll_target"].iloc[0])


@pytest.mark.parametrize("name", ["tiny", "tiny-bert", "tiny-t5"])
def test_nothing_is_trained_where_the_answer_is_right(name: str) -> None:
    view = wb.load(name, device="cpu")
    case = wb.datasets.tiny(limit=1)[0].request
    known = dataclasses.replace(case, target_new=case.target_true, target_true=None)
    for cls in (wb.FT, wb.FTEWC, wb.FTRetrain):
        edit = cls(layers=(1,), steps=5, lr=1e-2, stop="correct").edit(view, known)
        assert not change(edit).any() and len(edit.report["training"]) == 1
    assert change(wb.FT(layers=(1,), steps=1, lr=1e-2, stop_loss=0.0).edit(view, known)).any()


def test_training_ends_when_every_answer_is_right(make_view) -> None:
    view = make_view("llama")
    edit = wb.FT(layers=(1,), steps=100, lr=1e-2, stop="correct").edit(view, [A, B])
    assert 1 < len(edit.report["training"]) < 100
    with view.applied(edit):
        assert wb.score(view, [A, B])["exact"].all()


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_fisher_is_the_mean_of_squared_gradients(make_view, family: str) -> None:
    view = make_view(family)
    requests = [A, B]
    if view.labels:
        requests = [dataclasses.replace(r, target_new="yes") for r in requests]
    found = fisher(view, requests, (1, 2))
    for layer in (1, 2):
        weight = view.value_module(layer).weight
        squares = []
        for request in requests:
            loss, _ = loss_function(view, [request], (1, 2), "target_new")()
            (grad,) = torch.autograd.grad(loss, weight)
            squares.append((grad.T if family == "gpt2" else grad).square())
        mean = sum(squares) / 2
        assert float((found[layer] - mean).norm() / mean.norm()) < 1e-3


def test_ewc_holds_what_earlier_facts_need(make_view) -> None:
    view = make_view("llama")
    options: dict[str, Any] = {"layers": (1,), "steps": 6, "lr": 1e-2, "stop": "loss"}
    free = change(wb.FT(**options).edit(view, B))
    assert torch.equal(change(wb.FTEWC(**options, penalty=0.0).edit(view, B)), free)
    view.push(wb.FTEWC(**options, penalty=1e4).edit(view, A))
    important = fisher(view, [A, B], (1,))[1]

    def cost(penalty: float) -> float:
        moved = change(wb.FTEWC(**options, penalty=penalty).edit(view, B))
        return float((important.double() * moved.square()).sum())

    assert cost(1e6) < 0.5 * cost(0.0)
    assert written_before(view) == [A]


def test_retraining_goes_over_the_history(make_view) -> None:
    view = make_view("llama")
    third = dataclasses.replace(B, subject="Anna", target_new="Oslo")
    make = wb.FTRetrain(layers=(1,), steps=40, lr=1e-2, every=2, epochs=20)
    plain = make.with_options(every=1000)
    assert make.edit(view, A).report["retraining"] == []
    view.push(make.edit(view, [A, B]))
    edit = make.edit(view, third)
    assert len(edit.report["retraining"]) > 0
    other = plain.edit(view, third)
    assert other.report["retraining"] == []
    view.push(edit)
    assert make.edit(view, A).report["retraining"] == []  # 3 facts: none is due until 4
    again = dataclasses.replace(A, target_new="Spanish")
    view.push(make.edit(view, again))
    assert written_before(view) == [B, third, again]


def test_defer_is_the_model_until_its_first_edit_and_then_its_own(tiny) -> None:
    first, second, third = (c.request for c in wb.datasets.tiny(limit=3))
    bare = nll(tiny, third)
    defer = wb.Defer.preset(tiny)
    edit = defer.edit(tiny, first)
    assert edit.report["gates"][0] >= 0.5
    tiny.push(edit)
    assert bool(wb.score(tiny, first)["exact"].iloc[0])
    assert tiny.memory(tiny.weight_name(4), Deferral) is not None
    again = defer.edit(tiny, second)
    fresh = defer.with_options(seed=1).edit(tiny, second)
    assert fresh.report == again.report  # it goes on from the first edit, not from its seed
    tiny.push(again)
    assert bool(wb.score(tiny, second)["exact"].iloc[0])
    tiny.reset()
    assert nll(tiny, third) == bare


def test_the_soft_memory_answers_every_text(make_view) -> None:
    view = make_view("llama")
    network = wb.MemoryNetwork(layers=(1,), steps=40, lr=0.05, slots=8)
    edit = network.edit(view, A)
    assert network.edit(view, A).id == edit.id
    assert network.with_options(seed=1).edit(view, A).id != edit.id
    row = dataclasses.replace(A, prompt=FAR[0], subject=None)
    before, other = nll(view, A), nll(view, row)
    view.push(edit)
    assert nll(view, A) < before and nll(view, row) != other
    assert view.memory(view.weight_name(1), SoftMemory) is not None
    with pytest.raises(OptionError, match="slots=0"):
        network.with_options(slots=0).edit(view, A)


def test_options_out_of_range(make_view) -> None:
    view = make_view("llama")
    for editor, message in (
        (wb.FTEWC(layers=(1,), penalty=-1.0), "penalty=-1"),
        (wb.FTRetrain(layers=(1,), every=0), "every=0"),
        (wb.FT(layers=(1,), stop="corect"), "Did you mean 'correct'"),
    ):
        with pytest.raises(OptionError, match=message):
            editor.edit(view, A)
