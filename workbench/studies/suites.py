"""GRACE's suite as data: four lifelong tasks, the editors compared on each, the papers' settings.

A suite is one task with a trial an editor; each trial is one :func:`workbench.lifelong`. As with
studies, whether a suite is run or its record is read makes no difference to a notebook
(arXiv 2211.11031, section 4 and table 2; spec memory-and-meta 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import OptionError, did_you_mean
from workbench.studies.base import Trial, file_name, record_path, require_trials

__all__ = ["SUITES", "TINY_MODELS", "Suite", "suite"]

#: The models whose mistakes are the tiny world's.
TINY_MODELS = ("tiny", "tiny-bert", "tiny-t5")
SETTINGS = ("default", "paper")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A lifelong task and the editors compared on it.

    Args:
        task: ``zsre``, ``topics``, ``hallucination`` or ``tiny``; tiny models always take ``tiny``.
        setting: ``default`` or ``paper``.
        model: name, hub id or path; ``minilm-l6`` and ``bert-base-uncased`` are given a head first.
        edits: of every run; a trial may have fewer.
        trials: what is run.
        every: measure every so many edits (GRACE: after each).
        sample: in between, so many of the edits are asked.
        upstream: probes of each set that shall be kept.
        accurate: probes of what the model had right (hallucination).
        words: of a text (topics), or before a sentence (hallucination); None keeps all.
        kept: which set stands beside the paper's TRR; empty where nothing compares.
        reason: why our numbers are not the paper's.
        folder: name of its record under ``data/results``; empty: made of task, model and edits.
    """

    task: str
    setting: str
    model: str
    edits: int
    trials: tuple[Trial, ...]
    every: int = 100
    sample: int | None = 50
    upstream: int = 100
    accurate: int = 60
    words: int | None = None
    kept: str = ""
    reason: str = ""
    folder: str = ""

    def changed(self, *, model: str | None = None, edits: int | None = None) -> Suite:
        """The same on another model, with another number; a changed suite has no record yet.

        Raises:
            OptionError: for a number below 1.
        """
        given: dict[str, Any] = {"model": model, "edits": edits}
        new = {k: v for k, v in given.items() if v is not None and v != getattr(self, k)}
        if "edits" in new and (type(edits) is not int or edits < 1):
            raise OptionError(f"edits={edits!r}: it must be a whole number from 1 on.")
        if "edits" in new:
            new["trials"] = tuple(replace(t, edits=None) for t in self.trials)
        start = SUITES["tiny"]["default"] if new.get("model") in TINY_MODELS else self
        return replace(start, **new, folder="") if new else self

    def only(self, names: Sequence[str]) -> Suite:
        """The same with some of the trials.

        Raises:
            OptionError: for a name that no trial has.
        """
        require_trials(names, [t.name for t in self.trials])
        return replace(self, trials=tuple(t for t in self.trials if t.name in names))

    def size(self, trial: Trial) -> int:
        """Edits of a trial: its own number, never more than the suite's."""
        return min(trial.edits or self.edits, self.edits)

    @property
    def path(self) -> Path:
        """Where the record lies: shipped with the package, or in the cache of runs."""
        name = f"grace_suite-{self.task}-{self.setting}-{file_name(self.model)}-{self.edits}"
        return record_path(self.folder, name)

    def table(self) -> pd.DataFrame:
        """One row a trial: ``trial, editor, edits, options``."""
        return pd.DataFrame(
            [
                {
                    "trial": t.name,
                    "editor": t.editor,
                    "edits": self.size(t),
                    "options": ", ".join(f"{k}={v}" for k, v in t.options.items()),
                }
                for t in self.trials
            ]
        )


def suite(
    task: str = "zsre",
    setting: str = "default",
    *,
    model: str | None = None,
    edits: int | None = None,
) -> Suite:
    """One of GRACE's tasks with the editors of its table.

    Args:
        task: one of :data:`SUITES`.
        setting: ``default`` (what is recorded in ``data/results``, for a CPU) or ``paper`` (the
            paper's model, options and length; wants a GPU).
        model, edits: instead of the setting's.

    Raises:
        OptionError: for an unknown task or setting, or a number below 1.

    Example:
        >>> wb.suite("hallucination", "paper").edits
        1392
    """
    if task not in SUITES:
        raise OptionError(f"no suite is called {task!r}." + did_you_mean(task, list(SUITES)))
    if setting not in SETTINGS:
        raise OptionError(f"setting={setting!r}: choose {' or '.join(map(repr, SETTINGS))}.")
    return SUITES[task][setting].changed(model=model, edits=edits)


def _trials(
    rate: float,
    *,
    steps: int | None = None,
    fewer: Mapping[str, int] | None = None,
    rome: bool = False,
    preset: str = "default",
) -> tuple[Trial, ...]:
    """Editors in the order in which they are worth having.

    Args:
        rate: Adam's, for fine-tuning.
        steps: of the memories; None takes their presets'.
        fewer: editor → its edits, where they are not the suite's.
        rome: whether the task names subjects.
        preset: of all.
    """
    tuned = {"steps": 100, "lr": rate, "stop": "correct"}
    taught: dict[str, Any] = {} if steps is None else {"steps": steps}

    def trial(name: str, options: dict[str, Any], **more: Any) -> Trial:
        n = (fewer or {}).get(name)
        return Trial(name=name, editor=name, options=options, edits=n, **more)

    trials = (
        trial("GRACE", taught, preset=preset),
        trial("FT", tuned),
        trial("MemoryNetwork", taught, preset=preset),
        trial("Defer", taught, preset=preset),
        trial("FTEWC", tuned),
        trial("FTRetrain", tuned),
    )
    return (*trials, trial("ROME", {}, preset=preset, common=False)) if rome else trials


_BASELINES = ("FT", "MemoryNetwork", "Defer", "FTEWC", "FTRetrain", "ROME")
_NO_PAPER = "a tiny model of an invented world: no number of the paper compares"
_ZSRE = Suite(
    task="zsre",
    setting="default",
    model="smollm2-135m",
    edits=100,
    # answers of a few tokens are learned in 40 steps of the published 100
    trials=_trials(
        5e-4,
        steps=40,
        rome=True,
        fewer=dict.fromkeys(_BASELINES, 30),
    ),
    every=15,
    sample=15,
    upstream=30,
    kept="facts",
    reason="far fewer edits; another kind of model (a decoder of 135M, asked Question: ... "
    "Answer:) that answers next to nothing of NQ, so TRR is on shipped facts that it knows; two "
    "wordings a fact instead of up to eleven, so hardly any two edits share a key; the value "
    "stands at one token; F1 of words instead of token ids",
    folder="grace_suite_zsre",
)
_TOPICS = Suite(
    task="topics",
    setting="default",
    model="minilm-l6",
    edits=300,
    trials=_trials(
        5e-4,
        steps=40,
        fewer={"MemoryNetwork": 60, "Defer": 60, "FTEWC": 30, "FTRetrain": 100},
    ),
    every=15,
    upstream=100,
    words=64,
    kept="earlier terms",
    reason="far fewer edits; other data (short facts of 2,711 cases, eight areas), a smaller "
    "encoder trained on 1,083 texts, TRR on held-out cases of 1994 to 1998 that it has 57 % right "
    "before",
    folder="grace_suite_topics",
)
_HALLUCINATION = Suite(
    task="hallucination",
    setting="default",
    model="smollm2-135m",
    edits=8,
    trials=_trials(5e-4, fewer=dict.fromkeys(_BASELINES, 5)),
    every=4,
    upstream=20,
    accurate=20,
    words=64,
    kept="texts",
    reason="far fewer edits; a decoder of 135M that never saw these texts, so accurate sentences "
    "and plain texts are less likely from the start; beginnings cut to 64 words; TRR on Wikipedia "
    "paragraphs",
    folder="grace_suite_hallucination",
)
_TINY = Suite(
    task="tiny",
    setting="default",
    model="tiny-t5",
    edits=300,
    trials=_trials(5e-3, fewer={"MemoryNetwork": 12, "Defer": 12}),
    every=50,
    upstream=200,
    reason=_NO_PAPER,
    folder="grace_suite_tiny-t5",
)


def _in_paper(suite: Suite, model: str, edits: int, **changes: Any) -> Suite:
    """The paper's model, options and length; no record."""
    return replace(
        suite,
        setting="paper",
        model=model,
        edits=edits,
        trials=_trials(1e-2, preset="paper"),
        every=50,
        sample=None,
        upstream=1000,
        reason="",
        folder="",
        **changes,
    )


#: task → setting → suite.
SUITES: dict[str, dict[str, Suite]] = {
    "zsre": {"default": _ZSRE, "paper": _in_paper(_ZSRE, "google/t5-small-ssm-nq", 1000)},
    "topics": {
        "default": _TOPICS,
        "paper": _in_paper(_TOPICS, "google-bert/bert-base-uncased", 381, words=None),
    },
    "hallucination": {
        "default": _HALLUCINATION,
        "paper": _in_paper(
            _HALLUCINATION, "openai-community/gpt2-xl", 1392, words=None, accurate=592
        ),
    },
    "tiny": {"default": _TINY, "paper": _TINY},
}
