"""Measuring a run's own facts: the newest, a fixed subset, or everything that was edited so far.

Batches of rows depend on the run's configuration alone, never on what was measured before, so a run
that was interrupted measures the same bits as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from workbench.facts import EditCase
from workbench.metrics.panel import Panel
from workbench.metrics.prefixes import Prefixes
from workbench.model import ModelView

__all__ = ["COLUMNS", "Exam"]

#: Cases measured together, so that shared prompts are run once.
GROUP = 256
#: What is kept of a score table.
COLUMNS = (
    *("step", "case_id", "probe", "kind", "target", "foil"),
    *("nll_target", "nll_foil", "exact", "token_accuracy", "success"),
)


class Exam:
    """The probes of a run's cases.

    Args:
        view: the model.
        cases: all cases of the run, in order.
        subset: positions of the cases that are measured at dense moments, in order.
        kinds: only probes of these kinds.
        prefixes: keeps states below the edited layers.
    """

    def __init__(
        self,
        view: ModelView,
        cases: Sequence[EditCase],
        *,
        subset: Sequence[int] = (),
        kinds: Iterable[str] | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.view, self.cases = view, list(cases)
        self.kinds = None if kinds is None else list(kinds)
        self.prefixes = prefixes
        self.everything, self.subset = list(range(len(self.cases))), list(subset)
        self._panels: dict[tuple[int, ...], Panel] = {}

    def newest(self, step: int, positions: Sequence[int]) -> pd.DataFrame:
        """The cases at ``positions``, asked this once."""
        return self._table(step, [self._panel(tuple(positions), keep=False).measure()])

    def survey(
        self, step: int, among: Sequence[int], held: set[int], attempted: int
    ) -> pd.DataFrame:
        """Those cases among some positions that the model holds.

        Args:
            step: edits held.
            among: :attr:`everything` or :attr:`subset`.
            held: positions of the cases that were edited.
            attempted: how many cases had their turn, edited or skipped; groups of which all had
                it stay as they are and are kept.
        """
        tables = []
        for start in range(0, len(among), GROUP):
            group = among[start : start + GROUP]
            asked = tuple(i for i in group if i in held)
            if asked:
                panel = self._panel(asked, keep=group[-1] < attempted)
                tables.append(panel.measure())
        return self._table(step, tables)

    def _panel(self, positions: tuple[int, ...], *, keep: bool) -> Panel:
        if positions in self._panels:
            return self._panels[positions]
        panel = Panel(
            self.view,
            [self.cases[i] for i in positions],
            kinds=self.kinds,
            prefixes=self.prefixes if keep else None,
        )
        if keep:
            self._panels[positions] = panel
        return panel

    def _table(self, step: int, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        if not tables:
            return pd.DataFrame(columns=list(COLUMNS))
        return pd.concat(tables, ignore_index=True).assign(step=step)[list(COLUMNS)]
