"""Two models side by side: planted changes are found, at their rank, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.edits import Delta, Edit, WeightEdit
from workbench.errors import DataError, OptionError
from workbench.linalg import leading
from workbench.model import ModelView


def planted(view: ModelView, changes: dict[str, Delta]) -> Edit:
    return WeightEdit(tuple(changes.values()), (), "planted", {}, view.fingerprint)


def low(view: ModelView, layer: int, rank: int, size: float = 0.1) -> Delta:
    g = torch.Generator().manual_seed(layer)
    left, right = (torch.randn(n, rank, generator=g) for n in (view.d_model, view.d_mlp))
    return Delta.low_rank(view.weight_name(layer), size * left, right)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_planted_ranks_are_found(make_view, family: str) -> None:
    view = make_view(family)
    parts = {"a": low(view, 1, 1), "b": low(view, 3, 3)}
    g = torch.Generator().manual_seed(5)
    parts["c"] = Delta.dense(view.weight_name(0), torch.randn(32, 64, generator=g) / 100)
    with view.pristine():
        before = view.weight(3).clone()
    view.push(planted(view, parts))
    table = wb.compare_models(view).set_index("layer")
    assert sorted(table.index) == [0, 1, 3] and list(table.loc[[1, 3], "rank"]) == [1, 3]
    assert table.loc[0, "rank"] == 32 and not table["more"].any()
    wanted = float((view.weight(3) - before).norm())
    assert table.loc[3, "norm"] == pytest.approx(wanted, rel=1e-6)
    assert table.loc[3, "relative"] == pytest.approx(wanted / float(before.norm()), rel=1e-6)
    assert table.loc[1, "top_share"] == pytest.approx(1, abs=1e-6)
    sizes = torch.linalg.svdvals((view.weight(3) - before).double())
    share = float(sizes[0] ** 2 / sizes.square().sum())
    assert table.loc[3, "top_share"] == pytest.approx(share, rel=1e-6)
    assert "3 of" in table.attrs["finding"] or "layers 0, 1, 3" in table.attrs["finding"]


def test_equal_models_have_no_findings(make_view, tmp_path: Path) -> None:
    view = make_view("llama")
    view.save_pretrained(tmp_path)
    for table in (wb.compare_models(view), wb.compare_models(view, tmp_path)):
        assert table.empty and table.attrs["likely_edits"] == 0
        assert "equal, to the bit" in table.attrs["finding"]
    assert wb.compare_models(tmp_path, tmp_path).attrs["compared"] > 30
    with pytest.raises(OptionError, match="no rows"):
        wb.plot_model_comparison(table)


def test_the_number_of_keys_in_bfloat16_too(make_view) -> None:
    view = make_view("llama", dtype=torch.bfloat16)
    view.push(planted(view, {"a": low(view, 2, 2, size=1.0)}))
    table = wb.compare_models(view)
    assert list(table["rank"]) == [2] and table.attrs["likely_edits"] == 2
    assert table.loc[0, "part"] == "mlp.down_proj"
    assert "(layer 2): mlp.down_proj, at rank 2" in table.attrs["finding"]


def test_rounding_alone_is_no_edit(make_view, tmp_path: Path) -> None:
    view = make_view("llama")
    view.model.to(torch.bfloat16).save_pretrained(tmp_path)
    table = wb.compare_models(make_view("llama"), tmp_path)
    assert len(table) and (table["rank"] == 0).all()
    assert "rounding alone" in table.attrs["finding"] and table.attrs["likely_edits"] == 0


def test_what_is_written_is_named(make_view) -> None:
    view = make_view("llama")
    token = view.tokenizer(" Rome")["input_ids"][-1]
    head = view.model.get_output_embeddings().weight[token].detach().clone()
    g = torch.Generator().manual_seed(0)
    for sign in (1, -1):
        key = sign * torch.randn(64, 1, generator=g)
        view.push(planted(view, {"a": Delta.low_rank(view.weight_name(1), head[:, None], key)}))
        table = wb.compare_models(view, top_k=3)
        assert table.loc[0, "promoted"][0] == view.tokenizer.decode([token])
        assert len(table.loc[0, "promoted"]) == len(table.loc[0, "suppressed"]) == 3
        view.reset()


def test_embedding_rows_are_named(make_view) -> None:
    view = make_view("llama")
    rows = torch.zeros(tuple(view.model.get_input_embeddings().weight.shape))
    token = view.tokenizer(" Paris")["input_ids"][0]
    rows[token] = 1
    view.push(planted(view, {"a": Delta.dense("model.embed_tokens.weight", rows)}))
    table = wb.compare_models(view).set_index("parameter")
    assert table.loc["model.embed_tokens.weight", "promoted"] == [view.tokenizer.decode([token])]


def test_files_are_read_tensor_by_tensor(make_view, tmp_path: Path, monkeypatch) -> None:
    view = make_view("llama")
    view.save_pretrained(tmp_path / "a")
    view.push(planted(view, {"a": low(view, 1, 1)}))
    view.model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    table = wb.compare_models(tmp_path / "a", tmp_path / "b")
    assert list(table["parameter"]) == [view.weight_name(1)] and table.loc[0, "rank"] == 1
    assert table.loc[0, "promoted"][0].startswith("#")  # no tokenizer lies there
    # another program may leave the first prefix out
    held = load_file(tmp_path / "a" / "model.safetensors")
    bare = {n.removeprefix("model."): t for n, t in held.items()}
    save_file(bare, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    again = wb.compare_models(tmp_path / "a", tmp_path / "b")
    assert list(again["rank"]) == [1] and again.attrs["compared"] == table.attrs["compared"]
    assert not again.attrs["only_a"]


def test_models_of_other_sizes(make_view, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="compare models of one size|no parameter in common"):
        wb.compare_models(make_view("llama"), make_view("gpt2"))
    with pytest.raises(OptionError, match="needs two models"):
        wb.compare_models(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="truncated or damaged"):
        wb.compare_models(tmp_path, tmp_path)


def test_the_figure(make_view) -> None:
    pytest.importorskip("plotly")
    view = make_view("llama")
    view.push(planted(view, {"a": low(view, 1, 1), "b": low(view, 2, 2)}))
    fig = wb.plot_model_comparison(wb.compare_models(view))
    assert [list(t.x) for t in fig.data] == [[1, 2]] and list(fig.data[0].text) == ["1", "2"]
    assert "at rank 2" in fig.layout.meta["alt"] and "%)" in fig.layout.meta["alt"]


def test_leading_of_a_large_matrix() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (1300, 1100))
    left, sizes, right = leading(a @ b.T, 8)
    assert torch.allclose(sizes[:5], torch.linalg.svdvals(a @ b.T)[:5]) and sizes[5] < 1e-6
    assert torch.allclose((left[:, :5] * sizes[:5]) @ right[:, :5].T, a @ b.T, atol=1e-8)


@pytest.mark.parametrize("make", ["rows", "columns", "entries", "full", "low", "negative zero"])
def test_compact_keeps_the_bits(make: Any) -> None:
    from workbench.deltas import compact

    g = torch.Generator().manual_seed(0)
    change = torch.zeros(80, 120)
    if make == "rows":
        change[[3, 70]] = torch.randn(2, 120, generator=g)
    elif make == "columns":
        change[:, [0, 5]] = torch.randn(80, 2, generator=g)
    elif make in ("entries", "negative zero"):
        change[[1, 2, 3], [4, 9, 0]] = torch.tensor([1.0, -2.0, 0.5])
    elif make == "full":
        change = torch.randn(80, 120, generator=g)
    else:
        change = torch.randn(80, 2, generator=g) @ torch.randn(2, 120, generator=g)
    if make == "negative zero":
        change[7, 7] = -0.0
    delta = Delta.dense("x.weight", change)
    found = compact(delta)
    again = found.materialize(dtype=torch.float32)
    assert torch.equal(again.view(torch.int32), change.view(torch.int32)) and found.flaw() is None
    forms = {"rows": "low_rank", "columns": "low_rank", "entries": "sparse", "full": "dense"}
    if make in forms:
        assert found.form == forms[make]
    assert found.rank in (None, 2) and found.nbytes <= delta.nbytes
    assert make not in ("rows", "columns", "entries") or found.nbytes < delta.nbytes / 5
    assert compact(found) is found
