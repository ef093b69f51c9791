"""Texts for key statistics, as token rows with an identity that cache names can contain.

A corpus is one of: text that the pristine model writes itself (``"self"``, needs nothing), a local
.txt or .jsonl file, a data set of the hub, or strings of the caller. Its ``source`` names all it
depends on and is known before anything is read, sampled or downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from workbench.atomic import write_atomically
from workbench.errors import DataError, FetchError, OptionError, did_you_mean
from workbench.fingerprint import checksum_of, fingerprint_of
from workbench.layouts import DECODER
from workbench.model import ModelView
from workbench.places import shipped
from workbench.progress import Bar
from workbench.sampling import sample
from workbench.textfiles import hub_rows, json_texts, suffix_of, text_lines

__all__ = ["HUB", "Corpus", "open_corpus"]

#: Short names → (hub id, configuration).
HUB = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
}
#: Opening words of the model's own text, one after another; the tokenizer adds its own bos.
OPENINGS = (
    *("The", "In", "A", "On", "It", "He", "She", "They", "We", "I", "This", "When", "After"),
    *("During", "Since", "For", "At", "As", "One", "There", "Many", "Most", "While", "Although"),
    *("According", "Born", "Located", "Founded", "Early", "Today", "First", "By"),
)
#: Rows of the model's own text that are sampled, and saved, together.
CHUNK = 32
#: Sampling of the model's own text: wide enough for variety, cut where small models ramble.
SELF_TOP_K, SELF_TEMPERATURE = 50, 1.0
#: Characters of a file that are held in memory; more is never needed for a second moment.
MAX_CHARACTERS = 256_000_000
#: Paragraphs shorter than this many characters (titles, blank lines) are left out of files.
MIN_CHARACTERS = 40
_ELSEWHERE = "Use corpus='self' (the model's own text) or the path of a .txt or .jsonl file."


@dataclass(frozen=True)
class Corpus:
    """Token rows that can be had for a number of tokens.

    Attributes:
        source: what the rows depend on besides the model and the number of tokens; JSON-ready.
        read: number of tokens → rows of token ids, as many as hold that number or all there are.
    """

    source: dict[str, Any]
    read: Callable[[int], list[list[int]]]


def open_corpus(
    view: ModelView,
    corpus: str | os.PathLike[str] | Iterable[str],
    *,
    sequence_length: int,
    seed: int,
    skip_first_token: bool = False,
    folder: Path | None = None,
) -> Corpus:
    """Identify a corpus; its rows are made when they are asked for.

    Args:
        view: whose tokenizer is used; for ``"self"`` also the author, in its present state.
        corpus: ``"self"``, ``"tiny"`` (a sample of the tiny world), a path (.txt: paragraphs;
            .jsonl, .jsonl.gz: field ``text``),
            ``"wikitext"``, ``"wikipedia"``, any hub id ``owner/name[:configuration][@revision]``,
            or strings, which are taken in the given order.
        sequence_length: tokens a row; longer texts are cut into several rows.
        seed: of the order of texts and of the sampling.
        skip_first_token: first tokens do not count.
        folder: where the model's own text is kept; None to keep nothing.

    Raises:
        OptionError: for a name that is neither known nor a hub id.
        DataError: for a missing, unreadable or empty file.
        FetchError: if the hub or the package ``datasets`` is needed and absent.

    Example:
        >>> rows = open_corpus(view, ["a text", "another"], sequence_length=64, seed=0).read(100)
    """
    if isinstance(corpus, str) and corpus == "self":
        return _own_text(view, sequence_length, seed, skip_first_token, folder)
    source, texts = _texts(corpus, seed)

    def read(n_tokens: int) -> list[list[int]]:
        rows = windows(view, texts(), sequence_length)
        return _take(rows, n_tokens, int(skip_first_token))

    return Corpus(source | {"tokenizer": tokenizer_hash(view)}, read)


def windows(view: ModelView, texts: Iterable[str], length: int) -> Iterator[list[int]]:
    """Token rows of at most ``length`` tokens; each begins as the tokenizer begins a text.

    A closing special token is left out, as prompts have none.
    """
    for text in texts:
        coded = view.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids, special = list(coded["input_ids"]), list(coded["special_tokens_mask"])
        n_start = next((i for i, s in enumerate(special) if not s), len(ids))
        n_end = next((i for i, s in enumerate(reversed(special)) if not s), 0)
        start, body = ids[:n_start], ids[n_start : len(ids) - n_end]
        room = max(length - n_start, 1)
        for i in range(0, len(body), room):
            yield start + body[i : i + room]


def tokenizer_hash(view: ModelView) -> str:
    """Short hash of the tokenizer's rules and vocabulary."""
    if "tokenizer_hash" not in view.cache:
        rules = json.loads(view.tokenizer.backend_tokenizer.to_str())
        kept = {k: v for k, v in rules.items() if k not in ("truncation", "padding")}
        view.cache["tokenizer_hash"] = fingerprint_of(kept)
    return str(view.cache["tokenizer_hash"])


def _take(rows: Iterable[list[int]], n_tokens: int, skipped: int) -> list[list[int]]:
    """Rows until they hold ``n_tokens`` tokens that count; the last one is cut to fit."""
    taken: list[list[int]] = []
    for row in rows:
        counted = len(row) - skipped
        if counted <= 0:
            continue
        taken.append(row[: skipped + n_tokens])
        n_tokens -= counted
        if n_tokens <= 0:
            break
    return taken


# ------------------------------------------------------------------ the model's own text


def _own_text(
    view: ModelView, length: int, seed: int, skip_first_token: bool, folder: Path | None
) -> Corpus:
    if view.kind != DECODER:
        raise OptionError(
            f"corpus='self': {view.name} is an {view.kind} and writes no text. Give the path of a "
            ".txt or .jsonl file, or a list of strings."
        )
    source = {
        "corpus": "self",
        "tokenizer": tokenizer_hash(view),
        "openings": list(OPENINGS),
        "chunk": CHUNK,
        "top_k": SELF_TOP_K,
        "temperature": SELF_TEMPERATURE,
    }
    recipe = source | {
        "fingerprint": view.fingerprint,
        "dtype": str(view.dtype),
        "sequence_length": length,
        "seed": seed,
    }
    name = f"text-{fingerprint_of(recipe)}.safetensors"
    path = None if folder is None else folder / name

    def read(n_tokens: int) -> list[list[int]]:
        counted = max(length - int(skip_first_token), 1)
        ids = _grow(view, path, recipe, -(-n_tokens // counted), shipped("texts") / name)
        return _take(ids.tolist(), n_tokens, int(skip_first_token))

    return Corpus(source, read)


def _grow(
    view: ModelView, path: Path | None, recipe: dict[str, Any], n_rows: int, ready: Path
) -> Int[Tensor, "rows pos"]:
    """At least ``n_rows`` rows: those kept on disk, and new chunks, each kept when it is ready.

    The default model's text ships with the package (``ready``): sampling it takes minutes.
    """
    length = recipe["sequence_length"]
    ids = _kept_text(path, length)
    if not len(ids):
        ids = _kept_text(ready, length)
    n_chunks = -(-n_rows // CHUNK)
    have = len(ids) // CHUNK
    if have >= n_chunks:
        return ids
    with Bar("sampling text", n_chunks * CHUNK * length, start=have * CHUNK * length) as bar:
        for chunk in range(have, n_chunks):
            ids = torch.cat([ids, _write_chunk(view, length, recipe["seed"], chunk, bar)])
            if path is not None:
                told = recipe | {"sha256": checksum_of({"ids": ids})}
                note = {"workbench": json.dumps(told, sort_keys=True)}
                write_atomically(path, safetensors_bytes({"ids": ids}, metadata=note))
    return ids


def _kept_text(path: Path | None, length: int) -> Int[Tensor, "rows pos"]:
    nothing = torch.zeros(0, length, dtype=torch.int32)
    if path is None or not path.is_file():
        return nothing
    try:
        with safe_open(path, framework="pt") as handle:
            ids = handle.get_tensor("ids")
            note = json.loads((handle.metadata() or {}).get("workbench", "{}"))
        wanted = note.get("sha256")
    except (SafetensorError, OSError, ValueError, AttributeError):
        return nothing  # damaged: the same text is sampled again from its seed
    if wanted not in (None, checksum_of({"ids": ids})):
        return nothing
    return ids[: len(ids) // CHUNK * CHUNK] if ids.shape[1:] == (length,) else nothing


def _write_chunk(
    view: ModelView, length: int, seed: int, chunk: int, bar: Bar
) -> Int[Tensor, "rows pos"]:
    starts = _openings(view)
    prompts = [starts[(chunk * CHUNK + i) % len(starts)][:length] for i in range(CHUNK)]
    digest = hashlib.sha256(f"{seed}:{chunk}".encode()).digest()
    rows = sample(
        view,
        prompts,
        max_length=length,
        top_k=SELF_TOP_K,
        temperature=SELF_TEMPERATURE,
        seed=int.from_bytes(digest[:7], "big"),
        batch_size=CHUNK,
        bar=bar,
    )
    return torch.tensor(rows, dtype=torch.int32)


def _openings(view: ModelView) -> list[list[int]]:
    """Token rows of the opening words this tokenizer knows; else its bos or eos token."""
    tok = view.tokenizer
    rows = [list(row) for row in tok(list(OPENINGS), verbose=False)["input_ids"]]
    closing = {tok.eos_token_id, tok.sep_token_id} - {None, tok.bos_token_id}
    rows = [r[:-1] if len(r) > 1 and r[-1] in closing else r for r in rows]
    known = [r for r in rows if r and tok.unk_token_id not in r]
    if known:
        return known
    first = next((i for i in (tok.bos_token_id, tok.eos_token_id) if i is not None), 0)
    return [[first]]


# ------------------------------------------------------------------ texts of others


def _texts(
    corpus: str | os.PathLike[str] | Iterable[str], seed: int
) -> tuple[dict[str, Any], Callable[[], Iterator[str]]]:
    """Identity of texts, and a function that yields them."""
    if not isinstance(corpus, str | os.PathLike):
        return _given(list(corpus))
    name = os.fspath(corpus)
    if len(name) > 1000 or "\n" in name:
        raise OptionError("corpus is one long string: give a list of texts, [text].")
    path = shipped("tiny") / "corpus.txt.gz" if name == "tiny" else Path(corpus).expanduser()
    if path.is_file():
        source = {"corpus": path.name, "sha256": _file_hash(path)}
        return source, lambda: _shuffled(_read_file(path), seed)
    is_path = isinstance(corpus, os.PathLike) or name.endswith((".txt", ".jsonl", ".gz", ".json"))
    if is_path or name.startswith(("/", ".", "~")):
        raise DataError(f"there is no text file at {path}: check the path, or use corpus='self'.")
    return _hub(name, seed)


def _given(texts: list[Any]) -> tuple[dict[str, Any], Callable[[], Iterator[str]]]:
    digest = hashlib.sha256()
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise OptionError(f"corpus[{i}] is {type(text).__name__}: give strings.")
        digest.update(f"{len(text)}:".encode() + text.encode("utf-8", "surrogatepass"))
    return {"corpus": f"{len(texts)} texts", "sha256": digest.hexdigest()}, lambda: iter(texts)


def _file_hash(path: Path) -> str:
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as err:
        raise DataError(f"could not read {path}: {err.strerror or err}.") from err


def _read_file(path: Path) -> Iterator[str]:
    if suffix_of(path) in (".jsonl", ".json"):
        found = json_texts(path, "text", advice="mend the file or give another one")
        return (text for text in found if text.strip())
    return _paragraphs(text_lines(path))


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line.strip())
        elif held:
            yield " ".join(held)
            held = []
    if held:
        yield " ".join(held)


def _shuffled(texts: Iterable[str], seed: int) -> Iterator[str]:
    kept, size = [], 0
    for text in texts:
        if len(text) >= MIN_CHARACTERS:
            kept.append(text)
            size += len(text)
        if size >= MAX_CHARACTERS:
            break
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
    return (kept[i] for i in order.tolist())


def _hub(name: str, seed: int) -> tuple[dict[str, Any], Callable[[], Iterator[str]]]:
    """A data set of the hub, streamed; without a revision in its name the newest is looked up."""
    known = ("self", *HUB)
    rest, _, revision = name.partition("@")
    repo, _, config = rest.partition(":")
    repo, config = HUB.get(repo, (repo, config))
    if repo.count("/") != 1:
        raise OptionError(
            f"corpus={name!r} is no file, no hub id and no known name." + did_you_mean(name, known)
        )
    revision = revision or _newest(repo)
    source = {"corpus": repo, "config": config, "split": "train", "revision": revision}

    def texts() -> Iterator[str]:
        rows = hub_rows(repo, config or None, split="train", revision=revision, advice=_ELSEWHERE)
        rows = rows.shuffle(seed=seed, buffer_size=10_000)
        return (r["text"] for r in rows if len(r["text"].strip()) >= MIN_CHARACTERS)

    return source, texts


def _newest(repo: str) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(repo, timeout=20).sha)
    except Exception as err:
        raise FetchError(
            f"the newest revision of {repo!r} could not be looked up ({type(err).__name__}). "
            f"Name one (corpus='{repo}@<revision>'). {_ELSEWHERE}"
        ) from err
