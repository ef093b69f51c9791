"""Texts where they lie: plain and gzipped files line by line, records of JSON lines, the hub.

Nothing is held in memory but the line at hand. Errors name the file and the line; what the caller
could give instead is the caller's ``advice``.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.errors import DataError, FetchError

__all__ = [
    "READ_ERRORS",
    "explain",
    "field_of",
    "hub_rows",
    "json_texts",
    "open_text",
    "suffix_of",
    "text_lines",
]

#: What reading a damaged file raises; :func:`explain` turns it into a sentence.
READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)


def suffix_of(path: Path) -> str:
    """The suffix that says the format, ``.gz`` aside: ``facts.jsonl.gz`` → ``.jsonl``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def open_text(path: Path) -> io.TextIOBase:
    """Open a plain or gzipped UTF-8 file (a byte-order mark is skipped)."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")  # type: ignore[return-value]
    return path.open(encoding="utf-8-sig", newline="")  # type: ignore[return-value]


def explain(path: Path, error: Exception) -> DataError:
    """What went wrong with a file, and what to do."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"there is no file {path}: check the path.")
    if isinstance(error, UnicodeDecodeError):
        return DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).")
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return DataError(f"{path} is damaged or truncated ({error}): delete it and get it again.")
    return DataError(f"{path} cannot be read ({error.__class__.__name__}: {error}).")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file as they are, blank ones too.

    Raises:
        DataError: for a file that is missing, damaged or no text.
    """
    try:
        with open_text(path) as file:
            yield from file
    except READ_ERRORS as error:
        raise explain(path, error) from error


def json_texts(path: Path, field: str, *, advice: str) -> Iterator[str]:
    """One field of each record of a file of JSON lines.

    Raises:
        DataError: as :func:`text_lines`, and for a line that is no record with this text field.
    """
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place} is not JSON: {error.msg}.") from error
        yield field_of(record, field, place, advice=advice)


def field_of(record: Any, field: str, place: str, *, advice: str) -> str:
    """A record's text.

    Raises:
        DataError: naming the place and the fields that are there.
    """
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        keys = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{place} has no text field {field!r} (found: {keys}): {advice}.")
    return str(record[field])


def hub_rows(
    name: str, config: str | None, *, split: str, revision: str | None = None, advice: str
) -> Any:
    """Records of a data set of the hub, streamed; iterable, and shuffled with ``.shuffle``.

    Raises:
        FetchError: if the package ``datasets`` or the network is missing.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise FetchError(
            f"{name!r} is not a local file, and data sets of the hub need the package datasets "
            f"(pip install datasets). {advice}"
        ) from error
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    except Exception as error:  # the hub client raises many kinds
        first = str(error).strip().split("\n")[0][:200]
        raise FetchError(
            f"the data set {name!r} could not be had from the hub ({first}). {advice}"
        ) from error
