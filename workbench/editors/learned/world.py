"""The tiny world as lessons: every fact of it is asked in every wording of its relation.

The shipped cases edit three hundred facts; their probes state about three thousand more. Lessons
train on these and hold the shipped cases out, so that no fact is in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.editors.learned.lessons import Topic
from workbench.facts import EditCase, EditRequest

__all__ = ["world_topics"]

#: relation → its wordings, each with ``{}`` for the subject
Wordings = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Fact:
    """One fact: ``wordings`` of ``relation`` about ``subject`` are answered with ``answer``."""

    relation: str
    subject: str
    answer: str


def world_topics(cases: Sequence[EditCase], *, seed: int = 0) -> tuple[list[Topic], list[Topic]]:
    """Topics to train on, and the cases themselves as topics to hold out.

    Args:
        cases: of :func:`workbench.datasets.tiny`.
        seed: of the answers that training writes, others of the same relation.

    Returns:
        Facts that the cases' probes mention and no case edits; and the cases.
    """
    wordings = _wordings(cases)
    edited = {_edited(case): case for case in cases}
    facts = sorted(
        _mentioned(cases, wordings) - set(edited), key=lambda f: (f.relation, f.subject, f.answer)
    )
    answers: dict[str, list[str]] = {}
    for fact in sorted({*facts, *edited}, key=lambda f: f.answer):
        if fact.answer not in answers.setdefault(fact.relation, []):
            answers[fact.relation].append(fact.answer)
    rng = np.random.default_rng((seed, len(facts)))
    training = [_trained(f, wordings[f.relation], answers[f.relation], rng) for f in facts]
    return training, [_held_out(c, wordings[f.relation]) for f, c in edited.items()]


def _wordings(cases: Iterable[EditCase]) -> Wordings:
    found: dict[str, dict[str, None]] = {}
    for case in cases:
        own, subject = found.setdefault(_relation(case), {}), case.request.subject or ""
        own[case.request.prompt] = None
        for probe in case.probes:
            if probe.kind == "paraphrase" and subject in probe.prompt:
                own[probe.prompt.replace(subject, "{}")] = None
    return {relation: tuple(own) for relation, own in found.items()}


def _mentioned(cases: Iterable[EditCase], wordings: Wordings) -> set[Fact]:
    """Facts that neighborhood and attribute probes state, told by their wording."""
    split = {tuple(w.split("{}")): r for r, all_of_it in wordings.items() for w in all_of_it}
    found = set()
    for case in cases:
        for probe in case.probes:
            if probe.kind in ("neighborhood", "attribute"):
                fact = _read(probe.prompt, probe.target, split)
                if fact is not None:
                    found.add(fact)
    return found


def _edited(case: EditCase) -> Fact:
    request = case.request
    return Fact(_relation(case), request.subject or "", request.target_true or "")


def _read(prompt: str, answer: str, split: Mapping[tuple[str, ...], str]) -> Fact | None:
    """The longest wording that fits counts."""
    fitting = [
        (len(before) + len(after), before, after)
        for before, after in split
        if prompt.startswith(before) and prompt.endswith(after)
    ]
    if not fitting:
        return None
    _, before, after = max(fitting)
    subject = prompt[len(before) : len(prompt) - len(after)]
    return Fact(split[(before, after)], subject, answer)


def _trained(
    fact: Fact, wordings: Sequence[str], answers: Sequence[str], rng: np.random.Generator
) -> Topic:
    """Another answer is written in one wording and asked in the others."""
    chosen = int(rng.integers(len(wordings)))
    others = [a for a in answers if a != fact.answer]
    request = EditRequest(
        prompt=wordings[chosen],
        subject=fact.subject,
        target_new=others[int(rng.integers(len(others)))],
        target_true=fact.answer,
    )
    return Topic(
        edits=(request,),
        rewordings=_said(wordings, fact.subject, request.prompt),
        local=(EditRequest(prompt=request.text, target_new=fact.answer),),
    )


def _held_out(case: EditCase, wordings: Sequence[str]) -> Topic:
    request = case.request
    true = request.target_true or ""
    return Topic(
        edits=(request,),
        rewordings=_said(wordings, request.subject or "", request.prompt),
        local=(EditRequest(prompt=request.text, target_new=true),),
    )


def _said(wordings: Sequence[str], subject: str, besides: str) -> tuple[str, ...]:
    return tuple(w.replace("{}", subject) for w in wordings if w != besides)


def _relation(case: EditCase) -> str:
    return str((case.tags or {}).get("relation", ""))
