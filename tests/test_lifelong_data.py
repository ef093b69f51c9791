"""Loaders of lifelong tasks, and the tasks made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.errors import DataError, FetchError, OptionError


def write(path: Path, records: Any) -> Path:
    text = json.dumps(records)
    if path.suffix == ".jsonl":
        text = "\n".join(json.dumps(r) for r in records)
    path.write_text(text, encoding="utf-8")
    return path


def court(term: str, area: str, words: str = "word") -> dict[str, str]:
    return {"name": "x", "term": term, "facts": f"<p>{words} of {area} {term}&nbsp;</p>"} | {
        "issue_area": area
    }


def test_topics_come_in_order_of_their_terms(tmp_path: Path) -> None:
    records = [court("2004", "A"), court("1990", "B"), court("1999", "A"), court("1995", "A")]
    records += [court("1955-1960", "B"), court("2001", "rare")]
    file = write(tmp_path / "s.jsonl", records)
    found = {
        part: [c.case_id for c in wb.datasets.topics(file, part=part, areas=2)]
        for part in ("train", "upstream", "edits")
    }
    assert found == {"train": [4, 1], "upstream": [3], "edits": [2, 0]}
    case = wb.datasets.topics(file, areas=2)[0]
    assert case.request.prompt == "word of A 1999" and case.request.target_new == "A"
    assert wb.datasets.topics(file, areas=2, words=1)[0].request.prompt == "word"
    assert [c.case_id for c in wb.datasets.topics(file, areas=2, case_ids=[0])] == [0]
    with pytest.raises(OptionError, match="part="):
        wb.datasets.topics(file, part="edit")


def test_topics_as_published_are_taken_in_order(tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(10)])
    parts = [wb.datasets.topics(file, part=p) for p in ("train", "upstream", "edits")]
    assert [[c.case_id for c in p] for p in parts] == [[0, 1, 2, 3, 4, 5], [6], [7, 8, 9]]
    assert parts[0][1].request.target_new == "1"


def test_hallucinations_have_three_parts(tmp_path: Path) -> None:
    entry = {"text": "About ann. ", "labels": " Ann was born.", "concept": "ann"}
    file = write(
        tmp_path / "h.json", {"edits": [entry, entry], "originals": [entry], "accurates": [entry]}
    )
    cases = wb.datasets.hallucination(file)
    assert [c.case_id for c in cases] == [0, 1] and cases[0].tags == {"concept": "ann"}
    assert (cases[0].request.prompt, cases[0].request.target_new) == ("About ann.", "Ann was born.")
    assert len(wb.datasets.hallucination(file, part="accurates")) == 1
    with pytest.raises(DataError, match="originals"):
        wb.datasets.hallucination(write(tmp_path / "bad.json", {"edits": []}), part="accurates")


def records(n: int) -> list[dict[str, Any]]:
    return [
        {"subject": f"S{i}", "src": f"Who is S{i}?", "rephrase": f"S{i} is?", "answers": [f"A{i}"]}
        for i in range(n)
    ]


def test_a_stream_of_questions_holds_out_other_wordings(tmp_path: Path) -> None:
    file = write(tmp_path / "z.json", records(20))
    cases = wb.datasets.zsre_stream(file, template="Q: {} A:")
    assert len(cases) == 20, "half of 40 wordings"
    edited = {c.request.text for c in cases}
    held = [p.prompt for c in cases for p in c.probes if p.kind == "holdout"]
    assert held and not set(held) & edited
    one = next(c for c in cases if len(c.probes) == 2)
    i, k = str(one.case_id).split(":")
    assert one.request.target_new == f"A{i}" and one.request.subject == f"S{i}"
    assert one.request.text == "Q: " + (f"Who is S{i}?" if k == "0" else f"S{i} is?") + " A:"
    assert one.probes[1].prompt == "Q: " + (f"S{i} is?" if k == "0" else f"Who is S{i}?") + " A:"
    ids = [c.case_id for c in cases]
    assert ids == [c.case_id for c in wb.datasets.zsre_stream(file)]
    assert ids != [c.case_id for c in wb.datasets.zsre_stream(file, seed=1)]
    again = wb.datasets.zsre_stream(file, case_ids=ids[:2])
    assert [c.case_id for c in again] == ids[:2]


def test_the_published_stream_takes_ten_rewordings(tmp_path: Path) -> None:
    def record(i: int, n: int) -> dict[str, Any]:
        more = [f"{i} in words {k}" for k in range(n)]
        return {"input": f"Q{i}", "output": [{"answer": "A"}], "filtered_rephrases": more}

    file = write(tmp_path / "z.jsonl", [record(0, 12), record(1, 9), record(2, 0)])
    cases = wb.datasets.zsre_stream(file)
    held = {p.prompt for c in cases for p in c.probes if p.kind == "holdout"}
    everything = {c.request.text for c in cases} | held
    assert len(cases) == 7  # of 11 + 1 + 1 wordings
    assert sum(t.startswith("0 in words") for t in everything) == 10
    assert not any(t.startswith("1 in words") for t in everything)


def test_nq_takes_the_shortest_answer(tmp_path: Path) -> None:
    rows = [{"question": "who was it", "answer": ["Ann of Bee", "Ann"]}]
    case = wb.datasets.nq(write(tmp_path / "n.jsonl", rows), template="Q: {}")[0]
    assert (case.request.prompt, case.request.target_new) == ("Q: Who was it?", "Ann")
    assert case.all_probes[-1].kind == "upstream"
    published = write(tmp_path / "n.json", {"questions": ["Why?"], "answers": ["So"]})
    assert wb.datasets.nq(published)[0].request.prompt == "Why?"
    with pytest.raises(DataError, match="questions"):
        wb.datasets.nq(write(tmp_path / "b.json", {"questions": []}))


def test_without_a_path_they_say_where_the_data_are(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    for load in (wb.datasets.topics, wb.datasets.hallucination, wb.datasets.nq):
        with pytest.raises(FetchError, match="by hand|pass its path to the loader"):
            load()
    with pytest.raises(OptionError, match="template="):
        wb.datasets.zsre_stream(template="no slot")


def test_tasks_of_the_real_data(data_dir: Path, tiny: wb.ModelView) -> None:
    topics = wb.tasks.topics_task(data_dir / "scotus_justice.jsonl", upstream=50)
    years = [str(c.tags["term"]) for c in topics.cases]
    assert years == sorted(years) and years[0] == "1999" and len(topics.cases) == 1279
    texts = ["one two " * 30, "short", "three four " * 24]
    made = wb.tasks.hallucination_task(data_dir / "hallucination.json", texts, words=8)
    assert len(made.upstream["texts"]) == 2 and len(made.cases) == 423
    assert len(made.upstream["texts"][0].target.split()) == 32
    assert max(len(c.request.prompt.split()) for c in made.cases) == 8
    asked = wb.tasks.zsre_task(
        tiny, data_dir / "zsre.json", data_dir / "nq_open_dev.jsonl", limit=20, upstream=5
    )
    assert asked.cases[0].request.text.startswith("Question: ") and set(asked.upstream) == {
        "nq",
        "facts",
    }
    answers = wb.load("tiny-t5", device="cpu")
    plain = wb.tasks.zsre_task(
        answers, data_dir / "zsre.json", data_dir / "nq_open_dev.jsonl", limit=2, upstream=5
    )
    assert not plain.cases[0].request.text.startswith("Question") and "facts" not in plain.upstream


def test_the_tiny_task_keeps_what_no_case_changes(tiny: wb.ModelView) -> None:
    made = wb.tasks.tiny_task(tiny, limit=50)
    changed = {c.request.text for c in wb.tasks.tiny_task(tiny).cases}
    kept = made.upstream["other facts"]
    assert len(made.cases) == 50 and len(kept) == 200
    assert not {p.prompt for p in kept} & changed
    table = wb.metrics.judge(tiny, "qa", kept[:20])
    assert table["match"].mean() >= 0.9, "the model knows them"
    assert all(c.probes[1].prompt != c.request.text for c in made.cases)
