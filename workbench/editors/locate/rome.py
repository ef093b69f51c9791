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

from workbench.editors.base import storage_dtype, store
from workbench.editors.locate.base import (
    LocateEditor,
    deltas_of,
    keys_of,
    one_of,
    report_of,
    significant,
    statistics_for,
    summarize,
    unfinished,
)
from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.solvers import rome_direction
from workbench.editors.locate.sweep import insertion_sweep, subject_activations
from workbench.editors.locate.targets import Targets, optimize_targets
from workbench.editors.presets import TINY_TEXT, Preset, options_for
from workbench.edits import Delta
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
        one_of("ROME", "variant", self.variant, VARIANTS)

    def _compute(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        *,
        statistics: Mapping[int, SecondMoment] | None = None,
        **given: Any,
    ) -> tuple[list[Delta], dict[str, Any]]:
        """One request after another, each on the model that the earlier ones left."""
        moments = statistics_for(self, view, statistics)
        texts = self._contexts(view)
        deltas: list[Delta] = []
        found: list[dict[str, Any]] = []
        for request in track(requests, "facts") if len(requests) > 1 else requests:
            with view.applied(*([unfinished(view, deltas)] if deltas else [])):
                targets = self._targets(view, [request], texts)
                new, extra = self._write(view, [request], texts, moments, targets)
            deltas = _joined(deltas, new) if deltas else new
            found.append(extra)
        return deltas, _merged(found)

    def _targets(
        self, view: ModelView, requests: Sequence[EditRequest], texts: Contexts
    ) -> Targets:
        if len(self.layers) > 1:
            return super()._targets(view, requests, texts)
        options = self.target_options()
        return optimize_targets(view, requests, texts, self.layers[0], options, part="value")

    def _write(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        texts: Contexts,
        moments: Mapping[int, SecondMoment],
        targets: Targets,
    ) -> tuple[list[Delta], dict[str, Any]]:
        if len(self.layers) > 1:
            return self._spread(view, requests, texts, moments, targets)
        (layer,) = self.layers
        moment = moments[layer]
        keys, values = subject_activations(view, requests, texts, layer)
        step = rank_one(
            moment,
            keys=keys[0],
            values=values[0],
            v_star=targets.z[:, 0].to(keys),
            weights=texts.tensor(keys),
            variant=self.variant,
        )
        row = {
            "layer": layer,
            "request": 0,
            "tau": significant(step.tau),
            "leverage": significant(moment.factor.leverage(step.key[:, None])[0]),
            "update_norm": significant(step.left.norm() * step.right.norm()),
        }
        key = step.key[:, None].to(storage_dtype(view))
        return [store(view, layer, step.left[:, None], step.right[:, None])], {
            "keys": {view.weight_name(layer): key},
            "report": {"targets": summarize(targets), "layers": [row]},
        }

    def _spread(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        texts: Contexts,
        moments: Mapping[int, SecondMoment],
        targets: Targets,
    ) -> tuple[list[Delta], dict[str, Any]]:
        def solve(layer: int, keys: Tensor) -> Tensor:
            return rome_direction(moments[layer].factor, keys[:, 0])[:, None]

        writes = insertion_sweep(view, requests, texts, self.layers, targets.z, solve)
        report = report_of(targets, writes, moments, None)
        return deltas_of(view, writes), {"keys": keys_of(view, writes), "report": report}

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: calibrated, published, or a rule of thumb for unknown models."""
        options = options_for(PRESETS, view, name, "ROME", 1)
        if name == "repo" or name == "paper":
            options.setdefault("variant", "rome")
        return cls(**(options | overrides))


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
    u = moment.factor.solve(u_key[:, None])[:, 0].to(u_key)
    constraint = mean_key if variant == "r-rome" else bare_key
    present = weights @ values if variant == "r-rome" else values[0]
    tau = float((bare_key @ u) / (mean_key @ u))
    left = (v_star - present) / (constraint @ u)
    scale = u.norm()  # any split of the scale is the same update; this one is well balanced
    return RankOne(left * scale, u / scale, constraint, tau)


def _joined(old: Sequence[Delta], new: Sequence[Delta]) -> list[Delta]:
    """Deltas of the same parameters as one, factors side by side."""
    sides = ("left", "right")
    return [
        Delta.low_rank(
            a.parameter, *(torch.cat([a.tensors[s], b.tensors[s]], dim=1) for s in sides)
        )
        for a, b in zip(old, new, strict=True)
    ]


def _merged(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = {
        name: torch.cat([extra["keys"][name] for extra in found], dim=1)
        for name in found[0]["keys"]
    }
    report = {
        table: [row | {"request": i} for i, f in enumerate(found) for row in f["report"][table]]
        for table in found[0]["report"]
    }
    return {"keys": keys, "report": report}


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
            {
                "layers": (17,),
                "kl_factor": 100.0,
                "weight_decay": 1.5e-3,
                "kl_position": "prompt_end",
            },
            "arXiv 2202.05262, appendix (layer 18 counted from 1)",
        ),
    },
    "default": {
        "tiny": Preset(
            {"layers": (0,), "contexts": "memit", "clamp": 1.5, **TINY_TEXT},
            "layer sweep on the tiny world: only the first layer knows people",
        ),
        "smollm2-135m": Preset(
            {"layers": (3,), "contexts": "memit"},
            "data/results/calibration_smollm2-135m_ROME; CounterFact records 100-127, LOG.md",
        ),
        "gpt2": Preset({"layers": (5,)}, "rule for 12 layers, spec 3.2"),
        # the statistics that EasyEdit leaves out (C = I) belong to the objective: kept here
        **{
            model: Preset(
                {"layers": (5,), "steps": 25, "weight_decay": 1e-3}, "EasyEdit, with statistics"
            )
            for model in ("llama-2-7b", "llama-3-8b", "llama-3.2-3b", "mistral-7b", "qwen2.5-7b")
        },
    },
}
