"""Which layer, which λ, for a model that nobody has tuned: one call, a table and a figure.

Causal tracing picks layers poorly (arXiv 2405.00664), so every candidate is tried: single edits at
the layer, scored by the harmonic mean of efficacy, paraphrase and neighborhood success. λ follows
from the keys' leverage, such that the median edit closes a chosen share of its residual (spec
locate-then-edit 3.2), a rule that carries over between models better than a number does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from workbench.editors.locate.base import LocateEditor, statistics_for
from workbench.editors.locate.contexts import contexts
from workbench.editors.locate.solvers import predicted_closure
from workbench.editors.locate.sweep import subject_activations
from workbench.errors import OptionError
from workbench.facts import EditCase
from workbench.metrics import reference, score, summary
from workbench.model import ModelView
from workbench.plots import plot_closure, plot_layer_sweep
from workbench.progress import track

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Calibration", "calibrate"]

#: Candidate layers lie in this share of the depth unless given.
DEPTHS = (0.0, 0.7)
MAX_CANDIDATES = 8
CLOSURES = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Calibration:
    """Outcome of a calibration.

    Attributes:
        editor: the calibrated editor.
        table: one row a candidate: ``layer`` (the highest edited one), ``layers``, ``efficacy,
            paraphrase, neighborhood, score`` (shares), ``exact`` (of efficacy), ``kl`` (median on
            neighborhood prompts, nats), ``n`` (cases), ``chosen``.
        closure: one row per layer and λ: ``layer, lam, predicted_closure`` (median over cases),
            ``leverage`` (median).
        model: name of the model.
    """

    editor: LocateEditor
    table: pd.DataFrame
    closure: pd.DataFrame
    model: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> go.Figure:
        """Scores by layer, the chosen one marked."""
        name = type(self.editor).__name__
        return plot_layer_sweep(
            self.table,
            subtitle=f"{name} on {self.model}, {int(self.table['n'].max())} single edits",
        )

    @property
    def closure_figure(self) -> go.Figure:
        """Predicted closure by λ."""
        lam = getattr(self.editor, "lam", None)
        return plot_closure(self.closure, chosen=lam, subtitle=self.model)

    def __repr__(self) -> str:
        return (
            f"<Calibration on {self.model}: {self.editor!r}>\n{self.table.to_string(index=False)}"
        )

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self.editor))}</p>{self.table.to_html(index=False)}"


def calibrate(
    editor: LocateEditor,
    view: ModelView,
    cases: Sequence[EditCase],
    *,
    layers: Sequence[int] | None = None,
    n_layers: int = 1,
    closure: float = 0.5,
) -> Calibration:
    """Try an editor's single edits at several layers and choose layer and λ.

    Args:
        editor: the options that stay fixed; its ``layers`` and ``lam`` are replaced.
        view: the model; it is as before afterwards.
        cases: facts with paraphrase and neighborhood probes, best ones the model knows; 20 to 50.
        layers: candidates for the highest edited layer; None takes up to eight in the lower 70 %.
        n_layers: how many consecutive layers are edited.
        closure: share of its residual that the median edit shall close in one layer.

    Raises:
        OptionError: for no cases, or candidates out of range.
    """
    if not cases:
        raise OptionError("cases is empty: calibration needs at least one case with probes.")
    candidates = list(layers) if layers is not None else _candidates(view, n_layers)
    view.check_layers(candidates)
    before = reference(view, cases)
    rows, closures = [], []
    for top in track(candidates, "layers"):
        span = tuple(range(max(0, top - n_layers + 1), top + 1))
        trial = editor.with_options(layers=span)
        table = _closure_table(trial, view, cases, closure)
        closures.append(table)
        trial = _with_lam(trial, table)
        rows.append({"layer": top, "layers": span} | _judge(trial, view, cases, before))
    table = pd.DataFrame(rows)
    best = table.sort_values(["score", "exact", "kl"], ascending=[False, False, True]).index[0]
    table["chosen"] = table.index == best
    chosen = editor.with_options(layers=tuple(table.loc[best, "layers"]))
    return Calibration(
        editor=_with_lam(chosen, closures[best]),
        table=table,
        closure=pd.concat(closures, ignore_index=True),
        model=view.name,
        meta={"case_ids": [c.case_id for c in cases], "closure": closure, "base": editor.config()},
    )


def _candidates(view: ModelView, n_layers: int) -> list[int]:
    low = max(n_layers - 1, int(DEPTHS[0] * view.n_layers))
    high = max(low + 1, int(DEPTHS[1] * view.n_layers))
    step = max(1, -(-(high - low) // MAX_CANDIDATES))
    return list(range(low, min(high, view.n_layers), step))


def _judge(
    editor: LocateEditor, view: ModelView, cases: Sequence[EditCase], before: Any
) -> dict[str, Any]:
    edits = editor.edit_each(view, list(cases))
    tables = []
    for case, edit in zip(cases, edits, strict=True):
        with view.applied(edit):
            tables.append(score(view, [case], reference=before))
    scores = pd.concat(tables, ignore_index=True)
    means = summary(scores, resamples=1)
    kinds = ("efficacy", "paraphrase", "neighborhood", "score")
    found = {k: float(means.loc[k, "success"]) for k in kinds if k in means.index}
    spared = scores[scores["kind"] == "neighborhood"]
    return found | {
        "exact": float(scores.loc[scores["kind"] == "efficacy", "exact"].mean()),
        "kl": float(spared["kl"].median()) if len(spared) else float("nan"),
        "n": len(cases),
    }


def _closure_table(
    editor: LocateEditor, view: ModelView, cases: Sequence[EditCase], closure: float
) -> pd.DataFrame:
    top = max(editor.layers)
    factor = statistics_for(editor, view)[top].factor
    texts = contexts(view, editor.contexts, editor.seed, editor.templates)
    keys, _ = subject_activations(view, [c.request for c in cases], texts, top)
    mean = torch.einsum("ntm,t->mn", keys, texts.tensor(keys))
    leverage = factor.leverage(mean)
    median = float(leverage.median())
    rows = []
    for share in sorted({*CLOSURES, closure}):
        lam = median * (1 - share) / share
        rows.append(
            {
                "layer": top,
                "lam": lam,
                "predicted_closure": float(predicted_closure(leverage, lam).median()),
                "leverage": median,
                "chosen": share == closure,
            }
        )
    return pd.DataFrame(rows)


def _with_lam(editor: LocateEditor, table: pd.DataFrame) -> LocateEditor:
    if "lam" not in editor.config():
        return editor
    return editor.with_options(lam=float(table.loc[table["chosen"], "lam"].iloc[0]))
