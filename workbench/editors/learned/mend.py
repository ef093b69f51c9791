"""MEND: gradients, rewritten by small networks into edits (arXiv 2110.11309).

One backward pass gives the gradient of an edit in factors, networks rewrite the factors, and a
learned step size each matrix turns them into a change: ``W − α Σ δ̃ x̃ᵀ`` (spec memory-and-meta 4).

Departures from the released code (eric-mitchell/mend @e04fdb9): the change is subtracted as in the
paper, while the code adds it (preset ``repo``); step sizes are trained at a rate of their own,
which the code means to but does not (spec 4.6, defect 1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from workbench.editors.learned.aggregation import AGGREGATES, least_squares, wanted
from workbench.editors.learned.base import LearnedEditor
from workbench.editors.learned.gradients import Factors, Pairs, capture, matrices
from workbench.editors.learned.learner import Learner, Rewrite, sizes
from workbench.editors.learned.texts import Texts
from workbench.editors.learned.transforms import Shape, Transform
from workbench.errors import OptionError, did_you_mean
from workbench.model import ModelView

__all__ = ["MEND", "MendLearner", "MendSettings"]

RELEASED = "eric-mitchell/mend @e04fdb9, config/alg/mend.yaml"
#: preset → options of training that differ from the defaults, with their source
PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "default": (
        {"rate_lr": 1e-4},
        "measured on the tiny models, minilm-l6 and smollm2-135m (LOG.md)",
    ),
    "paper": ({"rank": 1920, "lr": 1e-6, "rate_lr": 1e-4}, "arXiv 2110.11309, appendix B and C"),
    "repo": (
        {"rank": 1920, "lr": 1e-6, "rate_lr": 1e-6, "start": "normal", "ascent": True},
        RELEASED,
    ),
}


@dataclass(frozen=True, kw_only=True)
class MendSettings(Shape):
    """What is trained.

    Args:
        matrices: names of the edited parameters; their order is kept with the file.
        shared: one network for all matrices of a shape; else one each.
        edit_lr: step sizes at the beginning.
        ascent: add the change instead of subtracting it, as the released code does.
        aggregate: how many pairs become one change, one of
            :data:`workbench.editors.learned.aggregation.AGGREGATES`.
        ridge: λ of least squares at the beginning.
        rank, n_layers, norm, identity, factors, start, scale_last: of the networks, see
            :class:`workbench.editors.learned.transforms.Shape`.
    """

    matrices: tuple[str, ...]
    rank: int = 256
    shared: bool = True
    edit_lr: float = 1e-4
    ascent: bool = False
    aggregate: str = "sum"
    ridge: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregate not in AGGREGATES:
            raise OptionError(
                f"aggregate={self.aggregate!r} is unknown."
                + did_you_mean(self.aggregate, AGGREGATES)
            )
        if not self.ridge > 0:
            raise OptionError(f"ridge={self.ridge} must be above 0.")


class MendLearner(Learner):
    """The networks and step sizes of MEND for one model.

    Args:
        shapes: matrix → (d_in, d_out), in order.
        settings: what to build.
        seed: of the networks' beginning.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], settings: MendSettings, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings, self.matrices = settings, tuple(shapes)
        generator = torch.Generator().manual_seed(seed)
        self.groups = _groups(shapes, settings.shared)
        plain = Shape(**{f.name: getattr(settings, f.name) for f in fields(Shape)})
        self.networks = nn.ModuleList(
            Transform(*shapes[names[0]], len(names), plain, generator) for names in self.groups
        )
        self.edit_lr = Parameter(torch.full((len(shapes),), settings.edit_lr))
        if settings.aggregate == "least_squares":
            start = torch.full((len(shapes),), settings.ridge).log()
            self.log_ridge = Parameter(start)

    def rates(self) -> list[Parameter]:
        return [self.edit_lr]

    def rewrite(
        self, view: ModelView, texts: Texts, *, n_lessons: int, edited: Tensor | None = None
    ) -> Rewrite:
        found = capture(view, texts, self.matrices, n_lessons=n_lessons, edited=edited)
        factors: dict[str, Factors] = {}
        for network, names in zip(self.networks, self.groups, strict=True):
            pairs = [found.pairs[n] for n in names]
            new = self._transformed(network, pairs)
            for name, old, each in zip(names, pairs, new, strict=True):
                factors[name] = self._change(name, old, each, n_lessons)
        return Rewrite({n: factors[n] for n in self.matrices}, found)

    def _transformed(self, network: nn.Module, pairs: list[Pairs]) -> list[Pairs]:
        """The rows of all matrices of a group through their network at once."""
        counts = [len(p.x) for p in pairs]
        mode = torch.repeat_interleave(
            torch.arange(len(pairs)), torch.tensor(counts), output_size=sum(counts)
        )
        like = self.edit_lr
        x, delta = (torch.cat([getattr(p, k) for p in pairs]).to(like) for k in ("x", "delta"))
        x, delta = network(x, delta, mode.to(like.device))
        parts = zip(x.split(counts), delta.split(counts), pairs, strict=True)
        return [Pairs(a, b, p.lesson) for a, b, p in parts]

    def _change(self, name: str, old: Pairs, new: Pairs, n_lessons: int) -> Factors:
        """One matrix's change: summed or by least squares, times its step size."""
        i = self.matrices.index(name)
        step = self.edit_lr[i] * (1.0 if self.settings.ascent else -1.0)
        sums = Factors.of(new, n_lessons)
        if self.settings.aggregate == "sum":
            return Factors(sums.left * step, sums.right)
        keys = Factors.of(old, n_lessons).right.to(sums.right)
        changes = -step * wanted(keys, sums.right, sums.left)
        return Factors(*least_squares(keys, changes, self.log_ridge[i].exp()))


@dataclass(frozen=True, kw_only=True)
class MEND(LearnedEditor):
    """A trained editor: networks rewrite the gradient of an edit into a small, local change.

    Train one with :meth:`train` for a model, or with ``workbench train mend``; the shipped tiny
    models have theirs.

    Example:
        >>> editor = wb.MEND.preset(view)  # doctest: +SKIP
        >>> view.push(editor.edit(view, wb.EditRequest(prompt="...", target_new="...")))
    """

    reference: ClassVar[str] = "MEND"
    presets: ClassVar[Mapping[str, tuple[dict[str, Any], str]]] = PRESETS
    settings_class: ClassVar[type] = MendSettings

    @classmethod
    def learner(cls, view: ModelView, settings: Any, *, seed: int = 0) -> MendLearner:
        return MendLearner(sizes(view, settings.matrices), settings, seed=seed)

    @classmethod
    def usual(cls, view: ModelView) -> dict[str, Any]:
        return {"matrices": matrices(view)}


def _groups(shapes: Mapping[str, tuple[int, int]], shared: bool) -> list[tuple[str, ...]]:
    """Matrices that share a network, in order."""
    by_shape: dict[Any, list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        by_shape[shape if shared else name].append(name)
    return [tuple(names) for names in by_shape.values()]
