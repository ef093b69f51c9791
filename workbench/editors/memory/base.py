"""What the memory editors share: their options, their module, and the training of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from workbench.editors.base import Editor
from workbench.editors.memory.calibration import noise_floor
from workbench.editors.memory.examples import Examples, Place, queries
from workbench.errors import NumericalError, OptionError, did_you_mean
from workbench.facts import EditRequest
from workbench.layouts import DECODER
from workbench.memories import QUERIES, REPLACEMENTS, Settings
from workbench.model import ModelView
from workbench.progress import Bar

__all__ = ["SITES", "MemoryEditor", "fit", "one_of"]

#: Which matrix of the MLP: the second, whose output joins the residual, or the first.
SITES = ("down", "up")


@dataclass(frozen=True, kw_only=True)
class MemoryEditor(Editor):
    """A memory beside one module; no weight is touched.

    Args:
        layers: the one block.
        site: ``down`` or ``up``, the MLP's second or first matrix.
        query: which token asks, one of :data:`workbench.memories.QUERIES`.
        replacement: which outputs are written over, one of
            :data:`workbench.memories.REPLACEMENTS`; None takes ``last`` for a decoder and ``all``
            for encoders.
        tolerance: distance up to which two queries are one; None measures the noise of the model.
        steps: Adam steps.
        lr: Adam learning rate.
        mini_batch: requests trained at once.
        seed: of random beginnings.
    """

    layers: tuple[int, ...]
    site: str = "down"
    query: str = "last"
    replacement: str | None = None
    tolerance: float | None = None
    steps: int = 100
    lr: float = 1.0
    mini_batch: int = 64
    seed: int = 0

    needs_subject: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[str] = "GRACE"

    def _check(self, view: ModelView) -> None:
        name = type(self).__name__
        view.check_layers(self.layers)
        if len(self.layers) != 1:
            raise OptionError(f"{name}: layers={self.layers} must name exactly one layer.")
        one_of(name, "site", self.site, SITES)
        one_of(name, "query", self.query, QUERIES)
        if self.replacement is not None:
            one_of(name, "replacement", self.replacement, REPLACEMENTS)
        if self.site == "up" and view.up_name(self.layers[0]) is None:
            raise OptionError(
                f"{name}: site='up', but {view.layout.family} has no single first matrix in its "
                "MLP: use site='down'."
            )
        for option in ("steps", "lr", "mini_batch"):
            if not getattr(self, option) > 0:
                raise OptionError(f"{name}: {option}={getattr(self, option)} must be above 0.")
        if self.tolerance is not None and self.tolerance < 0:
            raise OptionError(f"{name}: tolerance={self.tolerance} must not be negative.")

    def place(self, view: ModelView) -> Place:
        """The module beside which the memory stands."""
        layer = self.layers[0]
        name = view.weight_name(layer) if self.site == "down" else view.up_name(layer)
        assert name is not None
        return Place(layer, name)

    def settings(self, view: ModelView) -> Settings:
        """How texts are read and written on this model."""
        usual = "last" if view.kind == DECODER else "all"
        settings = Settings(self.query, self.replacement or usual, 0.0)
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = noise_floor(view, self.place(view), settings)
        return Settings(settings.query, settings.replacement, tolerance)

    def _asked(
        self, view: ModelView, requests: Sequence[EditRequest], settings: Settings
    ) -> tuple[Tensor, Tensor]:
        """Keys and plain outputs of requests, from their prompts alone (with their answers where
        the released query is wanted, one by one)."""
        place = self.place(view)
        if settings.query != "released":
            return queries(view, [r.text for r in requests], place, settings)
        parts = [Examples(view, [r], place).queries(settings) for r in requests]
        keys, outputs = zip(*parts, strict=True)
        return torch.cat(keys), torch.cat(outputs)


def fit(
    parameters: Sequence[Tensor],
    losses: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    bar: Bar,
    what: str,
) -> list[Tensor]:
    """Adam on the sum of losses, one each request; no schedule, no early end.

    Args:
        parameters: leaves that ask for gradients; changed in place.
        losses: ``[n]`` nats.
        steps, lr: of Adam.
        bar: steps once a step.
        what: names the editor in errors.

    Returns:
        The losses before each step.

    Raises:
        NumericalError: if a loss becomes NaN or Inf.
    """
    optimizer = torch.optim.Adam(list(parameters), lr=lr)
    history = []
    for _ in range(steps):
        now = losses()
        if not bool(torch.isfinite(now).all()):
            raise NumericalError(
                f"{what}: the loss became NaN or Inf; nothing was changed. Try a smaller lr."
            )
        history.append(now.detach())
        grads = torch.autograd.grad(now.sum(), list(parameters))
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        bar.step()
    return history


def one_of(editor: str, option: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown choice.

    Raises:
        OptionError: with the nearest known one.
    """
    if value not in known:
        raise OptionError(f"{editor}: {option}={value!r} is unknown." + did_you_mean(value, known))
