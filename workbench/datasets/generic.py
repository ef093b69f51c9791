"""Any file of facts: the schema is recognized by its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from workbench.datasets.counterfacts import Pathlike, counterfact_case
from workbench.datasets.own import own_case
from workbench.datasets.questions import (
    PROTOCOLS,
    easyedit_case,
    warn_literal,
    zsre_case,
)
from workbench.datasets.reading import Row, read_rows
from workbench.datasets.selection import Cases, build
from workbench.errors import DataError, OptionError, did_you_mean
from workbench.facts import EditCase

__all__ = ["SCHEMAS", "load_cases"]

#: schema → keys that every record of it has, the most telling first.
SCHEMAS: dict[str, tuple[str, ...]] = {
    "counterfact": ("requested_rewrite",),
    "zsre": ("src", "answers"),
    "easyedit": ("prompt", "target_new", "rephrase_prompt"),
    "facts": ("prompt", "target_new"),
}


def load_cases(
    path: Pathlike,
    *,
    protocol: str = "memit",
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """Load a file of facts, whatever its schema.

    Args:
        path: ``.json``, ``.jsonl``, ``.csv`` or ``.tsv`` (or ``.gz``) with records of CounterFact,
            zsRE, EasyEdit or our own facts; a table needs the columns ``prompt`` and
            ``target_new`` and may have ``subject``, ``target_true``, ``case_id`` and
            ``paraphrases`` (several divided by ``|``). Where the prompt has no ``{}``, the first
            occurrence of the subject becomes it.
        protocol: of zsRE, see :func:`~workbench.datasets.zsre`.
        limit: only the first so many.
        case_ids: only these, in this order.
        skip_bad: leave bad rows out with a warning instead of raising.

    Raises:
        DataError: for an unknown schema (found keys and known schemas are named) or bad rows.
        OptionError: for an unknown protocol or case ids that are not there.

    Example:
        >>> cases = wb.datasets.load_cases("my_facts.csv")  # doctest: +SKIP
    """
    if protocol not in PROTOCOLS:
        raise OptionError(f"protocol={protocol!r} is unknown." + did_you_mean(protocol, PROTOCOLS))
    rows = read_rows(path)
    schema = recognize(rows, Path(path))
    makers: dict[str, Callable[[dict[str, Any], int], EditCase]] = {
        "counterfact": counterfact_case,
        "zsre": partial(zsre_case, protocol=protocol),
        "easyedit": easyedit_case,
        "facts": _own_or_table,
    }
    cases = build(
        rows,
        makers[schema],
        source=str(path),
        schema=schema,
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
    )
    return warn_literal(cases)


def recognize(rows: Sequence[Row], path: Path) -> str:
    """The schema of the first readable record.

    Raises:
        DataError: if there is none, or its keys are not of a known schema.
    """
    first = next((r.data for r in rows if isinstance(r.data, dict) and not r.error), None)
    if first is None:
        raise DataError(f"{path} has no readable record: {rows[0].place} {rows[0].error}.")
    for schema, keys in SCHEMAS.items():
        if all(key in first for key in keys):
            return schema
    known = "; ".join(f"{name} ({', '.join(keys)}, ...)" for name, keys in SCHEMAS.items())
    raise DataError(
        f"{path} has an unknown schema: its first record has the keys "
        f"{', '.join(map(str, first))}. "
        f"Known schemas: {known}. Rename your columns, or make EditCase objects yourself."
    )


def _own_or_table(fields: dict[str, Any], index: int) -> EditCase:
    """A table's cell of paraphrases is split into a list first."""
    text = fields.get("paraphrases") or fields.get("paraphrase")
    if isinstance(text, str):
        fields = fields | {"paraphrases": [p.strip() for p in text.split("|") if p.strip()]}
    case_id = fields.get("case_id")
    if isinstance(case_id, str) and case_id.isdigit():
        fields = fields | {"case_id": int(case_id)}
    return own_case(fields, index)
