"""Bad models, statistics and folders, and Ctrl-C at every step: the model stays as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from test_bad_input import ANNA, BO, LOCATING, PLAIN, make, refused, untouched

from workbench.editors.locate.base import LocateEditor
from workbench.errors import (
    DataError,
    FetchError,
    NumericalError,
    OptionError,
    StatisticsError,
    UnsupportedModelError,
)
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.pretrained import load
from workbench.progress import progress_to
from workbench.stats import SecondMoment


@pytest.fixture(scope="module")
def view(make_view) -> ModelView:
    return make_view("llama")


# ---------------------------------------------------------------------- statistics


def moments(view: ModelView, layers: Any, **changes: Any) -> dict[int, SecondMoment]:
    found = {}
    for layer in layers:
        g = torch.Generator().manual_seed(layer)
        a = torch.randn(view.d_mlp, 4 * view.d_mlp, generator=g, dtype=torch.float64)
        fields = {
            "layer": layer,
            "matrix": a @ a.T / (4 * view.d_mlp),
            "mean": torch.zeros(view.d_mlp, dtype=torch.float64),
            "n_tokens": 10**6,
            "fingerprint": view.fingerprint,
            "source": {},
            "reservoir": torch.zeros(view.d_mlp, 0),
        }
        found[layer] = SecondMoment(**(fields | changes))
    return found


def poisoned(value: float) -> torch.Tensor:
    matrix = torch.eye(64, dtype=torch.float64)
    matrix[3, 5] = value
    return matrix


@pytest.mark.parametrize("name", LOCATING)
def test_statistics_that_do_not_fit(view: ModelView, name: str) -> None:
    editor = make(name)
    assert isinstance(editor, LocateEditor)
    layers, last = editor.layers, editor.layers[-1]
    good = moments(view, layers)
    with untouched(view):
        assert editor.edit(view, BO, statistics=good).is_finite()
    fits = {k: v for k, v in good.items() if k != last}
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"fingerprint": "0" * 32}, StatisticsError, "of another model.*Compute them"),
        ({"n_tokens": 63}, StatisticsError, "63"),
        ({"layer": 3}, StatisticsError, f"layer 3 were given for layer {last}"),
        ({"matrix": torch.eye(32, dtype=torch.float64)}, StatisticsError, "32, 32"),
        ({"matrix": poisoned(math.nan)}, NumericalError, "NaN or Inf"),
        ({"matrix": poisoned(-math.inf)}, NumericalError, "NaN or Inf"),
        ({"matrix": -torch.eye(64, dtype=torch.float64)}, NumericalError, "positive definite"),
    ]
    for changes, error, words in bad:
        size = len(changes["matrix"]) if "matrix" in changes else 64
        more = {"mean": torch.zeros(size, dtype=torch.float64), "reservoir": torch.zeros(size, 0)}
        given = fits | moments(view, [last], **(more | changes))
        for call in (editor.edit, editor.edit_each):
            with refused(view, error, words):
                call(view, [BO], statistics=given)
    for given, error, words in (
        ({}, StatisticsError, "lack layers"),
        (fits, StatisticsError, f"lack layers .{last}"),
        (fits | {last: torch.eye(64)}, OptionError, "not a SecondMoment"),
        ([good[last]], OptionError, "layer → SecondMoment"),
    ):
        with refused(view, error, words):
            editor.edit(view, BO, statistics=given)


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", PLAIN)
def test_nan_in_weights(make_view, name: str, value: float) -> None:
    view = make_view("llama")
    places = [view.value_module(layer).weight for layer in range(4)]
    places += [view.model.lm_head.weight, view.block(2).self_attn.q_proj.weight]
    for weight in places:
        with torch.no_grad():
            kept = weight[1, 1].clone()
            weight[1, 1] = value
        with refused(view, NumericalError, "NaN or Inf|became|not finite|holds"):
            make(name).edit(view, [BO, ANNA])
        with torch.no_grad():
            weight[1, 1] = kept
    with untouched(view):
        assert make(name).edit(view, [BO, ANNA]).is_finite()


def test_models_that_cannot_be_edited(make_model, tokenizer, monkeypatch) -> None:
    sizes = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    dense = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
    causal = tf.AutoModelForCausalLM
    experts = causal.from_config(tf.MixtralConfig(**sizes, **dense, num_local_experts=2))
    codegen = tf.CodeGenConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **sizes)
    quantised = make_model("llama")
    quantised.config.quantization_config = {"bits": 4}
    with torch.device("meta"):
        meta = causal.from_config(tf.LlamaConfig(**sizes, **dense))
    headless = tf.LlamaModel(tf.LlamaConfig(**sizes, **dense))
    for model, words in (
        (experts, "mixture of experts.*dense model"),
        (causal.from_config(codegen), "'codegen' has no row.*write one Layout row"),
        (quantised, "quantised.*load it without"),
        (meta, "meta device.*load the model"),
        (headless, "no 'model.layers'.*with its head"),
    ):
        for call in (
            lambda m: open_view(m, tokenizer, name="x"),
            lambda m: load(m, tokenizer=tokenizer),
        ):
            with pytest.raises(UnsupportedModelError, match=words):
                call(model)
    whole = make_model("llama").half()
    whole.lm_head.weight = torch.nn.Parameter(
        torch.zeros(400, 32, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(UnsupportedModelError, match="int8.*floating point"):
        open_view(whole, tokenizer, name="x")

    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedModelError, match="Slow is a slow tokenizer.*use_fast"):
        open_view(make_model("llama"), Slow(), name="x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="needs its tokenizer"):
        load(make_model("llama"))
    with pytest.raises(OptionError, match="is a decoder"):
        load(make_model("llama"), tokenizer=tokenizer, kind="encoder_decoder")
    damaged = make_model("llama")
    with torch.no_grad():
        damaged.lm_head.weight[3, 3] = math.nan
    before = sum(len(m._forward_hooks) for m in damaged.modules())
    with pytest.raises(NumericalError, match="NaN or Inf on plain tokens"):
        open_view(damaged, tokenizer, name="x")
    assert sum(len(m._forward_hooks) for m in damaged.modules()) == before


# ---------------------------------------------------------------------- folders

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def lacking(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def of_family(family: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"model_type": family}))

    return change


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (
            lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-99]),
            DataError,
            "damaged",
        ),
        (lambda d: (d / WEIGHTS).write_bytes(b""), DataError, "damaged"),
        (lambda d: (d / WEIGHTS).write_bytes(b"\xff" * 500), DataError, "damaged"),
        (lambda d: (d / WEIGHTS).unlink(), DataError, "incomplete"),
        (lacking, DataError, "lacks 1 weights.*down_proj"),
        (of_another_shape, DataError, "damaged or incomplete"),
        (lambda d: (d / CONFIG).unlink(), DataError, "no config.json"),
        (lambda d: (d / CONFIG).write_text("{"), DataError, "not a valid JSON"),
        (lambda d: (d / CONFIG).write_text("{}"), DataError, "damaged or incomplete"),
        (of_family("nonesuch"), DataError, "nonesuch"),
        (of_family("mixtral"), UnsupportedModelError, "mixture of experts"),
        (lambda d: (d / "tokenizer.json").write_text("{"), DataError, "damaged"),
    ],
)
def test_damaged_folders(
    make_model, tokenizer, tmp_path: Path, damage: Callable[[Path], Any], error: Any, words: str
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path, device="cpu").n_layers == 4
    damage(tmp_path)
    with pytest.raises(error, match=words) as caught:
        load(tmp_path, device="cpu")
    assert type(caught.value) is error


def test_unknown_paths_and_names(tmp_path: Path, monkeypatch) -> None:
    for path in (tmp_path / "none", "./none", "~/none", "a/b/c"):
        with pytest.raises(DataError, match="no model folder at"):
            load(path)

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr("workbench.pretrained.AutoConfig.from_pretrained", offline)
    with pytest.raises(FetchError, match="smollm2-135m.*Did you mean 'tiny'.*load.'tiny'."):
        load("tinny", device="cpu")
    with pytest.raises(OptionError, match="dtype='float61' is unknown.*Did you mean 'float"):
        load("tiny", dtype="float61", device="cpu")


# ---------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("name", PLAIN)
def test_interruption_at_every_step(make_view, name: str) -> None:
    editor = make(name)

    def fresh() -> ModelView:
        view = make_view("llama")
        view.push(make("FT").edit(view, BO))  # so that there is something to put back
        view.model.lm_head.weight.requires_grad_(False)
        return view

    calm = fresh()
    if name == "FTKL":  # unrelated text is sampled once and kept: no step of later edits
        editor.edit(fresh(), [BO, ANNA])
    seen: list[tuple[str, int, int | None]] = []
    with progress_to(lambda *event: seen.append(event)):
        expected = editor.edit(calm, [BO, ANNA])
    batch = {"targets", "insertion"}
    expected_phases = {"fine-tuning"} if name.startswith("FT") else batch
    expected_phases = {"facts", "targets"} if name == "ROME" else expected_phases
    memories = {"GRACE": {"values"}, "Defer": {"memory"}, "MemoryNetwork": {"memory"}}
    expected_phases = memories.get(name, expected_phases)
    assert {phase for phase, _, _ in seen} >= expected_phases
    view = fresh()
    for stop in range(len(seen)):
        left = [stop]

        def sink(*event: Any, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1

        view.cache.pop("rewound", None)  # NSE keeps what it finished: fewer steps next time
        with untouched(view), pytest.raises(KeyboardInterrupt), progress_to(sink):
            editor.edit(view, [BO, ANNA])
    with untouched(view):
        assert editor.edit(view, [BO, ANNA]).id == expected.id


def test_interrupted_replay(make_view) -> None:
    view = make_view("llama")
    for request in (BO, ANNA, replace(BO, subject="Anna")):
        view.push(make("MEMIT").edit(view, request))
    stop = [0]

    def sink(*event: Any) -> None:
        stop[0] -= 1
        if stop[0] == 0:
            raise KeyboardInterrupt

    for n in range(1, 13):
        stop[0] = n
        with untouched(view), pytest.raises(KeyboardInterrupt), progress_to(sink):
            view.replay(without=0)
    view.replay(without=0)
    assert [e.requests[0] for e in view.stack] == [ANNA, replace(BO, subject="Anna")]
