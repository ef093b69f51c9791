"""What a file of unknown origin can do: nothing but be refused."""

from __future__ import annotations

import ast
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as tensors_of
from safetensors.torch import save as safetensors_bytes

import workbench as wb
from workbench import editfiles, tensorfiles
from workbench.editfiles import digest_of
from workbench.edits import Delta, WeightEdit
from workbench.errors import DataError
from workbench.secondmoments import import_npz
from workbench.tensorfiles import header_of
from workbench.tensorfiles import tensors_of as read_tensors

PACKAGE = Path(wb.__file__).parent
#: Modules that turn bytes into code.
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls_in(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def keywords(call: ast.Call) -> dict[str, str]:
    return {k.arg or "**": ast.unparse(k.value) for k in call.keywords}


def complaints(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {n}" for n in names if n.split(".")[0] in UNSAFE]
    for name, call in calls_in(path):
        given = keywords(call)
        if name in ("torch.load", "eval", "exec", "yaml.load", "torch.hub.load"):
            found.append(f"calls {name}")
        if name.endswith(("read_pickle", "extractall", "unpack_archive")):
            found.append(f"calls {name}")
        if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if given.get("trust_remote_code", "False") != "False":
            found.append("trusts remote code")
        if name.endswith(".from_pretrained") and "trust_remote_code" not in given:
            found.append(f"{name} asks whether to trust remote code")
        if name == "auto.from_pretrained" and given.get("use_safetensors") != "True":
            found.append("reads pickled weights")
    return found


def test_no_module_of_the_package_runs_what_it_reads() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    bad = {str(f.relative_to(PACKAGE)): c for f in files if (c := complaints(f))}
    assert not bad


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoConfig.from_pretrained('x')",
        "pd.read_pickle('x')",
        "archive.extractall('x')",
    ],
)
def test_the_search_finds_what_it_looks_for(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.py").write_text(line)
    assert complaints(tmp_path / "x.py")


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_pickles_are_not_opened(make_view, tmp_path: Path) -> None:
    canary, payload = tmp_path / "canary", pickle.dumps(Evil(tmp_path / "canary"))
    view = make_view("llama")
    view.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(payload)
    with pytest.raises(DataError, match="no weights as .safetensors.*can run code"):
        wb.load(tmp_path / "model")
    with pytest.raises(DataError, match="can run code"):
        wb.compare_models(tmp_path / "model", view)
    for name in ("edit.pt", "edit.bin", "edit.safetensors"):
        (tmp_path / name).write_bytes(payload)
        for read in (wb.load_edit, wb.load_patch, wb.show_patch):
            with pytest.raises(DataError, match="truncated or damaged"):
                read(tmp_path / name)
    np.savez(tmp_path / "stats.npz", C=np.array([Evil(canary)], dtype=object))
    with pytest.raises(DataError, match="no .npz file"):
        import_npz(tmp_path / "stats.npz", view, 0)
    assert not canary.exists()
    pickle.loads(payload)  # it would have worked
    assert canary.exists()


def test_code_beside_a_model_is_not_run(make_view, tmp_path: Path, monkeypatch) -> None:
    view, folder = make_view("llama"), tmp_path / "model"
    view.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked at the terminal"))
    (folder / "evil.py").write_text(f"import os\nos.system('touch {tmp_path / 'canary'}')\n")
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    assert torch.equal(wb.load(folder).weight(0), view.weight(0))  # transformers' own class
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "ev"}))
    with pytest.raises(wb.WorkbenchError):
        wb.load(folder)
    assert not (tmp_path / "canary").exists()


def test_paths_that_leave_their_folder(make_view, tmp_path: Path) -> None:
    view = make_view("llama")
    left, right = torch.ones(32, 1), torch.ones(64, 1)
    delta = Delta.low_rank(view.weight_name(1), left, right)
    edit = WeightEdit((delta,), (), "x", {}, view.fingerprint)
    edit.save(tmp_path / "outside.safetensors")
    folder = tmp_path / "stack"
    folder.mkdir()
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "..", "",
                 "..\\outside.safetensors", "C:outside"):  # fmt: skip
        listed = {"format": "workbench-stack/1", "run": "x", "edits": [[1, name]]}
        (folder / "stack.json").write_text(json.dumps(listed))
        for read in (wb.load_patch, lambda p: wb.open_stack(p, view)):
            with pytest.raises(DataError, match="no file of that folder"):
                read(folder)
    view.save_pretrained(tmp_path / "model")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="no file of that folder"):
        wb.compare_models(tmp_path / "model", view)


# ---------------------------------------------------------------------- headers that lie


def with_header(path: Path, header: Any, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(shape: list[Any], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


TEN_TB = 10 * 2**40


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ({"x": entry([TEN_TB // 4], 0, TEN_TB)}, 8, "needs 10,995,116,277,760 bytes"),
        ({"x": entry([TEN_TB], 0, 8)}, 8, "needs 43,980,465,111,040 bytes"),
        ({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}, 12, "begins at byte 4, not at 8"),
        ({"x": entry([2], 4, 12)}, 12, "begins at byte 4"),
        ({"x": entry([2], 0, 8)}, 9, "explains 8 of the 9 bytes"),
        ({"x": entry([-2], 0, 8)}, 8, "of shape"),
        ({"x": entry([2.0], 0, 8)}, 8, "of shape"),
        ({"x": entry([True, 2], 0, 8)}, 8, "of shape"),
        ({"x": entry([2], 0, 8, "PICKLE")}, 8, "'PICKLE'"),
        ({"x": {"dtype": "F32"}}, 8, "no description"),
        ({"x": 3}, 8, "no description"),
        ([], 0, "no table"),
        ({"__metadata__": {"workbench": 3}}, 0, "not text"),
        (b"[" * 200_000, 0, "nested too deep|truncated or damaged"),
        (b'{"x": ' + b"9" * 5000 + b"}", 0, "truncated or damaged"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, body: int, words: str) -> None:
    path = with_header(tmp_path / "x", header, b"\0" * body)
    with pytest.raises(DataError, match=words):
        header_of(path)
    with pytest.raises(DataError, match="truncated or damaged"):
        wb.load_patch(path)


def test_a_length_that_lies(tmp_path: Path) -> None:
    for length in (0, 1, 2**20, 2**63, 2**64 - 1):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(DataError, match="claims a header"):
            header_of(tmp_path / "x")


def test_a_file_larger_than_the_memory(tmp_path: Path, monkeypatch) -> None:
    path = with_header(tmp_path / "x", {"x": entry([2**20], 0, 2**22)})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**22)  # holes: no disk is used
    header = header_of(path)
    monkeypatch.setattr(tensorfiles, "_memory", lambda: 2**21)
    monkeypatch.setattr(tensorfiles, "safe_open", None)  # nothing is opened
    with pytest.raises(DataError, match="4,194,304 bytes of tensors.*nothing was read"):
        read_tensors(header)


def forged(path: Path, change: Any) -> Path:
    """The same file with another manifest whose digest is right."""
    with safe_open(path, framework="pt") as handle:
        manifest = json.loads(handle.metadata()["workbench"])
    tensors = tensors_of(path.read_bytes())
    manifest.pop("digest")
    change(manifest, tensors)
    manifest["digest"] = digest_of({}, manifest)
    path.write_bytes(safetensors_bytes(tensors, metadata={"workbench": json.dumps(manifest)}))
    return path


def _grow(m: dict[str, Any], t: dict[str, torch.Tensor]) -> None:
    t["0.delta.0.left"] = torch.ones(64, 1)
    m["tensors"]["0.delta.0.left"][1] = [64, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, t: m["edits"][0].update(editor="ROME"), "put together by hand"),
        (lambda m, t: m["edits"][0]["deltas"][0].__setitem__(2, [10**7, 10**7]), "no change of"),
        (lambda m, t: m["tensors"].pop("0.keys.0"), "other tensors than it holds"),
        (lambda m, t: m["tensors"]["0.keys.0"].__setitem__(1, [10**12]), "other tensors"),
        (lambda m, t: m["tensors"]["0.keys.0"].__setitem__(2, "0" * 64), "tensor '0.keys.0'"),
        (_grow, "no change of shape"),
        (lambda m, t: m["edits"][0].update(keys=["a", "b"]), "is not there"),
        (lambda m, t: m["edits"][0].update(keys=[]), "no edit explains tensor '0.keys.0'"),
        (lambda m, t: m["edits"][0].pop("report"), "report"),
        (lambda m, t: m["edits"][0].update(config=3), "config of entry 0 is int"),
        (lambda m, t: m["edits"][0].update(requests=[{}]), "has no prompt"),
        (lambda m, t: m.update(edits={"0": 1}), "damaged"),
        (lambda m, t: m.update(format="workbench-edit/3"), "format 'workbench-edit/3'.*reads"),
        (lambda m, t: m["edits"].clear(), "no edit"),
    ],
)
def test_manifests_that_lie(make_view, tmp_path: Path, change: Any, words: str) -> None:
    view = make_view("llama")
    name = view.weight_name(1)
    delta = Delta.low_rank(name, torch.ones(32, 1), torch.ones(64, 1))
    keys = {name: torch.ones(64, 1)}
    edit = WeightEdit((delta,), (), "x", {}, view.fingerprint, keys=keys)
    path = edit.save(tmp_path / "edit")
    assert wb.load_edit(forged(path, lambda m, t: None)).id == edit.id
    forged(path, change)
    for read in (wb.load_patch, wb.load_edit):
        with pytest.raises(DataError, match=words if read is wb.load_patch else None):
            read(path)
    if "tensor" not in words and "by hand" not in words:
        with pytest.raises(DataError):  # without reading tensors
            wb.show_patch(path)


def test_shapes_are_checked_before_tensors_are_read(make_view, tmp_path, monkeypatch) -> None:
    view = make_view("llama")
    delta = Delta.low_rank(view.weight_name(1), torch.ones(32, 1), torch.ones(64, 1))
    path = WeightEdit((delta,), (), "x", {}, view.fingerprint).save(tmp_path / "edit")
    forged(path, lambda m, t: m["edits"][0]["deltas"][0].__setitem__(2, [32, 65]))
    monkeypatch.setattr(editfiles, "tensors_of", lambda *a: pytest.fail("read too early"))
    with pytest.raises(DataError, match="no change of shape"):
        wb.load_patch(path)


def test_a_data_set_that_changed_in_the_cache(tmp_path: Path, monkeypatch) -> None:
    from workbench.datasets import sources

    monkeypatch.setattr(sources, "cache_dir", lambda name: tmp_path)

    class Answer:
        headers: dict[str, str] = {}
        rest = [b"[1, 2]", b""]

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def read(self, n: int) -> bytes:
            return self.rest.pop(0)

    path = sources.fetch("counterfact", opener=lambda *a, **k: Answer())
    assert sources.fetch("counterfact") == path
    path.write_bytes(b"[1, 3]")
    with pytest.raises(DataError, match="it was changed or damaged. Delete"):
        sources.fetch("counterfact")
