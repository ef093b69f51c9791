"""Edits for text generation: what the model itself writes behind a piece of text.

MEND's text task (arXiv 2110.11309, appendix C; spec memory-and-meta 11) edits a decoder to continue
a text with ten tokens that it sampled itself. The released samples belong to one model; these are
made for any model, once, and kept beside the other caches.

Departures: a sample is kept only if prompt and sample, written as text, read back as the same
tokens; shortened copies begin at a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workbench.atomic import write_atomically
from workbench.editors.learned.lessons import Topic
from workbench.errors import DataError, RequestError
from workbench.facts import EditRequest
from workbench.fingerprint import fingerprint_of
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.progress import Bar
from workbench.sampling import sample
from workbench.tokens import Item, encode

__all__ = ["SAMPLED", "continuations", "passages"]

#: Tokens of a sample, as published.
SAMPLED = 10
#: Tokens of the text before it, drawn for every chunk of samples.
SHORTEST, LONGEST = 16, 48
#: Texts that are continued together.
CHUNK = 32
#: Sampling as for the model's own text elsewhere.
TOP_K, TEMPERATURE = 50, 1.0
#: Words of a text that counts, and at which it is cut where it must stay as it is.
FEWEST_WORDS, MOST_WORDS = 50, 80


def usable(texts: Iterable[str], *, n: int) -> list[str]:
    """The first ``n`` texts of at least fifty words in plain ASCII, white space made single.

    Raises:
        DataError: if there is none.
    """
    neat = (" ".join(text.split()) for text in texts)
    fit = (text for text in neat if text.isascii() and text.count(" ") + 1 >= FEWEST_WORDS)
    found = list(dict.fromkeys(islice(fit, n)))
    if not found:
        raise DataError(
            f"no text has {FEWEST_WORDS} or more words in plain ASCII: give a file with whole "
            "paragraphs in its lines, such as WikiText."
        )
    return found


def openings(texts: Sequence[str]) -> list[str]:
    """Pieces of fifty words, every text's first piece before any text's second."""
    words = [text.split(" ") for text in texts]
    most = max(map(len, words)) // FEWEST_WORDS
    cut = ((w, k * FEWEST_WORDS) for k in range(most) for w in words)
    pieces = (w[start : start + FEWEST_WORDS] for w, start in cut)
    return [" ".join(piece) for piece in pieces if len(piece) == FEWEST_WORDS]


def passages(texts: Sequence[str]) -> list[EditRequest]:
    """Texts that must stay as they are: the first word as prompt, the rest as what follows it."""
    return [_passage(text.split(" ")) for text in texts]


def continuations(
    view: ModelView, texts: Sequence[str], *, n: int, seed: int = 0, folder: Path | None = None
) -> list[Topic]:
    """Topics whose edit is what the pristine model wrote behind the opening of a text.

    Args:
        view: a decoder.
        texts: from :func:`usable`.
        n: topics wanted; fewer come back where the texts end.
        seed: of the openings' lengths and of the sampling.
        folder: where samples are kept; None is the cache.

    Raises:
        DataError: if no sample can be written as text.
    """
    recipe, texts = _recipe(view, texts, seed), openings(texts)
    folder = cache_dir("lessons") if folder is None else folder
    path = folder / f"continuations-{fingerprint_of(recipe)}.json"
    chunks = _kept(path)
    with view.pristine(), Bar("sampling edits", n, start=min(n, _count(chunks))) as bar:
        while _count(chunks) < n and len(chunks) * CHUNK < len(texts):
            chunks.append(_sampled(view, texts, seed, len(chunks)))
            bar.step(len(chunks[-1]))
            write_atomically(path, json.dumps({"recipe": recipe, "chunks": chunks}).encode())
    pairs = [pair for chunk in chunks for pair in chunk][:n]
    if not pairs:
        raise DataError(
            f"nothing that {view.name} wrote behind {len(texts)} openings reads back as the same "
            "tokens: its tokenizer does not know their words; give other texts."
        )
    return [_topic(prompt, completion) for prompt, completion in pairs]


def _recipe(view: ModelView, texts: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "fingerprint": view.fingerprint,
        "dtype": str(view.dtype),
        "texts": fingerprint_of({"texts": list(texts)}),
        "seed": seed,
        "tokens": [SHORTEST, LONGEST, SAMPLED],
        "sampling": [TOP_K, TEMPERATURE, CHUNK],
    }


def _sampled(view: ModelView, texts: Sequence[str], seed: int, chunk: int) -> list[list[str]]:
    """(prompt, completion) of one chunk of texts."""
    rng = np.random.default_rng((seed, chunk))
    longest = int(rng.integers(SHORTEST, LONGEST + 1))
    openings = [_opening(view, t, longest) for t in texts[chunk * CHUNK : (chunk + 1) * CHUNK]]
    known = [(text, ids) for text, ids in openings if ids]
    if not known:
        return []
    rows = sample(
        view,
        [ids for _, ids in known],
        max_length=longest + SAMPLED,
        top_k=TOP_K,
        temperature=TEMPERATURE,
        seed=int(rng.integers(2**31)),
        batch_size=CHUNK,
    )
    new = [row[len(ids) :][:SAMPLED] for (_, ids), row in zip(known, rows, strict=True)]
    found = (_pair(view, text, tail) for (text, _), tail in zip(known, new, strict=True))
    return [pair for pair in found if pair is not None]


def _opening(view: ModelView, text: str, longest: int) -> tuple[str, list[int]]:
    """The first whole words of a text that take at most so many tokens."""
    coded = view.tokenizer(text, return_offsets_mapping=True, verbose=False)
    spans = [span for span in coded["offset_mapping"] if span[1] > span[0]]
    end = spans[min(longest, len(spans)) - 1][1]
    cut = text if end >= len(text) else text[: text.rfind(" ", 0, end + 1)].rstrip()
    if not cut.strip():
        return text, []
    return cut, list(encode(view.tokenizer, [Item(cut)])[0].ids)[:longest]


def _pair(view: ModelView, prompt: str, tail: list[int]) -> list[str] | None:
    """Prompt and completion, None unless they read back as the same tokens."""
    special = set(view.tokenizer.all_special_ids)
    text = str(view.tokenizer.decode(tail, clean_up_tokenization_spaces=False))
    completion = text.removeprefix(" ")
    if special & set(tail) or not completion.strip() or completion[0].isspace():
        return None
    try:
        read = encode(view.tokenizer, [Item(prompt, completion)])[0]
    except RequestError:
        return None
    return [prompt, completion] if list(read.target_ids) == tail else None


def _topic(prompt: str, completion: str) -> Topic:
    """Shortened copies lose up to half of the prompt's words."""
    words = prompt.split(" ")
    lengths = np.cumsum([0, *(len(w) + 1 for w in words[: len(words) // 2])])
    return Topic(
        edits=(EditRequest(prompt=prompt, target_new=completion),),
        cuts=tuple(int(n) for n in lengths),
    )


def _passage(words: list[str]) -> EditRequest:
    return EditRequest(prompt=words[0], target_new=" ".join(words[1:MOST_WORDS]))


def _kept(path: Path) -> list[list[list[str]]]:
    """Chunks that were sampled before; a damaged file is sampled again from its seed."""
    try:
        return list(json.loads(path.read_text())["chunks"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _count(chunks: Sequence[Sequence[Any]]) -> int:
    return sum(map(len, chunks))
