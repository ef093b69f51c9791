"""The data of GRACE's lifelong tasks: topics of court cases, hallucinations, questions, NQ.

Streams in the order in which mistakes would come (arXiv 2211.11031; spec memory-and-meta 3). A
request says what is right; whether the model errs is for the run to find out. Departures from the
published builders: questions that name one thing twice are kept once, holdout questions are other
wordings of what the stream writes, and topics are held out by term.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.reading import Row, read_rows, read_text
from workbench.datasets.selection import Cases, build, request_of, text_of
from workbench.datasets.sources import fetch
from workbench.errors import DataError, OptionError, RequestError, did_you_mean
from workbench.facts import EditCase, EditRequest, Probe

__all__ = ["hallucination", "nq", "topics", "zsre_stream"]

TOPIC_PARTS = ("train", "upstream", "edits")
#: Terms from which on a court case is held out, and from which on it is in the stream.
TERMS = (1994, 1999)
HALLUCINATION_PARTS = ("edits", "originals", "accurates")
#: Rewordings that the published stream takes of a question which has so many.
REWORDINGS = 10


def topics(
    path: Pathlike | None = None,
    *,
    part: str = "edits",
    areas: int = 8,
    terms: tuple[int, int] = TERMS,
    words: int = 100,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """Court cases and what they are about, in the order of their terms.

    Args:
        path: records with ``facts, issue_area, term`` (a year, or years), or as published
            ``text, label``, then taken to be in order; None asks for the canonical source.
        part: ``train`` (terms before ``terms[0]``), ``upstream`` (held out, before ``terms[1]``) or
            ``edits`` (from then on). Records without term: the first 60, the next 10, the last 30
            percent.
        areas: so many of the largest areas; all other records are left out.
        terms: first years of the last two parts.
        words: a text is cut after so many; markup is taken out.
        limit, case_ids, skip_bad: as in :func:`zsre`; a case's id is its position in the file.

    Returns:
        Cases whose request is the text and the area's name; tags ``term`` and ``part``.

    Raises:
        DataError, FetchError, OptionError: as :func:`~workbench.datasets.counterfact`.

    Example:
        >>> cases = wb.datasets.topics("scotus_justice.jsonl", part="edits")  # doctest: +SKIP
    """
    _one_of("part", part, TOPIC_PARTS)
    path = fetch("grace_scotus") if path is None else path
    rows = read_rows(path)
    counted = Counter(str(_area(r.data)) for r in rows if _area(r.data))
    largest = {area for area, _ in counted.most_common(areas)}
    dated = sorted(
        (_term(r, len(rows)), r.index, r)
        for r in rows
        if not isinstance(r.data, dict) or _area(r.data) in largest
    )
    bounds = terms if any(term >= 1000 for term, _, _ in dated) else (60, 70)
    kept = [r for term, _, r in dated if _part_of(term, bounds) == part]
    return build(
        kept,
        partial(_topic, words=words, part=part),
        source=str(path),
        schema="topics",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
        counts={"other parts or areas": len(rows) - len(kept)},
    )


def hallucination(
    path: Pathlike | None = None,
    *,
    part: str = "edits",
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """Sentences of biographies: what stands behind a beginning that a model wrote.

    Args:
        path: ``.json`` with lists ``edits, originals, accurates`` of ``text, labels, concept``;
            None asks for the canonical source.
        part: ``edits`` (the true sentence), ``originals`` (what the model had made up there) or
            ``accurates`` (what it had right).
        limit, case_ids, skip_bad: as in :func:`zsre`; a case's id is its position in its list.

    Returns:
        Cases whose request is the beginning and the sentence; tag ``concept``.

    Raises:
        DataError, FetchError, OptionError: as :func:`~workbench.datasets.counterfact`.

    Example:
        >>> cases = wb.datasets.hallucination("hallucination.json", limit=100)  # doctest: +SKIP
    """
    _one_of("part", part, HALLUCINATION_PARTS)
    path = fetch("grace_hallucination") if path is None else path
    return build(
        _rows_under(Path(path).expanduser(), part),
        _sentence,
        source=str(path),
        schema="hallucination",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
    )


def zsre_stream(
    path: Pathlike | None = None,
    *,
    template: str = "{}",
    seed: int = 0,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """zsRE as a stream: half of all wordings of all questions, mixed, with their true answers.

    Args:
        path: records in MEND's schema (``src, rephrase, answers, subject``) or as annotated for
            KnowledgeEditor (``input, output, filtered_rephrases``, of which the first ten); None
            fetches the evaluation half of MEND's.
        template: what a question stands in, such as ``"Question: {}\\nAnswer:"`` for a decoder.
        seed: of the mixing and of the halves.
        limit, case_ids, skip_bad: as in :func:`zsre`. A case's id is the record's position and the
            wording's, such as ``"17:1"``, whatever the seed.

    Returns:
        Cases with a probe of kind ``holdout`` for each wording of their question that fell to the
        other half; tag ``fact`` (position of the record).

    Raises:
        DataError, FetchError, OptionError: as :func:`~workbench.datasets.counterfact`.

    Example:
        >>> cases = wb.datasets.zsre_stream("zsre.json", limit=300)  # doctest: +SKIP
    """
    if template.count("{}") != 1:
        raise OptionError(f"template={template!r}: it must have exactly one {{}}.")
    path = fetch("zsre") if path is None else path
    wordings = _wordings(read_rows(path), skip_bad, str(path))
    random.Random(seed).shuffle(wordings)
    stream, held = wordings[: -(-len(wordings) // 2)], wordings[-(-len(wordings) // 2) :]
    others: dict[int, list[str]] = {}
    for each in held:
        others.setdefault(each["fact"], []).append(each["question"])
    rows = [Row(i, f"wording {w['case_id']}", w) for i, w in enumerate(stream)]
    return build(
        rows,
        partial(_question, template=template, others=others),
        source=str(path),
        schema="zsre stream",
        limit=limit,
        case_ids=case_ids,
    )


def nq(
    path: Pathlike | None = None,
    *,
    template: str = "{}",
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """Natural Questions, as what a model shall not forget.

    Args:
        path: records ``question, answer`` (one or a list; the shortest counts), or as published a
            ``.json`` with lists ``questions`` and ``answers``; None fetches the
            open version's development questions once.
        template: as in :func:`zsre_stream`.
        limit, case_ids, skip_bad: as in :func:`zsre`; a case's id is its position in the file.

    Returns:
        Cases with one probe of kind ``upstream``; questions begin with a capital letter and end
        with a question mark.

    Raises:
        DataError, FetchError, OptionError: as :func:`~workbench.datasets.counterfact`.

    Example:
        >>> cases = wb.datasets.nq("nq_open_dev.jsonl", limit=200)  # doctest: +SKIP
    """
    path = Path(fetch("natural_questions") if path is None else path).expanduser()
    return build(
        _question_rows(path),
        partial(_upstream, template=template),
        source=str(path),
        schema="nq",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
    )


# ---------------------------------------------------------------------- topics


def _area(fields: Any) -> str | None:
    if not isinstance(fields, dict):
        return None
    area = fields.get("issue_area", fields.get("label"))
    return None if area is None or not str(area).strip() else str(area).strip()


def _term(row: Row, n: int) -> int:
    """First year of a term; how far into the file a record without one stands, in percent."""
    term = row.data.get("term") if isinstance(row.data, dict) else None
    found = re.search(r"\d{4}", str(term))
    return int(found.group()) if found else 100 * row.index // n


def _part_of(term: int, bounds: tuple[int, int]) -> str:
    return TOPIC_PARTS[sum(term >= bound for bound in bounds)]


def _topic(fields: dict[str, Any], index: int, *, words: int, part: str) -> EditCase:
    raw = text_of(fields, "facts" if "facts" in fields else "text")
    text = " ".join(re.sub(r"<[^>]*>|&\w+;", " ", raw).split()[:words])
    request = EditRequest(prompt=text, target_new=_area(fields) or "")
    probe = Probe(prompt=text, target=request.target_new)
    tags = {"part": part, "term": fields.get("term")}
    return EditCase(request=request, probes=(probe,), case_id=index, tags=tags)


# ---------------------------------------------------------------------- hallucinations


def _rows_under(path: Path, part: str) -> list[Row]:
    try:
        records = json.loads(read_text(path))[part]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no file of hallucinations ({error!r}): it must be JSON with lists "
            f"{', '.join(HALLUCINATION_PARTS)}."
        ) from error
    return [Row(i, f"{part}, record {i + 1}", record) for i, record in enumerate(records)]


def _sentence(fields: dict[str, Any], index: int) -> EditCase:
    prompt, target = text_of(fields, "text").strip(), text_of(fields, "labels").strip()
    request = EditRequest(prompt=prompt, target_new=target)
    tags = {"concept": fields.get("concept")}
    probe = Probe(prompt=prompt, target=target)
    return EditCase(request=request, probes=(probe,), case_id=index, tags=tags)


# ---------------------------------------------------------------------- questions


def _wordings(rows: Sequence[Row], skip_bad: bool, source: str) -> list[dict[str, Any]]:
    """Every wording of every question once: ``case_id, fact, question, answer, subject``."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            questions, answer = _asked(row.data)
        except (RequestError, KeyError, TypeError, AttributeError, IndexError) as error:
            if skip_bad:
                continue
            raise DataError(
                f"{source}, {row.place} is no question with an answer ({error}). Mend it, or pass "
                "skip_bad=True to leave bad records out."
            ) from error
        subject = row.data.get("subject")
        for k, question in enumerate(questions):
            known = {"case_id": f"{row.index}:{k}", "fact": row.index, "subject": subject}
            found.setdefault(question, known | {"question": question, "answer": answer})
    return list(found.values())


def _asked(fields: dict[str, Any]) -> tuple[list[str], str]:
    """Wordings and the answer of a record, in either schema."""
    if "input" in fields:
        more = fields.get("filtered_rephrases") or []
        more = more[:REWORDINGS] if len(more) >= REWORDINGS else []
        return [text_of(fields, "input"), *more], text_of(fields["output"][0], "answer")
    answer = text_of({"answers": fields["answers"][0]}, "answers")
    more = [fields["rephrase"]] if fields.get("rephrase") else []
    return [text_of(fields, "src"), *more], answer


def _question(
    fields: dict[str, Any], index: int, *, template: str, others: dict[int, list[str]]
) -> EditCase:
    prompt, answer = template.replace("{}", fields["question"]), fields["answer"]
    request = request_of(prompt, fields.get("subject"), answer)
    probes = [Probe(prompt=request.text, target=answer)]
    for other in others.get(fields["fact"], ()):
        probes.append(Probe(prompt=template.replace("{}", other), target=answer, kind="holdout"))
    tags: dict[str, Any] = {"fact": fields["fact"]}
    if request.subject is None:
        tags["literal"] = True
    return EditCase(request=request, probes=tuple(probes), case_id=fields["case_id"], tags=tags)


def _question_rows(path: Path) -> list[Row]:
    if path.suffix != ".json":
        return read_rows(path)
    try:
        held = json.loads(read_text(path))
        if isinstance(held, list):
            return read_rows(path)
        pairs = list(zip(held["questions"], held["answers"], strict=True))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no file of questions ({error!r}): it must hold records with question and "
            "answer, or lists questions and answers of one length."
        ) from error
    return [
        Row(i, f"question {i + 1}", {"question": q, "answer": a}) for i, (q, a) in enumerate(pairs)
    ]


def _upstream(fields: dict[str, Any], index: int, *, template: str) -> EditCase:
    question = text_of(fields, "question").strip()
    question = question[0].upper() + question[1:].removesuffix("?") + "?"
    answers = fields["answer"] if isinstance(fields["answer"], list) else [fields["answer"]]
    answer = min((str(a).strip() for a in answers), key=len)
    request = EditRequest(prompt=template.replace("{}", question), target_new=answer)
    probe = Probe(prompt=request.text, target=answer, kind="upstream")
    return EditCase(request=request, probes=(probe,), case_id=fields.get("case_id", index))


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{option}={value!r} is unknown." + did_you_mean(value, known))
