"""A session: one model, the facts on the desk, a dry run, the stack with undo and redo.

Everything the bench's buttons do is a method here, so that scripts and tests do the same without
widgets. Methods return tables or edits; nothing is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.comparison import Comparison, compare_steps
from workbench.editors import Editor, find_editor
from workbench.edits import Edit
from workbench.errors import OptionError, WorkbenchError
from workbench.experiment import StreamStep, stream
from workbench.facts import EditCase, EditRequest
from workbench.inspectors.sides import sides_of
from workbench.model import ModelView
from workbench.receipts import Receipt, receipt
from workbench.runs import RunFolder
from workbench.session.choosing import cases_of, first_editor, fitting, like
from workbench.session.files import load_edits, newest_conflicts, save_edits
from workbench.session.keeping import Held, Keeper, Kept, sessions_dir
from workbench.session.resuming import Folders, put_back
from workbench.session.timeline import timeline, where

__all__ = ["Session"]

#: Watched by default in a stream, the rest on request: these cost next to nothing.
LIGHT = {"perplexity": None, "upstream": None, "downstream": None, "hidden_shift": None}


class Session:
    """The state of a bench.

    Args:
        view: the model.
        editor: name of the editor to begin with; None takes the first that suits the model.
        autosave: keep stack, facts and notes on disk after every change, in
            ``WORKBENCH_HOME/sessions``; :meth:`earlier` and :meth:`restore` bring them back.

    Attributes:
        editor: the chosen editor.
        cases: the facts on the desk, with the probes that judge them.
        preset: name of the preset it was made from.
        preview: the edit of a dry run that waits to be accepted or discarded.
        receipts: ids of the edits below and its own → what was measured when it was previewed.
        notes: edit id → a person's words.

    Example:
        >>> session = Session(view)  # doctest: +SKIP
        >>> session.take(wb.EditRequest(prompt="{} is in", subject="Rome", target_new="Spain"))
        >>> session.dry_run().verdict
        >>> session.accept()
    """

    def __init__(
        self, view: ModelView, *, editor: str | None = None, autosave: bool = False
    ) -> None:
        self.view = view
        self.cases: list[EditCase] = []
        self.preview: Edit | None = None
        self.preset = "default"
        self.receipts: dict[tuple[str, ...], Receipt] = {}
        self.notes: dict[str, str] = {}
        self._undone: list[Edit] = []
        self._moment: int | None = None
        self._folders = Folders()
        self._keeper = Keeper(sessions_dir(view)) if autosave else None
        self.editor: Editor = first_editor(view)
        if editor is not None:
            self.choose(editor)

    # ------------------------------------------------------------------ what is on the desk

    @property
    def moment(self) -> int | None:
        """Edits held at the moment that is looked at; None is now."""
        n = self._moment
        return n if n is not None and n < len(self.view.held) else None

    @property
    def request(self) -> EditRequest | None:
        """The first fact on the desk."""
        return self.cases[0].request if self.cases else None

    def choose(self, name: str, *, preset: str = "default", **options: Any) -> Editor:
        """Take another editor; a dry run made with the old one is discarded.

        Raises:
            OptionError: for an unknown editor, preset or option.
            UnsupportedEditorError: if the model cannot be edited with it; the old one stays.
        """
        editor = self._fit(find_editor(name).preset(self.view, preset, **options))
        self.preset = preset
        return editor

    def adjust(self, **options: Any) -> Editor:
        """Change some options of the chosen editor; a dry run is discarded.

        Raises:
            OptionError: for an unknown option.
            UnsupportedEditorError: if the model cannot be edited with them; the old ones stay.
        """
        return self._fit(self.editor.with_options(**options))

    def take(self, facts: Any) -> list[EditCase]:
        """Put facts on the desk in place of those there; a dry run is discarded.

        Raises:
            OptionError: if there is none, or something else.
        """
        self.cases, self.preview = cases_of(facts), None
        return self.cases

    # ------------------------------------------------------------------ dry run, accept, discard

    def dry_run(self) -> Receipt:
        """Compute the edit and what it would do; the model stays as it is.

        Raises:
            OptionError: if no fact is on the desk.
            WorkbenchError: whatever the editor refuses.
        """
        if not self.cases:
            raise OptionError("there is no fact on the desk: type one, or load some, first.")
        self._moment = None
        edit = self.editor.edit(self.view, self.cases)
        found = receipt(self.view, edit, self.cases)
        self.receipts[(*self._ids(), edit.id)] = found
        self.preview = edit
        return found

    def accept(self) -> Edit:
        """Put the edit of the dry run on the stack, the very bits that were looked at.

        Raises:
            OptionError: if there was no dry run.
        """
        if self.preview is None:
            raise OptionError("nothing was previewed: preview an edit first.")
        edit = self.preview
        self.view.push(edit)
        self.preview = None
        self._undone.clear()
        key = self._ids()
        if key in self.receipts:  # measured on trial, and now it stands there
            self.receipts[key] = replace(self.receipts[key], where=sides_of(self.view, -1).where)
        self._keep()
        return edit

    def discard(self) -> None:
        """Forget the dry run."""
        self.preview = None

    # ------------------------------------------------------------------ the stack

    def undo(self) -> Edit:
        """Take the newest edit off, exactly; :meth:`redo` puts it back."""
        edit = self.view.pop()
        self._undone.append(edit)
        self.preview = self._moment = None
        self._keep()
        return edit

    @property
    def redoable(self) -> int:
        """How many edits :meth:`redo` can put back."""
        return len(self._undone)

    def redo(self) -> Edit:
        """Put back the edit that was undone last.

        Raises:
            OptionError: if there is none.
        """
        if not self._undone:
            raise OptionError("there is nothing to put back.")
        self.view.push(self._undone[-1])
        self.preview = self._moment = None
        edit = self._undone.pop()
        self._keep()
        return edit

    def drop(self, entry: int, *, replay: bool = False) -> Edit:
        """Take any entry out; later ones stay as computed, or are computed again.

        Args:
            entry: position on the stack, from 0.
            replay: compute the later edits again, each with its own editor.
        """
        gone = self.view.replay(without=entry) if replay else self.view.drop(entry)
        self._undone.clear()
        self.preview = self._moment = None
        self._keep()
        return gone

    def note(self, edit_id: str, words: str) -> None:
        """Write something beside an edit; the empty text takes it away."""
        self.notes[edit_id] = words
        self._keep()

    def look_at(self, moment: int | None) -> None:
        """Look at the model as it was after so many edits; None is now. Nothing changes.

        Raises:
            OptionError: unless the stack holds that many.
        """
        held = len(self.view.stack)
        if moment is not None and not 0 <= moment <= held:
            raise OptionError(f"moment={moment}: the stack holds {held} edits.")
        self._moment = None if moment == held else moment
        self.preview = None

    def timeline(self) -> pd.DataFrame:
        """The stack, oldest first.

        Returns:
            One row an entry: ``entry, editor, prompt, target, facts, took`` (share of its facts
            that were right when it was accepted; NaN if it came by another way), ``note, id``.
        """
        return timeline(self.view.stack, self.receipts, self.notes)

    def describe(self) -> str:
        """Where we are: model, number of edits, what is looked at."""
        return where(self.view, self.preview, self.moment)

    # ------------------------------------------------------------------ long work

    def run_folder(
        self, cases: Sequence[EditCase], batch_size: int, *, subset: int, watch_all: bool
    ) -> Path:
        """Where a stream of these cases goes; one that was stopped is found again."""
        return self._folders.of(
            self.view, self.editor, cases, batch_size=batch_size, subset=subset,
            watch_all=watch_all,
        )  # fmt: skip

    def stream(
        self,
        cases: Iterable[EditCase],
        *,
        batch_size: int = 1,
        subset: int = 50,
        watch_all: bool = False,
        on_step: Callable[[StreamStep], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        out: str | os.PathLike[str] | None = None,
    ) -> pd.DataFrame:
        """Stack many facts, measuring a fixed subset of the earlier ones after every batch.

        Batches that cannot be written are left out and counted.

        Args:
            cases: what to write, on top of what the model holds.
            batch_size: facts an edit.
            subset: how many earlier facts are asked again after every batch.
            watch_all: also perplexity, other facts and hidden states, at checkpoints.
            on_step: told of every finished batch.
            stop: asked after every batch; True ends the run there.
            out: its folder; None takes :meth:`run_folder`.

        Returns:
            The table of :func:`workbench.stream`.
        """
        items, before = list(cases), self._ids()
        self.preview = self._moment = None
        folder = out or self.run_folder(items, batch_size, subset=subset, watch_all=watch_all)
        self._keep(stream=os.fspath(folder))
        try:
            return stream(
                folder, self.view, self.editor, items, batch_size=batch_size, subset=subset,
                dense_every=batch_size, evaluate_at=(len(items),), before=False,
                watch={} if watch_all else LIGHT, on_step=on_step, on_error="skip",
                stop_on=lambda *_: "stopped by hand" if stop() else None, continue_on=True,
            )  # fmt: skip
        finally:
            if self._ids() != before:
                self._undone.clear()
            self._keep(ran=RunFolder(folder))

    def compare(
        self,
        names: Sequence[str],
        *,
        generate: bool = False,
        on_step: Callable[[Comparison], None] = lambda found: None,
    ) -> Comparison:
        """The facts on the desk with several editors, each on the model as it is now.

        Args:
            names: of editors; the chosen one takes part with its options.
            generate: also write freely.
            on_step: told of what is known after each editor.

        Raises:
            OptionError: for fewer than two editors, or no facts.
        """
        if len(names) < 2 or not self.cases:
            what = "two editors" if len(names) < 2 else "one fact on the desk"
            raise OptionError(f"choose at least {what} to compare.")
        editors = {n: like(self.editor, n, self.view) for n in names}
        for found in compare_steps(self.view, editors, self.cases, generate=generate):
            on_step(found)
        return found

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the stack: as one file ``NAME.safetensors``, or as a folder with a file an edit.

        Raises:
            OptionError: if the stack is empty.
        """
        return save_edits(self.view, path)

    def load(self, path: str | os.PathLike[str]) -> tuple[Edit, ...]:
        """Put saved edits on the stack: a ``.safetensors`` file, a saved folder, or a run.

        Returns:
            Those that were added; an edit that stood there already is not stacked again.

        Raises:
            DataError: if there is no such file or it is damaged.
            EditMismatchError: for another model.
        """
        held = len(self.view.stack)
        load_edits(self.view, path)
        self.preview = self._moment = None
        self._undone.clear()
        self._keep()
        return self.view.stack[held:]

    def conflicts(self, newest: int) -> pd.DataFrame:
        """Where the newest edits are in conflict with those below them.

        Args:
            newest: how many edits of the stack count as new.

        Returns:
            The table of :func:`workbench.patch_conflicts`.
        """
        return newest_conflicts(self.view, newest)

    # ------------------------------------------------------------------ sessions that ended

    def earlier(self) -> list[Kept]:
        """Sessions with this model that ended with edits on their stack, newest first."""
        return [] if self._keeper is None else self._keeper.ended()

    def restore(self, kept: Kept) -> tuple[Edit, ...]:
        """Go on with one of :meth:`earlier` as it last was, finished batches of a stream included.

        Returns:
            The edits, which are on the stack again.

        Raises:
            OptionError: if this session does not autosave, or the model holds edits.
            BusyError: if it goes on elsewhere. DataError: if a file of it is damaged.
        """
        if self._keeper is None or self.view.stack:
            raise OptionError(
                f"the model holds {len(self.view.stack)} edits, or autosave is off: call "
                "view.reset() first, or make the session with autosave=True."
            )
        with self._keeper.taking_over(kept.path) as held:
            put_back(self.view, held.edits)
        self.notes, self._undone = dict(held.notes), list(held.undone)
        self.cases, self.preview, self._moment = list(held.cases), None, None
        self._folders.remember(held.runs)
        with suppress(WorkbenchError, KeyError, TypeError):  # another version's options
            self._fit(find_editor(held.editor["name"]).from_config(held.editor["config"]))
            self.preset = str(held.editor["preset"])
        self._keep()
        return held.edits

    def forget(self, kept: Kept) -> None:
        """Delete a session that ended."""
        if self._keeper is not None:
            self._keeper.forget(kept.path)

    # ------------------------------------------------------------------ inside

    def _keep(self, *, stream: str | None = None, ran: RunFolder | None = None) -> None:
        """Save what the session holds."""
        if self._keeper is None:
            return
        editor = {"name": type(self.editor).__name__, "preset": self.preset}
        held = Held(
            edits=self.view.held,
            undone=tuple(self._undone),
            cases=tuple(self.cases),
            notes=self.notes,
            editor=editor | {"config": self.editor.config()},
            runs=self._folders.known,
            stream=stream,
        )
        self._keeper.keep(held, ran)

    def _ids(self) -> tuple[str, ...]:
        return tuple(e.id for e in self.view.stack)

    def _fit(self, editor: Editor) -> Editor:
        """Take an editor that the model can be edited with."""
        self.editor, self.preview = fitting(self.view, editor), None
        return editor
