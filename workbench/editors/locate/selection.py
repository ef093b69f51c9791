"""Which neurons an NSE update may touch, and which requests are written together.

A neuron is a column of the edited matrix (an entry of the key). Its score is the sum of ``|key|``
over the requests being written (NSE, arXiv 2410.04045; spec locate-then-edit 2.6).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["RULES", "clusters", "neuron_scores", "select"]

#: ``paper``: the smallest set whose share of all scores reaches the threshold. ``repo``: the
#: largest set whose share does not exceed it, one neuron fewer (N2).
RULES = ("paper", "repo")


def neuron_scores(keys: Float[Tensor, "m n"]) -> Float[Tensor, " m"]:
    """``Q_j = Σ_i |k_ji|``, float64."""
    return keys.to(torch.float64).abs().sum(1)


def select(scores: Float[Tensor, " m"], threshold: float, rule: str = "paper") -> Int[Tensor, " s"]:
    """Indices of the chosen neurons, ascending; at least one.

    Args:
        scores: of every neuron.
        threshold: p, share of the total score; 1 or more chooses every neuron under ``paper``.
        rule: one of :data:`RULES`.
    """
    if threshold >= 1 and rule == "paper":
        return torch.arange(len(scores))
    order = scores.argsort(descending=True, stable=True)
    share = scores[order].cumsum(0)
    limit = threshold * float(scores.sum())
    reached = int((share < limit).sum()) + 1 if rule == "paper" else int((share <= limit).sum())
    return order[: max(1, min(reached, len(scores)))].sort().values.cpu()


def clusters(
    keys: Float[Tensor, "m n"], threshold: float, n_clusters: int, rule: str, seed: int
) -> list[list[int]]:
    """Requests grouped by the overlap of the neurons each would choose alone.

    Spectral clustering of Jaccard similarities, as outlined (not run) in the released code.
    """
    n = keys.shape[1]
    if n_clusters == 1:
        return [list(range(n))]
    from sklearn.cluster import KMeans

    chosen = torch.zeros(n, keys.shape[0], dtype=torch.bool)
    for i in range(n):
        chosen[i, select(neuron_scores(keys[:, i : i + 1]), threshold, rule)] = True
    model = KMeans(n_clusters, n_init=10, random_state=seed)
    labels: np.ndarray = model.fit_predict(_embedding(jaccard(chosen), n_clusters).numpy())
    groups = [np.flatnonzero(labels == c).tolist() for c in range(n_clusters)]
    return [g for g in groups if g]


def _embedding(near: Float[Tensor, "n n"], k: int) -> Float[Tensor, "n k"]:
    """Rows of the k leading eigenvectors of the normalized similarity (Ng, Jordan and Weiss)."""
    scale = near.sum(1).rsqrt()
    _, vectors = torch.linalg.eigh(scale[:, None] * near * scale[None])
    leading = vectors[:, -k:]
    return leading / leading.norm(dim=1, keepdim=True).clamp_min(1e-12)


def jaccard(chosen: Bool[Tensor, "n m"]) -> Float[Tensor, "n n"]:
    """``|a ∩ b| / |a ∪ b|`` between rows, 1 between empty ones."""
    rows = chosen.to(torch.float64)
    both = rows @ rows.T
    sizes = rows.sum(1)
    union = sizes[:, None] + sizes[None] - both
    return torch.where(union > 0, both / union.clamp_min(1), 1.0)
