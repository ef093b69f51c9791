"""Context templates: short generated texts before the prompt, so that an edit generalises.

Two published recipes (spec locate-then-edit 1.3), both sampled from the pristine model with top-k 5
from a seeded generator and cached on the view by (seed, recipe):

- ``rome``: 10 texts of 5 tokens and 10 of 10 tokens, all after the end-of-text token; keys are
  averaged uniformly over the bare prompt and these 20.
- ``memit``: one text of 10 tokens after each of five common words; the bare prompt counts one
  half, the five prefixed ones a tenth each.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.model import ModelView
from workbench.progress import Bar
from workbench.sampling import sample

__all__ = ["RECIPES", "Contexts", "contexts"]

RECIPES = ("rome", "memit", "bare")
MEMIT_SEEDS = ("The", "Therefore", "Because", "I", "You")
ROME_LENGTHS = (5,) * 10 + (10,) * 10


@dataclass(frozen=True)
class Contexts:
    """Templates, each with one ``{}`` for the whole prompt; the first is the bare ``{}``.

    Attributes:
        templates: ``n`` texts.
        weights: ``n`` weights of the keys, summing to 1.
    """

    templates: tuple[str, ...]
    weights: tuple[float, ...]

    def tensor(self, like: Tensor) -> Float[Tensor, " n"]:
        """The weights as a tensor."""
        return torch.tensor(self.weights, dtype=like.dtype, device=like.device)


def contexts(
    view: ModelView, recipe: str, seed: int, templates: tuple[str, ...] | None = None
) -> Contexts:
    """Context templates of a recipe, or given ones with the recipe's weights.

    Args:
        view: the model; templates are sampled from its pristine state.
        recipe: one of :data:`RECIPES`.
        seed: of the sampling.
        templates: fixed templates instead of sampled ones; the first must be ``"{}"``.
    """
    if templates is None:
        key = ("contexts", recipe, seed)
        if key not in view.cache:
            view.cache[key] = ("{}", *_generate(view, recipe, seed))
        templates = view.cache[key]
    n = len(templates)
    if recipe == "memit" and n > 1:
        return Contexts(templates, (0.5, *([0.5 / (n - 1)] * (n - 1))))
    return Contexts(templates, (1.0 / n,) * n)


def _generate(view: ModelView, recipe: str, seed: int) -> list[str]:
    if recipe == "bare":
        return []
    tok: Any = view.tokenizer
    lengths: tuple[int, ...]
    if recipe == "rome":
        start = next((x for x in (tok.bos_token_id, tok.eos_token_id) if x is not None), 0)
        seeds, lengths = [[start]] * len(ROME_LENGTHS), ROME_LENGTHS
    else:
        seeds = [tok(word)["input_ids"] for word in MEMIT_SEEDS]
        lengths = (10,) * len(seeds)
    texts = []
    n_tokens = sum(n - len(s) for s, n in zip(seeds, lengths, strict=True))
    with view.pristine(), Bar("sampling contexts", n_tokens) as bar:
        for length in sorted(set(lengths)):
            chosen = [s for s, n in zip(seeds, lengths, strict=True) if n == length]
            rows = sample(view, chosen, max_length=length, top_k=5, seed=seed + length, bar=bar)
            texts += [_clean(tok.decode(row, skip_special_tokens=True)) for row in rows]
    return [f"{text}. {{}}" for text in texts]


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return text.replace("{", " ").replace("}", " ")
