"""Two lengths a codebook needs: how far apart one text's queries are, and how far different texts'.

One prompt's query differs a little alone, beside longer texts in a batch, and with its answer after
it; a key written under one of these must answer under the others. Radii in turn are raw distances,
whose scale differs a hundredfold between modules (spec memory-and-meta 1.6 and 1.12).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workbench.adapters import Context, prompt_mask
from workbench.editors.memory.examples import Place, queries, watched
from workbench.layouts import DECODER
from workbench.memories import Settings
from workbench.model import ModelView
from workbench.tokens import Item, encode, pad_right, pad_token

__all__ = ["default_epsilon", "noise_floor"]

#: Plain sentences about different things and of different lengths.
SENTENCES = (
    "The weather in the mountains was",
    "Two boats left the harbor before",
    "Her brother works for",
    "In the evening the children of the village went to the river to",
    "Nobody remembers who built the old stone bridge, but it was",
    "The price of bread has",
    "A letter from the ministry arrived on Monday and said that the meeting would",
    "Music is",
)
#: Share of the median distance between different sentences that a new ball reaches.
REACH = 0.25


def noise_floor(view: ModelView, place: Place, settings: Settings) -> float:
    """Twice the largest distance between queries of one text, rounded up to a power of two."""
    key = ("noise", place.parameter, settings.query, str(view.dtype))
    if key not in view.cache:
        view.cache[key] = _noise(view, place, settings)
    return float(view.cache[key])


def default_epsilon(view: ModelView, place: Place, settings: Settings) -> float:
    """A quarter of the median distance between queries of different sentences."""
    key = ("epsilon", place.parameter, settings.query)
    if key not in view.cache:
        with view.pristine():
            q, _ = queries(view, SENTENCES, place, settings)
        view.cache[key] = REACH * float(torch.pdist(q).median())
    return float(view.cache[key])


@torch.no_grad()
def _noise(view: ModelView, place: Place, settings: Settings) -> float:
    with view.pristine():
        alone = torch.cat([queries(view, [s], place, settings)[0] for s in SENTENCES])
        others = [queries(view, SENTENCES, place, settings)[0]]
        if view.kind == DECODER:
            others.append(_followed(view, place, settings))
    gap = max(float((alone - other).norm(dim=1).max()) for other in others)
    step = torch.finfo(view.dtype).eps * float(alone.norm(dim=1).max())
    return float(2.0 ** math.ceil(math.log2(max(2 * gap, 4 * step, 1e-30))))


def _followed(view: ModelView, place: Place, settings: Settings) -> Tensor:
    """Queries of the sentences with something after them."""
    rows = encode(view.tokenizer, [Item(s, "and then it was over") for s in SENTENCES])
    ids, mask = pad_right([r.ids for r in rows], pad_token(view), device=view.device)
    lengths = torch.tensor([r.target_start for r in rows])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
    context = Context(mask, prompt_mask(mask, lengths), whole=False)
    return watched(view, inputs, context, place, settings)[0]
