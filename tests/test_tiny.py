"""The tiny world shows what editing shows on large models: bands with two sides.

What it does not show is said in ``data/README.md``: ROME's right layer is the very first, and it
costs the subject's other facts more than fine-tuning does.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import workbench as wb
from workbench.metrics import score, summary
from workbench.places import shipped

CASES = 24


@pytest.fixture(scope="module")
def view() -> wb.ModelView:
    if not (shipped("tiny") / "model" / "config.json").is_file():
        pytest.skip("data/tiny/model is not in this checkout")
    return wb.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cases() -> list[wb.EditCase]:
    return list(wb.datasets.tiny(limit=CASES))


def singles(view: wb.ModelView, editor: Any, cases: list[wb.EditCase]) -> pd.DataFrame:
    tables = []
    each = getattr(editor, "edit_each", None)
    edits = each(view, cases) if each else [editor.edit(view, c) for c in cases]
    for case, edit in zip(cases, edits, strict=True):
        with view.applied(edit):
            tables.append(score(view, [case]))
    return summary(pd.concat(tables), resamples=1)


def test_it_is_small_and_can_do_everything(view: wb.ModelView) -> None:
    size = sum(f.stat().st_size for f in (shipped("tiny") / "model").iterdir())
    assert size < 3_000_000
    assert view.kind == "decoder" and all(
        getattr(view.capabilities, name) for name in ("linear", "additive", "readout")
    )


def test_it_knows_its_facts(view: wb.ModelView) -> None:
    everything = wb.datasets.tiny()
    known = [
        wb.Probe(prompt=c.request.text, target=c.request.target_true, foil=c.request.target_new)
        for c in everything
    ]
    asked = [
        wb.EditCase(request=c.request, probes=(p,), case_id=c.case_id)
        for c, p in zip(everything, known, strict=True)
    ]
    assert len(everything) >= 200
    assert score(view, asked)["exact"].mean() >= 0.95


def test_rome_at_the_right_layer(view: wb.ModelView, cases: list[wb.EditCase]) -> None:
    table = singles(view, wb.ROME.preset(view), cases)
    assert table.loc["efficacy", "exact"] >= 0.9
    assert table.loc["paraphrase", "success"] >= 0.7
    assert table.loc["neighborhood", "success"] >= 0.88


def test_rome_at_the_last_layer_fails(view: wb.ModelView, cases: list[wb.EditCase]) -> None:
    table = singles(view, wb.ROME.preset(view, layers=(view.n_layers - 1,)), cases)
    assert table.loc["efficacy", "success"] <= 0.2
    assert table.loc["neighborhood", "success"] >= 0.97


def test_careless_editors_harm_neighbors(view: wb.ModelView, cases: list[wb.EditCase]) -> None:
    careful = singles(view, wb.ROME.preset(view), cases).loc["neighborhood", "success"]
    careless = {
        "no statistics": wb.ROME.preset(view, corpus="identity", clamp=4.0),
        "fine-tuning": wb.FT(layers=(1,), lr=1e-3, steps=25),
    }
    for name, editor in careless.items():
        harmed = singles(view, editor, cases).loc["neighborhood", "success"]
        assert harmed <= careful - 0.15, name


def test_too_small_a_lambda_harms_neighbors(view: wb.ModelView) -> None:
    cases = list(wb.datasets.tiny(limit=50))
    kept = {}
    for lam in (1.0, 100.0):
        edit = wb.MEMIT.preset(view, lam=lam).edit(view, cases)
        with view.applied(edit):
            kept[lam] = summary(score(view, cases), resamples=1)
    assert kept[100.0].loc["efficacy", "success"] >= 0.8
    worse, better = (kept[x].loc["neighborhood", "exact"] for x in (1.0, 100.0))
    assert worse <= better - 0.15


def test_a_subject_keeps_some_of_its_other_facts(
    view: wb.ModelView, cases: list[wb.EditCase]
) -> None:
    table = singles(view, wb.ROME.preset(view, clamp=1.0), cases)
    rough = singles(view, wb.FT(layers=(1,), lr=5e-3, steps=25), cases)
    assert table.loc["attribute", "exact"] >= 0.6
    assert rough.loc["attribute", "exact"] <= table.loc["attribute", "exact"] - 0.1


def test_calibration_finds_the_layer(view: wb.ModelView, cases: list[wb.EditCase]) -> None:
    found = wb.ROME.calibrate(view, cases[:8], layers=(0, 2, 4))
    assert found.editor.layers == (0,)
    assert set(found.table.columns) >= {"layer", "efficacy", "paraphrase", "neighborhood", "score"}
    assert found.table["chosen"].sum() == 1
    assert found.figure.layout.meta["alt"]
    lam = wb.MEMIT.calibrate(view, cases[:8], layers=(0,), closure=0.5).editor.lam
    assert lam > 0
    assert view.stack == ()
