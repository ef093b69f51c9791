"""The second moment of one layer's keys: what it is, whether it fits, where else it comes from.

Computed by :func:`workbench.stats.second_moments`; imported from the field's .npz files; or the
identity.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import DataError, NumericalError, StatisticsError
from workbench.linalg import Factor, cholesky
from workbench.model import ModelView

__all__ = ["SecondMoment", "identity_moment", "import_npz", "require", "too_few"]

#: Up to this size the condition number comes from all eigenvalues, beyond from power iterations.
EXACT_SPECTRUM = 4096


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """E[k kᵀ] of the keys of one layer.

    Attributes:
        layer: the block.
        matrix: ``[d_mlp, d_mlp]`` float64, symmetric, on the CPU; saved without loss.
        mean: ``[d_mlp]`` mean key, float64; NaN where an imported file has none.
        n_tokens: keys that were averaged.
        fingerprint: of the pristine model.
        source: corpus, seed, lengths and everything else the numbers depend on.
        reservoir: ``[d_mlp, n]`` float32, a uniform sample of raw keys without replacement.
        sampling_error: relative Frobenius error of the matrix from the difference between two
            halves of the corpus, None if unknown.
    """

    layer: int
    matrix: Float[Tensor, "d_mlp d_mlp"]
    mean: Float[Tensor, " d_mlp"]
    n_tokens: int
    fingerprint: str
    source: dict[str, Any] = field(repr=False)
    reservoir: Float[Tensor, "d_mlp n"] = field(repr=False)
    sampling_error: float | None = None

    @property
    def d_mlp(self) -> int:
        """Size of a key."""
        return self.matrix.shape[0]

    @cached_property
    def factor(self) -> Factor:
        """Cholesky factor of the matrix, made once."""
        return cholesky(self.matrix)

    def leverage(self, keys: Float[Tensor, "d_mlp n"]) -> Float[Tensor, " n"]:
        """``kᵀ C⁻¹ k`` of each key; the mean over all tokens behind C is exactly ``d_mlp``."""
        return self.factor.leverage(keys)

    def check(self) -> dict[str, float]:
        """How good the estimate is.

        Returns:
            ``mean_leverage`` of the reservoir and its ratio to ``d_mlp`` (near 1 for a healthy
            matrix; exactly 1 over all tokens), ``condition`` number, ``effective_rank``
            (tr(C)² / ‖C‖²), ``jitter`` that factoring needed, ``tokens_per_dimension``,
            ``sampling_error``. NaN where unknown.
        """
        n = self.reservoir.shape[1]
        mean = float(self.leverage(self.reservoir).mean()) if n else math.nan
        error = self.sampling_error
        return {
            "d_mlp": float(self.d_mlp),
            "mean_leverage": mean,
            "leverage_ratio": mean / self.d_mlp,
            "condition": _condition(self),
            "effective_rank": float(self.matrix.trace() ** 2 / self.matrix.square().sum()),
            "jitter": self.factor.jitter,
            "tokens_per_dimension": self.n_tokens / self.d_mlp,
            "sampling_error": math.nan if error is None else error,
        }

    def __repr__(self) -> str:
        return (
            f"<SecondMoment of layer {self.layer}: {self.d_mlp} × {self.d_mlp}, "
            f"{self.n_tokens:,} tokens of {self.source.get('corpus')}>"
        )


def require(moment: SecondMoment, view: ModelView, layer: int) -> SecondMoment:
    """Return the moment if it fits the model and the layer.

    Raises:
        StatisticsError: if it is of another model, layer or size, or from too few tokens.
        NumericalError: if it holds NaN or Inf.
    """
    if moment.fingerprint != view.fingerprint:
        raise StatisticsError(
            f"statistics of another model: these were computed on {moment.fingerprint}, "
            f"{view.name} is {view.fingerprint}. Compute them with second_moments(view, [{layer}])."
        )
    if moment.layer != layer:
        raise StatisticsError(f"statistics of layer {moment.layer} were given for layer {layer}.")
    if tuple(moment.matrix.shape) != (view.d_mlp, view.d_mlp):
        raise StatisticsError(
            f"the matrix of layer {layer} is {tuple(moment.matrix.shape)}, the keys of {view.name} "
            f"have {view.d_mlp} entries: these are statistics of another site or model."
        )
    if moment.n_tokens < view.d_mlp and moment.source.get("corpus") != "identity":
        raise StatisticsError(too_few(moment.n_tokens, view.d_mlp))
    if not bool(moment.matrix.isfinite().all()):
        raise NumericalError(
            f"the statistics of layer {layer} hold NaN or Inf: load the model in a wider dtype "
            "(dtype='float32') and compute them again."
        )
    return moment


def identity_moment(view: ModelView, layer: int) -> SecondMoment:
    """C = I: every direction of key space counts alike; needs no corpus."""
    view.check_layers([layer])
    m = view.d_mlp
    return SecondMoment(
        layer=layer,
        matrix=torch.eye(m, dtype=torch.float64),
        mean=torch.zeros(m, dtype=torch.float64),
        n_tokens=0,
        fingerprint=view.fingerprint,
        source={"corpus": "identity"},
        reservoir=torch.zeros(m, 0),
    )


def import_npz(path: str | os.PathLike[str], view: ModelView, layer: int) -> SecondMoment:
    """Read statistics that ROME or MEMIT published or computed.

    Args:
        path: a .npz with ``mom2.mom2`` (the *sum* of k kᵀ) and ``mom2.count``, as their running
            statistics save it, or with the mean as ``C`` (and its ``count`` if known).
        view: the model; that the file belongs to it cannot be checked beyond its size.
        layer: the block.

    Raises:
        DataError: if the file is missing, damaged or has other fields.
        StatisticsError: if its size does not fit or its tokens are too few.
    """
    path = Path(path)
    view.check_layers([layer])
    matrix, count = _read_npz(path)
    moment = SecondMoment(
        layer=layer,
        matrix=matrix,
        mean=torch.full((matrix.shape[0],), math.nan, dtype=torch.float64),
        n_tokens=view.d_mlp if count is None else count,
        fingerprint=view.fingerprint,
        source={"corpus": f"imported from {path.name}", "count": count},
        reservoir=torch.zeros(matrix.shape[0], 0),
    )
    return require(moment, view, layer)


def too_few(n: int, m: int) -> str:
    """The sentence that says so, and what to do."""
    return (
        f"too few tokens: {n} keys cannot determine a {m} × {m} matrix (its rank is at most {n}). "
        f"Give a larger corpus or corpus='self', with n_tokens of {10 * m:,} or more; "
        "identity_moment(view, layer) needs none."
    )


def _condition(moment: SecondMoment) -> float:
    """Largest over smallest eigenvalue."""
    if moment.d_mlp <= EXACT_SPECTRUM:
        values = torch.linalg.eigvalsh(moment.matrix)
        return float(values[-1] / values[0]) if values[0] > 0 else math.inf
    start = torch.ones(moment.d_mlp, 1, dtype=torch.float64)
    return _growth(lambda x: moment.matrix @ x, start) * _growth(moment.factor.solve, start)


def _growth(apply: Callable[[Tensor], Tensor], x: Tensor, steps: int = 100) -> float:
    """Largest eigenvalue of a positive definite operator, by power iterations."""
    size = 0.0
    for _ in range(steps):
        x = apply(x / x.norm())
        size = float(x.norm())
    return size


def _read_npz(path: Path) -> tuple[Float[Tensor, "m m"], int | None]:
    if not path.is_file():
        raise DataError(f"there is no statistics file at {path}: check the path.")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
            fields = {k: data[k] for k in ("mom2.mom2", "mom2.count", "C", "count") if k in data}
    except (OSError, ValueError, EOFError, BadZipFile) as err:
        raise DataError(f"{path} is damaged or no .npz file ({err}): get it again.") from err
    raw, count = fields.get("C"), fields.get("count")
    if "mom2.mom2" in fields and "mom2.count" in fields:
        count = fields["mom2.count"]
        raw = fields["mom2.mom2"].astype(np.float64) / max(int(count), 1)
    if raw is None or raw.ndim != 2 or raw.shape[0] != raw.shape[1]:
        raise DataError(
            f"{path} holds no second moment: it needs a square mom2.mom2 with mom2.count, or C."
        )
    matrix = torch.from_numpy(raw.astype(np.float64))
    return (matrix + matrix.T) / 2, None if count is None else int(count)
