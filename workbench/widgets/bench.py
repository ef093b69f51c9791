"""``EditBench``: edit, see, compare, undo, without writing code.

The bench owns a session (:mod:`workbench.session`), the one worker thread, and the panels. Panels
call the session in the worker and draw what comes back; only what is in sight is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as ipw

from workbench.errors import BusyError
from workbench.facts import EditCase
from workbench.model import ModelView
from workbench.plots.shown import bundle, headless
from workbench.pretrained import MODELS, load
from workbench.progress import Stopped
from workbench.session import Session
from workbench.session.looking import Looker
from workbench.widgets.answers import AnswersPanel
from workbench.widgets.codebook import CodebookPanel
from workbench.widgets.comparing import ComparePanel
from workbench.widgets.earlier import EarlierPanel
from workbench.widgets.editors import EditorPanel
from workbench.widgets.effects import EffectsPanel
from workbench.widgets.facts import FactPanel, read_cases
from workbench.widgets.files import FilesPanel
from workbench.widgets.hooks import HookPanel
from workbench.widgets.jobs import Job, Jobs, told
from workbench.widgets.moved import MovedPanel
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, column, row
from workbench.widgets.receipts import ReceiptPanel
from workbench.widgets.streaming import StreamPanel
from workbench.widgets.theme import ThemeProbe
from workbench.widgets.timeline import TimelinePanel
from workbench.widgets.tracing import TracePanel

__all__ = ["EditBench"]

TABS: tuple[type[Panel], ...] = (
    ReceiptPanel,
    MovedPanel,
    EffectsPanel,
    HookPanel,
    CodebookPanel,
    TimelinePanel,
    StreamPanel,
    ComparePanel,
    TracePanel,
    FilesPanel,
)
#: What a job is called that only draws.
LOOK = "look"
#: Seconds after which a light job is shown and can be stopped.
PATIENCE = 1.0
STYLE = """<style>
.wb-bench .wb-table {overflow-x: auto}
.wb-bench table {border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums}
.wb-bench th, .wb-bench td {padding: 2px 10px 2px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--jp-border-color2, #d5d9de)}
.wb-bench td.number, .wb-bench th.number {text-align: right; white-space: nowrap}
.wb-bench caption {text-align: left; color: var(--jp-ui-font-color2, #565c64); padding: 4px 0}
.wb-bench .widget-html-content {line-height: 1.45}
.wb-where {font-weight: bold}
</style>"""


class EditBench:
    """The interactive workbench: return it from a notebook cell.

    Args:
        view: the model; edits it holds already are on the timeline.
        facts: put on the desk at the start; None takes a shipped one that suits the model.
        autosave: keep the session on disk, so that a killed kernel loses nothing that was finished;
            None does so in a live page.

    Attributes:
        box: the widget.
        session: the state, and every action as a method (:class:`workbench.session.Session`).
        jobs: long work; ``await bench.jobs.finished()`` in a cell waits for it.

    Raises:
        WorkbenchError: if the extra ``lab`` is not installed.

    Example:
        >>> bench = wb.EditBench(wb.load("tiny"))  # doctest: +SKIP
        >>> bench
    """

    def __init__(
        self,
        view: ModelView,
        *,
        facts: Sequence[EditCase] | EditCase | None = None,
        autosave: bool | None = None,
    ) -> None:
        self.autosave = not headless() if autosave is None else autosave
        self.use(view, facts)
        self.jobs = Jobs(self._working)
        self.is_quiet = False
        self._stale = False
        self._probe = ThemeProbe()
        self._probe.observe(lambda change: self._draw(self._shown), "theme")
        self._shown: dict[Panel, _Tables] = {}
        self._failing: set[Panel] = set()
        self._later: dict[Panel, tuple[str, Callable[[], Any] | None]] = {}
        self.fact, self.editor = FactPanel(self), EditorPanel(self)
        self.earlier = EarlierPanel(self)
        self.answers = AnswersPanel(self)
        self.tabs = tuple(make(self) for make in TABS)
        self.box = ipw.VBox(self._parts()).add_class("wb-bench")
        self.fact.fill(self.session.cases[0].request)
        self.redraw(waits=True)

    # ------------------------------------------------------------------ layout

    def _parts(self) -> list[Any]:
        self.where = ipw.HTML().add_class("wb-where")
        self.bar = ipw.FloatProgress(min=0, max=1, layout=ipw.Layout(width="220px"))
        self.phase = ipw.HTML().add_class("wb-phase")
        self.halt = button(
            "Stop",
            self.jobs.stop,
            name="wb-halt",
            style="warning",
            hint="Stop what is running; the model keeps the last finished state",
        )
        self.model = ipw.Combobox(
            value=self.session.view.name,
            options=list(MODELS),
            description="Model",
            ensure_option=False,
            continuous_update=False,
            layout=ipw.Layout(width="300px"),
            tooltip="tiny, smollm2-135m, a folder or a hub id",
        ).add_class("wb-model")
        self.model.observe(self._other_model, "value")
        top = row(self.model, self.where)
        work = row(self.bar, self.phase, self.halt)
        left = ipw.HBox([column(self.fact.box, width="55%"), column(self.editor.box, width="45%")])
        self.tab = ipw.Tab(
            children=[p.box for p in self.tabs], titles=[p.title for p in self.tabs]
        ).add_class("wb-tabs")
        self.tab.observe(lambda change: self.redraw(), "selected_index")
        self._working(None)
        style = ipw.HTML(STYLE)
        earlier = self.earlier.box
        return [style, self._probe, top, work, earlier, left, self.answers.box, self.tab]

    # ------------------------------------------------------------------ state

    @property
    def theme(self) -> str:
        """``light`` or ``dark``, as the page is."""
        return str(self._probe.theme)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Controls change without being taken for a person's doing."""
        before, self.is_quiet = self.is_quiet, True
        try:
            yield
        finally:
            self.is_quiet = before

    def cases(self, kind: str, path: str, limit: int) -> list[EditCase]:
        """Facts of a source for this model."""
        return read_cases(kind, path, limit, self.session.view.name)

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Those always in sight, then the tabs."""
        return (self.earlier, self.fact, self.editor, self.answers, *self.tabs)

    def panel(self, name: str) -> Panel:
        """A panel by its name, such as ``stream``."""
        return next(p for p in self.panels if p.name == name)

    def show(self, name: str) -> Panel:
        """Bring a tab to the front."""
        panel = self.panel(name)
        self.tab.selected_index = self.tabs.index(panel)
        return panel

    # ------------------------------------------------------------------ doing and drawing

    def act(
        self,
        panel: Panel,
        what: str,
        work: Callable[[Job], Any],
        then: Callable[[Any], None] | None = None,
        *,
        tick: Callable[[], None] | None = None,
        light: bool = False,
        waits: bool = False,
        repeats: bool = False,
    ) -> bool:
        """Work in the worker thread, then draw what is in sight; errors go to the panel."""
        panel.message.say()

        def both(job: Job) -> tuple[Any, dict[Panel, _Tables]]:
            value = work(job)
            try:
                return value, self._load()
            except Stopped:  # the work is done, only the looking was stopped
                return value, {}

        def done(found: tuple[Any, dict[Panel, _Tables]]) -> None:
            value, tables = found
            if then is not None:
                then(value)
            self._draw(tables)

        def failed(text: str, detail: str) -> None:
            panel.message.complain(text, detail)
            self._stale = what != LOOK  # what was finished before is worth drawing

        return self.jobs.start(
            what,
            both,
            done,
            failed=failed,
            tick=tick,
            noted=panel.message.add,
            light=light,
            waits=waits,
            repeats=repeats,
        )

    def later(self, panel: Panel, what: str = LOOK, work: Callable[[], Any] | None = None) -> None:
        """A small piece of work and a redraw, as soon as nothing else is running.

        The newest of a panel's that wait is done, the older ones are not.
        """
        if self.jobs.current is not None:
            self._later[panel] = (what, work)
            return
        self.act(panel, what, lambda job: work() if work else None, light=True)

    def redraw(self, *, waits: bool = False) -> None:
        """Draw what is in sight again, for changes that were made by code.

        Args:
            waits: return when it is drawn.

        Raises:
            BusyError: with ``waits``, while a job is running.
        """
        job = self.jobs.current
        if job is not None and waits:
            raise BusyError(f"busy: {job.what}. First `await bench.jobs.finished()`.")
        if job is not None:
            self._stale = True
            return
        self.act(self.answers, LOOK, lambda job: None, light=True, waits=waits)

    def typed(self) -> Typed:
        """What stands in the fields for the fact and the editor's options."""
        return Typed(self.fact.typed(), self.editor.typed())

    def take(self, typed: Typed) -> None:
        """Put what was typed on the desk; runs in the worker thread.

        Raises:
            WorkbenchError: saying what is wrong with it.
        """
        self.editor.put(typed.options)
        self.fact.put(typed.fact)

    def _in_sight(self) -> list[Panel]:
        front = self.tabs[self.tab.selected_index or 0]
        return [self.earlier, self.fact, self.editor, self.answers, front]

    def _load(self) -> dict[Panel, _Tables]:
        """Tables of what is in sight; a failure is the panel's own."""
        where = self.session.describe()
        found: dict[Panel, _Tables] = {}
        for panel in self._in_sight():
            try:
                found[panel] = _Tables(where, panel.load())
            except Exception as err:
                found[panel] = _Tables(where, None, told(err))
        return found

    def _draw(self, tables: dict[Panel, _Tables]) -> None:
        for panel, found in tables.items():
            error = found.error or self._tried(panel, found)
            if error:
                panel.message.complain(*error)
                self._failing.add(panel)
            elif panel in self._failing:
                panel.message.say()
                self._failing.discard(panel)
        self._shown |= tables
        self.where.value = escape(self.session.describe())
        with self.quiet():
            self.model.value = self.session.view.name

    @staticmethod
    def _tried(panel: Panel, found: _Tables) -> tuple[str, str] | None:
        """Draw; what went wrong, if anything."""
        panel.where = found.where
        try:
            panel.draw(found.value)
        except Exception as err:
            return told(err)
        return None

    def _working(self, job: Job | None) -> None:
        """The progress line; called at every look and at the end."""
        at_work = job is not None and (not job.light or job.seconds > PATIENCE)
        self.halt.disabled = not at_work
        for panel in self.tabs:
            panel.working(job)
        if job is None:
            self.bar.value, self.phase.value = 0, ""
            self._idle()
            return
        share = job.done / job.total if job.total else 0
        self.bar.value = share
        count = f" {job.done}/{job.total}" if job.total else ""
        left = f", about {job.seconds * (1 / share - 1):.0f} s left" if share > 0.05 else ""
        ending = " – stopping …" if job.stop.is_set() else ""
        said = f"{job.what}: {job.phase}{count} · {job.seconds:.0f} s{left}{ending}"
        self.phase.value = f"<span role='status'>{escape(said)}</span>" if at_work else ""
        self.where.value = escape(self.session.describe())

    def _idle(self) -> None:
        """Do what was left for later."""
        if self._later:
            panel = next(iter(self._later))
            self.later(panel, *self._later.pop(panel))
        elif self._stale:
            self._stale = False
            self.redraw()

    def _other_model(self, change: Any) -> None:
        name = change["new"].strip()
        if self.is_quiet or not name or name == self.session.view.name:
            return

        def work(job: Job) -> None:
            self.use(load(name))

        def then(_: Any) -> None:
            self.fact.fill(self.session.cases[0].request)
            self._shown.clear()
            for panel in self.panels:
                panel.forget()

        self.act(self.editor, f"load {name}", work, then)

    def use(self, view: ModelView, facts: Sequence[EditCase] | EditCase | None = None) -> None:
        """Work on a model: a new session with facts, or a shipped one, on the desk."""
        session = Session(view, autosave=self.autosave)
        session.take(read_cases("facts", "", 1, view.name) if facts is None else facts)
        self.session, self.looker = session, Looker(session)

    # ------------------------------------------------------------------ static copies

    def figures(self) -> list[Any]:
        """The figures of the panels that speak of the present state, and results of long work."""
        now, panels = self.session.describe(), (self.answers, *self.tabs)
        return [f for p in panels if p.keeps or p.where == now for f in p.figures()]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Widgets where they live; words, a table and a picture everywhere else."""
        static = {
            "text/plain": f"EditBench: {self.session.describe()}",
            "text/html": self.session.view._repr_html_(),
        }
        drawn = self.answers.figures()
        if headless():
            return bundle(drawn[0], interactive=False) | static if drawn else static
        live = self.box._repr_mimebundle_(**kwargs)
        return live if live is None else {**live, **static}


@dataclass(frozen=True)
class Typed:
    """Texts of the fields: of the fact, and option → text of the editor."""

    fact: dict[str, str]
    options: dict[str, str]


@dataclass(frozen=True)
class _Tables:
    """What a panel draws, and which model and edits it speaks of; or why there is nothing."""

    where: str
    value: Any
    error: tuple[str, str] | None = None
