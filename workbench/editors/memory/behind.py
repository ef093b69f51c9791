"""What a value at the prompt's last token makes of the answer, run again from that token on alone.

A decoder reads from left to right, so a value written over the module's output at the last token of
the prompt reaches no column before it. These are read once and kept as keys and values of
attention; a step of training runs the last token and the answer, from the module's block up (spec
memory-and-meta 1.11 and 12). Everything else goes through
:class:`~workbench.editors.memory.examples.Examples`, with the same losses up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.adapters import Context
from workbench.capabilities import hooks, tensor_of, with_tensor
from workbench.editors.memory.examples import Examples, Place
from workbench.edits import AdapterEdit
from workbench.facts import EditRequest
from workbench.layouts import DECODER
from workbench.memories import Settings, written_columns
from workbench.model import ModelView
from workbench.replay import Replay
from workbench.tokens import Encoded, context_length, encode_request

__all__ = ["Behind", "losses_of_values", "only_behind"]

#: Losses ``[n]`` of values ``[n, d_out]``, one of each request.
Losses = Callable[[Tensor], Tensor]


class Behind:
    """Requests of a decoder, ready to be run again from the last token of their prompts on.

    Args:
        view: the model, without a memory or hook layer at or above the module's block.
        requests: the batch.
        place: the module whose output is written over.
    """

    def __init__(self, view: ModelView, requests: Sequence[EditRequest], place: Place) -> None:
        self.view, self.place = view, place
        limit = context_length(view.model.config)
        rows = [encode_request(view.tokenizer, r, max_length=limit)[0] for r in requests]
        read = [Encoded(r.ids[:-1], r.target_start - 1, r.target_start) for r in rows]
        self._replay = Replay(view, read, place.layer)
        cells = [
            (i, k, token, 1 / len(r.target_ids))
            for i, r in enumerate(rows)
            for k, token in enumerate(r.target_ids)
        ]
        self._rows, self._columns, self._labels, self._weights = (
            torch.tensor(c, device=view.device) for c in zip(*cells, strict=True)
        )

    def losses(self, value: Float[Tensor, "n d_out"]) -> Float[Tensor, " n"]:
        """Mean nats a target token of each request, with its value at the prompt's last token."""

        def rewrite(module: nn.Module, args: tuple[object, ...], out: object) -> object:
            y = tensor_of(out)
            shape = (*self._replay.mask.shape, y.shape[-1])
            first, rest = value.to(y.dtype)[:, None], y.reshape(shape)[:, 1:]
            return with_tensor(out, torch.cat([first, rest], dim=1).reshape(y.shape))

        module = self.view.module_of(self.place.parameter)
        with hooks(iter([module.register_forward_hook(rewrite)])):
            residual = self._replay.run(self._replay.hidden)
        logits = self._replay.logits(residual, self._rows, self._columns)
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        nll = -logp.gather(1, self._labels.to(logp.device)[:, None])[:, 0]
        total = torch.zeros(self._replay.n_rows, dtype=nll.dtype, device=nll.device)
        rows, weights = self._rows.to(nll.device), self._weights.to(nll)
        return total.index_add(0, rows, nll * weights)


def only_behind(view: ModelView, place: Place, settings: Settings) -> bool:
    """Whether a value reaches nothing before the prompt's last token, and no memory but that of the
    module itself stands beside the model."""
    able = view.capabilities.additive and view.capabilities.readout
    if view.kind != DECODER or not able or settings.replacement != "last":
        return False
    names = {
        a.parameter
        for edit in view.stack
        for a in (edit.adapters if isinstance(edit, AdapterEdit) else ())
    }
    whole = all(isinstance(edit, AdapterEdit) for edit in view.stack)
    return not names or (whole and names == {place.parameter})


@contextmanager
def losses_of_values(
    view: ModelView, requests: Sequence[EditRequest], place: Place, settings: Settings
) -> Iterator[Losses]:
    """How good values are, in the cheapest way that the model and the stack allow.

    A codebook that stands beside this very module is left out where only the last token is
    written: whatever it says there is written over, and it says nothing elsewhere.
    """
    if only_behind(view, place, settings):
        with view.as_if() if view.adapted else nullcontext():
            yield Behind(view, requests, place).losses
        return
    examples = Examples(view, requests, place)

    def losses(value: Tensor) -> Tensor:
        def write(x: Tensor, y: Tensor, context: Context) -> Tensor:
            where = written_columns(settings, context).to(y.device)
            return torch.where(where[..., None], value[:, None].to(y.dtype), y)

        return examples.losses(write)

    yield losses
