"""The insertion sweep: write residuals over several layers without running the model again.

Keys and residuals of layer ``l`` depend on the updates of lower layers. Instead of writing weights
and running the model per layer, the sweep carries the hidden states of all prompt rows upward,
solves at each edited layer, and adds ``D k`` to the block's output at every token (spec
locate-then-edit 1.6 and 6.3). Rows end at the subject's last token: nothing after it is needed.
The model is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.editors.locate.contexts import Contexts
from workbench.errors import NumericalError
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.progress import track
from workbench.replay import Blocks, capture_blocks, run_rows
from workbench.tokens import context_length, encode_request
from workbench.trace import Site, trace

__all__ = ["LayerWrite", "insertion_sweep", "subject_activations"]

#: Tokens (rows × columns) of one capture.
CHUNK_TOKENS = 16_384
#: layer, keys [m n] → X [m n]
Solver = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class LayerWrite:
    """What was written at one layer: ``D = residual @ x.T``.

    Attributes:
        layer: where.
        keys: ``[d_mlp, n]`` averaged keys on the live weights.
        x: ``[d_mlp, n]`` solution of the solver.
        residual: ``[d_model, n]`` share of this layer.
        distance: ``[n]`` ``‖z − h‖`` at the target layer before this write.
    """

    layer: int
    keys: Float[Tensor, "d_mlp n"]
    x: Float[Tensor, "d_mlp n"]
    residual: Float[Tensor, "d_model n"]
    distance: Float[Tensor, " n"]


def subject_rows(
    view: ModelView, requests: Sequence[EditRequest], contexts: Contexts
) -> list[tuple[int, ...]]:
    """Token rows up to the subject's last token, request by request, context by context."""
    limit = context_length(view.model.config)
    rows = []
    for request in requests:
        for enc in encode_request(
            view.tokenizer, request, contexts.templates, with_target=False, max_length=limit
        ):
            rows.append(enc.ids[: enc.pivot + 1])
    return rows


@torch.no_grad()
def subject_activations(
    view: ModelView, requests: Sequence[EditRequest], contexts: Contexts, layer: int
) -> tuple[Float[Tensor, "n templates d_mlp"], Float[Tensor, "n templates d_model"]]:
    """Keys and values at the subject's last token in every context, float64."""
    rows = subject_rows(view, requests, contexts)
    keys, values = [], []
    for part in _chunked(rows, len(contexts.templates)):
        sites = [Site(layer, "key"), Site(layer, "value")]
        with trace(view, sites, stop=True) as seen:
            run_rows(view, part)
        last = torch.tensor([len(r) - 1 for r in part])
        keys.append(_at(seen[sites[0]], last))
        values.append(_at(seen[sites[1]], last))
    split = "(n templates) d -> n templates d"
    t = len(contexts.templates)
    return (
        rearrange(torch.cat(keys), split, templates=t),
        rearrange(torch.cat(values), split, templates=t),
    )


@torch.no_grad()
def insertion_sweep(
    view: ModelView,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    layers: Sequence[int],
    z: Float[Tensor, "d_model n"],
    solve: Solver,
) -> list[LayerWrite]:
    """Spread the residuals over the layers, lowest first.

    Args:
        view: the model; read only.
        requests: ``n`` requests.
        contexts: templates and weights of the keys.
        layers: edited layers; ``z`` belongs to the highest.
        z: targets for the output of block ``max(layers)`` on the bare prompts.
        solve: from layer and averaged keys to ``X``.

    Raises:
        NumericalError: if keys or residuals are not finite.
    """
    order = sorted(layers)
    sweep = _Sweep(view, requests, contexts, order)
    writes = []
    for i, layer in enumerate(track(order, "insertion")):
        keys = sweep.enter(layer)
        h = sweep.at_target(layer)
        gap = z.to(h) - h
        residual = gap / (len(order) - i)
        if not bool(keys.isfinite().all() and residual.isfinite().all()):
            raise NumericalError(
                f"keys or residuals at layer {layer} hold NaN or Inf; nothing was changed."
            )
        x = solve(layer, keys)
        sweep.update(residual, x)
        writes.append(LayerWrite(layer, keys, x.to(keys), residual.to(keys), gap.norm(dim=0)))
    return writes


class _Sweep:
    """Hidden states of all rows, carried upward chunk by chunk."""

    def __init__(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        contexts: Contexts,
        order: Sequence[int],
    ) -> None:
        self.view, self.first, self.last = view, order[0], order[-1]
        self.each = len(contexts.templates)
        rows = subject_rows(view, requests, contexts)
        parts = _chunked(rows, self.each)
        self.ends = [torch.tensor([len(r) - 1 for r in part]) for part in parts]
        self.blocks = [capture_blocks(view, part, self.first, self.last + 1) for part in parts]
        self.bare = [b.take(_bare_rows(b, self.each)) for b in self.blocks]
        self.hidden = [b.hidden for b in self.blocks]
        self.keys: list[Tensor] = []
        self.weights = contexts.tensor(torch.zeros((), dtype=torch.float64))
        self.done = self.first

    def enter(self, layer: int) -> Float[Tensor, "d_mlp n"]:
        """Run up to and including block ``layer``; averaged keys at the subject, float64."""
        for between in range(self.done, layer):
            self._step(between)
        site = Site(layer, "key")
        means = []
        self.keys = []
        for i, block in enumerate(self.blocks):
            with trace(self.view, [site]) as seen:
                self.hidden[i] = block.run(layer, self.hidden[i])
            self.keys.append(seen[site])
            at_subject = _at(seen[site], self.ends[i])
            grouped = rearrange(at_subject, "(n t) m -> n t m", t=self.each)
            means.append(einsum(grouped, self.weights.to(grouped.device), "n t m, t -> m n"))
        self.done = layer + 1
        return torch.cat(means, dim=1)

    def at_target(self, layer: int) -> Float[Tensor, "d_model n"]:
        """Output of the target block on the bare prompts with the updates made so far."""
        outputs = []
        for i, bare in enumerate(self.bare):
            rows = _bare_rows(self.blocks[i], self.each)
            h = self.hidden[i][rows.to(self.hidden[i].device)]
            for above in range(layer + 1, self.last + 1):
                h = bare.run(above, h)
            outputs.append(_at(h, self.ends[i][:: self.each]).T)
        return torch.cat(outputs, dim=1)

    def update(self, residual: Tensor, x: Tensor) -> None:
        """Add ``D k`` to the output of the block just run, at every token of every row."""
        for i, keys in enumerate(self.keys):
            wide = torch.promote_types(keys.dtype, torch.float32)
            change = (keys.to(wide) @ x.to(keys.device, wide)) @ residual.to(keys.device, wide).T
            h = self.hidden[i]
            self.hidden[i] = (h.to(wide) + change.to(h.device)).to(h.dtype)
        self.keys = []

    def _step(self, layer: int) -> None:
        for i, block in enumerate(self.blocks):
            self.hidden[i] = block.run(layer, self.hidden[i])


def _bare_rows(block: Blocks, each: int) -> Tensor:
    return torch.arange(0, block.hidden.shape[0], each)


def _at(x: Tensor, columns: Tensor) -> Tensor:
    rows = torch.arange(x.shape[0], device=x.device)
    return x[rows, columns.to(x.device)].to(torch.float64)


def _chunked(rows: list[tuple[int, ...]], each: int) -> list[list[tuple[int, ...]]]:
    """Consecutive rows of whole requests within the token budget."""
    parts: list[list[tuple[int, ...]]] = [[]]
    for i in range(0, len(rows), each):
        group = rows[i : i + each]
        width = max(len(r) for r in [*parts[-1], *group])
        if parts[-1] and (len(parts[-1]) + each) * width > CHUNK_TOKENS:
            parts.append([])
        parts[-1] += group
    return parts
