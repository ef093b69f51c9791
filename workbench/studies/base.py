"""Studies: an experiment as data, so that notebook, script and test make the same one.

A study is a list of trials. A trial is one run: an editor, how many facts, how many at once, one
batch after the other (:func:`workbench.stream`) or each on the original model
(:func:`workbench.rounds`). Whether a study is run or its record is read makes no difference to what
a notebook does with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import OptionError, did_you_mean
from workbench.places import cache_dir, shipped

__all__ = ["TINY", "Study", "Trial", "file_name", "record_path", "require_trials"]

#: The models whose facts are the tiny world's.
TINY = ("tiny",)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One editor's run through the facts.

    Args:
        name: as it stands in tables.
        editor: a name in ``wb.EDITORS``.
        options: beside those of the preset.
        preset: whose options are taken.
        edits: how many facts; None takes the study's number.
        batch: how many at once; None takes the study's number.
        start: how many facts of the file are passed over first.
        common: also takes the options the study gives its locate-then-edit editors.
        apart: each batch is written into the original model, measured and taken back.
        one_layer: only the highest layer of the preset is written.
    """

    name: str
    editor: str
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "default"
    edits: int | None = None
    batch: int | None = None
    start: int = 0
    common: bool = True
    apart: bool = False
    one_layer: bool = False

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment.

    Args:
        name: of the study and its notebook.
        setting: ``default`` or ``paper``.
        papers: keys of :data:`workbench.citations.CITATIONS`.
        model: name, hub id or path.
        dataset: a loader of ``wb.datasets``; the tiny models always take ``tiny``.
        edits: facts in a trial.
        batch: facts in an edit.
        checkpoints: shares of the way at which everything edited is measured.
        dense: measure a subset every so many edits; None: only at checkpoints.
        trials: what is run.
        folder: name of its record under ``data/results``; empty: made of model and edits.
    """

    name: str
    setting: str
    papers: tuple[str, ...]
    model: str
    dataset: str
    edits: int
    batch: int
    trials: tuple[Trial, ...]
    checkpoints: tuple[float, ...] = (1 / 3, 1.0)
    dense: int | None = None
    folder: str = ""

    def changed(
        self, *, model: str | None = None, edits: int | None = None, batch: int | None = None
    ) -> Study:
        """The same on another model, with other numbers; a changed study has no record yet.

        Raises:
            OptionError: for numbers below 1.
        """
        given: dict[str, Any] = {"model": model, "edits": edits, "batch": batch}
        new = {k: v for k, v in given.items() if v is not None and v != getattr(self, k)}
        for name in ("edits", "batch"):
            if name in new and (type(new[name]) is not int or new[name] < 1):
                raise OptionError(f"{name}={new[name]!r}: it must be a whole number from 1 on.")
        return replace(self, **new, folder="") if new else self

    def only(self, names: Sequence[str]) -> Study:
        """The same with some of the trials.

        Raises:
            OptionError: for a name that no trial has.
        """
        require_trials(names, [t.name for t in self.trials])
        return replace(self, trials=tuple(t for t in self.trials if t.name in names))

    def size(self, trial: Trial) -> int:
        """Facts of a trial: its own number, never more than the study's."""
        return min(trial.edits or self.edits, self.edits)

    def batch_of(self, trial: Trial) -> int:
        """Facts of a trial's edit, never more than it has."""
        return min(trial.batch or self.batch, self.size(trial))

    @property
    def is_tiny(self) -> bool:
        return self.model in TINY

    @property
    def path(self) -> Path:
        """Where the record lies: shipped with the package, or in the cache of runs."""
        model = file_name(self.model)
        return record_path(self.folder, f"{self.name}-{model}-{self.edits}-{self.batch}")

    def table(self) -> pd.DataFrame:
        """One row a trial: ``trial, editor, facts, at once, options``; where trials differ in it
        also ``batches`` (in sequence, or apart)."""
        table = pd.DataFrame(
            [
                {
                    "trial": t.name,
                    "editor": t.editor,
                    "facts": self.size(t),
                    "at once": self.batch_of(t),
                    "batches": "apart" if t.apart else "in sequence",
                    "options": _options(t),
                }
                for t in self.trials
            ]
        )
        return table if table["batches"].nunique() > 1 else table.drop(columns="batches")


def require_trials(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that no trial has.

    Raises:
        OptionError: naming it, and one that is like it.
    """
    for name in names:
        if name not in known:
            raise OptionError(f"no trial is called {name!r}." + did_you_mean(name, list(known)))


def record_path(folder: str, otherwise: str) -> Path:
    """Where a record lies: a folder shipped with the package, else one in the cache of runs."""
    return shipped("results") / folder if folder else cache_dir("runs") / otherwise


def file_name(model: str) -> str:
    """The name of a model, hub id or path, as part of a folder's."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(model).name)


def _options(trial: Trial) -> str:
    named = [f"{k}={v}" for k, v in trial.options.items()]
    return ", ".join(["one layer", *named] if trial.one_layer else named)
