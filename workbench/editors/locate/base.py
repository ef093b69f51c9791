"""What the locate-then-edit editors share: options, contexts, statistics, the two-stage edit."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from workbench.editors.base import Editor, storage_dtype, store
from workbench.editors.locate.contexts import RECIPES, Contexts, contexts
from workbench.editors.locate.sharing import residual_targets
from workbench.editors.locate.sweep import LayerWrite
from workbench.editors.locate.targets import TargetOptions, Targets
from workbench.edits import Delta, Edit, WeightEdit
from workbench.errors import OptionError, StatisticsError, did_you_mean
from workbench.facts import EditCase, EditRequest, as_requests
from workbench.model import ModelView
from workbench.stats import SecondMoment, identity_moment, require, second_moments

if TYPE_CHECKING:
    from workbench.editors.locate.calibrate import Calibration

__all__ = [
    "LocateEditor",
    "deltas_of",
    "keys_of",
    "report_of",
    "statistics_for",
    "derived",
    "summarize",
    "unfinished",
    "weight_of_corpus",
]

T = TypeVar("T")

NOT_NEGATIVE = ("lr", "clamp", "weight_decay", "kl_factor")
KL_POSITIONS = ("subject_last", "prompt_end")


@dataclass(frozen=True, kw_only=True)
class LocateEditor(Editor):
    """Options of every editor that locates a key, finds a target and writes it in closed form.

    Args:
        layers: edited layers; one or several (the residual is spread over several).
        steps: forward passes of the target optimization; at most ``steps - 1`` updates.
        lr: its Adam learning rate.
        weight_decay: ω, multiplies ``‖delta‖ / ‖h0‖²``.
        clamp: ``‖delta‖`` stays below this many ``‖h0‖``.
        kl_factor: κ, multiplies the KL divergence on the anchor prompt "{subject} is a".
        kl_position: ``subject_last`` (as released) or ``prompt_end`` (as in the paper).
        stop_loss: an edit stops once its loss is below.
        contexts: recipe of context templates: ``rome``, ``memit`` or ``bare``.
        templates: fixed templates instead of sampled ones; the first must be ``"{}"``.
        corpus: text for the key statistics: ``self`` (sampled from the model), a path, a hub id,
            or ``identity`` (no statistics, C = I).
        corpus_tokens: tokens of it; None for the default of :func:`workbench.stats.second_moments`.
        seed: of template sampling and of the corpus.
    """

    layers: tuple[int, ...]
    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    clamp: float = 4.0
    kl_factor: float = 0.0625
    kl_position: str = "subject_last"
    stop_loss: float = 0.05
    contexts: str = "memit"
    templates: tuple[str, ...] | None = None
    corpus: str = "self"
    corpus_tokens: int | None = None
    seed: int = 0

    accepts: ClassVar[tuple[str, ...]] = ("statistics",)
    decoder_only: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("linear", "additive", "readout")

    def _check(self, view: ModelView) -> None:
        view.check_layers(self.layers)
        name = type(self).__name__
        if len(set(self.layers)) != len(self.layers):
            raise OptionError(f"{name}: layers={self.layers} names a layer twice.")
        for option, low in (("steps", 1), *((x, 0) for x in NOT_NEGATIVE)):
            if not getattr(self, option) >= low:
                raise OptionError(
                    f"{name}: {option}={getattr(self, option)} must be at least {low}."
                )
        one_of(name, "contexts", self.contexts, RECIPES)
        one_of(name, "kl_position", self.kl_position, KL_POSITIONS)
        if self.templates is not None:
            bad = [t for t in self.templates if t.count("{}") != 1]
            if bad or not self.templates or self.templates[0] != "{}":
                raise OptionError(
                    f"{name}: templates must each hold one '{{}}' and start with '{{}}' itself; "
                    f"found {(bad or list(self.templates))[:1]}."
                )

    def target_options(self) -> TargetOptions:
        """The options of the target optimization."""
        return TargetOptions(
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            clamp=self.clamp,
            kl_factor=self.kl_factor,
            kl_position=self.kl_position,
            stop_loss=self.stop_loss,
        )

    @classmethod
    def calibrate(
        cls,
        view: ModelView,
        cases: Sequence[EditCase],
        *,
        layers: Sequence[int] | None = None,
        n_layers: int | None = None,
        closure: float = 0.5,
        **options: Any,
    ) -> Calibration:
        """Choose layer and λ for a model: a sweep of single edits, scored.

        Args:
            view: the model.
            cases: 20 to 50 facts with paraphrase and neighborhood probes.
            layers: candidates for the highest edited layer; None tries up to eight.
            n_layers: consecutive layers to edit; None takes as many as the preset has.
            closure: share of its residual that the median edit shall close in one layer.
            options: options of the editor that stay fixed, such as ``lr`` or ``steps``.

        Returns:
            A :class:`~workbench.editors.locate.calibrate.Calibration` with ``.table``,
            ``.figure``, ``.closure`` and ``.editor``.

        Example:
            >>> wb.MEMIT.calibrate(view, wb.datasets.tiny()[:20]).editor
        """
        from workbench.editors.locate.calibrate import calibrate  # it builds on editors

        start = cls.preset(view, **options)
        width = len(start.layers) if n_layers is None else n_layers
        return calibrate(start, view, cases, layers=layers, n_layers=width, closure=closure)

    def _contexts(self, view: ModelView) -> Contexts:
        return contexts(view, self.contexts, self.seed, self.templates)

    def edit_each(
        self,
        view: ModelView,
        requests: Any,
        *,
        statistics: Mapping[int, SecondMoment] | None = None,
    ) -> list[Edit]:
        """Independent single edits, each for the view as it is now; their targets train together.

        Equal to ``[self.edit(view, [r]) for r in requests]``, several times faster.

        Args:
            view: the model; it is as before afterwards.
            requests: as in :meth:`edit`; conflicts between them are allowed.
            statistics: key statistics by layer, computed or read from the cache if None.

        Raises:
            WorkbenchError: as :meth:`edit`.
        """
        batch = [r for item in as_requests(requests) for r in self._admit(view, item)]
        began = time.perf_counter()
        with view.writing(f"{type(self).__name__}: {len(batch)} single edits"):
            moments = statistics_for(self, view, statistics)
            texts = self._contexts(view)
            targets = self._targets(view, batch, texts)
            found = [
                self._write(view, [r], texts, moments, targets.only([i]))
                for i, r in enumerate(batch)
            ]
            seconds = (time.perf_counter() - began) / len(batch)
            return [
                self._finish(view, [r], deltas, extra, seconds)
                for r, (deltas, extra) in zip(batch, found, strict=True)
            ]

    def _compute(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        *,
        statistics: Mapping[int, SecondMoment] | None = None,
        **given: Any,
    ) -> tuple[list[Delta], dict[str, Any]]:
        moments = statistics_for(self, view, statistics)
        texts = self._contexts(view)
        targets = self._targets(view, requests, texts)
        return self._write(view, requests, texts, moments, targets)

    def _targets(
        self, view: ModelView, requests: Sequence[EditRequest], texts: Contexts
    ) -> Targets:
        """Target vectors of a batch, at the output of the highest edited block."""
        options = self.target_options()
        return residual_targets(view, requests, texts, max(self.layers), options)

    @abstractmethod
    def _write(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        texts: Contexts,
        moments: Mapping[int, SecondMoment],
        targets: Targets,
    ) -> tuple[list[Delta], dict[str, Any]]:
        """Deltas that write the targets, and ``keys`` and ``report``."""


def statistics_for(
    editor: LocateEditor,
    view: ModelView,
    given: Mapping[int, SecondMoment] | None = None,
) -> dict[int, SecondMoment]:
    """Key statistics of the editor's layers: given ones, cached ones, or a new pass.

    Raises:
        StatisticsError: if given statistics lack a layer, are of another model, or from too few
            tokens.
    """
    layers = list(editor.layers)
    if given is not None:
        if not isinstance(given, Mapping):
            raise OptionError(f"statistics must be layer → SecondMoment, not {type(given)}.")
        missing = [x for x in layers if x not in given]
        if missing:
            raise StatisticsError(f"statistics lack layers {missing}: compute them for {layers}.")
        found = {x: given[x] for x in layers}
        for layer, moment in found.items():
            if not isinstance(moment, SecondMoment):
                raise OptionError(
                    f"statistics[{layer}] is a {type(moment).__name__}, not a SecondMoment: make "
                    f"it with second_moments(view, {layers}) or import_npz."
                )
    elif editor.corpus == "identity":
        found = {x: identity_moment(view, x) for x in layers}
    else:
        found = second_moments(
            view, layers, corpus=editor.corpus, n_tokens=editor.corpus_tokens, seed=editor.seed
        )
    for layer, moment in found.items():
        require(moment, view, layer)
    return found


def deltas_of(view: ModelView, writes: Sequence[LayerWrite]) -> list[Delta]:
    """The updates of a sweep, low-rank unless they were shrunken."""
    return [_delta(view, w) for w in writes]


def _delta(view: ModelView, write: LayerWrite) -> Delta:
    if write.change is None:
        return store(view, write.layer, write.residual, write.x)
    kept = write.change.to(storage_dtype(view))
    name, index = view.weight_name(write.layer), kept.flatten().nonzero()[:, 0]
    if 3 * len(index) >= kept.numel():  # an entry costs its position besides its value
        return Delta.dense(name, kept)
    return Delta.sparse(name, tuple(kept.shape), index, kept.flatten()[index])


def keys_of(view: ModelView, writes: Sequence[LayerWrite]) -> dict[str, Tensor]:
    """The keys a sweep wrote, by parameter name, ``[d_mlp, n]`` each."""
    return {view.weight_name(w.layer): w.keys.to(storage_dtype(view)) for w in writes}


def unfinished(view: ModelView, deltas: Sequence[Delta]) -> WeightEdit:
    """Changes made so far, to be shown for a while with ``view.applied`` or ``view.as_if``."""
    return WeightEdit(tuple(deltas), (), "unfinished", {}, view.fingerprint)


def weight_of_corpus(view: ModelView, lam: float | None) -> float:
    """λ of an accumulating editor: given, or ``d_mlp``."""
    return float(view.d_mlp if lam is None else lam)


def derived(
    view: ModelView,
    sort: str,
    moment: SecondMoment,
    parameters: tuple[Any, ...],
    make: Callable[[], T],
) -> T:
    """What follows from a moment and parameters, made once a view.

    The moment is held beside it, so that its identity stays its own.
    """
    memory = view.cache.setdefault(sort, {})
    key = (id(moment), *parameters)
    if key not in memory:
        memory[key] = (moment, make())
    return memory[key][1]  # type: ignore[no-any-return]


def report_of(
    targets: Targets,
    writes: Sequence[LayerWrite],
    moments: Mapping[int, SecondMoment],
    closure: Any,
) -> dict[str, Any]:
    """Tables of an edit: how the targets were found, and what each layer wrote."""
    layers = []
    for i, write in enumerate(writes):
        leverage = moments[write.layer].factor.leverage(write.keys)
        after = writes[i + 1].distance if i + 1 < len(writes) else None
        for k in range(leverage.shape[0]):
            row = {
                "layer": write.layer,
                "request": k,
                "leverage": significant(leverage[k]),
                "distance_before": significant(write.distance[k]),
                "update_norm": significant(write.residual[:, k].norm() * write.x[:, k].norm()),
            }
            if closure is not None:
                row["predicted_closure"] = significant(closure(leverage[k]))
            if after is not None:
                row["distance_after"] = significant(after[k])
            layers.append(row)
    return {"targets": summarize(targets), "layers": layers}


def summarize(targets: Targets) -> list[dict[str, Any]]:
    """First and last step of every edit's target optimization; full traces stay in memory only."""
    last: dict[int, dict[str, Any]] = {}
    first: dict[int, dict[str, Any]] = {}
    for row in targets.trace:
        first.setdefault(int(row["request"]), row)
        last[int(row["request"])] = row
    return [
        {
            "request": i,
            "updates": targets.updates[i],
            "nll_before": significant(first[i]["nll"]),
            "nll": significant(row["nll"]),
            "prob": significant(row["prob"]),
            "delta_norm": significant(row["delta_norm"]),
        }
        for i, row in sorted(last.items())
    ]


def significant(x: Any) -> float:
    return float(f"{float(x):.5g}")


def one_of(editor: str, option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{editor}: {option}={value!r} is unknown." + did_you_mean(value, known))
