"""Facts of our own: real ones in ``data/facts``, invented ones in ``data/tiny``; both shipped.

Record: ``case_id, relation, prompt, subject, target_true, target_new, paraphrases`` (texts),
``neighborhood`` and ``attribute`` (lists of ``{prompt, target}``), ``known`` (model → bool),
``source``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.reading import Row, read_rows
from workbench.datasets.selection import Cases, build, request_of, text_of
from workbench.errors import DataError, OptionError, RequestError, did_you_mean
from workbench.facts import EditCase, Probe
from workbench.places import shipped

__all__ = ["facts", "tiny"]


def facts(
    path: Pathlike | None = None,
    *,
    known_to: str | None = None,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """The shipped set of real facts as cases.

    Args:
        path: another file in the same schema; None is the shipped one.
        known_to: only facts that this model answers rightly, such as ``"smollm2-135m"``.
        limit: only the first so many.
        case_ids: only these, in this order.
        skip_bad: leave bad records out with a warning instead of raising.

    Returns:
        A list of :class:`~workbench.EditCase` with efficacy, paraphrase, neighborhood (the near
        subject's answer against ``target_new``) and attribute probes (other facts of the subject;
        no foil unless the record gives one). Tags: ``relation``, ``known``, ``source``.

    Raises:
        DataError: for a missing, damaged or malformed file.
        OptionError: for case ids or a model that the file does not have.

    Example:
        >>> cases = wb.datasets.facts(known_to="smollm2-135m", limit=20)  # doctest: +SKIP
    """
    return _load("facts", path, known_to, limit, case_ids, skip_bad)


def tiny(
    path: Pathlike | None = None,
    *,
    known_to: str | None = None,
    limit: int | None = None,
    case_ids: Iterable[int | str] | None = None,
    skip_bad: bool = False,
) -> Cases:
    """Facts of the invented world that the tiny models know. Everything as in :func:`facts`.

    Example:
        >>> cases = wb.datasets.tiny(limit=10)  # doctest: +SKIP
    """
    return _load("tiny", path, known_to, limit, case_ids, skip_bad)


def own_case(fields: dict[str, Any], index: int) -> EditCase:
    """One record of our schema as a case."""
    new, true = text_of(fields, "target_new"), fields.get("target_true") or None
    request = request_of(text_of(fields, "prompt"), fields.get("subject"), new, target_true=true)
    probes = [Probe(prompt=request.text, target=new, foil=true)]
    for prompt in _listed(fields, "paraphrases"):
        probes.append(Probe(prompt=prompt, target=new, foil=true, kind="paraphrase"))
    for near in _listed(fields, "neighborhood"):
        probes.append(_probe(near, "neighborhood", new))
    for other in _listed(fields, "attribute"):
        probes.append(_probe(other, "attribute", other.get("foil")))
    tags = {k: fields[k] for k in ("relation", "known", "source") if fields.get(k) is not None}
    if request.subject is None:
        tags["literal"] = True
    case_id = fields.get("case_id", index)
    return EditCase(request=request, probes=tuple(probes), case_id=case_id, tags=tags)


def _load(
    name: str,
    path: Pathlike | None,
    known_to: str | None,
    limit: int | None,
    case_ids: Iterable[int | str] | None,
    skip_bad: bool,
) -> Cases:
    file = _shipped_file(name) if path is None else Path(path).expanduser()
    rows = read_rows(file)
    kept = rows if known_to is None else _known(rows, known_to, file)
    return build(
        kept,
        own_case,
        source=str(file),
        schema="facts",
        limit=limit,
        case_ids=case_ids,
        skip_bad=skip_bad,
        counts={} if known_to is None else {"unknown": len(rows) - len(kept)},
    )


def _shipped_file(name: str) -> Path:
    file = shipped(name) / "facts.jsonl"
    if not file.is_file():
        raise DataError(f"the shipped file {file} is missing: install Workbench again.")
    return file


def _known(rows: Sequence[Row], model: str, file: Path) -> list[Row]:
    """Rows whose ``known`` says true for the model; rows that cannot say stay and are judged."""
    tables = [r.data.get("known") or {} for r in rows if isinstance(r.data, dict)]
    models = {name for table in tables for name in table}
    if model not in models:
        raise OptionError(
            f"known_to={model!r}: {file} does not say what this model knows."
            + did_you_mean(model, models)
        )
    return [
        r for r in rows if not isinstance(r.data, dict) or (r.data.get("known") or {}).get(model)
    ]


def _listed(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name) or []
    if not isinstance(value, list):
        raise RequestError(f"field {name!r} is a {type(value).__name__}, not a list")
    return value


def _probe(entry: Any, kind: str, foil: str | None) -> Probe:
    if not isinstance(entry, dict):
        raise RequestError(f"an entry of {kind!r} is {entry!r}, not {{prompt, target}}")
    return Probe(prompt=entry["prompt"], target=entry["target"], foil=foil, kind=kind)
