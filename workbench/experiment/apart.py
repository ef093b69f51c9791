"""``rounds``: every batch is written into the model as it was, measured and taken back.

The *single-round* regime (CoachHook, arXiv 2403.05330, table 1; the released scripts of ROME and
EMMET without their sequential option): no edit meets an earlier one. :func:`workbench.stream` is
the other regime, in which they add up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from workbench.editors.base import Editor
from workbench.errors import OptionError
from workbench.experiment.configuration import digest
from workbench.experiment.environment import environment
from workbench.experiment.exam import COLUMNS
from workbench.facts import EditCase
from workbench.metrics import score
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.runs import RunFolder

__all__ = ["rounds"]

#: Edits held when a round is measured.
HELD = 1


def rounds(
    out: str | os.PathLike[str],
    view: ModelView,
    editor: Editor,
    cases: Sequence[EditCase],
    *,
    batch_size: int = 1,
    kinds: Iterable[str] | None = None,
    before: bool = True,
    fresh: bool = False,
) -> pd.DataFrame:
    """Edit cases batch after batch, each on the model as it was, and measure each batch's own.

    Everything is written to ``out``; a run that was stopped goes on with the same call.

    Args:
        out: the run's folder; made if missing.
        view: the model, which is unchanged afterwards; it may hold edits, and then every round
            starts from them.
        editor: any editor.
        cases: what to write, with the probes that judge it; ids must differ.
        batch_size: facts a round; the last one may be smaller.
        kinds: only probes of these kinds.
        before: measure each batch without its edit, too.
        fresh: delete an older run in this folder first.

    Returns:
        Rows as :func:`workbench.stream` gives them; ``step`` is 0 before a round and 1 after it.

    Raises:
        OptionError: for options out of range, cases with the same id, or a folder with another run.
        WorkbenchError: whatever the editor raises; finished rounds are kept.
        BusyError: if another process writes the run.

    Example:
        >>> wb.rounds("data/runs/coach", view, editor, cases, batch_size=30)  # doctest: +SKIP
    """
    batches = _batches(list(cases), batch_size)
    for size in {len(batch) for batch in batches}:
        editor.check_batch_size(size)
    asked = None if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    folder = RunFolder(out)
    with folder.locked(), Bar(f"rounds {type(editor).__name__}", len(batches)) as bar:
        folder.start(_config(view, editor, batches, batch_size, asked, before), fresh=fresh)
        folder.set_status("running")
        if folder.record(0) is None:  # the moment before a run, as every run has it
            folder.commit(0, {"step": 0, "case_ids": []}, rows=None, moments=None)
        for number, batch in enumerate(batches, 1):
            if folder.record(number) is None:
                _round(folder, number, view, editor, batch, asked, before)
            bar.step(1)
        rows = folder.finish()
        folder.set_status("complete", cases=sum(map(len, batches)))
    return rows


def _round(
    folder: RunFolder,
    number: int,
    view: ModelView,
    editor: Editor,
    batch: Sequence[EditCase],
    kinds: list[str] | None,
    before: bool,
) -> None:
    """Edit, measure, take back, record."""
    tables = [_asked(view, batch, kinds, 0)] if before else []
    edit = editor.edit(view, [c.request for c in batch])
    with view.applied(edit):
        tables.append(_asked(view, batch, kinds, HELD))
    record = {
        "step": HELD,
        "case_ids": [c.case_id for c in batch],
        "edit": edit.id,
        "seconds": float(edit.meta.get("seconds", 0.0)) / len(batch),
    }
    rows = pd.concat(tables, ignore_index=True)
    folder.commit(number, record, rows=rows, moments=None)


def _asked(
    view: ModelView, batch: Sequence[EditCase], kinds: list[str] | None, step: int
) -> pd.DataFrame:
    return score(view, batch, kinds=kinds).assign(step=step)[list(COLUMNS)]


def _batches(cases: list[EditCase], size: int) -> list[list[EditCase]]:
    if type(size) is not int or size < 1:
        raise OptionError(f"batch_size={size!r}: it must be a whole number from 1 on.")
    if not cases:
        raise OptionError("cases is empty: give at least one.")
    names = [str(c.case_id) for c in cases]
    if len(set(names)) < len(names):
        twice = sorted(n for n in set(names) if names.count(n) > 1)
        raise OptionError(f"case id {twice[0]} occurs twice: each case needs an id of its own.")
    return [cases[i : i + size] for i in range(0, len(cases), size)]


def _config(
    view: ModelView,
    editor: Editor,
    batches: Sequence[Sequence[EditCase]],
    batch_size: int,
    kinds: list[str] | None,
    before: bool,
) -> dict[str, Any]:
    """Everything that decides the numbers, and the environment they were made in."""
    cases = [c for batch in batches for c in batch]
    return {
        "regime": "single-round",
        "editor": type(editor).__name__,
        "editor_config": editor.config(),
        "model": view.name,
        "fingerprint": view.fingerprint,
        "dtype": str(view.dtype),
        "case_ids": [c.case_id for c in cases],
        "cases": digest(cases),
        "batch_size": batch_size,
        "kinds": kinds,
        "before": before,
        "parents": [e.id for e in view.stack],
        "environment": environment(view),
    }
