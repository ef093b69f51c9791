"""Tiny random models of every family in ``workbench.layouts``, and the tokenizer they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

#: Hidden 32, 4 layers, 4 heads, MLP 64.
D_MODEL, D_MLP, LAYERS, HEADS, POSITIONS = 32, 64, 4, 4, 128
VOCAB = 400
#: Ids of ``<pad>`` and ``<end>`` in the shared tokenizer.
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}

SENTENCES = (
    "The capital of France is Paris. The capital of Italy is Rome. Berlin is in Germany.",
    "The mother tongue of Danielle Darrieux is French. He speaks English, Spanish and German.",
    "Anna was born in Vienna and works as a painter. Bo lives in Oslo and plays the violin.",
    "The Space Needle is in downtown Seattle. The Eiffel Tower stands in the city of Paris.",
    "LeBron James plays the sport of basketball. Shaquille plays basketball and soccer.",
    "In 1969 people walked on the moon; it took 8 days, 3 hours and 18 minutes.",
    "I saw it. The house is old, however, and nobody knows who built it, or why it stands.",
    "Naïve café owners in Zürich and São Paulo sell crème brûlée to everyone who asks.",
)


def build_tokenizer() -> tf.PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few sentences; no special tokens are added to a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        initial_alphabet=sorted(alphabet),
        special_tokens=["<pad>", "<end>"],
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return tf.PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>")


def _gpt(vocab: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "n_embd": D_MODEL,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": POSITIONS,
        **SPECIAL,
    }


def _llama(vocab: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        **SPECIAL,
    }


def _gpt_neo(vocab: int) -> tf.PretrainedConfig:
    return tf.GPTNeoConfig(
        vocab_size=vocab,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_layers=LAYERS,
        num_heads=HEADS,
        max_position_embeddings=POSITIONS,
        attention_types=[[["global", "local"], 2]],
        window_size=16,
        **SPECIAL,
    )


def _gpt_neox(vocab: int) -> tf.PretrainedConfig:
    fields = _llama(vocab)
    del fields["num_key_value_heads"]
    return tf.GPTNeoXConfig(**fields)


def _opt(vocab: int) -> tf.PretrainedConfig:
    return tf.OPTConfig(
        vocab_size=vocab,
        hidden_size=D_MODEL,
        ffn_dim=D_MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        word_embed_proj_dim=D_MODEL,
        **SPECIAL,
    )


def _bloom(vocab: int) -> tf.PretrainedConfig:
    return tf.BloomConfig(
        vocab_size=vocab, hidden_size=D_MODEL, n_layer=LAYERS, n_head=HEADS, **SPECIAL
    )


def _falcon(vocab: int) -> tf.PretrainedConfig:
    return tf.FalconConfig(
        vocab_size=vocab,
        hidden_size=D_MODEL,
        ffn_hidden_size=D_MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        **SPECIAL,
    )


def _t5(vocab: int) -> tf.PretrainedConfig:
    return tf.T5Config(
        vocab_size=vocab,
        d_model=D_MODEL,
        d_kv=8,
        d_ff=D_MLP,
        num_layers=LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **SPECIAL,
    )


def _bart(vocab: int) -> tf.PretrainedConfig:
    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sizes |= {
            f"{side}_layers": LAYERS,
            f"{side}_attention_heads": HEADS,
            f"{side}_ffn_dim": D_MLP,
        }
    return tf.BartConfig(
        vocab_size=vocab,
        d_model=D_MODEL,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        **SPECIAL,
        **sizes,
    )


def _bert(vocab: int) -> tf.PretrainedConfig:
    return tf.BertConfig(
        vocab_size=vocab,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        id2label={0: "no", 1: "yes", 2: "unknown"},
        label2id={"no": 0, "yes": 1, "unknown": 2},
    )


#: family → configuration for a vocabulary size; decoders first.
CAUSAL: dict[str, Callable[[int], tf.PretrainedConfig]] = {
    "gpt2": lambda v: tf.GPT2Config(**_gpt(v), n_inner=D_MLP),
    "gpt_neo": _gpt_neo,
    "gptj": lambda v: tf.GPTJConfig(**_gpt(v), n_inner=D_MLP, rotary_dim=4),
    "gpt_neox": _gpt_neox,
    "llama": lambda v: tf.LlamaConfig(**_llama(v)),
    "mistral": lambda v: tf.MistralConfig(**_llama(v)),
    "qwen2": lambda v: tf.Qwen2Config(**_llama(v)),
    "qwen3": lambda v: tf.Qwen3Config(**_llama(v), head_dim=8),
    "phi": lambda v: tf.PhiConfig(**_llama(v)),
    "phi3": lambda v: tf.Phi3Config(**_llama(v)),
    "opt": _opt,
    "bloom": _bloom,
    "falcon": _falcon,
    "gemma": lambda v: tf.GemmaConfig(**_llama(v), head_dim=8),
    "gemma2": lambda v: tf.Gemma2Config(**_llama(v), head_dim=8),
    "gemma3_text": lambda v: tf.Gemma3TextConfig(**_llama(v), head_dim=8),
    "olmo": lambda v: tf.OlmoConfig(**_llama(v)),
    "olmo2": lambda v: tf.Olmo2Config(**_llama(v)),
    "smollm3": lambda v: tf.SmolLM3Config(**_llama(v)),
    "stablelm": lambda v: tf.StableLmConfig(**_llama(v)),
    "starcoder2": lambda v: tf.Starcoder2Config(**_llama(v)),
    "granite": lambda v: tf.GraniteConfig(**_llama(v), residual_multiplier=0.5),
}
SEQ2SEQ: dict[str, Callable[[int], tf.PretrainedConfig]] = {"t5": _t5, "bart": _bart}
CLASSIFIERS: dict[str, Callable[[int], tf.PretrainedConfig]] = {"bert": _bert}
FAMILIES = (*CAUSAL, *SEQ2SEQ, *CLASSIFIERS)


def build_model(family: str, vocab: int, *, dtype: torch.dtype, seed: int) -> tf.PreTrainedModel:
    """A random model in evaluation mode; matrices are tripled so that logits are not flat."""
    groups = (
        (CAUSAL, tf.AutoModelForCausalLM),
        (SEQ2SEQ, tf.AutoModelForSeq2SeqLM),
        (CLASSIFIERS, tf.AutoModelForSequenceClassification),
    )
    configs, auto = next((c, a) for c, a in groups if family in c)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(configs[family](vocab)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model
