"""Trained editors for random models: without a step of training, so that what they do is known."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from workbench.editors import EDITORS
from workbench.editors.learned.base import LearnedEditor
from workbench.editors.learned.lessons import Lessons, Topic
from workbench.facts import EditRequest
from workbench.model import ModelView

#: Names of the editors that need a trained file.
LEARNED = tuple(n for n, cls in EDITORS.items() if issubclass(cls, LearnedEditor))
#: Settings under which an untrained editor lowers the loss of what it writes.
SETTINGS: dict[str, dict[str, Any]] = {
    "MEND": {"rank": 4, "norm": False, "edit_lr": 0.01},
    "KE": {"hidden": 6, "condition": 5, "width": 4},
    "ENN": {"rank": 2, "edit_lr": 0.01},
}


def few_lessons(view: ModelView, seed: int = 0) -> Lessons:
    """Some made-up topics in the words of a model's answers."""
    names = ("Bo", "Anna", "Danielle", "Seattle", "Rome", "Oslo", "English", "French")
    answers = view.labels[:2] if view.labels else ("Rome", "Oslo")
    topics = [
        Topic(
            edits=tuple(
                EditRequest(prompt="{} lives in", subject=n, target_new=a) for a in answers
            ),
            rewordings=(f"The home of {n} is", f"{n} was born in"),
            local=(EditRequest(prompt=f"{n} plays the", target_new=answers[i % 2]),),
        )
        for i, n in enumerate(names)
    ]
    return Lessons(training=tuple(topics[:6]), held_out=tuple(topics[6:]), seed=seed)


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="workbench-learned-"))


def untrained(name: str, view: ModelView) -> Path:
    """The file of an editor as it is before training; made once a model."""
    path = _folder() / f"{name}-{view.fingerprint}.safetensors"
    if not path.is_file():
        cls: Any = EDITORS[name]
        cls.train(view, few_lessons(view), out=path, steps=0, n_edits=2, **SETTINGS[name])
    return path
