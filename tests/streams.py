"""A fast editor and small runs, for the tests of streams."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

import workbench as wb
from workbench import atomic
from workbench.editors.base import Editor, store
from workbench.edits import Delta
from workbench.errors import NumericalError
from workbench.facts import EditRequest
from workbench.model import ModelView

#: Metrics of time and memory: the only ones that two equal runs may differ in.
CLOCKS = ("process_peak", "cuda_peak", "seconds_editing", "seconds_measuring", "edits_per_second")


@dataclass(frozen=True, kw_only=True)
class Nudge(Editor):
    """Adds a random rank-one change, ``scale`` times as large as the weights it meets."""

    layers: tuple[int, ...] = (1,)
    scale: float = 0.05
    refuse: str = ""

    needs_subject: ClassVar[bool] = False
    reference: ClassVar[str] = "rome"

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Delta], dict[str, Any]]:
        if any(r.subject == self.refuse for r in requests):
            raise NumericalError(f"{self.refuse} cannot be edited")
        text = "|".join(f"{r.text}{r.target_new}" for r in requests)
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        chance = torch.Generator().manual_seed(seed)
        deltas = []
        for layer in self.layers:
            weight = view.weight(layer).double()
            left = torch.randn(weight.shape[0], 1, generator=chance).double()
            right = torch.randn(weight.shape[1], 1, generator=chance).double()
            size = self.scale * weight.norm() / left.norm() / right.norm()
            deltas.append(store(view, layer, size * left, right))
        return deltas, {"report": {"written": len(requests)}}

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Nudge:
        return cls(**overrides)


def run(out: str | Path, view: ModelView, **options: Any) -> pd.DataFrame:
    """Twelve batches of two, with every kind of moment."""
    chosen: dict[str, Any] = {
        "batch_size": 2,
        "evaluate_at": (6, 14),
        "dense_every": 4,
        "subset": 6,
        "kinds": ("efficacy", "neighborhood"),
        "watch": {"upstream": None, "hidden_shift": 8, "perplexity": None},
    }
    cases = options.pop("cases", None) or wb.datasets.tiny(limit=24)
    editor = options.pop("editor", Nudge())
    return wb.stream(out, view, editor, cases, **{**chosen, **options})


def cases(n: int) -> list[wb.EditCase]:
    """Facts that any small tokenizer can write."""
    names = ("Anna", "Bo", "Cara", "Dan", "Ella", "Finn", "Gil", "Hana")
    request = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
    return [
        wb.EditCase(request=replace(request, subject=name), case_id=i)
        for i, name in enumerate(names[:n])
    ]


def same(table: pd.DataFrame, other: pd.DataFrame) -> None:
    """Two tables of rows or moments agree to the bit, but for time and memory."""
    tables = []
    for t in (table, other):
        t = t[~t["metric"].isin(CLOCKS)] if "metric" in t else t.drop(columns="seconds")
        tables.append(t.drop(columns="run").reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def in_a_process(out: str, ready: Any, writes: int | None) -> None:
    """A run in a process of its own, that may kill itself at its n-th write.

    Args:
        out: the run's folder.
        ready: event that is set when the run begins.
        writes: the process dies at this write, in turn right before and right after it.
    """
    os.environ["WORKBENCH_HEADLESS"] = "1"
    torch.set_num_threads(1)
    view = wb.load("tiny", device="cpu")
    if writes is not None:
        atomic.os = _Mortal(writes)  # type: ignore[attr-defined]
    ready.set()
    run(out, view)


class _Mortal:
    """The module ``os``, with a ``replace`` after so many of which the process is dead."""

    def __init__(self, writes: int) -> None:
        self.left, self.late = writes, writes % 2 == 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, part: str, path: str) -> None:
        self.left -= 1
        if self.left == 0 and not self.late:
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(part, path)
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def sink_that_stops(phase: str, at: int, error: type[BaseException]) -> Callable[..., None]:
    """A progress sink that raises once a phase has come so far."""

    def sink(name: str, done: int, total: int | None) -> None:
        if name == phase and done >= at:
            raise error("stop")

    return sink
