"""How far the weights have moved from the pristine model (spec locate-then-edit 4.6, item 4)."""

from __future__ import annotations

import pandas as pd
import torch

from workbench.model import ModelView

__all__ = ["weight_drift"]


def weight_drift(view: ModelView) -> pd.DataFrame:
    """Distance of every edited matrix from its original.

    Returns:
        One row a layer: ``layer``, ``frobenius`` (‖W_n − W_0‖), ``relative`` (over ‖W_0‖),
        ``per_weight`` (over the number of weights), ``norm`` (‖W_n‖), ``norm_before`` (‖W_0‖).

    Example:
        >>> with view.applied(edit):
        ...     table = wb.weight_drift(view)
    """
    now = [view.weight(layer) for layer in range(view.n_layers)]
    with view.pristine():
        before = [view.weight(layer) for layer in range(view.n_layers)]
    return pd.DataFrame(
        [_row(layer, *pair) for layer, pair in enumerate(zip(now, before, strict=True))]
    )


def _row(layer: int, now: torch.Tensor, before: torch.Tensor) -> dict[str, float]:
    same = now.data_ptr() == before.data_ptr()
    distance = 0.0 if same else float((now.double() - before.double()).norm())
    norm_before = float(before.double().norm())
    return {
        "layer": layer,
        "frobenius": distance,
        "relative": distance / norm_before,
        "per_weight": distance / now.numel(),
        "norm": norm_before if same else float(now.double().norm()),
        "norm_before": norm_before,
    }
