"""Metrics of texts: fluency, consistency, perplexity.

Fluency and consistency follow ROME (arXiv 2202.05262, appendix), without NLTK: words come from one
regular expression, so figures differ from published ones by a few points in the third digit.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from workbench.errors import OptionError
from workbench.layouts import DECODER
from workbench.metrics.answers import tally
from workbench.metrics.plan import Query, assemble
from workbench.model import ModelView
from workbench.tokens import Item, context_length, encode

__all__ = ["consistency", "fluency", "ngram_entropy", "perplexity", "text_likelihoods"]

#: A word with an inner apostrophe, or one punctuation mark.
WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
WINDOW_TOKENS = 1024


def ngram_entropy(text: str, n: int) -> float:
    """Entropy of a text's word n-grams, in bits; 0 for a text of fewer words.

    Example:
        >>> ngram_entropy("a b a b", 1)
        1.0
    """
    words = WORD.findall(text)
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return sum(c / total * math.log2(total / c) for c in counts.values())


def fluency(texts: Iterable[str]) -> float:
    """Generation entropy GE = (2/3 · H2 + 4/3 · H3) / 2 in bits, averaged over texts.

    Repetitive text is low. Published figures are 100 times this (healthy models about 600 to 635).

    Raises:
        OptionError: without texts.

    Example:
        >>> fluency(["no no no no"])
        0.0
    """
    values = [(2 * ngram_entropy(t, 2) + 4 * ngram_entropy(t, 3)) / 6 for t in _texts(texts)]
    return sum(values) / len(values)


def consistency(
    generated: Iterable[str], references: Iterable[str], *, corpus: Iterable[str] | None = None
) -> float:
    """Cosine of the TF-IDF vectors of generated texts and reference texts, each joined to one.

    Args:
        generated: what the model wrote about the subject.
        references: texts about things that have the new attribute
            (:func:`workbench.datasets.snippets`).
        corpus: documents that give the inverse document frequencies; the references if None.
            ROME ships fixed ones, so absolute figures differ.

    Returns:
        0 to 1; published figures are 100 times this.

    Raises:
        OptionError: if there is nothing to compare.

    Example:
        >>> round(consistency(["She speaks French"], ["French is spoken", "a river"]), 2) > 0
        True
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    written, wanted = _texts(generated), _texts(references)
    vectorizer = TfidfVectorizer(token_pattern=r"\w+")
    vectorizer.fit(wanted if corpus is None else _texts(corpus))
    a, b = vectorizer.transform([" ".join(written), " ".join(wanted)])
    return float((a @ b.T).sum())


def perplexity(
    view: ModelView,
    texts: Iterable[str],
    *,
    max_tokens: int | None = None,
    stride: int | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
) -> float:
    """exp of the mean negative log-likelihood over all scored tokens of all texts.

    Args:
        view: a decoder.
        texts: each is read on its own; its first token is not scored and not counted.
        max_tokens: stop after so many scored tokens.
        stride: new tokens a window; smaller ones give each token more context. Default: window.
        window: tokens a window; the model's context, at most 1024.
        batch_tokens: padded tokens in a batch.

    Raises:
        OptionError: for another kind of model, bad numbers, or no token to score.

    Example:
        >>> wb.metrics.perplexity(view, wb.datasets.texts("valid.txt", limit=100))
        ... # doctest: +SKIP
    """
    table = text_likelihoods(
        view, texts, max_tokens=max_tokens, stride=stride, window=window, batch_tokens=batch_tokens
    )
    total = (table["nll"] * table["tokens"]).sum()
    return _exp(total / table["tokens"].sum())


def text_likelihoods(
    view: ModelView,
    texts: Iterable[str],
    *,
    max_tokens: int | None = None,
    stride: int | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
) -> pd.DataFrame:
    """Likelihood text by text; arguments and errors as :func:`perplexity`.

    Returns:
        Columns ``text`` (position), ``tokens`` (scored), ``nll`` (mean nats), ``perplexity``;
        texts of fewer than two tokens are left out.
    """
    if view.kind != DECODER:
        raise OptionError(f"perplexity needs a decoder, {view.name} is an {view.kind}.")
    size = _window(view, window)
    step = size - 1 if stride is None else stride
    if not 1 <= step < size:
        raise OptionError(f"stride={stride}: it must be 1 to window - 1 = {size - 1}.")
    owners, queries = [], []
    for owner, query in _queries(view, texts, size, step, max_tokens):
        owners.append(owner)
        queries.append(query)
    if not queries:
        raise OptionError("texts: there is no token to score; give texts of two tokens or more.")
    with view.writing("perplexity"):
        plan = assemble(queries)
        log_prob = tally(view, plan, batch_tokens=batch_tokens, phase="perplexity").log_prob
    parts = [
        -float(log_prob[a:b].sum()) for a, b in zip(plan.starts, plan.starts[1:], strict=False)
    ]
    counts = [len(q.positions) for q in queries]
    table = pd.DataFrame({"text": owners, "tokens": counts, "nll": parts})
    table = table.groupby("text", as_index=False).sum()
    table["nll"] /= table["tokens"]
    return table.assign(perplexity=table["nll"].map(_exp))


def _exp(nll: float) -> float:
    """exp, infinite where a broken model's loss is beyond what a number holds."""
    return math.exp(nll) if nll < 700 or math.isnan(nll) else math.inf


def _queries(
    view: ModelView, texts: Iterable[str], size: int, step: int, max_tokens: int | None
) -> Iterator[tuple[int, Query]]:
    """Windows of every text; each token but the first is scored once."""
    left = math.inf if max_tokens is None else max_tokens
    for owner, text in enumerate(texts):
        ids = encode(view.tokenizer, [Item(text)])[0].ids if text.strip() else ()
        for begin, first, end in _windows(len(ids), size, step):
            end = int(min(end, first + left))
            if end <= first:
                return
            left -= end - first
            positions = tuple(range(first - 1 - begin, end - 1 - begin))
            yield owner, Query((ids[begin : end - 1],), positions, ids[first:end])


def _windows(n: int, size: int, step: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end) token indices."""
    first = 1
    while first < n:
        end = min(n, first + step) if first > 1 else min(n, size)
        yield max(0, end - size), first, end
        first = end


def _window(view: ModelView, window: int | None) -> int:
    length = context_length(view.model.config) or WINDOW_TOKENS
    if window is None:
        return min(length, WINDOW_TOKENS)
    if not 2 <= window <= length:
        raise OptionError(f"window={window}: it must be 2 to the model's context, {length}.")
    return window


def _texts(texts: Iterable[str]) -> Sequence[str]:
    found = [texts] if isinstance(texts, str) else list(texts)
    if not found:
        raise OptionError("texts is empty: give at least one text.")
    return found
