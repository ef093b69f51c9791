"""The study of learned editors: its trials, its record, and the benchmark that runs it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import workbench as wb
from workbench.errors import DataError, OptionError
from workbench.studies.learned import LEARNED_STUDIES

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "learned_tables.py"
#: What a record of seconds is made of.
QUICK = {"edits": 2, "fewest": 2, "n_local": 3, "at_once": (), "trained_at": (), "ablations": False}


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("learned_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def options(bench: ModuleType, monkeypatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["learned_tables.py", *words])
    return bench._arguments()  # type: ignore[no-any-return]


# ---------------------------------------------------------------- the study


@pytest.mark.parametrize("task", LEARNED_STUDIES)
def test_every_trial_has_a_folder_of_its_own(task: str) -> None:
    for setting, study in LEARNED_STUDIES[task].items():
        assert (study.task, study.setting) == (task, setting)
        slugs = [t.slug for t in study.trials]
        assert len(set(slugs)) == len(slugs) and {t.editor for t in study.trials} <= set(wb.EDITORS)
        assert bool(study.folder) == (setting == "default")
    trials = wb.learned_study("tiny").trials
    at_once = {(t.editor, t.trained_at, t.n_edits) for t in trials if t.table == "at once"}
    assert {("MEND", 25, n) for n in (1, 5, 25, 75, 125)} <= at_once
    # one training serves every number of edits at once, an ablation has its own
    assert len({t.training_slug for t in trials if t.editor == "MEND"}) == 2 + 6


def test_ablations_are_those_of_the_paper() -> None:
    ours = {t.name for t in wb.learned_study("tiny").trials if t.table == "ablations"}
    theirs = set(wb.published("MEND", table="6")["editor"])
    from workbench.studies.learned import ABLATIONS

    assert ours == set(ABLATIONS) and {name for name, _ in ABLATIONS.values()} | {"MEND"} == theirs


def test_a_changed_study_has_no_record_of_ours() -> None:
    study = wb.learned_study("tiny")
    assert wb.learned_study("tiny", model="tiny", edits=study.edits) == study
    other = wb.learned_study("tiny", steps=3)
    assert not other.folder and other.path != study.path
    assert "steps" not in other.options["MEND"]  # the number that was asked for counts
    assert study.only("FT").path == study.path
    for wrong, words in (
        ({"task": "qb"}, "Known: fc, gen, qa, tiny"),
        ({"setting": "papers"}, "choose 'default' or 'paper'"),
        ({"setting": "paper"}, "in no paper"),
        ({"edits": 0}, "edits=0"),
        ({"stps": 3}, "Did you mean 'steps'"),
    ):
        with pytest.raises(OptionError, match=words):
            wb.learned_study(**wrong)
    with pytest.raises(OptionError, match="Did you mean 'MEND'"):
        study.only("MENDD")


# ---------------------------------------------------------------- run and record


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> wb.LearnedRecord:
    top = tmp_path_factory.mktemp("learned")
    fast = {"rank": 4, "validation": 2, "evaluation": 2, "validate_every": 1}
    study = wb.learned_study(
        "tiny", steps=2, options={"MEND": fast, "FT": {"lr": 1e-3, "steps": 2}}, **QUICK
    ).only("MEND", "FT")
    notes = {"head": "as it came"}
    return wb.run_learned(study, out=top / "record", trained=top / "trained", notes=notes)


def test_a_record_holds_numbers_without_texts(record: wb.LearnedRecord) -> None:
    table = record.table.set_index("editor")
    assert list(table.index) == ["MEND", "FT"] and (table["edits"] == 2).all()
    assert table["edit success"].between(0, 1).all() and (table["unit"] == "accuracy").all()
    assert table["trained for"].fillna(0).tolist() == [1, 0]
    rows = pd.read_csv(record.path / "ft_1" / "rows.csv.gz")
    assert not {"prompt", "target"} & set(rows.columns)
    summary = wb.lesson_summary(rows).set_index(["metric", "against"])["value"]
    assert table.loc["FT", "drawdown"] == summary["drawdown", "pristine"]
    shipped = pd.read_csv(record.path / "table.csv")
    assert shipped["edit success"].tolist() == record.table["edit success"].round(4).tolist()
    config = record.configs["mend_trained_1_1"]
    assert config["model"] == "tiny" and config["head"] == "as it came"
    assert config["editor_config"]["weights"].startswith("learned-tiny-tiny-0-mend")
    assert str(record.path.parent) not in json.dumps(record.configs)


def test_parts_and_curves_of_a_record(record: wb.LearnedRecord) -> None:
    assert record.part("editors")["editor"].tolist() == ["MEND", "FT"]
    assert record.part("at once").empty  # nothing of it was run
    with pytest.raises(OptionError, match="Did you mean 'editors'"):
        record.part("editor")
    curve = record.curve("mend_trained_1_1")
    assert curve["step"].tolist() == [1, 2] and curve["best"].sum() == 1
    assert wb.plot_training(curve).data
    with pytest.raises(OptionError, match="was not trained"):
        record.curve("ft_1")
    with pytest.raises(OptionError, match="Did you mean 'ft_1'"):
        record.curve("ft_2")


def test_what_is_recorded_is_not_made_again(record: wb.LearnedRecord, monkeypatch) -> None:
    monkeypatch.setattr(
        "workbench.studies.teaching.score_lessons", lambda *a, **k: pytest.fail("made again")
    )
    study = wb.learned_study("tiny", steps=2, **QUICK).only("MEND", "FT")
    again = wb.run_learned(study, out=record.path, trained=record.path / "none")
    pd.testing.assert_frame_equal(again.table, record.table)


def test_what_cannot_be_had_is_left_out_and_said(tmp_path: Path) -> None:
    study = wb.learned_study(
        "tiny", options={"FT": {"lr": 1e-3, "steps": 1}}, **(QUICK | {"ablations": True})
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = wb.run_learned(
            study.only("FT", "MEND"), out=tmp_path, train=False, trained=tmp_path / "none"
        )
    assert found.table["editor"].tolist() == ["MEND", "FT"]  # MEND's shipped file, and no other
    left_out = [str(w.message) for w in said if "left out" in str(w.message)]
    assert len(left_out) == 6 and all("run the study with train=True" in x for x in left_out)
    view = wb.load("tiny")
    view.push(wb.FT(layers=(1,), steps=1).edit(view, wb.datasets.tiny(limit=1)))
    with pytest.raises(OptionError, match="holds edits"):
        wb.run_learned(study, view=view)


def test_a_missing_or_damaged_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished trial: run the study"):
        wb.learned_record(tmp_path)
    (tmp_path / "ft_1").mkdir()
    (tmp_path / "ft_1" / "run.json").write_text("{")
    with pytest.raises(DataError, match="ft_1/run.json .* damaged"):
        wb.learned_record(tmp_path)


def test_fine_tuning_chooses_its_rate_once(tmp_path: Path) -> None:
    """The trial of one edit at a time tries rates on training lessons; others take its choice."""
    study = wb.learned_study(
        "tiny", tuning=1, options={"FT": {"steps": 1}}, **(QUICK | {"at_once": (1, 2)})
    ).only("FT")
    found = wb.run_learned(study, out=tmp_path)
    rates = {c["n_edits"]: c["editor_config"]["lr"] for c in found.configs.values()}
    assert set(rates) == {1, 2} and rates[1] == rates[2]
    assert found.part("at once")["edits at once"].tolist() == [1, 2]


def test_the_papers_tasks_stand_beside_ours(record: wb.LearnedRecord) -> None:
    table = wb.learned_gaps({"qa": record}).set_index(["task", "editor", "metric"])
    mend = table.loc["qa", "MEND", "edit success"]
    ours = record.table.set_index("editor").loc["MEND"]
    assert mend["paper"] == 98 and mend["ours"] == pytest.approx(100 * ours["edit success"])
    assert mend["gap"] == pytest.approx(mend["ours"] - 98) and mend["our model"] == "tiny"
    lost = table.loc["qa", "MEND", "drawdown"]
    assert lost["paper"] == 0.2 and lost["ours"] == pytest.approx(100 * ours["drawdown"])
    alone = table.loc[[("fc", "ENN", "edit success"), ("qa", "KE", "drawdown")]]
    assert alone["ours"].isna().all() and alone["paper"].tolist() == [99, 0.1]
    with pytest.raises(OptionError, match="task='tiny' is in no table"):
        wb.learned_gaps({"tiny": record})


SHIPPED = [s for each in LEARNED_STUDIES.values() for s in each.values() if s.folder]


@pytest.mark.parametrize("study", SHIPPED, ids=lambda s: s.folder)
def test_a_shipped_record_gives_the_shipped_table(study: wb.LearnedStudy) -> None:
    if not study.path.exists():
        pytest.skip("not recorded yet")
    record = wb.learned_record(study)
    shipped = pd.read_csv(record.path / "table.csv")
    pd.testing.assert_frame_equal(
        record.table.drop(columns="trained for"),
        shipped.drop(columns="trained for"),
        atol=1e-4,
        check_dtype=False,
    )


# ---------------------------------------------------------------- the benchmark


def test_the_benchmark_runs_the_study_it_is_told(bench: ModuleType, monkeypatch, tmp_path) -> None:
    words = ("--task", "qa", "--edits", "7", "--at-once", "1", "3", "--only", "MEND", "FT")
    chosen = tmp_path / "options.json"
    chosen.write_text('{"FT": {"lr": 1e-3}}')
    study = bench.study_of(options(bench, monkeypatch, *words, "--options", str(chosen)))
    assert (study.task, study.edits, study.at_once) == ("qa", 7, (1, 3))
    assert study.editors == ("MEND", "FT") and study.options["FT"] == {"lr": 1e-3}
    assert bench.study_of(options(bench, monkeypatch)) == wb.learned_study("tiny")
    assert not bench.study_of(options(bench, monkeypatch, "--no-ablations")).ablations


def test_the_first_claims_give_a_head_and_the_others_lessons(
    bench: ModuleType, monkeypatch, make_model, tokenizer, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    model = make_model("bert")
    model.config.id2label = {0: "REFUTES", 1: "SUPPORTS"}
    model.config.label2id = {"REFUTES": 0, "SUPPORTS": 1}
    model.classifier = type(model.classifier)(model.config.hidden_size, 2)
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    claims = tmp_path / "claims.jsonl"
    line = '{{"id": {i}, "label": "{label}", "claim": "Claim {i} is so."}}\n'
    labels = ("SUPPORTS", "REFUTES")
    claims.write_text("".join(line.format(i=i, label=labels[i % 2]) for i in range(40)))
    words = ["--task", "fc", "--model", str(tmp_path / "bert"), "--data", str(claims)]
    args = options(bench, monkeypatch, *words, "--classifier", "12")
    view, notes = bench._view(args, bench.study_of(args))
    lessons = wb.make_lessons(view, "fc", data=args.data)
    assert view.labels == ("REFUTES", "SUPPORTS")
    assert len(lessons.training) + len(lessons.held_out) == 28
    taught = {f"Claim {i} is so." for i in range(12)}
    assert not taught & {t.prompt for t in (*lessons.training, *lessons.held_out)}
    assert notes["classifier"]["claims"] == [12, 28]
    assert notes["model"] == str(tmp_path / "bert") != view.name
    assert 0 <= notes["classifier"]["accuracy"] <= 1
