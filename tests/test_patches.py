"""Patches: one format for an edit and a stack; picked, merged, verified, applied, exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench import __main__ as cli
from workbench.adapters import HookLayer
from workbench.adapters import as_adapter as as_hook_adapter
from workbench.edits import AdapterEdit, Delta, Edit, WeightEdit
from workbench.errors import DataError, EditMismatchError, OptionError
from workbench.model import ModelView
from workbench.patches import as_patch
from workbench.weights import lineage

OLD = Path(__file__).parent / "old"
FACTS = (
    wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome"),
    wb.EditRequest(prompt="The capital of {} is", subject="France", target_new="Oslo"),
    wb.EditRequest(prompt="{} works as a", subject="Anna", target_new="painter"),
)


def change(view: ModelView, layer: int, seed: int, rank: int = 1) -> tuple[Delta, torch.Tensor]:
    """A change of one down projection that answers to one key alone, and the key."""
    g = torch.Generator().manual_seed(seed)
    left = torch.randn(view.d_model, rank, generator=g) / 10
    key = torch.randn(view.d_mlp, rank, generator=g)
    return Delta.low_rank(view.weight_name(layer), left, key / key.norm(dim=0) ** 2), key


def weight_edit(view: ModelView, n: int, layer: int = 1, **more: Any) -> WeightEdit:
    delta, key = change(view, layer, more.pop("seed", n))
    fields: dict[str, Any] = {
        "requests": (FACTS[n % 3],),
        "editor": "MEMIT",
        "config": {"layers": [layer], "seed": n},
        "base": view.fingerprint,
        "parents": lineage(view.stack),
        "keys": {view.weight_name(layer): key},
        "meta": {"model": view.name, "revision": "abc", "torch": torch.__version__},
    }
    return WeightEdit(**({"deltas": (delta,)} | fields | more))


def hook_edit(view: ModelView, layer: int = 2) -> AdapterEdit:
    g = torch.Generator().manual_seed(7)
    parts = (torch.randn(n, 1, generator=g) for n in (view.d_model, view.d_mlp))
    hook = HookLayer(*parts, alpha=0.0)
    return AdapterEdit(
        adapters=(as_hook_adapter(view.weight_name(layer), hook),),
        requests=(FACTS[2],),
        editor="CoachHook",
        config={},
        base=view.fingerprint,
        parents=lineage(view.stack),
    )


def stacked(view: ModelView, *, hook: bool = True) -> ModelView:
    view.push(weight_edit(view, 0, 1))
    view.push(weight_edit(view, 1, 2))
    if hook:
        view.push(hook_edit(view))
    return view


@torch.no_grad()
def logits(view: ModelView) -> torch.Tensor:
    ids = torch.tensor([view.tokenizer("Bo lives in Oslo and Anna")["input_ids"]])
    return view.model(ids).logits


@pytest.fixture
def view(make_view: Any) -> ModelView:
    return make_view("llama")


# ---------------------------------------------------------------------- one file, two processes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_stack_in_one_file_gives_the_same_bits(make_view, tmp_path, family: str) -> None:
    view = stacked(make_view(family))
    path = wb.save_patch(view, tmp_path / "new" / "stack.safetensors")
    patch = wb.load_patch(path)
    assert [e.id for e in patch.edits] == [e.id for e in view.stack]
    assert patch.base == view.fingerprint and patch.model["name"] == view.name
    fresh = make_view(family)
    before = logits(fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [e.id for e in wb.apply_patch(path, fresh)] == [e.id for e in view.stack]
    assert torch.equal(logits(fresh), logits(view)) and not torch.equal(logits(fresh), before)
    assert patch.save(tmp_path / "again").read_bytes() == path.read_bytes()
    with pytest.raises(DataError, match="holds 3 edits.*load_patch"):
        wb.load_edit(path)


_CHILD = """
import sys, torch, workbench as wb
torch.set_num_threads(int(sys.argv[2]))
view = wb.load("tiny", device="cpu")
wb.apply_patch(sys.argv[1], view)
ids = torch.tensor([view.tokenizer("Klara Farnfeld has a desk at the offices of")["input_ids"]])
with torch.no_grad():
    print(wb.tensorfiles.checksum(view.model(ids).logits))
print(wb.verify_patch(sys.argv[1], view).set_index("check").loc["bits", "ok"])
"""


def test_a_second_process_has_equal_logits(tiny: ModelView, tmp_path: Path) -> None:
    from workbench.tensorfiles import checksum

    cases = wb.datasets.tiny(limit=2)
    options = {"templates": ("{}",), "corpus": "identity"}
    tiny.push(wb.ROME(layers=(1,), **options).edit(tiny, cases[0]))
    tiny.push(wb.GRACE.preset(tiny, steps=12).edit(tiny, cases[1]))
    path = wb.save_patch(tiny, tmp_path / "two.safetensors")
    ids = torch.tensor([tiny.tokenizer("Klara Farnfeld has a desk at the offices of")["input_ids"]])
    with torch.no_grad():
        wanted = checksum(tiny.model(ids).logits)
    child = "import workbench.tensorfiles\n" + _CHILD
    words = [sys.executable, "-c", child, str(path), str(torch.get_num_threads())]
    env = {**os.environ, "PYTHONPATH": str(Path(wb.__file__).parents[1])}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == [wanted, "True"]


def test_files_of_the_first_format_are_read(tiny: ModelView) -> None:
    ids = {"rome_format1": "ccb0f0ae8c113b0c", "grace_format1": "5ade09a6f7b2107e"}
    for name, edit_id in ids.items():
        path = OLD / f"{name}.safetensors"
        edit = wb.load_edit(path)
        assert edit.id == edit_id and edit.parents == lineage(tiny.stack)
        assert wb.load_patch(path).model["fingerprint"] == tiny.fingerprint
        assert wb.show_patch(path).loc[0, "editor"] == edit.editor
        wb.apply_patch(path, tiny)
    with tiny.pristine():
        before = tiny.weight(1).clone()
    added = tiny.stack[0].pieces[0].materialize(dtype=torch.float32)
    assert torch.equal(tiny.weight(1).T, before.T + added.T) and len(tiny.adapted) == 1


def test_editors_write_what_the_manifest_needs(view: ModelView, tmp_path: Path) -> None:
    view.revision = "a1b2"
    options = {"templates": ("{}",), "corpus": "identity", "steps": 3}
    edit = wb.ROME(layers=(1,), seed=5, **options).edit(view, FACTS[0])
    path = edit.save(tmp_path / "rome.safetensors")
    manifest = wb.show_patch(path).attrs["manifests"][0]
    assert manifest["model"] == {
        "name": view.name, "revision": "a1b2", "fingerprint": view.fingerprint,
    }  # fmt: skip
    entry = manifest["edits"][0]
    assert entry["seed"] == 5 and entry["config"]["layers"] == [1] and entry["id"] == edit.id
    assert entry["requests"] == [FACTS[0].as_dict()] and entry["base"] == view.fingerprint
    for where in (manifest["versions"], entry["meta"]):
        assert {"torch", "transformers", "workbench-editing"} <= set(where)
    assert entry["meta"]["dtype"] == "float32"
    stored = {n: s for n, (_, s, digest) in manifest["tensors"].items() if len(digest) == 64}
    assert stored == {
        "0.delta.0.left": [32, 1], "0.delta.0.right": [64, 1], "0.keys.0": [64, 1],
    }  # fmt: skip


def test_show_reads_no_tensor(view: ModelView, tmp_path: Path, monkeypatch) -> None:
    path = wb.save_patch(stacked(view), tmp_path / "s.safetensors")
    monkeypatch.setattr("workbench.editfiles.tensors_of", None)
    table = wb.show_patch(path)
    assert list(table["editor"]) == ["MEMIT", "MEMIT", "CoachHook"]
    assert list(table["prompt"])[:2] == ["Bo lives in", "The capital of France is"]
    assert list(table["form"]) == ["low_rank", "low_rank", "hook_layer"]
    assert list(table["parents"]) == [0, 1, 2] and table.loc[1, "seed"] == 1
    assert table.attrs["file_bytes"] == path.stat().st_size


def test_folders_and_runs_are_patches_too(view: ModelView, tmp_path: Path) -> None:
    folder = wb.save_stack(stacked(view), tmp_path / "stack")
    assert [e.id for e in wb.load_patch(folder).edits] == [e.id for e in view.stack]
    assert len(wb.show_patch(folder)) == 3


# ---------------------------------------------------------------------- refusals


def test_another_model_is_refused_with_both_fingerprints(make_view, tmp_path: Path) -> None:
    view, other = stacked(make_view("llama")), make_view("llama", seed=1)
    path = wb.save_patch(view, tmp_path / "s.safetensors")
    with pytest.raises(EditMismatchError) as caught:
        wb.apply_patch(path, other)
    for word in (view.fingerprint, other.fingerprint, view.name, "load the model it was made for"):
        assert word in str(caught.value)
    assert not other.stack


def test_all_or_nothing(make_view) -> None:
    view = make_view("llama")
    good, bad = weight_edit(view, 0), weight_edit(view, 1)
    nan = Delta.low_rank(view.weight_name(1), torch.full((32, 1), torch.nan), torch.ones(64, 1))
    before = logits(view)
    with pytest.raises(wb.errors.NumericalError):
        wb.apply_patch([good, replace(bad, deltas=(nan,))], view)
    assert not view.stack and torch.equal(logits(view), before)


def test_edits_of_two_models_make_no_patch(make_view, tmp_path: Path) -> None:
    a, b = (weight_edit(make_view("llama", seed=s), 0) for s in (0, 1))
    for what in (lambda: wb.save_patch([a, b], tmp_path / "x"), lambda: wb.merge_patches([a, b])):
        with pytest.raises(EditMismatchError, match="two base models"):
            what()
    with pytest.raises(OptionError, match="stack is empty"):
        wb.save_patch(make_view("llama"), tmp_path / "x")
    with pytest.raises(OptionError, match="at least one"):
        wb.save_patch([], tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_verify_says_what_is_wrong(make_view, tmp_path: Path) -> None:
    view = make_view("llama")
    path = wb.save_patch(stacked(view, hook=False), tmp_path / "s.safetensors")
    alone = wb.verify_patch(path)
    assert alone.attrs["ok"] and list(alone["check"]) == ["file", "numbers", "lineage", "conflicts"]
    before, held = logits(view), view.stack
    table = wb.verify_patch(path, view).set_index("check")
    assert view.stack == held and torch.equal(logits(view), before)
    assert table.loc["base", "ok"] is True and table.loc["bits", "ok"] is True
    assert table.loc["holds", "ok"] is False and "of 2 own prompts" in table.loc["holds", "finding"]
    found = wb.verify_patch(path, make_view("llama", seed=1)).set_index("check")
    assert found.loc["base", "ok"] is False and "holds" not in found.index
    half = make_view("llama", dtype=torch.bfloat16)
    if half.fingerprint == view.fingerprint:
        assert wb.verify_patch(path, half).set_index("check").loc["bits", "ok"] is None
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    table = wb.verify_patch(path, view)
    assert not table.attrs["ok"] and list(table["check"]) == ["file"]
    assert "does not match its checksum (tensor " in table.loc[0, "finding"]


def test_verify_compares_bits_and_lineage(make_view, tmp_path: Path) -> None:
    view = stacked(make_view("llama"), hook=False)
    patch = wb.load_patch(wb.save_patch(view, tmp_path / "s"))
    lying = replace(patch, outcome=patch.outcome | {"parameters": {view.weight_name(1): "0"}})
    assert wb.verify_patch(lying, view).set_index("check").loc["bits", "ok"] is None
    turned = wb.verify_patch(patch.pick([1, 0])).set_index("check").loc["lineage"]
    assert turned["ok"] is None and "entries 0, 1" in turned["finding"]


def test_verify_sees_that_an_edit_holds(tiny: ModelView, tmp_path: Path) -> None:
    edit = wb.FT.preset(tiny).edit(tiny, wb.datasets.tiny(limit=1)[0])
    table = wb.verify_patch(edit.save(tmp_path / "e"), tiny).set_index("check")
    assert table.loc["holds", "ok"] is True and table.loc["bits", "ok"] is None
    flat = replace(edit.pieces[0], tensors={k: 0 * t for k, t in edit.pieces[0].tensors.items()})
    none = as_patch(replace(edit, deltas=(flat,)))
    assert wb.verify_patch(none, tiny).set_index("check").loc["holds", "ok"] is False


# ---------------------------------------------------------------------- algebra


def test_edits_that_share_their_tensors_are_saved(view: ModelView, tmp_path: Path) -> None:
    one = weight_edit(view, 0)
    other = replace(one, requests=(FACTS[1],))
    path = wb.save_patch([one, other], tmp_path / "s")
    assert [e.id for e in wb.load_patch(path).edits] == [one.id, other.id]


def test_pick_reorder_drop(view: ModelView, tmp_path: Path) -> None:
    patch = wb.load_patch(wb.save_patch(stacked(view), tmp_path / "s"))
    a, b, c = (e.id for e in patch.edits)
    assert [e.id for e in patch.pick([2, 0]).edits] == [c, a]
    assert [e.id for e in patch.drop(1).edits] == [a, c]
    assert patch.outcome and not patch.drop(1).outcome and patch.pick([0, 1, 2]).outcome
    for bad in ([3], [-1], [0, 0], []):
        with pytest.raises(OptionError, match="name each at most once"):
            patch.pick(bad)
    with pytest.raises(OptionError):
        patch.drop(0, 1, 2)


def test_merge_takes_an_edit_once_and_is_order_free_on_disjoint_layers(make_view) -> None:
    view = make_view("llama")
    mine = [weight_edit(view, 0, 0), weight_edit(view, 1, 1)]
    yours = [mine[1], weight_edit(view, 2, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is in conflict here
        ours = wb.merge_patches([mine, yours])
        theirs = wb.merge_patches([yours, mine])
    assert [e.id for e in ours.edits] == [mine[0].id, mine[1].id, yours[1].id]
    found = []
    for patch in (ours, theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # computed on other stacks
            wb.apply_patch(patch, view)
        found.append(logits(view))
        view.reset()
    assert torch.equal(*found)
    kept = wb.merge_patches([mine, yours], keep=[2, 0])
    assert [e.id for e in kept.edits] == [yours[1].id, mine[0].id]
    assert len(wb.merge_patches([mine, yours], drop=[0]).edits) == 2
    with pytest.raises(OptionError, match="not both"):
        wb.merge_patches([mine, yours], keep=[0], drop=[1])


def test_edits_of_one_layer_are_picked_while_merging(view: ModelView, tmp_path: Path) -> None:
    edits = [weight_edit(view, n) for n in range(3)]
    file = wb.save_patch(edits, tmp_path / "three.safetensors")
    kept = wb.merge_patches([file], keep=[0, 2])
    assert [e.id for e in kept.edits] == [edits[0].id, edits[2].id]
    assert kept.edits == (edits[0], edits[2]) and edits[0] != edits[1], "equal by what they hold"
    assert len({*edits, *kept.edits}) == 3


def test_strangers_are_warned_of_once(view: ModelView) -> None:
    edits = [weight_edit(view, n, n) for n in range(3)]
    with pytest.warns(UserWarning, match="2 of 3 edits were computed on another stack") as seen:
        wb.apply_patch(edits, view)
    assert len(seen) == 1 and len(view.stack) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wb.apply_patch(edits, view) == ()


def kinds(edits: list[Edit], **options: Any) -> list[tuple[str, int, int]]:
    table = wb.patch_conflicts(edits, **options)
    return list(table[["kind", "a", "b"]].itertuples(index=False, name=None))


def test_conflicts_of_facts(view: ModelView) -> None:
    def fact(n: int, prompt: str, subject: str, target: str) -> WeightEdit:
        request = wb.EditRequest(prompt=prompt, subject=subject, target_new=target)
        return weight_edit(view, n, requests=(request,))

    one = fact(0, "{} lives in", "Bo", "Rome")
    assert kinds([one, fact(1, "{} lives  in", "bo", "Oslo")]) == [("other target", 0, 1)]
    assert kinds([one, fact(1, "{} lives in", "Bo", " rome")]) == [("same fact", 0, 1)]
    assert kinds([one, fact(1, "{} plays the", "Bo", "violin")]) == [("same subject", 0, 1)]
    assert kinds([one, fact(1, "{} lives in", "Anna", "Oslo")]) == []


def test_conflicts_of_keys(view: ModelView) -> None:
    a, b = weight_edit(view, 0), weight_edit(view, 1)
    name = view.weight_name(1)
    assert kinds([a, b]) == []
    near = a.keys[name] + 0.3 * b.keys[name]
    close = replace(b, keys={name: near})
    table = wb.patch_conflicts([a, close])
    assert list(table["kind"]) == ["keys"] and table.loc[0, "parameter"] == name
    d, back = a.deltas[0].tensors["right"].T, b.deltas[0].tensors["right"].T
    one = float((d @ near).abs())  # its own key gives 1
    other = float((back @ a.keys[name]).abs() / (back @ near).abs())
    reach = max(one, other)
    assert one != pytest.approx(other, rel=0.1)
    assert table.loc[0, "overlap"] == pytest.approx(reach, rel=1e-4)
    assert kinds([a, close], overlap=1.05 * reach) == []
    assert kinds([a, replace(weight_edit(view, 1, 2), keys={view.weight_name(2): near})]) == []


def test_subjects_that_end_alike_overlap(tiny: ModelView) -> None:
    """Of real edits: the key is that of the subject's last token."""
    subjects = ("Frida Yarlic", "Greta Quilander", "Helga Yarlic", "Irena Dorvsen")
    facts = [
        wb.EditRequest(prompt="{} works as a", subject=s, target_new="teacher") for s in subjects
    ]
    edits = wb.ROME.preset(tiny, steps=2).edit_each(tiny, facts)
    table = wb.patch_conflicts(edits)
    assert table[["kind", "a", "b"]].values.tolist() == [["keys", 0, 2]]


def test_merging_in_conflict_warns(view: ModelView) -> None:
    a = weight_edit(view, 0)
    b = weight_edit(view, 0, 2, requests=(replace(FACTS[0], target_new="Oslo"),))
    with pytest.warns(UserWarning, match=r"1 × other target.*Bo lives in → Rome.*→ Oslo"):
        merged = wb.merge_patches([a, b])
    assert len(merged.edits) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wb.merge_patches([[a, b]])  # one patch is not in conflict with itself


def test_a_trained_memory_would_replace_another(make_view) -> None:
    view = make_view("llama")
    memory = wb.MemoryNetwork.preset(view, steps=2)
    first, rival = (memory.edit(view, f) for f in FACTS[:2])
    assert ("replaces", 0, 1) in kinds([first, rival])
    view.push(first)
    later = memory.edit(view, FACTS[1])
    assert ("replaces", 0, 1) not in kinds([first, later])


# ---------------------------------------------------------------------- the command line


@pytest.fixture
def on_disk(view: ModelView, tmp_path: Path) -> tuple[ModelView, Path, Path]:
    view.save_pretrained(tmp_path / "base")
    base = wb.load(tmp_path / "base")
    stacked(base, hook=False)
    return base, tmp_path / "base", wb.save_patch(base, tmp_path / "s.safetensors")


def test_the_words(on_disk, tmp_path: Path, capsys) -> None:
    view, base, path = on_disk
    assert cli.main(["patch", "show", str(path)]) == 0
    said = capsys.readouterr().out
    assert "2 edits" in said and view.fingerprint in said and "Bo lives in" in said
    assert cli.main(["patch", "show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["edits"][1]["seed"] == 1
    assert cli.main(["patch", "verify", str(path)]) == 0
    assert "checksums and ids fit" in capsys.readouterr().out
    assert cli.main(["patch", "apply", str(path), "--model", str(base), "--out",
                     str(tmp_path / "edited")]) == 0  # fmt: skip
    assert torch.equal(logits(wb.load(tmp_path / "edited")), logits(view))
    assert cli.main(["patch", "diff", str(base), str(tmp_path / "edited")]) == 0
    said = capsys.readouterr().out
    assert "layers 1, 2" in said and "at rank 1" in said
    assert cli.main(["patch", "diff", str(base), str(path)]) == 0
    assert "at rank 1" in capsys.readouterr().out
    words = ["patch", "merge", str(path), "--drop", "0", "--out", str(tmp_path / "one")]
    assert cli.main(words) == 0
    assert wb.load_edit(tmp_path / "one").id == view.stack[1].id
    assert cli.main(["patch", "export", str(path), "--model", str(base), "--out",
                     str(tmp_path / "lora")]) == 0  # fmt: skip
    assert "rank 1, leaves out 0 of the change" in capsys.readouterr().out


def test_mistakes_on_the_command_line(on_disk, tmp_path: Path, capsys) -> None:
    _, base, path = on_disk
    for words, said in (
        (["patch", "shw", str(path)], "invalid choice: 'shw'"),
        (["patch", "show", str(path), "--jsn"], "`workbench patch show` has no option '--jsn'"),
        (["patch", "show", "/no/file"], "there is no file /no/file"),
        (["patch", "merge", str(path), "--out", "x", "--keep", "9"], "from 0 to 1"),
    ):
        assert cli.main(words) == 2
        assert said in capsys.readouterr().err
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert cli.main(["patch", "verify", str(path)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert cli.main(["patch", "apply", str(path), "--model", str(base), "--out", "x"]) == 2
    assert "does not match its checksum" in capsys.readouterr().err


# ---------------------------------------------------------------------- how large


def test_sizes_on_the_default_model(smollm2: ModelView, tmp_path: Path) -> None:
    options = {"corpus": "identity", "templates": ("{}",), "steps": 2}  # none decides the size
    facts = wb.datasets.facts(limit=100)
    rome = wb.ROME.preset(smollm2, **options).edit(smollm2, facts[0])
    assert rome.save(tmp_path / "rome").stat().st_size <= 20_000
    memit = wb.MEMIT.preset(smollm2, **options).edit(smollm2, facts)
    model = sum(p.numel() * p.element_size() for p in smollm2.model.parameters())
    assert memit.save(tmp_path / "memit").stat().st_size <= 0.05 * model
