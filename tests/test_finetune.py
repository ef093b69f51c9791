"""Fine-tuning losses of encoders: their precision, and the objective they do not have."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import workbench as wb
from workbench.errors import OptionError
from workbench.model import ModelView


def request(view: ModelView) -> wb.EditRequest:
    return wb.EditRequest(prompt="Bo lives in", target_new=(*view.labels, "Rome")[0])


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_the_loss_of_a_float64_model_is_float64(make_view, family: str) -> None:
    view = make_view(family, torch.float64)
    asked = request(view)
    found = wb.FT(layers=(0,), steps=1).edit(view, asked).report["training"][0]["loss"]
    ids = torch.tensor([view.tokenizer(asked.text)["input_ids"]])
    target = view.tokenizer(text_target=asked.target_new)["input_ids"]
    label = torch.tensor([0] if view.labels else target)
    more = {} if view.labels else {"labels": label[None]}
    with torch.no_grad():
        logits = view.model(input_ids=ids, **more).logits.flatten(0, -2)
    assert found == pytest.approx(float(cross_entropy(logits, label)), abs=1e-12)


@pytest.mark.parametrize("family", ["bart", "bert"])
def test_encoders_have_no_last_token_of_the_prompt(make_view, family: str) -> None:
    view = make_view(family)
    with pytest.raises(OptionError, match="objective='prompt_last' reads .*use objective="):
        wb.FT(layers=(0,), objective="prompt_last").edit(view, request(view))
