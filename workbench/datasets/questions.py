"""zsRE in MEND's schema, and EasyEdit's one-rephrase, one-locality schema.

The literature uses zsRE in two ways that cannot be compared. MEMIT (arXiv 2210.07229) writes the
true answer and measures token accuracy, locality against the gold answer; EasyEdit (2308.07269) and
CoachHook (2403.05330) write a counterfactual and measure locality as agreement with the unedited
model.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any
from warnings import warn

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.reading import read_rows
from workbench.datasets.selection import Cases, build, request_of, text_of
from workbench.datasets.sources import fetch
from workbench.errors import OptionError, RequestError, did_you_mean
from workbench.facts import EditCase, Probe

__all__ = ["easyedit", "zsre"]

PROTOCOLS = ("memit", "easyedit")


def zsre(
    path: Pathlike | None = None,
    *,
    protocol: str = "memit",
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """zsRE question answering as cases.

    Args:
        path: ``.json`` or ``.jsonl`` in MEND's schema; None fetches the evaluation half once.
        protocol: ``memit`` writes ``answers[0]``, ``easyedit`` writes ``alt``.
        limit: only the first so many.
        case_ids: only these, in this order; a case's id is its position in the file.
        skip_bad: leave bad records out with a warning instead of raising.

    Returns:
        A list of :class:`~workbench.EditCase` with an efficacy, a paraphrase and a locality probe,
        all without foil. Questions that do not contain their subject are literal
        (``subject=None``, tag ``literal``); a warning and ``.report.counts["literal"]`` count them.
        Records without a locality question carry the tag ``no_locality``.

    Raises:
        DataError, FetchError, OptionError: as :func:`~workbench.datasets.counterfact`.

    Example:
        >>> cases = wb.datasets.zsre("zsre.json", limit=100)  # doctest: +SKIP
    """
    if protocol not in PROTOCOLS:
        raise OptionError(f"protocol={protocol!r} is unknown." + did_you_mean(protocol, PROTOCOLS))
    path = fetch("zsre") if path is None else path
    cases = build(
        read_rows(path),
        partial(zsre_case, protocol=protocol),
        source=str(path),
        schema="zsre",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
    )
    return warn_literal(cases)


def easyedit(
    path: Pathlike | None = None,
    *,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """EasyEdit's ``counterfact-edit.json`` (CoachHook's data) as cases.

    Efficacy and paraphrase have the ground truth as foil; locality has none. Arguments, returns
    and errors as :func:`zsre`; there is no direct address, see ``wb.datasets.where("easyedit")``.

    Example:
        >>> cases = wb.datasets.easyedit("counterfact-edit.json", limit=100)  # doctest: +SKIP
    """
    if path is None:
        path = fetch("easyedit")
    cases = build(
        read_rows(path),
        easyedit_case,
        source=str(path),
        schema="easyedit",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
    )
    return warn_literal(cases)


def zsre_case(fields: dict[str, Any], index: int, *, protocol: str = "memit") -> EditCase:
    """One record of MEND's schema as a case."""
    if protocol == "easyedit":
        target, true = text_of(fields, "alt"), _gold(fields)
    else:
        target, true = _required_gold(fields), None
    request = request_of(text_of(fields, "src"), fields.get("subject"), target, target_true=true)
    probes = [Probe(prompt=request.text, target=target)]
    if fields.get("rephrase"):
        prompt = text_of(fields, "rephrase")
        probes.append(Probe(prompt=prompt, target=target, kind="paraphrase"))
    tags: dict[str, Any] = {} if request.subject else {"literal": True}
    if fields.get("loc") and fields.get("loc_ans"):
        prompt = f"{text_of(fields, 'loc')}?"
        probes.append(Probe(prompt=prompt, target=text_of(fields, "loc_ans"), kind="locality"))
    else:
        tags["no_locality"] = True
    case_id = fields.get("case_id", index)
    return EditCase(request=request, probes=tuple(probes), case_id=case_id, tags=tags)


def easyedit_case(fields: dict[str, Any], index: int) -> EditCase:
    """One record of EasyEdit's schema as a case."""
    target, true = text_of(fields, "target_new"), fields.get("ground_truth") or None
    request = request_of(text_of(fields, "prompt"), fields.get("subject"), target, target_true=true)
    probes = [Probe(prompt=request.text, target=target, foil=true)]
    if fields.get("rephrase_prompt"):
        prompt = text_of(fields, "rephrase_prompt")
        probes.append(Probe(prompt=prompt, target=target, foil=true, kind="paraphrase"))
    tags: dict[str, Any] = {} if request.subject else {"literal": True}
    if fields.get("locality_prompt") and fields.get("locality_ground_truth"):
        prompt, answer = (
            text_of(fields, "locality_prompt"),
            text_of(fields, "locality_ground_truth"),
        )
        probes.append(Probe(prompt=prompt, target=answer, kind="locality"))
    else:
        tags["no_locality"] = True
    case_id = fields.get("case_id", index)
    return EditCase(request=request, probes=tuple(probes), case_id=case_id, tags=tags)


def warn_literal(cases: Cases) -> Cases:
    """Say how many cases have no subject slot."""
    n = cases.report.counts.get("literal", 0)
    if n:
        warn(
            f"{n} of {len(cases)} prompts do not contain their subject; they were loaded as "
            "literal prompts (subject=None), which locate-then-edit editors refuse.",
            stacklevel=3,
        )
    return cases


def _gold(fields: dict[str, Any]) -> str | None:
    answers = fields.get("answers")
    return answers[0] if isinstance(answers, list) and answers else None


def _required_gold(fields: dict[str, Any]) -> str:
    gold = _gold(fields)
    if not isinstance(gold, str) or not gold.strip():
        raise RequestError(f"field 'answers' is {fields.get('answers')!r}; it must hold an answer")
    return gold
