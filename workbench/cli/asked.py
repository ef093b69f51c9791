"""What the words of a command ask for: cases, options, schedules, tasks, texts."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench import datasets
from workbench.errors import DataError, OptionError, did_you_mean
from workbench.facts import EditCase

__all__ = ["cases_of", "options_of", "tasks_of", "watch_of"]

#: Data sets that need no file: shipped ones, and those that are fetched once.
NAMED: dict[str, Callable[..., list[EditCase]]] = {
    "tiny": datasets.tiny,
    "facts": datasets.facts,
    "counterfact": datasets.counterfact,
    "multi_counterfact": datasets.multi_counterfact,
    "zsre": datasets.zsre,
    "easyedit": datasets.easyedit,
}
ZSRE = ("memit", "easyedit")


def cases_of(args: argparse.Namespace) -> list[EditCase]:
    """The cases that ``DATA --dataset --zsre --skip --limit --ids --sample`` name.

    Raises:
        OptionError: for unknown names, or numbers that leave nothing.
        DataError: for files that cannot be read.
    """
    if args.skip is not None and args.skip < 0:
        raise OptionError(f"--skip {args.skip}: it must be at least 0.")
    skip = args.skip or 0
    if args.limit is not None and args.limit < 1:
        raise OptionError(f"--limit {args.limit}: it must be at least 1.")
    limit = None if args.limit is None else skip + args.limit
    loader, given = _loader(args)
    cases = loader(limit=limit, case_ids=_ids(args), **given)[skip:]
    if not cases:
        raise OptionError(f"--skip {skip} leaves no case of {args.data}.")
    return cases


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """``["layers=(5,)", "variant=rome"]`` as options of an editor.

    Raises:
        OptionError: for a word that is not ``NAME=VALUE``.
    """
    return {name: _value(text) for name, text in _pairs("--option", words, "layers=(5,)")}


def watch_of(words: Sequence[str]) -> dict[str, Any]:
    """``["perplexity=100", "upstream=off"]`` as ``stream(watch=)`` takes it.

    Raises:
        OptionError: for a word that is not ``NAME=WHEN``.
    """
    found = {}
    for name, text in _pairs("--watch", words, "perplexity=100"):
        found[name] = None if text == "off" else _value(text)
    return found


def tasks_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of ``wb.downstream``; None without ``--tasks``.

    Raises:
        OptionError: for options of tasks without tasks.
    """
    given = {
        "few_shots": args.few_shots,
        "tests": args.tests,
        "path": args.tasks_path,
        "generate": args.tasks_generate or None,
    }
    given = {k: v for k, v in given.items() if v is not None}
    if not args.tasks:
        if given:
            raise OptionError("options of tasks without tasks: name some, such as --tasks sst2.")
        return None
    if len(given.get("few_shots", ())) == 1:
        (given["few_shots"],) = given["few_shots"]
    return {"tasks": tuple(args.tasks), **given}


def _loader(args: argparse.Namespace) -> tuple[Callable[..., list[EditCase]], dict[str, Any]]:
    """The loader, and what it takes beside limit and ids."""
    if args.zsre is not None and args.zsre not in ZSRE:
        raise OptionError(f"--zsre {args.zsre}: choose memit or easyedit.")
    if args.dataset is not None and args.dataset not in NAMED:
        raise OptionError(f"--dataset {args.dataset!r} is unknown." + _like(args.dataset))
    named = args.data in NAMED and not Path(args.data).is_file()
    name = args.data if named else args.dataset
    given: dict[str, Any] = {} if named else {"path": args.data}
    if args.zsre is not None and name in (None, "zsre"):
        given["protocol"] = args.zsre
    return (datasets.load_cases if name is None else NAMED[name]), given


def _like(word: str) -> str:
    return did_you_mean(word, list(NAMED))


def _ids(args: argparse.Namespace) -> list[int | str] | None:
    """Case ids of a JSON list, or of one list of several."""
    if args.ids is None:
        if args.sample is not None:
            raise OptionError("--sample names a list of --ids: give that file, too.")
        return None
    try:
        held = json.loads(Path(args.ids).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(f"--ids {args.ids} is no JSON file ({err}): check the path.") from err
    if isinstance(held, dict):
        if args.sample not in held:
            raise OptionError(f"--sample {args.sample}: {args.ids} has {', '.join(held)}.")
        held = held[args.sample]
    if not isinstance(held, list):
        raise DataError(f"--ids {args.ids} holds a {type(held).__name__}, not a list of ids.")
    return held


def _pairs(flag: str, words: Sequence[str], example: str) -> list[tuple[str, str]]:
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise OptionError(f"{flag} {word!r}: write NAME=VALUE, such as {example}.")
        found.append((name, value))
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
