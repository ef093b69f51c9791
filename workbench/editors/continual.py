"""Fine-tuning that remembers: FT+EWC and FT+retrain, as GRACE is compared with them.

Both train the edited matrices as :class:`~workbench.editors.finetune.FT` does, and read what was
written before from the edits on the stack (arXiv 2211.11031; spec memory-and-meta 2).

Departures from the published code, which cannot run either: EWC's Fisher information is the mean of
squared gradients of single facts (the released sums are neither reset nor divided by their number),
around the weights as they are; retraining goes on from the weights as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from workbench.capabilities import hooks, tensor_of, with_tensor
from workbench.editors.finetune import FT, loss_function
from workbench.editors.presets import Preset, options_for
from workbench.edits import Delta
from workbench.errors import OptionError
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.trace import frozen

__all__ = ["FTEWC", "FTRetrain", "fisher"]


@dataclass(frozen=True, kw_only=True)
class FTEWC(FT):
    """Fine-tuning with elastic weight consolidation: ``L + λ Σ F (θ − θ*)²``.

    Args:
        penalty: λ, weight of what a change of important numbers costs.
        memory: F is averaged over so many newest facts, those of this batch included.

    Example:
        >>> edit = wb.FTEWC.preset(view).edit(view, request)
    """

    steps: int = 100
    lr: float = 1e-2
    stop: str = "correct"
    penalty: float = 0.1
    memory: int = 10

    reference: ClassVar[str] = "GRACE"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        if self.matrices != "down":
            raise OptionError(f"FTEWC: matrices={self.matrices!r} must be 'down'.")
        if self.penalty < 0 or self.memory < 1:
            raise OptionError(
                f"FTEWC: penalty={self.penalty} must not be negative and memory={self.memory} must "
                "be at least 1."
            )

    def _memory(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> dict[int, Tensor]:
        newest = [*written_before(view), *requests][-self.memory :]
        return fisher(view, newest, self.layers)

    def _pull(self, view: ModelView, name: str, change: Tensor, memory: Any) -> Tensor | float:
        return 2 * self.penalty * memory[view.layer_of(name)].to(change) * change

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: those of GRACE's suite, or a middle layer for unknown models."""
        return cls(**(options_for(PRESETS, view, name, cls.__name__, 1) | overrides))


@dataclass(frozen=True, kw_only=True)
class FTRetrain(FT):
    """Fine-tuning that goes over the whole history now and then.

    Args:
        every: facts after which everything written so far is trained again, before the next.
        epochs: passes over the history.

    Example:
        >>> edit = wb.FTRetrain.preset(view).edit(view, request)
    """

    steps: int = 100
    lr: float = 1e-2
    stop: str = "correct"
    every: int = 50
    epochs: int = 5

    reference: ClassVar[str] = "GRACE"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        if self.every < 1 or self.epochs < 1:
            raise OptionError(
                f"FTRetrain: every={self.every} and epochs={self.epochs} must be at least 1."
            )

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Delta], dict[str, Any]]:
        changes = self._unchanged(view)
        again = self._due(view)
        rows = self._train(view, again, changes, steps=self.epochs) if again else []
        report = {"retraining": rows, "training": self._train(view, requests, changes)}
        return self._found(changes), {"report": report}

    def _due(self, view: ModelView) -> list[EditRequest]:
        """The whole history where an edit of this kind completed another ``every`` facts."""
        history = written_before(view)
        newest = len(view.stack[-1].requests) if view.stack else 0
        whole, before = len(history) // self.every, (len(history) - newest) // self.every
        return history if whole > before else []

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: those of GRACE's suite, or a middle layer for unknown models."""
        return cls(**(options_for(PRESETS, view, name, cls.__name__, 1) | overrides))


def written_before(view: ModelView) -> list[EditRequest]:
    """Every fact of the edits on the stack, oldest first; a later target replaces an earlier."""
    newest: dict[tuple[str, str | None], EditRequest] = {}
    for edit in view.stack:
        for request in edit.requests:
            key = (request.prompt, request.subject)
            newest.pop(key, None)
            newest[key] = request
    return list(newest.values())


def fisher(
    view: ModelView, requests: Sequence[EditRequest], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Mean squared gradient of the edited matrices over single facts.

    The gradient of one fact is ``Σ_t δ_t x_tᵀ`` over its tokens; inputs and output gradients of a
    single backward pass through each fact give it without ever making a weight's gradient.

    Args:
        view: the model as it is.
        requests: the facts.
        layers: of the matrices.

    Returns:
        Layer → ``[d_model, d_mlp]``.
    """
    total = {x: torch.zeros_like(view.weight(x), dtype=torch.float32) for x in layers}
    for request in requests:
        loss_of = loss_function(view, [request], layers, "target_new")
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        watching = (view.value_module(x).register_forward_hook(_watch(x, seen)) for x in layers)
        with frozen(view.model), hooks(watching):
            loss, _ = loss_of()
        outputs = [seen[x][1] for x in layers]
        for layer, delta in zip(layers, torch.autograd.grad(loss, outputs), strict=True):
            x = seen[layer][0].flatten(0, -2).float()
            total[layer] += (delta.flatten(0, -2).float().T @ x).square()
    return {layer: t / len(requests) for layer, t in total.items()}


def _watch(layer: int, seen: dict[int, tuple[Tensor, Tensor]]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        y = tensor_of(out)
        if not y.requires_grad:  # the lowest of the layers: the backward pass ends here
            y = y.detach().requires_grad_()
        seen[layer] = (args[0].detach(), y)
        return with_tensor(out, y.clone())  # some families add to it in place (Falcon)

    return hook


_SUITE = "Thartvigsen/GRACE, config/"
PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        "t5-small-ssm-nq": Preset({"layers": (4,)}, _SUITE),
        "bert-base": Preset({"layers": (10,)}, _SUITE),
    },
}
