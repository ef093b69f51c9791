"""Plain texts, for key statistics and perplexity."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from workbench.datasets.reading import read_rows
from workbench.datasets.sources import fetch
from workbench.errors import DataError, OptionError
from workbench.textfiles import field_of, hub_rows, json_texts, suffix_of, text_lines

__all__ = ["snippets", "texts"]

_FIELD = "name it with field="
_FILES = "Without it give a .txt or .jsonl file."


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
        found = text_lines(path) if suffix == ".txt" else json_texts(path, field, advice=_FIELD)
    elif suffix in (".txt", ".jsonl", ".json") or path.is_absolute():
        raise DataError(f"there is no file {path}: check the path.")
    else:
        found = _hub(str(source), config, split, field)
    return islice((t for text in found if (t := text.strip())), limit)


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


def _hub(name: str, config: str | None, split: str, field: str) -> Iterator[str]:
    rows = hub_rows(name, config, split=split, advice=_FILES)
    return (field_of(r, field, f"{name}, record {i}", advice=_FIELD) for i, r in enumerate(rows))
