"""What hook layers do, token by token (CoachHook; spec locate-then-edit 2.7 and 7), and whether
what stands beside the weights still answers its own prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from workbench.adapters import Gates, opened
from workbench.editors.memory.examples import Place, queries
from workbench.edits import AdapterEdit
from workbench.errors import OptionError
from workbench.memories import Codebook
from workbench.model import ModelView
from workbench.replay import run_rows
from workbench.tokens import Item, context_length, encode, encode_request

__all__ = ["alpha_history", "check_entries", "hook_gates", "rethreshold", "with_alpha"]


@torch.no_grad()
def hook_gates(view: ModelView, prompts: str | Sequence[str]) -> pd.DataFrame:
    """Scores and gates of every token of some prompts, at every hook layer.

    Args:
        view: a model with hook layers on its stack.
        prompts: literal texts; each is a whole prompt.

    Returns:
        One row a prompt, layer and token: ``prompt`` (its number), ``layer, pos, token, nu`` (size
        of the difference, residual units), ``z, alpha, open, bound`` ((T − 1)/√T, which no score
        of T tokens can exceed).

    Raises:
        OptionError: if there is no hook layer, or no prompt.

    Example:
        >>> wb.hook_gates(view, "The mother tongue of Danielle Darrieux is").query("open")
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not view.adapters:
        raise OptionError(
            "no hook layer is on the stack: view.push(wb.CoachHook.preset(view).edit(...))."
        )
    if not texts:
        raise OptionError("prompts is empty: give at least one text.")
    limit = context_length(view.model.config)
    ids = [e.ids for e in encode(view.tokenizer, [Item(t) for t in texts], max_length=limit)]
    seen = _gates(view, ids)
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(ids):
        n = len(row)
        tokens = [view.tokenizer.decode([t]) for t in row]
        for layer, gates in sorted(seen.items()):
            for pos in range(n):
                rows.append(
                    {
                        "prompt": i,
                        "layer": layer,
                        "pos": pos,
                        "token": tokens[pos],
                        "nu": float(gates.nu[i, pos]),
                        "z": float(gates.z[i, pos]),
                        "alpha": gates.alpha,
                        "open": bool(gates.open[i, pos]),
                        "bound": (n - 1) / math.sqrt(n),
                    }
                )
    return pd.DataFrame(rows)


def with_alpha(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """What the gates would do with another threshold; the model is not asked again.

    Args:
        table: as from :func:`hook_gates`.
        alpha: of every layer; ``-inf`` opens every gate.

    Returns:
        The same table with this ``alpha``, and ``open`` where ``z`` reaches it.

    Example:
        >>> wb.with_alpha(wb.hook_gates(view, prompt), 1.5)["open"].sum()  # doctest: +SKIP
    """
    z = torch.tensor(table["z"].to_numpy(dtype="float64", copy=True))
    return table.assign(alpha=float(alpha), open=opened(z, float(alpha)).numpy())


def rethreshold(edit: AdapterEdit, alpha: float) -> AdapterEdit:
    """The same hook layers behind another threshold, as an edit of its own.

    Args:
        edit: of CoachHook.
        alpha: of every layer; ``-inf`` opens every gate (hook layers without hooks: a plain change
            of the weights), ``inf`` shuts them all.

    Returns:
        A new edit; ``edit`` is as before.

    Raises:
        OptionError: if the edit has no hook layers, or ``alpha`` is NaN.

    Example:
        >>> with view.applied(wb.rethreshold(edit, float("-inf"))): ...  # doctest: +SKIP
    """
    if math.isnan(alpha):
        raise OptionError("alpha is NaN: give a number, or -inf or inf.")
    kinds = {a.kind for a in getattr(edit, "adapters", ())}
    if kinds != {"hook_layer"}:
        raise OptionError(f"an edit of {edit.editor} has no hook layers: give one of CoachHook.")
    options = {"alpha": float(alpha)}
    moved = tuple(replace(a, options={**a.options, **options}) for a in edit.adapters)
    return replace(edit, adapters=moved)


def alpha_history(view: ModelView) -> pd.DataFrame:
    """Thresholds after each CoachHook edit on the stack.

    Returns:
        One row an entry and layer: ``entry, layer, alpha_before, alpha, weakest`` (the score of
        the batch that is lowest), ``cannot_open`` (prompts whose score is undefined).

    Raises:
        OptionError: if no CoachHook edit is on the stack.

    Example:
        >>> wb.alpha_history(view).pivot(index="entry", columns="layer", values="alpha")
    """
    rows = [
        {"entry": i, **row}
        for i, edit in enumerate(view.stack)
        if isinstance(edit, AdapterEdit)
        for row in edit.report.get("alpha", [])
    ]
    if not rows:
        raise OptionError(
            "no CoachHook edit is on the stack: view.push(wb.CoachHook.preset(view).edit(...))."
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def check_entries(view: ModelView) -> pd.DataFrame:
    """Whether what stands beside the weights still answers the prompts it was made for.

    Returns:
        One row an entry, request and layer: ``entry, editor, request, prompt, layer, z, alpha``
        (score and threshold of a hook layer at the subject's last token), ``distance, radius``
        (of a codebook's nearest key), ``open`` (whether the gate opens, or the key answers).

    Example:
        >>> view.check().query("not open")
    """
    rows: list[dict[str, Any]] = []
    for entry, edit in enumerate(view.stack):
        if isinstance(edit, AdapterEdit):
            found = [*_hook_rows(view, edit), *_codebook_rows(view, edit)]
            rows += [{"entry": entry, "editor": edit.editor, **row} for row in found]
    names = ["entry", "editor", "request", "prompt", "layer", "z", "alpha", "distance", "radius"]
    return pd.DataFrame(rows, columns=[*names, "open"])


def _hook_rows(view: ModelView, edit: AdapterEdit) -> Iterator[dict[str, Any]]:
    names = {a.parameter for a in edit.adapters if a.kind == "hook_layer"}
    layers = [x for x in view.adapters if view.weight_name(x) in names]
    if not layers:
        return
    encoded = [encode_request(view.tokenizer, r, with_target=False)[0] for r in edit.requests]
    seen = _gates(view, [e.ids for e in encoded])
    for i, (request, row) in enumerate(zip(edit.requests, encoded, strict=True)):
        for layer in sorted(layers):
            gates = seen[layer]
            yield {
                "request": i,
                "prompt": request.text,
                "layer": layer,
                "z": float(gates.z[i, row.pivot]),
                "alpha": gates.alpha,
                "open": bool(gates.open[i, row.pivot]),
            }


def _codebook_rows(view: ModelView, edit: AdapterEdit) -> Iterator[dict[str, Any]]:
    for adapter in edit.adapters:
        book = view.memory(adapter.parameter, Codebook)
        if adapter.kind != "codebook" or book is None:
            continue
        place = Place(view.layer_of(adapter.parameter), adapter.parameter)
        asked, _ = queries(view, [r.text for r in edit.requests], place, book.settings)
        distance, index = (t[:, 0] for t in book.search(asked))
        answers = book.fired(asked) >= 0
        for i, request in enumerate(edit.requests):
            yield {
                "request": i,
                "prompt": request.text,
                "layer": place.layer,
                "distance": float(distance[i]),
                "radius": float(book.radii[index[i]]),
                "open": bool(answers[i]),
            }


def _gates(view: ModelView, ids: Sequence[Sequence[int]]) -> dict[int, Gates]:
    seen: dict[int, Gates] = {}
    with view.writing("gates"), view.reading(gates=seen):
        run_rows(view, ids)
    return seen
