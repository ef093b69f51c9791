"""One progress hook for all long work: phase, done, total.

Code says ``for x in track(items, "targets")``; where it shows is the caller's choice. By default a
tqdm bar appears in terminals and notebooks and nothing elsewhere. A sink may raise to cancel;
:class:`Stopped` is made for that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm.auto import tqdm

__all__ = ["Bar", "Stopped", "progress_to", "track"]

T = TypeVar("T")
#: A sink is called with (phase, done, total); total is None if unknown.
Sink = Callable[[str, int, int | None], None]

_SINK: ContextVar[Sink | None] = ContextVar("workbench_progress", default=None)


class Stopped(BaseException):
    """Raised by a sink because a person asked for it.

    No error: like KeyboardInterrupt it passes everything that records errors and goes on.
    """


@contextmanager
def progress_to(sink: Sink) -> Iterator[None]:
    """Send progress to a function instead of a bar, for the length of the block."""
    before = _SINK.get()
    try:
        _SINK.set(sink)
        yield
    finally:
        _SINK.set(before)


class Bar:
    """Progress of one phase; use as a context manager and call :meth:`step`."""

    def __init__(self, phase: str, total: int | None = None, *, start: int = 0) -> None:
        self.phase, self.total, self.done = phase, total, start
        self._sink = _SINK.get()
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Bar:
        if self._sink is None:
            shown = sys.stderr.isatty() or "ipykernel" in sys.modules
            shown = shown and not os.environ.get("WORKBENCH_HEADLESS")
            self._bar = tqdm(
                total=self.total, initial=self.done, desc=self.phase, disable=not shown, leave=False
            )
        else:
            self._sink(self.phase, self.done, self.total)
        return self

    def step(self, n: int = 1) -> None:
        """``n`` more units are done."""
        self.done += n
        if self._sink is not None:
            self._sink(self.phase, self.done, self.total)
        elif self._bar is not None:
            self._bar.update(n)

    def note(self, text: str) -> None:
        """Words behind the bar: pace, memory."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()


def track(items: Iterable[T], phase: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, reporting one step after each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(phase, total) as bar:
        for item in items:
            yield item
            bar.step()
