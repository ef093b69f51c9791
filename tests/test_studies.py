"""Studies: one definition for notebook, script and test; their records; the published numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

import workbench as wb
from workbench.citations import CITATIONS
from workbench.errors import DataError, OptionError
from workbench.studies import STUDIES, facts_of
from workbench.studies.running import editor_of

SMALL = {"model": "tiny", "edits": 6, "batch": 3}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return wb.run_study(wb.study("nse_sequential", **SMALL), out=out, only=["MEMIT", "FT"])


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("setting", ["default", "paper"])
def test_every_study_names_editors_papers_and_loaders_that_exist(name, setting):
    study = wb.study(name, setting)
    assert (study.name, study.setting) == (name, setting)
    assert {t.editor for t in study.trials} <= set(wb.EDITORS)
    assert set(study.papers) <= set(CITATIONS) and hasattr(wb.datasets, study.dataset)
    slugs = [t.slug for t in study.trials]
    assert len(set(slugs)) == len(slugs) == len(study.table())
    assert bool(study.folder) == (setting == "default")


def test_another_model_or_number_has_no_record_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    study = wb.study("nse_sequential")
    assert wb.study("nse_sequential", model=study.model, edits=study.edits) == study
    other = wb.study("nse_sequential", **SMALL)
    assert other.path.is_relative_to(tmp_path) and not other.folder
    with pytest.raises(DataError, match="holds no finished trial: run the study"):
        wb.recorded(other)


def test_wrong_names_and_numbers_are_refused():
    with pytest.raises(OptionError, match="Did you mean 'nse_sequential'"):
        wb.study("nse_sequental")
    with pytest.raises(OptionError, match="choose 'default' or 'paper'"):
        wb.study("nse_sequential", "papers")
    with pytest.raises(OptionError, match="edits=0: it must be"):
        wb.study("nse_sequential", edits=0)
    with pytest.raises(OptionError, match="no trial is called 'nse'"):
        wb.study("nse_sequential").only(["nse"])


def test_facts_are_enough_and_originals_come_first(tmp_path):
    rows = [
        {
            "case_id": i,
            "original": i != 0,
            "requested_rewrite": {
                "prompt": "{} lives in",
                "subject": f"Person {i}",
                "relation_id": "P1",
                "target_new": {"str": "Rome"},
                "target_true": {"str": "Paris"},
            },
            "paraphrase_prompts": [],
            "neighborhood_prompts": [],
        }
        for i in range(3)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    study = wb.study("nse_sequential", edits=3, batch=1)
    assert [c.case_id for c in facts_of(study, path)] == [1, 2, 0]
    with pytest.raises(DataError, match="wants 4 facts and .* has 3"):
        facts_of(replace(study, edits=4), path)


def test_a_study_runs_records_and_is_not_run_twice(record):
    table = record.table().set_index("run")
    assert list(table.index) == ["unedited", "MEMIT", "FT"]
    early = record.table(at=3)
    assert early["run"].tolist() == ["MEMIT", "FT"] and set(early["facts"]) == {3}
    assert list(table["facts"]) == [6, 6, 6] and record.table(at=2).empty
    assert table.loc["MEMIT", "efficacy exact"] == 100 > table.loc["unedited", "efficacy exact"]
    assert list(record.runs["facts"]) == [6, 6] and list(record.runs["at once"]) == [3, 3]
    assert {"target", "foil"}.isdisjoint(record.rows)  # no texts
    before = {p: p.stat().st_mtime_ns for p in record.path.glob("*/*")}
    again = wb.run_study(wb.study("nse_sequential", **SMALL), out=record.path, only=["MEMIT", "FT"])
    assert {p: p.stat().st_mtime_ns for p in record.path.glob("*/*")} == before
    pd.testing.assert_frame_equal(again.table(), record.table())


def test_a_record_equals_the_stream_it_was_made_of(record, tmp_path):
    view = wb.load("tiny")
    cases = wb.datasets.tiny(limit=6)
    kinds = ("efficacy", "paraphrase", "neighborhood")
    rows = wb.stream(
        tmp_path / "run", view, wb.MEMIT.preset(view), cases, batch_size=3, kinds=kinds
    )
    mine = record.rows[(record.rows["run"] == "MEMIT") & (record.rows["step"] == 6)]
    theirs = rows[rows["step"] == 6]
    for column in ("case_id", "probe", "exact", "success"):
        assert mine[column].tolist() == theirs[column].tolist()
    assert mine["nll_target"].to_numpy() == pytest.approx(theirs["nll_target"], abs=6e-5)


def test_edit_retention_counts_only_what_was_learned(record):
    rows = record.rows[(record.rows["run"] == "MEMIT") & (record.rows["kind"] == "efficacy")]
    rows = rows[rows["step"].isin([3, 6])].copy()
    first = rows["case_id"].iloc[0]
    was = (rows["case_id"] == first) & (rows["step"] == 3)
    rows.loc[was, "exact"] = False  # never learned: neither kept nor lost
    second = rows["case_id"].unique()[1]
    rows.loc[(rows["case_id"] == second) & (rows["step"] == 6), "exact"] = False  # lost
    changed = replace(record.only("MEMIT"), rows=rows)
    assert changed.table()["edit retention"].iloc[-1] == pytest.approx(100 * 4 / 5)


def test_parts_of_a_record(record):
    assert record.only("FT").runs["run"].tolist() == ["FT"]
    assert set(record.only("FT").rows["run"]) == {"FT"}
    with pytest.raises(DataError, match="NSE is not recorded"):
        record.only("NSE")
    assert wb.plot_forgetting(record.rows).data


def test_a_damaged_record_is_named(record, tmp_path):
    folder = tmp_path / "memit"
    folder.mkdir()
    (folder / "run.json").write_text("{")
    with pytest.raises(DataError, match="memit is damaged"):
        wb.recorded(tmp_path)


def test_the_shipped_record_gives_the_shipped_table():
    record = wb.recorded(wb.study("nse_sequential"))
    shipped = pd.read_csv(record.path / "table.csv").set_index("run")
    table = record.table().set_index("run")
    pd.testing.assert_frame_equal(table, shipped.loc[table.index], atol=1e-4, check_dtype=False)


def test_published_numbers_say_where_they_were_read():
    table = wb.published()
    assert set(table["read"]) == {"paper", "figure", "transcription"}
    assert not table.duplicated(list(table.columns.drop(["value", "unit", "read"]))).any()
    assert table["value"].notna().all()
    row = wb.published("r-ROME", editor="r-ROME", metric="score", table="sequential")
    assert row["value"].tolist() == [80.20]
    with pytest.raises(OptionError, match="model='Llama-4'"):
        wb.published("NSE", model="Llama-4")
    with pytest.raises(OptionError, match="'modle' is no column. Did you mean 'model'"):
        wb.published("NSE", modle="GPT-J")


def test_gaps_are_ours_less_the_papers(record):
    paper = wb.published("AlphaEdit", model="GPT-J")
    found = wb.gaps(paper, record.table(), {"efficacy": "efficacy success"})
    row = found.set_index("editor").loc["MEMIT"]
    assert (row["paper"], row["ours"]) == (98.55, 100.0)
    assert row["gap"] == pytest.approx(1.45) and set(found["editor"]) == {"unedited", "FT", "MEMIT"}
    with pytest.raises(DataError, match="several settings"):
        wb.gaps(wb.published("AlphaEdit"), record.table(), {"efficacy": "efficacy success"})
    with pytest.raises(OptionError, match="no column 'efficiency'"):
        wb.gaps(paper, record.table(), {"efficacy": "efficiency"})
    with pytest.raises(DataError, match="no editor and metric"):
        wb.gaps(paper, record.table(), {"harmonic": "efficacy success"})


def test_batches_apart_are_measured_each_on_its_own(tmp_path):
    study = wb.study("emmet_batch_sizes", model="tiny", edits=4)
    names = ["MEMIT, batches of 1", "MEMIT, one layer, batches of 4"]
    record = wb.run_study(study, out=tmp_path, only=names)
    table = record.table().set_index("run")
    assert table["facts"].tolist() == [4, 4, 4] and record.table(at=4).empty
    assert table.loc[names, "edit retention"].isna().all()
    assert (table.loc[names, "seconds an edit"] > 0).all()
    runs = record.runs.set_index("run")
    assert runs["at once"].tolist() == [1, 4] and set(runs["regime"]) == {"single-round"}
    view = wb.load("tiny")
    cases = wb.datasets.tiny(limit=4)
    rows = wb.rounds(tmp_path / "r", view, wb.MEMIT.preset(view), cases, before=False)
    own = rows[rows["kind"] == "efficacy"]["exact"].mean()
    assert table.loc[names[0], "efficacy exact"] == pytest.approx(100 * own)


def test_one_layer_is_the_presets_highest():
    view = wb.load("tiny")
    trial = replace(study_trial := wb.study("emmet_batch_sizes").trials[0], one_layer=True)
    spread = replace(study_trial, options={"layers": (0, 1)})
    assert editor_of(view, spread, {}).layers == (0, 1)
    assert editor_of(view, replace(spread, one_layer=True), {}).layers == (1,)
    assert editor_of(view, trial, {}).layers == (0,)
    assert "one layer" in wb.study("emmet_batch_sizes").table()["options"].iloc[-1]


def test_a_table_of_trials_says_how_batches_meet_only_where_they_differ():
    assert "batches" not in wb.study("bigger_batches").table()
    mixed = wb.study("bigger_batches")
    mixed = replace(mixed, trials=(mixed.trials[0], replace(mixed.trials[1], apart=True)))
    assert mixed.table()["batches"].tolist() == ["in sequence", "apart"]
