"""What an edit moved: residuals layer by layer, the neurons that carry it, the tokens it pushes.

"Before" and "after" are the view without and with the edit (:mod:`workbench.inspectors.sides`): one
that is not on the stack is put on top for the comparison, one that is there is compared with the
stack below it. The view is as it was afterwards. Weight edits and hook layers (CoachHook) are read
alike: both change the value by ``D k``, the latter only where the gate is open.

Where a question has no answer for an edit (a change of other parameters than the edited
matrices, a model whose value does not reach the residual unscaled) the table is empty, with all its
columns, and ``attrs["why"]`` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from workbench.adapters import Gates
from workbench.edits import Adapter, Delta, Edit
from workbench.errors import OptionError
from workbench.facts import EditCase, EditRequest
from workbench.inspectors.lens import log_probs, prompt_ids, residuals
from workbench.inspectors.sides import Sides, sides_of
from workbench.layouts import DECODER
from workbench.model import ModelView
from workbench.replay import run_rows
from workbench.tokens import Encoded, Item, context_length, encode, encode_request
from workbench.trace import Site, trace

__all__ = ["moved_neurons", "promoted_tokens", "residual_shift"]

SHIFT = ("layer", "place", "position", "token", "relative", "cosine", "kl", "edited")
NEURONS = ("layer", "rank", "neuron", "activation", "contribution", "share", "along", "open")
PROMOTED = (
    *("layer", "request", "prompt", "direction", "rank", "token", "token_id", "change", "open"),
)


@torch.no_grad()
def residual_shift(
    view: ModelView, edit: Edit | int, prompt: str | EditRequest | EditCase
) -> pd.DataFrame:
    """How far an edit moves the residual of a prompt, a strip over the layers.

    Args:
        view: the model.
        edit: an edit, on the stack or not, or an entry's number.
        prompt: a request or case, or literal text. In a text the first subject of the edit's
            requests that occurs in it counts as the subject.

    Returns:
        One row a layer (-1 is the embedding) and place: ``layer, place`` (``last token``, and
        ``subject``, its last token, where there is one), ``position, token, relative``
        (‖after − before‖ / ‖before‖), ``cosine`` (of after and before), ``kl`` (divergence in nats
        of the logit lens after from that before; NaN without a proved readout), ``edited`` (the
        edit changes this block). ``attrs``: ``prompt, edit, editor, model, edits``.

    Raises:
        OptionError: if it is not an edit, or the model is no decoder.
        RequestError: for an empty or too long prompt.

    Example:
        >>> wb.plot_residual_shift(wb.residual_shift(view, edit, edit.requests[0]))
    """
    sides, edit = _compared(view, edit)
    row = _encoded(view, edit, prompt)
    ids = row.prompt_ids
    places = {"last token": len(ids) - 1}
    if row.first is not None and row.pivot != len(ids) - 1:
        places["subject"] = row.pivot
    chosen = list(places.values())
    with sides.before():
        before = [state[chosen] for state in residuals(view, ids)]
    with sides.after():
        after = [state[chosen] for state in residuals(view, ids)]
    touched = _touched(view, edit)
    rows: list[dict[str, Any]] = []
    for layer, (old, new) in enumerate(zip(before, after, strict=True), start=-1):
        measured = _distances(view, old, new)
        for i, (place, position) in enumerate(places.items()):
            rows.append(
                {
                    "layer": layer,
                    "place": place,
                    "position": position,
                    "token": view.tokenizer.decode([ids[position]]),
                    **{name: float(values[i]) for name, values in measured.items()},
                    "edited": layer in touched,
                }
            )
    return _table(view, edit, rows, SHIFT, prompt=view.tokenizer.decode(list(ids)))


@torch.no_grad()
def moved_neurons(
    view: ModelView,
    edit: Edit | int,
    prompt: str | EditRequest | EditCase,
    *,
    layer: int | None = None,
    top_k: int = 10,
) -> pd.DataFrame:
    """The neurons that carry an edit at the subject's last token.

    A neuron is an entry ``k_j`` of the key; the edit's output is ``Σ_j k_j D_j``.

    Args:
        view, edit, prompt: as in :func:`residual_shift`; without a subject the prompt's last token
            is read.
        layer: one edited layer; None is all.
        top_k: neurons a layer.

    Returns:
        One row an edited layer and neuron, largest contribution first: ``layer, rank, neuron,
        activation`` (``k_j``, with the edit in place), ``contribution`` (``‖k_j D_j‖``), ``share``
        (over all neurons' contributions), ``along`` (share of the output that points its way; these
        sum to 1 over all neurons), ``open`` (False where a hook layer's gate is shut, so that
        nothing of this takes effect). ``attrs``: ``prompt, token, output`` (layer → ‖D k‖),
        ``edit, editor, model, edits``, and ``why`` for an empty table.

    Raises:
        OptionError: as :func:`residual_shift`; for ``top_k < 1`` or a layer that is not edited.

    Example:
        >>> wb.moved_neurons(view, edit, edit.requests[0], top_k=5)
    """
    if top_k < 1:
        raise OptionError(f"top_k={top_k}: it must be at least 1.")
    sides, edit = _compared(view, edit)
    row = _encoded(view, edit, prompt)
    changes = _changes(view, edit)
    if layer is not None and changes and layer not in changes:
        raise OptionError(f"layer={layer}: the edit changes layers {sorted(changes)}.")
    layers = sorted(changes) if layer is None or not changes else [layer]
    text = view.tokenizer.decode(list(row.prompt_ids))
    token = view.tokenizer.decode([row.ids[row.pivot]])
    if not changes:
        return _table(view, edit, [], NEURONS, prompt=text, token=token, why=_NO_MATRIX)
    with sides.after():
        keys, _, gates = _at_pivots(view, [row], layers)
    rows, output = [], {}
    for x in layers:
        key = keys[x][0].cpu().double()
        parts = changes[x]() * key  # [d_model, d_mlp]
        total, norms = parts.sum(1), parts.norm(dim=0)
        along = (total @ parts) / total.square().sum().clamp_min(1e-300)
        output[x] = float(total.norm())
        whole = norms.sum().clamp_min(1e-300)
        for rank, j in enumerate(norms.argsort(descending=True, stable=True)[:top_k].tolist(), 1):
            rows.append(
                {
                    "layer": x,
                    "rank": rank,
                    "neuron": j,
                    "activation": float(key[j]),
                    "contribution": float(norms[j]),
                    "share": float(norms[j] / whole),
                    "along": float(along[j]),
                    "open": bool(gates[x][0]),
                }
            )
    return _table(view, edit, rows, NEURONS, prompt=text, token=token, output=output)


@torch.no_grad()
def promoted_tokens(
    view: ModelView, edit: Edit | int, *, top_k: int = 8, limit: int = 16
) -> pd.DataFrame:
    """Tokens that an edit's change of the value pushes up and down, read through the readout.

    At every edited layer the residual of the subject's last token is read with and without that
    layer's own change ``D k``; later layers do the rest, so this is what the edit writes, not what
    the model says.

    Args:
        view, edit: as in :func:`residual_shift`.
        top_k: tokens each way.
        limit: at most so many of the edit's requests, the first.

    Returns:
        One row an edited layer, request and token: ``layer, request`` (its number), ``prompt,
        direction`` (``promoted``, ``suppressed``), ``rank`` (from 1), ``token, token_id, change``
        (of the logit, against the vocabulary's mean), ``open`` (False: a hook layer's gate is shut
        on this prompt, and the change is what an open one would bring). ``attrs`` as in
        :func:`moved_neurons`.

    Raises:
        OptionError: if it is not an edit, or for ``top_k < 1`` or ``limit < 1``.

    Example:
        >>> wb.plot_promoted(wb.promoted_tokens(view, edit))
    """
    for name, value in (("top_k", top_k), ("limit", limit)):
        if value < 1:
            raise OptionError(f"{name}={value}: it must be at least 1.")
    sides, edit = _compared(view, edit)
    changes, why = _changes(view, edit), _why_not_read(view)
    if not changes or why:
        return _table(view, edit, [], PROMOTED, why=why or _NO_MATRIX)
    requests = edit.requests[:limit]
    rows = [_request_row(view, r) for r in requests]
    layers = sorted(changes)
    with sides.after():
        keys, states, gates = _at_pivots(view, rows, layers)
    found: list[dict[str, Any]] = []
    for x in layers:
        written = keys[x].cpu().double() @ changes[x]().T
        written = written.to(states[x])
        is_open = gates[x].to(states[x].device)[:, None]
        without = torch.where(is_open, states[x] - written, states[x])
        change = log_probs(view, without + written) - log_probs(view, without)
        change = change - change.mean(-1, keepdim=True)
        for i, request in enumerate(requests):
            about = {"layer": x, "request": i, "prompt": request.text, "open": bool(gates[x][i])}
            found += [about | r for r in _ends(view, change[i], top_k)]
    return _table(view, edit, found, PROMOTED)


# ------------------------------------------------------------------ the edit

_NO_MATRIX = "the edit changes none of the edited matrices (down projections), so there is no D k"


def _changes(view: ModelView, edit: Edit) -> dict[int, Callable[[], Tensor]]:
    """Layer → ``D [d_model, d_mlp]`` of the edited matrix, built when it is called."""
    layer_of = {view.weight_name(x): x for x in range(view.n_layers)}
    pieces: dict[int, list[Delta | Adapter]] = {}
    for piece in edit.pieces:
        if piece.parameter in layer_of:
            pieces.setdefault(layer_of[piece.parameter], []).append(piece)

    def build(parts: Sequence[Delta | Adapter]) -> Tensor:
        return torch.stack([_matrix(p) for p in parts]).sum(0)

    return {x: partial(build, parts) for x, parts in pieces.items()}


def _matrix(piece: Delta | Adapter) -> Float[Tensor, "d_model d_mlp"]:
    if isinstance(piece, Delta):
        return piece.materialize(dtype=torch.float64)
    return piece.tensors["left"].double() @ piece.tensors["right"].double().T


def _touched(view: ModelView, edit: Edit) -> set[int]:
    """Blocks in which the edit changes any parameter."""
    prefixes = {x: f"{view.layout.block(x)}." for x in range(view.n_layers)}
    return {x for x, start in prefixes.items() if any(p.startswith(start) for p in edit.parameters)}


def _at_pivots(
    view: ModelView, rows: Sequence[Encoded], layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Keys, residuals and whether the gate is open, ``[n, ...]`` by layer, at the pivots."""
    seen_gates: dict[int, Gates] = {}
    sites = [Site(x, part) for x in layers for part in ("key", "residual")]
    with view.reading(gates=seen_gates), trace(view, sites) as seen:
        run_rows(view, [r.prompt_ids for r in rows])
    n, last = torch.arange(len(rows)), torch.tensor([r.pivot for r in rows])
    everywhere = torch.ones(len(rows), dtype=torch.bool)
    gates = {
        x: seen_gates[x].open[n, last].cpu() if x in seen_gates else everywhere for x in layers
    }
    keys = {x: seen[Site(x, "key")][n, last] for x in layers}
    return keys, {x: seen[Site(x, "residual")][n, last] for x in layers}, gates


# ------------------------------------------------------------------ pieces


def _distances(view: ModelView, old: Tensor, new: Tensor) -> dict[str, Tensor]:
    wide = torch.promote_types(old.dtype, torch.float32)
    a, b = old.to(wide), new.to(wide)
    kl = torch.full((len(a),), float("nan"))
    if view.capabilities.readout:
        p, q = log_probs(view, new), log_probs(view, old)
        kl = (p.exp() * (p - q)).sum(-1)
    relative = (b - a).norm(dim=-1) / a.norm(dim=-1)
    same = (a == b).all(-1)
    cosine = torch.where(same, 1.0, cosine_similarity(a, b, dim=-1))
    return {"relative": relative, "cosine": cosine, "kl": kl}


def _ends(view: ModelView, change: Float[Tensor, " d_vocab"], top_k: int) -> list[dict[str, Any]]:
    order = change.argsort(descending=True, stable=True)
    ends = {"promoted": order[:top_k], "suppressed": order.flip(0)[:top_k]}
    return [
        {
            "direction": direction,
            "rank": rank,
            "token": view.tokenizer.decode([token]),
            "token_id": token,
            "change": float(change[token]),
        }
        for direction, tokens in ends.items()
        for rank, token in enumerate(tokens.tolist(), 1)
    ]


def _encoded(view: ModelView, edit: Edit, prompt: str | EditRequest | EditCase) -> Encoded:
    if isinstance(prompt, EditCase):
        prompt = prompt.request
    if isinstance(prompt, EditRequest):
        return _request_row(view, prompt)
    prompt_ids(view, prompt)  # refuses what is no text
    found = next((r.subject for r in edit.requests if r.subject and r.subject in prompt), None)
    start = prompt.index(found) if found else 0
    span = (start, start + len(found)) if found else None
    return encode(view.tokenizer, [Item(prompt, subject=span)])[0]


def _request_row(view: ModelView, request: EditRequest) -> Encoded:
    limit = context_length(view.model.config)
    return encode_request(view.tokenizer, request, with_target=False, max_length=limit)[0]


def _compared(view: ModelView, edit: Edit | int) -> tuple[Sides, Edit]:
    sides = sides_of(view, edit)
    if len(sides.edits) != 1:
        raise OptionError(f"expected one edit, not {len(sides.edits)}: look at them one by one.")
    if view.kind != DECODER:
        raise OptionError(f"{view.name} is an {view.kind}; what moved is read from decoders only.")
    return sides, sides.edits[0]


def _why_not_read(view: ModelView) -> str:
    for name in ("additive", "readout"):
        if not getattr(view.capabilities, name):
            return f"{view.name} is not {name}: {view.capabilities.reasons[name]}"
    return ""


def _table(
    view: ModelView, edit: Edit, rows: list[dict[str, Any]], columns: Sequence[str], **about: Any
) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    table.attrs = {
        "edit": edit.id,
        "editor": edit.editor,
        "model": view.name,
        "edits": len(view.stack),
        **about,
    }
    return table
