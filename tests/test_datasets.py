"""Loaders: schemas, choice by id, bad rows, damaged files, and sources."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import pytest

from workbench import datasets
from workbench.datasets import sources
from workbench.errors import DataError, FetchError, OptionError, WorkbenchError


def rome_record(case_id: int, subject: str = "Anna", **extra: Any) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "requested_rewrite": {
            "prompt": "{} lives in",
            "relation_id": "P1",
            "target_new": {"str": "Oslo", "id": "Q1"},
            "target_true": {"str": "Rome", "id": "Q2"},
            "subject": subject,
        },
        "paraphrase_prompts": [f"{subject} has a home in", f"The home of {subject} is"],
        "neighborhood_prompts": ["Bo lives in"],
        "attribute_prompts": ["Cy lives in"],
        "generation_prompts": [f"{subject} walks"],
        **extra,
    }


def zsre_record(**extra: Any) -> dict[str, Any]:
    return {
        "subject": "Anna",
        "src": "Where does Anna live, and is Anna tall?",
        "pred": "Rome",
        "rephrase": "Anna lives where?",
        "alt": "Oslo",
        "answers": ["Rome", "Roma"],
        "loc": "nq question: who is Bo",
        "loc_ans": "a friend",
        **extra,
    }


EASYEDIT = {
    "case_id": 7,
    "prompt": "Anna lives in",
    "target_new": "Oslo",
    "subject": "Anna",
    "ground_truth": "Rome",
    "rephrase_prompt": "The home of Anna is",
    "locality_prompt": "Bo lives in",
    "locality_ground_truth": "Rome",
}
OWN = {
    "case_id": "home-1",
    "relation": "home",
    "prompt": "{} lives in",
    "subject": "Anna",
    "target_true": "Rome",
    "target_new": "Oslo",
    "paraphrases": ["The home of Anna is"],
    "neighborhood": [{"prompt": "Bo lives in", "target": "Bari"}],
    "attribute": [{"prompt": "Anna plays the", "target": "cello"}],
    "known": {"small": True, "large": False},
    "source": "made up",
}


def write(path: Path, records: list[Any]) -> Path:
    text = json.dumps(records)
    if ".jsonl" in path.name:
        text = "\n".join(map(json.dumps, records))
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def kinds(case: Any) -> list[str]:
    return [p.kind for p in case.probes]


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.json.gz", "c.jsonl.gz"])
def test_counterfact_reads_every_format(tmp_path: Path, name: str) -> None:
    case = datasets.counterfact(write(tmp_path / name, [rome_record(3)]))[0]
    assert case.case_id == 3
    assert case.request.text == "Anna lives in" and case.request.target_true == "Rome"
    assert kinds(case) == ["efficacy", "paraphrase", "paraphrase", "neighborhood"]
    near = case.probes[-1]
    assert (near.prompt, near.target, near.foil) == ("Bo lives in", "Rome", "Oslo")
    assert case.tags["relation"] == "P1" and case.tags["target_new_id"] == "Q1"


def test_attribute_probes_ask_where_the_new_answer_is_true(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", [rome_record(0)])
    probe = datasets.counterfact(path, attribute=True)[0].probes[-1]
    assert (probe.kind, probe.target, probe.foil) == ("attribute", "Oslo", "Rome")


def test_rebuilt_records_are_tagged_and_keep_paraphrases(tmp_path: Path) -> None:
    records = [rome_record(0, original=True), rome_record(1, original=False), rome_record(2)]
    cases = datasets.counterfact(write(tmp_path / "c.jsonl", records))
    assert [bool(c.tags.get("rebuilt")) for c in cases] == [False, True, False]
    assert kinds(cases[1]).count("paraphrase") == 2
    assert cases.report.counts == {"rebuilt": 1}


def test_multi_counterfact_keeps_the_first_of_a_conflict(tmp_path: Path) -> None:
    second = rome_record(1)
    second["requested_rewrite"]["target_new"] = {"str": "Bonn", "id": "Q3"}
    other = rome_record(2)
    other["requested_rewrite"] |= {"relation_id": "P2", "prompt": "{} works in"}
    path = write(tmp_path / "c.json", [rome_record(0), second, other, rome_record(3, "Bea")])
    cases = datasets.multi_counterfact(path)
    assert [c.case_id for c in cases] == [0, 2, 3]
    assert cases.report.counts["conflicts"] == 1 and cases.report.rows == 4


def test_limit_and_case_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", [rome_record(i) for i in (5, 3, 9, 1)])
    assert [c.case_id for c in datasets.counterfact(path, limit=2)] == [5, 3]
    assert [c.case_id for c in datasets.counterfact(path, case_ids=[1, "5", 9])] == [1, 5, 9]
    with pytest.raises(OptionError, match=r"2 of 3 .*\(77, 'x'\)"):
        datasets.counterfact(path, case_ids=[5, 77, "x"])
    with pytest.raises(OptionError, match="more than once"):
        datasets.counterfact(path, case_ids=[5, 5])
    with pytest.raises(OptionError, match="limit=0"):
        datasets.counterfact(path, limit=0)


def test_zsre_protocols(tmp_path: Path) -> None:
    path = write(tmp_path / "z.json", [zsre_record()])
    memit = datasets.zsre(path)[0]
    assert memit.request.target_new == "Rome"
    assert memit.request.prompt == "Where does {} live, and is Anna tall?"
    assert memit.request.text == zsre_record()["src"]
    assert kinds(memit) == ["efficacy", "paraphrase", "locality"]
    assert memit.probes[2].prompt == "nq question: who is Bo?"
    assert memit.probes[2].target == "a friend"
    assert all(p.foil is None for p in memit.probes)
    easy = datasets.zsre(path, protocol="easyedit")[0]
    assert easy.request.target_new == "Oslo" and easy.probes[1].target == "Oslo"
    with pytest.raises(OptionError, match="Did you mean 'memit'"):
        datasets.zsre(path, protocol="memitt")


def test_zsre_questions_without_subject_are_literal_and_counted(tmp_path: Path) -> None:
    rows = [zsre_record(), zsre_record(src="Where does she live?"), zsre_record(loc=None)]
    path = write(tmp_path / "z.json", rows)
    with pytest.warns(UserWarning, match="1 of 3 prompts do not contain their subject"):
        cases = datasets.zsre(path)
    assert cases[1].request.subject is None and cases[1].request.text == "Where does she live?"
    assert cases.report.counts == {"literal": 1, "no_locality": 1}
    assert kinds(cases[2]) == ["efficacy", "paraphrase"]


def test_easyedit_schema(tmp_path: Path) -> None:
    case = datasets.easyedit(write(tmp_path / "e.json", [EASYEDIT]))[0]
    assert case.case_id == 7 and case.request.prompt == "{} lives in"
    assert kinds(case) == ["efficacy", "paraphrase", "locality"]
    assert [p.foil for p in case.probes] == ["Rome", "Rome", None]


def test_own_schema_and_known_to(tmp_path: Path) -> None:
    other = OWN | {"case_id": 2, "known": {"small": False, "large": True}}
    path = write(tmp_path / "f.jsonl", [OWN, other])
    cases = datasets.facts(path)
    assert kinds(cases[0]) == ["efficacy", "paraphrase", "neighborhood", "attribute"]
    near, other_fact = cases[0].probes[2:]
    assert (near.target, near.foil) == ("Bari", "Oslo")
    assert (other_fact.target, other_fact.foil) == ("cello", None)
    known = datasets.facts(path, known_to="large")
    assert [c.case_id for c in known] == [2]
    assert known.report.counts["unknown"] == 1
    with pytest.raises(OptionError, match="Did you mean 'large'"):
        datasets.facts(path, known_to="larg")


@pytest.mark.parametrize("loader", [datasets.facts, datasets.tiny])
def test_shipped_sets_load(loader: Any) -> None:
    try:
        cases = loader(limit=3)
    except DataError as error:
        pytest.skip(str(error))
    assert len(cases) == 3 and {"efficacy", "neighborhood"} <= set(kinds(cases[0]))


@pytest.mark.parametrize(
    ("record", "schema"),
    [
        (rome_record(0), "counterfact"),
        (zsre_record(), "zsre"),
        (EASYEDIT, "easyedit"),
        (OWN, "facts"),
    ],
)
def test_load_cases_recognizes_the_schema(
    tmp_path: Path, record: dict[str, Any], schema: str
) -> None:
    cases = datasets.load_cases(write(tmp_path / "any.json", [record]))
    assert cases.report.schema == schema and len(cases[0].probes) >= 3


def test_load_cases_reads_tables(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "subject", "target_new", "target_true", "paraphrases"])
        rows.writerow(["Anna lives in", "Anna", "Oslo", "Rome", "The home of Anna is|Anna is from"])
        rows.writerow(["{} lives in", "Bo", "Oslo", "", ""])
    first, second = datasets.load_cases(path)
    assert first.request.prompt == "{} lives in" and first.request.target_true == "Rome"
    assert [p.prompt for p in first.probes[1:]] == ["The home of Anna is", "Anna is from"]
    assert second.request.text == "Bo lives in" and second.request.target_true is None
    assert (first.case_id, second.case_id) == (0, 1)


def test_unknown_schema_names_keys_and_schemas(tmp_path: Path) -> None:
    path = write(tmp_path / "u.json", [{"claim": "x", "label": 1}])
    with pytest.raises(DataError, match=r"claim, label.*counterfact \(requested_rewrite"):
        datasets.load_cases(path)


def test_bad_rows_are_listed_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    lines = [json.dumps(rome_record(0)), "{broken", json.dumps(rome_record(1)), '{"case_id": 4}']
    bad = rome_record(2)
    bad["requested_rewrite"]["prompt"] = "no slot"
    repeated = json.dumps(rome_record(1))
    path.write_text("\n".join([*lines, "", json.dumps(bad), repeated, "[1]"]))
    with pytest.raises(DataError) as caught:
        datasets.counterfact(path)
    said = str(caught.value)
    assert "5 of 7 rows are bad" in said and "line 2: is not JSON" in said
    assert "line 4: field 'requested_rewrite' is missing" in said
    assert "line 6" in said and "{}" in said and "line 7: case_id 1 was used already" in said
    with pytest.warns(UserWarning, match="5 of 7 rows are bad"):
        cases = datasets.counterfact(path, skip_bad=True)
    assert [c.case_id for c in cases] == [0, 1] and len(cases.report.skipped) == 5


def test_damaged_files_name_path_and_next_step(tmp_path: Path) -> None:
    whole = json.dumps([rome_record(i) for i in range(9)]).encode()
    for name, data in {
        "cut.json": whole[:-50],
        "cut.json.gz": gzip.compress(whole)[:-20],
        "not.json.gz": whole,
        "latin.json": b'[{"a": "\xe9"}]',
        "empty.json": b"",
        "none.json": b"[]",
        "dict.json": b"{}",
        "word.txt": b"hello",
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=name):
            datasets.counterfact(path)
    with pytest.raises(DataError, match="no file"):
        datasets.counterfact(tmp_path / "absent.json")
    lines = tmp_path / "lines.json"
    lines.write_text('{"a": 1}\n{"a": 2}')
    with pytest.raises(DataError, match="name it .jsonl"):
        datasets.counterfact(lines)


@pytest.mark.parametrize("junk", [None, 3, "text", [], {}, {"requested_rewrite": 3}])
def test_any_junk_record_is_a_data_error(tmp_path: Path, junk: Any) -> None:
    path = write(tmp_path / "j.json", [junk])
    for load in (datasets.counterfact, datasets.zsre, datasets.easyedit, datasets.load_cases):
        with pytest.raises(DataError):
            load(path)


class Answer(io.BytesIO):
    """What urlopen returns."""

    def __init__(self, data: bytes, length: int | None = None) -> None:
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data) if length is None else length)}


def test_fetch_writes_once_and_records_the_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    data = json.dumps([rome_record(0)]).encode()
    asked = []

    def opener(url: str, timeout: float) -> Answer:
        asked.append(url)
        return Answer(data)

    path = sources.fetch("counterfact", opener=opener)
    assert sources.fetch("counterfact", opener=opener) == path and len(asked) == 1
    record = json.loads((path.parent / "counterfact.json.source.json").read_text())
    assert record["bytes"] == len(data) and len(record["sha256"]) == 64
    assert len(datasets.counterfact()) == 1
    assert {p.name for p in path.parent.iterdir()} == {path.name, f"{path.name}.source.json"}


def test_fetch_failures_leave_nothing_and_name_the_offline_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))

    def offline(url: str, timeout: float) -> Answer:
        raise urllib.error.URLError("no network")

    def short(url: str, timeout: float) -> Answer:
        return Answer(b"[1, 2", length=99)

    for opener in (offline, short):
        with pytest.raises(FetchError, match=r"Offline: download counterfact.json"):
            sources.fetch("counterfact", opener=opener)
    folder = tmp_path / "datasets"
    assert not folder.exists() or not list(folder.iterdir())
    with pytest.raises(FetchError, match=r"drive.google.com"):
        datasets.easyedit()


def test_where_says_link_file_and_checksum() -> None:
    said = datasets.where("mend")
    assert "drive.google.com" in said and "SHA-256: not published" in said
    assert "rome.baulab.info/data/dsets/counterfact.json" in datasets.where("counterfact")
    with pytest.raises(OptionError, match="Did you mean 'counterfact'"):
        datasets.where("counterfct")


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("one\n\n two \nthree\n")
    assert list(datasets.texts(plain)) == ["one", "two", "three"]
    assert list(datasets.texts(plain, limit=2)) == ["one", "two"]
    lines = write(tmp_path / "b.jsonl.gz", [{"text": "one"}, {"text": ""}, {"text": "two"}])
    assert list(datasets.texts(lines)) == ["one", "two"]
    with pytest.raises(DataError, match="line 1 has no text field 'body'"):
        list(datasets.texts(lines, field="body"))
    with pytest.raises(DataError, match="no file"):
        datasets.texts(tmp_path / "absent.txt")
    torn = tmp_path / "c.txt.gz"
    torn.write_bytes(gzip.compress(b"one")[:10] + b"\xff" * 50)  # a header, then no stream
    with pytest.raises(DataError, match="damaged or truncated"):
        list(datasets.texts(torn))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FetchError, match="pip install datasets.*give a .txt"):
        datasets.texts("Salesforce/wikitext")


def test_texts_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Hub:
        @staticmethod
        def load_dataset(name: str, config: str | None, **options: Any) -> list[dict[str, str]]:
            asked.append((name, config, options["split"]))
            return [{"text": " one\n"}, {"text": ""}, {"text": "two"}]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert list(datasets.texts("o/n", config="c", split="test")) == ["one", "two"]
    assert asked == [("o/n", "c", "test")]
    with pytest.raises(DataError, match="o/n, record 0 has no text field 'body'.*field="):
        list(datasets.texts("o/n", field="body"))


def test_snippets(tmp_path: Path) -> None:
    record = {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "a", "text": "b"}]}
    path = write(tmp_path / "s.json.gz", [record, record])
    assert datasets.snippets(path) == {("P1", "Q1"): ["b", "b"]}
    with pytest.raises(DataError, match="record 1"):
        datasets.snippets(write(tmp_path / "t.json", [{"samples": 1}]))


def test_published_files_load(data_dir: Path) -> None:
    cases = datasets.counterfact(data_dir / "counterfact.json", limit=20)
    assert {len(c.probes) for c in cases} == {13} and not cases.report.counts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zsre = datasets.zsre(data_dir / "zsre.json")
    rows = json.loads((data_dir / "zsre.json").read_text())
    assert zsre.report.counts["literal"] == sum(r["subject"] not in r["src"] for r in rows)
    assert len(datasets.easyedit(data_dir / "counterfact-edit.json", limit=9)) == 9
    with pytest.raises(WorkbenchError):
        datasets.load_cases(data_dir / "fever_claims.jsonl")
