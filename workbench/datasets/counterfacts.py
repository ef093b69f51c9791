"""CounterFact, in ROME's schema (arXiv 2202.05262, section 3.3) and without conflicts (MEMIT).

Neighborhood probes ask about near subjects: the true answer should win over the new one. Attribute
probes ask about subjects for which the new answer is true.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from workbench.datasets.reading import Row, read_rows
from workbench.datasets.selection import Cases, build, text_of
from workbench.datasets.sources import fetch
from workbench.errors import RequestError
from workbench.facts import EditCase, EditRequest, Probe

__all__ = ["counterfact", "multi_counterfact"]

Pathlike = str | os.PathLike[str]


def counterfact(
    path: Pathlike | None = None,
    *,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    attribute: bool = False,
    skip_bad: bool = False,
) -> Cases:
    """CounterFact as cases.

    Args:
        path: ``.json`` or ``.jsonl`` (or ``.gz``) in ROME's schema; None fetches the original once.
        limit: only the first so many.
        case_ids: only these, in this order.
        attribute: also the attribute probes (``attribute_prompts``).
        skip_bad: leave bad records out with a warning instead of raising.

    Returns:
        A list of :class:`~workbench.EditCase`. Tags: ``relation``, ``target_new_id``,
        ``target_true_id``, ``generation_prompts``, and ``rebuilt: True`` for records that are not
        originals (their paraphrases are single rephrasings: leave them out of tables that are set
        beside a paper's).

    Raises:
        DataError: for a missing, damaged or malformed file.
        FetchError: if it has to be fetched and cannot be.
        OptionError: for case ids that are not there.

    Example:
        >>> cases = wb.datasets.counterfact("counterfact.json", limit=100)  # doctest: +SKIP
    """
    path = fetch("counterfact") if path is None else path
    make = partial(counterfact_case, attribute=attribute)
    return build(
        read_rows(path),
        make,
        source=str(path),
        schema="counterfact",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
    )


def multi_counterfact(
    path: Pathlike | None = None,
    *,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    attribute: bool = False,
    skip_bad: bool = False,
) -> Cases:
    """CounterFact without conflicts, for batches and streams (MEMIT, arXiv 2210.07229).

    Of several records about the same subject and relation the first is kept; the report's
    ``counts["conflicts"]`` says how many went. Arguments and errors as :func:`counterfact`.

    Example:
        >>> cases = wb.datasets.multi_counterfact(limit=2000)  # doctest: +SKIP
    """
    path = fetch("multi_counterfact") if path is None else path
    rows = read_rows(path)
    kept = without_conflicts(rows)
    return build(
        kept,
        partial(counterfact_case, attribute=attribute),
        source=str(path),
        schema="counterfact",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
        counts={"conflicts": len(rows) - len(kept)},
    )


def counterfact_case(fields: dict[str, Any], index: int, *, attribute: bool = False) -> EditCase:
    """One record of ROME's schema as a case."""
    rewrite = fields["requested_rewrite"]
    request = EditRequest(
        prompt=text_of(rewrite, "prompt"),
        subject=text_of(rewrite, "subject"),
        target_new=_target(rewrite, "target_new"),
        target_true=_target(rewrite, "target_true"),
    )
    new, true = request.target_new, request.target_true
    probes = [Probe(prompt=request.text, target=new, foil=true)]
    probes += _probes(fields, "paraphrase_prompts", "paraphrase", new, true)
    probes += _probes(fields, "neighborhood_prompts", "neighborhood", str(true), new)
    if attribute:
        probes += _probes(fields, "attribute_prompts", "attribute", new, true)
    case_id = fields.get("case_id", index)
    return EditCase(request=request, probes=tuple(probes), case_id=case_id, tags=_tags(fields))


def without_conflicts(rows: Sequence[Row]) -> list[Row]:
    """The first row of each (subject, relation); malformed rows pass, they are judged later."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows:
        key = _fact(row.data)
        if key is None or key not in seen:
            kept.append(row)
        if key is not None:
            seen.add(key)
    return kept


def _fact(fields: Any) -> tuple[str, str] | None:
    """What the record is about: subject and relation (its id, else the prompt)."""
    rewrite = fields.get("requested_rewrite") if isinstance(fields, dict) else None
    if not isinstance(rewrite, dict):
        return None
    return str(rewrite.get("subject")), str(rewrite.get("relation_id") or rewrite.get("prompt"))


def _target(rewrite: dict[str, Any], name: str) -> str:
    value = rewrite[name]
    return text_of(value, "str") if isinstance(value, dict) else text_of(rewrite, name)


def _probes(
    fields: dict[str, Any], name: str, kind: str, target: str, foil: str | None
) -> list[Probe]:
    prompts = fields.get(name) or []
    if not isinstance(prompts, list):
        raise RequestError(f"field {name!r} is a {type(prompts).__name__}, not a list")
    return [Probe(prompt=p, target=target, foil=foil, kind=kind) for p in prompts]


def _tags(fields: dict[str, Any]) -> dict[str, Any]:
    rewrite = fields["requested_rewrite"]
    tags: dict[str, Any] = {"relation": rewrite.get("relation_id")}
    for name in ("target_new", "target_true"):
        if isinstance(rewrite[name], dict):
            tags[f"{name}_id"] = rewrite[name].get("id")
    tags["generation_prompts"] = tuple(fields.get("generation_prompts") or ())
    if fields.get("original") is False:
        tags["rebuilt"] = True
    return tags
