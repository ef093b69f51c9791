"""What a run watches beside its own facts: weights, hidden states, texts, tasks, time, memory.

Every metric is compared with the model as it was when the run began. Definitions: arXiv 2401.07453
(weight distance, downstream tasks), 2410.04045 (hidden shift at the last edited layer).
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench import datasets
from workbench.edits import Edit
from workbench.errors import OptionError
from workbench.experiment.schedule import CHECKPOINTS
from workbench.facts import EditCase, Probe
from workbench.forgetting import wilson
from workbench.layouts import DECODER
from workbench.metrics import Reference, downstream, reference, score, text_likelihoods
from workbench.metrics.forward import BATCH_TOKENS, batches
from workbench.model import ModelView
from workbench.replay import run_rows
from workbench.tokens import encode_request
from workbench.trace import Site, trace

__all__ = ["METRICS", "Material", "Moment", "Watcher", "default_watch", "material_for", "memory"]

METRICS = ("weights", "hidden_shift", "perplexity", "upstream", "downstream", "memory", "seconds")
#: Facts that stand for what the model knew, and for its language.
N_FACTS = 200

TASK_SCORES = ("accuracy", "f1", "generated_accuracy", "generated_f1")

Row = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """What the metrics are taken on.

    Args:
        texts: whose perplexity is followed.
        upstream: facts that the run does not edit, each with one probe of kind ``upstream``.
        downstream: arguments of ``workbench.downstream``, such as ``{"tasks": ("sst2",)}``.
    """

    texts: tuple[str, ...] = ()
    upstream: tuple[EditCase, ...] = ()
    downstream: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """Where the run stands: edits held, the newest edit, what it took in seconds, whether it ends
    here."""

    step: int
    edit: Edit | None = None
    facts: int = 0
    seconds: float = 0.0
    measuring: float = 0.0
    last: bool = False


def material_for(
    view: ModelView,
    cases: Sequence[EditCase],
    texts: Iterable[str] | None,
    upstream: Sequence[EditCase] | None,
    downstream: Mapping[str, Any] | None,
) -> Material:
    """Given material, or facts of the shipped sets whose subjects the run does not edit."""
    facts = _other_facts(view, cases) if upstream is None or texts is None else []
    asked = facts if upstream is None else list(upstream)
    lines = [f"{c.request.text} {c.request.target_true}." for c in facts]
    chosen = lines if texts is None else [texts] if isinstance(texts, str) else list(texts)
    return Material(tuple(chosen), tuple(map(_known, asked)), dict(downstream or {}))


def default_watch(view: ModelView, material: Material) -> dict[str, Any]:
    """Cheap metrics after every batch, others at the checkpoints, downstream tasks if asked for."""
    watch: dict[str, Any] = {"weights": 1, "memory": 1, "seconds": 1}
    if view.kind == DECODER and material.texts:
        watch["perplexity"] = CHECKPOINTS
    if view.kind == DECODER and material.upstream:
        watch |= {"upstream": CHECKPOINTS, "hidden_shift": CHECKPOINTS}
    if material.downstream:
        watch["downstream"] = CHECKPOINTS
    return watch


class Watcher:
    """Measures the metrics of a run; what they are compared with is taken once, when first needed.

    Args:
        view: the model, as the run begins.
        layers: the edited layers.
        material: what to measure on.
    """

    def __init__(self, view: ModelView, layers: Sequence[int], material: Material) -> None:
        self.view, self.layers, self.material = view, sorted(layers), material
        self.start = len(view.stack)

    def measure(self, names: Iterable[str], moment: Moment) -> pd.DataFrame | None:
        """Rows of the metrics, without the run's columns; None if there are none.

        Raises:
            OptionError: if a metric lacks what it is measured on.
        """
        found = [
            {"step": moment.step, "metric": "", "layer": None, "task": None, "value": math.nan}
            | {"unit": "", "n": None, "low": None, "high": None}
            | row
            for name in names
            for row in getattr(self, f"_{name}")(moment)
        ]
        if not found:
            return None
        table = pd.DataFrame(found)
        return table.astype({"layer": "Int64", "n": "Int64"})

    # ------------------------------------------------------------------ weights and states

    def _weights(self, moment: Moment) -> list[Row]:
        """Distances as arXiv 2401.07453 has them (over the number of weights), and raw norms."""
        now = self._matrices(len(self.view.stack))
        before = self._matrices(self.start)
        last = self._matrices(len(self.view.stack) - 1) if moment.edit is not None else {}
        rows: list[Row] = []
        for layer, matrix in now.items():
            distance = _norm(matrix, before[layer])
            values = {
                "weight_distance": distance,
                "weight_distance_per_weight": distance / matrix.numel(),
                "weight_norm": float(matrix.double().norm()),
            }
            if last:
                values["update_norm"] = _norm(matrix, last[layer])
            rows += [
                {"metric": k, "layer": layer, "value": v, "unit": "frobenius"}
                for k, v in values.items()
            ]
        return rows

    def _matrices(self, depth: int) -> dict[int, Tensor]:
        """The edited matrices after so many edits; they are never written, so no copies."""
        with self.view.at(depth):
            return {layer: self.view.weight(layer) for layer in self.layers}

    def _hidden_shift(self, moment: Moment) -> list[Row]:
        before, now = self._states_before, self._states()
        shift = (now - before).norm(dim=1) / before.norm(dim=1)
        cosine = torch.cosine_similarity(now, before, dim=1)
        place = {"layer": self.layers[-1], "n": len(now)}
        return [
            {"metric": "hidden_shift", "unit": "relative L2", **place} | _mean(shift),
            {"metric": "hidden_cosine", "unit": "cosine", **place} | _mean(cosine),
        ]

    @cached_property
    def _states_before(self) -> Tensor:
        with self.view.at(self.start):
            return self._states()

    @torch.no_grad()
    def _states(self) -> Tensor:
        """``[facts, d_model]`` last edited block's output at the subject's last token."""
        site, found = Site(self.layers[-1], "residual"), []
        limit = BATCH_TOKENS.get(self.view.device.type, BATCH_TOKENS["other"])
        for begin, end in batches([(row,) for row in self._subjects], limit):
            rows = self._subjects[begin:end]
            with trace(self.view, [site], stop=True) as seen:
                run_rows(self.view, rows)
            ends = torch.tensor([len(row) - 1 for row in rows])
            found.append(seen[site].cpu()[torch.arange(len(rows)), ends].double())
        return torch.cat(found)

    @cached_property
    def _subjects(self) -> list[tuple[int, ...]]:
        """Tokens up to the end of each subject, longest first."""
        requests = [c.request for c in self._facts("hidden_shift")]
        rows = [encode_request(self.view.tokenizer, r, with_target=False)[0] for r in requests]
        return sorted({r.ids[: r.pivot + 1] for r in rows}, key=lambda ids: (-len(ids), ids))

    # ------------------------------------------------------------------ what the model can do

    def _perplexity(self, moment: Moment) -> list[Row]:
        value, n = self._language()
        ratio = math.inf if math.isinf(value) else value / self._perplexity_before
        return [
            {"metric": "perplexity", "value": value, "unit": "per token", "n": n},
            {"metric": "perplexity_ratio", "value": ratio, "unit": "times", "n": n},
        ]

    @cached_property
    def _perplexity_before(self) -> float:
        with self.view.at(self.start):
            return self._language()[0]

    def _language(self) -> tuple[float, int]:
        if not self.material.texts:
            raise OptionError("watch has 'perplexity' but there is no text: give texts=[...].")
        table = text_likelihoods(self.view, self.material.texts)
        tokens = int(table["tokens"].sum())
        nll = float((table["nll"] * table["tokens"]).sum()) / tokens
        with np.errstate(over="ignore"):
            return float(np.exp(nll)), tokens

    def _upstream(self, moment: Moment) -> list[Row]:
        """Facts that nobody edited: same answer, same distribution, still right."""
        facts = self._facts("upstream")
        table = score(self.view, facts, reference=self._reference, kinds="upstream")
        n = len(table)
        shares = {"upstream_agreement": table["agrees"], "upstream_exact": table["exact"]}
        rows: list[Row] = [
            {"metric": name, "unit": "share", "n": n} | _share(float(column.mean()), n)
            for name, column in shares.items()
        ]
        kl = float(table["kl"].median())
        return [*rows, {"metric": "upstream_kl", "value": kl, "unit": "nats, median", "n": n}]

    @cached_property
    def _reference(self) -> Reference:
        return reference(self.view, self._facts("upstream"), at=self.start, kinds="upstream")

    def _facts(self, who: str) -> list[EditCase]:
        if not self.material.upstream:
            raise OptionError(f"watch has {who!r} but there are no facts: give upstream=[...].")
        return list(self.material.upstream)

    def _downstream(self, moment: Moment) -> list[Row]:
        if not self.material.downstream:
            raise OptionError("watch has 'downstream': say which with downstream={'tasks': ...}.")
        rows = []
        for task in downstream(self.view, **self.material.downstream).to_dict("records"):
            for name in (n for n in TASK_SCORES if n in task):
                row = {"metric": f"downstream_{name}", "task": task["task"], "unit": "share"}
                row |= {"value": task[name], "n": task["n"]}
                if name == "accuracy":
                    row |= {"low": task["low"], "high": task["high"]}
                rows.append(row)
        return rows

    # ------------------------------------------------------------------ what it cost

    def _memory(self, moment: Moment) -> list[Row]:
        return [
            {"metric": f"{name}_peak", "value": mib, "unit": "MiB"}
            for name, mib in memory(self.view).items()
        ]

    def _seconds(self, moment: Moment) -> list[Row]:
        rows = [{"metric": "seconds_measuring", "value": moment.measuring, "unit": "s"}]
        if moment.edit is None:
            return rows
        rate = moment.facts / moment.seconds if moment.seconds else math.nan
        return [
            {"metric": "seconds_editing", "value": moment.seconds, "unit": "s", "n": moment.facts},
            {"metric": "edits_per_second", "value": rate, "unit": "1/s", "n": moment.facts},
            *rows,
        ]


def memory(view: ModelView) -> dict[str, float]:
    """Peak memory so far in MiB: of the process, and of the GPU if the model is on one."""
    found = {}
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # no such count on this system
        resource = None
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        macos = sys.platform == "darwin"  # counts bytes, not KiB
        found["process"] = peak / 2 ** (20 if macos else 10)
    if view.device.type == "cuda":
        found["cuda"] = torch.cuda.max_memory_allocated(view.device) / 2**20
    return found


def _other_facts(view: ModelView, cases: Sequence[EditCase]) -> list[EditCase]:
    """Facts the model knows, as probes of kind ``upstream``; none of an edited subject."""
    source = datasets.tiny if view.name == "tiny" else datasets.facts
    try:
        facts = source(known_to=view.name)
    except OptionError:  # nobody wrote down what this model knows
        facts = source()
    edited = {c.request.subject for c in cases}
    kept = [c for c in facts if c.request.subject not in edited and c.request.target_true]
    return kept[:N_FACTS]


def _known(case: EditCase) -> EditCase:
    """The fact as it is, not as an edit would have it."""
    req = case.request
    probe = Probe(prompt=req.text, target=req.target_true or req.target_new, kind="upstream")
    return replace(case, probes=(probe,))


def _norm(a: Tensor, b: Tensor) -> float:
    return 0.0 if a.data_ptr() == b.data_ptr() else float((a.double() - b.double()).norm())


def _mean(values: Tensor) -> Row:
    """Mean and its 95 % interval."""
    mean = float(values.mean())
    half = 1.96 * float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else 0
    return {"value": mean, "low": mean - half, "high": mean + half}


def _share(value: float, n: int) -> Row:
    low, high = wilson(value, n)
    return {"value": value, "low": low, "high": high}
