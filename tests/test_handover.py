"""Edited models in other people's tools; each test needs the tool and skips without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.model import ModelView

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture
def edited(tiny: ModelView) -> ModelView:
    case = wb.datasets.tiny(limit=1)[0]
    options = {"templates": ("{}",), "corpus": "identity", "steps": 10}
    tiny.push(wb.ROME(layers=(1,), **options).edit(tiny, case))
    return tiny


def ids_of(view: ModelView) -> torch.Tensor:
    return torch.tensor([view.tokenizer(wb.datasets.tiny(limit=1)[0].request.text)["input_ids"]])


@torch.no_grad()
def logits(view: ModelView) -> torch.Tensor:
    return view.model(ids_of(view)).logits


def test_transformer_lens(edited: ModelView, tmp_path: Path) -> None:
    bridge = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
    edited.save_pretrained(tmp_path)
    with torch.no_grad():
        found = bridge.boot_transformers(str(tmp_path), device="cpu")(ids_of(edited))
    assert torch.allclose(found, logits(edited), atol=1e-4)
    with edited.pristine():
        assert not torch.allclose(found, logits(edited), atol=1e-2)


def test_nnsight_sees_the_live_model(edited: ModelView) -> None:
    nnsight = pytest.importorskip("nnsight")
    model = nnsight.TransformersModel(
        edited.model, tokenizer=edited.tokenizer, task="text-generation"
    )
    memory = wb.GRACE.preset(edited, steps=5).edit(edited, wb.datasets.tiny(limit=1)[0])
    edited.push(memory)
    for _ in range(2):
        with model.trace(ids_of(edited)):
            found = model.lm_head.output.save()
        assert torch.equal(found, logits(edited))
        edited.pop()


def test_lm_evaluation_harness(edited: ModelView) -> None:
    hf = pytest.importorskip("lm_eval.models.huggingface")
    lm = hf.HFLM(pretrained=edited.model, tokenizer=edited.tokenizer, batch_size=1)
    assert torch.equal(lm._model_call(ids_of(edited)), logits(edited))
