"""Questions about the tiny world, for models that answer instead of going on.

What a decoder is asked in the world's own templates ("The mother tongue of {} is"), a classifier
and an encoder-decoder are asked in the same words and, a third of the time, as a question. A
sentence about nothing stands before some of them.
"""

from __future__ import annotations

import random

from corpus import filler_sentence
from world import RELATIONS, Fact, World

__all__ = ["LABELS", "QUESTIONS", "ask", "wordings"]

#: relation → questions, each with one ``{}``
QUESTIONS: dict[str, tuple[str, ...]] = {
    "mother_tongue": ("What is the mother tongue of {}?", "Which language did {} learn first?"),
    "birth_city": ("In which city was {} born?", "What is the birthplace of {}?"),
    "employer": ("Who is the employer of {}?", "Which company pays {}?"),
    "profession": ("What is the profession of {}?", "Which trade did {} learn?"),
    "instrument": ("Which instrument does {} play?", "On what does {} take lessons?"),
    "sport": ("What is the favorite sport of {}?", "In what does {} train every week?"),
    "residence": ("In which country does {} live?", "Where does {} pay taxes?"),
}

#: Every object of every relation: the classes of a classifier, in a fixed order.
LABELS: tuple[str, ...] = tuple(name for relation in RELATIONS for name in relation.objects)


def wordings(relation: str) -> tuple[str, ...]:
    """All templates and questions of a relation."""
    return (*next(r.templates for r in RELATIONS if r.name == relation), *QUESTIONS[relation])


def ask(world: World, rng: random.Random, *, talk: float = 0.2) -> tuple[str, Fact]:
    """A prompt about some fact; with probability ``talk`` behind a sentence about nothing."""
    person = rng.choice(world.people)
    fact = world.facts[person][rng.choice(RELATIONS).name]
    questions, templates = QUESTIONS[fact.relation.name], fact.relation.templates
    wording = rng.choice(questions if rng.random() < 1 / 3 else templates)
    prompt = wording.format(person)
    return (f"{filler_sentence(rng)} {prompt}" if rng.random() < talk else prompt), fact
