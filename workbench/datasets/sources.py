"""Where the field's data sets come from: fetched by name, or a message that says how to get them.

Nothing is fetched unless a loader is called without a path. A download appears in the cache in one
rename, with its SHA-256 recorded beside it, and is compared with it whenever it is used. The
publishers give no checksums, so none is pinned: compare the recorded one between machines.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.atomic import write_atomically
from workbench.errors import DataError, FetchError, OptionError, StorageError, did_you_mean
from workbench.places import cache_dir
from workbench.progress import Bar

__all__ = ["SOURCES", "Source", "fetch", "where"]

TIMEOUT_SECONDS = 30
BLOCK_BYTES = 1 << 20
OFFLINE = "wb.datasets.facts() and wb.datasets.tiny() need no network"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one data set is published.

    Args:
        file: name of the file that a loader expects.
        urls: direct addresses, tried in order; empty if it cannot be fetched without a browser.
        page: folder or page to open by hand.
        about: what it is and which loader reads it.
        sha256: of the file, None where nobody published one.
    """

    file: str
    about: str
    urls: tuple[str, ...] = ()
    page: str = ""
    sha256: str | None = None


_ROME = "https://rome.baulab.info/data/dsets"
_MEMIT = "https://memit.baulab.info/data/dsets"
_MEND_DRIVE = "https://drive.google.com/drive/folders/1jAqBE45jEKR-5pMkwxlVQ0V8eKxqWbxA"
_EASYEDIT_DRIVE = "https://drive.google.com/file/d/1WRo2SqqgNtZF11Vq0sF5nL_-bHi18Wi4/view"


def _hosted(file: str, about: str) -> Source:
    return Source(file=file, about=about, urls=(f"{_ROME}/{file}", f"{_MEMIT}/{file}"))


#: name → :class:`Source`. Links are those of the methods' own repositories.
SOURCES: dict[str, Source] = {
    "counterfact": _hosted("counterfact.json", "CounterFact (ROME); wb.datasets.counterfact"),
    "multi_counterfact": _hosted(
        "multi_counterfact.json",
        "CounterFact without conflicting records (MEMIT); wb.datasets.multi_counterfact",
    ),
    "known_facts": _hosted(
        "known_1000.json",
        "facts that GPT-2 XL knows (ROME's causal trace); wb.datasets.known_facts",
    ),
    "zsre": _hosted("zsre_mend_eval.json", "zsRE, evaluation half (MEND); wb.datasets.zsre"),
    "zsre_train": _hosted("zsre_mend_train.json", "zsRE, training half; wb.datasets.zsre"),
    "natural_questions": Source(
        file="NQ-open.dev.jsonl",
        urls=(
            "https://raw.githubusercontent.com/google-research-datasets/natural-questions/master/"
            "nq_open/NQ-open.dev.jsonl",
        ),
        about="Natural Questions, open version; wb.datasets.nq",
    ),
    "fever": Source(
        file="fever-train.jsonl",
        urls=("https://fever.ai/download/fever/train.jsonl",),
        about="FEVER, training claims; wb.datasets.fever",
    ),
    "attribute_snippets": _hosted(
        "attribute_snippets.json", "reference texts; wb.metrics.consistency"
    ),
    "easyedit": Source(
        file="counterfact-edit.json",
        page=_EASYEDIT_DRIVE,
        about="CounterFact and zsRE as EasyEdit and CoachHook use them (one archive, folders "
        "counterfact and zsre); wb.datasets.easyedit",
    ),
    "mend": Source(
        file="structured_zeroshot-dev-new_annotated_final.jsonl",
        page=_MEND_DRIVE,
        about="data of the MEND repository: zsRE with rephrasings, FEVER, Natural Questions "
        "(unpack each folder into data/)",
    ),
    "grace_zsre": Source(
        file="structured_zeroshot-dev-new_annotated_final.jsonl",
        page=_MEND_DRIVE,
        about="zsRE stream of GRACE: the same file as MEND's",
    ),
    "grace_scotus": Source(
        file="(a hub data set)",
        page="https://huggingface.co/datasets/tomh/grace-scotus",
        about="SCOTUS stream of GRACE, columns text and label",
    ),
    "downstream": Source(
        file="downstream/ (a folder: sst2.json, mrpc.json, ...)",
        page="https://github.com/scalable-model-editing/unified-model-editing/tree/main/glue_eval",
        about="nine small tasks for general ability, pickled lists of records to be saved as JSON "
        "under the same names (hellaswag: records with ctx, endings and label); wb.downstream",
    ),
    "grace_hallucination": Source(
        file="(a hub data set)",
        page="https://huggingface.co/datasets/potsawee/wiki_bio_gpt3_hallucination",
        about="sentences of GPT-3 with annotations, from which GRACE's task is built",
    ),
}


def where(name: str) -> str:
    """How to get a data set: its link, the file's name and its checksum.

    Raises:
        OptionError: for an unknown name.

    Example:
        >>> print(where("easyedit"))  # doctest: +SKIP
    """
    source = _source(name)
    links = source.urls or (source.page,)
    way = "fetched when a loader gets no path" if source.urls else "to be downloaded by hand"
    found = cache_dir("datasets") / source.file
    lines = [
        f"{name}: {source.about}",
        *(f"  link: {link} ({way})" for link in links),
        f"  file: {source.file}",
        f"  SHA-256: {source.sha256 or 'not published; Workbench records it when it fetches'}",
    ]
    if source.urls:
        lines.append(f"  cache: {found} ({'there' if found.is_file() else 'not there yet'})")
    return "\n".join(lines)


def fetch(name: str, *, opener: Callable[..., Any] | None = None) -> Path:
    """Path of a data set in the cache, downloaded the first time.

    Args:
        name: a key of :data:`SOURCES`.
        opener: stands for ``urllib.request.urlopen`` in tests.

    Raises:
        FetchError: without a network, for a broken download, or if it must be fetched by hand.
        StorageError: if the cache cannot be written. DataError: if the file was changed since.
    """
    source = _source(name)
    target = cache_dir("datasets") / source.file
    if target.is_file():
        _require_whole(target, source.sha256)
        return target
    if not source.urls:
        raise FetchError(f"{name} cannot be fetched by a program. Get it by hand:\n{where(name)}")
    failures = []
    for url in source.urls:
        try:
            return _download(url, target, source.sha256, opener or urllib.request.urlopen)
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as e:
            failures.append(f"{url}: {getattr(e, 'reason', None) or e or type(e).__name__}")
    raise FetchError(
        f"cannot fetch {name} ({'; '.join(failures)}). Offline: download {source.file} on another "
        f"machine and pass its path to the loader, or put it at {target}; {OFFLINE}."
    )


def _require_whole(target: Path, published: str | None) -> None:
    """Compare a file with what was published, or recorded when it was fetched."""
    wanted = published
    with suppress(OSError, ValueError, KeyError, TypeError):  # put there by hand: nothing recorded
        record = json.loads(target.with_name(f"{target.name}.source.json").read_text("utf-8"))
        wanted = wanted or str(record["sha256"])
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest() if wanted else None
    if found != wanted:
        raise DataError(
            f"{target} has SHA-256 {found}, expected {wanted}: it was changed or damaged. Delete "
            "it and it is fetched again, or pass the path of another file."
        )


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise OptionError(f"data set {name!r} is unknown." + did_you_mean(name, SOURCES))
    return SOURCES[name]


def _download(url: str, target: Path, sha256: str | None, opener: Callable[..., Any]) -> Path:
    """Stream into a ``.part`` file, check it, rename it and write the record."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    with opener(url, timeout=TIMEOUT_SECONDS) as answer:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            digest, n_bytes = _copy(answer, part, f"download {target.name}")
            _check(url, digest, sha256)
            os.replace(part, target)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            raise
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error}") from error
        finally:
            part.unlink(missing_ok=True)
    record = {"url": url, "sha256": digest, "bytes": n_bytes}
    write_atomically(target.with_name(f"{target.name}.source.json"), json.dumps(record).encode())
    return target


def _copy(answer: Any, part: Path, phase: str) -> tuple[str, int]:
    """SHA-256 and size of what was written; a short answer is an error."""
    stated = answer.headers.get("Content-Length")
    expected = int(stated) if stated else None
    digest, done = hashlib.sha256(), 0
    with part.open("wb") as file, Bar(phase, expected) as bar:
        while block := answer.read(BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            done += len(block)
            bar.step(len(block))
    if expected is not None and done != expected:
        raise http.client.IncompleteRead(b"", expected - done)
    return digest.hexdigest(), done


def _check(url: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise FetchError(
            f"{url} has SHA-256 {found}, expected {expected}: it was damaged on the way or "
            "replaced; nothing was kept."
        )
