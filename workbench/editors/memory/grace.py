"""GRACE: a codebook of edits beside one module (Hartvigsen et al., NeurIPS 2023, arXiv 2211.11031).

What the module is given at the last token of a prompt is the key. A prompt whose key lies in the
ball of a stored one gets the stored value in place of the module's output; every other prompt gets
the very output, to the bit. An edit adds a key and trains its value, or widens, retrains or splits
what is there (:mod:`workbench.editors.memory.codebook`). The codebook is a fold over the edits on
the stack, so undo takes its entries, and what they did to others' radii, back exactly.

Departures from the published code (preset ``repo`` reproduces it, spec memory-and-meta 1.8): the
key is the last token of the prompt, never of padding or of the answer; a decoder's value replaces
the output at this token alone, an encoder's at every token; radii have the model's own noise as
tolerance; requests of one batch that do not touch the same entry are trained together, which gives
what one after another gives.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from workbench.capabilities import orient
from workbench.editors.memory.base import MemoryEditor, fit, one_of
from workbench.editors.memory.behind import losses_of_values
from workbench.editors.memory.calibration import default_epsilon
from workbench.editors.memory.codebook import (
    EXPANSIONS,
    Decision,
    Rules,
    decide,
    entries_of,
    event_of,
    noted,
)
from workbench.editors.memory.examples import labels_of
from workbench.editors.presets import Preset, find
from workbench.edits import AdapterEdit, Edit
from workbench.errors import OptionError
from workbench.facts import EditCase, EditRequest, Probe, as_requests
from workbench.memories import Codebook, Label, Settings, as_adapter
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.trace import frozen
from workbench.weights import lineage

if TYPE_CHECKING:
    from workbench.editors.memory.calibrate import RadiusCalibration

__all__ = ["GRACE", "codebook_of"]

INITS = ("cold", "warm")


@dataclass(frozen=True)
class _Fit:
    """A trained value, and the loss of its request before the first and the last step."""

    value: Tensor
    first: float = float("nan")
    last: float = float("nan")

    @property
    def losses(self) -> dict[str, float]:
        return {"loss_first": self.first, "loss_last": self.last}


@dataclass(frozen=True, kw_only=True)
class GRACE(MemoryEditor):
    """General retrieval adaptors for continual editing.

    Args:
        epsilon: radius of a new entry, in the units of the module's input; None takes a quarter
            of the median distance between plain sentences.
        init: a new value begins ``cold`` (uniform in [0, 1)) or ``warm`` (the module's output).
        expand: ``coverage`` or ``moving_average``.
        strict_overlap, cap_expand: see :class:`workbench.editors.memory.codebook.Rules`.
        released: decide as the published code does.

    Example:
        >>> edit = wb.GRACE.preset(view).edit(view, request)   # an AdapterEdit
        >>> edit.report["events"][0]["op"]
        'add'
    """

    epsilon: float | None = None
    init: str = "cold"
    expand: str = "coverage"
    strict_overlap: bool = False
    cap_expand: bool = False
    released: bool = False

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        one_of("GRACE", "init", self.init, INITS)
        one_of("GRACE", "expand", self.expand, EXPANSIONS)
        if self.epsilon is not None and not self.epsilon > 0:
            raise OptionError(f"GRACE: epsilon={self.epsilon} must be above 0.")

    def rules(self, view: ModelView) -> Rules:
        """How the codebook grows on this model."""
        settings = self.settings(view)
        epsilon = self.epsilon
        if epsilon is None:
            epsilon = default_epsilon(view, self.place(view), settings)
        return Rules(
            epsilon,
            expand=self.expand,
            strict_overlap=self.strict_overlap,
            cap_expand=self.cap_expand,
            same=0.0 if self.released else settings.tolerance,
            released=self.released,
        )

    def label(self, view: ModelView, request: EditRequest) -> Label:
        """What two equal answers share: the ids of their tokens; as released, their mean with -100
        for every token of a decoder's prompt."""
        ids = labels_of(view, request)
        return (_released_mean(view, request, ids),) if self.released else ids

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Any], dict[str, Any]]:
        settings, place = self.settings(view), self.place(view)
        before = codebook_of(view, self, settings)
        keys, outputs = self._asked(view, requests, settings)
        labels = [self.label(view, r) for r in requests]
        texts = [r.text for r in requests]
        decisions = _decisions(before, settings, self.rules(view), keys, labels, texts)
        _warn_of_narrow(decisions, settings)
        fits = self._trained(view, requests, settings, before, decisions, outputs)
        values = {d.entry: fit.value for d, fit in zip(decisions, fits, strict=True)}
        entries = entries_of(decisions, values)
        events = [
            event_of(i, d) | fit.losses
            for i, (d, fit) in enumerate(zip(decisions, fits, strict=True))
        ]
        report = {"events": events, "size": len(before.after(settings, entries))}
        return [as_adapter(place.parameter, settings, entries)], {"report": report}

    def edits(self, view: ModelView, requests: Any) -> list[Edit]:
        """An edit a request, as one after another gives them, with their values trained together.

        Args:
            view: the model in the state that the first edit builds on; it is as before afterwards.
            requests: as in :meth:`edit`; a later one may contradict an earlier.

        Returns:
            Edits to be pushed in this order. Entries, keys and radii are those of
            ``[push(edit(view, r)) for r in requests]``, values up to rounding.

        Raises:
            WorkbenchError: as :meth:`edit`.

        Example:
            >>> for edit in wb.GRACE.preset(view).edits(view, cases):
            ...     view.push(edit)
        """
        batch = [r for item in as_requests(requests) for r in self._admit(view, item)]
        began = time.perf_counter()
        with view.writing(f"GRACE: {len(batch)} edits in turn"):
            settings, place = self.settings(view), self.place(view)
            book = codebook_of(view, self, settings)
            keys, outputs = self._asked(view, batch, settings)
            labels, texts = [self.label(view, r) for r in batch], [r.text for r in batch]
            decisions = _decisions(book, settings, self.rules(view), keys, labels, texts)
            _warn_of_narrow(decisions, settings)
            fits = self._trained(view, batch, settings, book, decisions, outputs)
            seconds = (time.perf_counter() - began) / len(batch)
            made: list[Edit] = []
            for request, d, fit in zip(batch, decisions, fits, strict=True):
                entries = entries_of([d], {d.entry: fit.value})
                book = book.after(settings, entries)
                report = {"events": [event_of(0, d) | fit.losses], "size": len(book)}
                pieces = [as_adapter(place.parameter, settings, entries)]
                edit = self._finish(view, [request], pieces, {"report": report}, seconds)
                assert isinstance(edit, AdapterEdit)
                made.append(replace(edit, parents=lineage([*view.stack, *made])))
        return made

    # ------------------------------------------------------------------ values

    def _trained(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        settings: Settings,
        book: Codebook,
        decisions: Sequence[Decision],
        outputs: Tensor,
    ) -> list[_Fit]:
        """What each request makes of the value of its entry.

        Requests of one entry wait for each other; all others are trained together.
        """
        values: dict[int, Tensor] = {}
        fits: dict[int, _Fit] = {}
        rounds = _rounds(decisions, self.mini_batch)
        with Bar("values", self.steps * len(rounds)) as bar, frozen(view.model):
            for chosen in rounds:
                starts = [self._start(book, values, decisions[i], outputs[i]) for i in chosen]
                value, losses = torch.stack(starts), []
                if decisions[chosen[0]].trained:
                    part = [requests[i] for i in chosen]
                    losses = self._fit(view, part, settings, value, bar)
                for k, i in enumerate(chosen):
                    ends = [float(each[k]) for each in (losses[0], losses[-1])] if losses else []
                    fits[i] = _Fit(value[k].cpu(), *ends)
                    values[decisions[i].entry] = fits[i].value
        return [fits[i] for i in range(len(requests))]

    def _start(
        self, book: Codebook, values: Mapping[int, Tensor], decision: Decision, output: Tensor
    ) -> Tensor:
        """Where a value begins: as it is, or new."""
        if decision.entry in values:
            return values[decision.entry].to(output.device)
        if not decision.is_new:
            return book.value(book.places[decision.entry]).clone()
        if self.init == "warm":
            return output.clone()
        seed = (self.seed * 1_000_003 + decision.entry) % (1 << 63)
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(output), generator=generator).to(output.device)

    def _fit(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        settings: Settings,
        value: Tensor,
        bar: Bar,
    ) -> list[Tensor]:
        """Train the rows of ``value`` in place, each on its own request."""
        value.requires_grad_()
        try:
            with losses_of_values(view, requests, self.place(view), settings) as losses:
                return fit(
                    [value],
                    lambda: losses(value),
                    steps=self.steps,
                    lr=self.lr,
                    bar=bar,
                    what="GRACE",
                )
        finally:
            value.requires_grad_(False)

    # ------------------------------------------------------------------ presets

    @classmethod
    def calibrate(
        cls,
        view: ModelView,
        cases: Sequence[EditCase],
        *,
        layers: Sequence[int] | None = None,
        epsilons: Sequence[float] | None = None,
        upstream: Sequence[Probe] = (),
        spared: float = 0.95,
        **options: Any,
    ) -> RadiusCalibration:
        """Choose layer and radius for a model: a sweep in which one value a case and layer trains.

        Args:
            view: the model, without edits.
            cases: facts with other wordings (``paraphrase, holdout``) and prompts that shall stay
                (``neighborhood, attribute, locality``).
            layers: candidates; None tries up to five from a third of the depth on.
            epsilons: candidate radii; None takes shares of the median distance between the keys.
            upstream: more probes that shall stay.
            spared: share of the prompts that shall stay that must be left alone.
            options: options of the editor that stay fixed, such as ``steps``.

        Returns:
            A :class:`~workbench.editors.memory.calibrate.RadiusCalibration` with ``.table``,
            ``.figure`` and ``.editor``.

        Raises:
            OptionError: without cases, for options out of range, or a view with edits.

        Example:
            >>> wb.GRACE.calibrate(view, wb.datasets.tiny()[:20]).editor
        """
        from workbench.editors.memory.calibrate import calibrate  # it builds on GRACE

        start = cls.preset(view, **options)
        return calibrate(
            start,
            view,
            cases,
            layers=layers,
            epsilons=epsilons,
            upstream=upstream,
            spared=spared,
        )

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: calibrated, published, or a rule of thumb for unknown models."""
        row = find(PRESETS, view, name, "GRACE")
        options = dict(row.options) if row else {"layers": (late_layer(view),)}
        return cls(**(options | overrides))


def codebook_of(view: ModelView, editor: MemoryEditor, settings: Settings) -> Codebook:
    """The codebook on the stack beside the editor's module, or an empty one.

    Raises:
        OptionError: if it reads or writes texts in another way than the editor.
    """
    place = editor.place(view)
    book = view.memory(place.parameter, Codebook)
    if book is None:
        weight = orient(view.module_of(place.parameter))
        d_out, d_in = weight.shape
        return Codebook.empty(d_in, d_out, settings, device=weight.device)
    held = book.settings
    for option in ("query", "replacement"):
        if getattr(held, option) != getattr(settings, option):
            raise OptionError(
                f"GRACE: {option}={getattr(settings, option)!r}, but the codebook on the stack "
                f"has {getattr(held, option)!r}: use the same, or take its edits off the stack."
            )
    return book


def late_layer(view: ModelView) -> int:
    """Rule of thumb for unknown models: published layers stand at 0.5 to 0.9 of the depth."""
    return min(view.n_layers - 1, round(0.7 * view.n_layers))


def _decisions(
    book: Codebook,
    settings: Settings,
    rules: Rules,
    keys: Tensor,
    labels: Sequence[Label],
    texts: Sequence[str],
) -> list[Decision]:
    """One after another, each on the codebook as the ones before left it."""
    made = []
    for key, label, text in zip(keys, labels, texts, strict=True):
        made.append(decide(book, key, label, rules, tag=text))
        book = noted(book, settings, made[-1])
    return made


def _rounds(decisions: Sequence[Decision], size: int) -> list[list[int]]:
    """Groups of requests that can be trained together: an entry once in each, in order."""
    turns: dict[int, int] = {}
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, d in enumerate(decisions):
        turn = turns[d.entry] = turns.get(d.entry, -1) + 1
        groups.setdefault((turn, d.trained), []).append(i)
    ordered = [groups[key] for key in sorted(groups)]
    return [group[i : i + size] for group in ordered for i in range(0, len(group), size)]


def _warn_of_narrow(decisions: Sequence[Decision], settings: Settings) -> None:
    narrow = [
        d.op
        for d in decisions
        for radius in (d.radius, *(after for _, _, after in d.shrunk))
        if radius < settings.tolerance
    ]
    if narrow:
        warnings.warn(
            f"{len(narrow)} radii came out below {settings.tolerance:g}, the noise of the same "
            "text in different batches on this model: these entries cannot be told apart. Load "
            "the model in a wider dtype, or leave one of the conflicting facts out.",
            stacklevel=5,
        )


def _released_mean(view: ModelView, request: EditRequest, ids: Sequence[int]) -> float:
    prompt = 0
    if view.kind == "decoder":
        prompt = len(view.tokenizer(request.text)["input_ids"])
    return (sum(ids) - 100 * prompt) / (len(ids) + prompt)


_AS_RELEASED = {
    "query": "released",
    "replacement": "before",
    "tolerance": 0.0,
    "released": True,
    "epsilon": 1.0,
}
_CODE = "Thartvigsen/GRACE, config/"
_EASY = "zjunlp/EasyEdit, hparams/GRACE"
_MODULES: dict[str, dict[str, Any]] = {
    "t5-small-ssm-nq": {"layers": (4,)},
    "bert-base": {"layers": (10,)},
    "gpt2-xl": {"layers": (35,), "site": "up"},
}


def _easy(layer: int, steps: int, **options: Any) -> Preset:
    return Preset({"layers": (layer,), "steps": steps, "epsilon": 1.0, **options}, _EASY)


PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {model: Preset(each | _AS_RELEASED, _CODE) for model, each in _MODULES.items()},
    "paper": {
        model: Preset(each | {"epsilon": 1.0}, f"{_CODE}; positions as in the paper")
        for model, each in _MODULES.items()
    },
    "default": {
        "t5-small-ssm-nq": Preset(_MODULES["t5-small-ssm-nq"] | {"epsilon": 1.0}, _CODE),
        "bert-base": Preset(_MODULES["bert-base"] | {"epsilon": 1.0}, _CODE),
        "gpt2-xl": _easy(35, 200, site="up"),
        "gpt-j-6b": _easy(25, 200),
        "llama-2-7b": _easy(27, 50),
        "llama-3.2-3b": _easy(27, 50),
        "qwen2.5-7b": _easy(18, 50),
        "tiny": Preset({"layers": (4,), "epsilon": 4.0}, "data/README.md, 40 facts in one batch"),
        "tiny-bert": Preset({"layers": (2,), "epsilon": 4.0}, "data/README.md"),
        "tiny-t5": Preset({"layers": (1,), "epsilon": 0.5}, "data/README.md"),
        # below half the distance of the nearest court cases
        "minilm-l6": Preset({"layers": (4,), "epsilon": 3.0}, "LOG.md"),
        # half the way between the nearest facts of one relation; rewordings lie farther away
        "smollm2-135m": Preset({"layers": (24,), "epsilon": 2.5}, "LOG.md"),
    },
}
