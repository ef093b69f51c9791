"""Learned editors against fine-tuning as data: what is trained and measured, and its record.

Three tables of MEND's paper (arXiv 2110.11309): editors one edit at a time (tables 3 and 4), edits
written at once (table 5), and MEND without its parts (table 6). Whether the study is run or its
record is read makes no difference to what a notebook does with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.editors.learned.judging import lesson_summary
from workbench.errors import DataError, OptionError, did_you_mean
from workbench.places import shipped
from workbench.studies.base import file_name, record_path, require_trials

__all__ = ["LearnedRecord", "LearnedStudy", "LearnedTrial", "learned_record", "learned_study"]

LEARNED = ("MEND", "KE", "ENN")
EDITORS = ("MEND", "ENN", "KE", "FT", "FTKL")
#: MEND without a part of it: name → (its name in the paper's table, options of its training).
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "MEND, no sharing": ("no sharing", {"shared": False}),
    "MEND, no norm": ("no normalization", {"norm": False}),
    "MEND, no identity": ("no identity start", {"identity": False}),
    "MEND, only x": ("only x", {"factors": "x"}),
    "MEND, only delta": ("only delta", {"factors": "delta"}),
    "MEND, only smaller": ("only the smaller", {"factors": "smaller"}),
}
#: Measures of a record's table: column → (metric, against) of ``lesson_summary``.
MEASURES = {
    "edit success": ("edit_success", ""),
    "drawdown": ("drawdown", "pristine"),
    "drawdown from prepared": ("drawdown", "prepared"),
    "token drawdown": ("token_drawdown", "pristine"),
    "success flips": ("success_flips", ""),
    "success kept": ("success_kept", ""),
    "token accuracy": ("token_accuracy", ""),
    "seconds": ("seconds", ""),
}
WITH_INTERVALS = ("edit success", "drawdown", "drawdown from prepared")
#: Tables, and editors of the first one that belong to the others as well.
TABLES: dict[str, tuple[str, ...]] = {
    "editors": (),
    "at once": ("MEND", "ENN", "FT"),
    "ablations": ("MEND",),
}
SETTINGS = ("default", "paper")


@dataclass(frozen=True)
class LearnedTrial:
    """One row of a table.

    Attributes:
        name: of the editor, with what is left out of it.
        table: ``editors``, ``at once`` or ``ablations``.
        editor: key of :data:`workbench.EDITORS`.
        n_edits: written at once.
        trained_at: edits of a training lesson; 0 for editors that are not trained.
        options: of the training.
    """

    name: str
    table: str
    editor: str
    n_edits: int = 1
    trained_at: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Name of the trial's folder."""
        return f"{self.training_slug}_{self.n_edits}"

    @property
    def training_slug(self) -> str:
        """Name of what was trained; trials with as many edits as they like share it."""
        words = re.sub(r"[^a-z0-9]+", "_", self.name.lower())
        return f"{words}_trained_{self.trained_at}" if self.trained_at else words


@dataclass(frozen=True, kw_only=True)
class LearnedStudy:
    """What is trained, and what is measured on lessons that are held out.

    Args:
        task: a key of :data:`workbench.editors.learned.tasks.TASKS`.
        setting: ``default`` or ``paper``.
        model: name, hub id or path.
        preset: of the trainings.
        steps: of a training, where ``options`` do not say.
        options: editor, or name of a training (``mend_trained_25``) → its options.
        edits: held-out edits of a trial.
        fewest: lessons of a trial at least.
        n_local: texts of a lesson that must stay as they are.
        tuning: lessons on which fine-tuning tries a learning rate.
        at_once, trained_at: edits written at once, and edits of a training lesson.
        ablations: also MEND without its parts.
        editors: whose trials are run.
        seed: of lessons and trainings.
        folder: name of the record under ``data/results``; empty: made of model and task.
    """

    task: str
    setting: str = "default"
    model: str
    preset: str = "default"
    steps: int = 600
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    edits: int = 100
    fewest: int = 4
    n_local: int = 10
    tuning: int = 15
    at_once: tuple[int, ...] = (1, 5, 25, 75, 125)
    trained_at: tuple[int, ...] = (1, 25)
    ablations: bool = False
    editors: tuple[str, ...] = EDITORS
    seed: int = 0
    folder: str = ""

    @property
    def trials(self) -> tuple[LearnedTrial, ...]:
        """Every trial, the most telling first."""
        found = [
            LearnedTrial(name, "editors", name, trained_at=int(name in LEARNED)) for name in EDITORS
        ]
        for trained_at in self.trained_at:
            for name in ("MEND", "ENN"):
                found += [
                    LearnedTrial(name, "at once", name, n, trained_at)
                    for n in self.at_once
                    if (n, trained_at) != (1, 1)  # that is the first table's
                ]
        found += [LearnedTrial("FT", "at once", "FT", n) for n in self.at_once if n > 1]
        if self.ablations:
            found += [
                LearnedTrial(name, "ablations", "MEND", trained_at=1, options=options)
                for name, (_, options) in ABLATIONS.items()
            ]
        return tuple(t for t in found if t.editor in self.editors)

    def table(self) -> pd.DataFrame:
        """One row a trial: ``trial, table, edits at once, trained for, options``."""
        return pd.DataFrame(
            [
                {
                    "trial": t.name,
                    "table": t.table,
                    "edits at once": t.n_edits,
                    "trained for": t.trained_at or None,
                    "options": ", ".join(f"{k}={v}" for k, v in t.options.items()),
                }
                for t in self.trials
            ]
        )

    def only(self, *editors: str) -> LearnedStudy:
        """The same with some of the editors.

        Raises:
            OptionError: for an editor that the study does not have.
        """
        require_trials(editors, self.editors)
        return replace(self, editors=editors)

    @property
    def path(self) -> Path:
        """Where the record lies: shipped with the package, or in the cache of runs."""
        model = file_name(self.model)
        return record_path(self.folder, f"learned_{model}_{self.task}_{self.edits}_{self.steps}")


#: Lessons that write 25 edits: more of what must stay, fewer lessons of a validation.
_MANY = {"n_local": 10, "validation": 6, "evaluation": 8}
#: MEND, ENN and KE as they ship with the tiny model (``data/tiny/train_editors.py``).
_SHIPPED: dict[str, dict[str, Any]] = {
    "MEND": {"rank": 32, "lr": 1e-3, "rate_lr": 1e-4, "steps": 60, "validate_every": 30},
    "ENN": {
        "prepared": "matrices",
        "rank": 32,
        "lr": 1e-3,
        "rate_lr": 1e-3,
        "steps": 60,
        "validate_every": 20,
    },
    "KE": {
        "hidden": 56,
        "condition": 48,
        "width": 15,
        "lr": 3e-3,
        "steps": 300,
        "validate_every": 50,
    },
}
_TINY = LearnedStudy(
    task="tiny",
    model="tiny",
    options={
        **_SHIPPED,
        "mend_trained_25": _MANY,
        # the gradient is a mean over edits: a 25th, and so many times the step
        "enn_trained_25": {**_MANY, "edit_lr": 0.25, "rate_lr": 1e-2},
    },
    edits=60,
    tuning=4,
    ablations=True,
    folder="learned_tiny_tiny",
)
#: Rates that trained best in 80 to 200 steps on ``minilm-l6`` (LOG.md).
_FC: dict[str, dict[str, Any]] = {
    "MEND": {"rank": 128, "lr": 3e-4, "rate_lr": 1e-4, "validate_every": 50},
    "ENN": {
        "prepared": "matrices",
        "rank": 32,
        "edit_lr": 0.05,
        "lr": 1e-4,
        "rate_lr": 1e-3,
        "validate_every": 50,
    },
    "KE": {"lr": 1e-3, "validate_every": 50},
    "mend_trained_25": {**_MANY, "validation": 12, "steps": 900, "validate_every": 100},
    "enn_trained_25": {**_MANY, "validation": 12, "edit_lr": 0.2, "rate_lr": 3e-3},
}
#: The same on ``smollm2-135m``; few steps, since one takes 3.5 to 9 s of a core.
_QA: dict[str, dict[str, Any]] = {
    "MEND": {
        "rank": 128,
        "lr": 3e-4,
        "rate_lr": 1e-4,
        "steps": 150,
        "validate_every": 30,
        "validation": 20,
        "evaluation": 4,
    },
    "ENN": {
        "prepared": "matrices",
        "rank": 32,
        "edit_lr": 0.02,
        "lr": 3e-4,
        "rate_lr": 1e-3,
        "steps": 60,
        "validate_every": 20,
        "validation": 20,
        "evaluation": 4,
    },
    "KE": {"lr": 3e-3, "steps": 120, "validate_every": 30, "validation": 20, "evaluation": 4},
    "mend_trained_25": {**_MANY, "steps": 80, "validate_every": 20, "evaluation": 1},
}
_REAL = LearnedStudy(task="qa", model="smollm2-135m")
_PAPER: dict[str, Any] = {
    "setting": "paper",
    "preset": "paper",
    "steps": 500_000,
    "edits": 1000,
    "folder": "",
}
#: task → setting → study; the paper's models are BART-base, distilGPT-2 and BERT-base.
LEARNED_STUDIES: dict[str, dict[str, LearnedStudy]] = {
    "tiny": {"default": _TINY},
    "qa": {
        "default": replace(
            _REAL, options=_QA, edits=60, tuning=6, folder="learned_smollm2-135m_qa"
        ),
        "paper": replace(
            _REAL, model="facebook/bart-base", trained_at=(1, 5, 25, 75, 125), **_PAPER
        ),
    },
    "gen": {
        "default": replace(_REAL, task="gen", folder="learned_smollm2-135m_gen"),
        "paper": replace(
            _REAL, task="gen", model="distilbert/distilgpt2", ablations=True, **_PAPER
        ),
    },
    "fc": {
        "default": replace(
            _REAL,
            task="fc",
            model="minilm-l6",
            steps=300,
            options=_FC,
            folder="learned_minilm-l6_fc",
        ),
        "paper": replace(_REAL, task="fc", model="google-bert/bert-base-uncased", **_PAPER),
    },
}


def learned_study(
    task: str = "tiny",
    setting: str = "default",
    *,
    model: str | None = None,
    edits: int | None = None,
    **changes: Any,
) -> LearnedStudy:
    """A study of learned editors.

    Args:
        task: ``tiny``, ``qa``, ``gen`` or ``fc``.
        setting: ``default`` (for two CPU cores; what is recorded lies in ``data/results``) or
            ``paper`` (its model, steps and numbers; wants a GPU).
        model, edits: instead of the setting's.
        changes: other fields of :class:`LearnedStudy`. A changed study has no record of ours.

    Raises:
        OptionError: for an unknown task, setting or field, or a number of edits below 1.

    Example:
        >>> wb.learned_study("qa", "paper").model
        'facebook/bart-base'
    """
    if task not in LEARNED_STUDIES:
        raise OptionError(f"task={task!r} is unknown." + did_you_mean(task, LEARNED_STUDIES))
    if setting not in SETTINGS:
        raise OptionError(f"setting={setting!r}: choose {' or '.join(map(repr, SETTINGS))}.")
    if setting not in LEARNED_STUDIES[task]:
        raise OptionError(f"setting={setting!r}: task {task!r} is in no paper; take 'default'.")
    if edits is not None and (type(edits) is not int or edits < 1):
        raise OptionError(f"edits={edits!r}: it must be a whole number from 1 on.")
    found = LEARNED_STUDIES[task][setting]
    known = vars(found)
    for name in changes:
        if name not in known:
            raise OptionError(f"a study has no {name!r}." + did_you_mean(name, list(known)))
    given: dict[str, Any] = {"model": model, "edits": edits, **changes}
    new = {k: v for k, v in given.items() if v is not None and v != known[k]}
    if "steps" in new and "options" not in new:
        own = found.options.items()
        new["options"] = {k: {a: b for a, b in v.items() if a != "steps"} for k, v in own}
    return replace(found, **{"folder": "", **new}) if new else found


@dataclass(frozen=True)
class LearnedRecord:
    """What a study of learned editors left behind: numbers of held-out lessons, no texts.

    Attributes:
        path: its folder.
        configs: trial's folder → its ``run.json``.
    """

    path: Path
    configs: dict[str, dict[str, Any]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a trial.

        Columns: ``table, editor, edits at once, trained for``; ``edit success`` and ``drawdown``
        (against the model as it came) with ``… low`` and ``… high`` (95 %, resampled lessons),
        ``drawdown from prepared`` likewise (ENN changes the model before any edit), ``token
        drawdown`` (of the answers' tokens, where whole answers are hardly ever right), ``success
        flips`` and ``success kept`` (edits that the model did not say before, and those it did),
        ``token accuracy, seconds`` (of an edit), ``unit`` of drawdown, ``edits`` (measured),
        ``published`` (name in the paper's table).
        """
        return pd.DataFrame([self._row(slug, config) for slug, config in self.configs.items()])

    def part(self, table: str) -> pd.DataFrame:
        """The rows of one of its tables: ``editors``, ``at once`` or ``ablations``; a trial of the
        first table that belongs to another one as well (MEND itself, one edit at once) is there
        too. Nothing where nothing of it is recorded.

        Raises:
            OptionError: for another table.
        """
        if table not in TABLES:
            raise OptionError(f"table={table!r} is unknown." + did_you_mean(table, TABLES))
        whole, own = self.table, self.table["table"] == table
        also = (whole["table"] == "editors") & whole["editor"].isin(TABLES[table]) & own.any()
        return whole[own | also].reset_index(drop=True)

    def curve(self, trial: str) -> pd.DataFrame:
        """How a trial's editor was trained, as :func:`workbench.training_curve` has it.

        Raises:
            OptionError: for a trial that is not there, or was not trained.
        """
        if trial not in self.configs:
            raise OptionError(f"no trial {trial!r}." + did_you_mean(trial, list(self.configs)))
        training = self.configs[trial]["training"]
        if not training:
            raise OptionError(f"{trial} was not trained: there is no curve.")
        table = pd.DataFrame(training["history"])
        return table.assign(best=table["step"] == training["best_step"])

    def _row(self, slug: str, config: Mapping[str, Any]) -> dict[str, Any]:
        rows = pd.read_csv(self.path / slug / "rows.csv.gz")
        found = lesson_summary(rows).set_index(["metric", "against"])
        row: dict[str, Any] = {
            "table": config["table"],
            "editor": config["name"],
            "edits at once": config["n_edits"],
            "trained for": config["trained_at"] or None,
        }
        for name, key in MEASURES.items():
            row[name] = found.loc[key, "value"]
            if name in WITH_INTERVALS:
                row |= {f"{name} {side}": found.loc[key, side] for side in ("low", "high")}
        row["unit"] = found.loc[("drawdown", "pristine"), "unit"]
        row["edits"] = found.loc[("edit_success", ""), "n"]
        row["published"] = ABLATIONS.get(config["name"], (config["name"], {}))[0]
        return row


def learned_record(
    source: LearnedStudy | str | os.PathLike[str], *, study: LearnedStudy | None = None
) -> LearnedRecord:
    """Read the record of a study of learned editors.

    Args:
        source: a study, a folder, or the name of a folder in ``data/results``.
        study: orders the trials, if ``source`` is a folder.

    Raises:
        DataError: if there is nothing, or a run.json is damaged.

    Example:
        >>> wb.learned_record(wb.learned_study("tiny")).part("editors")  # doctest: +SKIP
    """
    if isinstance(source, LearnedStudy):
        study = source
    path = source.path if isinstance(source, LearnedStudy) else Path(source)
    path = path if path.exists() else shipped("results") / path
    known = {p.parent.name: p for p in sorted(path.glob("*/run.json"))}
    order = list(known) if study is None else [t.slug for t in study.trials]
    configs = {}
    for slug in order:
        if slug in known:
            try:
                configs[slug] = json.loads(known[slug].read_text())
            except ValueError as error:
                raise DataError(f"{slug}/run.json of {path.name} is damaged: {error}.") from error
    if not configs:
        raise DataError(
            f"{path} holds no finished trial: run the study (live=True in its notebook, or "
            "wb.run_learned), or check the path."
        )
    return LearnedRecord(path, configs)
