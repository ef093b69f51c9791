"""Where each model family keeps its parts: the only place where module names are written.

A row of :data:`LAYOUTS` names modules; it promises nothing. What a model can do (is the edited
matrix linear, does its output reach the residual unscaled, do the logits follow from the last
residual) is *proved* when the model is loaded, see :mod:`workbench.capabilities`. Of an
encoder-decoder the encoder's blocks are edited, as GRACE does (arXiv 2211.11031): there a question
is read.

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
        up: the MLP's first matrix inside a block, None where it is not a module of its own kind.
        up_choices: where ``up`` is None, the MLP's first matrices by version; the first one that
            a block has is meant.
        answering: of an encoder-decoder, the list of blocks that write the answer.
        answering_up: first matrices of the MLP in such a block, by version.
        answering_value: second matrix of the MLP in such a block.
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
    up: str | None = "mlp.up_proj"
    up_choices: tuple[str, ...] = ()
    answering: str | None = None
    answering_up: tuple[str, ...] = ()
    answering_value: str | None = None
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

    def up_path(self, layer: int) -> str | None:
        """Path of the MLP's first matrix in block ``layer``, None if the family has none."""
        return None if self.up is None else f"{self.blocks}.{layer}.{self.up}"


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
    _gpt_like("gpt2", value="mlp.c_proj", up="mlp.c_fc"),
    _gpt_like("gpt_neo", value="mlp.c_proj", up="mlp.c_fc"),
    _gpt_like("gptj", value="mlp.fc_out", up="mlp.fc_in"),
    _gpt_like(
        "bloom",
        value="mlp.dense_4h_to_h",
        up="mlp.dense_h_to_4h",
        attention="self_attention.dense",  # the attention module itself adds the residual
        embed="transformer.word_embeddings",
    ),
    _gpt_like(
        "falcon",
        value="mlp.dense_4h_to_h",
        up="mlp.dense_h_to_4h",
        attention="self_attention",
        embed="transformer.word_embeddings",
    ),
    Layout(
        family="gpt_neox",
        base="gpt_neox",
        blocks="gpt_neox.layers",
        value="mlp.dense_4h_to_h",
        up="mlp.dense_h_to_4h",
        attention="attention",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
    ),
    *(
        Layout(family=name)
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "olmo")
    ),
    Layout(family="phi3", up="mlp.gate_up_proj"),
    Layout(family="stablelm"),
    Layout(family="starcoder2", value="mlp.c_proj", up="mlp.c_fc"),
    Layout(family="phi", value="mlp.fc2", up="mlp.fc1", final_norm="model.final_layernorm"),
    Layout(
        family="opt",
        base="model.decoder",
        blocks="model.decoder.layers",
        value="fc2",
        up="fc1",
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
        base="encoder",
        blocks="encoder.block",
        value="layer.1.DenseReluDense.wo",
        up=None,  # one matrix (wi) or two (wi_0, wi_1) by version
        up_choices=("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi"),
        answering="decoder.block",
        answering_up=("layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi"),
        answering_value="layer.2.DenseReluDense.wo",
        mlp="layer.1.DenseReluDense",
        attention="layer.0.SelfAttention",
        embed="shared",
        final_norm="encoder.final_layer_norm",
        note=_ENCODER_NOTE,
    ),
    Layout(
        family="bart",
        kind=ENCODER_DECODER,
        base="model.encoder",
        blocks="model.encoder.layers",
        value="fc2",
        up="fc1",
        answering="model.decoder.layers",
        answering_up=("fc1",),
        answering_value="fc2",
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
        up="intermediate.dense",
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
