"""Stack many more facts, with a forgetting curve that grows and a button that stops."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench.errors import OptionError
from workbench.experiment import StreamStep, stream_rows
from workbench.facts import EditCase
from workbench.forgetting import retention, survival_map
from workbench.plots import plot_forgetting, plot_survival_map
from workbench.session.resuming import goes_on, unwritten
from workbench.widgets.facts import SOURCES
from workbench.widgets.jobs import Job
from workbench.widgets.live import FigureArea, LiveFigure
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, choice, column, field, number, row, table_html

__all__ = ["StreamPanel"]

#: A curve is drawn again at most this often, seconds, and reading it may take a fifth of the time.
REDRAW, SHARE = 0.4, 5
#: What the job is called.
STREAM = "stream"


#: Earlier facts that are asked again after every batch.
SUBSET = 50
#: Source, path, how many, facts an edit, whether everything is watched.
Wanted = tuple[str, str, int, int, bool]


@dataclass(frozen=True)
class _Run:
    """A stream that was begun."""

    wanted: Wanted
    cases: list[EditCase]
    out: Path


class StreamPanel(Panel):
    """Where facts come from, how many, in which batches; start, stop, and what became of them."""

    title: ClassVar[str] = "Stream"
    name: ClassVar[str] = "stream"
    keeps: ClassVar[bool] = True

    def _build(self) -> Any:
        self.source = choice("Facts from", list(SOURCES), name="wb-stream-source")
        self.path = field("File", name="wb-stream-path", hint="only for: a file")
        self.count = number("How many", 20, name="wb-stream-count")
        self.batch = number("Facts an edit", 1, name="wb-stream-batch")
        self.watch = ipw.Checkbox(
            value=False, indent=False, description="also perplexity and other facts"
        ).add_class("wb-stream-watch")
        self.start = button("Start", self.begin, name="wb-stream-start", style="primary")
        self.stop = button("Stop", self.end, name="wb-stream-stop", style="warning")
        self.stop.disabled = True
        self.place = column().add_class("wb-curve")
        self.fates = FigureArea()
        self.lost = ipw.HTML()
        self.live: LiveFigure | None = None
        self.rows: pd.DataFrame | None = None
        self.run: _Run | None = None
        self.ran = ""
        self._drawn: pd.DataFrame | None = None
        self._stopping = threading.Event()
        return column(
            row(self.source, self.path),
            row(self.count, self.batch, self.watch),
            row(self.start, self.stop),
            self.message,
            self.place,
            self.fates,
            self.lost,
        )

    def load(self) -> pd.DataFrame | None:
        """The rows of the newest stream."""
        return self.rows

    def draw(self, found: pd.DataFrame | None) -> None:
        """Curve, map of fates, and the facts that were lost."""
        self._grow()
        if found is None or not len(found):
            return
        self.fates.draw(self.plot(plot_survival_map, found, where=self.ran))

    def begin(self) -> None:
        """Write so many more facts, or go on with a run that was stopped."""
        wanted = (
            SOURCES[self.source.value],
            self.path.value.strip(),
            self.count.value,
            self.batch.value,
            self.watch.value,
        )
        typed = self.bench.typed()

        def work(job: Job) -> pd.DataFrame:
            self._stopping.clear()
            self.rows = self._drawn = None
            self.bench.editor.put(typed.options)
            run = self.run = self._next(wanted)
            return self.session.stream(
                run.cases,
                batch_size=run.wanted[3],
                watch_all=run.wanted[4],
                out=run.out,
                on_step=self._reader(run.out),
                stop=self._stopping.is_set,
            )

        self.act(STREAM, work, self._ended, tick=self._grow)

    def _next(self, wanted: Wanted) -> _Run:
        """The stopped run, if the model still holds just what it wrote; else one of new facts."""
        run, session = self.run, self.session
        if run is not None and run.wanted == wanted and goes_on(session.view, run.out):
            return run
        kind, path, count, batch, watch = wanted
        held = sum(len(e.requests) for e in session.view.stack)
        cases = unwritten(session.view, self.bench.cases(kind, path, count + held))[:count]
        if not cases:
            raise OptionError("every fact of this source is in the model already: choose another.")
        out = session.run_folder(cases, batch, subset=SUBSET, watch_all=watch)
        return _Run(wanted, cases, out)

    def end(self) -> None:
        """Stop after the batch in flight; what is finished stays, and Start goes on from there."""
        self._stopping.set()
        self.message.say("Stopping after this batch …")

    def working(self, job: Job | None) -> None:
        """The buttons follow the running job."""
        self.start.disabled = job is not None and not job.light
        self.stop.disabled = job is None or job.what != STREAM

    def forget(self) -> None:
        """Another model: nothing was streamed into it yet."""
        super().forget()
        self.rows = self.run = self._drawn = self.live = None
        self.place.children, self.lost.value = (), ""
        self.fates.draw(None)

    def figures(self) -> list[Any]:
        """The curve and the map, if any."""
        drawn = [] if self.rows is None or not len(self.rows) else [self._figure(self.rows)]
        return drawn + ([self.fates.figure] if self.fates.figure is not None else [])

    # ------------------------------------------------------------------ inside

    def _reader(self, out: Any) -> Any:
        """Reads the run's rows in the worker, seldom enough not to slow it down."""
        free = 0.0

        def on_step(step: StreamStep) -> None:
            nonlocal free
            now = time.monotonic()
            if step.batch and (now >= free or step.batch == step.batches):
                self.ran, self.rows = self.session.describe(), stream_rows(out)
                free = now + max(REDRAW, SHARE * (time.monotonic() - now))

        return on_step

    def _grow(self) -> None:
        """Draw the curve if there is more of it."""
        rows = self.rows
        if rows is None or rows is self._drawn or not len(rows):
            return
        figure = self._figure(rows)
        if self.live is None:
            self.live = LiveFigure(figure)
            self.place.children = (self.live,)
        else:
            self.live.become(figure)
        self._drawn = rows

    def _figure(self, rows: pd.DataFrame) -> Any:
        figure = self.plot(plot_forgetting, rows, where=self.ran)
        return figure.update_xaxes(range=[0, max(self.count.value, int(rows["step"].max()))])

    def _ended(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        curves = retention(rows)
        last = curves[curves["step"] == curves["step"].max()].set_index("curve")["value"]
        held = int(rows["step"].max())
        why = rows.attrs.get("stopped")
        said = f"{held} facts written."
        if why:
            said = f"Stopped after {held} facts: {why}. Start goes on."
        skipped = rows.attrs.get("skipped") or {}
        if skipped:
            said += f" {len(skipped)} batches were refused: {next(iter(skipped.values()))}"
        if "retained" in last:
            said += f" Of the facts that were learned, {last['retained']:.0%} are right now."
        self.message.say(said)
        lost = _lost(rows)
        self.lost.value = "" if lost.empty else table_html(lost, "Facts that were lost on the way")


def _lost(rows: pd.DataFrame) -> pd.DataFrame:
    """Facts right after their own edit and wrong at the end."""
    fates = survival_map(rows)
    gone = fates[(fates["step"] == fates["step"].max()) & (fates["state"] == "forgotten")]
    return gone[["case_id", "edit_step", "held_until", "killed_at"]].reset_index(drop=True)
