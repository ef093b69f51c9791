"""From rows to cases: validation, choice by id, and a report of what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from warnings import warn

from workbench.datasets.reading import Row
from workbench.errors import DataError, OptionError, RequestError
from workbench.facts import EditCase, EditRequest

__all__ = ["Cases", "LoadReport", "build", "request_of", "text_of"]

#: How many bad rows or missing ids a message lists.
LISTED = 5

#: ``make(fields, index) -> EditCase``; a malformed record raises.
Maker = Callable[[dict[str, Any], int], EditCase]


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a loader did.

    Attributes:
        source: the file.
        schema: ``counterfact``, ``zsre``, ``easyedit``, ``facts`` or ``table``.
        rows: records in the file.
        skipped: (place, reason) of every bad row; empty unless ``skip_bad=True``.
        counts: how many cases carry a flag (``literal``, ``rebuilt``, ``no_locality``), and how
            many rows were taken out: ``conflicts`` (:func:`~workbench.datasets.multi_counterfact`)
            and ``unknown`` (``known_to=``).
    """

    source: str
    schema: str
    rows: int
    skipped: tuple[tuple[str, str], ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


class Cases(list[EditCase]):
    """A list of cases that knows where it came from.

    Attributes:
        report: a :class:`LoadReport`.
    """

    def __init__(self, cases: Iterable[EditCase], report: LoadReport) -> None:
        super().__init__(cases)
        self.report = report


def build(
    rows: Sequence[Row],
    make: Maker,
    *,
    source: str,
    schema: str,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
    counts: dict[str, int] | None = None,
) -> Cases:
    """Turn rows into cases.

    Args:
        rows: records of one file.
        make: turns the fields of one record into a case, or raises.
        source: shown in messages.
        schema: its name, for the report.
        limit: stop after so many good cases; rows behind are not looked at.
        case_ids: only these, in this order.
        skip_bad: leave bad rows out with a warning instead of raising.
        counts: reason → rows taken out before, for the report.

    Raises:
        DataError: for bad rows, with the places of the first few.
        OptionError: for a bad limit, or case ids that the file does not have.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit}: it must be at least 1, or None for everything.")
    chosen = rows if case_ids is None else _choose(rows, list(case_ids), source)
    cases, bad = _convert(chosen, make, limit, skip_bad)
    if bad:
        _complain(bad, len(rows), source, skip_bad)
    if not cases:
        raise DataError(f"{source} holds no usable case of {len(rows)} rows.")
    flags = Counter(k for case in cases for k, v in (case.tags or {}).items() if v is True)
    report = LoadReport(
        source=source,
        schema=schema,
        rows=len(rows) + sum((counts or {}).values()),
        skipped=tuple(bad),
        counts={**(counts or {}), **flags},
    )
    return Cases(cases, report)


def row_id(row: Row) -> int | str:
    """The record's ``case_id``, its position without one."""
    found = row.data.get("case_id") if isinstance(row.data, dict) else None
    return row.index if found is None else _as_id(found)


def text_of(fields: dict[str, Any], name: str) -> str:
    """A required text field.

    Raises:
        RequestError: if it is missing, empty or not text.
    """
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        shown = "is missing" if name not in fields else f"is {value!r}"
        raise RequestError(f"field {name!r} {shown}; it must be a non-empty text")
    return value


def request_of(prompt: str, subject: str | None, target_new: str, **fields: Any) -> EditRequest:
    """A request from a template or a sentence.

    The first occurrence of the subject becomes ``{}``; a prompt without its subject is literal.
    """
    if subject is None or not subject.strip():
        return EditRequest(prompt=prompt, target_new=target_new, **fields)
    if "{}" in prompt:
        return EditRequest(prompt=prompt, subject=subject, target_new=target_new, **fields)
    if subject in prompt:
        return EditRequest.from_text(prompt, subject=subject, target_new=target_new, **fields)
    return EditRequest(prompt=prompt, target_new=target_new, **fields)


def _convert(
    rows: Sequence[Row], make: Maker, limit: int | None, skip_bad: bool
) -> tuple[list[EditCase], list[tuple[str, str]]]:
    cases: list[EditCase] = []
    bad: list[tuple[str, str]] = []
    seen: dict[int | str, str] = {}
    for row in rows:
        if limit is not None and len(cases) == limit:
            break
        try:
            cases.append(_one(row, make, seen))
        except (RequestError, KeyError, TypeError, AttributeError, IndexError) as error:
            bad.append((row.place, _reason(error)))
    return cases, bad


def _one(row: Row, make: Maker, seen: dict[int | str, str]) -> EditCase:
    if row.error or not isinstance(row.data, dict):
        raise RequestError(row.error or f"is a {type(row.data).__name__}, not a record")
    case = make(row.data, row.index)
    first = seen.setdefault(case.case_id, row.place)
    if first != row.place:
        raise RequestError(f"case_id {case.case_id!r} was used already in {first}")
    return case


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing"
    return str(error).rstrip(".")


def _complain(bad: list[tuple[str, str]], n_rows: int, source: str, skip_bad: bool) -> None:
    listed = "; ".join(f"{place}: {reason}" for place, reason in bad[:LISTED])
    more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    said = f"{source}: {len(bad)} of {n_rows} rows are bad ({listed}{more})"
    if not skip_bad:
        raise DataError(f"{said}. Mend them, or pass skip_bad=True to leave them out.")
    warn(f"{said}; they were left out.", stacklevel=4)


def _choose(rows: Sequence[Row], wanted: list[int | str], source: str) -> list[Row]:
    """The wanted rows in the wanted order; ids may be numbers or their texts."""
    by_id = {str(row_id(row)): row for row in reversed(rows)}
    missing = [i for i in wanted if str(i) not in by_id]
    if missing:
        shown = ", ".join(map(repr, missing[:LISTED])) + (", ..." if len(missing) > LISTED else "")
        raise OptionError(
            f"case_ids: {len(missing)} of {len(wanted)} are not in {source} ({shown}): "
            "take ids of this file, or load the file they are from."
        )
    twice = [name for name, n in Counter(map(str, wanted)).items() if n > 1]
    if twice:
        raise OptionError(f"case_ids names {', '.join(twice[:LISTED])} more than once.")
    return [by_id[str(i)] for i in wanted]


def _as_id(value: Any) -> int | str:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text
