"""Keys of a batch: how unusual they are, how alike, and how much of a residual was written.

Leverage ``ℓ = k̄ᵀC⁻¹k̄`` has the mean ``d_mlp`` over the corpus and predicts, with λ, the share
``ℓ/(λ + ℓ)`` of its residual that a single edit writes in one layer (spec locate-then-edit 1.7, 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from workbench.editors.locate import MEMIT
from workbench.editors.locate.base import LocateEditor, statistics_for
from workbench.editors.locate.solvers import condition, predicted_closure
from workbench.editors.locate.sweep import Sweep, subject_activations
from workbench.edits import Edit
from workbench.errors import OptionError
from workbench.facts import as_requests
from workbench.model import ModelView
from workbench.stats import SecondMoment

__all__ = ["closures", "key_conflicts", "key_table"]


def key_table(
    view: ModelView,
    requests: Any,
    *,
    editor: LocateEditor | None = None,
    statistics: Mapping[int, SecondMoment] | None = None,
) -> pd.DataFrame:
    """Leverage, predicted closure and τ of the keys an editor would write.

    Args:
        view: the model as it is.
        requests: a request, a case or a list of them.
        editor: gives layers, contexts, statistics and λ; None takes ``MEMIT.preset(view)``.
        statistics: of the editor's layers, computed or read from the cache if None.

    Returns:
        One row a layer and request: ``layer, request, prompt, leverage, ratio`` (leverage over
        ``d_mlp``, 1 is average), ``predicted_closure`` (NaN without λ), ``tau`` (how far the
        bare prompt's key is written when the mean key is; ROME's stability), ``norm``.

    Example:
        >>> wb.key_table(view, cases).groupby("layer").leverage.median()
    """
    editor = MEMIT.preset(view) if editor is None else editor
    batch = as_requests(requests)
    moments = statistics_for(editor, view, statistics)
    texts = editor._contexts(view)
    lam = editor.config().get("lam")
    rows = []
    for layer in sorted(editor.layers):
        keys, _ = subject_activations(view, batch, texts, layer)
        mean = torch.einsum("ntm,t->mn", keys, texts.tensor(keys))
        factor = moments[layer].factor
        white, bare = factor.whiten(mean), factor.whiten(keys[:, 0].T)
        leverage = white.square().sum(0)
        tau = (white * bare).sum(0) / leverage
        for i, request in enumerate(batch):
            ell = float(leverage[i])
            rows.append(
                {
                    "layer": layer,
                    "request": i,
                    "prompt": request.text,
                    "leverage": ell,
                    "ratio": ell / view.d_mlp,
                    "predicted_closure": float("nan")
                    if lam is None
                    else float(predicted_closure(leverage[i], lam)),
                    "tau": float(tau[i]),
                    "norm": float(mean[:, i].norm()),
                }
            )
    return pd.DataFrame(rows)


def key_conflicts(
    view: ModelView,
    requests: Any,
    *,
    editor: LocateEditor | None = None,
    statistics: Mapping[int, SecondMoment] | None = None,
) -> pd.DataFrame:
    """How alike the keys of a batch are, where the corpus is at home.

    Args:
        view, requests, editor, statistics: as in :func:`key_table`.

    Returns:
        One row a layer and pair, most alike first: ``layer, a, b, cosine`` (of the whitened
        keys), ``prompt_a, prompt_b``. ``attrs["condition"]``: layer → condition number of
        ``KᵀC⁻¹K``, which EMMET must invert.

    Raises:
        OptionError: for fewer than two requests.

    Example:
        >>> wb.key_conflicts(view, cases).head()
    """
    editor = MEMIT.preset(view) if editor is None else editor
    batch = as_requests(requests)
    if len(batch) < 2:
        raise OptionError("key_conflicts compares requests: give at least two.")
    moments = statistics_for(editor, view, statistics)
    keys = Sweep(view, batch, editor._contexts(view), editor.layers).keys()
    rows, number = [], {}
    for layer in sorted(keys):
        white = moments[layer].factor.whiten(keys[layer])
        gram = white.T @ white
        number[layer] = condition(gram)
        scale = gram.diagonal().rsqrt()
        cosine = scale[:, None] * gram * scale[None]
        for a in range(len(batch)):
            for b in range(a + 1, len(batch)):
                rows.append(
                    {
                        "layer": layer,
                        "a": a,
                        "b": b,
                        "cosine": float(cosine[a, b]),
                        "prompt_a": batch[a].text,
                        "prompt_b": batch[b].text,
                    }
                )
    table = pd.DataFrame(rows).sort_values("cosine", ascending=False, ignore_index=True)
    table.attrs["condition"] = number
    return table


def closures(edit: Edit) -> pd.DataFrame:
    """What each layer was predicted to write of its share, and what it wrote.

    Args:
        edit: of MEMIT, EMMET, AlphaEdit or CoachHook over several layers.

    Returns:
        One row a layer and request: ``layer, request, leverage, share`` (1 over the layers that
        remain), ``predicted`` (closure of that share, NaN if the editor predicts none),
        ``achieved`` (share of the distance to the target that the layer closed, over ``share``;
        NaN for the highest layer, after which no layer measured).

    Raises:
        OptionError: if the edit's report holds no distances.

    Example:
        >>> wb.closures(view.stack[-1]).groupby("layer")[["predicted", "achieved"]].median()
    """
    rows = [r for r in edit.report.get("layers", []) if "distance_before" in r]
    if not rows:
        raise OptionError(
            f"the report of this {edit.editor} edit holds no distances: closures are known for "
            "MEMIT, EMMET, AlphaEdit and CoachHook."
        )
    table = pd.DataFrame(rows)
    order = {layer: i for i, layer in enumerate(sorted(table["layer"].unique()))}
    share = 1 / (len(order) - table["layer"].map(order))
    after = table.get("distance_after", pd.Series(float("nan"), index=table.index))
    return pd.DataFrame(
        {
            "layer": table["layer"],
            "request": table["request"],
            "leverage": table["leverage"],
            "share": share,
            "predicted": table.get("predicted_closure", float("nan")),
            "achieved": (1 - after / table["distance_before"]) / share,
        }
    )
