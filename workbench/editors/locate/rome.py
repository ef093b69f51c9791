"""ROME: one fact, one rank-one update (Meng et al., arXiv 2202.05262).

Three variants differ in which key stands where (spec locate-then-edit 2.2):

- ``r-rome`` (default; Gupta et al., arXiv 2403.07175): the template mean everywhere.
- ``rome``: as published; direction from the template mean, constraint on the bare prompt's key.
  Its step is 1/τ of r-rome's, τ = (k_bareᵀu)/(k̄ᵀu), and explodes where τ is near 0.
- ``p-rome``: the bare prompt's key everywhere.

Departures from the published code: float64 solves (R7), seeded templates (R6), braces in templates
escaped, statistics in tokens rather than documents (R4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.edits import Delta, WeightEdit
from workbench.editors.base import store
from workbench.editors.locate.base import (
    LocateEditor,
    _one_of,
    _round,
    report_of,
    statistics_for,
    summarize,
)
from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.solvers import rome_direction
from workbench.editors.locate.sweep import insertion_sweep, subject_activations
from workbench.editors.locate.targets import optimize_targets
from workbench.editors.presets import Preset, find, middle_layers
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.progress import track
from workbench.stats import SecondMoment

__all__ = ["ROME", "rank_one"]

VARIANTS = ("r-rome", "rome", "p-rome")


@dataclass(frozen=True, kw_only=True)
class ROME(LocateEditor):
    """Rank-one model editing; several requests are written one after another.

    Args:
        layers: usually one. With several, the residual is spread over them and each request is
            written with MEMIT's keys and targets, as in the unified implementation.
        variant: ``r-rome``, ``rome`` or ``p-rome``.

    Example:
        >>> edit = wb.ROME.preset(view).edit(view, [req])
        >>> view.push(edit)
    """

    contexts: str = "rome"
    variant: str = "r-rome"

    reference: ClassVar[str] = "ROME"
    requires: ClassVar[tuple[str, ...]] = ("linear", "readout")

    def unsupported(self, view: ModelView) -> str | None:
        reason = super().unsupported(view)
        if reason is None and len(self.layers) > 1 and not view.capabilities.additive:
            return (
                f"over several layers it needs the capability 'additive', but "
                f"{view.capabilities.reasons['additive']}. Use a single layer."
            )
        return reason

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        _one_of("ROME", "variant", self.variant, VARIANTS)

    def _compute(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        *,
        statistics: Mapping[int, SecondMoment] | None = None,
        **given: Any,
    ) -> tuple[list[Delta], dict[str, Any]]:
        moments = statistics_for(self, view, statistics)
        contexts = self._contexts(view)
        one = self._one_layer if len(self.layers) == 1 else self._spread
        written: list[_Written] = []
        base, parents = view.fingerprint, tuple(e.id for e in view.stack)
        for request in track(requests, "facts") if len(requests) > 1 else requests:
            so_far = WeightEdit(tuple(_joined(view, written)), (), "ROME", {}, base, parents)
            with view.applied(*([so_far] if written else [])):
                written.append(one(view, request, contexts, moments))
        keys = {
            view.weight_name(layer): torch.cat([w.keys[layer] for w in written], dim=1).float()
            for layer in sorted(self.layers)
        }
        report = {
            table: [row | {"request": i} for i, w in enumerate(written) for row in w.report[table]]
            for table in written[0].report
        }
        return _joined(view, written), {"keys": keys, "report": report}

    def _one_layer(
        self,
        view: ModelView,
        request: EditRequest,
        contexts: Contexts,
        moments: Mapping[int, SecondMoment],
    ) -> _Written:
        (layer,) = self.layers
        targets = optimize_targets(
            view, [request], contexts, layer, self.target_options(), part="value"
        )
        keys, values = subject_activations(view, [request], contexts, layer)
        step = rank_one(
            moments[layer],
            keys=keys[0],
            values=values[0],
            v_star=targets.z[:, 0].to(keys),
            weights=contexts.tensor(keys),
            variant=self.variant,
        )
        row = {
            "layer": layer,
            "tau": _round(step.tau),
            "leverage": _round(moments[layer].factor.leverage(step.key[:, None])[0]),
            "update_norm": _round(step.left.norm() * step.right.norm()),
        }
        return _Written(
            {layer: (step.left[:, None], step.right[:, None])},
            {layer: step.key[:, None]},
            {"targets": summarize(targets), "layers": [row]},
        )

    def _spread(
        self,
        view: ModelView,
        request: EditRequest,
        contexts: Contexts,
        moments: Mapping[int, SecondMoment],
    ) -> _Written:
        targets = optimize_targets(
            view, [request], contexts, max(self.layers), self.target_options()
        )

        def solve(layer: int, keys: Tensor) -> Tensor:
            return rome_direction(moments[layer].factor, keys[:, 0])[:, None]

        writes = insertion_sweep(view, [request], contexts, self.layers, targets.z, solve)
        return _Written(
            {w.layer: (w.residual, w.x) for w in writes},
            {w.layer: w.keys for w in writes},
            report_of(targets, writes, moments, None),
        )

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: calibrated, published, or a rule of thumb for unknown models."""
        row = find(PRESETS, view, name, "ROME")
        options: dict[str, Any] = dict(row.options) if row else {"layers": middle_layers(view, 1)}
        if name == "repo" or name == "paper":
            options.setdefault("variant", "rome")
        return cls(**(options | overrides))


@dataclass(frozen=True)
class _Written:
    factors: dict[int, tuple[Tensor, Tensor]]
    keys: dict[int, Tensor]
    report: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class RankOne:
    """``D = left rightᵀ``, the key it writes, and τ."""

    left: Tensor
    right: Tensor
    key: Tensor
    tau: float


def rank_one(
    moment: SecondMoment,
    *,
    keys: Tensor,
    values: Tensor,
    v_star: Tensor,
    weights: Tensor,
    variant: str = "r-rome",
) -> RankOne:
    """The closed form of ROME (arXiv 2202.05262, eq. 2) for one request.

    Args:
        moment: key statistics.
        keys: ``[templates, d_mlp]``, the bare prompt first.
        values: ``[templates, d_model]`` outputs of the edited matrix for these keys.
        v_star: ``[d_model]`` target value.
        weights: ``[templates]`` weights of the mean.
        variant: see the module.
    """
    bare_key, mean_key = keys[0], weights @ keys
    u_key = bare_key if variant == "p-rome" else mean_key
    u = moment.factor.solve(u_key[:, None])[:, 0]
    constraint = mean_key if variant == "r-rome" else bare_key
    present = weights @ values if variant == "r-rome" else values[0]
    tau = float((bare_key @ u) / (mean_key @ u))
    left = (v_star - present) / (constraint @ u)
    scale = u.norm()  # any split of the scale is the same update; this one is well balanced
    return RankOne(left * scale, u / scale, constraint, tau)


def _joined(view: ModelView, written: Sequence[_Written]) -> list[Delta]:
    if not written:
        return []
    return [
        store(
            view,
            layer,
            torch.cat([w.factors[layer][0] for w in written], dim=1),
            torch.cat([w.factors[layer][1] for w in written], dim=1),
        )
        for layer in sorted(written[0].factors)
    ]


_EASY = {"steps": 25, "lr": 0.5, "weight_decay": 1e-3, "clamp": 4.0, "corpus": "identity"}

PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        "gpt2-medium": Preset({"layers": (8,), "clamp": 3.0}, "kmeng01/rome hparams"),
        "gpt2-large": Preset({"layers": (12,)}, "kmeng01/rome hparams"),
        "gpt2-xl": Preset({"layers": (17,)}, "kmeng01/rome hparams"),
        "gpt-j-6b": Preset({"layers": (5,)}, "kmeng01/rome hparams"),
        "gpt-neox-20b": Preset({"layers": (15,)}, "kmeng01/memit hparams"),
        **{
            model: Preset({"layers": (5,), **_EASY}, "zjunlp/EasyEdit hparams, C = I")
            for model in ("llama-2-7b", "llama-3-8b", "llama-3.2-3b", "mistral-7b", "qwen2.5-7b")
        },
    },
    "paper": {
        "gpt2-xl": Preset(
            {"layers": (17,), "kl_factor": 100.0, "weight_decay": 1.5e-3, "kl_position": "prompt_end"},
            "arXiv 2202.05262, appendix (layer 18 counted from 1)",
        ),
    },
    "default": {
        "gpt2": Preset({"layers": (5,)}, "rule for 12 layers, spec 3.2"),
        # the statistics that EasyEdit leaves out (C = I) belong to the objective: default keeps them
        **{
            model: Preset(
                {"layers": (5,), "steps": 25, "weight_decay": 1e-3}, "EasyEdit, with statistics"
            )
            for model in ("llama-2-7b", "llama-3-8b", "llama-3.2-3b", "mistral-7b", "qwen2.5-7b")
        },
    },
}
