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
from workbench.tokens import Encoded, context_length, encode_request
from workbench.trace import Site, trace

__all__ = ["LayerWrite", "Sweep", "insertion_sweep", "subject_activations"]

#: Tokens (rows × columns) of one capture.
CHUNK_TOKENS = 16_384
#: layer, keys [m n] → X [m n]
Solver = Callable[[int, Tensor], Tensor]
#: layer, D [d m] → what is kept of it
Shrink = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class LayerWrite:
    """What was written at one layer: ``D = residual @ x.T``.

    Attributes:
        layer: where.
        keys: ``[d_mlp, n]`` averaged keys on the live weights.
        x: ``[d_mlp, n]`` solution of the solver.
        residual: ``[d_model, n]`` share of this layer.
        distance: ``[n]`` ``‖z − h‖`` at the target layer before this write.
        change: ``D`` itself where it is not ``residual @ x.T`` (a shrunken update).
    """

    layer: int
    keys: Float[Tensor, "d_mlp n"]
    x: Float[Tensor, "d_mlp n"]
    residual: Float[Tensor, "d_model n"]
    distance: Float[Tensor, " n"]
    change: Float[Tensor, "d_model d_mlp"] | None = None


def subject_rows(
    view: ModelView, requests: Sequence[EditRequest], contexts: Contexts, *, whole: bool = False
) -> list[Encoded]:
    """Token rows up to the subject's last token (or whole), request by request.

    Whole prompts are needed where adapters judge a token by the rest of its prompt.
    """
    limit = context_length(view.model.config)
    rows = []
    for request in requests:
        rows += encode_request(
            view.tokenizer, request, contexts.templates, with_target=False, max_length=limit
        )
    if whole or view.adapted:
        return rows
    return [Encoded(r.ids[: r.pivot + 1], r.pivot, r.pivot + 1) for r in rows]


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
            run_rows(view, [r.ids for r in part])
        last = torch.tensor([r.pivot for r in part])
        keys.append(_at(seen[sites[0]], last))
        values.append(_at(seen[sites[1]], last))
    split = "(n templates) d -> n templates d"
    t = len(contexts.templates)
    return (
        rearrange(torch.cat(keys), split, templates=t),
        rearrange(torch.cat(values), split, templates=t),
    )


def insertion_sweep(
    view: ModelView,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    layers: Sequence[int],
    z: Float[Tensor, "d_model n"],
    solve: Solver,
    *,
    shrink: Shrink | None = None,
) -> list[LayerWrite]:
    """Spread the residuals over the layers, lowest first.

    Args:
        view: the model; read only.
        requests: ``n`` requests.
        contexts: templates and weights of the keys.
        layers: edited layers; ``z`` belongs to the highest.
        z: targets for the output of block ``max(layers)`` on the bare prompts.
        solve: from layer and averaged keys to ``X``.
        shrink: what is kept of a layer's update, if not all of it.

    Raises:
        NumericalError: if keys or residuals are not finite.
    """
    return Sweep(view, requests, contexts, layers).write(z, solve, shrink=shrink)


class Sweep:
    """Hidden states of all prompt rows at the lowest edited layer, captured once.

    Blocks below never change, so a sweep can be run again after weights of its layers moved
    (rounds of NSE), and for some of its requests only.

    Args:
        view: the model.
        requests: ``n`` requests.
        contexts: templates and weights of the keys.
        layers: edited layers.
        whole: whether rows are whole prompts rather than end at the subject.
    """

    def __init__(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        contexts: Contexts,
        layers: Sequence[int],
        *,
        whole: bool = False,
    ) -> None:
        self.view, self.layers = view, tuple(sorted(layers))
        self.each = len(contexts.templates)
        rows = subject_rows(view, requests, contexts, whole=whole)
        parts = _chunked(rows, self.each)
        self.weights = contexts.tensor(torch.zeros((), dtype=torch.float64))
        self._ends = [torch.tensor([r.pivot for r in part]) for part in parts]
        first, last = self.layers[0], self.layers[-1]
        ids = [[r.ids for r in part] for part in parts]
        self._blocks = [capture_blocks(view, part, first, last + 1) for part in ids]
        self._begin()

    def take(self, requests: Sequence[int]) -> Sweep:
        """The same capture for some of its requests, in ascending order."""
        small = object.__new__(Sweep)
        small.view, small.layers = self.view, self.layers
        small.each, small.weights = self.each, self.weights
        small._ends, small._blocks = [], []
        start = 0
        for ends, block in zip(self._ends, self._blocks, strict=True):
            held = range(start, start + len(ends) // self.each)
            rows = _rows_of([i - start for i in requests if i in held], self.each)
            start = held.stop
            if len(rows):
                small._ends.append(ends[rows])
                small._blocks.append(block.take(rows))
        small._begin()
        return small

    def _begin(self) -> None:
        """Back to the input of the lowest edited layer."""
        self._bare = [b.take(_bare_rows(b, self.each)) for b in self._blocks]
        self.restart()

    def restart(self) -> None:
        """Forget the updates of the last run."""
        self._hidden = [b.hidden for b in self._blocks]
        self._keys: list[Tensor] = []
        self._done = self.layers[0]

    @torch.no_grad()
    def write(
        self, z: Float[Tensor, "d_model n"], solve: Solver, *, shrink: Shrink | None = None
    ) -> list[LayerWrite]:
        """Solve at every layer, lowest first; see :func:`insertion_sweep`."""
        self.restart()
        writes = []
        for i, layer in enumerate(track(self.layers, "insertion")):
            keys = self.enter(layer)
            gap, residual = self.residual(layer, z, len(self.layers) - i)
            x = solve(layer, keys)
            change = None if shrink is None else shrink(layer, residual @ x.T.to(residual))
            self.update(residual, x, change)
            writes.append(LayerWrite(layer, keys, x.to(keys), residual, gap.norm(dim=0), change))
        return writes

    def residual(self, layer: int, z: Tensor, remaining: int) -> tuple[Tensor, Tensor]:
        """``z − h`` and this layer's share of it, ``[d_model, n]`` each.

        Raises:
            NumericalError: if they are not finite.
        """
        h = self.at_target(layer)
        gap = z.to(h) - h
        if not bool(gap.isfinite().all()):
            raise NumericalError(
                f"residuals at layer {layer} hold NaN or Inf; nothing was changed."
            )
        return gap, gap / remaining

    @torch.no_grad()
    def enter(self, layer: int) -> Float[Tensor, "d_mlp n"]:
        """Run up to and including block ``layer``; averaged keys at the subject, float64.

        Raises:
            NumericalError: if they are not finite.
        """
        for between in range(self._done, layer):
            self._step(between)
        site = Site(layer, "key")
        means = []
        self._keys = []
        for i, block in enumerate(self._blocks):
            with trace(self.view, [site]) as seen:
                self._hidden[i] = block.run(layer, self._hidden[i])
            self._keys.append(seen[site])
            at_subject = _at(seen[site], self._ends[i])
            grouped = rearrange(at_subject, "(n t) m -> n t m", t=self.each)
            means.append(einsum(grouped, self.weights.to(grouped.device), "n t m, t -> m n"))
        self._done = layer + 1
        keys = torch.cat(means, dim=1)
        if not bool(keys.isfinite().all()):
            raise NumericalError(f"keys at layer {layer} hold NaN or Inf; nothing was changed.")
        return keys

    @torch.no_grad()
    def at_target(self, layer: int | None = None) -> Float[Tensor, "d_model n"]:
        """Output of the highest edited block on the bare prompts, float64.

        Args:
            layer: the block just run; None before any was.
        """
        start = self.layers[0] if layer is None else layer + 1
        outputs = []
        for i, bare in enumerate(self._bare):
            rows = _bare_rows(self._blocks[i], self.each)
            h = self._hidden[i][rows.to(self._hidden[i].device)]
            for above in range(start, self.layers[-1] + 1):
                h = bare.run(above, h)
            outputs.append(_at(h, self._ends[i][:: self.each]).T)
        return torch.cat(outputs, dim=1)

    @torch.no_grad()
    def update(self, residual: Tensor, x: Tensor, change: Tensor | None = None) -> None:
        """Add ``D k`` to the output of the block just run, at every token of every row."""
        for i, keys in enumerate(self._keys):
            wide = torch.promote_types(keys.dtype, torch.float32)
            k = keys.to(wide)
            if change is None:
                step = (k @ x.to(keys.device, wide)) @ residual.to(keys.device, wide).T
            else:
                step = k @ change.to(keys.device, wide).T
            h = self._hidden[i]
            self._hidden[i] = (h.to(wide) + step.to(h.device)).to(h.dtype)

    @torch.no_grad()
    def replace(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Add something else to the output of the block just run.

        Args:
            change: from the edited matrix's input ``[rows, pos, d_mlp]`` and the mask of real
                tokens ``[rows, pos]`` to what is added, ``[rows, pos, d_model]``.
        """
        for i, keys in enumerate(self._keys):
            h = self._hidden[i]
            step = change(keys, self._blocks[i].mask.to(keys.device))
            self._hidden[i] = (h.to(step.dtype) + step.to(h.device)).to(h.dtype)

    @torch.no_grad()
    def subject_columns(self, values: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A number of every token, ``[rows, pos]``, picked at the subjects: ``[rows]``.

        Args:
            values: as in :meth:`replace`, returning one number a token.
        """
        found = []
        for keys, block, ends in zip(self._keys, self._blocks, self._ends, strict=True):
            value = values(keys, block.mask.to(keys.device))
            found.append(value.gather(1, ends.to(value.device)[:, None])[:, 0])
        return torch.cat(found)

    @torch.no_grad()
    def keys(self) -> dict[int, Float[Tensor, "d_mlp n"]]:
        """Averaged keys of every edited layer on the weights as they are now."""
        self.restart()
        return {layer: self.enter(layer) for layer in self.layers}

    def _step(self, layer: int) -> None:
        for i, block in enumerate(self._blocks):
            self._hidden[i] = block.run(layer, self._hidden[i])


def _rows_of(requests: Sequence[int], each: int) -> Tensor:
    first = torch.tensor(list(requests), dtype=torch.long)[:, None] * each
    return (first + torch.arange(each)).flatten()


def _bare_rows(block: Blocks, each: int) -> Tensor:
    return torch.arange(0, block.hidden.shape[0], each)


def _at(x: Tensor, columns: Tensor) -> Tensor:
    rows = torch.arange(x.shape[0], device=x.device)
    return x[rows, columns.to(x.device)].to(torch.float64)


def _chunked(rows: list[Encoded], each: int) -> list[list[Encoded]]:
    """Consecutive rows of whole requests within the token budget."""
    parts: list[list[Encoded]] = [[]]
    for i in range(0, len(rows), each):
        group = rows[i : i + each]
        width = max(len(r.ids) for r in [*parts[-1], *group])
        if parts[-1] and (len(parts[-1]) + each) * width > CHUNK_TOKENS:
            parts.append([])
        parts[-1] += group
    return parts
