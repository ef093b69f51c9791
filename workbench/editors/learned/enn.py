"""ENN: a model trained so that a plain gradient step edits it (arXiv 2004.00345).

Nothing rewrites the gradient: the base model itself is changed beforehand, through the step (second
order), until a step on an edit does little else. What is trained is therefore a change of the base
model, the *preparation*, and a step size for each matrix (spec memory-and-meta 6).

The preparation is an edit at the bottom of the stack (:meth:`ENN.prepare`). An edit of a view that
does not hold it yet brings it along, so that ENN can be used like any other editor.

Departures from the published code (editable, and eric-mitchell/mend's ``enn``): the preparation
changes the blocks from the lowest edited one up, optionally at low rank, not the whole model; it is
kept as a change beside the pristine weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers.pytorch_utils import Conv1D

from workbench.capabilities import get_module
from workbench.editors.base import storage_dtype
from workbench.editors.learned.base import LearnedEditor
from workbench.editors.learned.gradients import Factors, capture, matrices
from workbench.editors.learned.learner import Learner, Rewrite
from workbench.editors.learned.texts import Texts
from workbench.edits import Delta, Edit, WeightEdit
from workbench.errors import OptionError, UnsupportedEditorError, did_you_mean
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.weights import lineage

__all__ = ["ENN", "EnnLearner", "EnnSettings"]

#: What of the base model is prepared: the edited matrices, or all from the lowest edited block up.
PREPARED = ("matrices", "blocks")
PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "measured on the tiny models (LOG.md)"),
    "paper": ({"lr": 1e-5, "rate_lr": 1e-3}, "arXiv 2110.11309, appendix C"),
    "repo": ({"lr": 1e-5, "rate_lr": 1e-5}, "eric-mitchell/mend @e04fdb9, config/alg/enn.yaml"),
}


@dataclass(frozen=True, kw_only=True)
class EnnSettings:
    """What is trained.

    Args:
        matrices: names of the edited parameters.
        edit_lr: step sizes at the beginning.
        n_steps: gradient steps of an edit.
        first_order: take the gradients as constants; cheaper, and weaker.
        prepared: what of the base model is trained, one of :data:`PREPARED`.
        rank: of the preparation's changes of matrices; 0 for dense ones.
    """

    matrices: tuple[str, ...]
    edit_lr: float = 1e-2
    n_steps: int = 1
    first_order: bool = False
    prepared: str = "blocks"
    rank: int = 0

    def __post_init__(self) -> None:
        if self.prepared not in PREPARED:
            raise OptionError(
                f"prepared={self.prepared!r} is unknown." + did_you_mean(self.prepared, PREPARED)
            )
        if self.n_steps < 1 or self.rank < 0:
            raise OptionError(
                f"n_steps={self.n_steps} must be at least 1, rank={self.rank} not negative."
            )


class EnnLearner(Learner):
    """The preparation and the step sizes of ENN for one model.

    Args:
        shapes: prepared parameter → its shape, (out, in) or (out,).
        settings: what to build.
        seed: of the beginning of low-rank changes.

    Attributes:
        on_prepared: whether the view holds the preparation already, so that it is not to be added.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], settings: EnnSettings, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings, self.matrices = settings, tuple(settings.matrices)
        self.names, self.on_prepared = tuple(shapes), False
        generator = torch.Generator().manual_seed(seed)
        self.changes = nn.ModuleList(
            nn.ParameterList(_beginning(shape, settings.rank, generator))
            for shape in shapes.values()
        )
        self.edit_lr = Parameter(torch.full((len(self.matrices),), settings.edit_lr))

    def rates(self) -> list[Parameter]:
        return [self.edit_lr]

    def values(self, view: ModelView) -> dict[str, Tensor]:
        if self.on_prepared:
            return {}
        present = dict(view.model.named_parameters())
        found = {}
        for name, parts in zip(self.names, self.changes, strict=True):
            change = _whole(parts)
            value = present[name].detach()
            found[name] = value + (change.T if _turned(view, name) else change).to(value)
        return found

    def rewrite(
        self, view: ModelView, texts: Texts, *, n_lessons: int, edited: Tensor | None = None
    ) -> Rewrite:
        values, trains = self.values(view), self.edit_lr.requires_grad
        written: dict[str, Factors] = {}
        first = None
        for _ in range(self.settings.n_steps):
            found = capture(
                view,
                texts,
                self.matrices,
                n_lessons=n_lessons,
                edited=edited,
                values=values,
                written=written,
                create_graph=trains and not self.settings.first_order,
            )
            first = first or found
            for i, name in enumerate(self.matrices):
                step = Factors.of(found.pairs[name], n_lessons)
                step = Factors(step.left * -self.edit_lr[i], step.right)
                written[name] = written[name].joined(step) if name in written else step
        assert first is not None
        return Rewrite(written, first)

    def preparation(self, dtype: torch.dtype) -> list[Delta]:
        """The change of the base model, as deltas; what did not change is left out."""
        found = []
        for name, parts in zip(self.names, self.changes, strict=True):
            pieces: list[Tensor] = [p.detach().to(dtype) for p in parts]  # type: ignore[attr-defined]
            if not bool(_whole(pieces).any()):
                continue
            low_rank = len(pieces) == 2
            found.append(
                Delta.low_rank(name, *pieces) if low_rank else Delta.dense(name, pieces[0])
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ENN(LearnedEditor):
    """A trained editor: the model was prepared so that a gradient step edits it.

    Train one with :meth:`train` for a model, or with ``workbench train enn``.

    Example:
        >>> editor = wb.ENN.preset(view)  # doctest: +SKIP
        >>> view.push(editor.prepare(view))
        >>> view.push(editor.edit(view, request))
    """

    reference: ClassVar[str] = "ENN"
    presets: ClassVar[Mapping[str, tuple[dict[str, Any], str]]] = PRESETS
    settings_class: ClassVar[type] = EnnSettings

    def prepare(self, view: ModelView) -> Edit:
        """What training changed in the base model, to be pushed before any edit.

        Args:
            view: the model that the editor was trained for.

        Returns:
            An edit without requests, meant for the bottom of the stack.

        Raises:
            UnsupportedEditorError: for another model.
        """
        reason = self.unsupported(view)
        if reason:
            raise UnsupportedEditorError(f"ENN on {view.name}: {reason}")
        return WeightEdit(
            deltas=tuple(self._preparation(view)),
            requests=(),
            editor="ENN",
            config=self.config(),
            base=view.fingerprint,
            parents=lineage(view.stack),
            report={"prepared": self._mark()},
            meta={"model": view.name},
        )

    def is_prepared(self, view: ModelView) -> bool:
        """Whether the view's stack holds this editor's preparation."""
        return any(e.report.get("prepared") == self._mark() for e in view.stack)

    def base(self, view: ModelView) -> AbstractContextManager[Any]:
        if self.is_prepared(view):
            return nullcontext()
        bottom = WeightEdit(
            deltas=tuple(self._preparation(view)),
            requests=(),
            editor="ENN",
            config={},
            base=view.fingerprint,
        )
        return view.applied(bottom)

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Delta], dict[str, Any]]:
        deltas, extra = super()._compute(view, requests)
        if self.is_prepared(view):
            return deltas, extra
        extra["report"]["prepared"] = self._mark()
        return [*self._preparation(view), *deltas], extra

    def _preparation(self, view: ModelView) -> list[Delta]:
        learner: Any = self.network(view)
        return learner.preparation(storage_dtype(view))  # type: ignore[no-any-return]

    def _mark(self) -> str:
        return self.sha256 or self.weights

    def _built(self, view: ModelView) -> Learner:
        learner: Any = super()._built(view)
        learner.on_prepared = True
        return learner  # type: ignore[no-any-return]

    @classmethod
    def learner(cls, view: ModelView, settings: Any, *, seed: int = 0) -> EnnLearner:
        return EnnLearner(_prepared(view, settings), settings, seed=seed)

    @classmethod
    def usual(cls, view: ModelView) -> dict[str, Any]:
        return {"matrices": matrices(view)}


def _beginning(shape: tuple[int, ...], rank: int, generator: torch.Generator) -> list[Parameter]:
    """A change that is zero: dense, or ``left rightᵀ`` with ``left`` zero."""
    if rank and len(shape) == 2:
        right = torch.randn(shape[1], rank, generator=generator) / shape[1] ** 0.5
        return [Parameter(torch.zeros(shape[0], rank)), Parameter(right)]
    return [Parameter(torch.zeros(shape))]


def _whole(parts: Any) -> Tensor:
    return parts[0] @ parts[1].T if len(parts) == 2 else parts[0]


def _prepared(view: ModelView, settings: EnnSettings) -> dict[str, tuple[int, ...]]:
    """Parameters to prepare, with their shapes as (out, in)."""
    present = dict(view.model.named_parameters())
    names = list(settings.matrices)
    if settings.prepared == "blocks":
        lowest: dict[str, int] = {}
        for name in names:
            blocks, i = _block(name)
            lowest[blocks] = min(i, lowest.get(blocks, i))
        names = [n for n in present if (b := _block(n))[0] in lowest and b[1] >= lowest[b[0]]]
    found = {}
    for name in names:
        shape = tuple(present[name].shape)
        found[name] = shape[::-1] if _turned(view, name) else shape
    return found


def _turned(view: ModelView, name: str) -> bool:
    """Whether a parameter is stored as (in, out)."""
    return isinstance(get_module(view.model, name.removesuffix(".weight")), Conv1D)


def _block(name: str) -> tuple[str, int]:
    """The list of blocks that a parameter belongs to, and its place there."""
    found = re.match(r"(.+?)\.(\d+)\.", name)
    return (found[1], int(found[2])) if found else ("", -1)
