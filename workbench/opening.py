"""From a loaded transformers model to a view: what cannot be edited is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.capabilities import get_module, prove, refuse_unusable
from workbench.errors import OptionError, UnsupportedModelError
from workbench.layouts import DECODER, find_layout
from workbench.model import ModelView

__all__ = ["open_view"]


def open_view(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    kind: str | None = None,
    labels: Sequence[str] = (),
    revision: str | None = None,
) -> ModelView:
    """Check a loaded transformers model and prove what it can do.

    Args:
        model: any supported language model; it is put in evaluation mode and edited in place.
        tokenizer: a fast tokenizer (character offsets are needed to find subjects).
        name: shown in every output.
        kind: required only if it cannot be inferred.
        labels: label names of a classifier; taken from the configuration if empty.
        revision: which version of it, for the record; None takes the hub's commit, if it has one.

    Raises:
        UnsupportedModelError: unknown, mixture-of-experts, quantised or offloaded models, a slow
            tokenizer, or a class without a head.
        NumericalError: if the model answers with NaN or Inf.
    """
    refuse_unusable(model)
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer without character offsets: load the "
            "fast one (AutoTokenizer.from_pretrained(..., use_fast=True))."
        )
    layout = find_layout(model.config.get_text_config(decoder=True).model_type)
    if kind is not None and kind != layout.kind:
        raise OptionError(f"kind={kind!r}: a {layout.family} model here is a {layout.kind}.")
    model.eval()
    blocks = get_module(model, layout.blocks)
    if blocks is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no {layout.blocks!r}: load the {layout.kind} class of "
            f"family {layout.family!r} (with its head)."
        )
    capabilities = prove(model, layout, len(blocks))  # type: ignore[arg-type]
    if not capabilities.linear:
        why = capabilities.reasons["linear"]
        capabilities = replace(
            capabilities, additive=False, reasons=capabilities.reasons | {"additive": why}
        )
    if not labels and layout.kind not in (DECODER, "encoder_decoder"):
        labels = tuple(str(x) for x in (model.config.id2label or {}).values())
    return ModelView(
        model,
        tokenizer,
        layout=layout,
        capabilities=capabilities,
        name=name,
        labels=labels,
        revision=revision or getattr(model.config, "_commit_hash", None),
    )
