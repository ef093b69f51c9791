"""What a session holds, kept on disk as it goes: one that was killed opens again as it last was.

A folder a session: ``edits/`` with a file an edit, and ``session.json``, which is written last and
names them. While facts are streamed it names the run's folder as well, whose finished batches
belong to the session. The folder's lock goes with the process, however it ends; a folder whose lock
can be had is one of a session that ended.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from workbench.atomic import try_lock, write_atomically
from workbench.edits import Edit, load_edit
from workbench.errors import BusyError, DataError, StorageError, WorkbenchError
from workbench.experiment.kept import link_file
from workbench.facts import EditCase, EditRequest, Probe
from workbench.fingerprint import fingerprint_of, seal, unseal
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.runs import RunFolder

__all__ = ["Held", "Keeper", "Kept", "sessions_dir"]

FORMAT = "workbench-session/1"
STATE, EDITS, LOCK = "session.json", "edits", ".lock"
#: How often, and how far apart, a lock is asked for that a glance may hold.
GLANCES, GLANCE_SECONDS = 10, 0.05
#: Sessions of one model that are kept after they ended; the oldest go.
KEPT = 5


@dataclass(frozen=True)
class Kept:
    """A session that ended and can be opened again.

    Attributes:
        path: its folder.
        saved: when it last changed, seconds since the epoch.
        n_edits: on its stack, those of a stream in flight included.
    """

    path: Path
    saved: float
    n_edits: int

    def describe(self) -> str:
        """``3 edits, 2026-01-31 14:05``."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.saved))
        return f"{self.n_edits} edit{'' if self.n_edits == 1 else 's'}, {when}"


@dataclass(frozen=True)
class Held:
    """What is kept of a session.

    Attributes:
        edits: the stack, oldest first.
        undone: what redo puts back, the next one last.
        cases: the facts on the desk.
        notes: edit id → a person's words.
        editor: name, preset and configuration of the chosen editor.
        runs: what is streamed → its folder.
        stream: folder of the run in flight, None between runs.
    """

    edits: tuple[Edit, ...] = ()
    undone: tuple[Edit, ...] = ()
    cases: tuple[EditCase, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    editor: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    stream: str | None = None


def sessions_dir(view: ModelView) -> Path:
    """The folder of the sessions with a model."""
    same = {"fingerprint": view.fingerprint, "dtype": str(view.dtype)}
    return cache_dir("sessions") / fingerprint_of(same)


class Keeper:
    """Keeps one session in a folder of its own, made when there is something to keep.

    Args:
        root: the folder of all sessions with this model.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder: Path | None = None
        self._let_go: Callable[[], object] | None = None

    def save(self, held: Held) -> Path:
        """Write what is new; the older state stays until all of it is there.

        Raises:
            StorageError: if it cannot be written.
        """
        folder = self._own()
        for edit in (*held.edits, *held.undone):
            if not (file := _file(folder, edit.id)).is_file():
                edit.save(file)
        note = {
            "format": FORMAT,
            "saved": time.time(),
            "edits": [e.id for e in held.edits],
            "undone": [e.id for e in held.undone],
            "cases": [_case_as_dict(c) for c in held.cases],
            **{n: getattr(held, n) for n in ("notes", "editor", "runs", "stream")},
        }
        write_atomically(folder / STATE, json.dumps(seal(note), default=str).encode())
        self._forget_files({*note["edits"], *note["undone"]})
        return folder

    def keep(self, held: Held, ran: RunFolder | None = None) -> None:
        """Save after a change; a disk that is full takes nothing away from the work.

        Args:
            held: what the session holds now.
            ran: a run that has just ended, whose edits lie in its folder.
        """
        try:
            if ran is not None:
                self.adopt(ran)
            self.save(held)
        except StorageError as err:
            warnings.warn(f"the session was not kept: {err}", stacklevel=4)

    def adopt(self, run: RunFolder) -> None:
        """Take over the edits of a run by a second name, so that nothing is stored twice."""
        folder = self._own()
        for record in run.records():
            if record.get("edit"):
                link_file(run.file("edits", record["batch"]), _file(folder, record["edit"]))

    def ended(self) -> list[Kept]:
        """Sessions that ended with something in them, newest first."""
        found = []
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            if folder == self.folder or not (folder / STATE).is_file():
                continue
            lock = try_lock(folder / LOCK, shared=True)
            if lock is not None:
                with lock, suppress(WorkbenchError, KeyError, TypeError):
                    found.append(_kept(folder))
        return sorted((k for k in found if k.n_edits), key=lambda k: -k.saved)

    @contextmanager
    def taking_over(self, path: Path) -> Iterator[Held]:
        """Go on with a session that ended, in its folder, if the block succeeds.

        Raises:
            BusyError: if it goes on elsewhere. DataError: if a file of it is damaged.
        """
        lock = _patient_lock(path / LOCK)
        if lock is None:
            raise BusyError(f"the session in {path} is open elsewhere: close it there first.")
        try:
            yield _read(path)
        except BaseException:
            lock.close()
            raise
        self.close()
        self._hold(path, lock)

    def forget(self, path: Path) -> None:
        """Delete a session that ended; one that goes on elsewhere is left alone."""
        lock = try_lock(path / LOCK)
        if lock is not None:
            with lock:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Let go of the folder; what it holds stays."""
        if self._let_go is not None:
            self._let_go()
        self.folder = self._let_go = None

    def _own(self) -> Path:
        """Our folder; the oldest of those that ended make room for it."""
        if self.folder is None:
            for kept in self.ended()[KEPT - 1 :]:
                self.forget(kept.path)
            path = self.root / f"{time.time_ns():x}"
            self._hold(path, try_lock(path / LOCK))
        assert self.folder is not None
        return self.folder

    def _hold(self, path: Path, lock: IO[str] | None) -> None:
        """Have a folder until we are closed, forgotten, or the process ends."""
        self.folder = path
        if lock is not None:
            self._let_go = weakref.finalize(self, lock.close)

    def _forget_files(self, ids: set[str]) -> None:
        for file in (self._own() / EDITS).glob("*.safetensors"):
            if file.stem not in ids:
                with suppress(OSError):
                    file.unlink()


# ---------------------------------------------------------------------- reading


def _file(folder: Path, edit_id: str) -> Path:
    return folder / EDITS / f"{edit_id}.safetensors"


def _note(folder: Path) -> dict[str, Any]:
    try:
        note = unseal(json.loads((folder / STATE).read_text(encoding="utf-8")))
        if note["format"] != FORMAT:
            raise ValueError(f"its format is {note['format']!r}")
        return note
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"the session in {folder} cannot be read ({err}): delete it.") from err


def _kept(folder: Path) -> Kept:
    note = _note(folder)
    return Kept(folder, float(note["saved"]), len(note["edits"]) + len(_streamed(note)))


def _read(folder: Path) -> Held:
    """What a session held: its stack, and what a stream in flight had finished."""
    note = _note(folder)

    def edits(name: str) -> tuple[Edit, ...]:
        return tuple(load_edit(_file(folder, i)) for i in note[name])

    return Held(
        edits=(*edits("edits"), *(load_edit(file) for file in _streamed(note))),
        undone=edits("undone") if note["stream"] is None else (),
        cases=tuple(_case(c) for c in note["cases"]),
        **{n: note[n] for n in ("notes", "editor", "runs")},
    )


def _streamed(note: Mapping[str, Any]) -> list[Path]:
    """Files of the run in flight that its stack does not name yet."""
    if note["stream"] is None:
        return []
    run, held = RunFolder(note["stream"]), list(note["edits"])
    try:
        parents = list(run.config().get("parents", []))
    except DataError:  # it had not begun
        return []
    made = [r for r in run.records() if r.get("edit")]
    known = held[len(parents) :]
    if held[: len(parents)] != parents or [r["edit"] for r in made][: len(known)] != known:
        return []
    return [run.file("edits", r["batch"]) for r in made[len(known) :]]


def _case_as_dict(case: EditCase) -> dict[str, Any]:
    probes = [asdict(p) for p in case.probes]
    tags = None if case.tags is None else dict(case.tags)
    return {"request": case.request.as_dict(), "probes": probes, "id": case.case_id, "tags": tags}


def _case(found: Mapping[str, Any]) -> EditCase:
    probes: Sequence[Probe] = [Probe(**p) for p in found["probes"]]
    request = EditRequest(**found["request"])
    return EditCase(request=request, probes=tuple(probes), case_id=found["id"], tags=found["tags"])


def _patient_lock(path: Path) -> IO[str] | None:
    """The lock, though another process may be glancing at the session; None if it is open there."""
    for _ in range(GLANCES):
        lock = try_lock(path)
        if lock is not None:
            return lock
        time.sleep(GLANCE_SECONDS)
    return None
