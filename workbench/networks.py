"""Trained memories beside a module: a gated predictor and a soft memory (arXiv 2211.11031, app.).

- :class:`Deferral` (Defer): a linear gate decides whether a linear predictor answers.
- :class:`SoftMemory` (MemoryNetwork): a softmax over slots always answers.

:func:`as_memory` builds these and codebooks from the adapters that describe them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.adapters import Context
from workbench.edits import Adapter
from workbench.memories import Codebook, Settings, queries_of, write_over

__all__ = ["MEMORIES", "Deferral", "Memory", "SoftMemory", "as_memory", "network_adapter"]


@dataclass(frozen=True, eq=False)
class Deferral:
    """A linear gate and a linear predictor on the query: ``o = W q + b`` where ``σ(w q + c) ≥ ½``.

    Attributes:
        settings: how texts are read and written.
        parts: ``gate`` ``[d_in]``, ``gate_bias`` ``[1]``, ``weight`` ``[d_out, d_in]``, ``bias``.
    """

    settings: Settings
    parts: Mapping[str, Tensor]
    kind: str = "deferral"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module it stands beside."""
        return tuple(self.parts["weight"].shape)  # type: ignore[return-value]

    def answer(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Gates ``[b]`` between 0 and 1, and predictions ``[b, d_out]``."""
        p = self.parts
        gate = torch.sigmoid(queries @ p["gate"] + p["gate_bias"])
        return gate, queries @ p["weight"].T + p["bias"]

    def __call__(self, name: Any, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """The prediction where the gate is open, else the very ``y``."""
        found = _kept(self, name, x, context)
        if found is None:
            return y
        gate, answer = found[:, 0], found[:, 1:]
        return write_over(self.settings, y, answer, gate >= 0.5, context)

    def joined(self, newer: Deferral) -> Deferral:
        """One edit later: the parameters as they were trained on."""
        return newer


@dataclass(frozen=True, eq=False)
class SoftMemory:
    """A softmax over slots: ``a = softmax(M q + b)``, ``y = aᵀ V``, for every text.

    Attributes:
        settings: how texts are read and written.
        parts: ``match`` ``[slots, d_in]``, ``bias`` ``[slots]``, ``slots`` ``[slots, d_out]``.
    """

    settings: Settings
    parts: Mapping[str, Tensor]
    kind: str = "soft_memory"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module it stands beside."""
        return self.parts["slots"].shape[1], self.parts["match"].shape[1]

    def answer(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Ones ``[b]`` (it always answers), and answers ``[b, d_out]``."""
        p = self.parts
        attention = (queries @ p["match"].T + p["bias"]).softmax(-1)
        return torch.ones(len(queries), device=queries.device), attention @ p["slots"]

    def __call__(self, name: Any, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """The answer over the module's output."""
        found = _kept(self, name, x, context)
        if found is None:
            return y
        return write_over(self.settings, y, found[:, 1:], found[:, 0] > 0, context)

    def joined(self, newer: SoftMemory) -> SoftMemory:
        """One edit later: the parameters as they were trained on."""
        return newer


def _kept(memory: Deferral | SoftMemory, name: Any, x: Tensor, context: Context) -> Tensor | None:
    """Gate and answer ``[rows, 1 + d_out]`` of each prompt."""
    if context.continues:
        return context.memory.get(name)
    gate, answer = memory.answer(queries_of(memory.settings, x, context))
    found = torch.cat([gate[:, None], answer], dim=1)
    context.memory[name] = found
    return found


def network_adapter(parameter: str, memory: Deferral | SoftMemory) -> Adapter:
    """A gated predictor or a soft memory as data."""
    return Adapter(
        parameter, memory.kind, dict(memory.parts), {"settings": memory.settings.as_dict()}
    )


Memory = Codebook | Deferral | SoftMemory

_NETWORKS: dict[str, type[Deferral] | type[SoftMemory]] = {
    "deferral": Deferral,
    "soft_memory": SoftMemory,
}
#: Kinds of adapters that are memories.
MEMORIES = ("codebook", *_NETWORKS)


def as_memory(adapter: Adapter, *, device: torch.device | str) -> Memory:
    """The memory that an adapter describes.

    Raises:
        KeyError: for an unknown kind or a missing piece.
    """
    if adapter.kind == "codebook":
        return Codebook.load(adapter, device=device)
    parts = {name: t.to(device) for name, t in adapter.tensors.items()}
    return _NETWORKS[adapter.kind](Settings(**adapter.options["settings"]), parts)
