"""Editors side by side as a recorded study."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

import workbench as wb
from workbench.errors import DataError
from workbench.studies.comparing import EXTRA, TEXTS, peak_memory

ONLY = ["FTL", "MEMIT", "GRACE"]


@pytest.fixture(scope="module")
def study():
    return wb.study("compare_editors", model="tiny", edits=3)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    wb.run_comparison(study, out=out, only=ONLY, max_new_tokens=8)
    return out


def test_it_is_the_comparison_of_the_same_editors_and_more(study, folder):
    found = wb.recorded_comparison(folder, study=study)
    view = wb.load("tiny")
    editors = {name: wb.EDITORS[name].preset(view) for name in ONLY}
    kinds = ("efficacy", "paraphrase", "neighborhood")
    plain = wb.compare(view, editors, wb.datasets.tiny(limit=3), kinds=kinds, generate=True)
    same = [c for c in plain.summary if c not in ("seconds", "problem", "file_bytes")]
    pd.testing.assert_frame_equal(
        found.summary[same], plain.summary[same], check_dtype=False, atol=1e-6
    )
    for table in (found.summary, found.before):
        assert {"upstream", "perplexity_ratio", "fluency", "consistency"} <= set(table)
    assert found.before["upstream"].tolist() == found.before["perplexity_ratio"].tolist() == [1.0]
    grace, memit = (found.summary.set_index("editor").loc[n] for n in ("GRACE", "MEMIT"))
    assert grace["upstream"] == 1.0 >= memit["upstream"] and memit["perplexity_ratio"] != 1.0
    assert memit["fluency"] > 0 and (found.summary["peak_mib"] > 100).all()
    assert set(EXTRA) - {"consistency"} <= set(found.summary.dropna(axis=1, how="all"))


def test_it_is_read_again_and_not_run_twice(study, folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.*")}
    again = wb.run_comparison(study, out=folder, only=ONLY)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.*")} == before
    assert again.summary["editor"].tolist() == ONLY
    assert again.before["editor"].tolist() == ["no edit"] and wb.plot_comparison(again).data
    more = wb.run_comparison(study, out=folder, only=["FT"], texts=0)
    assert more.summary["editor"].tolist() == ["FT", *ONLY]  # as the study orders them
    assert math.isnan(more.summary["fluency"][0])


def test_a_record_holds_no_texts_and_its_configuration(folder):
    grid = pd.read_csv(folder / "memit" / "grid.csv.gz")
    assert set(TEXTS).isdisjoint(grid) and set(grid["editor"]) == {"MEMIT"}
    config = json.loads((folder / "memit" / "run.json").read_text())
    assert config["case_ids"] == [c.case_id for c in wb.datasets.tiny(limit=3)]
    assert config["editor_config"]["layers"] == [0] and config["environment"]["device"] == "cpu"


def test_an_editor_that_refuses_is_a_row(tmp_path):
    study = wb.study("compare_editors", model="tiny", edits=3)
    changed = study.only(["ROME"]).trials[0]
    bad = study.only(["ROME"]).changed(edits=2)
    object.__setattr__(changed, "options", {"layers": (99,)})
    found = wb.run_comparison(bad, out=tmp_path, texts=0)
    assert "99" in found.summary["problem"][0] and math.isnan(found.summary["efficacy"][0])


def test_nothing_recorded_is_said(tmp_path):
    with pytest.raises(DataError, match="holds no comparison: run it"):
        wb.recorded_comparison(tmp_path)


def test_a_peak_is_that_of_the_block():
    view = wb.load("tiny")
    held = bytearray(200 * 2**20)
    del held
    with peak_memory(view) as small:
        pass
    with peak_memory(view) as large:
        held = bytearray(b"x") * (100 * 2**20)
    if math.isnan(small["peak_mib"]):
        pytest.skip("this system does not forget an earlier peak")
    assert large["peak_mib"] - small["peak_mib"] > 90 and len(held)
