"""Defer and MemoryNetwork: what GRACE is compared with (arXiv 2211.11031; spec memory-and-meta 2).

Defer keeps a linear gate and a linear predictor beside one module (SERAC reduced to one layer);
MemoryNetwork puts a softmax over slots in the module's place. Both see the current edit only, and
go on from the parameters that the edits on the stack left. Neither has negatives, so Defer's gate
drifts to always open, and the soft memory answers every text from the first edit on: that is what
they are there to show.

Departures from the published code: one row a request, so batches work; the query is the last token
of each prompt; before the first edit there is no memory, so the model is as it was. Training mixes
the predictor in by its gate at all positions, as published.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from workbench.adapters import Context
from workbench.capabilities import orient
from workbench.editors.memory.base import MemoryEditor, fit
from workbench.editors.memory.examples import Examples
from workbench.editors.memory.grace import late_layer
from workbench.editors.presets import Preset, find
from workbench.errors import OptionError
from workbench.facts import EditRequest
from workbench.memories import Settings, written_columns
from workbench.model import ModelView
from workbench.networks import Deferral, SoftMemory, network_adapter
from workbench.progress import Bar
from workbench.trace import frozen

__all__ = ["Defer", "MemoryNetwork"]

Network = Deferral | SoftMemory


@dataclass(frozen=True, kw_only=True)
class _Network(MemoryEditor):
    """A network beside one module, trained on each edit in turn."""

    replacement: str | None = "all"
    tolerance: float | None = 0.0
    lr: float = 0.1

    @abstractmethod
    def _initial(self, view: ModelView) -> dict[str, Tensor]:
        """Parameters before the first edit."""

    @abstractmethod
    def _network(self, settings: Settings, parts: Mapping[str, Tensor]) -> Network:
        """The network with these parameters."""

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Any], dict[str, Any]]:
        settings, place = self.settings(view), self.place(view)
        held = view.memory(place.parameter, type(self._network(settings, {})))
        begin = self._initial(view) if held is None else dict(held.parts)
        parts = {name: t.clone().requires_grad_() for name, t in begin.items()}
        network = self._network(settings, parts)
        asked, _ = self._asked(view, requests, settings)
        size = self.mini_batch
        history: list[Tensor] = []
        groups = [slice(i, i + size) for i in range(0, len(requests), size)]
        with Bar("memory", self.steps * len(groups)) as bar, frozen(view.model):
            for part in groups:
                examples = Examples(view, requests[part], place)
                losses = _losses(examples, network, asked[part], settings)
                history += fit(
                    list(parts.values()),
                    losses,
                    steps=self.steps,
                    lr=self.lr,
                    bar=bar,
                    what=type(self).__name__,
                )
        trained = {name: t.detach() for name, t in parts.items()}
        final = self._network(settings, trained)
        gates = final.answer(asked)[0].tolist()
        rows = [{"step": i, "loss": float(each.mean())} for i, each in enumerate(history)]
        report = {"training": rows, "gates": gates}
        return [network_adapter(place.parameter, final)], {"report": report}

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: those of GRACE's suite, or a rule of thumb for unknown models."""
        row = find(PRESETS, view, name, cls.__name__)
        options = dict(row.options) if row else {"layers": (late_layer(view),)}
        return cls(**(options | overrides))


@dataclass(frozen=True, kw_only=True)
class Defer(_Network):
    """A gate that defers to a predictor (SERAC in one layer).

    Example:
        >>> edit = wb.Defer.preset(view).edit(view, request)
        >>> edit.report["gates"]
    """

    def _initial(self, view: ModelView) -> dict[str, Tensor]:
        """As a fresh linear layer: uniform within ``1/√d_in``."""
        d_out, d_in, draw = _draws(self, view, bound=None)
        return {
            "gate": draw(d_in),
            "gate_bias": draw(1),
            "weight": draw(d_out, d_in),
            "bias": draw(d_out),
        }

    def _network(self, settings: Settings, parts: Mapping[str, Tensor]) -> Network:
        return Deferral(settings, parts)


@dataclass(frozen=True, kw_only=True)
class MemoryNetwork(_Network):
    """A soft memory in the module's place: GRACE without discreteness and without deferral.

    Args:
        slots: rows of the memory.

    Example:
        >>> edit = wb.MemoryNetwork.preset(view).edit(view, request)
    """

    slots: int = 100

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        if self.slots < 1:
            raise OptionError(f"MemoryNetwork: slots={self.slots} must be at least 1.")

    def _initial(self, view: ModelView) -> dict[str, Tensor]:
        """Matches as a fresh linear layer, slots uniform in [0, 1)."""
        d_out, d_in, draw = _draws(self, view, bound=None)
        _, _, positive = _draws(self, view, bound=(0.0, 1.0))
        return {
            "match": draw(self.slots, d_in),
            "bias": draw(self.slots),
            "slots": positive(self.slots, d_out),
        }

    def _network(self, settings: Settings, parts: Mapping[str, Tensor]) -> Network:
        return SoftMemory(settings, parts)


def _draws(
    editor: _Network, view: ModelView, *, bound: tuple[float, float] | None
) -> tuple[int, int, Callable[..., Tensor]]:
    """Sizes of the module, and a function that draws uniform tensors from the editor's seed."""
    weight = orient(view.module_of(editor.place(view).parameter))
    d_out, d_in = weight.shape
    low, high = bound or (-(d_in**-0.5), d_in**-0.5)
    generator = torch.Generator().manual_seed(editor.seed)

    def draw(*shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator)).to(weight.device)

    return d_out, d_in, draw


def _losses(
    examples: Examples, network: Network, asked: Tensor, settings: Settings
) -> Callable[[], Tensor]:
    def write(x: Tensor, y: Tensor, context: Context) -> Tensor:
        gate, answer = (t[:, None] for t in network.answer(asked))
        where = written_columns(settings, context).to(y.device)[..., None]
        mixed = gate[..., None] * answer + (1 - gate[..., None]) * y.float()
        return torch.where(where, mixed.to(y.dtype), y)

    return lambda: examples.losses(write)


_SUITE = "Thartvigsen/GRACE, config/"
PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        "t5-small-ssm-nq": Preset({"layers": (4,), "replacement": "all"}, _SUITE),
        "bert-base": Preset({"layers": (10,), "replacement": "all"}, _SUITE),
        "gpt2-xl": Preset({"layers": (35,), "site": "up", "replacement": "all"}, _SUITE),
    },
    "default": {
        "tiny": Preset({"layers": (4,)}, "as GRACE"),
        "tiny-bert": Preset({"layers": (2,)}, "as GRACE"),
        "tiny-t5": Preset({"layers": (1,)}, "as GRACE"),
        "minilm-l6": Preset({"layers": (4,)}, "as GRACE"),
        "smollm2-135m": Preset({"layers": (24,)}, "as GRACE"),
    },
}
