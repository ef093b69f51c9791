"""A frozen score of the unedited model, to measure what an edit did to everything else.

Holds the unedited model's answers (agreement, EasyEdit's locality) and its state at the end of
every prompt that an edit should leave alone (KL divergence of the next token). The state is the
last residual, a few kilobytes a prompt, from which norm and head give the exact distribution;
models whose readout is not proved keep log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from workbench.capabilities import get_module, readout
from workbench.edits import WeightEdit
from workbench.errors import DataError, EditMismatchError, OptionError
from workbench.metrics.answers import Watch, kl_divergence
from workbench.metrics.forward import Reading
from workbench.metrics.plan import Pair, Plan
from workbench.model import ModelView

__all__ = ["GUARDED", "KLWatch", "Reference", "StateWatch", "parse_ids", "predictions"]

#: Kinds of probes whose answer should not move.
GUARDED = ("neighborhood", "attribute", "locality", "upstream")


@dataclass(frozen=True)
class Reference:
    """The unedited model's answers; make one with :func:`workbench.metrics.reference`.

    Attributes:
        base: fingerprint of the model.
        at: number of edits the view was rewound to (0: pristine).
        scores: its score table.
        rows: (prompt, target) → row of ``states``, for guarded probes.
        states: ``[n, d_model]`` last residuals, or ``[n, d_vocab]`` log-probabilities.
        residual: which of the two.
    """

    base: str
    at: int
    scores: pd.DataFrame
    rows: Mapping[Pair, int]
    states: Tensor
    residual: bool

    def check(self, view: ModelView) -> None:
        """Refuse another model.

        Raises:
            EditMismatchError: if the reference was made from another base model.
        """
        if view.fingerprint != self.base:
            raise EditMismatchError(
                f"the reference was made from the model {self.base}, this is {view.fingerprint} "
                f"({view.name}): make one with wb.metrics.reference(view, cases)."
            )

    @torch.no_grad()
    def log_probs(self, view: ModelView, rows: Sequence[int]) -> Tensor:
        """``[n, d_vocab]`` log-probabilities of the unedited model for the given rows."""
        states = self.states[list(rows)].to(view.device)
        if not self.residual:
            return states
        with self._head(view):
            logits = readout(view.model, view.layout, states)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _head(self, view: ModelView) -> AbstractContextManager[object]:
        """The reference's own norm and head: rewinds the view only if an edit changed them."""
        changed = {
            delta.parameter
            for edit in view.stack[self.at :]
            if isinstance(edit, WeightEdit)
            for delta in edit.deltas
        }
        return view.at(self.at) if changed & set(_head_parameters(view)) else nullcontext()


class StateWatch:
    """Collects the states of guarded pairs while the unedited model is scored."""

    def __init__(self, pairs: Sequence[Pair], guarded: set[Pair]) -> None:
        self.pairs, self.guarded = pairs, guarded
        self.rows: dict[Pair, int] = {}
        self.states: list[Tensor] = []
        self.residual = False

    def __call__(self, plan: Plan) -> Watch:
        """Start on a plan."""
        first = plan.first_spots
        wanted = {p: first[i] for i, p in enumerate(self.pairs) if p in self.guarded}
        order = {spot: n for n, spot in enumerate(sorted(set(wanted.values())))}
        self.rows = {pair: order[spot] for pair, spot in wanted.items()}
        return self._keeper(torch.tensor(sorted(order), dtype=torch.long))

    def _keeper(self, spots: Tensor) -> Callable[[Reading, Tensor], None]:
        def keep(reading: Reading, norm: Tensor) -> None:
            local = _inside(spots, reading).to(reading.logits.device)
            self.residual = reading.residual is not None
            if reading.residual is not None:
                self.states.append(reading.residual[local].cpu())
            else:
                self.states.append((reading.logits[local] - norm[local, None]).cpu())

        return keep


class KLWatch:
    """Computes KL(unedited || now) at the prompt ends that a reference knows.

    Attributes:
        kl: (prompt, target) → nats.
    """

    def __init__(self, view: ModelView, pairs: Sequence[Pair], reference: Reference) -> None:
        self.view, self.pairs, self.reference = view, pairs, reference
        self.kl: dict[Pair, float] = {}

    def __call__(self, plan: Plan) -> Watch:
        """Start on a plan."""
        owners: dict[int, list[Pair]] = {}
        for pair, spot in zip(self.pairs, plan.first_spots, strict=True):
            if pair in self.reference.rows:
                owners.setdefault(spot, []).append(pair)
        spots = torch.tensor(sorted(owners), dtype=torch.long)

        def measure(reading: Reading, norm: Tensor) -> None:
            local = _inside(spots, reading)
            for part in local.split(256):
                self._measure(part, reading, norm, owners)

        return measure

    def _measure(
        self, local: Tensor, reading: Reading, norm: Tensor, owners: dict[int, list[Pair]]
    ) -> None:
        here = [owners[reading.start + i] for i in local.tolist()]
        if not here:
            return
        rows = [self.reference.rows[pairs[0]] for pairs in here]
        before = self.reference.log_probs(self.view, rows)
        index = local.to(norm.device)
        now = reading.logits[index] - norm[index, None]
        values = kl_divergence(before.to(now.device), now).tolist()
        for pairs, value in zip(here, values, strict=True):
            self.kl |= dict.fromkeys(pairs, value)


def predictions(reference: Reference | pd.DataFrame) -> dict[Pair, tuple[int, ...]]:
    """(prompt, target) → arg-max ids of the unedited model.

    Raises:
        DataError: if a table lacks the columns.
        OptionError: if it is neither a :class:`Reference` nor a table.
    """
    table = reference.scores if isinstance(reference, Reference) else reference
    if not isinstance(table, pd.DataFrame):
        raise OptionError(
            f"reference is a {type(table).__name__}: give wb.metrics.reference(view, cases), or "
            "the table that wb.score gave for the unedited model."
        )
    missing = {"prompt", "target", "predicted"} - set(table.columns)
    if missing:
        raise DataError(f"the reference table has no column {', '.join(sorted(missing))}.")
    keys = zip(table["prompt"], table["target"], strict=True)
    return dict(zip(keys, map(parse_ids, table["predicted"]), strict=True))


def parse_ids(text: object) -> tuple[int, ...]:
    """``"12 7"`` → ``(12, 7)``."""
    return tuple(int(x) for x in str(text).split())


def _inside(spots: Tensor, reading: Reading) -> Tensor:
    """Indices, local to the reading, of those spots that it holds."""
    end = reading.start + len(reading.logits)
    return spots[(spots >= reading.start) & (spots < end)] - reading.start


def _head_parameters(view: ModelView) -> Iterator[str]:
    """Names of the parameters behind the last residual, tied ones under all their names."""
    layout, model = view.layout, view.model
    modules = [get_module(model, p) for p in (layout.final_norm, layout.project_out, layout.head)]
    behind = {id(p) for m in modules if m is not None for p in m.parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in behind:
            yield name
