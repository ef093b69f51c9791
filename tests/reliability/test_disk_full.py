"""A disk that fills up at any step of writing: old files stay, half ones go, trying again works.

Everything that is kept goes through :mod:`workbench.atomic`, whose every step fails in turn. What
other libraries write (whole models) meets a real limit on the size of files, in a process of
its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streams
from faults import BO, FullDisk, intact, parts, weights
from ledger import Ledger, chance, times
from test_bad_input import make
from work import prepared

import workbench as wb
from workbench import atomic
from workbench.errors import StorageError
from workbench.experiment import running, save_stack
from workbench.model import ModelView
from workbench.stats import second_moments

KIND = "disk full at a step of writing"
Writer = Callable[[ModelView, Path], Any]


def statistics(view: ModelView, folder: Path) -> None:
    view.cache.pop("stats", None)
    second_moments(view, [1, 2], corpus="self", n_tokens=64, cache=folder, n_reservoir=4)


def streamed(view: ModelView, folder: Path) -> None:
    streams.run(folder / "run", view, cases=streams.cases(3), watch={}, continue_on=True)


#: What → writer; each is called again after a fault and then leaves what a calm one leaves.
WRITERS: dict[str, Writer] = {
    "an edit": lambda v, d: v.stack[0].save(d / "edit.safetensors"),
    "a stack": lambda v, d: save_stack(v, d / "stack"),
    "key statistics": statistics,
    "a stream": streamed,
}


@pytest.fixture
def view(make_view: Any, monkeypatch: pytest.MonkeyPatch) -> ModelView:
    # a slow machine writes as often as a fast one
    monkeypatch.setattr(running, "SAY_EVERY", 1e9)
    return prepared(make_view("llama"))


def full(monkeypatch: pytest.MonkeyPatch, at: int = -1) -> FullDisk:
    disk = FullDisk(at)
    monkeypatch.setattr(atomic, "os", disk)
    monkeypatch.setattr(atomic, "open", disk.open, raising=False)
    return disk


@pytest.mark.parametrize("what", WRITERS)
def test_every_step_of_writing(
    view: ModelView, ledger: Ledger, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, stack = WRITERS[what], view.stack
    with monkeypatch.context() as patch:
        disk = full(patch)
        writer(view, tmp_path / "calm")
    wanted = content(tmp_path / "calm")
    rewind(view, stack)
    assert disk.seen >= 4
    for at in places(disk.seen, what):
        folder = tmp_path / str(at)
        with ledger.fault(KIND):
            with monkeypatch.context() as patch, intact(view):
                full(patch, at)
                refused(writer, view, folder)
                assert parts(folder) == []
                rewind(view, stack)
            if folder.is_dir():
                readable(folder, wanted)
            writer(view, folder)
            assert content(folder) == wanted
            rewind(view, stack)


def places(n: int, what: str) -> list[int]:
    """Every step, or some of many."""
    every = range(1, n + 1)
    return sorted(chance(what).sample(every, min(n, times(7, 400))))


def refused(writer: Writer, view: ModelView, folder: Path) -> None:
    """The fault is told, with the words of the system; nothing is kept silently."""
    with pytest.raises(StorageError, match="No space left"):
        writer(view, folder)


def rewind(view: ModelView, stack: Any) -> None:
    while len(view.stack) > len(stack):
        view.pop()
    assert view.stack == stack


def content(folder: Path) -> dict[str, Any]:
    """What lies in a folder, but for times and checksums over times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "edit.safetensors" or path.parent.name in ("edits", "stack"):
            found[name] = wb.load_edit(path).id if path.suffix == ".safetensors" else True
        elif path.name == "rows.csv.gz":
            table = wb.stream_rows(path.parent)
            found[name] = table.drop(columns="seconds").to_csv()
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def readable(folder: Path, wanted: dict[str, Any]) -> None:
    """Every file that is there is whole."""
    assert content(folder).items() <= wanted.items()


@pytest.mark.parametrize("old", ["an edit", "a stack"])
def test_old_files_stay(
    view: ModelView, ledger: Ledger, old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = WRITERS[old]
    writer(view, tmp_path / "0")
    view.pop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        view.drop(0)
        view.push(make("ROME").edit(view, BO))
    with monkeypatch.context() as patch:
        steps = full(patch)
        writer(view, tmp_path / "other")
    for at in range(1, steps.seen + 1):
        folder = Path(shutil.copytree(tmp_path / "0", tmp_path / str(at)))
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with ledger.fault(KIND), monkeypatch.context() as patch:
            full(patch, at)
            refused(writer, view, folder)
            assert {p: p.read_bytes() for p in before} == before and parts(folder) == []


#: A process in which no file may grow beyond so many bytes.
LIMITED = """
    import resource, signal, sys
    import torch
    torch.set_num_threads(1)
    import workbench as wb
    from workbench.errors import WorkbenchError
    from workbench.session import Session, write_report
    view = wb.load("tiny", device="cpu")
    edit = wb.FT(layers=(1,), steps=1).edit(view, wb.datasets.tiny(limit=1))
    view.push(edit)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in map(int, sys.argv[2:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for what, act in {
            "edit": lambda: edit.save(f"{sys.argv[1]}/edit"),
            "stack": lambda: Session(view).save(f"{sys.argv[1]}/stack"),
            "model": lambda: view.save_pretrained(f"{sys.argv[1]}/model"),
            "report": lambda: write_report(Session(view), f"{sys.argv[1]}/report.html"),
        }.items():
            try:
                act()
                said = "written"
            except WorkbenchError as err:
                said = f"refused {err}"
            print(what, limit, said.splitlines()[0])
    view.pop()
    assert not view.stack
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_real_limit_on_the_size_of_files(ledger: Ledger, tmp_path: Path) -> None:
    luck = chance("limits")
    limits = [0, *(luck.randint(1, 20_000) for _ in range(times(2, 40)))]
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path), *map(str, limits)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    for line in lines:
        with ledger.fault("a limit on the size of files"):
            what, limit, said = line.split(" ", 2)
            assert said == "written" or "File too large" in said, line  # small ones may fit
            assert said != "written" or (limit != "0" and what != "model")
    assert done.returncode == 0 and len(lines) == 4 * len(limits), done.stderr[-2000:]
    assert parts(tmp_path) == []


def test_the_model_is_as_before(view: ModelView) -> None:
    """The helper of this module sees a change."""
    before = weights(view)
    view.pop()
    assert weights(view) != before
