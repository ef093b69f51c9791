"""Capture a forward pass once, then run again only what changes.

Two captures serve every locate-then-edit editor (spec locate-then-edit 6.2 and 6.3), a third the
causal trace:

- :class:`Replay` aligns all rows on one pivot column, keeps the columns before it as cached keys
  and values of attention, and re-runs only columns from the pivot on, only in blocks from a given
  one up. A change at the pivot cannot reach anything else (causality, residual stream).
- :class:`Blocks` keeps the arguments of a range of blocks, so that single blocks can be called.
- :class:`Suffix` keeps the arguments of all blocks for the last columns of one text; hidden states
  and what stands before those columns come from the caller, for any number of rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from workbench.capabilities import get_module, hooks, readout, tensor_of
from workbench.errors import UnsupportedEditorError
from workbench.model import ModelView
from workbench.tokens import Encoded, pad_right, pad_token
from workbench.trace import hidden_of

__all__ = ["Blocks", "Replay", "Suffix", "capture_blocks", "kept_states", "run_rows"]


class _Stop(Exception):
    """Ends a forward pass once every wanted block was entered."""


@dataclass
class Call:
    """Arguments a block was called with, besides the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Blocks:
    """The input of block ``start`` and the arguments of blocks ``start`` to ``stop - 1``.

    Attributes:
        hidden: ``[rows, pos, d_model]`` input of block ``start``.
        mask: ``[rows, pos]`` real tokens.
    """

    view: ModelView
    start: int
    hidden: Float[Tensor, "rows pos d_model"]
    mask: Bool[Tensor, "rows pos"]
    calls: dict[int, Call]

    def run(self, layer: int, hidden: Tensor) -> Tensor:
        """Output of one block for a given input."""
        call = self.calls[layer]
        return tensor_of(self.view.block(layer)(hidden, *call.args, **call.kwargs))

    def take(self, rows: Int[Tensor, " n"]) -> Blocks:
        """The same capture for some of its rows."""
        n = self.hidden.shape[0]
        calls = {
            layer: Call(_take(c.args, rows, n), _take(c.kwargs, rows, n))
            for layer, c in self.calls.items()
        }
        return Blocks(self.view, self.start, self.hidden[rows], self.mask[rows], calls)


def capture_blocks(view: ModelView, rows: Sequence[Sequence[int]], start: int, stop: int) -> Blocks:
    """Run right-padded rows up to block ``stop`` and keep what blocks from ``start`` on were given.

    Args:
        rows: token ids, one sequence a row.
        start: first block to keep.
        stop: one past the last block to keep.
    """
    inputs, mask = _inputs(view, rows)
    inside = [x for x in view.adapted if start <= x < stop]
    if inside:
        raise UnsupportedEditorError(
            f"blocks {inside} have hook layers or memories, which cannot be run block by block: "
            "take them off the stack, or edit other layers."
        )
    with torch.no_grad():
        hidden, calls = _record(view, inputs, range(start, stop))
    return Blocks(view, start, hidden, mask, calls)


@torch.no_grad()
def run_rows(view: ModelView, rows: Sequence[Sequence[int]]) -> None:
    """Run the blocks on right-padded rows, without the head; for use inside ``trace``."""
    base = get_module(view.model, view.layout.base)
    assert base is not None
    base(**_inputs(view, rows)[0])


class Replay:
    """Rows aligned on a pivot column, ready to be re-run from block ``start`` on.

    Args:
        view: the model, in the state in which it is captured.
        rows: encoded texts, at least one.
        start: first block that is re-run.

    Attributes:
        hidden: ``[rows, pos, d_model]`` input of block ``start``; column 0 is the pivot.
        mask: ``[rows, pos]`` real tokens among these columns.
    """

    def __init__(self, view: ModelView, rows: Sequence[Encoded], start: int) -> None:
        self.view = view
        self.start = start
        self.pivots = [row.pivot for row in rows]
        prefixes = [row.ids[: row.pivot] for row in rows]
        with torch.no_grad():
            cache, before = _prefix_cache(view, prefixes)
            ids, self.mask = pad_right([r.ids[r.pivot :] for r in rows], device=view.device)
            mask = torch.cat([before, self.mask], dim=1).long()
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "past_key_values": cache,
                "use_cache": True,
            }
            if _accepts_positions(view):
                positions = (mask.cumsum(1) - 1).clamp_min(0)
                inputs["position_ids"] = positions[:, before.shape[1] :]
            width = before.shape[1]
            self.hidden, self._calls = _record(view, inputs, range(start, view.n_layers))
        self._cache = cache
        self._past = {
            layer: _first(kept_states(cache, layer), width) for layer in range(start, view.n_layers)
        }
        if view.adapted:
            self._read_whole(rows, width)

    def _read_whole(self, rows: Sequence[Encoded], width: int) -> None:
        """States of one pass over whole rows: adapters judge a prompt as a whole."""
        view, above = self.view, range(self.start, self.view.n_layers)
        if max(view.adapted) >= self.start:
            raise UnsupportedEditorError(
                f"block {max(view.adapted)} has a hook layer or a memory, and states above block "
                f"{self.start - 1} are needed without running whole prompts: take it off the "
                "stack, or edit a layer at or above it."
            )
        ids, mask = pad_right([r.ids for r in rows], pad_token(view), device=view.device)
        cache = DynamicCache()
        entered: dict[int, Any] = {}
        base = get_module(view.model, view.layout.base)
        assert base is not None
        lengths = torch.tensor([r.target_start for r in rows])
        with (
            torch.no_grad(),
            view.reading(lengths),
            hooks(_watching(view, above, entered, stop=False)),
        ):
            base(input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=True)
        hidden = hidden_of(*entered[self.start])
        pivots = torch.tensor(self.pivots)
        columns = pivots[:, None] + torch.arange(self.mask.shape[1])
        columns = columns.clamp_max(ids.shape[1] - 1).to(hidden.device)
        index = columns[..., None].expand(*columns.shape, hidden.shape[-1])
        self.hidden = hidden.gather(1, index).detach()
        source = torch.arange(width)[None] - (width - pivots)[:, None]
        for layer in above:
            parts = (_shift(part, source, source >= 0) for part in kept_states(cache, layer))
            self._past[layer] = tuple(parts)  # type: ignore[assignment]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.hidden.shape[0])

    def run(self, hidden: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows pos d_model"]:
        """Output of the last block for another input of block ``start``; keeps gradients."""
        for layer in range(self.start, self.view.n_layers):
            _hold(self._cache, layer, *self._past[layer])
            call = self._calls[layer]
            hidden = tensor_of(self.view.block(layer)(hidden, *call.args, **call.kwargs))
        return hidden

    def logits(
        self, residual: Tensor, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d_vocab"]:
        """Logits at chosen positions of a last residual, columns counted from the pivot."""
        picked = residual[rows.to(residual.device), columns.to(residual.device)]
        return readout(self.view.model, self.view.layout, picked)

    def take(self, rows: Int[Tensor, " n"]) -> Replay:
        """The same capture for some of its rows, in the given order."""
        small = object.__new__(Replay)
        small.view, small.start = self.view, self.start
        small.pivots = [self.pivots[i] for i in rows.tolist()]
        n = self.n_rows
        small.hidden, small.mask = _pick(self.hidden, rows), _pick(self.mask, rows)
        small._past = {k: (_pick(a, rows), _pick(b, rows)) for k, (a, b) in self._past.items()}
        small._cache = _empty_cache(self.view.n_layers, small._past)
        swap = {id(self._cache): small._cache}
        small._calls = {
            layer: Call(_take(c.args, rows, n, swap), _take(c.kwargs, rows, n, swap))
            for layer, c in self._calls.items()
        }
        return small


class Suffix:
    """The last columns of one text, run block by block for any number of rows.

    Args:
        view: the model, in the state in which it is captured; without hook layers.
        ids: tokens of the text.
        start: first column that is run.
        past: block → keys and values of attention ``[rows, heads, pos, d_head]`` for any rows of
            this text; what they hold does not matter here, only their shape.

    Raises:
        UnsupportedEditorError: if a block has a hook layer, which judges whole prompts.
    """

    #: Rows of the capture: a number that tells the axis of rows from axes of length one.
    _ROWS = 3

    def __init__(
        self, view: ModelView, ids: Sequence[int], start: int, past: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        if view.adapted:
            raise UnsupportedEditorError(
                f"blocks {list(view.adapted)} have hook layers or memories, which judge whole "
                "prompts and cannot be run block by block: take them off the stack (view.pop, "
                "view.at) first."
            )
        self.view, self.start = view, start
        rows = torch.zeros(self._ROWS, dtype=torch.long)
        self._cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            self._cache.update(
                _pick(keys, rows)[:, :, :start], _pick(values, rows)[:, :, :start], layer
            )
        whole = torch.tensor(ids, device=view.device).expand(self._ROWS, -1)
        inputs = {
            "input_ids": whole[:, start:],
            "attention_mask": torch.ones_like(whole),
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if _accepts_positions(view):
            columns = torch.arange(start, len(ids), device=view.device)
            inputs["position_ids"] = columns.expand(self._ROWS, -1)
        with torch.no_grad():
            _, self._calls = _record(view, inputs, range(view.n_layers))

    def run(
        self, layer: int, hidden: Float[Tensor, "rows pos d_model"], past: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "rows pos d_model"]:
        """Output of one block.

        Args:
            layer: which block.
            hidden: its input in columns ``start`` and after.
            past: the block's keys and values of attention in the columns before, for every row
                ``[rows, heads, start, d_head]``.
        """
        rows = torch.zeros(hidden.shape[0], dtype=torch.long)
        _hold(self._cache, layer, *past)
        call = self._calls[layer]
        args, kwargs = (_take(x, rows, self._ROWS) for x in (call.args, call.kwargs))
        return tensor_of(self.view.block(layer)(hidden, *args, **kwargs))


def _inputs(view: ModelView, rows: Sequence[Sequence[int]]) -> tuple[dict[str, Any], Tensor]:
    ids, mask = pad_right(rows, pad_token(view), device=view.device)
    return {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}, mask


def _record(
    view: ModelView, inputs: dict[str, Any], layers: range
) -> tuple[Tensor, dict[int, Call]]:
    """Run the base model and keep what the given blocks were called with."""
    base = get_module(view.model, view.layout.base)
    assert base is not None
    entered: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with hooks(_watching(view, layers, entered)), suppress(_Stop):
        base(**inputs)
    calls = {}
    for layer, (args, kwargs) in entered.items():
        rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        calls[layer] = Call(args[1:], rest)
    return hidden_of(*entered[layers[0]]).detach(), calls


def _watching(
    view: ModelView, layers: range, entered: dict[int, Any], *, stop: bool = True
) -> Iterator[Any]:
    def watch(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[layer] = (args, dict(kwargs))
            if stop and layer == layers[-1]:
                raise _Stop

        return view.block(layer).register_forward_pre_hook(hook, with_kwargs=True)

    return (watch(layer) for layer in layers)


def _prefix_cache(
    view: ModelView, prefixes: Sequence[Sequence[int]]
) -> tuple[DynamicCache, Bool[Tensor, "rows width"]]:
    """Keys and values of the prefixes, moved so that every prefix ends in the last column.

    The forward pass pads on the right (no query is left without a key to attend to); columns that
    hold no token are zeroed, since 0 · NaN would otherwise poison a masked sum.
    """
    real = torch.tensor([len(p) for p in prefixes], device=view.device)
    ids, mask = pad_right([p or (0,) for p in prefixes], device=view.device)
    width = ids.shape[1]
    cache = DynamicCache()
    base = get_module(view.model, view.layout.base)
    assert base is not None
    base(input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=True)
    source = torch.arange(width, device=view.device)[None] - (width - real)[:, None]
    kept = source >= 0
    for layer in range(view.n_layers):
        _hold(cache, layer, *(_shift(part, source, kept) for part in kept_states(cache, layer)))
    return cache, kept


def _first(held: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    return held[0][:, :, :width], held[1][:, :, :width]


def kept_states(cache: DynamicCache, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[rows, heads, pos, d_head]`` that a cache holds of one block."""
    entry: Any = cache.layers[layer]
    return entry.keys, entry.values


def _hold(cache: DynamicCache, layer: int, keys: Tensor, values: Tensor) -> None:
    entry: Any = cache.layers[layer]
    entry.keys, entry.values = keys, values


def _shift(x: Tensor, source: Tensor, kept: Tensor) -> Tensor:
    source, kept = source.to(x.device), kept.to(x.device)
    index = source.clamp_min(0)[:, None, :, None].expand(x.shape[0], x.shape[1], -1, x.shape[3])
    moved = x.gather(2, index)
    return torch.where(
        kept[:, None, :, None], moved, torch.zeros((), dtype=x.dtype, device=x.device)
    )


def _empty_cache(n_layers: int, past: dict[int, tuple[Tensor, Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    some = next(iter(past.values()))
    for layer in range(n_layers):
        keys, values = past.get(layer, some)
        cache.update(keys[:, :, :0], values[:, :, :0], layer)
    return cache


def _accepts_positions(view: ModelView) -> bool:
    base = get_module(view.model, view.layout.base)
    assert base is not None
    return "position_ids" in inspect.signature(type(base).forward).parameters


def _pick(x: Tensor, rows: Tensor) -> Tensor:
    return x[rows.to(x.device)]


def _take(value: Any, rows: Tensor, n: int, swap: dict[int, Any] | None = None) -> Any:
    """Pick rows from everything that has them, in nested block arguments."""
    if swap and id(value) in swap:
        return swap[id(value)]
    if isinstance(value, Tensor):
        if value.ndim < 2 or value.shape[0] == 1 or value.shape[0] % n:
            return value
        if value.shape[0] == n:
            return _pick(value, rows)
        folded = value.view(n, -1, *value.shape[1:])  # Bloom's alibi folds heads into the batch
        return _pick(folded, rows).flatten(0, 1)
    if isinstance(value, tuple | list):
        return type(value)(_take(v, rows, n, swap) for v in value)
    if isinstance(value, dict):
        return {k: _take(v, rows, n, swap) for k, v in value.items()}
    return value
