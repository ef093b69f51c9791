"""What a model says next, and free generation.

Batches are padded on the left with a full attention mask. Sampling perturbs the top-k logits with
Gumbel noise from one generator a text and takes the best, which is exact top-k sampling, needs no
global generator, and gives a text that does not depend on its batch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from workbench.errors import OptionError
from workbench.layouts import DECODER, ENCODER_CLASSIFIER
from workbench.metrics.forward import run
from workbench.metrics.plan import make_plan, plan_prompts
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.tokens import Item, context_length, encode, pad_right, pad_token

__all__ = [
    "add_generation",
    "first_tokens",
    "generate_text",
    "next_probs",
    "next_tokens",
    "starts_with",
    "token_table",
    "token_text",
]

BATCH_TEXTS = 32
#: Tokens written beyond the longest target when ``generate=True``.
SPARE_TOKENS = 4


def next_tokens(
    view: ModelView, prompt: str, *, top_k: int = 10, pin: Sequence[str] = ()
) -> pd.DataFrame:
    """The most likely next tokens (labels, for a classifier).

    Args:
        view: the model.
        prompt: literal text.
        top_k: how many tokens.
        pin: texts whose first token is listed in any case.

    Returns:
        Columns ``token, prob, rank`` (from 1), ``token_id, pinned``; likeliest first.

    Raises:
        OptionError: for ``top_k < 1``.
        RequestError: for an empty or too long prompt.

    Example:
        >>> wb.next_tokens(view, "The capital of France is", pin=["Rome"])  # doctest: +SKIP
    """
    if top_k < 1:
        raise OptionError(f"top_k={top_k}: it must be at least 1.")
    return token_table(
        view, next_probs(view, prompt), top_k=top_k, pinned=first_tokens(view, prompt, pin)
    )


def next_probs(view: ModelView, prompt: str) -> Float[Tensor, " d_vocab"]:
    """Probability of every next token (label, for a classifier), on the CPU.

    Raises:
        RequestError: for an empty or too long prompt.
    """
    with view.writing("next tokens"), torch.no_grad():
        logits = torch.cat([r.logits for r in run(view, plan_prompts(view, [prompt]))])[0]
    return logits.softmax(-1).cpu()


def first_tokens(view: ModelView, prompt: str, texts: str | Sequence[str]) -> set[int]:
    """The first token of each text behind a prompt."""
    return {_first_token(view, prompt, t) for t in ([texts] if isinstance(texts, str) else texts)}


def token_table(
    view: ModelView,
    probs: Float[Tensor, " d_vocab"],
    *,
    top_k: int,
    pinned: Collection[int] = (),
    also: Collection[int] = (),
) -> pd.DataFrame:
    """The likeliest tokens of a distribution, and some others; as from :func:`next_tokens`."""
    order = probs.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    wanted = sorted({*pinned, *also}, key=lambda i: int(ranks[i]))
    rows = [
        {
            "token": token_text(view, i),
            "prob": float(probs[i]),
            "rank": int(ranks[i]),
            "token_id": i,
            "pinned": i in pinned,
        }
        for i in dict.fromkeys([*order[:top_k].tolist(), *wanted])
    ]
    return pd.DataFrame(rows)


@torch.no_grad()
def generate_text(
    view: ModelView,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 20,
    top_k: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_TEXTS,
) -> list[str]:
    """Continue prompts.

    Args:
        view: a decoder or encoder-decoder.
        prompts: literal texts.
        max_new_tokens: written at most; a text ends earlier at its end-of-sequence token.
        top_k: None writes greedily; a number samples among so many tokens (ROME uses 5).
        seed: of the sampling; the text of prompt i depends on ``seed`` and ``i`` alone.
        batch_size: texts at once.

    Returns:
        The continuations, without their prompts.

    Raises:
        OptionError: for a classifier, or numbers below 1.
        RequestError: if prompt and continuation do not fit the model's context.

    Example:
        >>> wb.metrics.generate_text(view, ["The capital of France is"])  # doctest: +SKIP
    """
    _check_options(view, max_new_tokens=max_new_tokens, top_k=top_k, batch_size=batch_size)
    rows = _prompt_ids(view, prompts, max_new_tokens)
    texts = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with view.writing("generate"), Bar("generate", len(rows)) as bar:
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            noise = [] if top_k is None else [_TopKNoise(top_k, seed, chosen)]
            found = _continue(view, [rows[i] for i in chosen], max_new_tokens, noise)
            for i, text in zip(chosen, found, strict=True):
                texts[i] = text
            bar.step(len(chosen))
    return texts


def add_generation(view: ModelView, table: pd.DataFrame, max_new_tokens: int | None) -> None:
    """Add ``generated``, ``generated_match`` (starts with the target, as whole words) and ``f1``
    (of the words of as many generated words as the target has) to a score table."""
    if view.kind == ENCODER_CLASSIFIER:
        table["generated"] = [view.labels[int(i)] for i in table["predicted"]]
    else:
        if max_new_tokens is None:
            longest = max(len(str(ids).split()) for ids in table["predicted"])
            max_new_tokens = longest + SPARE_TOKENS
        prompts = list(dict.fromkeys(table["prompt"]))
        texts = generate_text(view, prompts, max_new_tokens=max_new_tokens)
        table["generated"] = table["prompt"].map(dict(zip(prompts, texts, strict=True)))
    both = list(zip(table["generated"], table["target"], strict=True))
    table["generated_match"] = [starts_with(text, target) for text, target in both]
    table["f1"] = [word_f1(text, target) for text, target in both]


def starts_with(text: str, target: str) -> bool:
    """Whether a text begins with the target and the target's last word ends there."""
    text, target = text.lstrip(), target.strip()
    after = text[len(target) : len(target) + 1]
    return text.startswith(target) and not (after.isalnum() and target[-1:].isalnum())


def word_f1(text: str, target: str) -> float:
    """F1 of two bags of lower-cased words; the text is cut to the target's number of words."""
    gold = re.findall(r"\w+", target.lower())
    said = re.findall(r"\w+", text.lower())[: len(gold)]
    shared = sum((Counter(gold) & Counter(said)).values())
    return 2 * shared / (len(gold) + len(said)) if shared else 0.0


class _TopKNoise(LogitsProcessor):
    """Turns greedy choice into top-k sampling: Gumbel noise on the k best, the rest ruled out."""

    def __init__(self, top_k: int, seed: int, texts: Sequence[int]) -> None:
        self.top_k = top_k
        seeds = [(seed * 1_000_003 + i) % (1 << 63) for i in texts]
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        values, ids = scores.float().topk(min(self.top_k, scores.shape[-1]), dim=-1)
        draws = [torch.rand(values.shape[-1], generator=g) for g in self.generators]
        uniform = torch.stack(draws).clamp_min(1e-20).to(values.device)
        noisy = values - (-uniform.log()).clamp_min(1e-20).log()
        return torch.full_like(scores, float("-inf")).scatter(-1, ids, noisy.to(scores.dtype))


def _check_options(view: ModelView, **numbers: int | None) -> None:
    if view.kind == ENCODER_CLASSIFIER:
        raise OptionError(f"{view.name} is a classifier: it writes no text; use wb.score.")
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise OptionError(f"{name}={value}: it must be at least 1.")


def _prompt_ids(
    view: ModelView, prompts: Sequence[str], max_new_tokens: int
) -> list[tuple[int, ...]]:
    if view.kind != DECODER:
        return [tuple(ids) for ids in view.tokenizer(list(prompts), verbose=False)["input_ids"]]
    length = context_length(view.model.config)
    room = None if length is None else max(0, length - max_new_tokens)
    return [row.ids for row in encode(view.tokenizer, [Item(p) for p in prompts], max_length=room)]


def _continue(
    view: ModelView, rows: list[tuple[int, ...]], max_new_tokens: int, noise: list[Any]
) -> list[str]:
    """Left-padded for a decoder, so that every text goes on at the same column."""
    flipped = [row[::-1] for row in rows] if view.kind == DECODER else rows
    ids, mask = pad_right(flipped, pad_token(view), device=view.device)
    if view.kind == DECODER:
        ids, mask = ids.flip(1), mask.flip(1)
    model: Any = view.model  # transformers types this method as a tensor
    out = model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        generation_config=_plain_config(view, max_new_tokens),
        logits_processor=LogitsProcessorList(noise),
    )
    start = ids.shape[1] if view.kind == DECODER else 1
    return [_decode(view, row[start:]) for row in out.tolist()]


def _plain_config(view: ModelView, max_new_tokens: int) -> GenerationConfig:
    """Plain decoding whatever the checkpoint's own settings: one beam, no penalties."""
    own = view.model.generation_config
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=pad_token(view),
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
    )


def _decode(view: ModelView, ids: list[int]) -> str:
    """Text up to the first end-of-sequence token."""
    stated = view.model.generation_config.eos_token_id
    ends = stated if isinstance(stated, list) else [stated]
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return str(view.tokenizer.decode(ids[:stop], skip_special_tokens=True))


def _first_token(view: ModelView, prompt: str, text: str) -> int:
    return int(make_plan(view, [(prompt, text)]).cell_label[0])


def token_text(view: ModelView, index: int) -> str:
    """A token of the vocabulary as text; the name of a label for a classifier."""
    if view.kind == ENCODER_CLASSIFIER:
        return view.labels[index]
    return str(view.tokenizer.decode([index]))
