"""FT+KL: fine-tuning that watches what it does to unrelated text.

The baseline of MEND's paper (arXiv 2110.11309, section 5 and appendix B; spec memory-and-meta 7):
at every step a fresh piece of unrelated text is read, and the Kullback-Leibler divergence of the
edited from the unedited model on it is added to the loss.

Departure from the released code, which weights the edit's loss with 1e-2 beside the divergence:
here the divergence is weighted with 1e2 beside the edit's loss. The direction is the same, and
Adam and RMSprop do not see the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.capabilities import readout
from workbench.corpora import open_corpus
from workbench.datasets import facts
from workbench.editors.finetune import FT, MEND_BASELINE, Shift, mend_options
from workbench.editors.presets import TINY, TINY_TEXT, Preset, identify, options_for
from workbench.errors import OptionError
from workbench.facts import EditRequest
from workbench.layouts import DECODER, ENCODER_CLASSIFIER
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.replay import capture_blocks
from workbench.tokens import Item, context_length, encode, pad_right, pad_token

__all__ = ["FTKL"]

#: Runs the model on texts: logits at every token that counts, ``[n, d_vocab]``.
Reader = Callable[[], Tensor]
#: Tokens of a piece of the model's own text, or of a corpus.
PIECE = 64


@dataclass(frozen=True, kw_only=True)
class FTKL(FT):
    """Fine-tuning with a penalty on what changes in unrelated text: ``L + λ KL(before || after)``.

    Args:
        locality: λ, weight of the divergence (nats a token); 0 is FT.
        local_texts: pieces of text to go through, each once before any comes again.
        local_batch: pieces of a step.
        corpus: where pieces come from unless :meth:`edit` is given ``local``: ``self`` (the
            model's own text), ``facts`` (shipped real facts), ``tiny``, a file or a hub id.

    Example:
        >>> edit = wb.FTKL.preset(view).edit(view, request)
    """

    steps: int = 100
    stop: str = "correct"
    locality: float = 100.0
    local_texts: int = 100
    local_batch: int = 1
    corpus: str = "self"

    accepts: ClassVar[tuple[str, ...]] = ("local",)
    reference: ClassVar[str] = "MEND"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        if self.locality < 0 or self.local_texts < 1 or self.local_batch < 1:
            raise OptionError(
                f"FTKL: locality={self.locality} must not be negative, "
                f"local_texts={self.local_texts} and local_batch={self.local_batch} must be at "
                "least 1."
            )

    def _memory(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        *,
        local: Sequence[EditRequest] | None = None,
        **given: Any,
    ) -> Iterator[EditRequest]:
        """Unrelated text without end; what is written counts as related."""
        if self.locality == 0:
            return iter(())
        found = list(local) if local is not None else local_texts(view, self.corpus, self)
        written = {r.text for r in requests}
        found = [r for r in found if r.text not in written][: self.local_texts]
        if not found:
            raise OptionError(
                f"FTKL: {'local' if local is not None else f'corpus={self.corpus!r}'} has no text "
                "besides the requests: give some, or locality=0."
            )
        return cycle(found)

    def _beside(self, view: ModelView, shift: Shift, memory: Any) -> Tensor | float:
        if self.locality == 0:
            return 0.0
        read = reader(view, list(islice(memory, self.local_batch)), min(self.layers))
        shift.quiet = True
        try:
            with torch.no_grad():
                before = read().log_softmax(-1)
        finally:
            shift.quiet = False
        after = read().log_softmax(-1)
        return self.locality * (before.exp() * (before - after)).sum(-1).mean()

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: those of MEND's paper, or a middle layer for unknown models."""
        options = options_for(PRESETS, view, name, cls.__name__, 1)
        if identify(view) in TINY:
            options.setdefault("corpus", TINY_TEXT["corpus"])
        elif view.kind != DECODER:
            options.setdefault("corpus", "facts")
        return cls(**(options | overrides))


def local_texts(view: ModelView, corpus: str, editor: FTKL) -> list[EditRequest]:
    """Pieces of a corpus as requests: the first half of a piece, and the second as its target.

    Raises:
        OptionError, DataError, FetchError: as :func:`workbench.corpora.open_corpus`.
    """
    if corpus == "facts":
        return [EditRequest(prompt=c.request.text, target_new=c.request.target_true or "?")
                for c in facts()]  # fmt: skip
    length = min(PIECE, context_length(view.model.config) or PIECE)
    with view.pristine():
        text = open_corpus(
            view, corpus, sequence_length=length, seed=editor.seed, folder=cache_dir("stats")
        )
        rows = text.read(editor.local_texts * length)
    pieces = (str(view.tokenizer.decode(row, skip_special_tokens=True)).split() for row in rows)
    return [
        EditRequest(prompt=" ".join(p[: len(p) // 2]), target_new=" ".join(p[len(p) // 2 :]))
        for p in pieces
        if len(p) > 1
    ]


def reader(view: ModelView, texts: Sequence[EditRequest], start: int) -> Reader:
    """A function that runs the model on whole texts; blocks below ``start`` run once."""
    if view.kind == DECODER:
        return _decoder(view, texts, start)
    tok, limit = view.tokenizer, context_length(view.model.config)
    ids, mask = pad_right(
        [tok(r.text)["input_ids"][:limit] for r in texts], pad_token(view), device=view.device
    )
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
    if view.kind == ENCODER_CLASSIFIER:
        return lambda: _wide(view.model(**inputs).logits)
    targets = [tok(text_target=r.target_new)["input_ids"][:limit] for r in texts]
    labels, real = pad_right(targets, pad_token(view), device=view.device)
    return lambda: _wide(view.model(**inputs, labels=labels).logits[real])


def _decoder(view: ModelView, texts: Sequence[EditRequest], start: int) -> Reader:
    limit = context_length(view.model.config)
    rows = encode(view.tokenizer, [Item(r.text, r.target_new) for r in texts])
    blocks = capture_blocks(view, [row.ids[:limit] for row in rows], start, view.n_layers)

    def read() -> Tensor:
        hidden = blocks.hidden
        for layer in range(start, view.n_layers):
            hidden = blocks.run(layer, hidden)
        real = blocks.mask.to(hidden.device)
        return _wide(readout(view.model, view.layout, hidden[real]))

    return read


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


_MEND = "arXiv 2110.11309; eric-mitchell/mend config/alg/ft.yaml with locality"
#: model → weight of the edit's loss beside the divergence; the others have 1e-2.
_EDIT_WEIGHT = {"gpt-j-6b": 1e-3}
PRESETS: dict[str, dict[str, Preset]] = {
    "repo": {
        name: Preset(mend_options(layers, lr, locality=1 / _EDIT_WEIGHT.get(name, 1e-2)), _MEND)
        for name, (layers, lr) in MEND_BASELINE.items()
    },
}
