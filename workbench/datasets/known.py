"""Facts for the causal trace: prompts that GPT-2 XL completes rightly (ROME, arXiv 2202.05262).

Record: ``known_id, subject, attribute, template, prediction, prompt, relation_id``. The prompt
counts, not the template: where the model took a detour before its answer, the prompt contains it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.reading import Row, read_rows
from workbench.datasets.selection import Cases, build, text_of
from workbench.datasets.sources import fetch
from workbench.facts import EditCase, EditRequest

__all__ = ["known_facts"]


def known_facts(
    path: Pathlike | None = None,
    *,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """Facts to trace, as cases.

    Args:
        path: ``known_1000.json`` in ROME's schema; None fetches the original once.
        limit: only the first so many.
        case_ids: only these ``known_id``, in this order.
        skip_bad: leave bad records out with a warning instead of raising.

    Returns:
        A list of :class:`~workbench.EditCase`. There is nothing to write: ``target_new`` and
        ``target_true`` are both the answer. Tags: ``relation``.

    Raises:
        DataError: for a missing, damaged or malformed file.
        FetchError: if it has to be fetched and cannot be.
        OptionError: for case ids that are not there.

    Example:
        >>> wb.causal_average(view, wb.datasets.known_facts(), limit=30)  # doctest: +SKIP
    """
    path = fetch("known_facts") if path is None else path
    return build(
        [_with_id(row) for row in read_rows(path)],
        known_case,
        source=str(path),
        schema="known_facts",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
    )


def known_case(fields: dict[str, Any], index: int) -> EditCase:
    """One record as a case."""
    answer = text_of(fields, "attribute")
    request = EditRequest.from_text(
        text_of(fields, "prompt"),
        subject=text_of(fields, "subject"),
        target_new=answer,
        target_true=answer,
    )
    tags = {"relation": fields.get("relation_id")}
    return EditCase(request=request, case_id=fields.get("case_id", index), tags=tags)


def _with_id(row: Row) -> Row:
    """The row with its ``known_id`` as ``case_id``."""
    if not isinstance(row.data, dict) or "known_id" not in row.data:
        return row
    return Row(row.index, row.place, row.data | {"case_id": row.data["known_id"]}, row.error)
