"""Plain texts, for key statistics and perplexity."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.datasets.reading import explain, open_text, read_rows, suffix_of
from workbench.datasets.sources import fetch
from workbench.errors import DataError, FetchError, OptionError

__all__ = ["snippets", "texts"]

_READ_ERRORS = (OSError, EOFError, UnicodeDecodeError)


def texts(
    source: str | os.PathLike[str],
    *,
    limit: int | None = None,
    field: str = "text",
    config: str | None = None,
    split: str = "train",
) -> Iterator[str]:
    """Texts of a local file or a hub data set, one after another, never all in memory.

    Args:
        source: ``.txt`` (each line that is not blank is a text), ``.jsonl`` (a field of each
            record), both optionally ``.gz``; or a hub id such as ``"Salesforce/wikitext"``.
        limit: at most so many texts.
        field: name of the text field of records.
        config: configuration of a hub data set, such as ``"wikitext-2-raw-v1"``.
        split: of a hub data set.

    Returns:
        An iterator of non-empty strings.

    Raises:
        DataError: for a missing or damaged file, or records without the field.
        FetchError: if a hub data set is asked for and ``datasets`` or the network is missing.

    Example:
        >>> first = next(wb.datasets.texts("wikitext2_train.txt"))  # doctest: +SKIP
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit}: it must be at least 1, or None for everything.")
    path = Path(source).expanduser()
    suffix = suffix_of(path)
    if path.is_file():
        if suffix not in (".txt", ".jsonl"):
            raise DataError(f"{path}: suffix {suffix!r} is unknown; use .txt or .jsonl (or + .gz).")
        found = _lines(path) if suffix == ".txt" else _fields(path, field)
    elif suffix in (".txt", ".jsonl", ".json") or path.is_absolute():
        raise DataError(f"there is no file {path}: check the path.")
    else:
        found = _hub(str(source), config, split, field)
    return islice(found, limit)


def snippets(path: str | os.PathLike[str] | None = None) -> dict[tuple[str, str], list[str]]:
    """Reference texts of ROME's consistency score: (relation id, target id) → texts.

    Args:
        path: ``attribute_snippets.json`` or ``.json.gz``; None fetches it once.

    Raises:
        DataError: for a missing, damaged or malformed file.
        FetchError: if it has to be fetched and cannot be.

    Example:
        >>> references = wb.datasets.snippets()["P103", "Q1860"]  # doctest: +SKIP
    """
    file = fetch("attribute_snippets") if path is None else Path(path).expanduser()
    found: dict[tuple[str, str], list[str]] = {}
    for row in read_rows(file):
        try:
            key = (row.data["relation_id"], row.data["target_id"])
            found.setdefault(key, []).extend(s["text"] for s in row.data["samples"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}, {row.place} is not a snippet record ({error!r}).") from error
    return found


def _lines(path: Path) -> Iterator[str]:
    for _, line in _numbered(path):
        yield line


def _fields(path: Path, field: str) -> Iterator[str]:
    for number, line in _numbered(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg}.") from error
        if text := _text(record, field, f"{path}, line {number}"):
            yield text


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and stripped lines, blank ones left out."""
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except _READ_ERRORS as error:
        raise explain(path, error) from error


def _hub(name: str, config: str | None, split: str, field: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise FetchError(
            f"{name!r} is not a local file, and hub data sets need the package `datasets`: "
            "pip install datasets, or give a .txt or .jsonl file."
        ) from error
    try:
        records = load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the hub client raises many kinds
        first = str(error).strip().split("\n")[0][:200]
        raise FetchError(
            f"the data set {name!r} could not be had from the hub ({first}). Offline: give "
            "a .txt or .jsonl file."
        ) from error
    return (t for i, r in enumerate(records) if (t := _text(r, field, f"{name}, record {i}")))


def _text(record: Any, field: str, place: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        keys = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise DataError(
            f"{place} has no text field {field!r} (found: {keys}): name it with field=."
        )
    return str(record[field]).strip()
