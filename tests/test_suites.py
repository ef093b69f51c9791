"""GRACE's suite as data: definitions, runs, records, and the paper's numbers beside ours."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_lifelong_data import court, write

import workbench as wb
from workbench.errors import DataError, OptionError
from workbench.places import shipped
from workbench.studies import SUITES, task_of
from workbench.studies.suiterecords import PUBLISHED

SMALL = {"model": "tiny-bert", "edits": 4}
EDITORS = ["GRACE", "FT", "FTRetrain"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(home))
        suite = replace(wb.suite(**SMALL), upstream=12, every=2)
        found = wb.run_suite(suite, out=home / "record", only=EDITORS)
        assert not list((home / "runs").glob("*/*"))  # working folders are gone
        yield found


@pytest.mark.parametrize("task", SUITES)
@pytest.mark.parametrize("setting", ["default", "paper"])
def test_every_suite_names_editors_that_exist(task, setting):
    suite = wb.suite(task, setting)
    assert {t.editor for t in suite.trials} <= set(wb.EDITORS)
    assert suite.trials[0].name == "GRACE" and len(suite.table()) == len(suite.trials)
    assert suite.reason or setting == "paper"
    assert bool(suite.folder) == (setting == "default" or task == "tiny")
    if task in PUBLISHED:
        paper = wb.published("GRACE", data=PUBLISHED[task])
        assert set(paper["editor"]) >= {"GRACE", "FT"} and suite.kept


def test_papers_length_and_options():
    suite = wb.suite("hallucination", "paper")
    assert suite.edits == 1392 and suite.words is None
    assert {t.preset for t in suite.trials if t.editor == "GRACE"} == {"paper"}
    assert suite.trials[1].options["lr"] == 1e-2


def test_another_model_or_number_has_no_record_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    suite = wb.suite("zsre")
    assert wb.suite("zsre", model=suite.model, edits=suite.edits) == suite
    other = wb.suite("zsre", **SMALL)
    assert (other.task, other.model, other.folder) == ("tiny", "tiny-bert", "")
    assert {other.size(t) for t in other.trials} == {4}
    assert other.path.is_relative_to(tmp_path)
    with pytest.raises(DataError, match="holds no run: run the suite"):
        wb.recorded_suite(other)


def test_wrong_names_and_numbers_are_refused():
    with pytest.raises(OptionError, match="Did you mean 'zsre'"):
        wb.suite("zsr")
    with pytest.raises(OptionError, match="choose 'default' or 'paper'"):
        wb.suite("zsre", "papers")
    with pytest.raises(OptionError, match="edits=0: it must be"):
        wb.suite("zsre", edits=0)
    with pytest.raises(OptionError, match="no trial is called 'GRAEC'. Did you mean 'GRACE'"):
        wb.suite("zsre").only(["GRAEC"])


def test_a_suite_runs_records_and_is_not_run_twice(record):
    table = record.table().set_index("run")
    assert list(table.index) == ["unedited", *EDITORS]
    assert list(table["edits"]) == [0, 4, 4, 4] and table["complete"].all()
    assert table.loc["unedited", "TRR"] == 1 and table.loc["GRACE", "ES"] == 1
    assert table.loc["GRACE", "keys"] * table.loc["GRACE", "edits a key"] == pytest.approx(4)
    assert pd.isna(table.loc["FT", "keys"])
    for folder in ("grace", "ft", "ftretrain"):
        rows = pd.read_csv(record.path / folder / "rows.csv.gz")
        assert {"target", "foil"}.isdisjoint(rows)  # no texts
    before = {p: p.stat().st_mtime_ns for p in record.path.glob("*/*")}
    again = wb.run_suite(record.suite, out=record.path, only=EDITORS)
    assert {p: p.stat().st_mtime_ns for p in record.path.glob("*/*")} == before
    pd.testing.assert_frame_equal(again.table(), record.table())


def test_curves_and_moments_say_the_same(record):
    curves = record.curves()
    own = record.moments[
        (record.moments["run"] == "GRACE") & (record.moments["task"] == "accuracy")
    ]
    wanted = own[own["metric"] == "err"].set_index("step")["value"]
    found = curves[(curves["run"] == "GRACE") & (curves["metric"] == "ERR")]
    pd.testing.assert_series_equal(found.set_index("step")["value"], wanted)
    assert sorted(found["step"]) == [1, 2, 3, 4]  # after every edit
    assert set(curves[curves["run"] == "FT"]["step"]) >= {0, 2, 4}
    early = record.table(at=2).set_index("run")
    assert set(early["edits"]) == {0, 2} and early.loc["GRACE", "ERR"] == wanted[2]
    assert record.table(at=5)["run"].tolist() == ["unedited"]
    assert wb.plot_moments(curves, metrics=("TRR", "ERR", "holdout")).data
    axis = wb.plot_moments(curves, metrics=("TRR",), log=True).layout.yaxis
    assert axis.type == "log"


def test_sets_beside_the_papers_are_told_apart(record):
    """Of two sets of what shall be kept, the suite says which is TRR."""
    more = record.moments[record.moments["metric"] == "trr"].copy()
    more["task"] = more["task"].str.replace("other facts", "nq")
    more["value"] = 0.25
    two = replace(record, moments=pd.concat([record.moments, more]))
    table = two.table().set_index("run")
    assert table.loc["FT", "TRR nq"] == 0.25 != table.loc["FT", "TRR"]
    named = replace(two, suite=replace(record.suite, kept="nq")).table().set_index("run")
    assert named.loc["FT", "TRR"] == 0.25 and named.loc["FT", "TRR over unedited"] == 1


def test_gaps_are_ours_less_the_papers(record):
    with pytest.raises(DataError, match="no number of record"):
        record.gaps()
    suite = replace(wb.suite("zsre"), kept="")
    found = replace(record, suite=suite).gaps().set_index("run")
    assert found.loc["FT", "TRR paper"] == pytest.approx(0.56)
    ours = record.table().set_index("run").loc["FT", "TRR"]
    assert found.loc["FT", "TRR gap"] == pytest.approx(ours - 0.56)
    assert pd.isna(found.loc["MEND", "TRR ours"]) and found.loc["MEND", "ERR paper"] == 0.27
    text = replace(record, suite=wb.suite("hallucination")).gaps().set_index("run")
    assert text.loc["FT", "TRR paper"] == 1449  # a perplexity is no share


def test_an_interrupted_run_is_recorded_as_far_as_it_came(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    suite = replace(wb.suite(**SMALL), upstream=4, every=1, folder="")
    view = wb.load("tiny-bert")
    stop = iter(range(10))

    class Stopped(Exception):
        pass

    def edit(self, view, requests, compute=wb.FT._compute, **given):
        if next(stop) == 2:
            raise Stopped
        return compute(self, view, requests, **given)

    with monkeypatch.context() as patch:
        patch.setattr(wb.FT, "_compute", edit)
        with pytest.raises(Stopped):
            wb.run_suite(suite, out=tmp_path / "record", view=view, only=["FT"])
    view.reset()
    found = wb.run_suite(suite, out=tmp_path / "record", only=["FT"], record_only=True)
    row = found.table().set_index("run").loc["FT"]
    assert row["edits"] == 2 and not row["complete"]
    done = wb.run_suite(suite, out=tmp_path / "record", view=view, only=["FT"])
    row = done.table().set_index("run").loc["FT"]
    assert row["edits"] == 4 and row["complete"]


def test_an_editor_that_cannot_take_the_task_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    rome = wb.Trial(name="ROME", editor="ROME", common=False)
    suite = replace(
        wb.suite(
            **SMALL,
        ),
        upstream=4,
        trials=(*wb.suite().trials[:1], rome),
    )
    found = wb.run_suite(suite, out=tmp_path / "record", edits=1)
    assert list(found.configs) == ["GRACE"] and len(found.configs["GRACE"]["edited"]) == 1


def test_a_damaged_record_is_named(record, tmp_path):
    shutil.copytree(record.path, tmp_path / "record")
    (tmp_path / "record" / "ft" / "run.json").write_text("{")
    with pytest.raises(DataError, match="ft is damaged"):
        wb.recorded_suite(tmp_path / "record")
    with pytest.raises(DataError, match="ROME is not recorded"):
        record.only("ROME")


def test_the_head_of_a_classifier_is_recorded_with_its_accuracy(tmp_path, monkeypatch):
    """A small encoder in place of the real one."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setattr("workbench.studies.suiterunning.HEADLESS", ("tiny-bert",))
    monkeypatch.setattr(
        "workbench.studies.suiterunning.classifier_of",
        lambda suite, data, device=None: _Made(wb.load("tiny-bert")),
    )
    suite = replace(wb.suite(model="tiny-bert", edits=1), upstream=4)
    found = wb.run_suite(suite, out=tmp_path / "record", only=["GRACE"])
    assert found.classifier["accuracy"] == 0.5 and found.kind == "classification"
    assert found.table()["model"].tolist() == ["tiny-bert"] * 2
    told = [p.read_text() for p in found.path.rglob("*.json")]
    assert not any(str(shipped("tiny")) in text for text in told)
    assert json.loads((found.path / "classifier.json").read_text()) == found.classifier


class _Made:
    """What ``classifier_of`` says, for a model that has a head."""

    accuracy, train_accuracy, most_frequent = 0.5, 0.9, 0.25

    def __init__(self, view):
        self.labels, self.path = list(view.labels[:2]), shipped("tiny") / "bert"


def test_tasks_read_the_files_of_a_folder(tmp_path):
    areas = [court(str(term), f"Area {term % 8}") for term in range(1990, 2012)]
    write(tmp_path / "scotus_justice.jsonl", areas)
    task = task_of(wb.suite("topics"), None, tmp_path)
    assert task.kind == "classification" and len(task.cases)
    with pytest.raises(OptionError, match="give a folder with hallucination.json"):
        task_of(wb.suite("hallucination"), None)


@pytest.mark.parametrize("task", SUITES)
def test_the_shipped_record_gives_the_shipped_table(task):
    suite = wb.suite(task)
    if not Path(suite.path / "table.csv").exists():
        pytest.skip(f"{suite.folder} is not recorded")
    record = wb.recorded_suite(suite)
    shipped = pd.read_csv(record.path / "table.csv")
    ours = record.written().reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, shipped, atol=1e-4, rtol=1e-4, check_dtype=False)
    if task == "topics":
        assert 0 < record.classifier["most_frequent"] < record.classifier["accuracy"] < 1
