"""Long work beside a live page: one worker thread, one piece of work at a time, cancellable.

A click starts a job and returns. The work runs in the worker thread; the page's loop looks at it
five times a second, shows phase and share, and takes the result when it is there. Without a running
loop (a script, a test) the click waits for its job. All work with the model happens in the one
thread, so two jobs can never write at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from workbench.errors import WorkbenchError
from workbench.progress import Stopped, progress_to

__all__ = ["Job", "Jobs", "told"]

T = TypeVar("T")
#: Seconds between two looks at a job.
TICK = 0.2


@dataclass
class Job:
    """A piece of work in progress.

    Attributes:
        what: in words, for the progress line.
        light: short work that others wait for instead of being refused.
        phase, done, total: as reported; total is None where it is unknown.
        began: on the monotonic clock.
        stop: set to ask for its end.
    """

    what: str
    light: bool = False
    began: float = field(default_factory=time.monotonic)
    phase: str = ""
    done: int = 0
    total: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def report(self, phase: str, done: int, total: int | None) -> None:
        """The progress sink; ends the work if that was asked for."""
        self.phase, self.done, self.total = phase, done, total
        if self.stop.is_set():
            raise Stopped(f"{self.what} was stopped.")

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began


@dataclass(frozen=True)
class _Shown:
    """Where a job's result, its failure and its growth go; all in the page's thread."""

    then: Callable[[Any], None]
    failed: Callable[[str, str], None]
    tick: Callable[[], None] | None
    noted: Callable[[str], None] | None

    def look(self) -> None:
        """Redraw what grows."""
        if self.tick is None:
            return
        try:
            self.tick()
        except Exception as err:  # a display that fails must not end the work
            self.failed(*told(err))

    def finish(self, outcome: _Outcome) -> None:
        """Show the result; what goes wrong in showing is told like what goes wrong in working."""
        try:
            if outcome.error is None:
                self.then(outcome.value)
            else:
                self.failed(outcome.error, outcome.detail)
            if self.noted is not None:
                for note in outcome.notes:
                    self.noted(note)
        except Exception as err:
            self.failed(*told(err))


@dataclass(frozen=True)
class _Outcome:
    value: Any = None
    error: str | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()


class Jobs:
    """Runs jobs for a bench.

    Args:
        on_change: called when a job begins, at every look, and when it ended; in the page's thread.
    """

    def __init__(self, on_change: Callable[[Job | None], None]) -> None:
        self.current: Job | None = None
        self.task: asyncio.Task[None] | None = None
        self._on_change = on_change
        self._waiting: deque[tuple[str, Callable[[], object]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="workbench-bench")

    def start(
        self,
        what: str,
        work: Callable[[Job], T],
        then: Callable[[T], None],
        *,
        failed: Callable[[str, str], None],
        tick: Callable[[], None] | None = None,
        noted: Callable[[str], None] | None = None,
        light: bool = False,
        waits: bool = False,
        repeats: bool = False,
    ) -> bool:
        """Begin a job, or have it wait for a light one; False (and a sentence) if one is running.

        Args:
            what: in words.
            work: runs in the worker thread; its progress is shown and it can be stopped.
            then: takes the result, in the page's thread.
            failed: takes a sentence and details: of an error, of a stop, of a refusal.
            tick: called at every look, for displays that grow.
            noted: takes each warning that the work gave.
            light: short; jobs that come meanwhile wait for it and then run in their order.
            waits: return when it is done, although a loop is running.
            repeats: asked for twice means done twice (undo); otherwise the newer one of two that
                wait under one name takes the older one's place.
        """
        shown = _Shown(then, failed, tick, noted)
        asked = partial(self._run, Job(what, light), work, shown, waits)
        if self.current is None and not self._waiting:
            asked()
        elif self.current is None or self.current.light:
            twin = [i for i, (name, _) in enumerate(self._waiting) if name == what]
            if twin and not repeats:
                self._waiting[twin[0]] = (what, asked)
            else:
                self._waiting.append((what, asked))
        else:
            failed(f"Busy: {self.current.what}. Wait for it, or stop it.", "")
            return False
        return True

    def stop(self) -> None:
        """Ask the running job to end; it does at its next report of progress."""
        if self.current is not None:
            self.current.stop.set()
            self._on_change(self.current)

    async def finished(self) -> None:
        """Wait for the running job, in a notebook cell: ``await bench.jobs.finished()``."""
        while self.task is not None and not self.task.done():
            await asyncio.wait({self.task})  # a job that waited makes a new task

    def _run(self, job: Job, work: Callable[[Job], Any], shown: _Shown, waits: bool) -> None:
        job.began = time.monotonic()
        self.current = job
        self._tell(job, shown)
        future = self._pool.submit(_guarded, work, job)
        loop = None if waits else _loop()
        if loop is None:
            self._wait(job, future, shown)
        else:
            self.task = loop.create_task(self._watch(job, future, shown))

    def _wait(self, job: Job, future: Future[_Outcome], shown: _Shown) -> None:
        try:
            while wait([future], timeout=TICK).not_done:
                self._look(job, shown)
        except BaseException:  # the kernel was interrupted: end the work, then pass it on
            job.stop.set()
            wait([future])
            self._end(shown)
            raise
        self._finish(future.result(), shown)

    async def _watch(self, job: Job, future: Future[_Outcome], shown: _Shown) -> None:
        waiting = asyncio.wrap_future(future)
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=TICK)
            self._look(job, shown)
        self._finish(waiting.result(), shown)

    def _look(self, job: Job, shown: _Shown) -> None:
        self._tell(job, shown)
        shown.look()

    def _finish(self, outcome: _Outcome, shown: _Shown) -> None:
        self.current = None
        shown.finish(outcome)
        self._end(shown)

    def _end(self, shown: _Shown) -> None:
        """Say that nothing runs, and begin what waited."""
        self.current = None
        self._tell(None, shown)
        if self._waiting and self.current is None:
            self._waiting.popleft()[1]()

    def _tell(self, job: Job | None, shown: _Shown) -> None:
        try:
            self._on_change(job)
        except Exception as err:  # a progress line that fails must not stop everything
            shown.failed(*told(err))


def _loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _guarded(work: Callable[[Job], Any], job: Job) -> _Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = _tried(work, job)
    notes = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))
    return replace(outcome, notes=tuple(notes))


def _tried(work: Callable[[Job], Any], job: Job) -> _Outcome:
    try:
        with progress_to(job.report):
            return _Outcome(work(job))
    except Stopped as err:
        return _Outcome(error=f"{err} The model holds the last finished state.")
    except Exception as err:
        return _Outcome(None, *told(err))


def told(err: Exception) -> tuple[str, str]:
    """An error as a sentence, and the trace of one that nobody foresaw."""
    if isinstance(err, WorkbenchError):
        return str(err), ""
    detail = "".join(traceback.format_exception(err))
    return f"Unexpected: {type(err).__name__}: {err}. Please report this.", detail
