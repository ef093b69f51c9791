"""Edits as PEFT LoRA adapters."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

import workbench as wb
from workbench.errors import EditMismatchError, OptionError

REQUEST = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
OPTIONS = {"templates": ("{}",), "corpus": "identity", "steps": 6}


def edits_of(view: wb.ModelView) -> list[wb.Edit]:
    return [
        wb.ROME(layers=(1,), **OPTIONS).edit(view, REQUEST),
        wb.MEMIT(layers=(1, 2), lam=1.0, **OPTIONS).edit(view, REQUEST),
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_factors_are_the_update(make_view, tmp_path, family: str) -> None:
    view = make_view(family)
    edits = edits_of(view)
    folder = wb.export_peft(edits, view, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is (family == "gpt2")
    with view.pristine():
        before = view.weight(1).clone()
    with view.applied(*edits):
        change = view.weight(1) - before
    module = view.weight_name(1).removesuffix(".weight")
    a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
    assert b.shape[1] == config["rank_pattern"][module] == 2
    assert torch.allclose(b @ a, change, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own use of transformers
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peft_alone_loads_it(make_view, make_model, tokenizer, tmp_path, family: str) -> None:
    peft = pytest.importorskip("peft")
    view = make_view(family)
    edits = edits_of(view)
    folder = wb.export_peft(edits, view, tmp_path / "adapter")
    ids = torch.tensor([tokenizer("Bo lives in Oslo")["input_ids"]])
    with torch.no_grad(), view.applied(*edits):
        edited = view.model(ids).logits
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(make_model(family), folder)(ids).logits
    assert torch.allclose(adapted, edited, atol=1e-4)


def test_refusals(make_view, tmp_path) -> None:
    view = make_view("gpt2")
    dense = wb.FT(layers=(1,), steps=1).edit(view, REQUEST)
    with pytest.raises(OptionError, match="Give rank=.*save_pretrained"):
        wb.export_peft(dense, view, tmp_path)
    with pytest.raises(OptionError, match="rank=0"):
        wb.export_peft(dense, view, tmp_path, rank=0)
    with pytest.raises(EditMismatchError):
        wb.export_peft(dense, make_view("llama"), tmp_path)
    beside = wb.GRACE.preset(view, steps=2).edit(view, REQUEST)
    with pytest.raises(OptionError, match="codebook.*decides text by text.*always acts"):
        wb.export_peft([dense, beside], view, tmp_path, rank=2)
    bias = wb.Delta.dense("transformer.h.1.mlp.c_proj.bias", torch.ones(32))
    edit = wb.WeightEdit((bias,), (), "x", {}, view.fingerprint)
    with pytest.raises(OptionError, match="weights of linear modules only"):
        wb.export_peft(edit, view, tmp_path, rank=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_dense_change_is_cut_and_the_error_stated(make_view, tmp_path, family: str) -> None:
    view = make_view(family)
    dense, low = wb.FT(layers=(1,), steps=3).edit(view, REQUEST), edits_of(view)[0]
    module = view.weight_name(1).removesuffix(".weight")
    whole = dense.deltas[0].materialize(dtype=torch.float64)
    for rank in (2, 32):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            folder = wb.export_peft([low, dense], view, tmp_path / str(rank), rank=rank)
        tensors = load_file(folder / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].double() for x in "AB")
        total = whole + low.deltas[0].materialize(dtype=torch.float64)
        error = float((b @ a - total).norm() / total.norm())
        stated = json.loads((folder / "workbench.json").read_text())["modules"][module]
        assert stated["rank"] == a.shape[0] == rank + 1
        assert stated["error"] == pytest.approx(error, rel=1e-3, abs=1e-6)
        best = torch.linalg.svdvals(whole)[rank:].square().sum().sqrt() / total.norm()
        assert error == pytest.approx(float(best), rel=1e-3, abs=1e-6)
        assert [
            f"leaves out {stated['error']:.2g} of the change" in str(w.message) for w in seen
        ] == ([True] if rank == 2 else [])


def test_the_edited_model_is_plain_transformers(make_view, tokenizer, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    view = make_view("llama")
    view.push(edits_of(view)[0])
    view.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("Bo lives in Oslo")["input_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, view.model(ids).logits, atol=1e-6)
