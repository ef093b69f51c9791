"""What an edit may put beside a weight: functions of a module's input and output.

The first kind is CoachHook's hook layer (Li et al., arXiv 2403.05330; spec locate-then-edit 2.7):
next to ``o = W₀x + b`` stands ``o' = o + x dWᵀ``, and a token takes ``o'`` where the size of the
difference stands out from the rest of its prompt, ``Z = (ν − mean ν) / std ν ≥ α`` with
``ν = ‖o' − o‖``. Later edits of one layer fold into one hook layer: differences add up, the newest
threshold holds.

Departures from the published code: statistics of ν cover the real tokens of the prompt only (gate
``masked``; ``reference`` includes padding and everything that follows, C1), so neither padding nor
appended text moves the gate of a prompt; equal differences and single tokens mean "closed" rather
than NaN (C2); the difference stays float32 whatever the model's dtype (C4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.edits import Adapter
from workbench.errors import OptionError

__all__ = [
    "GATES",
    "GENERATION",
    "Context",
    "Gates",
    "HookLayer",
    "as_adapter",
    "as_hook",
    "gate_scores",
    "opened",
    "prompt_mask",
]

GATES = ("masked", "reference")
#: Tokens after the prompt: ``running`` judges each by the prompt and what was written up to it,
#: ``off`` never opens (as released, whose score of a single token is NaN).
GENERATION = ("running", "off")


@dataclass
class Context:
    """What one forward pass of the model is about.

    Attributes:
        mask: ``[rows, pos]`` real tokens among the columns of this pass.
        prompt: ``[rows, pos]`` those that belong to the prompt.
        memory: what the passes before on the same cache decided, empty in the first: layer →
            running statistics ``[rows, 3]`` of a hook layer, name → of a memory.
        continues: whether this pass continues a cache.
        whole: whether all tokens were taken for the prompt because nobody said how long it is.
        seen: layer → what its gate did, filled where it is not None.
    """

    mask: Bool[Tensor, "rows pos"]
    prompt: Bool[Tensor, "rows pos"]
    memory: dict[int | str, Tensor] = field(default_factory=dict)
    continues: bool = False
    whole: bool = True
    seen: dict[int, Gates] | None = None


@dataclass(frozen=True)
class Gates:
    """What a gate did in one pass: ``[rows, pos]`` each.

    Attributes:
        nu: size of the difference, residual units.
        z: how much it stands out; -inf where undefined.
        open: whether the token took the edited output.
        alpha: the threshold.
    """

    nu: Float[Tensor, "rows pos"]
    z: Float[Tensor, "rows pos"]
    open: Bool[Tensor, "rows pos"]
    alpha: float


@dataclass(frozen=True)
class HookLayer:
    """A second weight beside a layer's own, behind a gate.

    Attributes:
        left, right: ``dW = left @ right.T``, ``[d_model, r]`` and ``[d_mlp, r]``.
        alpha: threshold of the gate; ``-inf`` is always open, ``inf`` never.
        gate: one of :data:`GATES`.
        generation: one of :data:`GENERATION`.
    """

    left: Float[Tensor, "d_model r"]
    right: Float[Tensor, "d_mlp r"]
    alpha: float
    gate: str = "masked"
    generation: str = "running"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module it stands beside."""
        return self.left.shape[0], self.right.shape[0]

    def difference(self, x: Float[Tensor, "rows pos d_mlp"]) -> Float[Tensor, "rows pos d_model"]:
        """``x dWᵀ`` in the dtype of the factors."""
        return (x.to(self.left.dtype) @ self.right) @ self.left.T

    def __call__(
        self,
        layer: int,
        x: Float[Tensor, "rows pos d_mlp"],
        y: Float[Tensor, "rows pos d_model"],
        context: Context,
    ) -> Float[Tensor, "rows pos d_model"]:
        """The module's output with the edit where the gate is open."""
        change = self.difference(x)
        nu = change.norm(dim=-1).to(torch.float64)
        z = self.scores(layer, nu, context)
        gate = opened(z, self.alpha)
        if context.seen is not None:
            context.seen[layer] = Gates(nu, z, gate, self.alpha)
        both = (y.to(change.dtype) + change).to(y.dtype)
        return torch.where(gate[..., None], both, y)

    def scores(
        self, layer: int, nu: Float[Tensor, "rows pos"], context: Context
    ) -> Float[Tensor, "rows pos"]:
        """``Z`` of every column; -inf where it is undefined. Updates the context's memory."""
        if self.gate == "reference":
            return _plain_scores(nu)
        before = context.memory.get(layer)
        if context.continues and before is None:  # a cache of another state of the model
            return torch.full_like(nu, -math.inf)
        z, context.memory[layer] = gate_scores(nu, context.mask, context.prompt, before)
        return z if self.generation == "running" else torch.where(context.prompt, z, -math.inf)

    def to(self, device: torch.device, dtype: torch.dtype) -> HookLayer:
        """The same hook layer elsewhere."""
        return replace(self, left=self.left.to(device, dtype), right=self.right.to(device, dtype))

    def joined(self, newer: HookLayer) -> HookLayer:
        """One edit later: differences add up, the newest threshold and gate hold."""
        newer = newer.to(self.left.device, self.left.dtype)
        left = torch.cat([self.left, newer.left], dim=1)
        right = torch.cat([self.right, newer.right], dim=1)
        d, m, r = left.shape[0], right.shape[0], left.shape[1]
        if r * (d + m) > d * m + m * m:  # the factors outgrew the matrix
            left, right = left @ right.T, torch.eye(m, dtype=right.dtype, device=right.device)
        return replace(newer, left=left, right=right)


def gate_scores(
    nu: Float[Tensor, "rows pos"],
    mask: Bool[Tensor, "rows pos"],
    prompt: Bool[Tensor, "rows pos"],
    before: Float[Tensor, "rows 3"] | None = None,
) -> tuple[Float[Tensor, "rows pos"], Float[Tensor, "rows 3"]]:
    """How much each token's difference stands out.

    Args:
        nu: sizes of the differences.
        mask: real tokens.
        prompt: those of the prompt; judged by the statistics of the whole prompt.
        before: count, mean and sum of squared deviations of what came before these columns.

    Returns:
        ``Z``, -inf where it is undefined (padding, fewer than two tokens, equal differences); and
        count, mean, sum of squared deviations afterwards.
    """
    state = _count(nu, prompt) if before is None else before.to(nu)
    z = torch.where(prompt, _standard(nu, state), -math.inf)
    after = mask & ~prompt
    for column in after.any(0).nonzero()[:, 0].tolist():  # what follows the prompt, one by one
        here = after[:, column]
        state = torch.where(here[:, None], _updated(state, nu[:, column]), state)
        score = _standard(nu[:, column : column + 1], state)[:, 0]
        z[:, column] = torch.where(here, score, z[:, column])
    return z, state


def opened(z: Float[Tensor, " *tokens"], alpha: float) -> Bool[Tensor, " *tokens"]:
    """Where the gate is open; ``alpha = -inf`` opens it everywhere."""
    return torch.ones_like(z, dtype=torch.bool) if alpha == -math.inf else z >= alpha


def _count(nu: Tensor, which: Tensor) -> Tensor:
    n = which.sum(1).to(nu)
    mean = (nu * which).sum(1) / n.clamp_min(1)
    spread = ((nu - mean[:, None]).square() * which).sum(1)
    return torch.stack([n, mean, spread], dim=1)


def _updated(state: Tensor, value: Tensor) -> Tensor:
    """One more value (Welford)."""
    n, mean, spread = state.unbind(1)
    step = value - mean
    mean = mean + step / (n + 1)
    return torch.stack([n + 1, mean, spread + step * (value - mean)], dim=1)


def _standard(nu: Tensor, state: Tensor) -> Tensor:
    n, mean, spread = state.unbind(1)
    std = (spread / (n - 1).clamp_min(1)).sqrt()
    known = (n > 1) & (std > 0)
    z = (nu - mean[:, None]) / torch.where(known, std, 1.0)[:, None]
    return torch.where(known[:, None], z, -math.inf)


def _plain_scores(nu: Tensor) -> Tensor:
    """As released: over all columns, padding included."""
    everything = torch.ones_like(nu, dtype=torch.bool)
    return _standard(nu, _count(nu, everything))


def prompt_mask(
    mask: Bool[Tensor, "rows pos"], lengths: Int[Tensor, " rows"] | None
) -> Bool[Tensor, "rows pos"]:
    """The first ``lengths`` real tokens of each row; all of them where it is None."""
    if lengths is None:
        return mask
    if lengths.shape[0] != mask.shape[0]:
        raise OptionError(f"{lengths.shape[0]} prompt lengths for {mask.shape[0]} rows.")
    return mask & (mask.cumsum(1) <= lengths.to(mask.device)[:, None])


def as_hook(adapter: Adapter, *, device: torch.device | str, dtype: torch.dtype) -> HookLayer:
    """The hook layer that an adapter describes.

    Raises:
        KeyError: for a missing piece.
    """
    options = adapter.options
    left, right = (adapter.tensors[k].to(device, dtype) for k in ("left", "right"))
    return HookLayer(left, right, float(options["alpha"]), options["gate"], options["generation"])


def as_adapter(parameter: str, hook: HookLayer) -> Adapter:
    """A hook layer as data."""
    options = {"alpha": hook.alpha, "gate": hook.gate, "generation": hook.generation}
    return Adapter(parameter, "hook_layer", {"left": hook.left, "right": hook.right}, options)
