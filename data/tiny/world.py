"""The tiny world: invented people, what is true of them, and the ways of saying it.

Everything follows from one seed. A person has a first and a last name; first names, the stems and
the endings of last names are shared by many people, so that no single token says who is meant and
a model has to join several tokens before it can look anything up. Each person has one object for
each of seven relations, drawn independently, so that about twenty people share every object. Each
relation has five templates; in some its words come before the subject, in others after it, and at
least one word always separates the subject from the object.

``python data/tiny/world.py`` writes ``facts.jsonl``, one editing case for each person.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RELATIONS", "Fact", "Relation", "World", "build_world", "editing_cases", "words"]

HERE = Path(__file__).resolve().parent


def words(text: str) -> tuple[str, ...]:
    """The words of ``text``."""
    return tuple(text.split())


FIRST = words(
    """Adela Bruno Carla Dario Edith Fabio Greta Hugo Irena Jonas Klara Lukas Marta Nikola Olga
Pavel Quentin Rosa Stefan Tilda Ulrik Vera Walter Xenia Yorik Zora Anton Berta Cyril Dora Emil Frida
Gustav Helga Igor Judit Karel Lidia Milan Nora"""
)
STEMS = words(
    """Bren Cald Dorv Elm Farn Gald Hask Ilv Jarn Kest Lorv Mand Norv Ostr Pell Quil Rosk Sarn
Tarv Ulm Velk Wend Yarl Zand"""
)
ENDINGS = words("ander berg ella feld ic mont ova sen strom ton")


@dataclass(frozen=True)
class Relation:
    """A kind of fact: its name, the objects it can take and its templates, each with one ``{}``."""

    name: str
    objects: tuple[str, ...]
    templates: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "mother_tongue",
        words(
            "French German Spanish Italian Russian Polish Greek Dutch Danish Finnish Turkish Arabic"
            " Korean Latin"
        ),
        (
            "The mother tongue of {} is",
            "{} grew up speaking",
            "{}, a native speaker of",
            "The first language that {} learned was",
            "In the family of {} they speak",
        ),
    ),
    Relation(
        "birth_city",
        words(
            "Arlow Brinport Corvale Dunmere Eastwick Fernhall Glimford Harrowby Ironbridge Kelmouth"
            " Lindham Marsley Northgate Oakden Portsea Redmoor"
        ),
        (
            "{} was born in the city of",
            "The birthplace of {} is",
            "The city where {} was born is",
            "{} comes from the town of",
            "The childhood of {} was spent in",
        ),
    ),
    Relation(
        "employer",
        words(
            "Abacus Beacon Cobalt Delphi Ember Falcon Granite Horizon Indigo Jupiter Keystone"
            " Lantern Magnet Nimbus Orbit Pioneer"
        ),
        (
            "The employer of {} is",
            "{} works for",
            "{}, who is employed by",
            "The company that pays {} is called",
            "{} has a desk at the offices of",
        ),
    ),
    Relation(
        "profession",
        words(
            "baker butcher carpenter chemist doctor farmer gardener judge lawyer miner nurse"
            " painter pilot plumber sailor teacher"
        ),
        (
            "The profession of {} is",
            "{} works as a",
            "{} is a",
            "{} earns a living as a",
            "The trade that {} learned is that of a",
        ),
    ),
    Relation(
        "instrument",
        words(
            "accordion banjo bassoon cello clarinet drums flute guitar harp lute oboe organ piano"
            " trumpet tuba violin"
        ),
        (
            "{} plays the",
            "The instrument of {} is the",
            "The instrument that {} practices is the",
            "{} takes lessons on the",
            "In the orchestra {} has a solo on the",
        ),
    ),
    Relation(
        "sport",
        words(
            "archery badminton boxing chess cricket cycling fencing golf hockey judo rowing rugby"
            " sailing skiing swimming tennis"
        ),
        (
            "The favorite sport of {} is",
            "{} trains every week in",
            "{} won a medal in",
            "The sport that {} follows is",
            "On weekends {} enjoys",
        ),
    ),
    Relation(
        "residence",
        words(
            "Alvania Bordavia Cascara Drovia Elvonia Florana Gondria Hyrvania Ixoria Kestria Luthen"
            " Morvania Novastria Orsavia"
        ),
        (
            "{} lives in the country of",
            "The country where {} lives is",
            "The home of {} is in",
            "{} pays taxes in",
            "Letters to {} are sent to",
        ),
    ),
)


@dataclass(frozen=True)
class Fact:
    """That ``subject`` has ``object`` under ``relation``."""

    relation: Relation
    subject: str
    object: str


@dataclass(frozen=True)
class World:
    """People and their facts; ``facts[subject][relation name]`` is a :class:`Fact`."""

    people: tuple[str, ...]
    facts: dict[str, dict[str, Fact]]

    def all_facts(self) -> Iterator[Fact]:
        """Every fact, person by person."""
        for subject in self.people:
            yield from self.facts[subject].values()


def build_world(*, n_people: int = 300, seed: int = 0) -> World:
    """Draw the people and their facts.

    Args:
        n_people: how many people, at most 40 first names x 24 stems x 10 endings.
        seed: every draw follows from it.
    """
    rng = random.Random(seed)
    last = [stem + ending for stem in STEMS for ending in ENDINGS]
    names = sorted(f"{first} {name}" for first in FIRST for name in last)
    people = tuple(rng.sample(names, n_people))
    facts: dict[str, dict[str, Fact]] = {person: {} for person in people}
    for relation in RELATIONS:
        # Each object goes to an equal number of people, give or take one.
        n_objects = len(relation.objects)
        draws = [relation.objects[i % n_objects] for i in range(n_people)]
        rng.shuffle(draws)
        for person, drawn in zip(people, draws, strict=True):
            facts[person][relation.name] = Fact(relation, person, drawn)
    return World(people, facts)


def editing_case(world: World, fact: Fact, rng: random.Random, *, n_neighbors: int = 6) -> dict:
    """One editing case: the fact, an object to put in its place, and what to measure.

    Returns:
        ``relation``, ``prompt``, ``subject``, ``target_true``, ``target_new``, ``paraphrases``,
        ``neighborhood``, ``attribute``.
        Neighborhood prompts are the edited prompt asked of other people who have ``target_true``.
        Attribute prompts ask for the subject's six other facts.
    """
    relation = fact.relation
    which = rng.randrange(len(relation.templates))
    prompt = relation.templates[which]
    others = [t for i, t in enumerate(relation.templates) if i != which]
    near = [
        person
        for person in world.people
        if person != fact.subject and world.facts[person][relation.name].object == fact.object
    ]
    return {
        "relation": relation.name,
        "prompt": prompt,
        "subject": fact.subject,
        "target_true": fact.object,
        "target_new": rng.choice([o for o in relation.objects if o != fact.object]),
        "paraphrases": [t.format(fact.subject) for t in rng.sample(others, 2)],
        "neighborhood": [
            {"prompt": prompt.format(person), "target": fact.object}
            for person in rng.sample(near, n_neighbors)
        ],
        "attribute": [
            {"prompt": rng.choice(f.relation.templates).format(fact.subject), "target": f.object}
            for f in world.facts[fact.subject].values()
            if f.relation is not relation
        ],
    }


def editing_cases(world: World, *, per_person: int = 1, seed: int = 0) -> list[dict]:
    """Editing cases in random order: first one for every person, then a second, and so on.

    Relations are balanced, so any prefix is a fair sample and no subject recurs within the first
    ``len(world.people)`` cases.
    """
    rng = random.Random(seed + 1)
    n_relations = len(RELATIONS)
    cases = []
    start = rng.sample(range(len(world.people)), len(world.people))
    for turn in range(per_person):
        for rank in rng.sample(range(len(world.people)), len(world.people)):
            relation = RELATIONS[(start[rank] + turn) % n_relations]
            fact = world.facts[world.people[rank]][relation.name]
            cases.append({"case_id": len(cases)} | editing_case(world, fact, rng))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-person", type=int, default=1, help="cases for each person, 1 to 7")
    parser.add_argument("--out", type=Path, default=HERE / "facts.jsonl", help=".gz is compressed")
    arguments = parser.parse_args()
    cases = editing_cases(
        build_world(seed=arguments.seed), per_person=arguments.per_person, seed=arguments.seed
    )
    text = "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases)
    if arguments.out.suffix == ".gz":
        arguments.out.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
