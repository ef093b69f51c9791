"""FT+KL, RMSprop and both matrices of an MLP."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from workbench.editors import keeping
from workbench.editors.finetune import Shift
from workbench.errors import OptionError
from workbench.model import ModelView

LOCAL = [
    wb.EditRequest(prompt="Berlin is in", target_new="Germany"),
    wb.EditRequest(prompt="The house is old", target_new="and nobody knows who built it"),
    wb.EditRequest(prompt="Bo lives in Oslo", target_new="and plays the violin"),
]


def asked(view: ModelView) -> wb.EditRequest:
    return wb.EditRequest(prompt="The capital of France is", target_new=(*view.labels, "Rome")[0])


def local(view: ModelView) -> list[wb.EditRequest]:
    return [dataclasses.replace(r, target_new="no") for r in LOCAL] if view.labels else LOCAL


def changes(edit: wb.Edit) -> dict[str, Tensor]:
    return {d.parameter: d.materialize(dtype=torch.float32) for d in edit.deltas}


OPTIONS: dict[str, Any] = {"layers": (1, 2), "steps": 5, "lr": 1e-2, "stop": "loss"}


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_without_weight_it_is_plain_fine_tuning(make_view, family: str) -> None:
    view = make_view(family)
    plain = changes(wb.FT(**OPTIONS).edit(view, asked(view)))
    free = changes(wb.FTKL(**OPTIONS, locality=0.0).edit(view, asked(view), local=local(view)))
    held = changes(wb.FTKL(**OPTIONS, locality=10.0).edit(view, asked(view), local=local(view)))
    for name, change in plain.items():
        assert torch.equal(free[name], change) and not torch.equal(held[name], change)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "bert"])
def test_the_loss_is_the_divergence_from_the_unedited_model(make_view, family: str) -> None:
    """One text, one known change: the number equals KL of two whole forward passes."""
    view = make_view(family)
    text = local(view)[1]
    editor = wb.FTKL(**{**OPTIONS, "layers": (1,)}, locality=3.0)
    name = view.weight_name(1)
    change = torch.randn(view.weight(1).shape, generator=torch.Generator().manual_seed(0))

    def whole() -> Tensor:
        tok = view.tokenizer
        with torch.no_grad():
            if view.kind == "decoder":
                ids = tok(f"{text.prompt} {text.target_new}")["input_ids"]
                return view.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            inputs = {"input_ids": torch.tensor([tok(text.prompt)["input_ids"]])}
            if not view.labels:
                inputs["labels"] = torch.tensor([tok(text_target=text.target_new)["input_ids"]])
            return view.model(**inputs).logits.flatten(0, -2).log_softmax(-1)

    before = whole()
    edit = wb.FT(layers=(1,), steps=1).edit(view, asked(view))
    given = dataclasses.replace(edit, deltas=(wb.Delta.dense(name, change),))
    with view.applied(given):
        after = whole()
    expected = 3.0 * (before.exp() * (before - after)).sum(-1).mean()

    shift = Shift({name: change.requires_grad_()})
    with keeping_hooks(view, shift):
        found = editor._beside(view, shift, iter([text]))
    assert found.item() == pytest.approx(float(expected), rel=1e-3) and found.item() > 1e-4
    (grad,) = torch.autograd.grad(found, change)
    assert float(grad.abs().max()) > 0 and not shift.quiet


def keeping_hooks(view: ModelView, shift: Shift) -> Any:
    from workbench.capabilities import hooks
    from workbench.editors.finetune import _shifted

    return hooks(_shifted(view, shift))


def test_it_moves_unrelated_text_less(tiny) -> None:
    cases = wb.datasets.tiny(limit=60)
    true = [wb.EditRequest(prompt=c.request.text, target_new=c.request.target_true) for c in cases]
    options = {"layers": (1,), "steps": 15, "lr": 2e-3, "stop": "loss"}
    moved = {}
    for weight in (0.0, 100.0):
        editor = wb.FTKL(**options, locality=weight, local_batch=4)
        edit = editor.edit(tiny, cases[0].request, local=true[1:30])
        before = wb.score(tiny, true[30:])["nll_target"].mean()
        with tiny.applied(edit):
            moved[weight] = wb.score(tiny, true[30:])["nll_target"].mean() - before
    assert moved[0.0] > 0.01 and moved[100.0] < moved[0.0] / 2


def test_every_step_reads_fresh_text(make_view, monkeypatch) -> None:
    view = make_view("llama")
    read: list[str] = []
    plain = keeping.reader

    def watch(view, texts, start):
        read.extend(r.prompt for r in texts)
        return plain(view, texts, start)

    monkeypatch.setattr(keeping, "reader", watch)
    wb.FTKL(**OPTIONS, local_batch=2).edit(view, asked(view), local=LOCAL)
    names = [r.prompt for r in LOCAL]
    assert read == (names * 4)[:10]
    read.clear()
    own = wb.EditRequest(prompt=names[0], target_new="Rome")
    wb.FTKL(**OPTIONS).edit(view, own, local=LOCAL)
    assert set(read) == set(names[1:])  # what is written is not unrelated
    with pytest.raises(OptionError, match="local has no text besides the requests"):
        wb.FTKL(**OPTIONS).edit(view, own, local=LOCAL[:1])


@pytest.mark.parametrize("name", ["tiny", "tiny-bert", "tiny-t5"])
def test_a_preset_brings_its_own_text(name: str) -> None:
    view = wb.load(name, device="cpu")
    editor = wb.FTKL.preset(view, steps=2, local_texts=3)
    assert editor.corpus == "tiny" and editor.edit(view, wb.datasets.tiny(limit=1)).deltas


def test_shipped_facts_are_text_for_encoders(make_view) -> None:
    view = make_view("bert")
    editor = wb.FTKL.preset(view, steps=2, local_texts=3)
    assert editor.corpus == "facts" and editor.edit(view, asked(view)).deltas


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "bert"])
def test_both_matrices_of_an_mlp(make_view, family: str) -> None:
    view = make_view(family)
    request = asked(view)
    editor = wb.FT(layers=(1, 2), steps=8, lr=1e-2, matrices="both", stop_loss=0.0)
    edit = editor.edit(view, request)
    names = [n for layer in (1, 2) for n in (view.up_name(layer), view.weight_name(layer))]
    assert [d.parameter for d in edit.deltas] == names
    assert all(c.abs().max() > 0 for c in changes(edit).values())
    with view.applied(edit):  # trained beside the weights, the same inside them
        loss = float(wb.score(view, request)["nll_target"].iloc[0])
    again = editor.with_options(steps=9).edit(view, request).report["training"][-1]["loss"]
    assert loss == pytest.approx(again, rel=1e-3, abs=1e-5)


def test_one_step_of_rmsprop(make_view) -> None:
    """RMSprop's first step is lr / sqrt(1 - alpha) in every direction; Adam's is lr."""
    view = make_view("llama")
    for optimizer, size in (("adam", 1.0), ("rmsprop", 10.0)):
        editor = wb.FT(layers=(3,), steps=1, lr=1e-3, optimizer=optimizer)
        (change,) = changes(editor.edit(view, asked(view))).values()
        assert float(change.abs().median()) == pytest.approx(size * 1e-3, rel=0.02)


def test_options_that_do_not_fit(make_view) -> None:
    view = make_view("llama")
    for editor, message in (
        (wb.FTKL(**OPTIONS, locality=-1.0), "locality=-1.0 must not be negative"),
        (wb.FTKL(**OPTIONS, local_batch=0), "local_batch=0"),
        (wb.FT(layers=(1,), optimizer="rms"), "optimizer='rms' is unknown"),
        (wb.FT(layers=(1,), matrices="up"), "matrices='up' is unknown"),
        (wb.FTEWC(layers=(1,), matrices="both"), "FTEWC: matrices='both'"),
    ):
        with pytest.raises(OptionError, match=message):
            editor.edit(view, asked(view))


def test_published_numbers() -> None:
    row = keeping.PRESETS["repo"]["distilgpt2"].options
    assert row["layers"] == (3, 4, 5) and row["matrices"] == "both" and row["steps"] == 100
    assert row["optimizer"] == "rmsprop" and row["lr"] == 1e-6 and row["stop"] == "correct"
    assert row["locality"] == pytest.approx(100)  # 1e-2 beside the divergence
    assert keeping.PRESETS["repo"]["gpt-j-6b"].options["locality"] == pytest.approx(1000)
