"""Run a plan: batches of rows of similar length, logits only where a cell reads.

Where the layout's readout was proved at load, the last block's residual is gathered at the scored
positions and only these go through norm and head; otherwise the model's own logits are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.capabilities import readout
from workbench.errors import OptionError
from workbench.layouts import DECODER, ENCODER_CLASSIFIER
from workbench.metrics.plan import Plan, TokenRow
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.tokens import pad_right, pad_token
from workbench.trace import Site, trace

__all__ = ["Reading", "States", "run"]

#: Last residual of a batch of rows if it is at hand, None if the model has to be run.
States = Callable[[Sequence[TokenRow]], Tensor | None]

#: Padded tokens in one batch.
BATCH_TOKENS = {"cpu": 2048, "other": 32_768}
#: Logits held at once (elements): 64 MB in float32.
READOUT_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Reading:
    """The model's answers at the spots ``start : start + len(logits)`` of a plan.

    Attributes:
        start: first spot.
        logits: ``[n, d_vocab]`` (classes for a classifier), float32 or wider.
        residual: ``[n, d_model]`` before the final norm, None where the readout is not proved.
    """

    start: int
    logits: Tensor
    residual: Tensor | None


@torch.no_grad()
def run(
    view: ModelView,
    plan: Plan,
    *,
    batch_tokens: int | None = None,
    phase: str = "score",
    states: States | None = None,
) -> Iterator[Reading]:
    """Yield readings until every spot of the plan was read once, in order.

    Args:
        view: the model, with whatever edits it holds.
        plan: what to run.
        batch_tokens: padded tokens in a batch; None suits the device.
        phase: name of the progress phase, counted in rows.
        states: gives last residuals without a full pass, for a decoder with a proved readout
            (:class:`~workbench.metrics.prefixes.Prefixes`).

    Raises:
        OptionError: for ``batch_tokens < 1``.
    """
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS.get(view.device.type, BATCH_TOKENS["other"])
    if batch_tokens < 1:
        raise OptionError(f"batch_tokens={batch_tokens}: it must be at least 1.")
    row_of_spot = plan.spots[:, 0].contiguous()
    with Bar(phase, len(plan.rows)) as bar:
        for begin, end in batches(plan.rows, batch_tokens):
            edges = torch.searchsorted(row_of_spot, torch.tensor([begin, end])).tolist()
            spots = plan.spots[edges[0] : edges[1]] - torch.tensor([begin, 0])
            yield from _readings(view, plan.rows[begin:end], spots, edges[0], states)
            bar.step(end - begin)


def batches(rows: list[TokenRow], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows (longest first) whose padded size fits; a longer row goes alone."""
    begin = 0
    while begin < len(rows):
        width = sum(len(part) for part in rows[begin])
        end = min(len(rows), begin + max(1, batch_tokens // max(1, width)))
        yield begin, end
        begin = end


def _readings(
    view: ModelView, rows: list[TokenRow], spots: Tensor, start: int, given: States | None
) -> Iterator[Reading]:
    """Forward one batch, then read it out in pieces."""
    if view.kind == DECODER and view.capabilities.readout:
        held = given(rows) if given is not None else None
        states = _gather(_last_residual(view, rows) if held is None else held, spots)
        step = max(1, READOUT_ELEMENTS // view.model.config.get_text_config().vocab_size)
        for i in range(0, len(states), step):
            piece = states[i : i + step]
            logits = readout(view.model, view.layout, piece)
            yield Reading(start + i, _wide(logits), piece)
        return
    yield Reading(start, _wide(_gather(_logits(view, rows), spots)), None)


def _last_residual(view: ModelView, rows: list[TokenRow]) -> Tensor:
    ids, mask = pad_right([row[0] for row in rows], pad_token(view), device=view.device)
    site = Site(view.n_layers - 1, "residual")
    with view.reading(_prompt_lengths(rows)), trace(view, [site], stop=True) as seen:
        view.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    return seen[site]


def _prompt_lengths(rows: list[TokenRow]) -> Tensor | None:
    """Where rows say how much of them is prompt (views with adapters)."""
    return torch.tensor([row[1][0] for row in rows]) if len(rows[0]) > 1 else None


def _logits(view: ModelView, rows: list[TokenRow]) -> Tensor:
    """``[batch, pos, d_vocab]``; one position for a classifier, decoder positions for seq2seq."""
    pad = pad_token(view)
    ids, mask = pad_right([row[0] for row in rows], pad, device=view.device)
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if view.kind == ENCODER_CLASSIFIER:
        return view.model(**inputs).logits[:, None]
    if view.kind == DECODER:
        with view.reading(_prompt_lengths(rows)):
            return view.model(**inputs, use_cache=False).logits
    labels, _ = pad_right([row[1] for row in rows], pad, device=view.device)
    model: Any = view.model  # transformers types this method as a tensor
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    return model(**inputs, decoder_input_ids=shifted, use_cache=False).logits


def _gather(states: Tensor, spots: Tensor) -> Tensor:
    row, position = spots.to(states.device).unbind(1)
    return states[row, position]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
