"""AlphaEdit: updates confined to directions that the corpus hardly uses (Fang et al., 2410.02355).

Per layer ``C = U diag(s) Uᵀ``; Q holds the eigenvectors of small ``s`` and ``P = Q Qᵀ``. With the
keys written before (``K_p``) the update is ``D = R Xᵀ``, ``X = (P(K_p K_pᵀ + K Kᵀ) + L₂I)⁻¹ P K``.
In coordinates of Q this is accumulated least squares with ``A = L₂ I`` (spec locate-then-edit 2.8,
oracle O12): nothing of size ``m × m`` is solved after one eigendecomposition a layer.

Departures from the published code: symmetric eigendecomposition in float64 instead of a float32
SVD (A2); the projector belongs to the statistics it came from and is never read from a fixed file
name (E3); besides the two published thresholds (A1) one on the share of the trace is offered, since
the absolute ones depend on the scale of the keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.locate.base import (
    LocateEditor,
    deltas_of,
    derived,
    keys_of,
    one_of,
    report_of,
    significant,
)
from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.history import folded
from workbench.editors.locate.solvers import ridge_after
from workbench.editors.locate.sweep import insertion_sweep
from workbench.editors.locate.targets import Targets
from workbench.editors.presets import TINY_TEXT, Preset, options_for
from workbench.edits import Delta
from workbench.errors import OptionError
from workbench.facts import EditRequest
from workbench.linalg import Factor, Grown
from workbench.model import ModelView
from workbench.stats import SecondMoment

__all__ = ["AlphaEdit", "NullSpace", "null_space"]

#: ``mean``: eigenvalues of E[k kᵀ] below the threshold (released code). ``sum``: of Σ k kᵀ over the
#: corpus (paper). ``trace``: the smallest ones that together hold this share of the trace.
RULES = ("mean", "sum", "trace")


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(LocateEditor):
    """Null-space constrained editing.

    Args:
        threshold: eigenvalues below belong to the null space; a share for ``trace``.
        threshold_on: what the threshold is compared with: ``mean``, ``sum`` or ``trace``.
        l2: ridge on the update.
        accumulate: keep still what the edits on the stack wrote.

    Example:
        >>> edit = wb.AlphaEdit.preset(view).edit(view, requests)
        >>> edit.report["null_space"]
    """

    clamp: float = 0.75
    threshold: float = 2e-2
    threshold_on: str = "mean"
    l2: float = 10.0
    accumulate: bool = True

    reference: ClassVar[str] = "AlphaEdit"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        one_of("AlphaEdit", "threshold_on", self.threshold_on, RULES)
        for option in ("threshold", "l2"):
            if not getattr(self, option) > 0:
                raise OptionError(f"AlphaEdit: {option}={getattr(self, option)} must be above 0.")
        if self.threshold_on == "trace" and self.threshold >= 1:
            raise OptionError(
                f"AlphaEdit: threshold={self.threshold} is a share of the trace with "
                "threshold_on='trace': it must be below 1."
            )

    def _write(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        texts: Contexts,
        moments: Mapping[int, SecondMoment],
        targets: Targets,
    ) -> tuple[list[Delta], dict[str, Any]]:
        spaces = {x: self.null_space(view, moments[x]) for x in self.layers}

        def solve(layer: int, keys: Tensor) -> Tensor:
            q = spaces[layer].basis
            grown = self._grown(view, layer, q)
            return q @ ridge_after(grown, q.T @ keys.to(q))

        writes = insertion_sweep(view, requests, texts, self.layers, targets.z, solve)
        report = report_of(targets, writes, moments, None)
        report["null_space"] = [{"layer": x} | s.describe() for x, s in sorted(spaces.items())]
        return deltas_of(view, writes), {"keys": keys_of(view, writes), "report": report}

    def null_space(self, view: ModelView, moment: SecondMoment) -> NullSpace:
        """The directions an update of this layer may use, made once a view and threshold.

        Raises:
            OptionError: if no direction is left.
        """
        limits = (self.threshold, self.threshold_on)
        return derived(view, "null_spaces", moment, limits, lambda: null_space(moment, *limits))

    def _grown(self, view: ModelView, layer: int, q: Float[Tensor, "m r"]) -> Grown:
        def start() -> Grown:
            eye = torch.eye(q.shape[1], dtype=q.dtype, device=q.device)
            return Grown(Factor(eye), self.l2)

        if not self.accumulate:
            return start()
        return folded(view, layer, ("reduced", self.l2), q, start, lambda k: q.T @ k.to(q))

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: calibrated, published, or a rule of thumb for unknown models."""
        options = options_for(PRESETS, view, name, "AlphaEdit", 5)
        return cls(**(options | overrides))


@dataclass(frozen=True)
class NullSpace:
    """Directions of key space that the corpus hardly uses.

    Attributes:
        basis: ``Q``, ``[d_mlp, r]`` orthonormal, float64.
        energy: share of the trace of C that lies in them.
    """

    basis: Float[Tensor, "m r"]
    energy: float

    def describe(self) -> dict[str, float]:
        """Dimension, its share of ``d_mlp`` and the energy."""
        m, r = self.basis.shape
        return {"rank": r, "share": significant(r / m), "energy": significant(self.energy)}


def null_space(moment: SecondMoment, threshold: float, rule: str = "mean") -> NullSpace:
    """Eigenvectors of the second moment with small eigenvalues.

    Args:
        moment: of one layer.
        threshold: see ``rule``.
        rule: one of :data:`RULES`.

    Raises:
        OptionError: if none is below the threshold.
    """
    values, vectors = torch.linalg.eigh(moment.matrix.to(torch.float64))
    total = values.sum()
    if rule == "trace":
        r = int((values.clamp_min(0).cumsum(0) <= threshold * total).sum())
    else:
        r = int((values * (moment.n_tokens if rule == "sum" else 1) < threshold).sum())
    if r == 0:
        raise OptionError(
            f"AlphaEdit: no eigenvalue of layer {moment.layer} is below threshold={threshold} "
            f"({rule}; the smallest is {float(values[0]):.3g}, of the mean moment): there is no "
            "null space. Raise it, or use threshold_on='trace' with a share such as 0.02."
        )
    return NullSpace(vectors[:, :r].contiguous(), float(values[:r].sum() / total))


_XL = {"layers": (13, 14, 15, 16, 17), "steps": 20}
_J = {"layers": (3, 4, 5, 6, 7, 8), "steps": 25}
_LLAMA3 = {"layers": (4, 5, 6, 7, 8), "steps": 25, "lr": 0.1}
_QWEN = {"layers": (4, 5, 6, 7, 8), "steps": 25, "weight_decay": 1e-3, "clamp": 4.0, "l2": 1.0}
_RELEASED = {"gpt2-xl": _XL, "gpt-j-6b": _J, "llama-3-8b": _LLAMA3}

PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        **{
            model: Preset(options, "jianghoucheng/AlphaEdit hparams")
            for model, options in _RELEASED.items()
        },
        "qwen2.5-7b": Preset(_QWEN, "zjunlp/EasyEdit hparams"),
    },
    "paper": {
        model: Preset(
            {**options, "threshold": 1e-2, "threshold_on": "sum", "l2": 1.0},
            "arXiv 2410.02355, section 3.2 and eq. 14",
        )
        for model, options in _RELEASED.items()
    },
    "default": {
        "tiny": Preset(
            {
                "layers": (0,),
                "steps": 25,
                "clamp": 1.25,
                "threshold": 0.2,
                "threshold_on": "trace",
                "l2": 1.0,
                **TINY_TEXT,
            },
            "tried on the tiny world",
        ),
        "smollm2-135m": Preset(
            {"layers": (5, 6, 7, 8), "steps": 25, "l2": 1.0},
            "layers of MEMIT; calibrate prefers 3-6, LOG.md says why it is not followed",
        ),
    },
}
