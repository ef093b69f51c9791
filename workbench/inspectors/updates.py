"""What an edit writes: every parameter it touches, how far it moves, and at which rank."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.adapters import as_hook
from workbench.edits import Adapter, Delta, Edit
from workbench.inspectors.sides import Sides, sides_of
from workbench.model import ModelView

__all__ = ["updates_of", "weight_updates"]


def weight_updates(view: ModelView, edit: Edit | int) -> pd.DataFrame:
    """Size and rank of an edit's changes, as the model would hold them; the view is as before.

    Args:
        view: the model.
        edit: an edit, on the stack or not, or an entry's number.

    Returns:
        One row a parameter: ``layer`` (None outside the blocks), ``parameter, form`` (how the
        change is stored: low_rank, dense, sparse, or the kind of what stands beside the weight),
        ``update_norm`` (Frobenius, of what the model's dtype keeps), ``relative`` (over the norm
        before), ``rank`` (at most; None if not stored in factors), ``changed`` (numbers that
        differ; for a hook layer those of its difference that are not 0, for a memory all that it
        stores, while the weight stays).

    Raises:
        OptionError: as :func:`~workbench.inspectors.sides.sides_of`.

    Example:
        >>> wb.weight_updates(view, edit)  # doctest: +SKIP
    """
    return updates_of(sides_of(view, edit))


@torch.no_grad()
def updates_of(sides: Sides) -> pd.DataFrame:
    """The table of :func:`weight_updates` for any two states of a view."""
    view = sides.view
    names = tuple(dict.fromkeys(p for e in sides.edits for p in e.parameters))
    held = []  # references: a state's tensors are never written again
    for state in (sides.before(), sides.after()):
        with state:
            parameters = dict(view.model.named_parameters(remove_duplicate=False))
            held.append({name: parameters[name].data for name in names})
    rows = []
    for name in names:
        pieces = [p for e in sides.edits for p in e.pieces if p.parameter == name]
        deltas = [p for p in pieces if isinstance(p, Delta)]
        if deltas:
            rows.append(_row(view, name, deltas, held[0][name], held[1][name]))
        rows += [_beside_row(view, p, held[0][name]) for p in pieces if isinstance(p, Adapter)]
    return pd.DataFrame(rows)


def _row(
    view: ModelView, name: str, deltas: list[Delta], before: Tensor, after: Tensor
) -> dict[str, Any]:
    wide = torch.promote_types(before.dtype, torch.float32)
    norm = float((after.to(wide) - before.to(wide)).norm())
    ranks = [d.rank for d in deltas]
    known = [r for r in ranks if r is not None]
    return {
        "layer": _layer(view, name),
        "parameter": name,
        "form": ", ".join(dict.fromkeys(d.form for d in deltas)),
        "update_norm": norm,
        "relative": _over(norm, float(before.to(wide).norm())),
        "rank": min(sum(known), *before.shape) if len(known) == len(ranks) else None,
        "changed": int((after != before).sum()),
    }


def _beside_row(view: ModelView, adapter: Adapter, weight: Tensor) -> dict[str, Any]:
    """Of a hook layer its difference; of a memory nothing but what it stores."""
    found: dict[str, Any] = {
        "layer": _layer(view, adapter.parameter),
        "parameter": adapter.parameter,
        "form": adapter.kind,
        "update_norm": 0.0,
        "relative": 0.0,
        "rank": None,
        "changed": sum(t.numel() for t in adapter.tensors.values()),
    }
    if adapter.kind != "hook_layer":
        return found
    hook = as_hook(adapter, device="cpu", dtype=torch.float32)
    change = hook.left @ hook.right.T
    norm = float(change.norm())
    return found | {
        "update_norm": norm,
        "relative": _over(norm, float(weight.float().norm())),
        "rank": hook.left.shape[1],
        "changed": int((change != 0).sum()),
    }


def _layer(view: ModelView, parameter: str) -> int | None:
    homes = (view.layout.block(layer) + "." for layer in range(view.n_layers))
    return next((i for i, home in enumerate(homes) if parameter.startswith(home)), None)


def _over(norm: float, whole: float) -> float:
    return norm / whole if whole else math.nan
