"""One real test per editor on the default model: facts it knows, moved, measured, undone."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.metrics import reference, score, summary

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def cases() -> list[wb.EditCase]:
    known = wb.datasets.facts(known_to="smollm2-135m")
    return [known[i] for i in range(0, 120, 20)]


def parameters(view: wb.ModelView) -> list[torch.Tensor]:
    return [p.detach().clone() for p in view.model.parameters()]


def test_rome(smollm2: wb.ModelView, cases: list[wb.EditCase]) -> None:
    before, unedited = parameters(smollm2), reference(smollm2, cases)
    tables = []
    for case, edit in zip(cases, wb.ROME.preset(smollm2).edit_each(smollm2, cases), strict=True):
        smollm2.push(edit)
        tables.append(score(smollm2, [case], reference=unedited, generate=True))
        smollm2.pop()
    table = summary(pd.concat(tables), resamples=1)
    assert table.loc["efficacy", "exact"] >= 0.8
    assert table.loc["efficacy", "generated_match"] >= 0.8
    assert table.loc["paraphrase", "success"] >= 0.8
    kept = summary(score(smollm2, cases), resamples=1).loc["neighborhood", "success"]
    assert table.loc["neighborhood", "success"] >= kept - 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, smollm2.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["MEMIT", "EMMET"])
def test_batch_editors(smollm2: wb.ModelView, cases: list[wb.EditCase], name: str) -> None:
    edit = wb.EDITORS[name].preset(smollm2).edit(smollm2, cases)
    with smollm2.applied(edit):
        table = summary(score(smollm2, cases), resamples=1)
    assert table.loc["efficacy", "exact"] >= 0.8
    assert table.loc["paraphrase", "success"] >= 0.8
    assert table.loc["neighborhood", "success"] >= 0.7


def test_fine_tuning(smollm2: wb.ModelView, cases: list[wb.EditCase]) -> None:
    edit = wb.FT(layers=(8,), lr=1e-3).edit(smollm2, cases[:3])
    with smollm2.applied(edit):
        table = score(smollm2, cases[:3], kinds=["efficacy"])
    assert table["exact"].mean() >= 0.6
