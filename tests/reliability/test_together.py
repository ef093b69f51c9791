"""Processes with one cache, run, model or file at once; views in several threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import lives
import pytest
import streams
from faults import parts, weights
from ledger import Ledger, times
from test_bad_input import make
from test_fetch import package  # noqa: F401 - a fixture
from test_kill import model, on_disk, processes  # noqa: F401 - fixtures
from work import CASES

import workbench as wb
from workbench.runs import RunFolder
from workbench.stats import second_moments

pytestmark = pytest.mark.slow
KIND = "processes with one cache"


def test_the_same_statistics(
    processes: Any,  # noqa: F811
    model: Path,  # noqa: F811
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    wanted = lives.key_statistics(lives.view_of(str(model)), tmp_path / "calm")
    for n in range(times(1, 15)):
        home = tmp_path / str(n)
        with ledger.fault(KIND):
            found = lives.together(processes, 3, lives.same_statistics, str(model), str(home))
            assert found == [wanted] * 3
            assert parts(home) == [] and not list(home.glob("*.partial"))


def test_the_same_run(
    processes: Any,  # noqa: F811
    model: Path,  # noqa: F811
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    """One writes it, the others are told; or they come later and find it written."""
    for n in range(times(1, 15)):
        home = tmp_path / str(n)
        with ledger.fault(KIND):
            said = lives.together(processes, 3, lives.same_run, str(model), str(home))
            rows = [x for x in said if isinstance(x, int)]
            assert rows and set(rows) == {len(RunFolder(home / "run").rows())}
            assert all("another process is writing" in x for x in said if isinstance(x, str))
            assert RunFolder(home / "run").complete and parts(home) == []


def test_the_same_model(
    processes: Any,  # noqa: F811
    package: Path,  # noqa: F811
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    calm = on_disk(lives.fetched(str(package), str(tmp_path / "calm")))
    for n in range(times(1, 15)):
        home = tmp_path / str(n)
        with ledger.fault(KIND):
            said = lives.together(processes, 3, lives.same_model, str(package), str(home))
            assert set(said) == {str(home / "smollm2-135m")}
            assert on_disk(home / "smollm2-135m") == calm and parts(home) == []


def test_the_same_files(
    processes: Any,  # noqa: F811
    model: Path,  # noqa: F811
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    """Whoever reads while others write reads what one of them wrote."""
    for n in range(times(1, 15)):
        (tmp_path / str(n)).mkdir()
        with ledger.fault(KIND):
            said = lives.together(
                processes, 3, lives.same_files, str(model), str(tmp_path / str(n))
            )
            targets = {r.target_new for r in (next(lives.requests(i)) for i in range(3))}
            assert set(said[0]) <= targets and set(said[1:]) <= targets, said
            assert parts(tmp_path / str(n)) == []


def test_the_same_session(
    processes: Any,  # noqa: F811
    model: Path,  # noqa: F811
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    for n in range(times(1, 15)):
        home = str(tmp_path / str(n))
        with ledger.fault(KIND):
            assert lives.together(processes, 1, lives.one_session, str(model), home) == ["kept"]
            said = lives.together(processes, 3, lives.same_session, str(model), home)
            assert sorted(said) == [0, 0, 1], said


def test_views_in_threads(make_view: Any, ledger: Ledger, tmp_path: Path) -> None:
    """Two views at once, with one cache and one file name: each as if it were alone."""
    names = ("FT", "ROME", "GRACE", "MEMIT")
    calm = make_view("llama")
    wanted = {n: make(n).edit(calm, [c.request for c in CASES]).id for n in names}
    moment = second_moments(calm, [1], n_tokens=64, cache=tmp_path / "calm")[1]
    for n in range(times(2, 30)):
        views = [make_view("llama") for _ in range(2)]
        before, failures = weights(views[0]), []

        def work(view: wb.ModelView, home: Path, failures: list[Any] = failures) -> None:
            try:
                found = second_moments(view, [1], n_tokens=64, cache=home)[1]
                assert found.matrix.equal(moment.matrix)
                for name in names:
                    edit = make(name).edit(view, [c.request for c in CASES])
                    assert edit.id == wanted[name]
                    assert wb.load_edit(edit.save(home / "edit.safetensors")).editor in names
                    view.push(edit)
                    view.pop()
            except BaseException as err:
                failures.append(err)

        with ledger.fault("two views in two threads"):
            home = tmp_path / str(n)
            threads = [threading.Thread(target=work, args=(v, home)) for v in views]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert failures == []
            assert [weights(v) for v in views] == [before] * 2 and parts(home) == []


def test_the_fixture_runs(make_view: Any, tmp_path: Path) -> None:
    """The run that processes share is one that takes writing."""
    rows = streams.run(tmp_path, make_view("llama"), cases=streams.cases(6), watch={})
    assert len(rows) >= 6
