"""The logit lens: what the model would say if it stopped after a layer.

Every residual goes through the model's own final norm and head (nostalgebraist, "interpreting GPT:
the logit lens", 2020). Layer -1 is the input of the first block, that is the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.capabilities import readout
from workbench.errors import OptionError, RequestError, did_you_mean
from workbench.inspectors.tracing import require
from workbench.model import ModelView
from workbench.replay import run_rows
from workbench.tokens import Item, context_length, encode
from workbench.trace import Site, trace

__all__ = ["lens_difference", "logit_lens", "residuals"]

POSITIONS = ("last", "all")
COLUMNS = ("layer", "position", "prompt_token", "token_id", "token", "tracked")


@torch.no_grad()
def logit_lens(
    view: ModelView,
    prompt: str,
    *,
    track: str | Sequence[str] = (),
    top_k: int = 5,
    positions: str = "last",
) -> pd.DataFrame:
    """The readout's likeliest tokens at every layer, from one forward pass.

    Args:
        view: the model as it is, edits and hook layers included.
        prompt: literal text.
        track: answers; the first token of each, as it follows the prompt, is listed at every layer
            whatever its rank.
        top_k: tokens a layer and position.
        positions: ``last``, the prompt's last token, or ``all``.

    Returns:
        One row a layer (-1 is the embedding), position and token, likeliest first: ``layer,
        position, prompt_token`` (text of that position), ``rank`` (from 1), ``token, token_id,
        prob, tracked``. ``attrs``: ``prompt, model, edits, tracked`` (answer → token).

    Raises:
        OptionError: for ``top_k < 1`` or unknown positions.
        RequestError: for an empty or too long prompt, or an answer without a token.
        UnsupportedEditorError: if the logits do not follow from the last residual.

    Example:
        >>> wb.logit_lens(view, "The capital of France is", track="Paris")
    """
    if top_k < 1:
        raise OptionError(f"top_k={top_k}: it must be at least 1.")
    if positions not in POSITIONS:
        raise OptionError(
            f"positions={positions!r} is unknown." + did_you_mean(positions, POSITIONS)
        )
    require(view)
    ids = prompt_ids(view, prompt)
    answers = _first_tokens(view, prompt, track)
    with view.writing("logit lens"):
        states = residuals(view, ids)
        begin = len(ids) - 1 if positions == "last" else 0
        tables = [
            _layer(view, layer, state[begin:], ids[begin:], begin, top_k, set(answers.values()))
            for layer, state in enumerate(states, start=-1)
        ]
    table = pd.concat(tables, ignore_index=True)
    decode = view.tokenizer.decode
    table.attrs = {
        "prompt": prompt,
        "model": view.name,
        "edits": len(view.stack),
        "tracked": {answer: decode([t]) for answer, t in answers.items()},
    }
    return table


def lens_difference(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """What changed inside between two states of a model.

    Args:
        before, after: of :func:`logit_lens`, for the same prompt.

    Returns:
        One row a layer, position and token that either lists: ``layer, position, prompt_token,
        token, token_id, tracked, prob_before, prob_after, change`` (their difference),
        ``rank_before, rank_after``; NaN where a table does not list the token. Sorted by layer and
        position, largest change first.

    Raises:
        OptionError: if a column is missing, or the tables are not about the same prompt.

    Example:
        >>> before = wb.logit_lens(view, prompt, track=["Paris", "Rome"])
        >>> with view.applied(edit):
        ...     after = wb.logit_lens(view, prompt, track=["Paris", "Rome"])
        >>> wb.lens_difference(before, after).query("tracked")
    """
    for name, table in (("before", before), ("after", after)):
        missing = [c for c in (*COLUMNS, "prob", "rank") if c not in table.columns]
        if missing:
            raise OptionError(f"lens_difference: {name} has no column {missing[0]!r}.")
    spots = [set(zip(t.layer, t.position, t.prompt_token, strict=True)) for t in (before, after)]
    if spots[0] != spots[1]:
        raise OptionError(
            "lens_difference: the tables differ in layers or tokens of the prompt; read the same "
            "prompt at the same positions before and after."
        )
    keys = ["layer", "position", "prompt_token", "token_id", "token"]
    both = before.merge(after, on=keys, how="outer", suffixes=("_before", "_after"))
    both["tracked"] = both.pop("tracked_before").eq(True) | both.pop("tracked_after").eq(True)
    both["change"] = both["prob_after"] - both["prob_before"]
    both["_size"] = -both["change"].abs()
    both = both.sort_values(["layer", "position", "_size"], ignore_index=True, kind="stable")
    names = ("prob_before", "prob_after", "change", "rank_before", "rank_after")
    return both[[*COLUMNS, *names]]


@torch.no_grad()
def residuals(view: ModelView, ids: Sequence[int]) -> list[Float[Tensor, "pos d_model"]]:
    """The input of the first block, then the output of every block, for one text."""
    sites = [Site(0, "input"), *(Site(x, "residual") for x in range(view.n_layers))]
    with trace(view, sites) as seen:
        run_rows(view, [ids])
    return [seen[site][0] for site in sites]


def prompt_ids(view: ModelView, prompt: str) -> tuple[int, ...]:
    """Tokens of a text.

    Raises:
        RequestError: if it is empty or longer than the context.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError(f"prompt={prompt!r} must be a non-empty text.")
    limit = context_length(view.model.config)
    return encode(view.tokenizer, [Item(prompt)], max_length=limit)[0].ids


def log_probs(view: ModelView, state: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """What the readout says of residuals, float32 or wider."""
    logits = readout(view.model, view.layout, state)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _first_tokens(view: ModelView, prompt: str, track: str | Sequence[str]) -> dict[str, int]:
    answers = [track] if isinstance(track, str) else list(dict.fromkeys(track))
    empty = [a for a in answers if not isinstance(a, str) or not a.strip()]
    if empty:
        raise RequestError(f"track={track!r}: {empty[0]!r} must be a non-empty text.")
    rows = encode(view.tokenizer, [Item(prompt, answer) for answer in answers])
    return {answer: row.target_ids[0] for answer, row in zip(answers, rows, strict=True)}


def _layer(
    view: ModelView,
    layer: int,
    state: Tensor,
    ids: Sequence[int],
    begin: int,
    top_k: int,
    tracked: set[int],
) -> pd.DataFrame:
    probs = log_probs(view, state).exp()
    order = probs.topk(min(top_k, probs.shape[-1])).indices.tolist()
    rows: list[dict[str, Any]] = []
    for i, listed in enumerate(order):
        for token in dict.fromkeys([*listed, *sorted(tracked)]):
            prob = probs[i, token]
            rows.append(
                {
                    "layer": layer,
                    "position": begin + i,
                    "prompt_token": view.tokenizer.decode([ids[i]]),
                    "rank": listed.index(token) + 1
                    if token in listed
                    else int((probs[i] > prob).sum()) + 1,
                    "token": view.tokenizer.decode([token]),
                    "token_id": token,
                    "prob": float(prob),
                    "tracked": token in tracked,
                }
            )
    return pd.DataFrame(rows)
