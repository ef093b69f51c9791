"""What a decoder makes of texts below the lowest edited block: once for all passes of a lesson.

Nothing below that block changes, so a text that is read twice (unrelated ones, before and after)
meets the lower blocks once, and the passes run the upper ones alone (spec memory-and-meta 4.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from workbench.editors.learned.texts import Texts
from workbench.layouts import DECODER
from workbench.model import ModelView
from workbench.replay import capture_blocks

__all__ = ["lowest_block", "share_prefixes"]


def lowest_block(view: ModelView, names: Sequence[str]) -> int:
    """The lowest block that one of the matrices is in; 0 where one is in none."""
    found = []
    for name in names:
        inside = (x for x in range(view.n_layers) if name.startswith(f"{view.layout.block(x)}."))
        found.append(next(inside, 0))
    return min(found)


def share_prefixes(
    view: ModelView, names: Sequence[str], batches: Sequence[Texts]
) -> tuple[Texts, ...]:
    """The same batches, with the lower blocks done; as they are where that is not possible.

    Args:
        view: the model.
        names: the edited matrices.
        batches: what will be run; equal rows of any of them are run once.
    """
    start = lowest_block(view, names)
    possible = view.kind == DECODER and view.capabilities.readout and not view.adapted
    if not start or not possible:
        return tuple(batches)
    place: dict[tuple[int, ...], int] = {}
    index = [[place.setdefault(ids, len(place)) for ids in _ids(texts)] for texts in batches]
    blocks = capture_blocks(view, list(place), start, view.n_layers)
    return tuple(
        replace(texts, blocks=blocks.take(torch.tensor(own, device=blocks.hidden.device)))
        for texts, own in zip(batches, index, strict=True)
    )


def _ids(texts: Texts) -> list[tuple[int, ...]]:
    """Token ids of each row, without padding."""
    ids, lengths = texts.inputs["input_ids"], texts.inputs["attention_mask"].sum(1)
    return [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
