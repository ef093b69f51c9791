"""What a person pastes as facts to write: lines with arrows or bars, a table, JSON.

One fact a line, in any of these forms (blank lines and lines that begin with ``#`` are skipped):

    The capital of {France} is -> Rome
    The capital of {France} is -> Rome | Paris
    The capital of France is | France | Rome | Paris

The braces hold the subject; after a second bar stands what the model said before. A table has a
header with ``prompt`` and ``target_new``, and may have ``subject`` and ``target_true``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DataError, RequestError, did_you_mean
from workbench.facts import EditRequest
from workbench.textfiles import READ_ERRORS, explain, open_text

__all__ = ["FactCheck", "check_facts", "parse_facts", "propose_subject", "read_facts"]

FIELDS = ("prompt", "subject", "target_new", "target_true")
EXAMPLES = {
    "lines": "The capital of {France} is -> Rome",
    "table": "prompt,subject,target_new,target_true\nThe capital of France is,France,Rome,Paris",
    "json": '{"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}',
}
#: Bad lines that an error lists.
LISTED = 5
_ARROW = re.compile(r"\s*(?:->|=>|→|⇒)\s*")
#: Capitalized words in a row, with small words of names between them.
_CAPITALIZED = re.compile(
    r"[^\W\d_a-z][\w.’'-]*(?:\s+(?:(?:of|de|von|van|the|la)\s+)?[^\W\d_a-z][\w.’'-]*)*"
)


@dataclass(frozen=True)
class Problem:
    """A line that is no fact.

    Attributes:
        line: its number, from 1.
        text: the line.
        why: the rule it breaks.
    """

    line: int
    text: str
    why: str


@dataclass(frozen=True)
class FactCheck:
    """The facts of a text, and the lines that are none.

    Attributes:
        requests: the facts, in order.
        lines: the line of each, from 1.
        problems: the other lines; blank ones and comments aside.
        form: ``lines``, ``table`` or ``json``.
    """

    requests: tuple[EditRequest, ...]
    lines: tuple[int, ...]
    problems: tuple[Problem, ...]
    form: str

    def sentence(self) -> str:
        """What is wrong, with an example of how it would be right; empty if nothing is."""
        if not self.problems:
            return ""
        listed = [f"line {p.line}: {_cut(p.text)!r}: {p.why}" for p in self.problems[:LISTED]]
        if len(self.problems) > LISTED:
            listed.append(f"and {len(self.problems) - LISTED} more lines")
        return f"{'; '.join(listed)}. Write for example: {EXAMPLES[self.form]}"


def parse_facts(text: str) -> list[EditRequest]:
    """The facts of a pasted text: lines, a table with a header, or JSON.

    Args:
        text: see the module; the form is recognized.

    Raises:
        RequestError: if a line is no fact (number, content, rule and a good example are named),
            or there is none at all.

    Example:
        >>> parse_facts("The capital of {France} is -> Rome")[0].subject
        'France'
    """
    found = check_facts(text)
    if found.problems:
        raise RequestError(found.sentence())
    return list(found.requests)


def read_facts(path: str | os.PathLike[str]) -> list[EditRequest]:
    """The facts of a file: CSV, TSV, JSON, JSON lines or plain lines, also gzipped.

    Args:
        path: the form is recognized by the content.

    Raises:
        DataError: if the file cannot be read, or a line of it is no fact.

    Example:
        >>> read_facts("my_facts.csv")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    try:
        with open_text(path) as file:
            text = file.read()
    except READ_ERRORS as error:
        raise explain(path, error) from error
    try:
        return parse_facts(text)
    except RequestError as error:
        raise DataError(f"{path}: {error}") from error


def check_facts(text: str) -> FactCheck:
    """As :func:`parse_facts`, but bad lines are listed beside the good ones.

    Raises:
        RequestError: if it is no text, or has no line but comments.

    Example:
        >>> len(check_facts("The capital of {France} is -> Rome\\nnonsense").problems)
        1
    """
    if not isinstance(text, str):
        raise RequestError(f"facts are read from a text, not from a {type(text).__name__}.")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    form, rows = _rows(text)
    requests: list[EditRequest] = []
    lines: list[int] = []
    problems: list[Problem] = []
    for number, shown, fields in rows:
        try:
            requests.append(_request(fields if isinstance(fields, dict) else _fields(fields)))
            lines.append(number)
        except RequestError as error:
            problems.append(Problem(number, shown, str(error).rstrip(".")))
    if not requests and not problems:
        raise RequestError(f"there is no fact in the text. Write for example: {EXAMPLES[form]}")
    return FactCheck(tuple(requests), tuple(lines), tuple(problems), form)


# -------------------------------------------------------------------- forms


#: Line number, the line, and its fields; a text if they are still to be told apart.
Row = tuple[int, str, dict[str, Any] | str]


def _rows(text: str) -> tuple[str, Iterator[Row]]:
    """The form of a text, and its rows."""
    numbered = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1)]
    kept = [(i, line) for i, line in numbered if line and not line.startswith("#")]
    first = kept[0][1] if kept else ""
    if first.startswith("[") or (first.startswith("{") and re.match(r"\{\s*($|\")", first)):
        return "json", _json_rows(text, kept)
    delimiter = _delimiter(first)
    if delimiter:
        return "table", _table_rows(text, kept[0][0], delimiter)
    return "lines", ((i, line, line) for i, line in kept)


def _delimiter(header: str) -> str:
    """What divides the columns, empty if the line is no header."""
    for mark in (",", "\t", ";", "|"):
        names = [n.strip().strip('"').lower() for n in header.split(mark)]
        if len(names) > 1 and "prompt" in names:
            return mark
    return ""


def _table_rows(text: str, header: int, delimiter: str) -> Iterator[Row]:
    lines = text.split("\n")[header - 1 :]
    reader = csv.reader(io.StringIO("\n".join(lines), newline=""), delimiter=delimiter)
    names = [n.strip().lower() for n in next(reader)]
    _check_header(names, header, lines[0].strip())
    while True:
        number = header + reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise RequestError(f"line {number} is no row of a table: {error}.") from error
        if cells is None:
            return
        cells = [c.strip() for c in cells]
        if not any(cells) or cells[0].startswith("#"):
            continue
        shown = delimiter.join(cells)
        if len(cells) > len(names):
            why = f"{len(cells)} cells, the header has {len(names)}: quote cells with the divider"
            yield number, shown, {"": why}
            continue
        yield number, shown, {k: v for k, v in zip(names, cells, strict=False) if v}


def _check_header(names: list[str], number: int, line: str) -> None:
    if "target_new" not in names:
        others = [n for n in names if n not in FIELDS]
        hint = did_you_mean("target_new", others) if others else ""
        raise RequestError(
            f"line {number}: {_cut(line)!r}: the header has no column 'target_new'.{hint} "
            f"Write for example: {EXAMPLES['table']}"
        )


def _json_rows(text: str, kept: list[tuple[int, str]]) -> Iterator[Row]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        if kept[0][1].startswith("[") or len(kept) == 1:
            line = text.split("\n")[error.lineno - 1]
            raise RequestError(
                f"line {error.lineno}: {_cut(line.strip())!r}: not JSON ({error.msg}). "
                f"Write for example: {EXAMPLES['json']}"
            ) from error
        yield from (_json_line(i, line) for i, line in kept)
        return
    for i, record in enumerate(records if isinstance(records, list) else [records], 1):
        yield i, json.dumps(record, ensure_ascii=False), _record(record)


def _json_line(number: int, line: str) -> Row:
    try:
        return number, line, _record(json.loads(line))
    except json.JSONDecodeError as error:
        return number, line, {"": f"not JSON ({error.msg} at column {error.colno})"}


def _record(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        return {"": f"a {type(record).__name__}, not a record"}
    return {k: v for k, v in record.items() if v is not None}


# -------------------------------------------------------------------- one fact


def _fields(line: str) -> dict[str, Any]:
    """The fields of a plain line."""
    arrow = _ARROW.search(line)
    if arrow:
        prompt, answers = line[: arrow.start()], line[arrow.end() :].split("|")
        if len(answers) > 2:
            raise RequestError(
                "after the arrow stand the new answer and, behind a '|', the old one"
            )
        values = [prompt, "", *answers]
    else:
        values = line.split("|")
        if len(values) == 2:
            values.insert(1, "")
        if not 3 <= len(values) <= 4:
            raise RequestError(
                "needs an arrow '->' between prompt and new answer, or 'prompt | subject | new "
                "answer | old answer' (the last may be left out)"
            )
    named = zip(FIELDS, (v.strip() for v in values), strict=False)
    return {k: v for k, v in named if v}


def _request(fields: dict[str, Any]) -> EditRequest:
    """A request of the fields; a subject in braces or in a field of its own."""
    if "" in fields:
        raise RequestError(str(fields[""]))
    for name in ("prompt", "target_new"):
        if name not in fields:
            known = "requested_rewrite" in fields or "src" in fields
            hint = "; wb.datasets.load_cases reads files of CounterFact and zsRE" if known else ""
            raise RequestError(f"has no {name}{hint}")
    values = {k: fields[k] for k in FIELDS if k in fields}
    for name, value in values.items():
        if not isinstance(value, str):
            raise RequestError(f"{name}={value!r} must be a text")
    prompt, subject = values.pop("prompt"), values.pop("subject", None)
    prompt, subject = _subject(prompt, subject)
    return EditRequest(prompt=prompt, subject=subject, **values)


def _subject(prompt: str, subject: str | None) -> tuple[str, str | None]:
    """The template and the subject of a prompt as it was written."""
    slots = re.findall(r"\{([^{}]*)\}", prompt)
    if len(slots) > 1 or prompt.count("{") != len(slots) or prompt.count("}") != len(slots):
        raise RequestError("has more than one pair of braces: put them around the subject alone")
    if not slots:
        if subject is None:
            return prompt, None
        if subject not in prompt:
            raise RequestError(
                f"subject {subject!r} does not occur in the prompt: spell it as it stands there"
            )
        return prompt.replace(subject, "{}", 1), subject
    marked = slots[0].strip()
    if not marked and subject is None:
        raise RequestError("has empty braces and no subject: write the subject between them")
    if marked and subject is not None and marked != subject:
        raise RequestError(f"names two subjects, {marked!r} in braces and {subject!r} beside them")
    return prompt.replace("{" + slots[0] + "}", "{}"), marked or subject


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def propose_subject(text: str) -> str:
    """A guess at what a prompt is about: its longest run of capitalized words.

    A word that is capitalized only because it begins the sentence counts last; without any capital
    the answer is empty.

    Example:
        >>> propose_subject("The mother tongue of Danielle Darrieux is")
        'Danielle Darrieux'
    """
    runs = [m for m in _CAPITALIZED.finditer(text.strip())]
    inner = [m for m in runs if m.start() > 0]
    chosen = max(inner or runs, key=lambda m: len(m[0]), default=None)
    return chosen[0] if chosen else ""
