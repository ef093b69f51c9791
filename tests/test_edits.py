"""Edits as data: three forms of change, and files that are whole, exact or refused."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load as tensors_of
from safetensors.torch import save as safetensors_bytes

from workbench import atomic, edits
from workbench.atomic import write_atomically
from workbench.edits import Delta, WeightEdit, load_edit
from workbench.errors import DataError, StorageError, WorkbenchError
from workbench.facts import EditRequest

REQUEST = EditRequest(prompt="{} lives in", subject="Zoë", target_new="Rome", target_true="東京")


def make(requests: tuple[EditRequest, ...] = (REQUEST,), **changes: Any) -> WeightEdit:
    g = torch.Generator().manual_seed(0)
    deltas = (
        Delta.low_rank("a.weight", torch.randn(4, 2, generator=g), torch.randn(6, 2, generator=g)),
        Delta.dense("b.weight", torch.randn(3, 5, generator=g, dtype=torch.float64)),
        Delta.dense("b.bias", torch.randn(3, generator=g)),
        Delta.sparse("c.weight", (3, 4), torch.tensor([0, 11]), torch.tensor([1.5, -2.0])),
    )
    fields: dict[str, Any] = {
        "deltas": deltas,
        "requests": requests,
        "editor": "MEMIT",
        "config": {"layers": [1, 2], "lr": 0.1, "lam": None},
        "base": "f" * 32,
        "parents": ("0123", "4567"),
        "keys": {"a.weight": torch.randn(2, 6, generator=g).T, "b.weight": torch.ones(5, 1)},
        "report": {"targets": [{"request": 0, "nll": 1 / 3, "tau": math.inf, "note": "é\n"}]},
        "meta": {"seconds": 0.25, "model": "random"},
    }
    return WeightEdit(**(fields | changes))


def test_materialize() -> None:
    low, dense, bias, sparse = make().deltas
    left, right = low.tensors["left"], low.tensors["right"]
    assert low.rank == 2 and low.shape == (4, 6) and low.nbytes == 4 * 20
    assert torch.equal(low.materialize(dtype=torch.float32), left @ right.T)
    double = low.materialize(dtype=torch.float64)
    assert torch.equal(double, left.double() @ right.double().T)
    assert dense.rank is None and dense.dtype == torch.float64 and bias.shape == (3,)
    assert torch.equal(dense.materialize(dtype=torch.float64), dense.tensors["change"])
    found = sparse.materialize(dtype=torch.float32)
    assert found.shape == (3, 4) and sparse.dtype == torch.float32
    assert found[0, 0] == 1.5 and found[2, 3] == -2 and int(found.count_nonzero()) == 2


def test_a_delta_owns_its_numbers() -> None:
    change = torch.ones(2, 3, requires_grad=True)
    delta = Delta.dense("a", change)
    with torch.no_grad():
        change.zero_()
    assert not delta.tensors["change"].requires_grad
    assert bool((delta.tensors["change"] == 1).all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_finite(value: float) -> None:
    assert make().is_finite()
    for bad in (
        Delta.dense("a", torch.tensor([[1.0, value]])),
        Delta.low_rank("a", torch.tensor([[value]]), torch.ones(2, 1)),
        Delta.sparse("a", (2,), torch.tensor([0]), torch.tensor([value])),
    ):
        assert not make(deltas=(*make().deltas, bad)).is_finite()


def same(a: WeightEdit, b: WeightEdit) -> bool:
    named = ("id", "requests", "editor", "config", "base", "parents", "report", "meta")
    if any(getattr(a, f) != getattr(b, f) for f in named) or list(a.keys) != list(b.keys):
        return False
    pairs = [(a.keys[k], b.keys[k]) for k in a.keys]
    for x, y in zip(a.deltas, b.deltas, strict=True):
        if (x.parameter, x.form, x.shape) != (y.parameter, y.form, y.shape):
            return False
        pairs += [(x.tensors[k], y.tensors[k]) for k in x.tensors]
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def test_round_trip(tmp_path: Path) -> None:
    edit = make()
    path = edit.save(tmp_path / "new" / "folder" / "edit.safetensors")
    back = load_edit(path)
    assert same(back, edit) and back.nbytes == edit.nbytes
    assert back.save(tmp_path / "again").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]
    bare = make(deltas=(), keys={})
    assert same(load_edit(str(bare.save(str(tmp_path / "bare")))), bare)


def test_the_id_is_the_content(tmp_path: Path) -> None:
    edit = make(keys={})
    assert make(keys={}, report={}, meta={"seconds": 9}).id == edit.id
    other = Delta.dense("b.bias", torch.ones(3))
    changes: list[dict[str, Any]] = [
        {"deltas": (*edit.deltas[:2], other, edit.deltas[3])},
        {"requests": (EditRequest(prompt="x", target_new="y"),)},
        {"editor": "EMMET"},
        {"config": {}},
        {"base": "0" * 32},
        {"parents": ()},
        {"keys": {"a.weight": torch.ones(6, 1)}},
    ]
    assert len({edit.id, *(make(**({"keys": {}} | c)).id for c in changes)}) == 1 + len(changes)


# characters of every script and plane, control characters and line ends; no lone surrogates
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    lambda s: s.strip()
)


@given(prompt=TEXT, subject=TEXT, target=TEXT, true=st.none() | TEXT)
@example("Où est ", "مدينة القدس", "ירושלים", "👩‍👩‍👧‍👦🏳️‍🌈")
@example("line one\nline\ttwo\r\n\u2028", "𝒳𐍈", "नमस्ते ไทย 中文", "\x00\x7f\ufeff\u202e")
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_in_any_script(tmp_path: Path, prompt, subject, target, true) -> None:
    literal = EditRequest(prompt=prompt, target_new=target, target_true=true)
    slotted = EditRequest(
        prompt=prompt.replace("{}", "") + "{}", subject=subject, target_new=target
    )
    edit = make((literal, slotted))
    back = load_edit(edit.save(tmp_path / "edit"))
    assert back.requests == (literal, slotted) and back.id == edit.id
    assert back.requests[1].text.endswith(subject)
    assert back._repr_html_() == edit._repr_html_() and repr(back) == repr(edit)


# ---------------------------------------------------------------------- files that are not whole


def refused(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_edit(path)
    text = str(caught.value)
    assert str(path) in text and text.endswith(".") and len(text) > len(str(path)) + 15


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = make().save(tmp_path / "edit")
    whole = path.read_bytes()
    for n in [0, 1, 7, 8, 9, *range(10, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:n])
        refused(path, "truncated or damaged")
    path.write_bytes(whole + b"\0")
    refused(path, "damaged")


def test_a_flipped_bit_anywhere(tmp_path: Path) -> None:
    edit = make()
    path = edit.save(tmp_path / "edit")
    whole = path.read_bytes()
    for i in range(len(whole)):
        flipped = bytearray(whole)
        flipped[i] ^= 1 << (i % 8)
        path.write_bytes(flipped)
        try:
            found = load_edit(path)
        except DataError:
            continue
        assert same(found, edit), i  # a blank that pads the header


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "edit"
    refused(path, "no edit file")
    refused(tmp_path, "no edit file")
    for content in (b"", b"{}", b"PK\x03\x04" * 50, b"\xff" * 64, "naïve".encode("utf-16") * 20):
        path.write_bytes(content)
        refused(path, "truncated or damaged")
    path.write_bytes(safetensors_bytes({"w": torch.ones(2)}))
    refused(path, "not a Workbench edit")
    for manifest, words in (
        ("{", "truncated or damaged"),
        ("[]", "damaged"),
        ("null", "damaged"),
        ("{}", "format None"),
        (json.dumps({"format": "workbench-edit/9"}), "workbench-edit/9"),
        (json.dumps({"format": edits.FORMAT}), "damaged|checksum"),
    ):
        path.write_bytes(safetensors_bytes({"w": torch.ones(2)}, metadata={"workbench": manifest}))
        refused(path, words)


def rewritten(path: Path, change: Any) -> None:
    """The same file with another manifest, well-formed in itself."""
    with safe_open(path, framework="pt") as handle:
        meta = handle.metadata()
    manifest = json.loads(meta["workbench"])
    change(manifest)
    meta["workbench"] = json.dumps(manifest)
    path.write_bytes(safetensors_bytes(tensors_of(path.read_bytes()), metadata=meta))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["edits"][0].pop("deltas"),
        lambda m: m["edits"][0].update(deltas=3),
        lambda m: m["edits"][0].update(requests=[{"prompt": "", "target_new": "x"}]),
        lambda m: m["edits"][0].update(requests=[{"prompt": "x", "target_new": "y", "more": 1}]),
        lambda m: m["edits"][0].update(editor="ROME"),
        lambda m: m["edits"][0]["report"]["targets"][0].update(nll=0.0),
        lambda m: m["edits"][0]["meta"].update(model="another"),
        lambda m: m["edits"][0]["deltas"][1].__setitem__(2, [5, 3]),
        lambda m: m["edits"][0]["deltas"][0].__setitem__(1, "rank"),
    ],
)
def test_edited_by_hand(tmp_path: Path, change: Any) -> None:
    path = make().save(tmp_path / "edit")
    rewritten(path, lambda m: None)
    assert same(load_edit(path), make())
    rewritten(path, change)
    refused(path, "checksum")


def _sparse(index: list[int], n_values: int = 2) -> Delta:
    pieces = {"index": torch.tensor(index), "values": torch.ones(n_values)}
    return Delta("c.weight", "sparse", (3, 4), pieces)


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        (_sparse([0, 12]), "position 12 is outside shape"),
        (_sparse([-1, 3]), "position -1 is outside shape"),
        (_sparse([0, 3], 3), "values cannot stand at"),
        (Delta("b", "dense", (5, 3), {"change": torch.ones(3, 5)}), "no change of shape"),
        (Delta("a", "low_rank", (2, 2), {"left": torch.ones(2, 1), "right": torch.ones(3, 1)}),
         "no change of shape"),
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit_are_not_read(tmp_path: Path, delta: Delta, words: str) -> None:
    assert all(d.flaw() is None for d in make().deltas)
    path = make(deltas=(delta,)).save(tmp_path / "edit")
    refused(path, words)


# ---------------------------------------------------------------------- disks that are full


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def denied(*args: Any, **kwargs: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class _Full:
    """A file that takes a few bytes."""

    def __init__(self, path: Any, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def write(self, payload: bytes) -> None:
        self.file.write(payload[:10])
        full()


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_disk_full(tmp_path: Path, monkeypatch, where: str) -> None:
    old = make(editor="ROME")
    path = old.save(tmp_path / "edit.safetensors")
    with monkeypatch.context() as patch:
        if where in ("fsync", "replace"):
            patch.setattr(atomic.os, where, full)
        else:
            patch.setattr(atomic, "open", full if where == "open" else _Full, raising=False)
        for target in (path, tmp_path / "new"):
            with pytest.raises(StorageError, match="No space left.*Free some space") as caught:
                make().save(target)
            assert str(target) in str(caught.value)
            assert isinstance(caught.value, OSError) and isinstance(caught.value, WorkbenchError)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert same(load_edit(path), old)


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_interrupted_save(tmp_path: Path, monkeypatch) -> None:
    path = write_atomically(tmp_path / "x", b"old")
    monkeypatch.setattr(atomic.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and path.read_bytes() == b"old"


def test_folders_that_take_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("x")
    # a file where a folder should be, a name too long, a folder of that name
    for path in (tmp_path / "file" / "edit", tmp_path / ("n" * 400), tmp_path):
        with pytest.raises(StorageError, match="could not write"):
            make().save(path)
    monkeypatch.setattr(atomic, "open", denied, raising=False)
    with pytest.raises(StorageError, match="Permission denied"):
        make().save(tmp_path / "edit")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
