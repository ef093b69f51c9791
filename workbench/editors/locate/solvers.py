"""Closed forms: from keys ``K`` to the matrix ``X`` of an update ``D = R Xᵀ``.

All of the family solve the same problem, keep ``E[k kᵀ] = C`` still and write residuals ``R`` at
keys ``K``, with different words for "write" (spec locate-then-edit 2.4). Everything is float64 on
one Cholesky factor ``C = L Lᵀ``: a batch costs one triangular solve and one ``n × n`` factor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import NumericalError
from workbench.linalg import Factor, Grown

__all__ = [
    "condition",
    "equality",
    "equality_after",
    "predicted_closure",
    "ridge",
    "ridge_after",
    "rome_direction",
]

#: Condition number of KᵀC⁻¹K above which equality constraints are refused.
MAX_CONDITION = 1e12


def rome_direction(factor: Factor, key: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """``C⁻¹k / (kᵀC⁻¹k)``: the rank-one update that writes one key and moves the rest least.

    Source: ROME, arXiv 2202.05262, eq. 2. Invariant to the scale of ``C`` (oracle O4).
    """
    x = factor.solve(key[:, None])[:, 0]
    return x / (key.to(x) @ x)


def ridge(factor: Factor, keys: Float[Tensor, "m n"], lam: float) -> Float[Tensor, "m n"]:
    """``(λC + K Kᵀ)⁻¹ K``: least squares between keeping the corpus and writing.

    Source: MEMIT, arXiv 2210.07229, eq. 14; Woodbury form of spec 1.7.
    """
    y = factor.whiten(keys) / lam**0.5
    x = torch.cholesky_solve(y.T, torch.linalg.cholesky(_eye(y) + y.T @ y)).T
    return factor.unwhiten(x) / lam**0.5


def ridge_after(grown: Grown, keys: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """``(A + K Kᵀ)⁻¹ K`` where ``A = λC + K_p K_pᵀ`` holds the keys written before.

    Sequential batches then equal one joint batch (recursive least squares, spec 1.7, oracle O10).
    """
    x = grown.solve(keys)
    return torch.cholesky_solve(x.T, torch.linalg.cholesky(_eye(x) + _gram(keys, x))).T


def equality_after(
    grown: Grown, keys: Float[Tensor, "m n"], *, alpha: float = 0.0
) -> Float[Tensor, "m n"]:
    """``A⁻¹K (KᵀA⁻¹K + αI)⁻¹`` where ``A`` also holds the keys written before.

    Raises:
        NumericalError: as :func:`equality`.
    """
    x = grown.solve(keys)
    gram = _gram(keys, x)
    if alpha == 0:
        _require_feasible(gram, keys.shape[0])
    return torch.cholesky_solve(x.T, torch.linalg.cholesky(gram + alpha * _eye(x))).T


def equality(
    factor: Factor, keys: Float[Tensor, "m n"], *, scale: float = 1.0, alpha: float = 0.0
) -> Float[Tensor, "m n"]:
    """``(sC)⁻¹K (Kᵀ(sC)⁻¹K + αI)⁻¹``: every key written exactly (α = 0), or softly.

    Source: EMMET, arXiv 2403.14236, eq. 11. With α > 0 it equals :func:`ridge` with ``λ = α·s``.

    Raises:
        NumericalError: if α = 0 and the constraints are infeasible (more keys than ``m``, or nearly
            dependent keys); names the α to pass.
    """
    if alpha > 0:
        return ridge(factor, keys, alpha * scale)
    y = factor.whiten(keys)
    gram = y.T @ y
    _require_feasible(gram, keys.shape[0])
    return factor.unwhiten(torch.cholesky_solve(y.T, torch.linalg.cholesky(gram)).T)


def _require_feasible(gram: Float[Tensor, "n n"], m: int) -> None:
    """Refuse equality constraints that cannot hold together."""
    n = gram.shape[0]
    if n > m:
        raise NumericalError(
            f"{n} keys in {m} dimensions cannot all be written exactly: pass alpha=0.1 (soft "
            "constraints, equal to MEMIT with lam = alpha · scale) or use a smaller batch."
        )
    number = condition(gram)
    if not number < MAX_CONDITION:
        raise NumericalError(
            f"the keys of this batch are nearly dependent (condition {number:.1e}), for example "
            "through equal subjects: pass alpha=0.1 (soft constraints, equal to MEMIT with "
            "lam = alpha · scale) or edit them in separate batches."
        )


def predicted_closure(leverage: Tensor, lam: float) -> Tensor:
    """``ℓ / (λ + ℓ)``: the share of its residual that a single edit writes (spec 1.7)."""
    return leverage / (lam + leverage)


def condition(gram: Float[Tensor, "n n"]) -> float:
    """Condition number of a symmetric positive semi-definite matrix; inf if it is singular."""
    values = torch.linalg.eigvalsh(gram)
    low, high = float(values[0]), float(values[-1])
    return high / low if low > 0 else float("inf")


def _gram(keys: Tensor, x: Tensor) -> Tensor:
    gram = keys.to(x).T @ x
    return (gram + gram.T) / 2


def _eye(y: Tensor) -> Tensor:
    return torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
