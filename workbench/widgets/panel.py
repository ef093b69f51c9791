"""What every panel of the bench is: it holds controls, asks the session, and draws tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.plots.theme import words
from workbench.widgets.jobs import Job
from workbench.widgets.parts import Message

if TYPE_CHECKING:
    from workbench.widgets.bench import EditBench

__all__ = ["Panel"]


class Panel(ABC):
    """A part of the bench.

    A panel computes nothing: :meth:`load` reads tables off the session in the worker thread, and
    :meth:`draw` shows them in the page's.

    Args:
        bench: the bench it belongs to.

    Attributes:
        title: as shown on its tab.
        box: its widget.
        message: the sentence about what went wrong here.
        where: which model and edits its tables speak of.
    """

    title: ClassVar[str]
    #: class of its box and prefix of its parts' classes
    name: ClassVar[str]
    #: results of long work stay until there are new ones; they carry their own label
    keeps: ClassVar[bool] = False

    def __init__(self, bench: EditBench) -> None:
        self.bench = bench
        self.message = Message(f"wb-{self.name}-message")
        self.where = ""
        self.box = self._build()
        self.box.add_class(f"wb-{self.name}")

    @property
    def session(self) -> Any:
        """The bench's session."""
        return self.bench.session

    @abstractmethod
    def _build(self) -> Any:
        """The widget."""

    @abstractmethod
    def load(self) -> Any:
        """What :meth:`draw` needs; runs in the worker thread and touches no widget."""

    @abstractmethod
    def draw(self, found: Any) -> None:
        """Show it."""

    def plot(
        self, function: Callable[..., Any], *tables: Any, where: str | None = None, **options: Any
    ) -> Any:
        """A figure in the page's theme whose subtitle says which model and edits it speaks of.

        Args:
            function: of :mod:`workbench.plots`.
            tables: for it.
            where: if they are older than the panel's other tables.
            options: of the function.
        """
        where = words(self.where if where is None else where)
        writes_own = signature(function).parameters["subtitle"].default is None
        given = options if writes_own else {"subtitle": where} | options
        figure = function(*tables, theme=self.bench.theme, **given)
        if writes_own:
            own = figure.layout.title.subtitle.text
            figure.update_layout(title_subtitle_text=f"{own} · {where}" if own else where)
        return figure

    def working(self, job: Job | None) -> None:  # noqa: B027 - few panels care
        """A job began, goes on, or (None) ended."""

    def figures(self) -> list[Any]:
        """What it draws at present, for static copies of the bench."""
        return []

    def forget(self) -> None:
        """Drop results of its own: another model is on the bench."""
        self.message.say()

    def act(
        self,
        what: str,
        work: Callable[[Job], Any],
        then: Callable[[Any], None] | None = None,
        *,
        tick: Callable[[], None] | None = None,
        light: bool = False,
        repeats: bool = False,
    ) -> bool:
        """Do something with the session in the worker, then redraw what is in sight.

        Args:
            what: in words.
            work: runs in the worker thread.
            then: takes its result.
            tick: called while it runs, for displays that grow.
            light: it takes no time to speak of, so others wait for it.
            repeats: asked for twice means done twice.
        """
        return self.bench.act(self, what, work, then, tick=tick, light=light, repeats=repeats)
