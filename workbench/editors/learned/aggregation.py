"""One change of a matrix out of many rewritten pairs: their sum, or least squares.

MEND adds the outer products up. With thousands of edits in one batch these cancel each other;
MALMEN (arXiv 2311.04661, section 3; spec memory-and-meta 8) asks instead for the one change that
comes nearest to what each pair wants of the output at its own input, which is a ridge regression.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["AGGREGATES", "least_squares", "wanted"]

AGGREGATES = ("sum", "least_squares")


def wanted(
    keys: Float[Tensor, "lessons n d_in"],
    keys_new: Float[Tensor, "lessons n d_in"],
    values_new: Float[Tensor, "lessons n d_out"],
) -> Float[Tensor, "lessons n d_out"]:
    """By how much each row's output shall change: ``−(k · k̃) ṽ``, still without its step size."""
    return -(keys * keys_new).sum(-1, keepdim=True) * values_new


def least_squares(
    keys: Float[Tensor, "lessons n d_in"],
    changes: Float[Tensor, "lessons n d_out"],
    ridge: Float[Tensor, ""],
) -> tuple[Float[Tensor, "lessons m d_out"], Float[Tensor, "lessons m d_in"]]:
    """Factors ``left, right`` of ``S = (KᵀK + λI)⁻¹ KᵀD``, as ``Sᵀ = leftᵀ right``.

    Solved over the rows where they are fewer than the inputs (``S = Kᵀ (KKᵀ + λI)⁻¹ D``), over the
    inputs otherwise; in float64. Rows of zeros change nothing.

    Args:
        keys: what goes into the matrix, a row a token.
        changes: how its output shall change there.
        ridge: λ > 0.
    """
    k, d = keys.double(), changes.double()
    lessons, n, d_in = k.shape
    if n <= d_in:
        gram = k @ k.mT + ridge.double() * torch.eye(n, dtype=k.dtype, device=k.device)
        return torch.linalg.solve(gram, d).to(changes.dtype), keys
    eye = torch.eye(d_in, dtype=k.dtype, device=k.device)
    solved = torch.linalg.solve(k.mT @ k + ridge.double() * eye, k.mT @ d)
    return solved.to(changes.dtype), eye.to(keys.dtype).expand(lessons, -1, -1)
