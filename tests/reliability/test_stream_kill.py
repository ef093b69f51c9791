"""A run that is killed with SIGKILL, ten times and more, ends as one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import streams
from ledger import Ledger

import workbench as wb
from workbench.runs import RunFolder

pytestmark = pytest.mark.slow
DEATHS = 10


@pytest.fixture(scope="module")
def processes() -> Any:
    """Forks of a server that has everything imported: a process a second."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork server on this system")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["streams", "workbench.experiment", "workbench.pretrained"])
    return context


def start(context: Any, out: Path, writes: int | None) -> tuple[Any, Any]:
    ready = context.Event()
    process = context.Process(target=streams.in_a_process, args=(str(out), ready, writes))
    process.start()
    assert ready.wait(120), "the process did not start"
    return process, ready


@pytest.fixture(scope="module")
def undisturbed(processes: Any, tmp_path_factory: Any) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    process, _ = start(processes, out, None)
    began = time.perf_counter()
    process.join(120)
    assert process.exitcode == 0
    return out, time.perf_counter() - began


@pytest.mark.parametrize("how", ["at any time", "around a write"])
def test_ten_kills_leave_no_trace(
    processes: Any,
    undisturbed: tuple[Path, float],
    ledger: Ledger,
    tmp_path: Path,
    how: str,
) -> None:
    calm, seconds = undisturbed
    out, chance, deaths = tmp_path / "killed", random.Random(7), 0
    while deaths < DEATHS:
        process, _ = start(processes, out, chance.randint(1, 12) if how != "at any time" else None)
        with ledger.fault("kill -9 while streaming"):
            if how == "at any time":
                time.sleep(chance.uniform(0, seconds / 4))
                os.kill(process.pid, signal.SIGKILL)
            process.join(120)
            if process.exitcode == 0:  # the end came first: what is left to kill?
                break
            assert process.exitcode == -signal.SIGKILL
            if (out / "run.json").is_file():  # what is there can be read, half-way too
                assert RunFolder(out).rows() is not None
        deaths += 1
    assert deaths >= 5, "the run was over before it was killed often enough"
    process, _ = start(processes, out, None)
    process.join(120)
    assert process.exitcode == 0
    assert RunFolder(out).complete and len(RunFolder(out).records()) == 13
    streams.same(RunFolder(out).rows(), RunFolder(calm).rows())
    streams.same(wb.moments(out), wb.moments(calm))
    assert (out / "rows.csv.gz").is_file() and not list(out.rglob(".*.part"))
