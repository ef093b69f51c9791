"""Which neurons NSE scores, which it chose, and how often (spec locate-then-edit 2.6 and 7).

A neuron is a column of the edited matrix, that is an entry of the key.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from workbench.editors.locate import NSE
from workbench.editors.locate.nse import unpack_bits
from workbench.editors.locate.selection import jaccard, neuron_scores, select
from workbench.editors.locate.sweep import Sweep
from workbench.edits import Edit
from workbench.errors import OptionError
from workbench.facts import as_requests
from workbench.model import ModelView

__all__ = ["neuron_counts", "neuron_selections", "neuron_table"]


def neuron_table(view: ModelView, requests: Any, *, editor: NSE | None = None) -> pd.DataFrame:
    """Scores of every neuron for a batch, on the model as it is, and what would be chosen.

    Args:
        view: the model.
        requests: a request, a case or a list of them.
        editor: gives layers, contexts, threshold and rule; None takes ``NSE.preset(view)``.

    Returns:
        One row a layer and neuron, best first: ``layer, neuron, score`` (Σ |key|), ``share`` of
        the layer's total, ``cumulative`` share, ``rank`` (1 is best), ``selected``.

    Example:
        >>> wb.neuron_table(view, cases).query("selected").groupby("layer").size()
    """
    editor = NSE.preset(view) if editor is None else editor
    batch = as_requests(requests)
    keys = Sweep(view, batch, editor._contexts(view), editor.layers).keys()
    tables = []
    for layer in sorted(keys):
        scores = neuron_scores(keys[layer])
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[select(scores, editor.neuron_threshold, editor.selection)] = True
        order = scores.argsort(descending=True, stable=True)
        share = scores[order] / scores.sum()
        tables.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "neuron": order.tolist(),
                    "score": scores[order].tolist(),
                    "share": share.tolist(),
                    "cumulative": share.cumsum(0).tolist(),
                    "rank": range(1, len(scores) + 1),
                    "selected": chosen[order].tolist(),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def neuron_selections(view: ModelView) -> pd.DataFrame:
    """What the NSE edits on the stack chose.

    Returns:
        One row an entry, round and layer: ``entry`` (place on the stack), ``round, layer,
        requests`` (how many were written), ``n_selected, share`` of all neurons, ``overlap``
        (Jaccard index with the same layer's first round of the entry before; NaN for the first).

    Raises:
        OptionError: if no NSE edit is on the stack.

    Example:
        >>> wb.neuron_selections(view)
    """
    rows: list[dict[str, Any]] = []
    before: dict[int, torch.Tensor] = {}
    for entry, edit in _nse_edits(view):
        for row in edit.report["layers"]:
            chosen = _as_mask(row["selected"], view.d_mlp)
            held = before.get(row["layer"])
            both = None if held is None else jaccard(torch.stack([held, chosen]))
            rows.append(
                {
                    "entry": entry,
                    "round": row["round"],
                    "layer": row["layer"],
                    "requests": len(row["requests"]),
                    "n_selected": row["n_selected"],
                    "share": row["share"],
                    "overlap": float("nan") if both is None else float(both[0, 1]),
                }
            )
        before = {
            row["layer"]: _as_mask(row["selected"], view.d_mlp)
            for row in reversed(edit.report["layers"])
        }
    return pd.DataFrame(rows)


def neuron_counts(view: ModelView) -> pd.DataFrame:
    """How many NSE edits on the stack wrote each neuron.

    Returns:
        One row a layer and neuron that was written: ``layer, neuron, edits`` (entries), sorted by
        layer, then by count.

    Raises:
        OptionError: if no NSE edit is on the stack.

    Example:
        >>> wb.neuron_counts(view).groupby("layer").edits.describe()
    """
    counts: dict[int, torch.Tensor] = {}
    for _, edit in _nse_edits(view):
        written: dict[int, torch.Tensor] = {}
        for row in edit.report["layers"]:
            mask = _as_mask(row["selected"], view.d_mlp)
            written[row["layer"]] = written.get(row["layer"], torch.zeros_like(mask)) | mask
        for layer, mask in written.items():
            counts[layer] = counts.get(layer, torch.zeros(view.d_mlp, dtype=torch.long)) + mask
    rows = [
        {"layer": layer, "neuron": int(i), "edits": int(counts[layer][i])}
        for layer in sorted(counts)
        for i in counts[layer].argsort(descending=True, stable=True)
        if counts[layer][i]
    ]
    return pd.DataFrame(rows, columns=["layer", "neuron", "edits"])


def _nse_edits(view: ModelView) -> list[tuple[int, Edit]]:
    found = [(i, e) for i, e in enumerate(view.stack) if e.editor == "NSE"]
    if not found:
        raise OptionError("no NSE edit is on the stack: view.push(wb.NSE.preset(view).edit(...)).")
    return found


def _as_mask(bits: str, m: int) -> torch.Tensor:
    mask = torch.zeros(m, dtype=torch.bool)
    mask[unpack_bits(bits)] = True
    return mask
