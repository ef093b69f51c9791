"""When a run measures what: every n edits, at given numbers of edits, before it and at its end."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import OptionError, did_you_mean

__all__ = ["CHECKPOINTS", "Schedule", "checkpoints", "parse_watch", "spread"]

#: In ``watch``: at the steps of ``evaluate_at``.
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Schedule:
    """Numbers of edits at which something is due.

    Args:
        every: whenever another so many edits were made; 0 for never.
        steps: at these numbers of edits, or at the first batch that goes past one.
    """

    every: int = 0
    steps: tuple[int, ...] = ()

    def due(self, before: int, after: int) -> bool:
        """Whether going from ``before`` to ``after`` edits reaches a moment.

        Example:
            >>> Schedule(every=50).due(90, 100)
            True
        """
        passed = any(before < step <= after for step in self.steps)
        return passed or bool(self.every and before // self.every < after // self.every)


def checkpoints(evaluate_at: Sequence[int] | None, n_cases: int, batch_size: int) -> Schedule:
    """Steps at which everything is measured: given ones, or 1, 2, 5, 10 … from the first batch on.

    Raises:
        OptionError: for steps that are no positive whole numbers.
    """
    if evaluate_at is not None:
        return Schedule(steps=_steps("evaluate_at", evaluate_at))
    series = [m * 10**k for k in range(9) for m in (1, 2, 5)]
    return Schedule(steps=tuple(s for s in series if batch_size <= s < n_cases))


def parse_watch(
    watch: Mapping[str, Any], known: Sequence[str], marks: Schedule
) -> dict[str, Schedule]:
    """Schedules by metric.

    Args:
        watch: metric → every so many edits, steps, or ``"checkpoints"``; None or 0 turns it off.
        known: names of metrics.
        marks: schedule of the checkpoints.

    Raises:
        OptionError: for an unknown metric or a schedule that is none of these.
    """
    found = {}
    for name, when in watch.items():
        if name not in known:
            raise OptionError(f"watch has {name!r}, which is unknown." + did_you_mean(name, known))
        if when:
            found[name] = _parse(name, when, marks)
    return found


def spread(n: int, size: int, seed: int) -> list[int]:
    """``size`` of ``n`` positions: one drawn from each of as many equal stretches, in order.

    Early, middle and late edits are in it alike, and the same seed draws the same ones.

    Example:
        >>> len(spread(1000, 10, seed=0))
        10
    """
    if size >= n:
        return list(range(n))
    chance = random.Random(seed)
    edges = [round(i * n / size) for i in range(size + 1)]
    return [chance.randrange(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _parse(name: str, when: Any, marks: Schedule) -> Schedule:
    if when == CHECKPOINTS:
        return marks
    if isinstance(when, int) and not isinstance(when, bool) and when > 0:
        return Schedule(every=when)
    if isinstance(when, Sequence) and not isinstance(when, str):
        return Schedule(steps=_steps(f"watch[{name!r}]", when))
    raise OptionError(
        f"watch[{name!r}]={when!r}: give a number of edits, steps such as (100, 500), or "
        f"{CHECKPOINTS!r}."
    )


def _steps(name: str, steps: Sequence[int]) -> tuple[int, ...]:
    found = [steps] if isinstance(steps, int) else list(steps)
    bad = [s for s in found if type(s) is not int or s < 1]
    if bad:
        raise OptionError(f"{name} has {bad[0]!r}: steps are numbers of edits, from 1 on.")
    return tuple(sorted(set(found)))
