"""Prompts with their answers as one batch, and logits only where they are wanted.

The rows of a batch belong to lessons: ``rows / n_lessons`` consecutive rows each. A decoder reads
prompt and answer together, an encoder-decoder answers, a classifier has one spot a row. The
positions that are not wanted never meet the head (spec memory-and-meta 12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.capabilities import get_module, hooks, readout
from workbench.facts import EditRequest
from workbench.layouts import DECODER, ENCODER_CLASSIFIER
from workbench.model import ModelView
from workbench.replay import Blocks
from workbench.tokens import context_length, encode_request, pad_right, pad_token

__all__ = ["Texts", "logits_of", "read"]


@dataclass(frozen=True)
class Texts:
    """A batch of prompts with answers.

    Attributes:
        requests: one a row.
        inputs: what the model is called with.
        lengths: tokens of each prompt; None unless the model is a decoder.
        row: batch row of each spot, ascending.
        column: its position; the logits there are about ``label``.
        label: token id, or class.
        answer: whether the spot belongs to the answer; others are the prompt's.
        blocks: where the rows stand if the lower blocks are done, see
            :mod:`workbench.editors.learned.prefixes`.
    """

    requests: tuple[EditRequest, ...]
    inputs: Mapping[str, Any]
    lengths: Int[Tensor, " rows"] | None
    row: Int[Tensor, " n"]
    column: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    answer: Bool[Tensor, " n"]
    blocks: Blocks | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def part(self, begin: int, end: int) -> Texts:
        """Some of the rows."""
        own = (self.row >= begin) & (self.row < end)
        inputs = {k: v[begin:end] if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        return Texts(
            requests=self.requests[begin:end],
            inputs=inputs,
            lengths=None if self.lengths is None else self.lengths[begin:end],
            row=self.row[own] - begin,
            column=self.column[own],
            label=self.label[own],
            answer=self.answer[own],
        )


def read(
    view: ModelView, requests: Sequence[EditRequest], *, everywhere: Sequence[bool] | None = None
) -> Texts:
    """Encode requests, in their order.

    Args:
        view: the model.
        requests: prompts with what shall be answered in ``target_new``.
        everywhere: rows of which a decoder's prompt positions are spots as well.

    Raises:
        RequestError: for a text over the context length, or an answer without a token.
    """
    if view.kind == ENCODER_CLASSIFIER:
        return _classes(view, requests)
    if view.kind == DECODER:
        return _continued(view, requests, everywhere or [False] * len(requests))
    return _answered(view, requests)


def logits_of(
    view: ModelView, texts: Texts, values: Mapping[str, Tensor] | None = None
) -> Float[Tensor, "n classes"]:
    """The model's logits at the spots, in float32 or wider; differentiable.

    Args:
        view: the model, with whatever edits and hooks it has.
        texts: the batch.
        values: parameters to use instead of the model's own, by name.
    """
    if texts.blocks is not None and not values:
        return _upper(view, texts, texts.blocks)
    gathers = view.kind != ENCODER_CLASSIFIER
    with view.reading(texts.lengths), hooks(_gathering(view, texts) if gathers else ()):
        out = torch.func.functional_call(view.model, dict(values or {}), (), dict(texts.inputs))
    return _widened(out.logits)


def _upper(view: ModelView, texts: Texts, blocks: Blocks) -> Tensor:
    """Logits at the spots from where the rows stand."""
    hidden = blocks.hidden
    for layer in range(blocks.start, view.n_layers):
        hidden = blocks.run(layer, hidden)
    return _widened(readout(view.model, view.layout, hidden[texts.row, texts.column]))


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _gathering(view: ModelView, texts: Texts) -> Iterator[Any]:
    """A hook by which the head sees the spots alone, ``[n, d_model]``."""

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][texts.row, texts.column], *args[1:])

    head = get_module(view.model, view.layout.head)
    assert head is not None
    yield head.register_forward_pre_hook(gather)


def _classes(view: ModelView, requests: Sequence[EditRequest]) -> Texts:
    rows = [view.tokenizer(r.text)["input_ids"] for r in requests]
    index = torch.arange(len(rows), device=view.device)
    label = torch.tensor([view.labels.index(r.target_new) for r in requests], device=view.device)
    return Texts(
        requests=tuple(requests),
        inputs=_padded(view, rows),
        lengths=None,
        row=index,
        column=torch.zeros_like(index),
        label=label,
        answer=torch.ones_like(index, dtype=torch.bool),
    )


def _continued(
    view: ModelView, requests: Sequence[EditRequest], everywhere: Sequence[bool]
) -> Texts:
    limit = context_length(view.model.config)
    encoded = [encode_request(view.tokenizer, r, max_length=limit)[0] for r in requests]
    spots = []
    for i, (row, whole) in enumerate(zip(encoded, everywhere, strict=True)):
        first = 1 if whole else row.target_start
        spots += [(i, k - 1, row.ids[k], k >= row.target_start) for k in range(first, len(row.ids))]
    index, column, label, answer = torch.tensor(spots, device=view.device).unbind(1)
    return Texts(
        requests=tuple(requests),
        inputs=_padded(view, [e.ids[:-1] for e in encoded]) | {"use_cache": False},
        lengths=torch.tensor([e.target_start for e in encoded]),
        row=index,
        column=column,
        label=label,
        answer=answer.bool(),
    )


def _answered(view: ModelView, requests: Sequence[EditRequest]) -> Texts:
    tokenizer: Any = view.tokenizer
    targets = [tokenizer(text_target=r.target_new)["input_ids"] for r in requests]
    labels, real = pad_right(targets, pad_token(view), device=view.device)
    index, column = real.nonzero(as_tuple=True)
    model: Any = view.model  # transformers types this method as a tensor
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    asked = _padded(view, [tokenizer(r.text)["input_ids"] for r in requests])
    return Texts(
        requests=tuple(requests),
        inputs=asked | {"decoder_input_ids": shifted, "use_cache": False},
        lengths=None,
        row=index,
        column=column,
        label=labels[index, column],
        answer=torch.ones_like(index, dtype=torch.bool),
    )


def _padded(view: ModelView, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    ids, mask = pad_right(rows, pad_token(view), device=view.device)
    return {"input_ids": ids, "attention_mask": mask.long()}
