"""Target vectors: what the residual (or the value) at the subject should become.

For every edit one vector ``delta``, added at the subject's last token in every context, is trained
with Adam so that the model says the new target, stays near its own prediction on an anchor prompt,
and stays short (ROME, arXiv 2202.05262, eq. 4; MEMIT, arXiv 2210.07229, eq. 14; the exact loop in
spec locate-then-edit 1.4). All edits of a batch are trained at once, each with its own stop:
only blocks above the layer and only columns from the subject on are run (spec 6.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.capabilities import hooks, tensor_of, with_tensor
from workbench.editors.locate.contexts import Contexts
from workbench.errors import NumericalError
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.replay import Replay, run_rows
from workbench.tokens import Encoded, Item, context_length, encode, encode_request
from workbench.trace import Site, frozen, trace

__all__ = ["TargetOptions", "Targets", "optimize_targets"]

#: Suffix tokens (rows × columns from the subject on) of one micro-batch.
CHUNK_TOKENS = 1024
#: Finished edits leave the micro-batch when they are at least this share of it.
COMPACT_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Options of the target optimization; see :class:`LocateEditor` for their meaning."""

    steps: int
    lr: float
    weight_decay: float
    clamp: float
    kl_factor: float
    kl_position: str = "subject_last"
    stop_loss: float = 0.05


@dataclass(frozen=True)
class Targets:
    """Result for ``n`` edits, in request order.

    Attributes:
        z: ``[d_model, n]`` target vectors.
        h0: ``[d_model, n]`` unmodified vectors on the bare prompts.
        updates: Adam updates made per edit.
        trace: one record per edit and step: request, step, loss, nll, kl, weight_decay, prob,
            delta_norm (relative to ``‖h0‖``).
    """

    z: Float[Tensor, "d_model n"]
    h0: Float[Tensor, "d_model n"]
    updates: list[int]
    trace: list[dict[str, Any]] = field(repr=False)

    @property
    def delta(self) -> Float[Tensor, "d_model n"]:
        """What was added to ``h0``."""
        return self.z - self.h0

    def only(self, which: Sequence[int]) -> Targets:
        """The targets of some edits, renumbered from 0."""
        place = {i: k for k, i in enumerate(which)}
        kept = [r | {"request": place[r["request"]]} for r in self.trace if r["request"] in place]
        index = torch.tensor(list(which))
        updates = [self.updates[i] for i in which]
        return Targets(self.z[:, index], self.h0[:, index], updates, kept)


def optimize_targets(
    view: ModelView,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    layer: int,
    options: TargetOptions,
    *,
    part: str = "residual",
) -> Targets:
    """Train one target vector per request at ``layer``.

    Args:
        view: the model in the state the targets are for.
        requests: with subjects.
        contexts: templates; the loss averages over them uniformly.
        layer: where the vector is added.
        options: steps, learning rate, clamp and penalties.
        part: ``residual`` (block output, MEMIT family) or ``value`` (MLP output, ROME).

    Raises:
        NumericalError: if a loss becomes NaN or Inf; names the request.
    """
    rows = [_Rows(view, i, req, contexts, options) for i, req in enumerate(requests)]
    rows.sort(key=lambda r: (r.width, r.depth))
    n = len(rows)
    dtype = torch.promote_types(view.dtype, torch.float32)
    z = torch.zeros(n, view.d_model, dtype=dtype)
    h0 = torch.zeros_like(z)
    updates = [0] * n
    records: list[dict[str, Any]] = []
    with Bar("targets", n) as bar, frozen(view.model):
        # gates that look at padding depend on what runs together: one edit, as released
        alone = any(hook.gate == "reference" for hook in view.adapters.values())
        for chunk in _chunks(rows, alone=alone):
            found = _Chunk(view, chunk, layer, part, options).optimize()
            for i, row in enumerate(chunk):
                z[row.index], h0[row.index] = found.z[i].cpu(), found.h0[i].cpu()
                updates[row.index] = int(found.updates[i])
            records += found.records
            bar.step(len(chunk))
    records.sort(key=lambda r: (r["request"], r["step"]))
    return Targets(z.T.contiguous(), h0.T.contiguous(), updates, records)


class _Rows:
    """The token rows of one edit: one per context with the target, then the anchor."""

    def __init__(
        self,
        view: ModelView,
        index: int,
        request: EditRequest,
        contexts: Contexts,
        options: TargetOptions,
    ) -> None:
        limit = context_length(view.model.config)
        self.index, self.request = index, request
        prompts = encode_request(view.tokenizer, request, contexts.templates, max_length=limit)
        assert request.subject is not None
        text = f"{request.subject} is a"
        whole = limit if options.kl_position == "prompt_end" else None  # else it ends earlier
        item = Item(text, "", (0, len(request.subject)))
        anchor = encode(view.tokenizer, [item], max_length=whole)[0]
        end = anchor.pivot if options.kl_position == "subject_last" else len(anchor.ids) - 1
        self.anchor_column = end - anchor.pivot
        self.inputs = [Encoded(p.ids[:-1], p.pivot, p.target_start) for p in prompts]
        stop = len(anchor.ids) if view.adapted else end + 1  # gates judge whole prompts
        self.inputs.append(Encoded(anchor.ids[:stop], anchor.pivot, stop))
        self.labels = [p.target_ids for p in prompts]
        self.columns = [p.target_start - 1 - p.pivot for p in prompts]
        self.width = max(len(r.ids) - r.pivot for r in self.inputs)
        self.depth = max(r.pivot for r in self.inputs)

    @property
    def tokens(self) -> int:
        """Suffix tokens after padding."""
        return len(self.inputs) * self.width


def _chunks(rows: list[_Rows], *, alone: bool) -> Iterator[list[_Rows]]:
    chunk: list[_Rows] = []
    for row in rows:
        width = max([row.width, *(r.width for r in chunk)])
        full = (len(chunk) + 1) * len(row.inputs) * width > CHUNK_TOKENS
        if chunk and (full or alone):
            yield chunk
            chunk = []
        chunk.append(row)
    yield chunk


@dataclass
class _Found:
    z: Tensor
    h0: Tensor
    updates: Tensor
    records: list[dict[str, Any]]


class _Gather:
    """Positions of the losses of the edits in a micro-batch."""

    def __init__(self, chunk: Sequence[_Rows], device: torch.device, dtype: torch.dtype) -> None:
        rows, columns, labels, edits, weights = [], [], [], [], []
        anchors: list[int] = []
        row = 0
        for e, edit in enumerate(chunk):
            share = 1.0 / len(edit.labels)
            for targets, first in zip(edit.labels, edit.columns, strict=True):
                for k, token in enumerate(targets):
                    rows.append(row)
                    columns.append(first + k)
                    labels.append(token)
                    edits.append(e)
                    weights.append(share / len(targets))
                row += 1
            anchors.append(row)
            row += 1
        put = torch.as_tensor
        self.rows = put([*rows, *anchors], device=device)
        self.columns = put([*columns, *(e.anchor_column for e in chunk)], device=device)
        self.labels = put(labels, device=device)
        self.edits = put(edits, device=device)
        self.weights = put(weights, device=device, dtype=dtype)
        self.row_of = put(rows, device=device)
        self.n_labels, self.n_rows, self.n_edits = len(labels), row, len(chunk)


class _Chunk:
    """Edits that are optimized together."""

    def __init__(
        self,
        view: ModelView,
        chunk: list[_Rows],
        layer: int,
        part: str,
        options: TargetOptions,
    ) -> None:
        self.view, self.chunk, self.layer, self.part = view, chunk, layer, part
        self.options = options
        # where the sum of delta and block output is the next block's input, that block is the start
        above = layer + 1 < view.n_layers and (part == "residual" or view.capabilities.additive)
        self.inside = not above
        rows = [r for edit in chunk for r in edit.inputs]
        with trace(view, [Site(layer, part)]) as seen:
            self.replay = Replay(view, rows, layer if self.inside else layer + 1)
            if self.inside:  # the capture ends on entering this block
                with torch.no_grad():
                    self.replay.run(self.replay.hidden)
        n_rows = len(chunk[0].inputs)
        self.dtype = torch.promote_types(view.dtype, torch.float32)
        first = seen[Site(layer, part)][::n_rows, 0]
        if view.adapted:
            first = _whole(view, rows, Site(layer, part))[::n_rows]
        self.h0 = first.detach().to(self.dtype)
        self.device = self.h0.device
        self.rows_each = n_rows

    def optimize(self) -> _Found:
        """Run the loop of spec 1.4 for all edits of the chunk at once."""
        o, n = self.options, len(self.chunk)
        active = torch.arange(n, device=self.device)
        delta = torch.zeros_like(self.h0)
        adam = _Adam(delta, o.lr)
        radius = o.clamp * self.h0.norm(dim=1)
        updates = torch.zeros(n, dtype=torch.long, device=self.device)
        stopped = torch.zeros(n, dtype=torch.bool, device=self.device)
        log: list[Tensor] = []
        replay, members = self.replay, self.chunk
        gather = _Gather(members, self.device, self.dtype)
        before: Tensor | None = None
        for step in range(o.steps):
            current = delta[active].requires_grad_()
            with torch.set_grad_enabled(step < o.steps - 1):
                parts, logp = self._losses(replay, gather, current, self.h0[active], before)
            before = logp if before is None else before
            loss = parts[0]
            log.append(self._record(step, active, parts, current, stopped[active]))
            stopped[active] |= loss.detach() < o.stop_loss
            if step == o.steps - 1 or bool(stopped.all()):
                break
            alive = ~stopped[active]
            (grad,) = torch.autograd.grad(loss[alive].sum(), current)
            chosen = active[alive]
            adam.step(delta, grad[alive], chosen, step + 1)
            _clamp(delta, chosen, radius)
            updates[chosen] += 1
            if int((~alive).sum()) >= max(1, COMPACT_SHARE * len(active)):
                keep = alive.nonzero()[:, 0]
                replay, members = self._compact(replay, members, keep)
                gather = _Gather(members, self.device, self.dtype)
                active, before = chosen, before[keep]
        return _Found(self.h0 + delta, self.h0, updates, self._records(log))

    def _losses(
        self,
        replay: Replay,
        gather: _Gather,
        delta: Tensor,
        h0: Tensor,
        before: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Stacked loss, nll, kl, weight decay and probability ``[5, n]``; anchor log-probs."""
        o = self.options
        residual = self._forward(replay, delta)
        logits = replay.logits(residual, gather.rows, gather.columns).to(self.device, self.dtype)
        logp = logits.log_softmax(-1)
        n = gather.n_labels
        token_nll = -logp[:n].gather(1, gather.labels[:, None])[:, 0]
        nll = _per(token_nll * gather.weights, gather.edits, gather.n_edits)
        with torch.no_grad():
            each = _per(token_nll * gather.weights, gather.row_of, gather.n_rows)
            each = each.view(gather.n_edits, self.rows_each)[:, :-1]  # the anchor row is last
            prob = (-each * (self.rows_each - 1)).exp().mean(1)
        anchor = logp[n:]
        reference = anchor.detach() if before is None else before
        kl = o.kl_factor * (anchor.exp() * (anchor - reference)).sum(-1)
        decay = o.weight_decay * delta.norm(dim=1) / h0.norm(dim=1).square()
        loss = nll + kl + decay
        if not bool(loss.isfinite().all()):
            raise NumericalError(
                "the target optimization met NaN or Inf; nothing was changed. Try a smaller lr, or "
                "load the model in float32."
            )
        return torch.stack([loss, nll, kl, decay, prob]), anchor.detach()

    def _forward(self, replay: Replay, delta: Tensor) -> Tensor:
        spread = delta.repeat_interleave(self.rows_each, dim=0)
        if self.inside:
            with hooks(self._injected(spread)):
                return replay.run(replay.hidden)
        first = (replay.hidden[:, :1].to(self.dtype) + spread[:, None]).to(replay.hidden.dtype)
        return replay.run(torch.cat([first, replay.hidden[:, 1:]], dim=1))

    def _injected(self, spread: Tensor) -> Iterator[Any]:
        """A hook that adds the vectors at column 0 of the value, or of the block's output."""

        def add(x: Tensor) -> Tensor:
            full = x.view(spread.shape[0], -1, x.shape[-1])
            first = (full[:, :1].to(self.dtype) + spread[:, None]).to(x.dtype)
            return torch.cat([first, full[:, 1:]], dim=1).view(x.shape)

        def hook(module: Any, args: Any, out: Any) -> Any:
            return with_tensor(out, add(tensor_of(out)))

        value = self.part == "value"
        module = self.view.value_module(self.layer) if value else self.view.block(self.layer)
        yield module.register_forward_hook(hook)

    def _compact(
        self, replay: Replay, members: list[_Rows], keep: Tensor
    ) -> tuple[Replay, list[_Rows]]:
        """Leave finished edits out of the capture."""
        rows = keep[:, None] * self.rows_each + torch.arange(self.rows_each, device=keep.device)
        return replay.take(rows.flatten()), [members[i] for i in keep.tolist()]

    def _record(
        self, step: int, active: Tensor, parts: Tensor, delta: Tensor, stopped: Tensor
    ) -> Tensor:
        norm = delta.detach().norm(dim=1) / self.h0[active].norm(dim=1)
        head = torch.stack([active.to(self.dtype), torch.full_like(norm, step)])
        return torch.cat([head, parts.detach(), norm[None]])[:, ~stopped]

    def _records(self, log: list[Tensor]) -> list[dict[str, Any]]:
        names = ("request", "step", "loss", "nll", "kl", "weight_decay", "prob", "delta_norm")
        table = torch.cat(log, dim=1).T.tolist()
        rows = [dict(zip(names, row, strict=True)) for row in table]
        for row in rows:
            row["request"] = self.chunk[int(row["request"])].index
            row["step"] = int(row["step"])
        return rows


@torch.no_grad()
def _whole(view: ModelView, rows: Sequence[Encoded], site: Site) -> Tensor:
    """An activation at the pivots, from whole prompts, ``[rows, d]``."""
    lengths = torch.tensor([r.target_start for r in rows])
    with view.reading(lengths), trace(view, [site], stop=True) as seen:
        run_rows(view, [r.ids for r in rows])
    pivots = torch.tensor([r.pivot for r in rows], device=seen[site].device)
    return seen[site][torch.arange(len(rows), device=pivots.device), pivots]


class _Adam:
    """Adam (arXiv 1412.6980) with default betas, elementwise, for rows that are still active."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self.lr = lr
        self.m, self.v = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, x: Tensor, grad: Tensor, rows: Tensor, t: int) -> None:
        """One update, the ``t``-th, of the given rows."""
        m = self.m[rows].mul_(0.9).add_(grad, alpha=0.1)
        v = self.v[rows].mul_(0.999).addcmul_(grad, grad, value=0.001)
        self.m[rows], self.v[rows] = m, v
        size = (v / (1 - 0.999**t)).sqrt_().add_(1e-8)
        x[rows] -= self.lr * (m / (1 - 0.9**t)) / size


def _clamp(delta: Tensor, rows: Tensor, radius: Tensor) -> None:
    norm = delta[rows].norm(dim=1)
    scale = torch.where(norm > radius[rows], radius[rows] / norm.clamp_min(1e-30), 1.0)
    delta[rows] *= scale[:, None]


def _per(values: Tensor, index: Tensor, n: int) -> Tensor:
    return torch.zeros(n, dtype=values.dtype, device=values.device).index_add(0, index, values)
