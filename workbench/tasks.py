"""Lifelong tasks: a stream of what is right, and what a model shall keep (arXiv 2211.11031).

A :class:`Task` is data: cases in the order in which they come, probes of what the model could do
before (for TRR) and of what it had right (for ARR). Each function makes one of GRACE's tasks from
the data at hand, for the kind of model that is given (spec memory-and-meta 3).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from workbench import datasets
from workbench.datasets.counterfacts import Pathlike
from workbench.errors import OptionError, did_you_mean
from workbench.facts import EditCase, EditRequest, Probe
from workbench.layouts import DECODER
from workbench.model import ModelView

__all__ = ["KINDS", "Task", "hallucination_task", "tiny_task", "topics_task", "zsre_task"]

KINDS = ("qa", "classification", "text")
#: How a decoder is asked, so that it answers.
ASKED = "Question: {}\nAnswer:"
#: Words of a text that stand before, and those that are judged.
BEGINNING_WORDS, JUDGED_WORDS = 16, 32


@dataclass(frozen=True, kw_only=True)
class Task:
    """What comes, and what shall stay.

    Args:
        name: of the task.
        kind: ``qa`` (an error is another normalized answer), ``classification`` (another arg-max)
            or ``text`` (always an error).
        cases: in order; probes of kind ``holdout`` are other wordings of the case.
        upstream: name → what the unedited model could do, for TRR.
        accurate: what it had right, for ARR.

    Raises:
        OptionError: for an unknown kind, or without cases.
    """

    name: str
    kind: str
    cases: Sequence[EditCase]
    upstream: Mapping[str, Sequence[Probe]] = field(default_factory=dict)
    accurate: Sequence[Probe] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"kind={self.kind!r} is unknown." + did_you_mean(self.kind, KINDS))
        if not self.cases:
            raise OptionError(f"task {self.name!r} has no cases: give at least one.")


def zsre_task(
    view: ModelView,
    zsre: Pathlike | None = None,
    nq: Pathlike | None = None,
    *,
    limit: int | None = None,
    upstream: int = 200,
    seed: int = 0,
) -> Task:
    """Questions of zsRE, with Natural Questions to be kept.

    Args:
        view: a decoder (asked ``Question: ... Answer:``; facts of the shipped set that the model
            knows are kept, too) or an encoder-decoder.
        zsre, nq: paths, as :func:`workbench.datasets.zsre_stream` and ``nq`` take
            them.
        limit: at most so many cases.
        upstream: so many probes of each set.
        seed: of the stream's order.

    Example:
        >>> task = wb.tasks.zsre_task(view, "zsre.json", "nq_open_dev.jsonl")  # doctest: +SKIP
    """
    template = ASKED if view.kind == DECODER else "{}"
    cases = datasets.zsre_stream(zsre, template=template, limit=limit, seed=seed)
    kept = {"nq": _asked(datasets.nq(nq, limit=upstream), template)}
    if view.kind == DECODER:
        kept["facts"] = _known(view, cases, upstream)
    return Task(name="zsre", kind="qa", cases=cases, upstream=kept)


def topics_task(
    path: Pathlike | None = None, *, limit: int | None = None, upstream: int = 200, words: int = 100
) -> Task:
    """Topics of court cases of later terms; held-out cases of earlier terms are to be kept.

    Args:
        path: as :func:`workbench.datasets.topics` takes it.
        limit: at most so many cases.
        upstream: so many probes.
        words: of a text.

    Example:
        >>> task = wb.tasks.topics_task("scotus_justice.jsonl")  # doctest: +SKIP
    """
    cases = datasets.topics(path, part="edits", limit=limit, words=words)
    kept = datasets.topics(path, part="upstream", limit=upstream, words=words)
    return Task(
        name="topics",
        kind="classification",
        cases=cases,
        upstream={"earlier terms": _asked(kept)},
    )


def hallucination_task(
    path: Pathlike | None = None,
    texts: Iterable[str] = (),
    *,
    limit: int | None = None,
    upstream: int = 100,
    accurate: int = 100,
    words: int | None = None,
) -> Task:
    """True sentences in place of made-up ones; plain texts and accurate sentences to be kept.

    Args:
        path: as :func:`workbench.datasets.hallucination` takes it.
        texts: plain ones; of each the words 17 to 48 are judged behind the first 16.
        limit: at most so many cases.
        upstream, accurate: so many probes.
        words: at most so many of the newest words stand before a sentence; None keeps all.

    Example:
        >>> task = wb.tasks.hallucination_task("hallucination.json", lines)  # doctest: +SKIP
    """
    cases = [_shortened(c, words) for c in datasets.hallucination(path, limit=limit)]
    right = [
        _shortened(c, words) for c in datasets.hallucination(path, part="accurates", limit=accurate)
    ]
    kept: list[Probe] = []
    for text in texts:
        if len(kept) == upstream:
            break
        found = text.split()[: BEGINNING_WORDS + JUDGED_WORDS]
        if len(found) == BEGINNING_WORDS + JUDGED_WORDS:
            start, rest = found[:BEGINNING_WORDS], found[BEGINNING_WORDS:]
            probe = Probe(prompt=" ".join(start), target=" ".join(rest), kind="upstream")
            kept.append(probe)
    return Task(
        name="hallucination",
        kind="text",
        cases=cases,
        upstream={"texts": kept} if kept else {},
        accurate=_asked(right),
    )


def tiny_task(
    view: ModelView, *, limit: int | None = None, upstream: int = 200, seed: int = 0
) -> Task:
    """The tiny world with its facts changed, in two wordings each, for the models that know it.

    The third wording is the holdout; facts that no case changes are kept.

    Args:
        view: ``tiny``, ``tiny-bert`` or ``tiny-t5``.
        limit: at most so many cases.
        upstream: so many probes.
        seed: of the stream's order.

    Example:
        >>> task = wb.tasks.tiny_task(wb.load("tiny-t5"))
    """
    facts = datasets.tiny()
    cases = [_worded(c, k) for c in facts for k in range(2)]
    random.Random(seed).shuffle(cases)
    kind = "classification" if view.labels else "qa"
    kept = {"other facts": _other_facts(facts, upstream)}
    return Task(name="tiny", kind=kind, cases=cases[:limit], upstream=kept)


def _asked(cases: Iterable[EditCase], template: str = "{}") -> tuple[Probe, ...]:
    """Each request's own question, as something that shall stay."""
    return tuple(
        Probe(prompt=template.replace("{}", r.text), target=r.target_new, kind="upstream")
        for r in (c.request for c in cases)
    )


def _known(view: ModelView, cases: Sequence[EditCase], n: int) -> tuple[Probe, ...]:
    """Facts of the shipped set whose subject is not edited: known ones where that is on record."""
    try:
        facts = datasets.facts(known_to=view.name)
    except OptionError:
        facts = datasets.facts()
    edited = {c.request.subject for c in cases}
    chosen = [c.request for c in facts if c.request.subject not in edited][:n]
    return tuple(
        Probe(prompt=r.text, target=r.target_true or r.target_new, kind="upstream") for r in chosen
    )


def _shortened(case: EditCase, words: int | None) -> EditCase:
    if words is None:
        return case
    request = case.request
    prompt = " ".join(request.text.split()[-words:])
    probe = Probe(prompt=prompt, target=request.target_new)
    short = EditRequest(prompt=prompt, target_new=request.target_new)
    return EditCase(request=short, probes=(probe,), case_id=case.case_id, tags=case.tags)


def _worded(case: EditCase, k: int) -> EditCase:
    """A fact in its own words (0) or its first other ones (1); the last ones are the holdout."""
    request = case.request
    words = [request.text, *(p.prompt for p in case.probes if p.kind == "paraphrase")]
    subject, target = request.subject or "", request.target_new
    asked = EditRequest.from_text(words[k], subject=subject, target_new=target)
    own = Probe(prompt=words[k], target=target)
    held = Probe(prompt=words[-1], target=target, kind="holdout")
    name = f"{case.case_id}:{k}"
    return EditCase(request=asked, probes=(own, held), case_id=name, tags=case.tags)


def _other_facts(cases: Sequence[EditCase], n: int) -> tuple[Probe, ...]:
    """Neighbors and other facts of subjects, of facts that no case changes."""
    changed = Counter(c.request.subject for c in cases)
    facts = {(c.request.subject, (c.tags or {}).get("relation")) for c in cases}
    found: dict[str, Probe] = {}
    for case in cases:
        relation = (case.tags or {}).get("relation")
        of_relation = [str(s) for s, r in facts if r == relation]
        for p in case.probes:
            spared = p.kind == "attribute" and changed[case.request.subject] == 1
            if p.kind == "neighborhood":
                spared = not any(name in p.prompt for name in of_relation)
            if spared:
                found[p.prompt] = Probe(prompt=p.prompt, target=p.target, kind="upstream")
    return tuple(list(found.values())[:n])
