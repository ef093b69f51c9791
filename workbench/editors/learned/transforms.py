"""MEND's networks: a gradient's factors in, better factors out.

A network sees one pair ``(x, delta)`` at a time (arXiv 2110.11309, section 3.1 and equation 5; spec
memory-and-meta 4.2). It standardizes both with what it saw in training, passes them joined through
two low-rank layers with a residual, and splits them again. Matrices of one shape share a network
and differ by the scale and shift of each layer. Where everything starts, the network is the
identity.

Departures from the released code (eric-mitchell/mend @e04fdb9): rows of all matrices of a shape
enter the running statistics together, before any of them is standardized; the statistics are
merged by batches (Chan) in float64 and are kept with the weights, so that resumed training goes on
with them; the beginning of ``v`` is Xavier's unless ``start="normal"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.errors import NumericalError, OptionError, did_you_mean

__all__ = ["FACTORS", "STARTS", "Normalizer", "Shape", "Transform"]

#: Which factor is transformed: both in one network, both in two, or one of them alone.
FACTORS = ("both", "apart", "x", "delta", "smaller")
#: How ``v`` begins: N(0, 1) as released, or Xavier's as in the paper.
STARTS = ("xavier", "normal")
EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a network looks like.

    Args:
        rank: of each layer; the joined size where that is smaller.
        n_layers: layers, two in the paper.
        norm: standardize what comes in.
        identity: a residual around each layer.
        factors: one of :data:`FACTORS`.
        start: one of :data:`STARTS`.
        scale_last: scale and shift what was rectified, as MALMEN does, instead of what will be.
    """

    rank: int = 1920
    n_layers: int = 2
    norm: bool = True
    identity: bool = True
    factors: str = "both"
    start: str = "xavier"
    scale_last: bool = False

    def __post_init__(self) -> None:
        for name, known in (("factors", FACTORS), ("start", STARTS)):
            value = getattr(self, name)
            if value not in known:
                raise OptionError(f"{name}={value!r} is unknown." + did_you_mean(value, known))
        for name in ("rank", "n_layers"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} must be at least 1.")


class Normalizer(nn.Module):
    """Mean and deviation of every feature over all rows of training.

    Attributes:
        count: ``[1]`` rows seen.
        mean, squares: ``[d]`` mean, and sum of squared distances from it.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(d, dtype=torch.float64))

    @torch.no_grad()
    def see(self, rows: Float[Tensor, "n d"]) -> None:
        """Take in rows; any division into batches gives the same statistics."""
        if not len(rows):
            return
        rows = rows.to(self.mean)
        n, mean = len(rows), rows.mean(0)
        total = self.count + n
        gap = mean - self.mean
        self.squares += (rows - mean).square().sum(0) + gap.square() * self.count * n / total
        self.mean += gap * n / total
        self.count.copy_(total)

    def deviation(self) -> Float[Tensor, " d"]:
        """Unbiased.

        Raises:
            NumericalError: before two rows were seen.
        """
        if self.count < 2:
            raise NumericalError(
                "the editor has seen no gradients to standardize by: train it, or take norm=False."
            )
        return (self.squares / (self.count - 1)).sqrt()

    def forward(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Standardized rows."""
        mean, deviation = self.mean.to(rows), self.deviation().to(rows)
        return (rows - mean) / (deviation + EPSILON)


class Layer(nn.Module):
    """``z + max(0, scale · (U V z + b) + shift)``, scale and shift by matrix.

    The rectifier is a clamp: unlike ``relu`` it lets the gradient through at zero, where everything
    begins.
    """

    def __init__(self, d: int, n_modes: int, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(shape.rank, d)
        self.residual, self.scale_last = shape.identity, shape.scale_last
        u, v = torch.zeros(d, rank), torch.randn(rank, d, generator=generator)
        if shape.start == "xavier":
            v *= math.sqrt(2 / (d + rank))
        if not shape.identity:
            u = torch.randn(d, rank, generator=generator) * math.sqrt(2 / (d + rank))
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)
        self.bias = nn.Parameter(torch.zeros(d))
        self.scale = nn.Parameter(torch.ones(n_modes, d))
        self.shift = nn.Parameter(torch.zeros(n_modes, d))

    def forward(self, z: Float[Tensor, "n d"], mode: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        inner = z @ self.v.T @ self.u.T + self.bias
        scale, shift = self.scale[mode], self.shift[mode]
        if self.scale_last:
            out = scale * inner.clamp(min=0) + shift
        else:
            out = (scale * inner + shift).clamp(min=0)
        return z + out if self.residual else out


class Transform(nn.Module):
    """The network of all matrices of one shape.

    Args:
        d_in, d_out: the shape.
        n_modes: matrices that share it.
        shape: what it looks like.
        generator: of the beginning.
    """

    def __init__(
        self, d_in: int, d_out: int, n_modes: int, shape: Shape, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.d_in, self.shape = d_in, shape
        self.x_norm, self.delta_norm = Normalizer(d_in), Normalizer(d_out)
        parts = {"both": (d_in + d_out,), "apart": (d_in, d_out), "x": (d_in,), "delta": (d_out,)}
        self.factors = shape.factors
        if shape.factors == "smaller":
            self.factors = "x" if d_in <= d_out else "delta"
        self.parts = nn.ModuleList(
            nn.ModuleList(Layer(d, n_modes, shape, generator) for _ in range(shape.n_layers))
            for d in parts[self.factors]
        )

    def forward(
        self, x: Float[Tensor, "n d_in"], delta: Float[Tensor, "n d_out"], mode: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Transformed factors; in training mode the statistics take the rows in first.

        Args:
            x, delta: rows of any of the matrices.
            mode: which matrix a row belongs to.
        """
        if self.shape.norm:
            if self.training:
                self.x_norm.see(x)
                self.delta_norm.see(delta)
            x, delta = self.x_norm(x), self.delta_norm(delta)
        if self.factors == "both":
            joined = _through(self.parts[0], torch.cat([x, delta], 1), mode)
            return joined[:, : self.d_in], joined[:, self.d_in :]
        if self.factors == "apart":
            return _through(self.parts[0], x, mode), _through(self.parts[1], delta, mode)
        if self.factors == "x":
            return _through(self.parts[0], x, mode), delta
        return x, _through(self.parts[0], delta, mode)


def _through(layers: Sequence[nn.Module] | nn.Module, z: Tensor, mode: Tensor) -> Tensor:
    for layer in layers:  # type: ignore[union-attr]
        z = layer(z, mode)
    return z
