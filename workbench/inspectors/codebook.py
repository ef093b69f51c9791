"""What a codebook holds, which entry answers a prompt, and what every edit did to earlier ones.

Everything follows from the edits on the stack: their events are the history, the fold over them the
entries (GRACE, arXiv 2211.11031; spec memory-and-meta 1.11 and 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from workbench.editors.memory.examples import Place, queries
from workbench.edits import AdapterEdit
from workbench.errors import OptionError
from workbench.layouts import ENCODER_CLASSIFIER
from workbench.memories import Codebook, Label
from workbench.model import ModelView

__all__ = ["codebook_history", "codebook_map", "codebook_on", "codebook_table", "nearest_entries"]


def codebook_table(view: ModelView) -> pd.DataFrame:
    """The entries of the codebook on the stack.

    Returns:
        One row an entry, oldest first: ``entry, label`` (as text), ``radius, value_norm, made_by``
        (entry of the stack), ``prompt`` (it was made for), ``edits`` (facts it answers),
        ``below_noise`` (whether the radius is below the model's own noise).

    Raises:
        OptionError: if there is no codebook, or more than one.

    Example:
        >>> wb.codebook_table(view).sort_values("radius")
    """
    _, book = codebook_on(view)
    events = codebook_history(view)
    first = events.drop_duplicates("name").set_index("name")
    counts = events["name"].value_counts()
    rows = []
    for i, name in enumerate(book.ids.tolist()):
        made = first.loc[name]
        rows.append(
            {
                "entry": i,
                "label": label_text(view, book.labels[i]),
                "radius": float(book.radii[i]),
                "value_norm": float(book.value(i).norm()),
                "made_by": int(made["step"]) - 1,
                "prompt": made["prompt"],
                "edits": int(counts[name]),
                "below_noise": float(book.radii[i]) < book.settings.tolerance,
            }
        )
    return pd.DataFrame(rows)


def codebook_history(view: ModelView) -> pd.DataFrame:
    """Every event of the codebook on the stack, in order.

    Returns:
        One row a fact: ``step`` (edits on the stack after it, from 1), ``request, prompt, target,
        op`` (add, expand, refine, split, overwrite), ``name`` (of the entry that answers),
        ``distance`` (to the nearest key before), ``radius_before, radius, shrunk`` (balls that made
        room), ``loss_first, loss_last, size`` (entries afterwards), ``edits_per_key``.

    Raises:
        OptionError: if there is no codebook, or more than one.

    Example:
        >>> wb.codebook_history(view).op.value_counts()
    """
    place, _ = codebook_on(view)
    rows: list[dict[str, Any]] = []
    known: set[int] = set()
    for step, edit in enumerate(view.stack, start=1):
        if not _writes(edit, place):
            continue
        for event in edit.report.get("events", []):
            request = edit.requests[event["request"]]
            known.add(event["entry"])
            rows.append(
                {
                    "step": step,
                    "request": event["request"],
                    "prompt": request.text,
                    "target": request.target_new,
                    "op": event["op"],
                    "name": event["entry"],
                    "distance": event["distance"],
                    "radius_before": event["radius_before"],
                    "radius": event["radius"],
                    "shrunk": len(event["shrunk"]),
                    "loss_first": event["loss_first"],
                    "loss_last": event["loss_last"],
                    "size": len(known),
                    "edits_per_key": (len(rows) + 1) / len(known),
                }
            )
    return pd.DataFrame(rows)


def nearest_entries(view: ModelView, prompts: str | Sequence[str]) -> pd.DataFrame:
    """Which entry answers each prompt, and how far away it is.

    Args:
        view: a model with a codebook on its stack.
        prompts: whole prompts.

    Returns:
        One row a prompt: ``prompt, entry, label, made_for`` (the entry's own prompt), ``distance,
        radius, margin`` (distance over radius; above 1 the model answers itself), ``fires,
        second, second_distance`` (the next entry; NaN without one), ``covered`` (entries whose
        ball holds the prompt, though only the nearest is asked).

    Raises:
        OptionError: if there is no codebook, or no prompt.

    Example:
        >>> wb.nearest_entries(view, "The capital of France is")
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise OptionError("prompts is empty: give at least one text.")
    place, book = codebook_on(view)
    with view.writing("nearest entries"):
        asked, _ = queries(view, texts, place, book.settings)
    k = min(2, len(book))
    distance, index = book.search(asked, k=k)
    fires = book.fired(asked) >= 0
    covered = _covered(book, asked)
    own = codebook_history(view).drop_duplicates("name").set_index("name")["prompt"]
    rows = []
    for i, text in enumerate(texts):
        near = int(index[i, 0])
        radius = float(book.radii[near])
        rows.append(
            {
                "prompt": text,
                "entry": near,
                "label": label_text(view, book.labels[near]),
                "made_for": own[int(book.ids[near])],
                "distance": float(distance[i, 0]),
                "radius": radius,
                "margin": float(distance[i, 0]) / radius if radius > 0 else float("inf"),
                "fires": bool(fires[i]),
                "second": int(index[i, 1]) if k > 1 else -1,
                "second_distance": float(distance[i, 1]) if k > 1 else float("nan"),
                "covered": int(covered[i]),
            }
        )
    return pd.DataFrame(rows)


def codebook_map(view: ModelView, prompts: Sequence[str] = ()) -> pd.DataFrame:
    """Keys, and prompts, in the plane of their two main components.

    A projection keeps no distances: two points that lie apart here lie at least as far apart in
    truth, and a ball holds fewer points than its circle. ``margin`` is the true one.

    Args:
        view: a model with a codebook of at least two entries.
        prompts: whole prompts to show among the keys.

    Returns:
        One row a key and prompt: ``what`` (key or prompt), ``text, label, x, y, radius`` (of a
        key's ball; NaN for prompts), ``fires, margin`` (of prompts). ``attrs["explained"]``: share
        of the variance that the plane holds.

    Raises:
        OptionError: if there is no codebook, or fewer than two points.

    Example:
        >>> wb.plot_codebook_map(wb.codebook_map(view, prompts))
    """
    place, book = codebook_on(view)
    keys = book.keys.data[: len(book)].cpu()
    near, points = None, keys
    if prompts:
        near = nearest_entries(view, prompts)
        asked, _ = queries(view, list(prompts), place, book.settings)
        points = torch.cat([keys, asked.cpu()])
    if len(points) < 3:
        raise OptionError(
            f"a plane needs at least three points, here are {len(points)}: give prompts."
        )
    plane = PCA(n_components=2, svd_solver="full").fit(points.numpy())
    xy = plane.transform(points.numpy())
    own = codebook_table(view)
    table = pd.DataFrame(
        {
            "what": "key",
            "text": own["prompt"],
            "label": own["label"],
            "x": xy[: len(keys), 0],
            "y": xy[: len(keys), 1],
            "radius": own["radius"],
            "fires": False,
            "margin": float("nan"),
        }
    )
    if near is not None:
        more = pd.DataFrame(
            {
                "what": "prompt",
                "text": near["prompt"],
                "label": near["label"],
                "x": xy[len(keys) :, 0],
                "y": xy[len(keys) :, 1],
                "radius": float("nan"),
                "fires": near["fires"],
                "margin": near["margin"],
            }
        )
        table = pd.concat([table, more], ignore_index=True)
    table.attrs["explained"] = float(plane.explained_variance_ratio_.sum())
    return table


def codebook_on(view: ModelView) -> tuple[Place, Codebook]:
    """The one codebook on the stack, and where it stands.

    Raises:
        OptionError: if there is none, or more than one.
    """
    names = {
        a.parameter
        for edit in view.stack
        if isinstance(edit, AdapterEdit)
        for a in edit.adapters
        if a.kind == "codebook"
    }
    if len(names) != 1:
        what = "no codebook is" if not names else f"codebooks of {len(names)} modules are"
        raise OptionError(
            f"{what} on the stack: view.push(wb.GRACE.preset(view).edit(view, request)), on one "
            "layer."
        )
    name = names.pop()
    book = view.memory(name, Codebook)
    assert book is not None
    return Place(view.layer_of(name), name), book


def label_text(view: ModelView, label: Label) -> str:
    """What an entry answers, as text."""
    if view.kind == ENCODER_CLASSIFIER:
        return view.labels[int(label[0])] if len(label) == 1 else str(label)
    if any(x != int(x) or x < 0 for x in label):
        return str(label)  # the released labels are means
    return str(view.tokenizer.decode([int(x) for x in label], skip_special_tokens=True)).strip()


def _covered(book: Codebook, asked: Tensor) -> Tensor:
    """How many balls hold each query."""
    keys = book.keys.data[: len(book)]
    distance = torch.cdist(asked, keys, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance <= book.radii + book.settings.tolerance).sum(1)


def _writes(edit: Any, place: Place) -> bool:
    return isinstance(edit, AdapterEdit) and any(
        a.kind == "codebook" and a.parameter == place.parameter for a in edit.adapters
    )
