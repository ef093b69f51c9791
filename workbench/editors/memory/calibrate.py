"""Which layer and which radius suit GRACE on a model that nobody has tuned.

Radii are raw distances whose scale differs a hundredfold between modules, and which prompt an entry
answers follows from keys, radii and labels alone (spec memory-and-meta 1.6 and 1.11). So every
radius is tried without training a value: own prompts, other wordings and prompts that shall stay
are looked up in the codebook that the cases would make. The best radius is the one that covers most
other wordings among those that spare enough. Whether a value at the layer can say the answer is
then tried once a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from workbench.editors.memory.codebook import decide, noted
from workbench.editors.memory.examples import queries
from workbench.editors.memory.grace import GRACE, codebook_of
from workbench.errors import OptionError
from workbench.facts import EditCase, Probe
from workbench.memories import Codebook
from workbench.metrics.scoring import score
from workbench.model import ModelView
from workbench.plots import plot_radii
from workbench.progress import track

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["RadiusCalibration", "calibrate"]

#: Candidate layers lie in this share of the depth unless given, at most so many.
DEPTHS, MAX_LAYERS = (0.3, 1.0), 5
#: Candidate radii unless given: shares of the median distance between the cases' own keys.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
#: Kinds that an entry shall answer, and kinds that shall pass.
SAME, OTHER = ("paraphrase", "holdout"), ("neighborhood", "attribute", "locality", "upstream")
BATCH = 64


@dataclass(frozen=True)
class RadiusCalibration:
    """Outcome of a calibration of GRACE.

    Attributes:
        editor: the calibrated editor.
        table: one row a layer and radius: ``layer, epsilon, keys`` (entries), ``own`` (cases whose
            prompt an entry with their answer answers), ``covered`` (other wordings of which the
            same holds), ``spared`` (prompts that shall stay and that no entry answers), ``score``
            (mean of own and covered where enough is spared, else spared - 1), ``exact`` (cases
            that were answered exactly, with trained values; one radius a layer), ``chosen``.
        model: name of the model.
    """

    editor: GRACE
    table: pd.DataFrame
    model: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> go.Figure:
        """Own, covered and spared by radius, a line a layer."""
        return plot_radii(self.table, ("own", "covered", "spared"), subtitle=f"GRACE, {self.model}")

    def __repr__(self) -> str:
        return (
            f"<Calibration on {self.model}: {self.editor!r}>\n{self.table.to_string(index=False)}"
        )

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self.editor))}</p>{self.table.to_html(index=False)}"


def calibrate(
    editor: GRACE,
    view: ModelView,
    cases: Sequence[EditCase],
    *,
    layers: Sequence[int] | None,
    epsilons: Sequence[float] | None,
    upstream: Sequence[Probe],
    spared: float,
) -> RadiusCalibration:
    """The sweep behind :meth:`GRACE.calibrate`.

    Raises:
        OptionError: without cases, for layers or radii out of range, or a view with edits.
    """
    if not cases or view.stack:
        raise OptionError(
            "cases is empty: calibration needs at least one case with probes."
            if not cases
            else f"the view holds {len(view.stack)} edits: view.reset() before calibrating."
        )
    candidates = list(layers) if layers is not None else _candidates(view)
    view.check_layers(candidates)
    rows: list[dict[str, Any]] = []
    for layer in track(candidates, "layers"):
        trial = editor.with_options(layers=(layer,))
        swept = [
            row | {"score": _score(row, spared)}
            for row in _swept(trial, view, cases, epsilons, upstream)
        ]
        best = max(swept, key=_rank)
        best["exact"] = _exact(trial.with_options(epsilon=best["epsilon"]), view, cases)
        rows += swept
    table = pd.DataFrame(rows)
    tried = table.dropna(subset=["exact"])
    chosen = max(tried.index, key=lambda i: _rank(tried.loc[i], said=True))
    table["chosen"] = table.index == chosen
    layer, epsilon = int(table.loc[chosen, "layer"]), float(table.loc[chosen, "epsilon"])
    return RadiusCalibration(
        editor=editor.with_options(layers=(layer,), epsilon=epsilon),
        table=table,
        model=view.name,
        meta={"case_ids": [c.case_id for c in cases], "base": editor.config()},
    )


def _score(row: Mapping[str, float], spared: float) -> float:
    if row["spared"] < spared:
        return row["spared"] - 1
    held = [row[name] for name in ("own", "covered") if row[name] == row[name]]
    return sum(held) / len(held)


def _rank(row: Any, *, said: bool = False) -> tuple[float, float]:
    """The better score, with what was said exactly in its stead; of equal ones the smaller radius.

    A layer whose values cannot say the answers is as bad as one whose entries do not answer.
    """
    score = float(row["score"])
    if said and score > 0:
        score -= (float(row["own"]) - float(row["exact"])) / 2
    return round(score, 6), -float(row["epsilon"])


def _candidates(view: ModelView) -> list[int]:
    low, high = (round(share * view.n_layers) for share in DEPTHS)
    step = max(1, -(-(high - low) // MAX_LAYERS))
    return list(range(min(low, view.n_layers - 1), high, step))


def _swept(
    editor: GRACE,
    view: ModelView,
    cases: Sequence[EditCase],
    epsilons: Sequence[float] | None,
    upstream: Sequence[Probe],
) -> list[dict[str, Any]]:
    """Rows of one layer."""
    requests = [c.request for c in cases]
    labels = [editor.label(view, r) for r in requests]
    same = [(i, p) for i, c in enumerate(cases) for p in c.probes if p.kind in SAME]
    other = [p for c in cases for p in c.probes if p.kind in OTHER] + list(upstream)
    keys = _keys(editor, view, [r.text for r in requests])
    worded = _keys(editor, view, [p.prompt for _, p in same])
    passing = _keys(editor, view, [p.prompt for p in other])
    if epsilons is None:
        if len(keys) < 2:
            raise OptionError("epsilons=None needs two cases or more: give epsilons=[...].")
        epsilons = [round(share * float(torch.pdist(keys).median()), 4) for share in SHARES]
    rows = []
    for epsilon in epsilons:
        book = _book(editor.with_options(epsilon=float(epsilon)), view, keys, labels)
        found = {
            "own": _answered(book, keys, labels),
            "covered": _answered(book, worded, [labels[i] for i, _ in same]),
            "spared": _passed(book, passing),
        }
        place = {"layer": editor.layers[0], "epsilon": float(epsilon), "keys": len(book)}
        rows.append(place | found | {"exact": float("nan")})
    return rows


def _keys(editor: GRACE, view: ModelView, prompts: Sequence[str]) -> Tensor:
    """``[n, d_in]``."""
    place, settings = editor.place(view), editor.settings(view)
    parts = [list(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
    found = [queries(view, part, place, settings)[0].cpu() for part in parts]
    return torch.cat(found) if found else torch.zeros(0, 1)


def _book(editor: GRACE, view: ModelView, keys: Tensor, labels: Sequence[Any]) -> Codebook:
    """The codebook that one edit after another would make, without values."""
    settings, rules = editor.settings(view), editor.rules(view)
    book = codebook_of(view, editor, settings)
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        book = noted(book, settings, decide(book, key, label, rules, tag=str(i)))
    return book


def _answered(book: Codebook, asked: Tensor, labels: Sequence[Any]) -> float:
    """Share of queries that an entry with their label answers; NaN without queries."""
    if not len(labels):
        return float("nan")
    fired = book.fired(asked.to(book.radii)).tolist()
    right = [e >= 0 and book.labels[e] == label for e, label in zip(fired, labels, strict=True)]
    return sum(right) / len(right)


def _passed(book: Codebook, asked: Tensor) -> float:
    """Share of queries that no entry answers; NaN without queries."""
    if asked.shape[1] == 1 and not len(asked):
        return float("nan")
    return float((book.fired(asked.to(book.radii)) < 0).float().mean())


def _exact(editor: GRACE, view: ModelView, cases: Sequence[EditCase]) -> float:
    """Share of cases answered exactly once all are written."""
    with view.applied(editor.edit(view, list(cases))):
        return float(score(view, list(cases), kinds="efficacy")["exact"].mean())
