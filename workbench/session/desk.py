"""A session: one model, the facts on the desk, a dry run, the stack with undo and redo.

Everything the bench's buttons do is a method here, so that scripts and tests do the same without
widgets. Methods return tables or edits; nothing is shown.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.comparison import Comparison, compare
from workbench.editors import EDITORS, Editor, find_editor
from workbench.edits import Edit, load_edit
from workbench.errors import OptionError, UnsupportedEditorError, WorkbenchError
from workbench.experiment import StreamStep, open_stack, save_stack, stream
from workbench.facts import EditCase, EditRequest
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.receipts import Receipt, receipt
from workbench.runs import RunFolder

__all__ = ["Session"]

#: Offered first, in this order, where the model can take them.
PREFERRED = ("ROME", "MEMIT", "FT")
#: Watched by default in a stream, the rest on request: these cost next to nothing.
LIGHT = {"perplexity": None, "upstream": None, "downstream": None, "hidden_shift": None}


class Session:
    """The state of a bench.

    Args:
        view: the model.
        editor: name of the editor to begin with; None takes the first that suits the model.

    Attributes:
        editor: the chosen editor.
        cases: the facts on the desk, with the probes that judge them.
        preview: the edit of a dry run that waits to be accepted or discarded.
        moment: edits held at the moment that is looked at; None is now.
        receipts: edit id → what was measured when it was accepted.
        notes: edit id → a person's words.

    Example:
        >>> session = Session(view)  # doctest: +SKIP
        >>> session.take(wb.EditRequest(prompt="{} is in", subject="Rome", target_new="Spain"))
        >>> session.dry_run().verdict
        >>> session.accept()
    """

    def __init__(self, view: ModelView, *, editor: str | None = None) -> None:
        self.view = view
        self.cases: list[EditCase] = []
        self.preview: Edit | None = None
        self.moment: int | None = None
        self.receipts: dict[str, Receipt] = {}
        self.notes: dict[str, str] = {}
        self._undone: list[Edit] = []
        self._runs: dict[str, Path] = {}
        self.editor: Editor = self._first(editor)

    # ------------------------------------------------------------------ what is on the desk

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
        editor = find_editor(name).preset(self.view, preset, **options)
        reason = editor.unsupported(self.view)
        if reason:
            raise UnsupportedEditorError(f"{name} on {self.view.name}: {reason}")
        self.editor, self.preview = editor, None
        return editor

    def take(self, facts: Any) -> list[EditCase]:
        """Put facts on the desk in place of those there; a dry run is discarded.

        Raises:
            OptionError: if there is none, or something else.
        """
        items = [facts] if isinstance(facts, EditCase | EditRequest) else list(facts)
        cases = [
            EditCase(request=x, case_id=i) if isinstance(x, EditRequest) else x
            for i, x in enumerate(items)
        ]
        if not cases or not all(isinstance(c, EditCase) for c in cases):
            raise OptionError("take needs at least one EditRequest or EditCase.")
        self.cases, self.preview = cases, None
        return cases

    # ------------------------------------------------------------------ dry run, accept, discard

    def dry_run(self) -> Receipt:
        """Compute the edit and what it would do; the model stays as it is.

        Raises:
            OptionError: if no fact is on the desk.
            WorkbenchError: whatever the editor refuses.
        """
        if not self.cases:
            raise OptionError("there is no fact on the desk: type one, or load some, first.")
        self.moment = None
        edit = self.editor.edit(self.view, self.cases)
        found = receipt(self.view, edit, self.cases)
        self.preview, self.receipts[edit.id] = edit, found
        return found

    def accept(self) -> Edit:
        """Put the edit of the dry run on the stack, the very bits that were looked at.

        Raises:
            OptionError: if there was no dry run.
        """
        if self.preview is None:
            raise OptionError("nothing was previewed: preview an edit first.")
        self.view.push(self.preview)
        edit, self.preview = self.preview, None
        self._undone.clear()
        return edit

    def discard(self) -> None:
        """Forget the dry run."""
        self.preview = None

    # ------------------------------------------------------------------ the stack

    def undo(self) -> Edit:
        """Take the newest edit off, exactly; :meth:`redo` puts it back."""
        edit = self.view.pop()
        self._undone.append(edit)
        self.preview = self.moment = None
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
        self.preview = self.moment = None
        return self._undone.pop()

    def drop(self, entry: int, *, replay: bool = False) -> Edit:
        """Take any entry out; later ones stay as computed, or are computed again.

        Args:
            entry: position on the stack, from 0.
            replay: compute the later edits again, each with its own editor.
        """
        gone = self.view.replay(without=entry) if replay else self.view.drop(entry)
        self._undone.clear()
        self.preview = self.moment = None
        return gone

    def look_at(self, moment: int | None) -> None:
        """Look at the model as it was after so many edits; None is now. Nothing changes.

        Raises:
            OptionError: unless the stack holds that many.
        """
        held = len(self.view.stack)
        if moment is not None and not 0 <= moment <= held:
            raise OptionError(f"moment={moment}: the stack holds {held} edits.")
        self.moment = None if moment == held else moment
        self.preview = None

    def timeline(self) -> pd.DataFrame:
        """The stack, oldest first.

        Returns:
            One row an entry: ``entry, editor, prompt, target, facts, took`` (share of its facts
            that were right when it was accepted; NaN if it came by another way), ``note, id``.
        """
        rows = []
        for i, edit in enumerate(self.view.stack):
            first, known = edit.requests[0], self.receipts.get(edit.id)
            took = float(known.took) if known is not None else float("nan")
            rows.append(
                (
                    i,
                    edit.editor,
                    first.text,
                    first.target_new,
                    len(edit.requests),
                    took,
                    self.notes.get(edit.id, ""),
                    edit.id,
                )
            )
        names = ["entry", "editor", "prompt", "target", "facts", "took", "note", "id"]
        return pd.DataFrame(rows, columns=names)

    def describe(self) -> str:
        """Where we are: model, number of edits, what is looked at."""
        held = len(self.view.stack)
        state = f"{held} edit{'' if held == 1 else 's'}" if held else "unedited"
        if self.preview is not None:
            state += f", preview of {self.preview.editor}, not applied"
        if self.moment is not None:
            state += f", looking at the moment after {self.moment}"
        return f"{self.view.name} · {state}"

    # ------------------------------------------------------------------ long work

    def run_folder(self, cases: Sequence[EditCase], batch_size: int) -> Path:
        """Where a stream of these cases goes; one that was stopped is found again.

        The name depends on editor, cases, batch size and the edits below, so that the same stream,
        started again in this kernel or the next, goes on where it was.
        """
        said = [self.editor.config(), [str(c.case_id) for c in cases], batch_size]
        recipe = json.dumps([type(self.editor).__name__, *said], sort_keys=True)
        known = self._runs.get(recipe)
        if known is not None and RunFolder(known).status().get("state") != "complete":
            return known
        below = "".join(e.id for e in self.view.stack)
        digest = hashlib.sha256((recipe + below).encode()).hexdigest()[:12]
        name = f"bench-{self.view.name}-{digest}".replace("/", "_")
        self._runs[recipe] = cache_dir("runs") / name
        return self._runs[recipe]

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
        items = list(cases)
        self.preview = self.moment = None
        folder = Path(out) if out is not None else self.run_folder(items, batch_size)
        return stream(
            folder,
            self.view,
            self.editor,
            items,
            batch_size=batch_size,
            subset=subset,
            dense_every=batch_size,
            evaluate_at=(len(items),),
            before=False,
            continue_on=True,
            watch={} if watch_all else LIGHT,
            on_step=on_step,
            stop_on=lambda *_: "stopped by hand" if stop() else None,
        )

    def compare(self, names: Sequence[str], *, generate: bool = False) -> Comparison:
        """The facts on the desk with several editors, each on the model as it is now.

        Raises:
            OptionError: for fewer than two editors, or no facts.
        """
        if len(names) < 2:
            raise OptionError("choose at least two editors to compare.")
        if not self.cases:
            raise OptionError("there is no fact on the desk: type one, or load some, first.")
        editors = {n: self._like(n) for n in names}
        return compare(self.view, editors, self.cases, generate=generate)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the stack: one edit as ``NAME.safetensors``, several as a folder.

        Raises:
            OptionError: if the stack is empty, or several edits should go into one file.
        """
        path, stack = Path(path).expanduser(), self.view.stack
        if not stack:
            raise OptionError("the stack is empty: there is no edit to save.")
        if path.suffix != ".safetensors":
            return save_stack(self.view, path)
        if len(stack) > 1:
            raise OptionError(
                f"the stack holds {len(stack)} edits and {path.name} can hold one: give the name "
                "of a folder, without .safetensors."
            )
        return stack[0].save(path)

    def load(self, path: str | os.PathLike[str]) -> tuple[Edit, ...]:
        """Put saved edits on the stack: a ``.safetensors`` file, a saved folder, or a run.

        Raises:
            DataError: if there is no such file or it is damaged.
            EditMismatchError: for another model.
        """
        path = Path(path).expanduser()
        self.preview = self.moment = None
        self._undone.clear()
        if path.is_dir():
            return open_stack(path, self.view)
        edit = load_edit(path)
        self.view.push(edit)
        return (edit,)

    # ------------------------------------------------------------------ inside

    def _like(self, name: str) -> Editor:
        """The chosen editor under its own name, the default preset under another."""
        if type(self.editor) is find_editor(name):
            return self.editor
        return find_editor(name).preset(self.view)

    def _first(self, name: str | None) -> Editor:
        if name is not None:
            return self.choose(name)
        for each in dict.fromkeys((*PREFERRED, *EDITORS)):
            try:
                return self.choose(each)
            except WorkbenchError:
                continue
        raise UnsupportedEditorError(f"no editor can edit {self.view.name}.")
