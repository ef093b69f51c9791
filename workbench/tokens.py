"""Token positions by character offsets, joining of prompt and completion, aligned packing.

A text is tokenised once, whole, with a fast tokenizer; subjects and completions are then found by
their characters. Nothing is tokenised in pieces, so begin-of-sequence tokens and merges across a
boundary cannot shift a position (spec locate-then-edit 1.2 and 1.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.errors import RequestError
from workbench.facts import EditRequest

__all__ = ["Encoded", "Item", "context_length", "encode", "encode_request", "join", "pad_right"]

#: Configuration attributes that state how many positions a model has.
_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


@dataclass(frozen=True)
class Item:
    """A text to encode.

    Args:
        text: the prompt.
        completion: appended after one space where the prompt does not end in one.
        subject: character span (start, end) in ``text``.
    """

    text: str
    completion: str = ""
    subject: tuple[int, int] | None = None


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt and completion.

    Attributes:
        ids: all tokens.
        pivot: index of the subject's last token; of the prompt's last token without a subject.
        target_start: index of the completion's first token; ``len(ids)`` without a completion.
        first: index of the subject's first token, None without a subject.
    """

    ids: tuple[int, ...]
    pivot: int
    target_start: int
    first: int | None = None

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens before the completion."""
        return self.ids[: self.target_start]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Tokens of the completion."""
        return self.ids[self.target_start :]


def join(prompt: str, completion: str) -> str:
    """Prompt and completion with exactly one blank between them.

    Other white space (a line break) at the seam stands for the blank.

    Example:
        >>> join("The capital of France is", "Rome")
        'The capital of France is Rome'
    """
    if prompt and prompt[-1].isspace():
        return prompt + completion.lstrip(" ")
    if not completion or not prompt or completion[0].isspace():
        return prompt + completion
    return f"{prompt} {completion}"


def context_length(config: object) -> int | None:
    """How many positions the model has, None if unlimited."""
    for name in _LENGTH_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def encode(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], *, max_length: int | None = None
) -> list[Encoded]:
    """Encode texts and find subjects and completions by characters.

    Args:
        tokenizer: a fast tokenizer.
        items: what to encode.
        max_length: the model's context length.

    Raises:
        RequestError: if a text exceeds the context, or a prompt or completion has no token.
    """
    if not items:
        return []
    texts = [join(it.text, it.completion) for it in items]
    batch = tokenizer(texts, return_offsets_mapping=True, truncation=False, verbose=False)
    rows = zip(items, batch["input_ids"], batch["offset_mapping"], strict=True)
    encoded = [_locate(item, ids, spans) for item, ids, spans in rows]
    for item, row in zip(items, encoded, strict=True):
        _check_length(item, row, max_length)
    return encoded


def encode_request(
    tokenizer: PreTrainedTokenizerBase,
    request: EditRequest,
    templates: Sequence[str] = ("{}",),
    *,
    with_target: bool = True,
    max_length: int | None = None,
) -> list[Encoded]:
    """Encode a request under context templates (each has one ``{}`` for the whole prompt).

    Raises:
        RequestError: as :func:`encode`.
    """
    completion = request.target_new if with_target else ""
    return encode(
        tokenizer,
        [request_item(request, t, completion) for t in templates],
        max_length=max_length,
    )


def request_item(request: EditRequest, template: str, completion: str = "") -> Item:
    """The request's prompt inside a context template, with the subject's characters."""
    before, _, after = template.partition("{}")
    text = f"{before}{request.text}{after}"
    if request.subject is None or request.subject_start is None:
        return Item(text, completion)
    start = len(before) + request.subject_start
    return Item(text, completion, (start, start + len(request.subject)))


def pad_right(
    rows: Sequence[Sequence[int]], pad: int = 0, *, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "n pos"], Bool[Tensor, "n pos"]]:
    """Stack token rows, padded on the right; returns ids and a mask of real tokens."""
    width = max((len(r) for r in rows), default=0)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids.to(device), mask.to(device)


def pad_token(view: Any) -> int:
    """Id for padding; what it is does not matter behind an attention mask."""
    tokenizer = view.tokenizer
    for found in (tokenizer.pad_token_id, view.model.config.pad_token_id, tokenizer.eos_token_id):
        if isinstance(found, int) and found >= 0:
            return found
    return 0


def _locate(item: Item, ids: list[int], spans: list[tuple[int, int]]) -> Encoded:
    while spans and spans[-1][0] == spans[-1][1]:  # a special token closed the sequence
        ids, spans = ids[:-1], spans[:-1]
    boundary = len(item.text.rstrip()) if item.completion else len(item.text)
    target = next((i for i, (_, end) in enumerate(spans) if end > boundary), len(ids))
    if not item.completion:
        target = len(ids)
    if target == 0:
        raise RequestError(f"prompt {item.text!r} has no token of its own: write a longer prompt.")
    if item.completion and target == len(ids):
        raise RequestError(f"completion {item.completion!r} has no token: write another one.")
    if item.subject is None:
        return Encoded(tuple(ids), target - 1, target)
    inside = _subject_tokens(item, item.subject, spans[:target])
    return Encoded(tuple(ids), inside[-1], target, inside[0])


def _subject_tokens(
    item: Item, subject: tuple[int, int], spans: list[tuple[int, int]]
) -> list[int]:
    start, end = subject
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > start and b > a]
    if not inside:
        raise RequestError(
            f"subject {item.text[start:end]!r} has no token in {item.text!r}: spell it with "
            "characters that the tokenizer knows."
        )
    return inside


def _check_length(item: Item, row: Encoded, max_length: int | None) -> None:
    if max_length is None or len(row.ids) <= max_length:
        return
    part = "subject" if item.subject and row.pivot >= max_length else "prompt"
    shown = item.text if len(item.text) <= 60 else f"{item.text[:57]}..."
    raise RequestError(
        f"{part} too long: {shown!r} has {len(row.ids)} tokens, the model's context is "
        f"{max_length}. Shorten it."
    )
