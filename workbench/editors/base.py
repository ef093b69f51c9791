"""What every editor is: a frozen configuration with one verb, ``edit``, that computes an edit.

The base class owns what must be the same for all of them: the checks before anything is computed,
the lock on the view, and the promise that a failed or interrupted edit leaves the view as it was.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

import torch

from workbench.citations import CITATIONS
from workbench.deltas import compact
from workbench.editfiles import versions
from workbench.edits import Adapter, AdapterEdit, Delta, Edit, WeightEdit
from workbench.errors import (
    NumericalError,
    OptionError,
    RequestError,
    UnsupportedEditorError,
    did_you_mean,
)
from workbench.facts import EditRequest, as_requests, request_conflicts
from workbench.layouts import DECODER
from workbench.model import ModelView
from workbench.tokens import context_length, encode_request
from workbench.weights import lineage

__all__ = ["Editor", "storage_dtype", "store"]

PRESET_NAMES = ("default", "paper", "repo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Editor(ABC):
    """An editing method with its hyper-parameters.

    Subclasses are frozen dataclasses; their fields are their options. The constructor only stores.

    Attributes:
        needs_subject: whether every request must name a subject.
        accepts: precomputed inputs that :meth:`edit` takes.
        requires: capabilities (see :mod:`workbench.capabilities`) the model must have.
        reference: key of the method's entry in ``references.bib``.
    """

    needs_subject: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ("linear",)
    decoder_only: ClassVar[bool] = False
    reference: ClassVar[str]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise OptionError(
                    f"{cls.__name__} has no option {name!r}." + did_you_mean(name, known)
                )
        return super().__new__(cls)

    # ------------------------------------------------------------------ the verb

    def edit(self, view: ModelView, requests: Any, **given: Any) -> Edit:
        """Compute an edit; the view is as before when this returns or raises.

        Args:
            view: the model in the state the edit builds on.
            requests: an EditRequest, an EditCase or a list of them; one batch.
            given: precomputed inputs an editor accepts, such as ``statistics``.

        Raises:
            UnsupportedEditorError: if the model lacks what the editor needs.
            RequestError: for a missing subject, a prompt over the context length, conflicts.
            OptionError: for an option out of range.
            NumericalError: if NaN or Inf appears anywhere.
        """
        for name in given:
            if name not in self.accepts:
                raise OptionError(
                    f"{type(self).__name__}.edit has no argument {name!r}."
                    + did_you_mean(name, ("view", "requests", *self.accepts))
                )
        batch = self._admit(view, requests)
        began = time.perf_counter()
        with view.writing(f"{type(self).__name__} edit of {len(batch)} facts"):
            deltas, extra = self._compute(view, batch, **given)
            return self._finish(view, batch, deltas, extra, time.perf_counter() - began)

    def _admit(self, view: ModelView, requests: Any) -> list[EditRequest]:
        """Every check that can be made before anything is computed."""
        if not isinstance(view, ModelView):
            raise OptionError(
                f"an editor needs a view, not {type(view).__name__}: view = workbench.load(model, "
                "tokenizer=...)."
            )
        self._check_types()
        batch = as_requests(requests)
        reason = self.unsupported(view)
        if reason:
            raise UnsupportedEditorError(f"{type(self).__name__} on {view.name}: {reason}")
        self._check(view)
        self.check_batch_size(len(batch))
        self._check_requests(view, batch)
        return batch

    def _finish(
        self,
        view: ModelView,
        batch: Sequence[EditRequest],
        pieces: Sequence[Delta] | Sequence[Adapter],
        extra: Mapping[str, Any],
        seconds: float,
    ) -> Edit:
        common: dict[str, Any] = {
            "requests": tuple(batch),
            "editor": type(self).__name__,
            "config": self.config(),
            "base": view.fingerprint,
            "parents": lineage(view.stack),
            "keys": {k: v.detach().cpu() for k, v in extra.get("keys", {}).items()},
            "report": extra.get("report", {}),
            "meta": {
                "model": view.name,
                "revision": view.revision,
                "dtype": str(view.dtype).removeprefix("torch."),
                "seconds": seconds,
                **versions(),
            },
        }
        adapters = tuple(p for p in pieces if isinstance(p, Adapter))
        deltas = tuple(compact(p) for p in pieces if isinstance(p, Delta))
        edit: Edit = (
            AdapterEdit(adapters=adapters, **common)
            if adapters
            else WeightEdit(deltas=deltas, **common)
        )
        if not edit.is_finite():
            raise NumericalError(
                f"{type(self).__name__} computed NaN or Inf for this batch; nothing was changed. "
                "Try a smaller lr, or load the model in float32."
            )
        return edit

    @abstractmethod
    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Delta], dict[str, Any]]:
        """Deltas, and ``keys`` and ``report`` of the edit."""

    def _check(self, view: ModelView) -> None:  # noqa: B027 - optional, most editors override it
        """Refuse options that are out of range for this view."""

    def check_batch_size(self, n: int) -> None:  # noqa: B027 - few editors care
        """Refuse a batch of ``n`` facts; a stream asks for all of its batches before it starts.

        Raises:
            OptionError: naming the option and the batch.
        """

    def _check_types(self) -> None:
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not _fits(value, hints[f.name]):
                raise OptionError(f"{type(self).__name__}: {f.name}={value!r} must be {f.type}.")

    def unsupported(self, view: ModelView) -> str | None:
        """The reason why this editor cannot edit this model, None if it can."""
        if self.decoder_only and view.kind != DECODER:
            return (
                f"it needs a decoder, this is an {view.kind} ({view.layout.family}). "
                "Fine-tuning and memory editors (FT, GRACE and their kin) work here."
            )
        for name in self.requires:
            if not getattr(view.capabilities, name):
                why = view.capabilities.reasons.get(name, "it does not hold")
                return f"it needs the capability {name!r}, but {why}."
        return None

    def _check_requests(self, view: ModelView, requests: Sequence[EditRequest]) -> None:
        if self.needs_subject:
            for req in requests:
                if req.subject is None:
                    raise RequestError(
                        f"{type(self).__name__} needs a subject, the request {req.prompt!r} has "
                        "none: EditRequest.from_text(text, subject=..., target_new=...)."
                    )
        clash = request_conflicts(requests)
        if clash:
            a, b = (requests[i] for i in clash[0])
            raise RequestError(
                f"requests {clash[0][0]} and {clash[0][1]} write different targets "
                f"({a.target_new!r}, {b.target_new!r}) to {a.text!r}: keep one of them."
            )
        if view.kind == DECODER:
            limit = context_length(view.model.config)
            for req in requests:
                encode_request(view.tokenizer, req, max_length=limit)
            return
        limit = getattr(view.model.config, "max_position_embeddings", None)
        for req in requests:
            n = max(len(view.tokenizer(t)["input_ids"]) for t in (req.text, req.target_new))
            if limit and n > limit:
                raise RequestError(
                    f"prompt or target too long: {req.text[:60]!r} has {n} tokens, the model's "
                    f"context is {limit}. Shorten it."
                )
        if view.labels:
            for req in requests:
                if req.target_new not in view.labels:
                    raise RequestError(
                        f"target_new={req.target_new!r} is not a label of this classifier."
                        + did_you_mean(req.target_new, view.labels)
                    )

    # ------------------------------------------------------------------ configuration

    def config(self) -> dict[str, Any]:
        """The fields, JSON-ready; ``type(editor).from_config`` rebuilds an equal editor."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild an editor from :meth:`config`, also after a round trip through JSON."""
        return cls(**{k: _tupled(v) for k, v in config.items()})

    def with_options(self, **options: Any) -> Self:
        """The same editor with some options changed.

        Raises:
            OptionError: for an unknown option.
        """
        return dataclasses.replace(self, **options)

    @classmethod
    @abstractmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """The editor with options that suit a model.

        Args:
            view: the model.
            name: ``default`` (what we recommend), ``paper`` or ``repo`` (published behavior).
            overrides: single options to change.

        Raises:
            OptionError: for an unknown preset or option, or where nothing is published.
        """

    @classmethod
    def cite(cls) -> str:
        """BibTeX entry of the method's paper."""
        return CITATIONS[cls.reference]


def check_preset_name(name: str) -> None:
    """Refuse an unknown preset with the nearest known one."""
    if name not in PRESET_NAMES:
        raise OptionError(f"preset {name!r} is unknown." + did_you_mean(name, PRESET_NAMES))


def storage_dtype(view: ModelView) -> torch.dtype:
    """Dtype in which an edit's factors are kept: float32, float64 for float64 models."""
    return torch.promote_types(view.dtype, torch.float32)


def store(view: ModelView, layer: int, left: torch.Tensor, right: torch.Tensor) -> Delta:
    """A low-rank delta of one layer's edited matrix, dense where that is smaller."""
    dtype = storage_dtype(view)
    name = view.weight_name(layer)
    left, right = left.to(dtype), right.to(dtype)
    d, m, r = left.shape[0], right.shape[0], left.shape[1]
    if r * (d + m) >= d * m:
        return Delta.dense(name, left @ right.T)
    return Delta.low_rank(name, left, right)


def _fits(value: Any, hint: Any) -> bool:
    """Whether an option's value is of its declared type; NaN is no number."""
    if get_origin(hint) is UnionType:
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        each = get_args(hint)[0]
        return isinstance(value, tuple | list) and all(_fits(v, each) for v in value)
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and value == value
    return isinstance(value, hint) if hint in (bool, str, NoneType) else True


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
