"""What an editor is taught: edits, the same in other words, and what must stay as it is.

A learned editor is trained on lessons (MEND, arXiv 2110.11309, section 3.2; spec memory-and-meta
4.4): write ``edits``, answer ``outer`` rightly, leave ``local`` alone. A lesson is a function of
(seed, step), so training can stop and go on anywhere.

Departure from the released code, whose sampler returns one edit whatever is asked and may draw a
locality item twice (spec 4.6, defect 5): a lesson has ``n_edits`` distinct edits and ``n_local``
distinct texts, none of which is among the edits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from workbench.errors import OptionError, did_you_mean
from workbench.facts import EditCase, EditRequest

__all__ = ["Lesson", "Lessons", "Topic", "topics_of"]

#: Kinds of probes that say the same in other words, and that must not move.
REWORDED = ("paraphrase",)
UNTOUCHED = ("locality", "neighborhood", "attribute", "upstream")
#: Share of topics that are held out where nothing else is said.
HELD_OUT = 0.2
TRAINING, VALIDATION, SPLITTING = 0, 1, 2
MEASURES = ("accuracy", "perplexity")


@dataclass(frozen=True)
class Lesson:
    """One exercise.

    Attributes:
        edits: what is written.
        outer: as many: the same targets in other words, or the same request where there are none.
        local: unrelated prompts with their reference completion in ``target_new``: an answer, a
            label of a classifier, or the rest of a text that was split in two.
    """

    edits: tuple[EditRequest, ...]
    outer: tuple[EditRequest, ...]
    local: tuple[EditRequest, ...]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """Something that can be written, in every way in which it can be asked.

    Args:
        edits: the alternatives, equal but for their target; a lesson draws one of them.
        rewordings: other prompts for the same target; a lesson draws one of them.
        cuts: characters at which a shortened copy of the prompt may begin; a lesson draws one of
            them where there are no rewordings.
        local: what this topic leaves alone, and what is true of it, for other topics' lessons.
    """

    edits: tuple[EditRequest, ...]
    rewordings: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()
    local: tuple[EditRequest, ...] = ()

    @property
    def prompt(self) -> str:
        """What is asked, subject filled in."""
        return self.edits[0].text

    @property
    def prompts(self) -> frozenset[str]:
        """Every whole wording."""
        return frozenset((self.prompt, *self.rewordings))

    def drawn(self, rng: np.random.Generator) -> tuple[EditRequest, EditRequest]:
        """One alternative, and the same in other words."""
        edit = self.edits[int(rng.integers(len(self.edits)))]
        if self.rewordings:
            text = self.rewordings[int(rng.integers(len(self.rewordings)))]
        elif self.cuts:
            text = edit.text[self.cuts[int(rng.integers(len(self.cuts)))] :]
        else:
            return edit, edit
        return edit, EditRequest(prompt=text, target_new=edit.target_new)


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """A reproducible source of lessons.

    Args:
        training: topics to train on.
        held_out: topics for validation; what they share with training is left out of both
            locality pools.
        local: texts that must stay as they are; empty takes those of the topics themselves.
        held_out_local: the same for validation.
        seed: of every draw.
        measure: what keeping ``local`` is measured in, ``accuracy`` (is it still right) or
            ``perplexity`` (of its text).
        note: task, rephrasing source and locality source, in plain words.

    Raises:
        OptionError: for an unknown measure, if there is nothing to write, or if a topic is both
            trained on and held out.

    Example:
        >>> lessons = Lessons.from_cases(wb.datasets.tiny(), seed=0)
        >>> lesson = lessons.draw(0, n_edits=1, n_local=4)
    """

    training: tuple[Topic, ...]
    held_out: tuple[Topic, ...]
    local: tuple[EditRequest, ...] = ()
    held_out_local: tuple[EditRequest, ...] = ()
    seed: int = 0
    measure: str = "accuracy"
    note: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise OptionError(
                f"lessons: measure={self.measure!r} is unknown."
                + did_you_mean(self.measure, MEASURES)
            )
        for name in ("training", "held_out"):
            if not getattr(self, name):
                raise OptionError(f"lessons: {name} is empty: give at least one thing to write.")
        shared = {t.prompt for t in self.training} & {t.prompt for t in self.held_out}
        if shared:
            raise OptionError(
                f"lessons: {len(shared)} prompts are trained on and held out (one is "
                f"{min(shared)!r}): leave them out of one side."
            )

    @classmethod
    def from_cases(
        cls,
        cases: Sequence[EditCase],
        *,
        validation: Sequence[EditCase] | None = None,
        local: Sequence[EditRequest] | None = None,
        held_out: float = HELD_OUT,
        seed: int = 0,
        note: Mapping[str, str] | None = None,
    ) -> Lessons:
        """Lessons from cases: their request, paraphrases as other words, guarded probes as local.

        Args:
            cases: of any loader.
            validation: cases to hold out; None holds out a share of ``cases``.
            local: unrelated prompts with their completion; None takes the guarded probes of the
                cases and what is true of other cases.
            held_out: share of the cases (and of ``local``) that is held out.
            seed: of the division and of every draw.
            note: in plain words; what is not said is written from the cases.

        Raises:
            OptionError: for a share outside (0, 1), or too few cases.
        """
        check_share(held_out)
        topics = topics_of(cases)
        if validation is None:
            kept, out = divide(topics, held_out, seed)
        else:
            out = topics_of(validation)
            known = frozenset().union(*(t.prompts for t in out))
            kept = [t for t in topics if t.prompt not in known]
        inside, outside = divide(list(local or ()), held_out, seed) if local else ([], [])
        said = {"task": "cases", "rephrasing": "paraphrases of the cases"}
        said["locality"] = "given" if local else "same: guarded probes and facts of other cases"
        return cls(
            training=tuple(kept),
            held_out=tuple(out),
            local=tuple(inside),
            held_out_local=tuple(outside),
            seed=seed,
            note=said | dict(note or {}),
        )

    def draw(self, step: int, *, n_edits: int, n_local: int) -> Lesson:
        """The training lesson of a step; every topic comes once before any comes again.

        Raises:
            OptionError: for more edits or texts than there are.
        """
        return self._lesson(TRAINING, step, n_edits, n_local)

    def validation(self, n: int, *, n_edits: int, n_local: int) -> list[Lesson]:
        """The first ``n`` fixed lessons of what was held out.

        Raises:
            OptionError: for more edits or texts than were held out.
        """
        if n < 1:
            raise OptionError(f"lessons: n={n} must be at least 1.")
        return [self._lesson(VALIDATION, step, n_edits, n_local) for step in range(n)]

    @property
    def n_training_local(self) -> int:
        """Texts that training can ask to be left alone."""
        return len(self._pools[TRAINING])

    @cached_property
    def digest(self) -> str:
        """Hash of everything a lesson depends on."""
        whole = hashlib.sha256(json.dumps([self.seed, dict(self.note)]).encode())
        for topics in (self.training, self.held_out):
            for topic in topics:
                whole.update(_bytes(topic.edits, topic.rewordings, topic.cuts))
            whole.update(b"|")
        for pool in self._pools:
            whole.update(_bytes(pool, (), ()))
        return whole.hexdigest()[:32]

    @cached_property
    def _pools(self) -> tuple[tuple[EditRequest, ...], tuple[EditRequest, ...]]:
        """What must stay, in training and in validation: disjoint, and neither has the other's
        edits."""
        inside = self.local or tuple(r for t in self.training for r in t.local)
        outside = self.held_out_local or tuple(r for t in self.held_out for r in t.local)
        closed = frozenset().union(*(t.prompts for t in self.held_out))
        pool = _unique(inside, closed, frozenset())
        written = frozenset().union(*(t.prompts for t in self.training))
        return pool, _unique(outside, written, frozenset(map(_whole, pool)))

    def _lesson(self, side: int, step: int, n_edits: int, n_local: int) -> Lesson:
        topics = (self.training, self.held_out)[side]
        where = ("training", "validation")[side]
        if not 1 <= n_edits <= len(topics) or step < 0 or n_local < 0:
            raise OptionError(
                f"lessons: n_edits={n_edits}, n_local={n_local}, step={step}: {where} has "
                f"{len(topics)} things to write; steps and n_local start at 0."
            )
        rng = np.random.default_rng((self.seed, side, step))
        chosen = [topics[i] for i in self._turn(side, step, n_edits)]
        pairs = [topic.drawn(rng) for topic in chosen]
        edits, outer = (tuple(pair[i] for pair in pairs) for i in (0, 1))
        taken = frozenset().union(*(t.prompts for t in chosen), (o.text for o in outer))
        free = (r for r in self._shuffled(side, rng) if r.text not in taken)
        local = tuple(islice((r for r in free if not _gainsaid(r, edits)), n_local))
        if len(local) < n_local:
            raise OptionError(
                f"lessons: n_local={n_local}, but only {len(local)} of {len(self._pools[side])} "
                f"texts for {where} are not among the edits: ask for fewer, or give more of them."
            )
        return Lesson(edits, outer, local)

    def _turn(self, side: int, step: int, n: int) -> list[int]:
        """Topics of a lesson: slices of a permutation, a new one when it is used up."""
        size = len((self.training, self.held_out)[side])
        epoch, place = divmod(step, size // n)
        order = np.random.default_rng((self.seed, side, SPLITTING, epoch)).permutation(size)
        return [int(i) for i in order[place * n : (place + 1) * n]]

    def _shuffled(self, side: int, rng: np.random.Generator) -> Iterator[EditRequest]:
        pool = self._pools[side]
        return (pool[i] for i in rng.permutation(len(pool)))


def topics_of(cases: Sequence[EditCase]) -> list[Topic]:
    """Cases as topics; of cases with one prompt the first counts.

    A rewording that is another case's prompt is left out: it would be written and asked at once.
    """
    first = {case.request.text: case for case in reversed(cases)}
    ordered = [case for case in cases if first[case.request.text] is case]
    return [_topic(case, frozenset(first)) for case in ordered]


def divide(items: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Items to keep and items to hold out, at least one of each, in their order."""
    if len(items) < 2:
        raise OptionError(f"lessons: {len(items)} items cannot be divided: give at least two.")
    n = min(max(1, round(share * len(items))), len(items) - 1)
    order = np.random.default_rng((seed, SPLITTING)).permutation(len(items))
    out = set(order[:n].tolist())
    kept = [item for i, item in enumerate(items) if i not in out]
    return kept, [item for i, item in enumerate(items) if i in out]


def check_share(held_out: float) -> None:
    """Refuse a share that leaves one side empty."""
    if not 0 < held_out < 1:
        raise OptionError(f"lessons: held_out={held_out} must be between 0 and 1.")


def _topic(case: EditCase, asked: frozenset[str]) -> Topic:
    request = case.request
    other = (p.prompt for p in case.probes if p.kind in REWORDED and p.prompt not in asked)
    local = [(p.prompt, p.target) for p in case.probes if p.kind in UNTOUCHED]
    if request.target_true is not None:
        local.append((request.text, request.target_true))
    return Topic(
        edits=(request,),
        rewordings=tuple(dict.fromkeys(other)),
        local=tuple(EditRequest(prompt=p, target_new=t) for p, t in local),
    )


def _gainsaid(local: EditRequest, edits: Sequence[EditRequest]) -> bool:
    """Whether an edit makes a text wrong: the same subject, and the answer that is replaced."""
    return any(
        e.subject is not None and e.subject in local.text and local.target_new == e.target_true
        for e in edits
    )


def _unique(
    pool: Iterable[EditRequest], prompts: frozenset[str], wholes: frozenset[tuple[str, str]]
) -> tuple[EditRequest, ...]:
    """Each text once, without those of the given prompts and those given whole."""
    kept = {_whole(r): r for r in pool if r.text not in prompts}
    return tuple(r for whole, r in kept.items() if whole not in wholes)


def _whole(request: EditRequest) -> tuple[str, str]:
    return request.text, request.target_new


def _bytes(
    requests: Iterable[EditRequest], rewordings: tuple[str, ...], cuts: tuple[int, ...]
) -> bytes:
    return json.dumps([[r.as_dict() for r in requests], rewordings, cuts], sort_keys=True).encode()
