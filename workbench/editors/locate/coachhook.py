"""CoachHook: batches of edits in a second weight, behind a gate (Li et al., arXiv 2403.05330).

The model's weights stay. Each edited layer gets a hook layer ``dW``: MEMIT's update with the keys
of all batches so far, ``D = R Kᵀ (λC + K_p K_pᵀ + K Kᵀ)⁻¹``, added up over batches; and a threshold
α that decides, token by token, whether the edited output is taken (:mod:`workbench.adapters`; spec
locate-then-edit 2.7). A batch is written in four steps: targets are trained with the gates as they
are; then all gates are opened; layer by layer, from below, a layer is written and its gate put to
work with the old α; at last α is lowered so that every prompt of the batch opens the gate.

Departures from the published code (preset ``repo`` reproduces it): gates look at the real tokens of
the prompt (C1, C2); the score that must open a gate is the subject's, recorded with the lower
layers as they will be at inference, and α keeps a margin below it (C3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.adapters import GATES, GENERATION, Context, HookLayer, as_adapter
from workbench.editors.base import storage_dtype
from workbench.editors.locate.base import (
    LocateEditor,
    deltas_of,
    keys_of,
    one_of,
    report_of,
    unfinished,
    weight_of_corpus,
)
from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.history import grown_factor
from workbench.editors.locate.solvers import predicted_closure, ridge_after
from workbench.editors.locate.sweep import LayerWrite, Sweep, insertion_sweep
from workbench.editors.locate.targets import Targets
from workbench.editors.presets import TINY_TEXT, Preset, options_for
from workbench.edits import Adapter, AdapterEdit, Delta, Edit, WeightEdit
from workbench.errors import OptionError, UnsupportedEditorError
from workbench.facts import EditRequest
from workbench.linalg import Grown
from workbench.model import ModelView
from workbench.progress import track
from workbench.stats import SecondMoment

__all__ = ["CoachHook"]

ALPHA_FROM = ("subject", "prompt")
BARE = Contexts(("{}",), (1.0,))


@dataclass(frozen=True, kw_only=True)
class CoachHook(LocateEditor):
    """Consecutive batch editing with hook layers.

    Args:
        lam: λ (``mom2_update_weight``); None takes ``d_mlp``, as for NSE.
        alpha_z: threshold of a layer that was not edited before.
        gate: ``masked`` or ``reference`` statistics, see :mod:`workbench.adapters`.
        generation: what tokens after the prompt do: ``running`` or ``off``.
        alpha_from: the score that must open a gate: of the ``subject`` token, with lower gates
            at work; or the highest of the ``prompt``, with no gate at work (as released).
        margin: α stays this far below the weakest score of the batch.
        accumulate: keep still what the edits on the stack wrote.
        hooks: False writes the same updates into the weights (accumulated MEMIT, ``wohk``).

    Example:
        >>> edit = wb.CoachHook.preset(view).edit(view, requests)   # an AdapterEdit
        >>> edit.report["alpha"]
    """

    clamp: float = 0.75
    lam: float | None = None
    alpha_z: float = 2.2
    gate: str = "masked"
    generation: str = "running"
    alpha_from: str = "subject"
    margin: float = 1e-3
    accumulate: bool = True
    hooks: bool = True

    reference: ClassVar[str] = "CoachHook"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        one_of("CoachHook", "gate", self.gate, GATES)
        one_of("CoachHook", "generation", self.generation, GENERATION)
        one_of("CoachHook", "alpha_from", self.alpha_from, ALPHA_FROM)
        if self.lam is not None and not self.lam > 0:
            raise OptionError(f"CoachHook: lam={self.lam} must be above 0.")
        if self.margin < 0:
            raise OptionError(f"CoachHook: margin={self.margin} must not be negative.")

    def _write(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        texts: Contexts,
        moments: Mapping[int, SecondMoment],
        targets: Targets,
    ) -> tuple[list[Any], dict[str, Any]]:
        grown = {x: self._grown(view, x, moments[x]) for x in self.layers}
        if not self.hooks:
            writes = insertion_sweep(
                view, requests, texts, self.layers, targets.z,
                lambda layer, keys: ridge_after(grown[layer], keys),
            )  # fmt: skip
            report = self._report(view, targets, writes, moments)
            return list(deltas_of(view, writes)), {"keys": keys_of(view, writes), "report": report}
        before = {x: self._before(view, x) for x in self.layers}
        below = self._below(view)
        with view.as_if(*below, _opened(view, before)):
            sweep = Sweep(view, requests, texts, self.layers, whole=True)
            apart = self.gate == "reference"  # there residuals see another padding than keys
            bare = Sweep(view, requests, BARE, self.layers, whole=True) if apart else sweep
            writes, after = self._insert(sweep, bare, targets.z, grown, before)
        with view.as_if(*below):
            bare = Sweep(view, requests, BARE, self.layers, whole=True)
            after, rows = self._thresholds(bare, after)
        report = self._report(view, targets, writes, moments) | {"alpha": rows}
        pieces = [self._piece(view, w, after[w.layer]) for w in writes]
        return pieces, {"keys": keys_of(view, writes), "report": report}

    def _grown(self, view: ModelView, layer: int, moment: SecondMoment) -> Grown:
        if self.accumulate:
            return grown_factor(view, layer, moment.factor, weight_of_corpus(view, self.lam))
        return Grown(moment.factor, weight_of_corpus(view, self.lam))

    def _below(self, view: ModelView) -> list[Edit]:
        """The stack without hook layers of the edited layers.

        Raises:
            UnsupportedEditorError: if hook layers stand between the edited layers.
        """
        between = [x for x in view.adapters if x > min(self.layers) and x not in self.layers]
        if [x for x in between if x < max(self.layers)]:
            raise UnsupportedEditorError(
                f"CoachHook: layers {between} have hook layers but are not among layers="
                f"{self.layers}: edit them too, or take those edits off the stack."
            )
        lower = {view.weight_name(x) for x in range(min(self.layers))}
        kept: list[Edit] = []
        for edit in view.stack:
            if isinstance(edit, AdapterEdit):
                adapters = tuple(a for a in edit.adapters if a.parameter in lower)
                edit = replace(edit, adapters=adapters)
            kept.append(edit)
        return kept

    def _before(self, view: ModelView, layer: int) -> HookLayer:
        """The hook layer that is there, or one that does nothing yet."""
        dtype, device = storage_dtype(view), view.weight(layer).device
        empty = HookLayer(
            torch.zeros(view.d_model, 0, dtype=dtype, device=device),
            torch.zeros(view.d_mlp, 0, dtype=dtype, device=device),
            self.alpha_z,
        )
        held = view.adapters.get(layer, empty)
        return replace(held, gate=self.gate, generation=self.generation)

    def _insert(
        self,
        sweep: Sweep,
        bare: Sweep,
        z: Tensor,
        grown: Mapping[int, Grown],
        before: Mapping[int, HookLayer],
    ) -> tuple[list[LayerWrite], dict[int, HookLayer]]:
        """Write layer by layer; blocks not written yet run with their gates open.

        Keys come from ``sweep`` and residuals from ``bare``, usually the same one.
        """
        writes, after = [], {}
        for i, layer in enumerate(track(sweep.layers, "insertion")):
            keys = sweep.enter(layer)
            if bare is not sweep:
                bare.enter(layer)
            gap, residual = bare.residual(layer, z, len(sweep.layers) - i)
            x = ridge_after(grown[layer], keys)
            writes.append(LayerWrite(layer, keys, x.to(keys), residual, gap.norm(dim=0)))
            old = before[layer]
            new = old.joined(replace(old, left=residual.to(old.left), right=x.to(old.left)))
            for each in {id(s): s for s in (sweep, bare)}.values():
                each.replace(partial(_closed_again, old, new))
            after[layer] = new
        return writes, after

    def _thresholds(
        self, sweep: Sweep, hooks: dict[int, HookLayer]
    ) -> tuple[dict[int, HookLayer], list[dict[str, Any]]]:
        """Lower each layer's α until every prompt of the batch opens its gate."""
        found, rows = {}, []
        for layer in sweep.layers:
            sweep.enter(layer)
            hook = hooks[layer]
            scores = self._scores(sweep, hook)
            known = scores[scores.isfinite()]
            weakest = float(known.min()) if len(known) else math.inf
            margin = self.margin if self.alpha_from == "subject" else 0.0
            found[layer] = replace(hook, alpha=min(hook.alpha, weakest - margin))
            rows.append(
                {
                    "layer": layer,
                    "alpha_before": hook.alpha,
                    "alpha": found[layer].alpha,
                    "weakest": weakest,
                    "cannot_open": int((~scores.isfinite()).sum()),
                }
            )
            if self.alpha_from == "subject":
                sweep.replace(partial(_gated, found[layer]))
        return found, rows

    def _scores(self, sweep: Sweep, hook: HookLayer) -> Tensor:
        """One score a request."""

        def of_tokens(x: Tensor, mask: Tensor) -> Tensor:
            return _scores(hook, x, mask)

        if self.alpha_from == "subject":
            return sweep.subject_columns(of_tokens)
        return sweep.subject_columns(
            lambda x, mask: of_tokens(x, mask).amax(1, keepdim=True).expand(mask.shape)
        )

    def _piece(self, view: ModelView, write: LayerWrite, hook: HookLayer) -> Adapter:
        """What this batch adds: its own factors, and the threshold from now on."""
        dtype = storage_dtype(view)
        own = replace(hook, left=write.residual.to(dtype), right=write.x.to(dtype))
        return as_adapter(view.weight_name(write.layer), own)

    def _report(
        self,
        view: ModelView,
        targets: Targets,
        writes: list[LayerWrite],
        moments: Mapping[int, SecondMoment],
    ) -> dict[str, Any]:
        lam = weight_of_corpus(view, self.lam)
        report = report_of(targets, writes, moments, lambda ell: predicted_closure(ell, lam))
        report["solver"] = [{"layer": w.layer, "lam": lam} for w in writes]
        return report

    @classmethod
    def preset(
        cls,
        view: ModelView,
        name: str = "default",
        *,
        n_layers: int | None = None,
        **overrides: Any,
    ) -> Self:
        """Options for a model: calibrated, published, or a rule of thumb for unknown models.

        Args:
            view: the model.
            name: ``default``, ``paper`` or ``repo``.
            n_layers: edit the highest so many layers of the preset's list (``--num_layers``).
            overrides: single options to change.

        Raises:
            OptionError: as :meth:`Editor.preset`, or if ``n_layers`` is below 1.
        """
        options = options_for(PRESETS, view, name, "CoachHook", 5) | overrides
        if n_layers is not None:
            if n_layers < 1:
                raise OptionError(f"CoachHook: n_layers={n_layers} must be at least 1.")
            options["layers"] = tuple(sorted(options["layers"]))[-n_layers:]
        return cls(**options)


def _context(mask: Tensor) -> Context:
    return Context(mask, mask)


def _scores(hook: HookLayer, x: Tensor, mask: Tensor) -> Tensor:
    nu = hook.difference(x).norm(dim=-1).to(torch.float64)
    return hook.scores(0, nu, _context(mask))


def _gated(hook: HookLayer, x: Tensor, mask: Tensor) -> Tensor:
    """What a hook layer adds to each token."""
    change = hook.difference(x)
    return hook(0, x, torch.zeros_like(change), _context(mask))


def _closed_again(old: HookLayer, new: HookLayer, x: Tensor, mask: Tensor) -> Tensor:
    """From the old difference at every token to the new one behind its gate."""
    return _gated(new, x, mask) - old.difference(x)


def _opened(view: ModelView, hooks: Mapping[int, HookLayer]) -> WeightEdit:
    """The model with every gate open, as an edit of its weights."""
    deltas = tuple(
        Delta.low_rank(view.weight_name(x), h.left, h.right)
        for x, h in hooks.items()
        if h.left.shape[1]
    )
    return unfinished(view, deltas)


_XL = {"layers": (13, 14, 15, 16, 17), "steps": 20, "lam": 15_000.0}
_J = {"layers": (3, 4, 5, 6, 7, 8), "steps": 25, "lam": 15_000.0}
_AS_RELEASED = {"gate": "reference", "generation": "off", "alpha_from": "prompt", "margin": 0.0}

PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        model: Preset({**options, **_AS_RELEASED}, "Syon-Li/CoachHook command line")
        for model, options in {"gpt2-xl": _XL, "gpt-j-6b": _J}.items()
    },
    "default": {
        "gpt2-xl": Preset(_XL, "Syon-Li/CoachHook command line"),
        "gpt-j-6b": Preset(_J, "Syon-Li/CoachHook command line"),
        "tiny": Preset(
            {"layers": (0,), "steps": 25, "clamp": 1.25, "lam": 100.0, **TINY_TEXT},
            "as MEMIT on the tiny world",
        ),
        "smollm2-135m": Preset(
            {"layers": (5, 6, 7, 8), "steps": 25, "lam": 200.0},
            "as MEMIT; calibrate prefers layers 3-6, LOG.md",
        ),
    },
}
