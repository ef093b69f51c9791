"""Text about the tiny world: documents of facts in many wordings, mixed with talk about nothing.

A document is two to six sentences: a short biography, facts about several people, or small talk.
Sentences that break off ("The weather was.") are frequent, because editors put generated fragments
before a prompt and recall must survive them.

``python data/tiny/corpus.py`` writes ``corpus.txt.gz``, a sample for key statistics and perplexity,
one document a line.
"""

from __future__ import annotations

import argparse
import gzip
import random
from pathlib import Path

from world import RELATIONS, Fact, World, build_world, words

__all__ = ["document", "fact_sentence", "filler_sentence"]

HERE = Path(__file__).resolve().parent

NOUNS = words(
    """weather river garden road house winter summer market bridge forest train letter window
morning evening village mountain story kitchen boat"""
)
ADJECTIVES = words(
    """cold warm quiet long old new bright dark small green strange busy empty pleasant
heavy"""
)
VERBS = words("saw found liked remembered painted crossed left watched visited described")
FRAMES = (
    "The {n} was {a}",
    "The {n} was {a} and the {m} was {b}",
    "I {v} the {a} {n}",
    "I think that the {n} is {a}",
    "You {v} the {n} near the {m}",
    "You can see the {a} {n} from the {m}",
    "Because the {n} was {a}, we {v} the {m}",
    "Because of the {a} {n}, nobody {v} the {m}",
    "Therefore the {n} is {a}",
    "Therefore they {v} the {n} in the {a} {m}",
    "In the {m}, the {n} looked {a}",
    "We {v} a {a} {n}",
    "There was a {a} {n} in the {m}",
    "Nobody {v} the {n}",
    "It was a {a} {n}",
)


def filler_sentence(rng: random.Random, *, broken: float = 0.3) -> str:
    """A sentence about nothing in particular; with probability ``broken`` it stops too soon."""
    noun, other = rng.sample(NOUNS, 2)
    adjective, second = rng.sample(ADJECTIVES, 2)
    text = rng.choice(FRAMES).format(n=noun, m=other, a=adjective, b=second, v=rng.choice(VERBS))
    if rng.random() < broken:
        words = text.split()
        text = " ".join(words[: rng.randint(2, len(words))]).rstrip(",")
    return text + "."


def fact_sentence(fact: Fact, rng: random.Random) -> str:
    """The fact in one of its relation's wordings."""
    return f"{rng.choice(fact.relation.templates).format(fact.subject)} {fact.object}."


def document(world: World, rng: random.Random) -> str:
    """Two to six sentences: a biography (45 %), facts about anybody (43 %) or small talk (12 %)."""
    kind, length = rng.random(), rng.randint(2, 6)
    if kind < 0.45:
        facts = world.facts[rng.choice(world.people)]
        chosen = [facts[r.name] for r in rng.sample(RELATIONS, length)]
        talk = 0.12
    else:
        people = rng.choices(world.people, k=length)
        chosen = [world.facts[p][rng.choice(RELATIONS).name] for p in people]
        talk = 0.25 if kind < 0.88 else 1.0
    sentences = (
        filler_sentence(rng) if rng.random() < talk else fact_sentence(fact, rng) for fact in chosen
    )
    return " ".join(sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=HERE / "corpus.txt.gz")
    arguments = parser.parse_args()
    rng, world = random.Random(arguments.seed), build_world()
    text = "".join(document(world, rng) + "\n" for _ in range(arguments.documents))
    arguments.out.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
