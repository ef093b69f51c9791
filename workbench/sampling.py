"""Top-k sampling from a view: cached, batched over prompts of any lengths, reproducible.

Rows are padded on the left and every step passes the *full* attention mask: the references'
routine passes only its newest slice, which changes the logits on transformers 5 (spec
locate-then-edit 1.3 and 12). Chance enters through one table of uniform numbers, a row a prompt, so
the text of a prompt depends neither on the batch size nor on how far its neighbors run.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import NumericalError, OptionError, RequestError
from workbench.layouts import DECODER
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.tokens import context_length

__all__ = ["sample"]


@torch.no_grad()
def sample(
    view: ModelView,
    prompts: Sequence[Sequence[int]],
    *,
    max_length: int,
    top_k: int | None = 5,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    stop_at_eos: bool = False,
    bar: Bar | None = None,
) -> list[list[int]]:
    """Continue token rows by sampling from the model in its present state.

    Args:
        view: a decoder, with whatever edits it holds (use ``view.pristine()`` for none).
        prompts: token ids, one or more a row, of any lengths.
        max_length: total tokens of every returned row, prompt included.
        top_k: choose among the k likeliest tokens; None for all; 1 is greedy.
        temperature: logits are divided by it.
        seed: of the uniform numbers, drawn on the CPU.
        batch_size: rows that run together.
        stop_at_eos: end a row with its first generated end-of-sequence token.
        bar: progress bar that is stepped once per generated token.

    Returns:
        The rows in the given order, prompts included; shorter than ``max_length`` only by
        ``stop_at_eos``.

    Raises:
        OptionError: for a model that is no decoder and for values out of range.
        RequestError: for an empty prompt or one longer than ``max_length``.
        NumericalError: if the model answers with NaN or Inf.

    Source: top-k 5 as in ROME's and MEMIT's ``generate_fast`` (spec locate-then-edit 1.3).

    Example:
        >>> seeds = [view.tokenizer(w)["input_ids"] for w in ("The", "Because")]
        >>> rows = sample(view, seeds, max_length=10, seed=0)
    """
    rows = [list(p) for p in prompts]
    _check(view, rows, max_length, top_k, temperature, batch_size)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(rows), max_length, generator=generator)
    ends = _eos_ids(view) if stop_at_eos else ()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    done: dict[int, list[int]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _Batch(view, [rows[i] for i in chosen], max_length, bar)
        new = batch.run(uniform[chosen], top_k, temperature, ends)
        done |= dict(zip(chosen, new, strict=True))
    return [done[i] for i in range(len(rows))]


def draw(
    logits: Float[Tensor, "rows d_vocab"],
    uniform: Float[Tensor, " rows"],
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, " rows"]:
    """Token whose interval of the cumulative distribution holds the uniform number.

    Args:
        logits: any dtype; float32 is used.
        uniform: numbers in [0, 1).
    """
    scores, index = logits.float() / temperature, None
    if top_k is not None:
        scores, index = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    steps = scores.softmax(-1).cumsum(-1)
    level = uniform.to(steps)[:, None] * steps[:, -1:]
    place = torch.searchsorted(steps, level, right=True).clamp_max(steps.shape[-1] - 1)
    return (place if index is None else index.gather(1, place))[:, 0]


class _Batch:
    """Rows that are extended together, one column a step."""

    def __init__(
        self, view: ModelView, rows: list[list[int]], max_length: int, bar: Bar | None
    ) -> None:
        self.view, self.rows, self.max_length, self.bar = view, rows, max_length, bar
        self.lengths = [len(r) for r in rows]
        self.ids, self.mask = _pad_left(rows, view.device)
        self.accepts = inspect.signature(type(view.model).forward).parameters
        self.cache: Any = None

    def run(
        self, uniform: Tensor, top_k: int | None, temperature: float, ends: tuple[int, ...]
    ) -> list[list[int]]:
        uniform = uniform.to(self.view.device)
        lengths = torch.tensor(self.lengths, device=self.view.device)
        stop = torch.tensor(ends, dtype=torch.long, device=self.view.device)
        ended = torch.zeros(len(self.rows), dtype=torch.bool, device=self.view.device)
        healthy = torch.ones((), dtype=torch.bool, device=self.view.device)
        columns = []
        for step in range(self.max_length - min(self.lengths)):
            logits = self._forward()
            healthy = healthy & logits.isfinite().any(-1).all() & ~logits.isnan().any()
            place = (lengths + step).clamp_max(self.max_length - 1)
            u = uniform.gather(1, place[:, None])[:, 0]
            token = draw(logits, u, top_k=top_k, temperature=temperature)
            alive = (lengths + step < self.max_length) & ~ended
            columns.append(token)
            ended = ended | torch.isin(token, stop)
            self._append(token, alive)
            self._report(step)
            if ends and bool(ended.all()):
                break
        if not bool(healthy):
            raise NumericalError(
                "the model answers with NaN or Inf while text is sampled: load it in a wider "
                "dtype (dtype='float32'), or take back the last edit."
            )
        return self._join(columns, set(ends))

    def _forward(self) -> Float[Tensor, "rows d_vocab"]:
        inputs: dict[str, Any] = {
            "input_ids": self.ids,
            "attention_mask": self.mask.long(),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if "position_ids" in self.accepts:
            positions = (self.mask.long().cumsum(1) - 1).clamp_min(0)
            inputs["position_ids"] = positions[:, -self.ids.shape[1] :]
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        out = self.view.model(**inputs)
        self.cache = out.past_key_values
        return out.logits[:, -1].float()  # type: ignore[no-any-return]

    def _append(self, token: Tensor, alive: Bool[Tensor, " rows"]) -> None:
        # a finished row goes on as padding: its positions stop growing, its tokens are cut off
        self.ids = token[:, None]
        self.mask = torch.cat([self.mask, alive[:, None]], dim=1)

    def _report(self, step: int) -> None:
        if self.bar is not None:
            self.bar.step(sum(n + step < self.max_length for n in self.lengths))

    def _join(self, columns: list[Tensor], ends: set[int]) -> list[list[int]]:
        if not columns:
            return self.rows
        new = torch.stack(columns, dim=1).tolist()
        joined = []
        for row, tail in zip(self.rows, new, strict=True):
            tail = tail[: self.max_length - len(row)]
            first = next((i + 1 for i, t in enumerate(tail) if t in ends), len(tail))
            joined.append(row + tail[:first])
        return joined


def _pad_left(
    rows: list[list[int]], device: torch.device
) -> tuple[Int[Tensor, "rows pos"], Bool[Tensor, "rows pos"]]:
    width = max(len(r) for r in rows)
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows], device=device)
    lengths = torch.tensor([len(r) for r in rows], device=device)
    mask = torch.arange(width, device=device)[None] >= width - lengths[:, None]
    return ids, mask


def _eos_ids(view: ModelView) -> tuple[int, ...]:
    found: set[int] = set()
    configured = getattr(view.model.generation_config, "eos_token_id", None)
    for value in (configured, view.tokenizer.eos_token_id):
        found |= set(value if isinstance(value, list | tuple) else [value]) - {None}
    return tuple(sorted(found))


def _check(
    view: ModelView,
    rows: list[list[int]],
    max_length: int,
    top_k: int | None,
    temperature: float,
    batch_size: int,
) -> None:
    if view.kind != DECODER:
        raise OptionError(f"{view.name} is an {view.kind}: text is sampled from decoders only.")
    limit = context_length(view.model.config.get_text_config(decoder=True))
    if limit is not None and max_length > limit:
        raise OptionError(f"max_length={max_length}: the context of {view.name} is {limit} tokens.")
    if top_k is not None and top_k < 1:
        raise OptionError(f"top_k={top_k}: give 1 (greedy) or more, or None for all tokens.")
    if not temperature > 0:
        raise OptionError(f"temperature={temperature}: it must be above 0; top_k=1 is greedy.")
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: at least one row must run at a time.")
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= max_length:
            raise RequestError(
                f"prompt {i} has {len(row)} tokens: it must have between 1 and "
                f"max_length={max_length}."
            )
