"""A straightforward implementation of MEMIT, written from the papers, to compare with.

One edit at a time, full forward passes with the full head, no cache, weights written layer by layer
and restored. Slow on purpose; equal to the package's engine by test and used by the benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.capabilities import tensor_of, with_tensor
from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.targets import TargetOptions
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.tokens import Item, encode, encode_request, pad_right
from workbench.trace import Site, trace


def target(
    view: ModelView, request: EditRequest, contexts: Contexts, layer: int, options: TargetOptions
) -> tuple[Tensor, Tensor, int]:
    """Target vector, unmodified vector and number of updates of one edit (MEMIT, eq. 14)."""
    rows = encode_request(view.tokenizer, request, contexts.templates)
    anchor = encode(
        view.tokenizer, [Item(f"{request.subject} is a", "", (0, len(request.subject or "")))]
    )[0]
    ids, mask = pad_right([r.ids[:-1] for r in rows] + [anchor.ids], device=view.device)
    spots = [r.pivot for r in rows] + [anchor.pivot]
    dtype = torch.promote_types(view.dtype, torch.float32)
    delta = torch.zeros(view.d_model, dtype=dtype, device=view.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.lr)
    h0: list[Tensor] = []

    def add(module: object, args: object, out: object) -> object:
        hidden = tensor_of(out)
        if not h0:
            h0.append(hidden[0, spots[0]].detach().clone())
        new = hidden.clone()
        for row, spot in enumerate(spots):
            new[row, spot] = (new[row, spot].to(dtype) + delta).to(new.dtype)
        return with_tensor(out, new)

    before: Tensor | None = None
    handle = view.block(layer).register_forward_hook(add)
    try:
        for step in range(options.steps):
            logits = view.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
            logp = logits.to(dtype).log_softmax(-1)
            nll = torch.stack(
                [
                    -logp[i, r.target_start - 1 : len(r.ids) - 1]
                    .gather(1, torch.tensor(r.target_ids, device=view.device)[:, None])
                    .mean()
                    for i, r in enumerate(rows)
                ]
            ).mean()
            anchored = logp[-1, anchor.pivot]
            before = anchored.detach() if before is None else before
            kl = options.kl_factor * (anchored.exp() * (anchored - before)).sum()
            decay = options.weight_decay * delta.norm() / h0[0].to(dtype).norm() ** 2
            loss = nll + kl + decay
            if float(loss.detach()) < options.stop_loss or step == options.steps - 1:
                return (h0[0].to(dtype) + delta).detach(), h0[0].to(dtype), step
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                radius = options.clamp * h0[0].to(dtype).norm()
                if delta.norm() > radius:
                    delta *= radius / delta.norm()
    finally:
        handle.remove()
    raise AssertionError("the loop returns at its last step")


@torch.no_grad()
def memit(
    view: ModelView,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    layers: Sequence[int],
    targets: Tensor,
    moments: dict[int, Tensor],
    lam: float,
) -> list[Tensor]:
    """Updates ``[d_model, d_mlp]`` of every layer, for targets ``[d_model, n]``.

    Every key and residual comes from a full forward pass of one prompt on the live weights.
    """
    held = {layer: view.value_module(layer).weight.data for layer in layers}
    updates = []
    try:
        for i, layer in enumerate(sorted(layers)):
            keys = torch.stack([key(view, r, contexts, layer) for r in requests], dim=1)
            hidden = torch.stack([state(view, r, max(layers)) for r in requests], dim=1)
            residual = (targets.to(hidden) - hidden) / (len(layers) - i)
            system = lam * moments[layer].to(keys) + keys @ keys.T
            update = residual @ torch.linalg.solve(system, keys).T
            updates.append(update)
            module = view.value_module(layer)
            change = update.to(held[layer].dtype)
            same = module.weight.shape == update.shape and view.weight(layer).is_contiguous()
            module.weight.data = held[layer] + (change if same else change.T)
    finally:
        for layer, weight in held.items():
            view.value_module(layer).weight.data = weight
    return updates


def key(view: ModelView, request: EditRequest, contexts: Contexts, layer: int) -> Tensor:
    """Averaged key of one request: a full forward per template."""
    total = torch.zeros(view.d_mlp, dtype=torch.float64, device=view.device)
    for template, weight in zip(contexts.templates, contexts.weights, strict=True):
        enc = encode_request(view.tokenizer, request, [template])[0]
        ids = torch.tensor([enc.ids[:-1]], device=view.device)
        with trace(view, [Site(layer, "key")]) as seen:
            view.model(input_ids=ids, use_cache=False)
        total += weight * seen[Site(layer, "key")][0, enc.pivot].double()
    return total


def state(view: ModelView, request: EditRequest, layer: int) -> Tensor:
    """Output of block ``layer`` at the subject on the bare prompt."""
    enc = encode_request(view.tokenizer, request)[0]
    with trace(view, [Site(layer, "residual")]) as seen:
        view.model(input_ids=torch.tensor([enc.ids[:-1]], device=view.device), use_cache=False)
    return seen[Site(layer, "residual")][0, enc.pivot].double()
