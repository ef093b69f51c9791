"""A panel: the same probes, measured again and again while a model is being edited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from workbench.facts import EditCase
from workbench.metrics.answers import answers_of
from workbench.metrics.plan import Plan, is_causal, make_plan
from workbench.metrics.prefixes import Prefixes
from workbench.metrics.scoring import pairs_of, probes_of, table_of
from workbench.model import ModelView

__all__ = ["Panel"]


class Panel:
    """Probes of cases, tokenized once; batches of rows are the same at every moment.

    Because the batches are fixed, two measurements of the same weights give the same bits, whatever
    was measured in between.

    Args:
        view: the model.
        cases: the cases whose probes are asked.
        kinds: only probes of these kinds.
        prefixes: keeps states below the first edited block; None runs every block.
        batch_tokens: padded tokens in a batch; None suits the device.

    Raises:
        OptionError, RequestError: as :func:`workbench.score`.

    Example:
        >>> Panel(view, cases).measure()  # doctest: +SKIP
    """

    def __init__(
        self,
        view: ModelView,
        cases: Sequence[EditCase],
        *,
        kinds: Iterable[str] | None = None,
        prefixes: Prefixes | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.view, self.prefixes, self.batch_tokens = view, prefixes, batch_tokens
        self.asked = probes_of(cases, kinds)
        self.pairs = pairs_of(self.asked)
        self._plans: dict[bool, Plan] = {}

    def measure(self) -> pd.DataFrame:
        """The score table of the model as it is now; columns as :func:`workbench.score` has them
        up to ``predicted``, without a protocol's ``measure`` and ``value``.
        """
        with self.view.writing("score"):
            found = answers_of(
                self.view,
                self._plan(),
                self.pairs,
                batch_tokens=self.batch_tokens,
                states=self.prefixes,
            )
        return table_of(self.asked, found)

    def _plan(self) -> Plan:
        """Rows may be read inside longer ones unless an adapter looks at whole rows."""
        causal = is_causal(self.view)
        if causal not in self._plans:
            self._plans[causal] = make_plan(self.view, self.pairs)
        return self._plans[causal]
