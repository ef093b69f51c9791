"""Requests run through a model with something else in one module's place.

What lies below the module's block is computed once: its output is handed back whenever the model
asks for it, so the rest runs unchanged, with the model's own forward, in every family (spec
memory-and-meta 1.11). Base weights ask for no gradient, so a backward pass ends at the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.adapters import Context, prompt_mask
from workbench.capabilities import hooks, readout, tensor_of, with_tensor
from workbench.errors import NumericalError
from workbench.facts import EditRequest
from workbench.layouts import DECODER, ENCODER_CLASSIFIER
from workbench.memories import Settings, queries_of
from workbench.model import ModelView
from workbench.tokens import Item, context_length, encode, encode_request, pad_right, pad_token
from workbench.trace import Site, trace

__all__ = ["Examples", "Place", "labels_of", "queries", "watched"]

#: Given the module's input and output and the pass, what the output shall be.
Write = Callable[[Tensor, Tensor, Context], Tensor]


@dataclass(frozen=True)
class Place:
    """A module that a memory stands beside.

    Attributes:
        layer: its block.
        parameter: name of its weight.
    """

    layer: int
    parameter: str


class _Stop(Exception):
    """Ends a forward pass once everything wanted was seen."""


@torch.no_grad()
def queries(
    view: ModelView, prompts: Sequence[str], place: Place, settings: Settings
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    """What the module is given and gives at the query of each prompt, in one batch.

    Args:
        view: the model as it is.
        prompts: whole prompts.
        place: the module.
        settings: which token asks.

    Returns:
        Keys and plain outputs, float32.
    """
    inputs, context = _prompt_inputs(view, prompts)
    return watched(view, inputs, context, place, settings)


def watched(
    view: ModelView, inputs: dict[str, Any], context: Context, place: Place, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Keys and plain outputs at the queries of a batch of inputs; stops above the module.

    Raises:
        NumericalError: if a key holds NaN or Inf.
    """
    found: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        shape = context.mask.shape
        x, y = (t.reshape(*shape, t.shape[-1]) for t in (args[0], tensor_of(out)))
        found.extend(queries_of(settings, t, context) for t in (x, y))
        raise _Stop

    module = view.module_of(place.parameter)
    lengths = None if context.whole else context.prompt.sum(1)
    with (
        view.reading(lengths),
        suppress(_Stop),
        # before any adapter of the stack: the module's own output
        hooks(iter([module.register_forward_hook(watch, prepend=True)])),
    ):
        view.model(**inputs)
    if not bool(found[0].isfinite().all()):
        raise NumericalError(
            f"what {place.parameter!r} is given is not finite for one of the prompts: the model's "
            "weights are damaged, or its dtype is too narrow; load it in float32."
        )
    return found[0], found[1]


def _prompt_inputs(view: ModelView, prompts: Sequence[str]) -> tuple[dict[str, Any], Context]:
    if view.kind == DECODER:
        limit = context_length(view.model.config)
        rows = [e.ids for e in encode(view.tokenizer, [Item(p) for p in prompts], max_length=limit)]
    else:
        rows = [tuple(ids) for ids in view.tokenizer(list(prompts), verbose=False)["input_ids"]]
    ids, mask = pad_right(rows, pad_token(view), device=view.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
    if view.kind == DECODER:
        inputs["use_cache"] = False
    elif view.kind != ENCODER_CLASSIFIER:
        inputs["decoder_input_ids"] = ids[:, :1]
    return inputs, Context(mask, mask)


def labels_of(view: ModelView, request: EditRequest) -> tuple[int, ...]:
    """What a request answers: ids of the target's tokens, or the number of its class."""
    if view.kind == ENCODER_CLASSIFIER:
        return (view.labels.index(request.target_new),)
    if view.kind == DECODER:
        return encode_request(view.tokenizer, request)[0].target_ids
    return tuple(view.tokenizer(text_target=request.target_new)["input_ids"])


class Examples:
    """A batch of requests, ready to be run again and again from one module's block on.

    Args:
        view: the model in the state on which the edit builds.
        requests: the batch.
        place: the module whose output is written over.

    Attributes:
        context: which columns are tokens and which are the prompt.
    """

    def __init__(self, view: ModelView, requests: Sequence[EditRequest], place: Place) -> None:
        self.view, self.place = view, place
        self._inputs, self.context = self._encoded(requests)
        self._below: Any = None
        if place.layer > 0:
            self._below = self._run_below()

    @torch.no_grad()
    def queries(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """Keys and plain outputs where the queries stand in these very inputs, answers included."""
        return watched(self.view, self._inputs, self.context, self.place, settings)

    def losses(self, write: Write) -> Float[Tensor, " n"]:
        """Mean nats a target token of each request, with the module's output rewritten."""
        logp = self._log_probs(write)
        nll = -logp.gather(1, self._labels[:, None])[:, 0] * self._weights
        total = torch.zeros(len(self.context.mask), dtype=nll.dtype, device=nll.device)
        return total.index_add(0, self._rows, nll)

    @torch.no_grad()
    def answers(self, write: Write) -> list[tuple[float, list[bool]]]:
        """Mean nats a target token of each request, and which of its tokens are the arg-max."""
        logp = self._log_probs(write)
        nll = (-logp.gather(1, self._labels[:, None])[:, 0]).double() * self._weights
        total = torch.zeros(len(self.context.mask), dtype=torch.float64, device=nll.device)
        means = total.index_add(0, self._rows, nll).tolist()
        right = (logp.argmax(1) == self._labels).tolist()
        found: list[list[bool]] = [[] for _ in means]
        for row, each in zip(self._rows.tolist(), right, strict=True):
            found[row].append(each)
        return list(zip(means, found, strict=True))

    def _log_probs(self, write: Write) -> Tensor:
        """``[cells, d_vocab]``."""
        module = self.view.module_of(self.place.parameter)
        lengths = None if self.context.whole else self.context.prompt.sum(1)

        def rewrite(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            shape = self.context.mask.shape
            y = tensor_of(out)
            x, full = (t.reshape(*shape, t.shape[-1]) for t in (args[0], y))
            return with_tensor(out, write(x, full, self.context).reshape(y.shape))

        with (
            self.view.reading(lengths),
            self._skipping(),
            hooks(iter([module.register_forward_hook(rewrite)])),
        ):
            logits = self._logits()
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    # ------------------------------------------------------------------ inputs

    def _encoded(self, requests: Sequence[EditRequest]) -> tuple[dict[str, Any], Context]:
        if self.view.kind == DECODER:
            return self._decoder(requests)
        inputs, context = _prompt_inputs(self.view, [r.text for r in requests])
        answers = [labels_of(self.view, r) for r in requests]
        if self.view.kind == ENCODER_CLASSIFIER:
            self._cells(answers, [0] * len(answers))
        else:
            labels, _ = pad_right(answers, pad_token(self.view), device=self.view.device)
            model: Any = self.view.model  # transformers types this method as a tensor
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
            inputs["use_cache"] = False
            self._cells(answers, [0] * len(answers))
        return inputs, context

    def _decoder(self, requests: Sequence[EditRequest]) -> tuple[dict[str, Any], Context]:
        view = self.view
        limit = context_length(view.model.config)
        rows = [encode_request(view.tokenizer, r, max_length=limit)[0] for r in requests]
        ids, mask = pad_right([r.ids[:-1] for r in rows], pad_token(view), device=view.device)
        self._cells([r.target_ids for r in rows], [r.target_start - 1 for r in rows])
        lengths = torch.tensor([r.target_start for r in rows])
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
        return inputs, Context(mask, prompt_mask(mask, lengths), whole=False)

    def _cells(self, answers: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Where logits are read, and what is asked for there."""
        cells = [
            (i, start + k, token, 1 / len(answer))
            for i, (answer, start) in enumerate(zip(answers, starts, strict=True))
            for k, token in enumerate(answer)
        ]
        rows, columns, labels, weights = (
            torch.tensor(c, device=self.view.device) for c in zip(*cells, strict=True)
        )
        self._rows, self._columns, self._labels, self._weights = rows, columns, labels, weights

    # ------------------------------------------------------------------ running

    def _logits(self) -> Tensor:
        """``[cells, d_vocab]`` (classes for a classifier)."""
        view = self.view
        if view.kind == DECODER and view.capabilities.readout:
            site = Site(view.n_layers - 1, "residual")
            with trace(view, [site], stop=True) as seen:
                view.model(**self._inputs)
            return readout(view.model, view.layout, seen[site][self._rows, self._columns])
        logits = view.model(**self._inputs).logits
        if view.kind == ENCODER_CLASSIFIER:
            return logits[self._rows]
        return logits[self._rows, self._columns]

    @torch.no_grad()
    def _run_below(self) -> Any:
        """What the block below the module's gives."""
        found: list[Any] = []

        def keep(module: nn.Module, args: Any, out: Any) -> None:
            found.append(out)
            raise _Stop

        lengths = None if self.context.whole else self.context.prompt.sum(1)
        block = self.view.block(self.place.layer - 1)
        with (
            self.view.reading(lengths),
            suppress(_Stop),
            hooks(iter([block.register_forward_hook(keep)])),
        ):
            self.view.model(**self._inputs)
        return found[0]

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        """Blocks below hand back what they gave; nothing of the model is changed afterwards."""
        blocks: list[Any] = [self.view.block(x) for x in range(self.place.layer)]
        try:
            for block in blocks:
                block.forward = lambda *args, **kwargs: self._below
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)
