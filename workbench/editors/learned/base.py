"""What the learned editors share: a trained file, the model it belongs to, and one edit.

An editor is two words of configuration, a file and its SHA-256; everything else (which matrices,
what the networks look like, how they were trained) is in the file (design 9.6).
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.capabilities import orient
from workbench.editors.base import Editor, check_preset_name, storage_dtype
from workbench.editors.learned.files import Trained, file_name, find, locate, places, read_trained
from workbench.editors.learned.gradients import Factors, check_matrices
from workbench.editors.learned.learner import Learner, Rewrite
from workbench.editors.learned.texts import read
from workbench.edits import Delta
from workbench.errors import DataError, OptionError, WorkbenchError
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.trace import frozen

__all__ = ["LearnedEditor", "deltas_of", "option_of", "settings_from"]


@dataclass(frozen=True, kw_only=True)
class LearnedEditor(Editor):
    """An editor that was trained for one model.

    Args:
        weights: the trained file: a path, or the name of one among the shipped ones or in
            WORKBENCH_HOME/editors.
        sha256: of that file; empty takes it as it is.
        scale: multiplies every change.
    """

    weights: str
    sha256: str = ""
    scale: float = 1.0

    needs_subject: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, tuple[dict[str, Any], str]]]
    settings_class: ClassVar[type]

    # ------------------------------------------------------------------ what a method is

    @classmethod
    @abstractmethod
    def learner(cls, view: ModelView, settings: Any, *, seed: int = 0) -> Learner:
        """A fresh learner for a model."""

    @classmethod
    @abstractmethod
    def usual(cls, view: ModelView) -> dict[str, Any]:
        """Settings that follow from the model."""

    # ------------------------------------------------------------------ one edit

    def trained(self) -> Trained:
        """The trained file.

        Raises:
            DataError: if it is missing, damaged, another file, or of another editor.
        """
        path = locate(self.weights)
        found, _ = read_trained(path, self.sha256)
        if found.editor != type(self).__name__:
            raise DataError(f"{path} is a trained {found.editor}, not {type(self).__name__}.")
        return found

    def _known(self, view: ModelView) -> Trained:
        """What the file says, without its tensors; read once a view."""
        path = locate(self.weights)
        stamp = path.stat()
        key = ("learned file", type(self), str(path), self.sha256, stamp.st_mtime_ns, stamp.st_size)
        if key not in view.cache:
            view.cache[key] = dataclasses.replace(self.trained(), tensors={})
        return view.cache[key]  # type: ignore[no-any-return]

    def network(self, view: ModelView) -> Learner:
        """The trained learner on the model's device; read once a view.

        Raises:
            DataError: as :meth:`trained`, or if its tensors do not fit its settings.
        """
        stamp = locate(self.weights).stat()
        key = ("learned", type(self).__name__, self.weights, self.sha256, stamp.st_mtime_ns)
        if key not in view.cache:
            view.cache[key] = self._built(view)
        return view.cache[key]  # type: ignore[no-any-return]

    def unsupported(self, view: ModelView) -> str | None:
        try:
            found = self._known(view)
        except WorkbenchError as error:
            return str(error)
        if found.base != view.fingerprint:
            return (
                f"it was trained for {found.model} (fingerprint {found.base[:12]}…), this model's "
                f"is {view.fingerprint[:12]}…. {train_hint(type(self).__name__, view)}"
            )
        return super().unsupported(view)

    def _built(self, view: ModelView) -> Learner:
        found = self.trained()
        settings = settings_from(self.settings_class, found.settings)
        check_matrices(view, settings.matrices)
        learner = self.learner(view, settings)
        try:
            learner.load_state_dict(dict(found.tensors))
        except RuntimeError as error:
            raise DataError(f"{self.weights} does not fit its own settings: {error}") from error
        learner = learner.to(view.device, storage_dtype(view)).eval()
        return learner.requires_grad_(False)

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Delta], dict[str, Any]]:
        learner = self.network(view)
        self._warn_of_many(view, len(requests))
        with frozen(view.model), self.base(view):
            made = learner.rewrite(view, read(view, requests), n_lessons=1)
        deltas = deltas_of(view, made.factors, self.scale)
        return deltas, {"report": {"gradients": _report(learner, made, self.scale)}}

    def base(self, view: ModelView) -> AbstractContextManager[Any]:
        """The model that edits are computed on, for the length of the block; the view itself for
        most."""
        return nullcontext()

    def _check(self, view: ModelView) -> None:
        if not self.scale > 0:
            raise OptionError(f"{type(self).__name__}: scale={self.scale} must be above 0.")

    def _warn_of_many(self, view: ModelView, n: int) -> None:
        """An editor does well with as many edits at once as it was trained for."""
        meant = self._known(view).training.get("recipe", {}).get("n_edits", n)
        if n > meant:
            warnings.warn(
                f"{type(self).__name__} {self.weights} was trained to write {meant} at once, not "
                f"{n}: write fewer, or train one with n_edits={n}.",
                stacklevel=4,
            )

    # ------------------------------------------------------------------ where it comes from

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """The editor that was trained for this model: a shipped one, or one in
        WORKBENCH_HOME/editors.

        Raises:
            OptionError: with the command that trains one, if there is none.
        """
        check_preset_name(name)
        path = find(cls.__name__, view.fingerprint, name)
        if path is None:
            raise OptionError(
                f"no {cls.__name__} was trained for {view.name} yet. "
                + train_hint(cls.__name__, view, name)
            )
        return cls(**(option_of(path) | overrides))

    @classmethod
    def train(cls, view: ModelView, lessons: Any, **options: Any) -> Self:
        """Train an editor for a model; see :func:`workbench.editors.learned.training.train`.

        Args:
            view: the model, without edits.
            lessons: :class:`~workbench.editors.learned.lessons.Lessons`, or cases.
            options: ``out``, ``steps``, ``seed``, ``preset``, ``fresh``, any field of the recipe
                and of the editor's settings.

        Example:
            >>> editor = wb.MEND.train(view, cases, out="mend.safetensors", steps=500, seed=0)
        """
        from workbench.editors.learned.training import train

        return cls(**option_of(train(cls, view, lessons, **options)))


def option_of(path: Path) -> dict[str, Any]:
    """Options of an editor that uses a file: the bare name where that is enough to find it."""
    known = path.resolve().parent in [p.resolve() for p in places()]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"weights": path.name if known else str(path), "sha256": digest}


def train_hint(editor: str, view: ModelView, preset: str = "default") -> str:
    """What to type."""
    more = "" if preset == "default" else f" --preset {preset}"
    return (
        f"Train one: `workbench train {editor.lower()} --model {view.name} --data DATA{more}` "
        f"(DATA: tiny, facts, or a file of cases), or {editor}.train(view, cases, steps=...). It "
        f"will lie in {places()[-1] / file_name(editor, view.fingerprint, preset)}."
    )


def settings_from(cls: type, values: Mapping[str, Any]) -> Any:
    """Settings from their JSON form."""
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(values) - known:
        raise DataError(
            f"the trained file has settings {sorted(unknown)} that this version does not know."
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def deltas_of(view: ModelView, factors: Mapping[str, Factors], scale: float = 1.0) -> list[Delta]:
    """One lesson's changes as deltas: in factors, or dense where that is smaller."""
    dtype = storage_dtype(view)
    found = []
    for name, each in factors.items():
        left, right = (t[0].detach().to(dtype) for t in (each.left * scale, each.right))
        d_out, d_in = orient(view.module_of(name)).shape
        if len(left) * (d_out + d_in) < d_out * d_in:
            found.append(Delta.low_rank(name, left.T, right.T))
        else:
            found.append(Delta.dense(name, left.T @ right))
    return found


def _report(learner: Learner, made: Rewrite, scale: float) -> list[dict[str, Any]]:
    """Raw gradient against change, a row a matrix; norms by Gram matrices."""
    rates = [p.detach().flatten().tolist() for p in learner.rates()]
    step = rates[0] if rates else [1.0] * len(learner.matrices)
    rows = []
    for i, name in enumerate(learner.matrices):
        pairs, new = made.gradients.pairs[name], made.factors[name].detached()
        left, right = new.left[0] * scale, new.right[0]
        raw, change = gram(pairs.delta, pairs.x), gram(left, right)
        along = gram(left, right, pairs.delta, pairs.x)
        rows.append(
            {
                "matrix": name,
                "rows": len(pairs.x),
                "gradient_norm": raw**0.5,
                "change_norm": change**0.5,
                "cosine": along / max((raw * change) ** 0.5, 1e-30),
                "edit_lr": step[min(i, len(step) - 1)],
            }
        )
    return rows


def gram(a: Tensor, b: Tensor, c: Tensor | None = None, d: Tensor | None = None) -> float:
    """Inner product of ``aᵀ b`` with ``cᵀ d`` (itself if not given), never made: both are sums of
    outer products."""
    c, d = (a, b) if c is None or d is None else (c, d)
    a, b, c, d = (t.double() for t in (a, b, c, d))
    return float(((a @ c.T) * (b @ d.T)).sum().clamp_min(0 if c is a else -torch.inf))
