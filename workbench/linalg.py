"""Factorisations in float64 on the matrix's own device, with jitter only where it is needed.

Second moments of real keys can be badly conditioned and float32 loses the solve at condition
numbers that occur (spec locate-then-edit 1.7), so everything here is double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import NumericalError

__all__ = ["Factor", "Grown", "cholesky", "leading"]

#: Multiples of the mean eigenvalue that are added to the diagonal, one after another.
JITTERS = (0.0, *(10.0**k for k in range(-12, -3)))
#: Up to this side a singular value decomposition is taken whole.
EXACT_SIDE = 1024


@dataclass(frozen=True)
class Factor:
    """Lower Cholesky factor of a symmetric positive definite matrix.

    Attributes:
        lower: ``L`` with ``A + jitter · I = L Lᵀ``, float64.
        jitter: what had to be added to the diagonal; 0 for a healthy matrix.
    """

    lower: Float[Tensor, "m m"]
    jitter: float = 0.0

    def whiten(self, keys: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """``L⁻¹ K``."""
        keys = keys.to(self.lower)
        return torch.linalg.solve_triangular(self.lower, keys, upper=False)

    def unwhiten(self, y: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """``L⁻ᵀ Y``."""
        return torch.linalg.solve_triangular(self.lower.T, y.to(self.lower), upper=True)

    def solve(self, keys: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """``A⁻¹ K``."""
        return torch.cholesky_solve(keys.to(self.lower), self.lower)

    def leverage(self, keys: Float[Tensor, "m n"]) -> Float[Tensor, " n"]:
        """``kᵀ A⁻¹ k`` for every column; its mean over the sample that defines A is ``m``."""
        return self.whiten(keys).square().sum(0)


def cholesky(matrix: Float[Tensor, "m m"]) -> Factor:
    """Factor a symmetric matrix in float64, adding the smallest jitter that works.

    Raises:
        NumericalError: if the matrix holds NaN or Inf, or no jitter up to 1e-4 helps.
    """
    if not bool(matrix.isfinite().all()):
        raise NumericalError("the matrix to factor holds NaN or Inf: recompute it.")
    a = matrix.to(torch.float64)
    a = (a + a.T) / 2
    scale = float(a.diagonal().mean().clamp_min(torch.finfo(a.dtype).tiny))
    eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    for step in JITTERS:
        lower, info = torch.linalg.cholesky_ex(a + step * scale * eye if step else a)
        if int(info) == 0:
            return Factor(lower, step * scale)
    raise NumericalError(
        "the matrix is not positive definite, even with a ridge of 1e-4 of its mean diagonal: "
        "use more tokens for the statistics."
    )


class Grown:
    """``A = scale · L Lᵀ + Σ K Kᵀ`` that grows by keys, with no ``m × m`` factorization a batch.

    Keys appended so far are held whitened (``Y = L⁻¹K / √scale``) with the Cholesky factor of
    ``I + YᵀY``, which a batch extends by a block row (spec locate-then-edit 1.7 and 10). Past
    ``m / 2`` columns they are folded into ``L``, so cost and memory stop growing.

    Args:
        factor: ``L``.
        scale: λ.
    """

    def __init__(self, factor: Factor, scale: float = 1.0) -> None:
        self.factor, self.scale = factor, scale
        self._matrix: Tensor | None = None  # A without the keys that wait, after the first folding
        self._clear()

    def _clear(self) -> None:
        lower = self.factor.lower
        self.y = self._keys = lower.new_zeros(lower.shape[0], 0)
        self.gram_lower = lower.new_zeros(0, 0)

    @property
    def n_pending(self) -> int:
        """Columns that are not folded into the factor yet."""
        return int(self.y.shape[1])

    def append(self, keys: Float[Tensor, "m n"]) -> None:
        """``A += K Kᵀ``."""
        y = self.factor.whiten(keys) / self.scale**0.5
        cross = torch.linalg.solve_triangular(self.gram_lower, self.y.T @ y, upper=False).T
        eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        corner = torch.linalg.cholesky(eye + y.T @ y - cross @ cross.T)
        top = torch.cat([self.gram_lower, cross.new_zeros(self.n_pending, y.shape[1])], dim=1)
        self.gram_lower = torch.cat([top, torch.cat([cross, corner], dim=1)])
        self.y = torch.cat([self.y, y], dim=1)
        self._keys = torch.cat([self._keys, keys.to(y)], dim=1)
        if self.n_pending > y.shape[0] // 2:
            self._fold()

    def solve(self, keys: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """``A⁻¹ K``."""
        y = self.factor.whiten(keys) / self.scale**0.5
        if self.n_pending:
            y = y - self.y @ torch.cholesky_solve(self.y.T @ y, self.gram_lower)
        return self.factor.unwhiten(y) / self.scale**0.5

    def _fold(self) -> None:
        lower = self.factor.lower
        before = self.scale * (lower @ lower.T) if self._matrix is None else self._matrix
        self._matrix = before.addmm(self._keys, self._keys.T)
        self.factor, self.scale = cholesky(self._matrix), 1.0
        self._clear()


def leading(
    matrix: Float[Tensor, "d m"], k: int, *, seed: int = 0
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"], Float[Tensor, "m k"]]:
    """The ``k`` largest singular values and their vectors, in float64.

    Exact for matrices with a side below 1,024; beyond, a random range with three power iterations
    (Halko, Martinsson and Tropp, arXiv 0909.4061): good where the values fall, low where they do
    not.

    Args:
        matrix: any matrix of finite numbers.
        k: at most the shorter side counts.
        seed: of the random range.
    """
    a = matrix.to(torch.float64)
    k = min(k, *a.shape)
    if min(a.shape) <= EXACT_SIDE:
        left, sizes, right = torch.linalg.svd(a, full_matrices=False)
        return left[:, :k], sizes[:k], right[:k].T
    generator = torch.Generator(device="cpu").manual_seed(seed)
    start = torch.randn(a.shape[1], min(k + 8, *a.shape), generator=generator, dtype=a.dtype)
    basis = torch.linalg.qr(a @ start.to(a.device)).Q
    for _ in range(3):
        basis = torch.linalg.qr(a @ torch.linalg.qr(a.T @ basis).Q).Q
    left, sizes, right = torch.linalg.svd(basis.T @ a, full_matrices=False)
    return (basis @ left)[:, :k], sizes[:k], right[:k].T
