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
from workbench.linalg import Factor, cholesky

__all__ = ["condition", "equality", "predicted_closure", "ridge", "rome_direction"]

#: Condition number of KᵀC⁻¹K above which equality constraints are refused.
MAX_CONDITION = 1e12


def rome_direction(factor: Factor, key: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """``C⁻¹k / (kᵀC⁻¹k)``: the rank-one update that writes one key and moves the rest least.

    Source: ROME, arXiv 2202.05262, eq. 2. Invariant to the scale of ``C`` (oracle O4).
    """
    x = factor.solve(key[:, None])[:, 0]
    return x / (key.to(x) @ x)


def ridge(
    factor: Factor,
    keys: Float[Tensor, "m n"],
    lam: float,
    past: Float[Tensor, "m p"] | None = None,
) -> Float[Tensor, "m n"]:
    """``(λC + K_p K_pᵀ + K Kᵀ)⁻¹ K``: least squares, optionally with keys written before.

    Source: MEMIT, arXiv 2210.07229, eq. 14; Woodbury form of spec 1.7. With more past keys than
    ``m / 2`` the sum is factored directly.
    """
    if past is not None and past.shape[1] > factor.lower.shape[0] // 2:
        full = lam * factor.lower @ factor.lower.T
        full = full + past.to(full) @ past.to(full).T
        return ridge(cholesky(full), keys, 1.0)
    n = keys.shape[1]
    together = keys if past is None else torch.cat([past.to(keys), keys], dim=1)
    y = factor.whiten(together) / lam**0.5
    gram = _eye(y) + y.T @ y
    unit = _eye(y)[:, -n:]
    x = y @ torch.cholesky_solve(unit, torch.linalg.cholesky(gram))
    return factor.unwhiten(x) / lam**0.5


def equality(
    factor: Factor, keys: Float[Tensor, "m n"], *, scale: float = 1.0, alpha: float = 0.0
) -> Float[Tensor, "m n"]:
    """``(sC)⁻¹K (Kᵀ(sC)⁻¹K + αI)⁻¹``: every key written exactly (α = 0), or softly.

    Source: EMMET, arXiv 2403.14236, eq. 11. With α > 0 it equals :func:`ridge` with ``λ = α·s``.

    Raises:
        NumericalError: if α = 0 and the constraints are infeasible (more keys than ``m``, or nearly
            dependent keys); names the α to pass.
    """
    m, n = keys.shape
    if alpha > 0:
        return ridge(factor, keys, alpha * scale)
    if n > m:
        raise NumericalError(
            f"{n} keys in {m} dimensions cannot all be written exactly: pass alpha=0.1 (soft "
            "constraints, equal to MEMIT with lam = alpha · scale) or use a smaller batch."
        )
    y = factor.whiten(keys)
    gram = y.T @ y
    number = condition(gram)
    if not number < MAX_CONDITION:
        raise NumericalError(
            f"the keys of this batch are nearly dependent (condition {number:.1e}), for example "
            "through equal subjects: pass alpha=0.1 (soft constraints, equal to MEMIT with "
            "lam = alpha · scale) or edit them in separate batches."
        )
    return factor.unwhiten(torch.cholesky_solve(y.T, torch.linalg.cholesky(gram)).T)


def predicted_closure(leverage: Tensor, lam: float) -> Tensor:
    """``ℓ / (λ + ℓ)``: the share of its residual that a single edit writes (spec 1.7)."""
    return leverage / (lam + leverage)


def condition(gram: Float[Tensor, "n n"]) -> float:
    """Condition number of a symmetric positive semi-definite matrix; inf if it is singular."""
    values = torch.linalg.eigvalsh(gram)
    low, high = float(values[0]), float(values[-1])
    return high / low if low > 0 else float("inf")


def _eye(y: Tensor) -> Tensor:
    return torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
