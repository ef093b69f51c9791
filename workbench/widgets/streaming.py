"""Stack many more facts, with a forgetting curve that grows and a button that stops."""

from __future__ import annotations

import threading
import time
from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench.experiment import StreamStep, stream_rows
from workbench.forgetting import retention, survival_map
from workbench.plots import plot_forgetting, plot_survival_map
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


class StreamPanel(Panel):
    """Where facts come from, how many, in which batches; start, stop, and what became of them."""

    title: ClassVar[str] = "Stream"
    name: ClassVar[str] = "stream"

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
        self.fates.draw(self.plot(plot_survival_map, found))

    def begin(self) -> None:
        """Start, or go on with one that was stopped."""
        kind, path, count = SOURCES[self.source.value], self.path.value.strip(), self.count.value
        batch, everything = self.batch.value, self.watch.value
        self._stopping.clear()
        self.rows = self._drawn = None

        def work(job: Job) -> pd.DataFrame:
            cases = self.bench.cases(kind, path, count)
            out = self.session.run_folder(cases, batch)
            return self.session.stream(
                cases,
                batch_size=batch,
                watch_all=everything,
                out=out,
                on_step=self._reader(out),
                stop=self._stopping.is_set,
            )

        self.act(STREAM, work, self._ended, tick=self._grow)

    def end(self) -> None:
        """Stop after the batch in flight; what is finished stays, and Start goes on from there."""
        self._stopping.set()
        self.message.say("Stopping after this batch …")

    def working(self, job: Job | None) -> None:
        """The buttons follow the running job."""
        self.start.disabled = job is not None and not job.light
        self.stop.disabled = job is None or job.what != STREAM

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
                self.rows = stream_rows(out)
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
        figure = self.plot(plot_forgetting, rows)
        return figure.update_xaxes(range=[0, max(self.count.value, int(rows["step"].max()))])

    def _ended(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        curves = retention(rows)
        last = curves[curves["step"] == curves["step"].max()].set_index("curve")["value"]
        held = int(rows["step"].max())
        why = rows.attrs.get("stopped")
        said = (
            f"Stopped after {held} edits: {why}. Start goes on." if why else f"{held} edits done."
        )
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
