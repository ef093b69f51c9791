"""Questions in other words, from templates of relations; all sentences are our own.

Learned editors are taught that an edit holds in other words. Published rewordings are
back-translations (De Cao et al., arXiv 2104.08164); where their files are not at hand, a question
is recognized by what it asks for, its subject is found by capital letters, and other questions for
the same relation are written. A question that no relation recognizes is put into a frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workbench.editors.learned.relations import LINKS, RELATIONS, TAIL

__all__ = ["Rewording", "reword"]

#: Frames for questions of unknown relations.
FRAMES = (
    "Please answer this question: {}",
    "Here is something I would like to know. {}",
    "{} Give a short answer.",
)

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Rewording:
    """Other ways to ask a question.

    Attributes:
        prompts: whole questions, none equal to the question itself.
        framed: whether no relation recognized it, so that it was only put into frames.
    """

    prompts: tuple[str, ...]
    framed: bool


def reword(question: str) -> Rewording:
    """Other ways to ask a question.

    Example:
        >>> reword("What is the native language of Christiane Cohendy?").prompts[0]
        'Which language did Christiane Cohendy learn first?'
    """
    question = " ".join(question.split())
    span = subject_span(question)
    if span is not None:
        subject = question[slice(*span)]
        rest = f"{question[: span[0]]}{question[span[1] :]}".lower()
        for pattern, templates in RELATIONS:
            if re.search(pattern, rest):
                written = (template.replace("{}", subject) for template in templates)
                return Rewording(tuple(w for w in written if w != question), False)
    return Rewording(tuple(frame.replace("{}", question) for frame in FRAMES), True)


def subject_span(question: str) -> tuple[int, int] | None:
    """Characters of the only name in a question, None if there is none or more than one.

    A name is a run of words with capitals or digits, bridged by small linking words; the first
    word of the question does not count.
    """
    words = list(_WORD.finditer(question))
    named = [i for i, w in enumerate(words) if i and _is_name(w.group())]
    if not named:
        return None
    first, last = named[0], named[-1]
    between = (words[i].group() for i in range(first, last + 1) if i not in named)
    if any(word.lower() not in LINKS for word in between):
        return None
    while last + 1 < len(words) and _goes_on(words[last].group(), words[last + 1].group()):
        last += 1
    start, end = words[first].start(), words[last].end()
    text = question[start:end]
    for ending in ("?", ",", "'s", "’s", "'"):
        text = text.removesuffix(ending)
    return (start, start + len(text)) if text else None


def _goes_on(word: str, follower: str) -> bool:
    """Whether the word behind a name is a part of it."""
    closed = word.endswith(("?", ",", "'s", "’s", "'"))
    return not closed and follower.strip("?,.'").lower() not in TAIL


def _is_name(word: str) -> bool:
    return any(c.isupper() or c.isdigit() for c in word)
