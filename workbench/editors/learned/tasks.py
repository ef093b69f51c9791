"""The tasks that learned editors are trained on, and which models can do them.

MEND's three tasks (arXiv 2110.11309, section 5; spec memory-and-meta 4.3, 11): text generation for
decoders, question answering for encoder-decoders and decoders, fact checking for classifiers; and
the tiny world, which every shipped tiny model knows. Whether a task fits a model is checked before
anything is read.

Departures from the released code: the locality source is the same in training and in validation
(there ``zsre_nq`` holds in validation alone, spec 4.6 defect 4), and decoders are asked questions,
too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from workbench.datasets import fever, nq, texts, tiny
from workbench.datasets.claims import VERDICTS
from workbench.datasets.counterfacts import Pathlike
from workbench.editors.learned.continuations import continuations, passages, usable
from workbench.editors.learned.lessons import HELD_OUT, Lessons, Topic, check_share, divide
from workbench.editors.learned.questions import Questions, distinct, question_topics
from workbench.editors.learned.rewording import reword
from workbench.editors.learned.world import world_topics
from workbench.errors import OptionError, did_you_mean
from workbench.facts import EditCase, EditRequest
from workbench.layouts import DECODER, ENCODER_CLASSIFIER, ENCODER_DECODER
from workbench.model import ModelView

__all__ = ["LOCALITIES", "TASKS", "Task", "check_task", "make_lessons"]

#: Where texts that must stay as they are come from.
LOCALITIES = ("same", "nq", "openwebtext", "wikitext")
#: Samples of the model that the text task makes where nothing else is said.
SAMPLES = 1000
#: Texts of a hub data set that are looked at.
MOST_TEXTS = 20_000
_HUB = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "openwebtext": ("stas/openwebtext-10k", None),
}


@dataclass(frozen=True)
class Task:
    """A task and what it needs.

    Attributes:
        kinds: models that can do it.
        localities: sources of text that must stay as it is.
        measure: what drawdown is measured in, ``accuracy`` or ``perplexity``.
        about: what is taught.
    """

    kinds: tuple[str, ...]
    localities: tuple[str, ...]
    measure: str
    about: str


@dataclass(frozen=True, kw_only=True)
class Given:
    """What :func:`make_lessons` was called with."""

    data: Pathlike | None
    validation: Pathlike | None
    rewordings: Pathlike | None
    locality: str
    local: Pathlike | None
    limit: int | None
    held_out: float
    seed: int
    task: str

    def lessons(
        self,
        sides: tuple[Sequence[Topic], Sequence[Topic]],
        local: tuple[Sequence[EditRequest], Sequence[EditRequest]] = ((), ()),
        **said: str,
    ) -> Lessons:
        """Lessons of training and held-out topics, and of training and held-out texts."""
        return Lessons(
            training=tuple(sides[0]),
            held_out=tuple(sides[1]),
            local=tuple(local[0]),
            held_out_local=tuple(local[1]),
            seed=self.seed,
            measure=TASKS[self.task].measure,
            note={"task": f"{self.task}: {TASKS[self.task].about}", **said},
        )

    def refuse(self, name: str, why: str) -> None:
        """Refuse an option that a task would ignore."""
        if getattr(self, name) is not None:
            raise OptionError(
                f"{name}={str(getattr(self, name))!r} is not used here: {why}. Leave it out."
            )


#: task → :class:`Task`
TASKS: dict[str, Task] = {
    "gen": Task(
        (DECODER,),
        ("same", "wikitext", "openwebtext"),
        "perplexity",
        "continue a text with ten tokens the model sampled itself",
    ),
    "qa": Task(
        (ENCODER_DECODER, DECODER),
        ("same", "nq"),
        "accuracy",
        "zsRE questions with another answer",
    ),
    "fc": Task(
        (ENCODER_CLASSIFIER,),
        ("same",),
        "accuracy",
        "FEVER claims with one of two verdicts",
    ),
    "tiny": Task(
        (DECODER, ENCODER_DECODER, ENCODER_CLASSIFIER),
        ("same",),
        "accuracy",
        "facts of the tiny world with another answer of the same relation",
    ),
}


def check_task(task: str, kind: str, *, locality: str = "same", name: str = "this model") -> Task:
    """Refuse a task that does not fit a model, before anything is loaded.

    Args:
        task: a key of :data:`TASKS`.
        kind: decoder, encoder_classifier or encoder_decoder.
        locality: one of :data:`LOCALITIES`.
        name: of the model, for the message.

    Raises:
        OptionError: for an unknown task or locality, or one that does not fit.

    Example:
        >>> check_task("fc", "encoder_classifier").measure
        'accuracy'
    """
    if task not in TASKS:
        raise OptionError(f"task={task!r} is unknown." + did_you_mean(task, TASKS))
    row = TASKS[task]
    if kind not in row.kinds:
        fit = [other for other, each in TASKS.items() if kind in each.kinds]
        raise OptionError(
            f"task={task!r} ({row.about}) is for {' and '.join(f'{k}s' for k in row.kinds)}; "
            f"{name} is {'a' if kind == DECODER else 'an'} {kind}. Take one of its tasks "
            f"({', '.join(fit)}), or another model."
        )
    if locality not in LOCALITIES:
        raise OptionError(f"locality={locality!r} is unknown." + did_you_mean(locality, LOCALITIES))
    if locality not in row.localities:
        raise OptionError(
            f"locality={locality!r} does not fit task={task!r}: its locality comes from "
            f"{' or '.join(row.localities)}."
        )
    return row


def make_lessons(
    view: ModelView,
    task: str,
    *,
    data: Pathlike | None = None,
    validation: Pathlike | None = None,
    rewordings: Pathlike | None = None,
    locality: str = "same",
    local: Pathlike | None = None,
    limit: int | None = None,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> Lessons:
    """Lessons of a task for a model.

    Args:
        view: the model; the text task lets it write its own edits.
        task: ``gen``, ``qa``, ``fc`` or ``tiny``.
        data: what is trained on: texts (``gen``), questions in MEND's or De Cao's schema or a
            ``.tsv`` of question and target (``qa``), claims (``fc``); None is the canonical source.
        validation: a file of the same kind to hold out; None holds out a share of ``data``.
        rewordings: De Cao's file (``input``, ``filtered_rephrases``) for questions or claims that
            have no rewordings of their own; None writes them for questions from templates.
        locality: ``same``, ``nq``, ``openwebtext`` or ``wikitext``; also used in validation.
        local: file of that source; None is the canonical one.
        limit: only the first so many questions or claims; samples to make (``gen``).
        held_out: share held out where there is no ``validation``, and of ``local``.
        seed: of every choice.

    Returns:
        :class:`Lessons`; ``note`` says where rewordings and locality come from.

    Raises:
        OptionError: if the task does not fit the model, or for an option out of range.
        DataError, FetchError: for files that are missing or damaged.

    Example:
        >>> lessons = make_lessons(view, "qa", data="zsre_train.tsv")  # doctest: +SKIP
    """
    check_task(task, view.kind, locality=locality, name=view.name)
    check_share(held_out)
    if limit is not None and limit < 2:
        raise OptionError(f"limit={limit}: it must be at least 2, or None for everything.")
    given = Given(
        data=data,
        validation=validation,
        rewordings=rewordings,
        locality=locality,
        local=local,
        limit=limit,
        held_out=held_out,
        seed=seed,
        task=task,
    )
    makers: dict[str, Callable[[ModelView, Given], Lessons]] = {
        "gen": _text_lessons,
        "qa": _question_lessons,
        "fc": _claim_lessons,
        "tiny": _tiny_lessons,
    }
    return makers[task](view, given)


# ------------------------------------------------------------------ text generation


def _text_lessons(view: ModelView, given: Given) -> Lessons:
    given.refuse("rewordings", "the text task asks again with shortened copies of a prompt")
    own = given.locality in ("same", "wikitext") and given.local is None
    inside, kept = _halves(_texts("wikitext", given.data), own, given.seed)
    n = SAMPLES if given.limit is None else given.limit
    write = partial(continuations, view, seed=given.seed)
    if given.validation is None:
        sides = divide(write(inside, n=n), given.held_out, given.seed)
        local = divide(kept, given.held_out, given.seed) if own else ([], [])
    else:
        outside, more = _halves(_texts("wikitext", given.validation), own, given.seed)
        n_out = max(1, round(given.held_out * n))
        sides = write(inside, n=n - n_out), write(outside, n=n_out)
        local = kept, more
    if not own:
        source = "wikitext" if given.locality == "same" else given.locality
        local = divide(passages(_texts(source, given.local)), given.held_out, given.seed)
    return given.lessons(
        sides,
        local,
        rephrasing="copies of the prompt without up to half of its words",
        locality=f"{given.locality}: {_place(given.data if own else given.local)}",
    )


def _halves(found: Sequence[str], split: bool, seed: int) -> tuple[list[str], list[EditRequest]]:
    """Texts to be continued, and (where the same texts serve both) texts that must stay."""
    order = np.random.default_rng((seed, len(found))).permutation(len(found))
    shuffled = [found[i] for i in order]
    if not split:
        return shuffled, []
    middle = -(-len(found) * 2 // 3)
    return shuffled[:middle], passages(shuffled[middle:])


def _texts(source: str, path: Pathlike | None) -> list[str]:
    if path is not None:
        return usable(texts(path), n=MOST_TEXTS)
    name, config = _HUB[source]
    return usable(islice(texts(name, config=config), MOST_TEXTS), n=MOST_TEXTS)


# ------------------------------------------------------------------ questions and claims


def _question_lessons(view: ModelView, given: Given) -> Lessons:
    read = partial(question_topics, rewordings=given.rewordings)
    found = read(given.data, limit=given.limit)
    outside = None if given.validation is None else read(given.validation)
    sides = _sides(found.topics, outside, given)
    if given.locality == "nq":
        pool = [case.request for case in nq(given.local)]
        local = divide(pool, given.held_out, given.seed)
        where = f"nq: {_place(given.local)}"
    else:
        given.refuse("local", "locality='same' takes other questions of the same file")
        local = ([], [])
        where = "same: other questions, with their true answer where the file has one"
    return given.lessons(sides, local, rephrasing=_said(found, outside), locality=where)


def _claim_lessons(view: ModelView, given: Given) -> Lessons:
    given.refuse("local", "fact checking takes other claims of the same file")
    names = verdict_labels(view)
    found = _claims(given.data, given, names, given.limit)
    outside = None if given.validation is None else _claims(given.validation, given, names, None)
    return given.lessons(
        _sides(found.topics, outside, given),
        rephrasing=_said(found, outside),
        locality="same: other claims, with their verdict",
        targets="either verdict with probability 1/2",
        labels=", ".join(f"{a} = {b}" for a, b in names.items()),
    )


def verdict_labels(view: ModelView) -> dict[str, str]:
    """FEVER's verdict → the label of a classifier of two classes.

    Labels are found by name; other names count by position (0 refutes, 1 supports), as in De Cao's
    checkpoint.

    Raises:
        OptionError: for any other number of labels.
    """
    if len(view.labels) != 2:
        raise OptionError(
            f"task='fc': {view.name} has {len(view.labels)} labels, a claim needs two (refuted and "
            "supported). Load a classifier with two, or give it a head: "
            "load(name, labels=('REFUTES', 'SUPPORTS'))."
        )
    by_name = {label.upper(): label for label in view.labels}
    if set(by_name) == set(VERDICTS):
        return {verdict: by_name[verdict] for verdict in VERDICTS}
    return dict(zip(VERDICTS, view.labels, strict=True))


def _claims(
    path: Pathlike | None, given: Given, names: Mapping[str, str], limit: int | None
) -> Questions:
    more = [] if given.rewordings is None else fever(given.rewordings)
    others = {case.request.prompt: _paraphrases(case) for case in more}
    topics = []
    for case in {c.request.prompt: c for c in fever(path, limit=limit)}.values():
        claim, true = case.request.prompt, names[case.request.target_true or ""]
        edits = (EditRequest(prompt=claim, target_new=label) for label in names.values())
        topics.append(
            Topic(
                edits=tuple(edits),
                rewordings=_paraphrases(case) or others.get(claim, ()),
                local=(EditRequest(prompt=claim, target_new=true),),
            )
        )
    return Questions(topics, "De Cao" if any(t.rewordings for t in topics) else "", 0)


def _paraphrases(case: EditCase) -> tuple[str, ...]:
    return tuple(p.prompt for p in case.probes if p.kind == "paraphrase")


def _said(found: Questions, outside: Questions | None) -> str:
    said = found.said
    return said if outside is None else f"training: {said}; validation: {outside.said}"


def _sides(
    topics: Sequence[Topic], outside: Questions | None, given: Given
) -> tuple[list[Topic], list[Topic]]:
    """Training and validation; what validation asks in any wording is not trained on."""
    if outside is None:
        return divide(topics, given.held_out, given.seed)
    written = (reword(t.prompt).prompts for t in outside.topics)
    asked = frozenset().union(*(t.prompts for t in outside.topics), *written)
    return list(distinct(topics, asked)), list(outside.topics)


# ------------------------------------------------------------------ the tiny world


def _tiny_lessons(view: ModelView, given: Given) -> Lessons:
    for name in ("validation", "rewordings", "local"):
        given.refuse(name, "the tiny world has everything itself")
    cases = tiny(given.data)
    absent = [c.request.target_new for c in cases if c.request.target_new not in view.labels]
    if view.kind == ENCODER_CLASSIFIER and absent:
        raise OptionError(
            f"task='tiny': {view.name} has no label {absent[0]!r}; use wb.load('tiny-bert')."
        )
    training, held_out = world_topics(cases, seed=given.seed)
    return given.lessons(
        (training[: given.limit], held_out),
        rephrasing="the other wordings of the same relation",
        locality="same: true facts that the lesson does not edit",
    )


def _place(path: Pathlike | None) -> str:
    """The file's name alone: where it lies does not matter to what is learned."""
    return "canonical source" if path is None else Path(path).name
