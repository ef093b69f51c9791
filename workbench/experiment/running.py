"""A run in progress: edit, measure, record, batch after batch; nothing recorded is done again."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.atomic import write_atomically
from workbench.editors.base import Editor
from workbench.edits import Edit
from workbench.errors import DataError, NumericalError, RequestError
from workbench.experiment.alarm import StopOn
from workbench.experiment.exam import COLUMNS, Exam
from workbench.experiment.kept import keep_stack
from workbench.experiment.schedule import Schedule
from workbench.experiment.watch import Moment, Watcher, memory
from workbench.facts import EditCase
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.runs import MOMENT_COLUMNS, RunFolder

__all__ = ["OnStep", "Plan", "Run", "StreamStep", "rewind"]

#: Errors that ``on_error="skip"`` passes over: about the batch, not about the run.
SKIPPED = (NumericalError, RequestError)
#: Seconds between two notes in the status of a run.
SAY_EVERY = 2.0
#: Facts whose own moment an alarm is shown, at least.
RECENT = 1000


@dataclass(frozen=True)
class StreamStep:
    """A finished and recorded batch of a run.

    Attributes:
        batch, batches: its number, from 0 (before the run), and how many there are.
        step: edits held.
        edit: the batch's edit; None if it was skipped.
    """

    batch: int
    batches: int
    step: int
    edit: Edit | None


#: Why a case that the model had right was not edited.
RIGHT = "right already"
#: What was foreseen: position of a case → its edit, None if the model has it right.
Foreseen = dict[int, Edit | None]

#: Told of every finished batch.
OnStep = Callable[[StreamStep], None]


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    cases: list[EditCase]
    batch_size: int
    marks: Schedule
    dense: Schedule
    subset: list[int]
    watch: dict[str, Schedule]
    before: bool
    skip: bool
    stop_on: StopOn | None
    on_step: OnStep | None
    keep_at: Schedule
    given: dict[str, Any]
    #: Whether a case has to be edited; None edits all.
    errs: Callable[[EditCase], bool] | None = None
    #: Edits of a case and some after it, computed together; None computes them one by one.
    foresee: Callable[[int], Foreseen] | None = None
    #: The run is over once so many edits are held.
    most: int | None = None

    @property
    def n_batches(self) -> int:
        return -(-len(self.cases) // self.batch_size)

    def positions(self, batch: int) -> range:
        """Positions of the cases of batch 1, 2 …"""
        start = (batch - 1) * self.batch_size
        return range(start, min(start + self.batch_size, len(self.cases)))


@dataclass
class Run:
    """A run in progress: what is held, what is next."""

    folder: RunFolder
    view: ModelView
    editor: Editor
    plan: Plan
    exam: Exam
    watcher: Watcher
    held: set[int] = field(default_factory=set)
    skipped: dict[int, str] = field(default_factory=dict)
    foreseen: Foreseen = field(default_factory=dict)
    made: int = 0
    editing: float = 0.0
    said: float = 0.0
    recent: deque[pd.DataFrame] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=1 + RECENT // self.plan.batch_size)

    def drain(self) -> pd.DataFrame:
        """Go through all batches, whether recorded or not."""
        self._say("running", batch=0)
        reason = None
        with self._told():
            self._start()
            with Bar(f"stream {type(self.editor).__name__}", len(self.plan.cases)) as bar:
                for batch in range(1, self.plan.n_batches + 1):
                    self.view.say(f"streaming batch {batch}/{self.plan.n_batches}")
                    reason = self._batch(batch)
                    bar.note(self._pace())
                    bar.step(len(self.plan.positions(batch)))
                    if reason or self._full:
                        break
            rows = self.folder.finish()
            self._say("stopped" if reason else "complete", batch=batch, reason=reason)
        return self._told_of(rows, reason)

    # ------------------------------------------------------------------ one batch

    def _start(self) -> None:
        """Step 0: everything that will be edited, on the model as it is."""
        if self._kept(0) is not None:
            self._tell(0, None)
            return
        rows, began = None, time.perf_counter()
        if self.plan.before:
            everyone = set(self.exam.everything)
            rows = self.exam.survey(0, self.exam.everything, everyone, len(everyone))
        moment = Moment(0, measuring=time.perf_counter() - began)
        watched = self.watcher.measure(self.plan.watch, moment)
        self.folder.commit(0, {"step": 0, "case_ids": []}, rows=rows, moments=watched)
        self._tell(0, None)

    @property
    def _full(self) -> bool:
        return self.plan.most is not None and len(self.held) >= self.plan.most

    def _batch(self, batch: int) -> str | None:
        """Edit, measure and record one batch; returns the alarm's reason to stop."""
        before, depth = len(self.held), len(self.view.stack)
        new = self._kept(batch) is None
        edit, error = self._edit(batch)
        try:
            if edit is not None:
                self.view.push(edit)
                self.held |= set(self.plan.positions(batch))
            rows, watched = self._tables(batch, before, edit, error)
        except BaseException:  # back to the last finished batch
            self.held -= set(self.plan.positions(batch))
            rewind(self.view, depth)
            raise
        if edit is not None and self.plan.keep_at.due(before, len(self.held)):
            keep_stack(self.folder, len(self.held))
        if new and time.monotonic() - self.said > SAY_EVERY:
            self._say("running", batch=batch)
        self._tell(batch, edit)
        return self._alarm(batch, rows, watched)

    def _edit(self, batch: int) -> tuple[Edit | None, str | None]:
        """The batch's edit, read or computed, or the error for which it was skipped."""
        kept = self.folder.record(batch)
        if kept is not None and kept.get("skipped"):
            if kept["skipped"] != RIGHT:
                self.skipped[batch] = kept["skipped"]
            return None, kept["skipped"]
        with contextlib.suppress(DataError):
            return self.folder.edit(batch), None
        if self.plan.foresee is not None:
            return self._foreseen(batch, kept)
        if self.plan.errs is not None and kept is None and not self._errs(batch):
            return None, RIGHT
        requests = [self.plan.cases[i].request for i in self.plan.positions(batch)]
        began = time.perf_counter()
        try:
            edit = self.editor.edit(self.view, requests, **self.plan.given)
        except SKIPPED as err:
            if not self.plan.skip:
                raise
            self.skipped[batch] = f"{type(err).__name__}: {err}"
            return None, self.skipped[batch]
        self.editing += time.perf_counter() - began
        self.made += len(requests)
        self._require_same(batch, edit, kept)
        edit.save(self.folder.file("edits", batch))
        return edit, None

    def _errs(self, batch: int) -> bool:
        assert self.plan.errs is not None
        return any(self.plan.errs(self.plan.cases[i]) for i in self.plan.positions(batch))

    def _foreseen(
        self, batch: int, kept: Mapping[str, Any] | None
    ) -> tuple[Edit | None, str | None]:
        """The edit from those computed together; all of them are on the disk before the first is
        used, so that a run that dies among them computes the same groups again."""
        position = batch - 1
        if self._marker(batch).exists():
            return None, RIGHT
        if position not in self.foreseen:
            assert self.plan.foresee is not None
            began = time.perf_counter()
            self.foreseen = self.plan.foresee(position)
            for i, edit in sorted(self.foreseen.items(), reverse=True):
                if edit is None:
                    write_atomically(self._marker(i + 1), b"")
                else:
                    edit.save(self.folder.file("edits", i + 1))
                    self.made += 1
            self.editing += time.perf_counter() - began
        edit = self.foreseen.pop(position)
        if edit is None:
            return None, RIGHT
        self._require_same(batch, edit, kept)
        return edit, None

    def _marker(self, batch: int) -> Path:
        """Says that a case was foreseen to be right already."""
        return self.folder.file("edits", batch).with_suffix(".right")

    def _require_same(self, batch: int, edit: Edit, kept: Mapping[str, Any] | None) -> None:
        if kept is not None and kept.get("edit") != edit.id:
            raise DataError(
                f"{self.folder.file('edits', batch)} is missing or damaged, and computing it again "
                "gave another edit (another machine, or another number of threads?): put the file "
                "back, or start over with fresh=True."
            )

    def _tables(
        self, batch: int, before: int, edit: Edit | None, error: str | None
    ) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """The batch's tables: read if they are there, else measured and recorded."""
        kept = self._kept(batch)
        if kept is not None:
            return kept
        step, last = len(self.held), batch == self.plan.n_batches or self._full
        began = time.perf_counter()
        rows = self._measure(batch, before, edit, last)
        seconds = float(edit.meta.get("seconds", 0.0)) if edit is not None else 0.0
        facts = len(self.plan.positions(batch))
        moment = Moment(step, edit, facts, seconds, time.perf_counter() - began, last)
        due = [n for n, s in self.plan.watch.items() if last or s.due(before, step)]
        watched = self.watcher.measure(due, moment) if edit is not None or last else None
        record = {
            "step": step,
            "case_ids": [self.plan.cases[i].case_id for i in self.plan.positions(batch)],
            "edit": None if edit is None else edit.id,
            "skipped": error,
            "seconds": seconds / facts,
        }
        self.folder.commit(batch, record, rows=rows if len(rows) else None, moments=watched)
        return rows, watched

    def _measure(self, batch: int, before: int, edit: Edit | None, last: bool) -> pd.DataFrame:
        """Rows that are due: everything, or the subset and the newest."""
        exam, step = self.exam, len(self.held)
        newest = list(self.plan.positions(batch)) if edit is not None else []
        turn = self.plan.positions(batch).stop
        if last or self.plan.marks.due(before, step):
            return exam.survey(step, exam.everything, self.held, turn)
        tables = []
        if self.plan.dense.due(before, step):
            old = self.held - set(newest)
            tables.append(exam.survey(step, exam.subset, old, self.plan.positions(batch).start))
        if newest:
            tables.append(exam.newest(step, newest))
        tables = [t for t in tables if len(t)]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)

    def _kept(self, batch: int) -> tuple[pd.DataFrame, pd.DataFrame | None] | None:
        """Recorded tables of a batch; None if they are missing or damaged."""
        record = self.folder.record(batch)
        if record is None:
            return None
        try:
            rows = self.folder.table("rows", record)
            watched = self.folder.table("moments", record)
        except DataError:
            return None
        return (pd.DataFrame(columns=COLUMNS) if rows is None else rows), watched

    def _alarm(self, batch: int, rows: pd.DataFrame, watched: pd.DataFrame | None) -> str | None:
        if self.plan.stop_on is None:
            return None
        ids = {str(self.plan.cases[i].case_id) for i in self.plan.positions(batch)}
        newest = rows[rows["case_id"].astype(str).isin(ids)]
        if len(newest):
            self.recent.append(newest)
        shown = pd.concat(self.recent) if self.recent else rows
        seen = pd.DataFrame(columns=MOMENT_COLUMNS) if watched is None else watched
        return self.plan.stop_on(len(self.held), shown, seen)

    # ------------------------------------------------------------------ what it says

    def _tell(self, batch: int, edit: Edit | None) -> None:
        if self.plan.on_step is not None:
            self.plan.on_step(StreamStep(batch, self.plan.n_batches, len(self.held), edit))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """However the run ends, its status says so."""
        try:
            yield
        except BaseException as err:
            state = "failed" if isinstance(err, Exception) else "interrupted"
            self._say(state, reason=f"{type(err).__name__}: {err}")
            raise

    def _say(self, state: str, **facts: Any) -> None:
        rate = self.made / self.editing if self.editing else None
        peak = {f"{k}_peak_mib": round(v) for k, v in memory(self.view).items()}
        told = {"step": len(self.held), "cases": len(self.plan.cases), "skipped": self.skipped}
        self.folder.set_status(state, **facts, **told, edits_per_second=rate, **peak)
        self.said = time.monotonic()

    def _pace(self) -> str:
        rate = f"{self.made / self.editing:.3g} edits/s, " if self.editing else ""
        return rate + ", ".join(f"{k} {v:,.0f} MiB" for k, v in memory(self.view).items())

    def _told_of(self, rows: pd.DataFrame, reason: str | None) -> pd.DataFrame:
        skipped = {str(k): v for k, v in self.skipped.items()}
        rows.attrs = {"complete": reason is None, "stopped": reason, "skipped": skipped}
        if skipped:
            warnings.warn(
                f"{len(skipped)} of {self.plan.n_batches} batches were skipped: "
                f"{', '.join(list(skipped)[:10])}; rows.attrs['skipped'] has the reasons.",
                stacklevel=4,
            )
        return rows


def rewind(view: ModelView, depth: int) -> None:
    """Take edits off down to a depth, in one rebuild."""
    kept = view.stack[:depth]
    if len(view.stack) - depth <= 2:
        while len(view.stack) > depth:
            view.pop()
        return
    view.reset()
    for edit in kept:
        view.push(edit)
