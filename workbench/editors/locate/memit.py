"""MEMIT: many facts in one batch, spread over several layers (Meng et al., arXiv 2210.07229).

Per layer ``D (λC + K Kᵀ) = R Kᵀ``: least squares between keeping the corpus and writing residuals.
With ``accumulate`` the keys of every edit on the stack join the left side (``K_p K_pᵀ``), which
makes sequential batches equal to one joint batch (spec locate-then-edit 1.7, 2.5).

Departures from the published code: targets are trained together instead of one by one (equal to
1e-9, tested), insertion runs without writing weights, solves are Cholesky in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from workbench.editors.locate.base import LocateEditor, deltas_of, keys_of, report_of
from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.history import grown_factor
from workbench.editors.locate.shrinking import largest_relative
from workbench.editors.locate.solvers import predicted_closure, ridge, ridge_after
from workbench.editors.locate.sweep import insertion_sweep
from workbench.editors.locate.targets import Targets
from workbench.editors.presets import TINY_TEXT, Preset, options_for
from workbench.edits import Delta
from workbench.errors import OptionError
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.stats import SecondMoment

__all__ = ["MEMIT"]


@dataclass(frozen=True, kw_only=True)
class MEMIT(LocateEditor):
    """Mass editing of a transformer's memory.

    Args:
        lam: λ, how many average corpus tokens weigh as much as one edit (``mom2_update_weight``).
            None: chosen so that the median edit of the batch closes ``closure`` of its residual.
        closure: used with ``lam=None`` only.
        accumulate: take the keys of the edits on the stack into account.
        rect: keep only this share of a layer's update, the entries that are largest relative to
            the weight (RECT, Gu et al., arXiv 2401.04700); None keeps all of it. The published
            share is 0.4.

    Example:
        >>> edit = wb.MEMIT.preset(view).edit(view, requests)
    """

    clamp: float = 0.75
    lam: float | None = None
    closure: float = 0.5
    accumulate: bool = False
    rect: float | None = None

    reference: ClassVar[str] = "MEMIT"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        if self.lam is not None and not self.lam > 0:
            raise OptionError(f"MEMIT: lam={self.lam} must be above 0.")
        if not 0 < self.closure < 1:
            raise OptionError(f"MEMIT: closure={self.closure} must lie between 0 and 1.")
        if self.rect is not None and not 0 < self.rect <= 1:
            raise OptionError(f"MEMIT: rect={self.rect} must lie above 0 and be at most 1.")

    def _write(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        texts: Contexts,
        moments: Mapping[int, SecondMoment],
        targets: Targets,
    ) -> tuple[list[Delta], dict[str, Any]]:
        lams: dict[int, float] = {}

        def solve(layer: int, keys: Tensor) -> Tensor:
            lams[layer] = self._held_lam(view, layer) or self._lam(moments[layer], keys)
            factor = moments[layer].factor
            if self.accumulate:
                return ridge_after(grown_factor(view, layer, factor, lams[layer]), keys)
            return ridge(factor, keys, lams[layer])

        shrink = None if self.rect is None else _rectified(view, self.rect)
        writes = insertion_sweep(
            view, requests, texts, self.layers, targets.z, solve, shrink=shrink
        )
        lam = max(lams.values())
        report = report_of(targets, writes, moments, lambda ell: predicted_closure(ell, lam))
        report["solver"] = [{"layer": x, "lam": v} for x, v in lams.items()]
        return deltas_of(view, writes), {"keys": keys_of(view, writes), "report": report}

    def _held_lam(self, view: ModelView, layer: int) -> float | None:
        """An accumulating stream keeps the λ that its first batch chose."""
        if self.lam is not None or not self.accumulate:
            return None
        rows = (
            row
            for edit in view.stack
            if edit.editor == "MEMIT" and edit.config == self.config()
            for row in edit.report.get("solver", ())
        )
        return next((float(row["lam"]) for row in rows if row["layer"] == layer), None)

    def _lam(self, moment: SecondMoment, keys: Tensor) -> float:
        if self.lam is not None:
            return self.lam
        leverage = float(moment.factor.leverage(keys).median())
        return leverage * (1 - self.closure) / self.closure

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: calibrated, published, or a rule of thumb for unknown models."""
        options = options_for(PRESETS, view, name, "MEMIT", 5)
        return cls(**(options | overrides))


def _rectified(view: ModelView, share: float) -> Callable[[int, Tensor], Tensor]:
    return lambda layer, change: largest_relative(change, view.weight(layer), share)


_XL = {"layers": (13, 14, 15, 16, 17), "steps": 20, "lam": 20_000.0}
_J = {"layers": (3, 4, 5, 6, 7, 8), "steps": 25, "lam": 15_000.0}
_LLAMA3 = {"layers": (4, 5, 6, 7, 8), "steps": 25, "lr": 0.1, "lam": 15_000.0}
_EASY = {
    "layers": (4, 5, 6, 7, 8),
    "steps": 25,
    "weight_decay": 1e-3,
    "clamp": 4.0,
    "lam": 15_000.0,
}

PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        "gpt2-xl": Preset(_XL, "kmeng01/memit hparams"),
        "gpt-j-6b": Preset(_J, "kmeng01/memit hparams"),
        "llama-3-8b": Preset(_LLAMA3, "jianghoucheng/NSE hparams"),
        **{
            model: Preset(_EASY, "zjunlp/EasyEdit hparams")
            for model in ("llama-2-7b", "mistral-7b", "qwen2.5-7b", "llama-3.2-3b")
        },
    },
    "paper": {
        "gpt-neox-20b": Preset(
            {"layers": (6, 7, 8, 9, 10), "steps": 20, "clamp": 0.3, "lam": 20_000.0},
            "arXiv 2210.07229, appendix",
        ),
    },
    "default": {
        "tiny": Preset(
            {"layers": (0,), "steps": 25, "clamp": 1.25, "lam": 100.0, **TINY_TEXT},
            "tried on the tiny world, data/README.md",
        ),
        "smollm2-135m": Preset(
            {"layers": (5, 6, 7, 8), "steps": 25, "lam": 200.0},
            "tried on CounterFact records 100-127, LOG.md",
        ),
        "gpt2": Preset({"layers": (3, 4, 5, 6, 7)}, "rule for 12 layers, spec 3.2"),
        "gpt2-medium": Preset({"layers": (6, 7, 8, 9, 10)}, "around ROME's layer 8, spec 3.2"),
    },
}
