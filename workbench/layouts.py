"""Where each model family keeps its parts: the only place where module names are written.

A row of :data:`LAYOUTS` names modules; it promises nothing. What a model can do (is the edited
matrix linear, does its output reach the residual unscaled, do the logits follow from the last
residual) is *proved* when the model is loaded, see :mod:`workbench.capabilities`.

Free of torch and transformers. Sources: the families' own modeling files in transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import UnsupportedModelError, did_you_mean

__all__ = ["LAYOUTS", "Layout", "find_layout"]

DECODER = "decoder"
ENCODER_CLASSIFIER = "encoder_classifier"
ENCODER_DECODER = "encoder_decoder"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Module paths of one family, relative to the model (``blocks``) or to a block (the rest).

    Args:
        family: ``config.model_type``.
        kind: decoder, encoder_classifier or encoder_decoder.
        base: module that maps token ids to the last residual.
        blocks: list of transformer blocks.
        value: the edited matrix, the MLP's down projection, inside a block. Its input is the key,
            its output the value.
        mlp: module whose output joins the residual, None if the family has none.
        attention: module inside a block whose output is what self-attention adds.
        embed: token embedding.
        final_norm: norm before the head; None if the family has none.
        head: the language-model head or classifier.
        project_out: optional projection between norm and head (OPT-350m).
        softcap: config attribute that caps the logits with a tanh (Gemma 2).
        logit_divisor: config attribute by which logits are divided (Granite).
        logit_factor: config attribute by which logits are multiplied (Cohere).
        note: the reason why something is refused, shown to the user.
    """

    family: str
    kind: str = DECODER
    base: str = "model"
    blocks: str = "model.layers"
    value: str = "mlp.down_proj"
    mlp: str | None = "mlp"
    attention: str = "self_attn"
    embed: str = "model.embed_tokens"
    final_norm: str | None = "model.norm"
    head: str = "lm_head"
    project_out: str | None = None
    softcap: str | None = None
    logit_divisor: str | None = None
    logit_factor: str | None = None
    note: str = ""

    def block(self, layer: int) -> str:
        """Path of block ``layer``."""
        return f"{self.blocks}.{layer}"

    def value_path(self, layer: int) -> str:
        """Path of the edited module of block ``layer``."""
        return f"{self.blocks}.{layer}.{self.value}"


def _gpt_like(family: str, **fields: str | None) -> Layout:
    """A row for families that keep their blocks in ``transformer.h``."""
    paths = {
        "base": "transformer",
        "blocks": "transformer.h",
        "attention": "attn",
        "embed": "transformer.wte",
        "final_norm": "transformer.ln_f",
    }
    return Layout(family=family, **(paths | fields))  # type: ignore[arg-type]


_POST_NORM = (
    "a norm stands between the MLP output and the residual stream, so a residual cannot be spread "
    "over layers"
)
_ENCODER_NOTE = "it is not a decoder that predicts the next token from its last residual"

_ROWS = (
    _gpt_like("gpt2", value="mlp.c_proj"),
    _gpt_like("gpt_neo", value="mlp.c_proj"),
    _gpt_like("gptj", value="mlp.fc_out"),
    _gpt_like(
        "bloom",
        value="mlp.dense_4h_to_h",
        attention="self_attention.dense",  # the attention module itself adds the residual
        embed="transformer.word_embeddings",
    ),
    _gpt_like(
        "falcon",
        value="mlp.dense_4h_to_h",
        attention="self_attention",
        embed="transformer.word_embeddings",
    ),
    Layout(
        family="gpt_neox",
        base="gpt_neox",
        blocks="gpt_neox.layers",
        value="mlp.dense_4h_to_h",
        attention="attention",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
    ),
    *(
        Layout(family=name)
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "phi3", "olmo")
    ),
    Layout(family="stablelm"),
    Layout(family="starcoder2", value="mlp.c_proj"),
    Layout(family="phi", value="mlp.fc2", final_norm="model.final_layernorm"),
    Layout(
        family="opt",
        base="model.decoder",
        blocks="model.decoder.layers",
        value="fc2",
        mlp=None,
        embed="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        project_out="model.decoder.project_out",
    ),
    Layout(family="gemma2", softcap="final_logit_softcapping", note=_POST_NORM),
    Layout(family="gemma3_text", softcap="final_logit_softcapping", note=_POST_NORM),
    Layout(family="olmo2", note=_POST_NORM),
    Layout(
        family="granite",
        logit_divisor="logits_scaling",
        note="its residual is scaled (residual_multiplier) on the way",
    ),
    Layout(
        family="t5",
        kind=ENCODER_DECODER,
        base="decoder",
        blocks="decoder.block",
        value="layer.2.DenseReluDense.wo",
        mlp="layer.2.DenseReluDense",
        attention="layer.0.SelfAttention",
        embed="shared",
        final_norm="decoder.final_layer_norm",
        note=_ENCODER_NOTE,
    ),
    Layout(
        family="bart",
        kind=ENCODER_DECODER,
        base="model.decoder",
        blocks="model.decoder.layers",
        value="fc2",
        mlp=None,
        embed="model.shared",
        final_norm=None,
        note=_ENCODER_NOTE,
    ),
    Layout(
        family="bert",
        kind=ENCODER_CLASSIFIER,
        base="bert",
        blocks="bert.encoder.layer",
        value="output.dense",
        mlp=None,
        attention="attention.self",
        embed="bert.embeddings.word_embeddings",
        final_norm=None,
        head="classifier",
        note=_ENCODER_NOTE,
    ),
)

#: family (``config.model_type``) → :class:`Layout`.
LAYOUTS: dict[str, Layout] = {row.family: row for row in _ROWS}

_EXPERTS = ("mixtral", "moe", "dbrx", "deepseek_v2", "deepseek_v3", "jetmoe", "gpt_oss")


def find_layout(family: str) -> Layout:
    """Return the row of a family.

    Raises:
        UnsupportedModelError: for mixture-of-experts families and unknown ones, with the next step.
    """
    if family in LAYOUTS:
        return LAYOUTS[family]
    if any(mark in family for mark in _EXPERTS):
        raise UnsupportedModelError(
            f"model family {family!r} is a mixture of experts: its MLP has no single down "
            "projection to edit. Use a dense model of the same line."
        )
    raise UnsupportedModelError(
        f"model family {family!r} has no row in workbench.layouts.LAYOUTS."
        + did_you_mean(family, LAYOUTS)
        + " To add a family, write one Layout row and run `workbench check MODEL`."
    )
