"""Loading: names, paths, dtypes, a device map, and refusals."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from workbench.errors import DataError, FetchError, OptionError

REQUEST = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
EDITOR = wb.MEMIT(layers=(1, 2), lam=1.0, steps=5, templates=("{}",), corpus="identity")


@pytest.fixture
def folder(make_view, tmp_path):
    make_view("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder(folder) -> None:
    view = wb.load(folder, device="cpu")
    assert view.kind == "decoder" and view.dtype == torch.float32 and view.stack == ()
    assert wb.load(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_a_model_that_is_loaded_already(make_model, tokenizer) -> None:
    model = make_model("gpt2")
    assert wb.load(model, tokenizer=tokenizer).model is model
    with pytest.raises(OptionError, match="tokenizer"):
        wb.load(model)
    for option in ({"dtype": "float64"}, {"device": "cpu"}, {"device_map": "auto"}):
        with pytest.raises(OptionError, match=f"{next(iter(option))}=.*is loaded already"):
            wb.load(model, tokenizer=tokenizer, **option)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_device_map_gives_the_same_edit(folder) -> None:
    pytest.importorskip("accelerate")
    spread = wb.load(folder, device_map={"": "cpu"})
    plain = wb.load(folder, device="cpu")
    assert EDITOR.edit(spread, REQUEST).id == EDITOR.edit(plain, REQUEST).id


def test_refusals(folder, tmp_path) -> None:
    with pytest.raises(OptionError, match="float32"):
        wb.load(folder, dtype="flaot32")
    with pytest.raises(OptionError, match="decoder"):
        wb.load(folder, kind="encoder_decoder", device="cpu")
    with pytest.raises(DataError, match="check the path"):
        wb.load("./no/such/folder")
    with pytest.raises(DataError, match="config.json"):
        wb.load(tmp_path)


def test_without_a_network_the_tiny_model_is_named(monkeypatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("workbench.pretrained.AutoConfig.from_pretrained", offline)
    with pytest.raises(FetchError, match="--model tiny"):
        wb.load("gpt2-xl")
