"""The engine of the causal trace: one pass over the blocks for all cells of a token.

ROME, section 2 and appendix B (arXiv 2202.05262). A *cell* restores one thing at one token of a
corrupted run. What a cell leaves as it was is not computed again: states below the cell and columns
before the token are those of the corrupted run. All cells of a token share one pass in which a cell
joins, with one row a noise sample, at the block where it first differs. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from workbench.capabilities import get_module, hooks, readout
from workbench.errors import RequestError, UnsupportedEditorError
from workbench.facts import EditRequest
from workbench.layouts import DECODER
from workbench.model import ModelView
from workbench.replay import Suffix, kept_states
from workbench.tokens import Encoded, context_length, encode, request_item
from workbench.trace import Site, trace

__all__ = [
    "MODULES",
    "Cell",
    "Runs",
    "cells_of",
    "embedding_std",
    "encode_fact",
    "require",
    "run",
    "trace_token",
]

#: kind of cell and of severed path → part of a block (:class:`workbench.trace.Site`).
MODULES = {"mlp": "value", "attention": "attention"}
#: Tokens (rows × columns) of one pass, and elements of logits held at once.
PASS_TOKENS, READOUT_ELEMENTS = 16_384, 1 << 24


@dataclass(frozen=True)
class Cell:
    """What is restored at one token.

    Attributes:
        kind: ``residual``, ``mlp`` or ``attention``.
        layer: its row in the picture.
        enters: first block whose input, or whose module's output, differs from the corrupted run.
        module: whose output is overwritten at blocks ``start`` to ``stop - 1``, if any.
        clean: overwritten with values of the clean run; else held at those of the corrupted run.
    """

    kind: str
    layer: int
    enters: int
    module: str | None = None
    start: int = 0
    stop: int = 0
    clean: bool = True


def cells_of(
    kind: str, n_layers: int, *, window: int = 1, severed: str | None = None
) -> list[Cell]:
    """The cells of one kind, a cell a layer.

    Args:
        kind: ``residual``: the output of a block; ``mlp``, ``attention``: outputs of that module in
            ``window`` blocks around the layer (the paper's code: ``layer - window // 2`` up to, not
            including, ``layer + (window + 1) // 2``), cut at the model's ends.
        severed: for ``residual``: this module's outputs above the layer stay corrupted.
    """
    if kind == "residual":
        return [
            Cell(kind, x, x + 1, severed, x + 1, n_layers, clean=False) for x in range(n_layers)
        ]
    spans = [
        (max(0, x - window // 2), min(n_layers, x + (window + 1) // 2)) for x in range(n_layers)
    ]
    return [Cell(kind, x, a, kind, a, b) for x, (a, b) in enumerate(spans)]


@dataclass
class Runs:
    """The clean run (row 0) and the corrupted ones (rows 1 and after) of one text.

    Attributes:
        ids: tokens of the prompt.
        subject: first and last subject token.
        noise: standard deviation of the noise.
        inputs: block → ``[1 + samples, pos, d_model]``; the last entry is the last output.
        outputs: module → block → ``[1 + samples, pos, d_model]``.
        past: block → keys and values of attention.
        logits: ``[1 + samples, d_vocab]`` at the last token.
    """

    view: ModelView
    ids: tuple[int, ...]
    subject: tuple[int, int]
    noise: float
    inputs: list[Tensor] = field(default_factory=list)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def samples(self) -> int:
        """Number of corrupted rows."""
        return int(self.logits.shape[0]) - 1

    def probs(self, answer: int) -> Float[Tensor, " rows"]:
        """Probability of a token in every row."""
        return _prob(self.logits, answer)


def require(view: ModelView) -> None:
    """Refuse models that cannot be traced.

    Raises:
        UnsupportedEditorError: with the reason.
    """
    if view.kind != DECODER or not view.capabilities.readout:
        why = view.capabilities.reasons.get("readout") or f"it is an {view.kind}"
        raise UnsupportedEditorError(
            f"{view.name} cannot be read layer by layer: {why}. Use a decoder whose logits follow "
            "from its last residual."
        )


def encode_fact(view: ModelView, request: EditRequest, answer: str = "") -> Encoded:
    """Tokens of a request's prompt, and of an answer behind it.

    Raises:
        RequestError: without a subject, or for a prompt beyond the context.
    """
    if request.subject is None:
        raise RequestError(
            f"a causal trace corrupts the subject, and {request.prompt!r} names none: write it as "
            "EditRequest(prompt='... {} ...', subject=..., ...)."
        )
    item = request_item(request, "{}", answer)
    return encode(view.tokenizer, [item], max_length=context_length(view.model.config))[0]


@torch.no_grad()
def embedding_std(view: ModelView, requests: Sequence[EditRequest]) -> float:
    """Standard deviation of all entries of the embeddings of the requests' subjects."""
    rows = [encode_fact(view, r) for r in requests]
    ids = [t for row in rows for t in row.ids[row.first : row.pivot + 1]]
    embedded = _embedding(view)(torch.tensor(ids, device=view.device))
    return float(embedded.cpu().double().std())


@torch.no_grad()
def run(view: ModelView, row: Encoded, *, noise: float, samples: int, seed: int) -> Runs:
    """Run a prompt clean and corrupted, in one batch, and keep what cells need.

    Args:
        view: the model, without hook layers.
        row: tokens of the prompt.
        noise: standard deviation of what is added to the embeddings of the subject's tokens.
        samples: corrupted rows.
        seed: of the noise; the same noise for every cell.
    """
    assert row.first is not None
    layers = range(view.n_layers)
    ids = row.prompt_ids
    found = Runs(view, ids, (row.first, row.pivot), noise)
    batch = torch.tensor(ids, device=view.device).expand(1 + samples, -1)
    cache = DynamicCache()
    base = get_module(view.model, view.layout.base)
    assert base is not None
    parts = ("input", "residual", *MODULES.values())
    corrupt = _corrupting(view, row.first, row.pivot, noise, samples, seed)
    with trace(view, [Site(x, p) for x in layers for p in parts]) as seen, hooks(corrupt):
        base(
            input_ids=batch, attention_mask=torch.ones_like(batch), past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
    found.inputs = [seen[Site(x, "input")] for x in layers]
    found.inputs.append(seen[Site(view.n_layers - 1, "residual")])
    found.outputs = {m: [seen[Site(x, p)] for x in layers] for m, p in MODULES.items()}
    found.past = [kept_states(cache, x) for x in layers]
    found.logits = _logits(view, found.inputs[-1][:, -1])
    return found


@torch.no_grad()
def trace_token(
    runs: Runs, position: int, cells: Sequence[Cell], answer: int
) -> Float[Tensor, "cells samples"]:
    """Probability of the answer in every cell of one token, in the order of the cells."""
    view, n = runs.view, runs.samples
    suffix = Suffix(view, runs.ids, position, runs.past)
    order = sorted(range(len(cells)), key=lambda i: cells[i].enters)
    room = max(1, PASS_TOKENS // (n * (len(runs.ids) - position)))
    probs = torch.empty(len(cells), n, dtype=torch.float64)
    for i in range(0, len(order), room):
        part = order[i : i + room]
        last = _pass(runs, suffix, [cells[j] for j in part])
        probs[part] = rearrange(_read(view, last, answer), "(cells n) -> cells n", n=n)
    return probs


def _pass(runs: Runs, suffix: Suffix, cells: list[Cell]) -> Float[Tensor, "rows d_model"]:
    """Last residual of cells in the order in which they enter; rows are (cell, sample)."""
    top = runs.view.n_layers
    begin = cells[0].enters
    hidden = runs.inputs[begin][:0, suffix.start :]
    entered = 0
    for block in range(begin, top + 1):
        fresh = [_entering(runs, c, suffix.start) for c in cells if c.enters == block]
        hidden = torch.cat([hidden, *(f.to(hidden.device) for f in fresh)])
        entered += len(fresh)
        if block < top:
            past = tuple(
                repeat(t[1:, :, : suffix.start], "n ... -> (cells n) ...", cells=entered)
                for t in runs.past[block]
            )
            with _overwriting(runs, suffix.start, block, cells[:entered]):
                hidden = suffix.run(block, hidden, past)  # type: ignore[arg-type]
    return hidden[:, -1]


def _entering(runs: Runs, cell: Cell, position: int) -> Tensor:
    """Corrupted input of the block at which a cell joins; its own change for a residual."""
    states = runs.inputs[cell.enters]
    fresh = states[1:, position:]
    if cell.kind != "residual":
        return fresh
    fresh = fresh.clone()
    fresh[:, 0] = states[0, position]
    return fresh


def _overwriting(
    runs: Runs, position: int, block: int, cells: Sequence[Cell]
) -> AbstractContextManager[Any]:
    """Hooks of one block that put kept outputs of its modules in column 0 of some rows."""
    write: dict[Site, Callable[[Tensor], Tensor]] = {}
    for module, part in MODULES.items():
        held = [
            (i, c.clean)
            for i, c in enumerate(cells)
            if c.module == module and c.start <= block < c.stop
        ]
        if held:
            values = runs.outputs[module][block][:, position]
            write[Site(block, part)] = _writer(values, held, runs.samples)
    return trace(runs.view, write=write) if write else nullcontext()


def _writer(values: Tensor, held: list[tuple[int, bool]], n: int) -> Callable[[Tensor], Tensor]:
    rows = torch.tensor([i * n + j for i, _ in held for j in range(n)])
    source = torch.tensor([0 if clean else 1 + j for _, clean in held for j in range(n)])

    def write(x: Tensor) -> Tensor:
        x = x.clone()
        x[rows.to(x.device), 0] = values[source.to(values.device)].to(x.device)
        return x

    return write


def _corrupting(
    view: ModelView, first: int, last: int, noise: float, samples: int, seed: int
) -> Iterator[Any]:
    """Adds noise to the embeddings of the subject's tokens in all rows but the first."""
    generator = torch.Generator().manual_seed(seed)

    def corrupt(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        shape = (samples, last + 1 - first, out.shape[-1])
        drawn = noise * torch.randn(shape, generator=generator)
        out = out.clone()
        out[1:, first : last + 1] += drawn.to(out)
        return out

    yield _embedding(view).register_forward_hook(corrupt)


def _embedding(view: ModelView) -> nn.Module:
    module = get_module(view.model, view.layout.embed)
    assert module is not None
    return module


def _read(view: ModelView, residual: Float[Tensor, "rows d_model"], answer: int) -> Tensor:
    vocab = view.model.config.get_text_config().vocab_size
    pieces = residual.split(max(1, READOUT_ELEMENTS // vocab))
    return torch.cat([_prob(_logits(view, piece), answer) for piece in pieces])


def _logits(view: ModelView, residual: Tensor) -> Tensor:
    logits = readout(view.model, view.layout, residual)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _prob(logits: Tensor, answer: int) -> Tensor:
    return (logits[:, answer] - logits.logsumexp(-1)).exp().cpu().double()
