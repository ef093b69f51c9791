"""EMMET: a whole batch under equality constraints (Gupta et al., arXiv 2403.14236).

Keep the corpus still, write every averaged key exactly: ``X = C⁻¹K (KᵀC⁻¹K)⁻¹``. One request is
ROME's formula; constraints softened with ``alpha > 0`` are algebraically MEMIT with
``λ = alpha · scale`` (spec locate-then-edit 2.4), and this editor says so in its report.

Departures from the published code: equality (``alpha = 0``) is the default at every batch size; the
published 0.1 is in the presets ``repo`` and ``paper``. C is factored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.editors.locate.base import LocateEditor, deltas_of, derived, keys_of, report_of
from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.history import grown_factor
from workbench.editors.locate.solvers import equality, equality_after
from workbench.editors.locate.sweep import insertion_sweep
from workbench.editors.locate.targets import Targets
from workbench.editors.presets import TINY_TEXT, Preset, options_for
from workbench.edits import Delta
from workbench.errors import NumericalError, OptionError
from workbench.facts import EditRequest
from workbench.linalg import Factor, cholesky
from workbench.model import ModelView
from workbench.stats import SecondMoment

__all__ = ["EMMET"]


@dataclass(frozen=True, kw_only=True)
class EMMET(LocateEditor):
    """Equality-constrained mass editing.

    Args:
        alpha: added to the diagonal of ``Kᵀ(sC)⁻¹K``; 0 means exact equality.
        scale: ``s``, weight of the statistics; matters with ``alpha > 0`` only.
        ridge_norm: added to the diagonal of ``sC`` (``update_norm_lambda``).
        accumulate: also keep still what the edits on the stack wrote (their keys join ``sC``).

    Raises:
        NumericalError: for an infeasible batch (more facts than ``d_mlp``, or nearly equal keys)
            with ``alpha = 0``; names the ``alpha`` to pass.
    """

    clamp: float = 0.75
    alpha: float = 0.0
    scale: float = 1.0
    ridge_norm: float = 0.0
    accumulate: bool = False

    reference: ClassVar[str] = "EMMET"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        for option in ("alpha", "ridge_norm"):
            if getattr(self, option) < 0:
                raise OptionError(f"EMMET: {option}={getattr(self, option)} must not be negative.")
        if not self.scale > 0:
            raise OptionError(f"EMMET: scale={self.scale} must be above 0.")

    @property
    def equals_memit(self) -> float | None:
        """The λ of the MEMIT that computes the same update, None under equality constraints."""
        plain = self.ridge_norm == 0 and not self.accumulate
        return self.alpha * self.scale if self.alpha > 0 and plain else None

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Delta], dict[str, Any]]:
        if self.alpha == 0 and len(requests) > view.d_mlp:
            raise NumericalError(
                f"EMMET: {len(requests)} facts cannot all be written exactly in d_mlp="
                f"{view.d_mlp} dimensions: pass alpha=0.1 (soft, equal to MEMIT with "
                "lam = alpha · scale) or use smaller batches."
            )
        return super()._compute(view, requests, **given)

    def _write(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        texts: Contexts,
        moments: Mapping[int, SecondMoment],
        targets: Targets,
    ) -> tuple[list[Delta], dict[str, Any]]:
        def solve(layer: int, keys: Tensor) -> Tensor:
            factor, scale = self._factor(view, moments[layer])
            if self.accumulate:
                grown = grown_factor(view, layer, factor, scale)
                return equality_after(grown, keys, alpha=self.alpha)
            return equality(factor, keys, scale=scale, alpha=self.alpha)

        writes = insertion_sweep(view, requests, texts, self.layers, targets.z, solve)
        report = report_of(targets, writes, moments, None)
        lam = self.equals_memit
        report["solver"] = [
            {
                "layer": w.layer,
                "constraints": "equality" if self.alpha == 0 else "soft",
                "same_as": None if lam is None else f"MEMIT(lam={lam:g})",
            }
            for w in writes
        ]
        return deltas_of(view, writes), {"keys": keys_of(view, writes), "report": report}

    def _factor(self, view: ModelView, moment: SecondMoment) -> tuple[Factor, float]:
        """A factor and its weight; the one with a ridge is made once a view."""
        if self.ridge_norm == 0:
            return moment.factor, self.scale
        weights = (self.scale, self.ridge_norm)
        return derived(view, "ridged", moment, weights, lambda: self._ridged(moment)), 1.0

    def _ridged(self, moment: SecondMoment) -> Factor:
        c = moment.matrix.to(torch.float64)
        eye = torch.eye(c.shape[0], dtype=c.dtype, device=c.device)
        return cholesky(self.scale * c + self.ridge_norm * eye)

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: calibrated, published, or a rule of thumb for unknown models."""
        options = options_for(PRESETS, view, name, "EMMET", 1)
        return cls(**(options | overrides))


_REPO = {
    "gpt2-xl": {"layers": (17,), "steps": 20, "scale": 1000.0, "alpha": 0.1},
    "gpt-j-6b": {"layers": (5,), "steps": 25, "scale": 1.0, "alpha": 0.1},
    "llama-2-7b": {
        "layers": (5,),
        "steps": 25,
        "weight_decay": 1e-3,
        "clamp": 4.0,
        "scale": 1.0,
        "alpha": 0.1,
    },
}

PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        model: Preset(options, "scalable-model-editing/unified-model-editing hparams")
        for model, options in _REPO.items()
    },
    "default": {
        "tiny": Preset(
            {"layers": (0,), "steps": 25, "clamp": 1.25, "alpha": 100.0, **TINY_TEXT},
            "as MEMIT: exact equality harms neighbors in the tiny world",
        ),
        "smollm2-135m": Preset(
            {"layers": (5, 6, 7, 8), "steps": 25},
            "tried on CounterFact records 100-127, LOG.md",
        ),
        "gpt2": Preset({"layers": (5,)}, "rule for 12 layers, spec 3.2"),
        **{
            model: Preset({**options, "alpha": 0.0}, "published layers, equality constraints")
            for model, options in _REPO.items()
        },
    },
}
