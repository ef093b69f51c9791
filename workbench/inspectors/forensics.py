"""What differs between two models: which layers, at which rank, towards which tokens.

An edit of ROME's kind leaves a change of rank one a fact in a down projection, MEMIT's one of as
many as facts in several, fine-tuning one of full rank. Rounding to the model's dtype adds noise of
full rank, whose size is known; singular values below it do not count.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import OptionError, UnsupportedModelError
from workbench.inspectors.checkpoints import Checkpoint, aligned, checkpoint
from workbench.layouts import Layout, find_layout
from workbench.linalg import leading
from workbench.model import ModelView
from workbench.progress import track

__all__ = ["compare_models"]

Model = ModelView | PreTrainedModel | str | os.PathLike[str]
COLUMNS = (
    *("parameter", "layer", "part", "relative", "norm", "changed", "rank", "more", "top_share"),
    *("promoted", "suppressed"),
)


@torch.no_grad()
def compare_models(
    a: Model, b: Model | None = None, *, top_k: int = 5, max_rank: int = 64
) -> pd.DataFrame:
    """Every parameter in which two models differ, without loading either whole.

    Args:
        a: a view, a loaded model, a known name, a folder or a hub id.
        b: another; None compares a view's unedited weights with those it holds.
        top_k: tokens each way.
        max_rank: singular values looked at.

    Returns:
        One row a parameter that differs, in the model's order: ``parameter, layer`` (None outside
        the blocks), ``part`` (its name inside the block), ``relative`` (‖B − A‖ / ‖A‖), ``norm``
        (‖B − A‖, Frobenius), ``changed`` (share of the numbers that differ), ``rank`` (singular
        values above what rounding explains; 0: rounding alone), ``more`` (the rank is at least
        that), ``top_share`` (of ‖B − A‖², in the largest), ``promoted, suppressed`` (lists of
        tokens: for what a block's down projection writes, the ends of the readout of the largest
        singular vector, the longer end counted as promoted; for embeddings, the tokens whose rows
        moved most, in ``promoted``). ``attrs``: ``a, b, compared, only_a, only_b, finding`` (in a
        sentence), ``likely_edits`` (most low-rank facts in one matrix; None if that says nothing).

    Raises:
        OptionError: for shapes that do not fit, or ``b=None`` without a view.
        DataError: for files that are damaged or pickled.

    Example:
        >>> wb.compare_models("base/", "edited/")  # doctest: +SKIP
    """
    if b is None and not isinstance(a, ModelView):
        raise OptionError("compare_models needs two models; of a view it takes both by itself.")
    first = checkpoint(a, pristine=b is None)
    second = checkpoint(a if b is None else b)
    pairs = aligned(first, second)
    if not pairs:
        raise OptionError(f"{first.label} and {second.label} have no parameter in common.")
    reading = _Reading(second)
    rows = []
    for name, other in track(pairs, "compare models"):
        if first.shapes[name] != second.shapes[other]:
            raise OptionError(
                f"{name!r} is {first.shapes[name]} in {first.label} and {second.shapes[other]} in "
                f"{second.label}: compare models of one size."
            )
        before, after = first.get(name), second.get(other)
        if not torch.equal(before, after.to(before.dtype)) or before.dtype != after.dtype:
            rows += _row(name, other, before, after, reading, top_k, max_rank)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["layer"] = table["layer"].astype("Int64")
    matched = {name for name, _ in pairs}, {other for _, other in pairs}
    table.attrs = {
        "a": first.label,
        "b": second.label,
        "compared": len(pairs),
        "only_a": sorted(set(first.shapes) - matched[0]),
        "only_b": sorted(set(second.shapes) - matched[1]),
    }
    table.attrs |= _finding(table, len(pairs))
    return table


def _row(
    name: str,
    other: str,
    before: Tensor,
    after: Tensor,
    reading: _Reading,
    top_k: int,
    max_rank: int,
) -> list[dict[str, Any]]:
    eps = max(torch.finfo(t.dtype).eps for t in (before, after))
    a, b = before.double(), after.double()
    change = b - a
    norm = float(change.norm())
    if not norm:
        return []
    layer, part = _place(name)
    row: dict[str, Any] = {
        "parameter": name,
        "layer": layer,
        "part": part,
        "relative": norm / max(float(a.norm()), torch.finfo(a.dtype).tiny),
        "norm": norm,
        "changed": float((a != b).double().mean()),
        "promoted": [],
        "suppressed": [],
    }
    matrix = change if change.ndim == 2 else change.reshape(-1, 1)
    left, sizes, right = leading(matrix, max_rank)
    noise = eps * float(b.square().mean().sqrt()) * sum(math.sqrt(n) for n in matrix.shape)
    rank = int((sizes > noise).sum())
    row |= {"rank": rank, "more": rank == len(sizes) < min(matrix.shape)}
    row["top_share"] = float(sizes[0] ** 2) / norm**2
    if change.ndim == 2 and rank:
        row |= reading.tokens(other, change, left[:, 0], right[:, 0], top_k)
    return [row]


class _Reading:
    """Which tokens a direction of the residual speaks of, from a checkpoint's own tensors."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        try:
            self._layout: Layout | None = find_layout(
                source.config.get_text_config(decoder=True).model_type
            )
        except UnsupportedModelError:
            self._layout = None
        self._head: Tensor | None = None

    def tokens(
        self, name: str, change: Tensor, left: Tensor, right: Tensor, top_k: int
    ) -> dict[str, list[str]]:
        """``promoted`` and ``suppressed`` of one parameter's change; empty if nothing is known."""
        layout = self._layout
        if layout is None:
            return {}
        if self._named(layout.embed) == name or self._named(layout.head) == name:
            moved = change.norm(dim=1).topk(min(top_k, len(change)))
            found = [i for i, size in zip(*map(Tensor.tolist, moved[::-1]), strict=True) if size]
            return {"promoted": [self._source.word(i) for i in found]}
        if not name.removesuffix(".weight").endswith(f".{layout.value}"):
            return {}
        head = self._readout(layout)
        if head is None or (direction := _side(left, right, head.shape[1])) is None:
            return {}
        logits = head @ direction
        logits = logits - logits.mean()
        logits = logits if logits.max() >= -logits.min() else -logits
        order = logits.argsort(descending=True)
        ends = {"promoted": order[:top_k], "suppressed": order.flip(0)[:top_k]}
        return {end: [self._source.word(i) for i in ids.tolist()] for end, ids in ends.items()}

    def _readout(self, layout: Layout) -> Tensor | None:
        """The head's rows times the final norm's scale, float64; made once."""
        if self._head is None:
            name = self._named(layout.head) or self._named(layout.embed)
            norm = self._named(layout.final_norm)
            if name is None:
                return None
            head = self._source.get(name).double()
            scale = 1.0 if norm is None else self._source.get(norm).double()
            self._head = head * scale if head.ndim == 2 else None
        return self._head

    def _named(self, path: str | None) -> str | None:
        """The parameter of a module, with or without the model's first prefix."""
        names = () if path is None else (f"{path}.weight", f"{path.partition('.')[2]}.weight")
        return next((n for n in names if n in self._source.shapes), None)


def _side(left: Tensor, right: Tensor, d_model: int) -> Tensor | None:
    """The singular vector that lives in the residual, however the matrix is stored."""
    return next((v for v in (left, right) if len(v) == d_model), None)


def _place(name: str) -> tuple[int | None, str]:
    """Layer, and name inside the block."""
    found = re.search(r"\.(\d+)\.", name)
    if found is None:
        return None, name.removesuffix(".weight")
    return int(found[1]), name[found.end() :].removesuffix(".weight")


def _finding(table: pd.DataFrame, compared: int) -> dict[str, Any]:
    if table.empty:
        said = f"all {compared} parameters are equal, to the bit"
        return {"finding": said, "likely_edits": 0}
    real = table[table["rank"] > 0]
    if real.empty:
        said = f"{len(table)} of {compared} parameters differ by rounding alone"
        return {"finding": said, "likely_edits": 0}
    layers = sorted(real["layer"].dropna().unique().tolist())
    many = "s" if len(layers) > 1 else ""
    where = f" (layer{many} {', '.join(map(str, layers))})" if layers else ""
    low = not real["more"].any() and real["layer"].notna().all() and real["part"].nunique() == 1
    most = int(real["rank"].max())
    said = f"{len(real)} of {compared} parameters differ{where}: {', '.join(real['part'].unique())}"
    said += f", at rank {most}" if low else f", at rank {most} or more"
    if low:
        said += ", as closed-form edits of so many keys leave it"
    return {"finding": said, "likely_edits": most if low else None}
