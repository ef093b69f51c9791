"""``free_writing``: what a model writes about edited subjects, and how fluent and consistent it is.

The generation tests of ROME (arXiv 2202.05262, section 3.4): from each of a record's generation
prompts one text is sampled; fluency is the entropy of its word n-grams, consistency its likeness to
reference texts about things that have the new attribute. Departures: a text has ``max_new_tokens``
new tokens (the released code counts the prompt in its 100), and the document frequencies are those
of the references at hand, so consistency compares runs with the same references only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.errors import OptionError
from workbench.facts import EditCase
from workbench.metrics.generation import generate_text
from workbench.metrics.language import consistency, fluency
from workbench.model import ModelView

__all__ = ["free_writing"]

#: (relation id, target id) → texts, as from ``wb.datasets.snippets``.
Snippets = Mapping[tuple[str, str], Sequence[str]]


def free_writing(
    view: ModelView,
    cases: Sequence[EditCase],
    *,
    snippets: Snippets | None = None,
    every: int = 1,
    max_new_tokens: int = 100,
    top_k: int | None = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Let a model write about the subjects of cases.

    Args:
        view: a decoder, with whatever edits it holds.
        cases: with the tag ``generation_prompts``, as CounterFact's have it; without it the
            request's own prompt is continued.
        snippets: reference texts (:func:`workbench.datasets.snippets`); None leaves consistency
            out, and so does a case whose relation and target have none.
        every: only every so many cases, the first among them.
        max_new_tokens: of a text.
        top_k: tokens to sample among; None writes greedily.
        seed: of the sampling.

    Returns:
        One row a case: ``case_id, texts`` (how many), ``fluency`` (bits; published figures are 100
        times this), ``consistency`` (0 to 1, NaN without references), ``written`` (the texts with
        their prompts, a line each).

    Raises:
        OptionError: for numbers below 1, or a model that does not write.
        RequestError: if a text does not fit the model's context.

    Example:
        >>> wb.metrics.free_writing(view, cases, snippets=wb.datasets.snippets())
        ... # doctest: +SKIP
    """
    if type(every) is not int or every < 1:
        raise OptionError(f"every={every!r}: it must be a whole number from 1 on.")
    chosen = list(cases)[::every]
    prompts = [_prompts(case) for case in chosen]
    texts = iter(
        generate_text(
            view,
            [p for part in prompts for p in part],
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            seed=seed,
        )
    )
    rows = [
        _row(case, part, [next(texts) for _ in part], snippets or {})
        for case, part in zip(chosen, prompts, strict=True)
    ]
    return pd.DataFrame(rows)


def _prompts(case: EditCase) -> list[str]:
    return list((case.tags or {}).get("generation_prompts") or ()) or [case.request.text]


def _row(
    case: EditCase, prompts: list[str], texts: list[str], snippets: Snippets
) -> dict[str, Any]:
    whole = [p + t for p, t in zip(prompts, texts, strict=True)]
    tags = case.tags or {}
    wanted = snippets.get((str(tags.get("relation")), str(tags.get("target_new_id"))), ())
    return {
        "case_id": case.case_id,
        "texts": len(texts),
        "fluency": fluency(texts),
        "consistency": consistency(whole, wanted) if wanted else math.nan,
        "written": "\n".join(" ".join(t.split()) for t in whole),
    }
