"""FEVER: claims that a classifier supports or refutes, as cases.

Two schemas are read: FEVER's own records, and De Cao's (arXiv 2104.08164), which add rewordings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.reading import Row, read_rows
from workbench.datasets.selection import Cases, build, text_of
from workbench.datasets.sources import fetch
from workbench.errors import RequestError, did_you_mean
from workbench.facts import EditCase, EditRequest, Probe

__all__ = ["VERDICTS", "fever"]

#: Labels of a claim, in the order of De Cao's classifier (0, 1).
VERDICTS = ("REFUTES", "SUPPORTS")
_UNDECIDED = "NOT ENOUGH INFO"


def fever(
    path: Pathlike | None = None,
    *,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """FEVER claims as cases that ask for the other verdict.

    Args:
        path: ``.jsonl`` with ``id, label, claim``, or in De Cao's schema (``input, output,
            filtered_rephrases``); None fetches FEVER's training claims once.
        limit: only the first so many.
        case_ids: only these, in this order.
        skip_bad: leave bad records out with a warning instead of raising.

    Returns:
        A list of :class:`~workbench.EditCase`: the claim is the prompt, ``target_new`` the verdict
        that the record does not have, ``target_true`` its own; an efficacy probe, and paraphrase
        probes where the file has rewordings. Claims without a verdict are left out and counted in
        ``.report.counts["undecided"]``.

    Raises:
        DataError, FetchError, OptionError: as :func:`~workbench.datasets.counterfact`.

    Example:
        >>> cases = wb.datasets.fever("fever_claims.jsonl", limit=100)  # doctest: +SKIP
    """
    path = fetch("fever") if path is None else path
    rows = read_rows(path)
    decided = [row for row in rows if not _is_undecided(row)]
    return build(
        decided,
        fever_case,
        source=str(path),
        schema="fever",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
        counts={"undecided": len(rows) - len(decided)},
    )


def fever_case(fields: dict[str, Any], index: int) -> EditCase:
    """One record of either schema as a case."""
    kilt = "input" in fields
    claim = text_of(fields, "input" if kilt else "claim")
    label = fields["output"][0]["answer"] if kilt else text_of(fields, "label")
    if label not in VERDICTS:
        raise RequestError(f"label {label!r} is unknown." + did_you_mean(label, VERDICTS))
    other = VERDICTS[1 - VERDICTS.index(label)]
    wordings = [claim, *(r for r in fields.get("filtered_rephrases") or () if r != claim)]
    probes = tuple(
        Probe(prompt=text, target=other, foil=label, kind="paraphrase" if i else "efficacy")
        for i, text in enumerate(dict.fromkeys(wordings))
    )
    request = EditRequest(prompt=claim, target_new=other, target_true=label)
    return EditCase(request=request, probes=probes, case_id=fields.get("id", index))


def _is_undecided(row: Row) -> bool:
    return isinstance(row.data, dict) and row.data.get("label") == _UNDECIDED
