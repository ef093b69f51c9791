"""When a run should stop by itself: the model has collapsed and more edits teach nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

__all__ = ["Alarm", "StopOn"]

#: Called after each batch with the step and what was measured; a text is the reason to stop.
StopOn = Callable[[int, pd.DataFrame, pd.DataFrame], str | None]


@dataclass(frozen=True)
class Alarm:
    """Stops a run that has collapsed; give it to ``stream(stop_on=...)``.

    Args:
        perplexity_ratio: stop once perplexity is above so many times that before the run; None
            does not look at it.
        newest: stop once fewer than this share of the newest facts are right (exactly, on their
            own prompts); None does not look at it.
        window: over how many of the newest facts, at least, that share is taken.

    Example:
        >>> wb.stream("data/runs/rome", view, editor, cases, stop_on=wb.Alarm())  # doctest: +SKIP
    """

    perplexity_ratio: float | None = 10.0
    newest: float | None = 0.5
    window: int = 50

    def __call__(self, step: int, rows: pd.DataFrame, moments: pd.DataFrame) -> str | None:
        """The reason to stop, None to go on.

        Args:
            step: edits held.
            rows: every fact at the moment right after its own edit, so far.
            moments: what the run watched at this moment.
        """
        return self._language(moments) or self._facts(rows)

    def _language(self, moments: pd.DataFrame) -> str | None:
        found = moments.loc[moments["metric"] == "perplexity_ratio", "value"]
        limit = self.perplexity_ratio
        if limit is None or found.empty or found.iloc[-1] <= limit:
            return None
        return f"perplexity is {found.iloc[-1]:.3g} times what it was (limit {limit:g})"

    def _facts(self, rows: pd.DataFrame) -> str | None:
        if self.newest is None or rows.empty:
            return None
        asked = rows[rows["kind"] == "efficacy"].groupby("case_id", sort=False)["exact"].all()
        newest = rows.loc[rows["step"] == rows["step"].max(), "case_id"].nunique()
        last = asked.tail(max(self.window, newest))
        if len(last) < self.window or last.mean() >= self.newest:
            return None
        return (
            f"{last.mean():.0%} of the last {len(last)} facts are right after their own edit "
            f"(limit {self.newest:.0%})"
        )
