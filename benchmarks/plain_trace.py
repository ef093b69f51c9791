"""A causal trace as the paper says it: one full forward pass a cell, nothing kept, nothing shared.

The yardstick of ``benchmarks/causal.py`` and the oracle of the tests. Hooks sit on the modules
themselves; of Workbench only the table of module names is used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from workbench.capabilities import get_module

Change = Callable[[Tensor], Tensor]


class PlainTrace:
    """Clean and corrupted values of one prompt, and the probability after any restoration.

    Args:
        view: the model.
        ids: tokens of the prompt.
        subject: first and last subject token.
        noise: ``[samples, tokens, d]`` added to the subject's embeddings.
        answer: the token whose probability is wanted.
    """

    def __init__(
        self,
        view: wb.ModelView,
        ids: list[int],
        subject: tuple[int, int],
        noise: Tensor,
        answer: int,
    ) -> None:
        self.view, self.subject, self.noise, self.answer = view, subject, noise, answer
        self.batch = torch.tensor(ids, device=view.device).expand(len(noise), -1)
        self.clean, self.corrupted = {}, {}
        self.prob_clean = float(self._forward({}, False, self.clean)[0])
        self.prob_corrupted = self._forward({}, True, self.corrupted)

    def cell(
        self, kind: str, layer: int, position: int, *, window: int, severed: str | None = None
    ) -> Tensor:
        """``[samples]`` probabilities with one cell restored."""
        n = self.view.n_layers
        if kind == "residual":
            changes = {("residual", layer): self._put(self.clean["residual", layer], position)}
            for above in range(layer + 1, n) if severed else ():
                held = self.corrupted[severed, above]
                changes[severed, above] = self._put(held, position)
            return self._forward(changes, True)
        span = range(max(0, layer - window // 2), min(n, layer + (window + 1) // 2))
        changes = {(kind, x): self._put(self.clean[kind, x], position) for x in span}
        return self._forward(changes, True)

    def _put(self, values: Tensor, position: int) -> Change:
        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, position] = values[:, position]
            return x

        return change

    def _modules(self, kind: str, layer: int) -> Any:
        layout = self.view.layout
        path = {"mlp": layout.value, "attention": layout.attention, "residual": ""}[kind]
        return get_module(self.view.model, f"{layout.block(layer)}.{path}".rstrip("."))

    @torch.no_grad()
    def _forward(
        self, changes: dict[tuple[str, int], Change], corrupt: bool, keep: dict | None = None
    ) -> Tensor:
        wanted = list(changes)
        if keep is not None:
            kinds = ("residual", "mlp", "attention")
            wanted = [(k, x) for k in kinds for x in range(self.view.n_layers)]
        with ExitStack() as stack:
            for place in wanted:
                hook = self._hook(place, changes.get(place), keep)
                handle = self._modules(*place).register_forward_hook(hook)
                stack.callback(handle.remove)
            embedding = get_module(self.view.model, self.view.layout.embed)
            assert embedding is not None
            if corrupt:
                stack.callback(embedding.register_forward_hook(self._corrupt).remove)
            logits = self.view.model(input_ids=self.batch, use_cache=False).logits[:, -1]
        return logits.softmax(-1)[:, self.answer]

    def _corrupt(self, module: Any, args: Any, out: Tensor) -> Tensor:
        first, last = self.subject
        out = out.clone()
        out[:, first : last + 1] += self.noise.to(out)
        return out

    def _hook(self, place: tuple[str, int], change: Change | None, keep: dict | None) -> Any:
        def hook(module: Any, args: Any, out: Any) -> Any:
            x = out if isinstance(out, Tensor) else out[0]
            full = x.reshape(*self.batch.shape, -1)
            if keep is not None:
                keep[place] = full.clone()
            if change is None:
                return None
            new = change(full).reshape(x.shape)
            return new if isinstance(out, Tensor) else (new, *out[1:])

        return hook
