"""``kill -9`` at random moments: what was finished is there, bit for bit, and can be gone on with.

Streams have a file of their own, ``test_stream_kill.py``.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lives
import pytest
import torch
from faults import intact, parts, weights
from ledger import Ledger, chance, times
from test_fetch import package  # noqa: F401 - a fixture
from work import model_folder

import workbench as wb
from workbench import atomic
from workbench.experiment import open_stack
from workbench.session import Session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes() -> Any:
    import multiprocessing

    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork server on this system")
    return lives.server()


@pytest.fixture(scope="module")
def model(make_model: Any, tokenizer: Any, tmp_path_factory: Any) -> Path:
    return model_folder(make_model, tokenizer, tmp_path_factory.mktemp("model"))


def on_disk(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def age(folder: Path) -> None:
    """An hour and more goes by: what a killed process left is old now."""
    then = time.time() - 2 * atomic.STALE_SECONDS
    for path in folder.rglob("*"):
        if path.name.endswith(".part") or path.name.startswith(".smollm2"):
            os.utime(path, (then, then))


def test_while_a_person_edits(
    processes: Any, model: Path, ledger: Ledger, tmp_path: Path, monkeypatch: Any
) -> None:
    """The session comes back as the person saw it last, or one click further."""
    monkeypatch.setattr("workbench.session.keeping.cache_dir", lambda name: tmp_path / name)
    view, files, luck = lives.view_of(str(model)), on_disk(model), chance("editing")
    for n in range(times(4, 40)):
        (tmp_path / "trail").unlink(missing_ok=True)
        process = lives.start(processes, lives.editing, str(model), str(tmp_path), n)
        with ledger.fault("kill -9 while editing"):
            lives.kill(process, luck.uniform(0, 3))
            assert on_disk(model) == files
            session = Session(view, autosave=True)
            seen = trail(tmp_path)
            offered = session.earlier()
            assert bool(offered) >= bool(seen and seen[-1][0])
            if offered:
                with warnings.catch_warnings(), intact(view):
                    warnings.simplefilter("error")
                    restored = session.restore(offered[0])
                    assert [e.id for e in view.stack] == [e.id for e in restored]
                    held = dict(seen)
                    known = ",".join(e.id for e in restored)
                    assert known not in held or weights(view) == held[known]
                    assert known in held or not seen or one_step(known, seen[-1][0])
                    view.reset()
            assert session._keeper is not None
            session._keeper.close()


def trail(home: Path) -> list[tuple[str, str]]:
    """Stack and weights after every click, as far as they were told."""
    path = home / "trail"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [(ids, digest) for ids, _, digest in (x.partition(" ") for x in lines) if digest]


def one_step(now: str, before: str) -> bool:
    """Whether one accept, undo and drop lie between two stacks at most."""
    a, b = set(now.split(",")), set(before.split(","))
    return len(a ^ b) <= 3


def test_while_files_are_saved(processes: Any, model: Path, ledger: Ledger, tmp_path: Path) -> None:
    view, luck = lives.view_of(str(model)), chance("saving")
    written = {r.target_new for r in firsts(lives.requests(0), 3)}
    for n in range(times(5, 60)):
        process = lives.start(processes, lives.saving, str(model), str(tmp_path), n)
        with ledger.fault("kill -9 while saving"):
            lives.kill(process, luck.uniform(0, 0.5))
            if (tmp_path / "edit.safetensors").exists():
                (request,) = wb.load_edit(tmp_path / "edit.safetensors").requests
                assert request.target_new in written
            if (tmp_path / "stack" / "stack.json").exists():
                (edit,) = open_stack(tmp_path / "stack", view)
                assert edit.requests[0].target_new in written
                view.reset()


def firsts(items: Any, n: int) -> list[Any]:
    return [next(items) for _ in range(n)]


@pytest.fixture
def one_thread() -> Any:
    """As in the processes: the last bits of a sum depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("what", lives.RESUMED)
def test_while_it_goes_on(
    processes: Any, model: Path, ledger: Ledger, tmp_path: Path, what: str
) -> None:
    """Killed again and again, it ends with the same bits."""
    view, luck, work = lives.view_of(str(model)), chance(what), lives.RESUMED[what]
    began = time.perf_counter()
    wanted = work(view, tmp_path / "calm")
    seconds = time.perf_counter() - began
    for n in range(times(4, 50)):
        home = tmp_path / str(n // 10)
        process = lives.start(processes, lives.resumed, str(model), str(home), 0, what)
        with ledger.fault(f"kill -9 during {what}"):
            lives.kill(process, luck.uniform(0, seconds))
        if n % 10 in (3, 9):
            age(home) if home.is_dir() else None
            view.cache.clear()
            with intact(view):
                assert work(view, home) == wanted
            assert parts(home) == [] and not list(home.glob("*.partial"))


def test_while_a_model_is_fetched(
    processes: Any,
    package: Path,  # noqa: F811
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    """Half a model is never taken for a whole one, and its leavings go with the next fetch."""
    luck = chance("fetching")
    calm = on_disk(lives.fetched(str(package), str(tmp_path / "calm")))
    for n in range(times(5, 50)):
        home = tmp_path / str(n)
        process = lives.start(processes, lives.fetching, str(package), str(home), 0)
        with ledger.fault("kill -9 while a model is fetched"):
            lives.kill(process, luck.uniform(0, 1.0))
            age(home) if home.is_dir() else None
            assert on_disk(lives.fetched(str(package), str(home))) == calm
            assert parts(home) == []
