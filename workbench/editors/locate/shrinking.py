"""Two published remedies for sequential editing that make updates smaller after the fact.

- RECT keeps only the entries of an update that are large relative to the weight they change
  (Gu et al., arXiv 2401.04700).
- PRUNE, applied once after a stream, compresses the large singular values of everything that was
  added (Ma et al., arXiv 2405.16821). The released code adds the compressed change to the weight
  that already holds the change; here the result is the original weight plus the compressed change
  (spec locate-then-edit 2.5 and N10).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.base import storage_dtype
from workbench.edits import Delta, WeightEdit
from workbench.errors import OptionError
from workbench.model import ModelView
from workbench.weights import lineage

__all__ = ["compressed", "largest_relative", "prune"]


def largest_relative(
    change: Float[Tensor, "d m"], weight: Float[Tensor, "d m"], share: float
) -> Float[Tensor, "d m"]:
    """The entries with the largest ``|D| / |W|``, zero elsewhere.

    Args:
        change: ``D``.
        weight: ``W`` before the change.
        share: of the entries that is kept, at least one.
    """
    ratio = change.abs() / weight.to(change).abs().clamp_min(torch.finfo(weight.dtype).tiny)
    n = max(1, round(share * ratio.numel()))
    kept = torch.zeros(ratio.numel(), dtype=torch.bool, device=ratio.device)
    kept[ratio.flatten().topk(n).indices] = True
    return change * kept.view(change.shape)


def compressed(total: Float[Tensor, "d m"], weight: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
    """``total`` with every singular value σ above the weight's largest, s, set to
    ``log σ − log s + s``, where that is less (with s below 1 it can be more)."""
    left, sigma, right = torch.linalg.svd(total, full_matrices=False)
    top = torch.linalg.matrix_norm(weight.to(total), ord=2)
    bent = sigma.log() - top.log() + top
    low = torch.where(sigma > top, torch.minimum(bent, sigma), sigma)
    return (left * low) @ right


def prune(view: ModelView) -> WeightEdit:
    """The edit that turns everything the stack added into its compressed form; push it last.

    Raises:
        OptionError: if the stack is empty.

    Example:
        >>> view.push(wb.prune(view))
    """
    if not view.stack:
        raise OptionError("the stack is empty: there is nothing to prune.")
    names = {n for e in view.stack for n in e.parameters}
    layers = [x for x in range(view.n_layers) if view.weight_name(x) in names]
    now = {x: view.weight(x).to(torch.float64) for x in layers}
    with view.pristine():
        before = {x: view.weight(x).to(torch.float64) for x in layers}
    deltas, rows = [], []
    for x in layers:
        total = now[x] - before[x]
        low = compressed(total, before[x])
        deltas.append(Delta.dense(view.weight_name(x), (low - total).to(storage_dtype(view))))
        norms = (torch.linalg.matrix_norm(t, ord=2) for t in (before[x], total, low))
        names_of = ("sigma_weight", "sigma_before", "sigma_after")
        rows.append({"layer": x} | dict(zip(names_of, map(float, norms), strict=True)))
    return WeightEdit(
        deltas=tuple(deltas),
        requests=(),
        editor="prune",
        config={},
        base=view.fingerprint,
        parents=lineage(view.stack),
        report={"layers": rows},
    )
