"""How good an answer is, by kind of task: questions, classes, texts (spec memory-and-meta 3.5).

Questions are answered freely and greedily and judged by their words; a decoder, which goes on after
its answer, by as many words as the right answer has. Classes are judged by the arg-max, texts by
the perplexity of what follows a beginning.

Departures from the published metrics: ``f1`` is that of SQuAD (bags of normalized words, no special
tokens); the released one, over unique token ids with the end-of-sequence token that all answers
share, is ``f1_compat``. An answer is right if its normalized words are, not its token ids.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.errors import OptionError, did_you_mean
from workbench.facts import Probe
from workbench.layouts import DECODER
from workbench.metrics.answers import answers_of
from workbench.metrics.forward import States
from workbench.metrics.generation import generate_text
from workbench.metrics.plan import make_plan
from workbench.model import ModelView

__all__ = ["MEASURES", "averages", "f1_compat", "judge", "normalized", "require_kind", "word_f1"]

#: Kind of task → what is measured, the main measure first.
MEASURES: dict[str, tuple[str, ...]] = {
    "qa": ("f1", "f1_compat", "match"),
    "classification": ("accuracy",),
    "text": ("perplexity", "corpus_perplexity", "median_perplexity"),
}
ARTICLES = frozenset({"a", "an", "the"})
#: Tokens a decoder writes beyond the right answer's, since words may be cut otherwise.
SPARE_TOKENS = 3
#: Tokens an encoder-decoder writes at most.
ANSWER_TOKENS = 20
#: Answers of similar length are written together: up to so many tokens.
LENGTHS = (4, 8, 16, 32, 64)


def require_kind(kind: str) -> None:
    """Refuse an unknown kind of task.

    Raises:
        OptionError: with the nearest known one.
    """
    if kind not in MEASURES:
        raise OptionError(f"kind={kind!r} is unknown." + did_you_mean(kind, MEASURES))


def judge(
    view: ModelView, kind: str, probes: Sequence[Probe], *, states: States | None = None
) -> pd.DataFrame:
    """Judge the model as it is.

    Args:
        view: the model, with whatever edits it holds.
        kind: ``qa``, ``classification`` or ``text``.
        probes: prompts and right answers.
        states: as in ``forward.run``, for texts.

    Returns:
        One row a probe, in order: for questions ``said, f1, f1_compat, match``; for classes
        ``accuracy``; for texts ``tokens, nll`` (mean nats), ``perplexity``.

    Raises:
        OptionError: for an unknown kind.

    Example:
        >>> judge(view, "qa", [Probe(prompt="Who wrote it?", target="Ann")])  # doctest: +SKIP
    """
    require_kind(kind)
    if not probes:
        return pd.DataFrame(columns=["match", *MEASURES[kind]])
    if kind == "qa":
        return _judge_questions(view, probes)
    pairs = list(dict.fromkeys((p.prompt, p.target) for p in probes))
    with view.writing("judge"):
        found = answers_of(view, make_plan(view, pairs), pairs, states=states)
    answers = [found[p.prompt, p.target] for p in probes]
    if kind == "classification":
        return pd.DataFrame({"accuracy": [float(a.exact) for a in answers]})
    nll = [a.nll for a in answers]
    return pd.DataFrame(
        {
            "tokens": [len(a.labels) for a in answers],
            "nll": nll,
            "perplexity": [math.exp(min(x, 700.0)) for x in nll],
        }
    )


def averages(kind: str, table: pd.DataFrame) -> dict[str, float]:
    """Each measure of a kind over a table of :func:`judge`; empty without rows."""
    if table.empty:
        return {}
    if kind != "text":
        return {name: float(table[name].mean()) for name in MEASURES[kind]}
    corpus = float(np.average(table["nll"], weights=table["tokens"]))
    return {
        "perplexity": float(table["perplexity"].mean()),
        "corpus_perplexity": math.exp(min(corpus, 700.0)),
        "median_perplexity": float(table["perplexity"].median()),
    }


def normalized(text: str) -> list[str]:
    """Lower-cased words without punctuation and articles (of a text that has other words).

    Example:
        >>> normalized("The Beatles!")
        ['beatles']
    """
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    words = re.findall(r"\S+", plain)
    return [w for w in words if w not in ARTICLES] or words


def word_f1(said: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two bags of words.

    Example:
        >>> word_f1(["x"], ["y"])
        0.0
    """
    shared = sum((Counter(gold) & Counter(said)).values())
    return 2 * shared / (len(gold) + len(said)) if shared else 0.0


def f1_compat(said: Sequence[int], gold: Sequence[int]) -> float:
    """F1 as released with GRACE: unique ids that both have, over the lengths of each.

    Special tokens count, so disjoint answers of three tokens and an end have 0.25.

    Example:
        >>> f1_compat([5, 6, 7, 1], [2, 3, 4, 1])
        0.25
    """
    shared = len(set(said) & set(gold))
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def _judge_questions(view: ModelView, probes: Sequence[Probe]) -> pd.DataFrame:
    said = _answers(view, probes)
    rows = []
    for probe in probes:
        text, gold = said[probe.prompt, probe.target], normalized(probe.target)
        words = normalized(text)
        if view.kind == DECODER:
            words = words[: len(gold)]
        rows.append(
            {
                "said": text,
                "f1": word_f1(words, gold),
                "f1_compat": f1_compat(*_ids(view, text, probe.target)),
                "match": float(words == gold),
            }
        )
    return pd.DataFrame(rows)


def _answers(view: ModelView, probes: Sequence[Probe]) -> Mapping[tuple[str, str], str]:
    """What the model says to each prompt, as long as a right answer may be."""
    pairs = list(dict.fromkeys((p.prompt, p.target) for p in probes))
    groups: dict[int, list[tuple[str, str]]] = {}
    for prompt, target in pairs:
        n = ANSWER_TOKENS
        if view.kind == DECODER:
            needed = len(view.tokenizer(f" {target}")["input_ids"]) + SPARE_TOKENS
            n = next((x for x in LENGTHS if x >= needed), needed)
        groups.setdefault(n, []).append((prompt, target))
    said: dict[tuple[str, str], str] = {}
    for n, part in sorted(groups.items()):
        texts = generate_text(view, [prompt for prompt, _ in part], max_new_tokens=n)
        said |= dict(zip(part, texts, strict=True))
    return said


def _ids(view: ModelView, said: str, gold: str) -> tuple[list[int], list[int]]:
    """Token ids of an answer and of the right one, as the model would write them."""
    if view.kind == DECODER:
        right = view.tokenizer(f" {gold}")["input_ids"]
        return view.tokenizer(said)["input_ids"][: len(right)] if said else [], right
    return view.tokenizer(text_target=said)["input_ids"], view.tokenizer(text_target=gold)[
        "input_ids"
    ]
