"""Record files as rows: JSON, JSON lines, CSV and TSV, each also gzipped.

A row remembers where it stood, so that an error can point at it. A line of JSON lines that does not
parse is one bad row; a JSON or gzip file that does not parse is a damaged file.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DataError
from workbench.textfiles import READ_ERRORS, explain, open_text, suffix_of

__all__ = ["Row", "read_rows", "read_text"]

FORMATS = (".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class Row:
    """One record of a file.

    Attributes:
        index: position in the file, from 0.
        place: how to find it, such as ``line 12`` or ``record 3``, from 1.
        data: the fields; anything but a dictionary is a bad row.
        error: why the row could not be read; empty if it could.
    """

    index: int
    place: str
    data: Any
    error: str = ""


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All records of a file, in order.

    Args:
        path: ``.json`` (a list of records), ``.jsonl``, ``.csv`` or ``.tsv``, optionally ``.gz``.

    Raises:
        DataError: if the file is missing, damaged, truncated, empty or of another format.

    Example:
        >>> rows = read_rows("counterfact.json")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    suffix = suffix_of(path)
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(f"{path}: suffix {suffix!r} is unknown; use one of {known} (or + .gz).")
    text = read_text(path)
    readers = {".json": _json_rows, ".jsonl": _line_rows}
    rows = readers[suffix](text, path) if suffix in readers else _table_rows(text, suffix)
    if not rows:
        raise DataError(f"{path} holds no records: get the file again.")
    return rows


def read_text(path: Path) -> str:
    """The whole file, decompressed and decoded.

    Raises:
        DataError: naming the path and what to do.
    """
    try:
        with open_text(path) as file:
            return file.read()
    except READ_ERRORS as error:
        raise explain(path, error) from error


def _json_rows(text: str, path: Path) -> list[Row]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "delete it and get it again"
        if error.msg == "Extra data":
            hint = "if it has one record a line, name it .jsonl"
        raise DataError(
            f"{path} is damaged or truncated JSON (line {error.lineno}, column {error.colno}: "
            f"{error.msg}): {hint}."
        ) from error
    if not isinstance(records, list):
        raise DataError(f"{path} holds a {type(records).__name__}, expected a list of records.")
    return [Row(i, f"record {i + 1}", record) for i, record in enumerate(records)]


def _line_rows(text: str, path: Path) -> list[Row]:
    numbered = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_line_row(i, number, line) for i, (number, line) in enumerate(numbered)]


def _line_row(index: int, number: int, line: str) -> Row:
    place = f"line {number}"
    try:
        return Row(index, place, json.loads(line))
    except json.JSONDecodeError as error:
        return Row(index, place, None, f"is not JSON ({error.msg} at column {error.colno})")


def _table_rows(text: str, suffix: str) -> list[Row]:
    return list(_iterate_table(text, "\t" if suffix == ".tsv" else ","))


def _iterate_table(text: str, delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    for index, record in enumerate(reader):
        fields = {k.strip(): v.strip() for k, v in record.items() if k and v and v.strip()}
        extra = "has more cells than the header" if None in record else ""
        yield Row(index, f"line {reader.line_num}", fields, extra)
