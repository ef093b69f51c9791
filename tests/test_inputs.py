"""What people paste: every form is read, every bad line is named with its rule and an example."""

from __future__ import annotations

import gzip
import json

import pytest

import workbench as wb
from workbench.errors import DataError, RequestError

ROME = wb.EditRequest(
    prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
)
SHORT = wb.EditRequest(prompt="The capital of {} is", subject="France", target_new="Rome")
BARE = wb.EditRequest(prompt="The capital of France is", target_new="Rome")
RECORD = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("The capital of {France} is -> Rome", SHORT),
        ("The capital of {France} is → Rome", SHORT),
        ("  The capital of {France} is=>Rome  ", SHORT),
        ("The capital of { France } is -> Rome | Paris", ROME),
        ("The capital of France is -> Rome", BARE),
        ("The capital of France is | France | Rome | Paris", ROME),
        ("The capital of {} is | France | Rome", SHORT),
        ("The capital of {France} is || Rome", SHORT),
        ("The capital of {France} is | France | Rome", SHORT),
        ("The capital of France is || Rome", BARE),
        ("The capital of France is | Rome", BARE),
        ("The capital of France is | France | Rome |", SHORT),
        ("prompt,subject,target_new,target_true\nThe capital of France is,France,Rome,Paris", ROME),
        ("Target_New;Prompt;Subject\nRome;The capital of {} is;France", SHORT),
        ("prompt\ttarget_new\tnote\nThe capital of {France} is\tRome\tmine", SHORT),
        ('prompt,target_new\n"The capital of {France} is","Rome"', SHORT),
        ("prompt | target_new\nThe capital of {France} is | Rome", SHORT),
        (json.dumps(RECORD), SHORT),
        (json.dumps([RECORD | {"target_true": "Paris", "case_id": 3}]), ROME),
        (json.dumps(RECORD | {"target_true": None}, indent=1), SHORT),
        ("\ufeffThe capital of {France} is -> Rome\r\n", SHORT),
    ],
)
def test_every_form(line, request_) -> None:
    assert wb.parse_facts(line) == [request_]


def test_several_lines_comments_and_blanks() -> None:
    text = (
        "# my facts\n\nThe capital of {France} is -> Rome\n\n"
        "The capital of France is | France | Rome | Paris\n"
    )
    assert wb.parse_facts(text) == [SHORT, ROME]
    assert wb.check_facts(text).lines == (3, 5)
    lines = f"{json.dumps(RECORD)}\n\n{json.dumps(RECORD | {'target_true': 'Paris'})}\n"
    assert wb.parse_facts(lines) == [SHORT, ROME]
    table = 'prompt,target_new\n\n"two\nlines of {France}",Rome\nThe capital of {France} is,Rome\n'
    found = wb.check_facts(table)
    assert [r.subject for r in found.requests] == ["France", "France"]
    assert found.lines == (3, 5) and found.form == "table"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("The capital of France is Rome", "needs an arrow '->'"),
        ("The capital of {France} is ->", "has no target_new"),
        ("-> Rome", "has no prompt"),
        ("The capital of {} is -> Rome", "empty braces and no subject"),
        ("{The capital} of {France} is -> Rome", "more than one pair of braces"),
        ("The capital of {France is -> Rome", "more than one pair of braces"),
        ("The capital of France is | Spain | Rome", "'Spain' does not occur"),
        ("The capital of {France} is | Spain | Rome", "names two subjects"),
        ("a | b | c | d | e", "needs an arrow '->'"),
        ("a -> b | c | d", "the old one"),
    ],
)
def test_a_bad_line_is_named(line, rule) -> None:
    text = f"The capital of {{Spain}} is -> Lisbon\n\n{line}"
    with pytest.raises(RequestError) as caught:
        wb.parse_facts(text)
    said = str(caught.value)
    assert said.startswith(f"line 3: {line!r}: ") and rule in said
    assert said.endswith("Write for example: The capital of {France} is -> Rome")
    found = wb.check_facts(text)
    assert [r.target_new for r in found.requests] == ["Lisbon"] and found.lines == (1,)
    assert [(p.line, p.text) for p in found.problems] == [(3, line)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,target\na {b} c,Rome", ["line 1", "no column 'target_new'", "'target'"]),
        ("prompt,target_new\na {b} c,Rome\n,Rome", ["line 3", "has no prompt", "prompt,subject"]),
        ("prompt,target_new\na, b,Rome", ["line 2", "3 cells, the header has 2"]),
        ('prompt,target_new\n"open,Rome', ["line 2", "has no target_new"]),
        ('[{"prompt": "a", ]', ["line 1", "not JSON", '{"prompt"']),
        ('{"prompt": "a", "target_new": 3}', ["line 1", "target_new=3 must be a text"]),
        ('{"prompt": "a", "target_new": "b"}\n{"prompt": ', ["line 2", "not JSON"]),
        ('["a"]', ["line 1", "a str, not a record"]),
        ('[{"requested_rewrite": {}}]', ["load_cases"]),
        ("# only a comment\n", ["no fact", "The capital of {France} is -> Rome"]),
        ("", ["no fact"]),
    ],
)
def test_bad_tables_and_json(text, words) -> None:
    with pytest.raises(RequestError) as caught:
        wb.parse_facts(text)
    for word in words:
        assert word in str(caught.value)


def test_many_bad_lines_are_counted() -> None:
    with pytest.raises(RequestError, match="line 5: .*; and 4 more lines. Write for example"):
        wb.parse_facts("\n".join(["nothing"] * 9))
    with pytest.raises(RequestError, match="not from a list"):
        wb.parse_facts(["a -> b"])  # type: ignore[arg-type]


def test_files(tmp_path) -> None:
    table = tmp_path / "facts.csv"
    table.write_text("prompt,subject,target_new\nThe capital of France is,France,Rome\n")
    assert wb.read_facts(table) == [SHORT]
    lines = tmp_path / "facts.txt.gz"
    lines.write_bytes(gzip.compress("The capital of {France} is → Rome".encode()))
    assert wb.read_facts(str(lines)) == [SHORT]
    records = tmp_path / "facts.jsonl"
    records.write_text(f"{json.dumps(RECORD)}\nnonsense\n")
    with pytest.raises(DataError, match="facts.jsonl: line 2: 'nonsense': not JSON"):
        wb.read_facts(records)
    with pytest.raises(DataError, match="there is no file"):
        wb.read_facts(tmp_path / "absent.csv")
