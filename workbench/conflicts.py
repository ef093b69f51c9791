"""Where edits get in each other's way: the same prompt, the same subject, keys that overlap.

An edit D was solved to turn the key k it wrote, and to leave other keys alone. How much of it
reaches a key k' of another edit is ``‖D k'‖ / ‖D k‖``, of the keys and changes that both carry; no
model is needed. Both directions are looked at and the larger counts. Edits without keys
(fine-tuning) and memories are compared by their facts alone, except where a memory would replace
another or two codebooks call different entries by one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.deltas import Adapter, Delta
from workbench.edits import Edit

__all__ = ["COLUMNS", "OVERLAP", "find_conflicts"]

COLUMNS = (
    *("kind", "a", "b", "parameter", "overlap"),
    *("prompt_a", "target_a", "prompt_b", "target_b"),
)
#: Share of a change that reaches another edit's key, from which on it is a conflict.
OVERLAP = 0.5
#: Trained memories: a newer one takes the place of the older, on which it was trained.
REPLACING = ("deferral", "soft_memory")
Row = dict[str, Any]


def find_conflicts(
    edits: Sequence[Edit], *, origin: Sequence[int] | None = None, overlap: float = OVERLAP
) -> pd.DataFrame:
    """Pairs of edits that may undo, double or disturb each other.

    Args:
        edits: in the order in which they would stand on a stack.
        origin: a number for each; pairs with the same number are not compared. None compares all.
        overlap: least share of one change that reaches the other's key.

    Returns:
        One row a finding, the worst kinds first: ``kind`` (``other target``: the same prompt shall
        end in two ways; ``replaces``: a trained memory takes another's place; ``entries``: two
        codebooks name different entries alike; ``keys``: overlapping keys; ``same fact``; ``same
        subject``), ``a, b`` (entries), ``parameter, overlap`` (of keys, else empty and NaN),
        ``prompt_a, target_a, prompt_b, target_b`` (of the facts concerned).
    """
    origin = list(range(len(edits))) if origin is None else list(origin)
    apart = [p for p in combinations(range(len(edits)), 2) if origin[p[0]] != origin[p[1]]]
    rows = [*_facts(edits, set(apart)), *_keys(edits, set(apart), overlap)]
    for a, b in apart:
        rows += _memories(edits, a, b)
    order = {kind: i for i, kind in enumerate(
        ("other target", "replaces", "entries", "keys", "same fact", "same subject")
    )}  # fmt: skip
    rows.sort(key=lambda r: (order[r["kind"]], -r["overlap"] if r["kind"] == "keys" else 0))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    twice = table.duplicated(["a", "b", "parameter"]) & (table["kind"] == "keys")
    return table[~twice].reset_index(drop=True)


def _row(kind: str, edits: Sequence[Edit], a: int, b: int, **more: Any) -> Row:
    row: Row = {"kind": kind, "a": a, "b": b, "parameter": "", "overlap": float("nan")}
    i, k = more.pop("requests", (0, 0))
    for side, edit, n in (("a", edits[a], i), ("b", edits[b], k)):
        request = edit.requests[n] if n < len(edit.requests) else None
        row[f"prompt_{side}"] = request.text if request else ""
        row[f"target_{side}"] = request.target_new if request else ""
    return row | more


# ---------------------------------------------------------------------- the same prompt or subject


def _facts(edits: Sequence[Edit], apart: set[tuple[int, int]]) -> Iterator[Row]:
    texts, subjects = (_places(edits, key) for key in (_text, _subject))
    same = {p for places in texts.values() for p in combinations(places, 2)}
    for (a, i), (b, k) in sorted(same):
        if (a, b) in apart:
            equal = _alike(edits[a].requests[i].target_new, edits[b].requests[k].target_new)
            yield _row("same fact" if equal else "other target", edits, a, b, requests=(i, k))
    for places in subjects.values():
        for (a, i), (b, k) in combinations(places, 2):
            if (a, b) in apart and ((a, i), (b, k)) not in same:
                yield _row("same subject", edits, a, b, requests=(i, k))


def _places(
    edits: Sequence[Edit], key: Callable[[Any], str | None]
) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for a, edit in enumerate(edits):
        for i, request in enumerate(edit.requests):
            if name := key(request):
                found.setdefault(name, []).append((a, i))
    return found


def _text(request: Any) -> str:
    return " ".join(request.text.casefold().split())


def _subject(request: Any) -> str | None:
    return None if request.subject is None else " ".join(request.subject.casefold().split())


def _alike(a: str, b: str) -> bool:
    return a.strip().casefold() == b.strip().casefold()


# ---------------------------------------------------------------------- overlapping keys


def _keys(edits: Sequence[Edit], apart: set[tuple[int, int]], least: float) -> Iterator[Row]:
    if not apart:
        return
    for parameter in dict.fromkeys(name for e in edits for name in e.keys):
        held = [i for i, e in enumerate(edits) if parameter in e.keys]
        keys = torch.cat([edits[i].keys[parameter].float() for i in held], dim=1)
        owner = [(i, k) for i in held for k in range(edits[i].keys[parameter].shape[1])]
        for a in held:
            reach = _reach(edits[a], parameter, keys)
            if reach is None:
                continue
            own = [n for n, (i, _) in enumerate(owner) if i == a]
            share = reach / reach[own].median().clamp_min(torch.finfo(reach.dtype).tiny)
            yield from _overlaps(edits, parameter, a, owner, own, keys, share, apart, least)


def _overlaps(
    edits: Sequence[Edit],
    parameter: str,
    a: int,
    owner: Sequence[tuple[int, int]],
    own: Sequence[int],
    keys: Tensor,
    share: Tensor,
    apart: set[tuple[int, int]],
    least: float,
) -> Iterator[Row]:
    """The key of every other edit that ``a`` reaches most."""
    best: dict[int, int] = {}
    for n, (b, _) in enumerate(owner):
        pair = (min(a, b), max(a, b))
        if pair in apart and share[n] >= least and (b not in best or share[n] > share[best[b]]):
            best[b] = n
    for b, n in best.items():
        like = torch.nn.functional.cosine_similarity(keys[:, own], keys[:, n : n + 1], dim=0)
        mine, theirs = owner[own[int(like.argmax())]][1], owner[n][1]
        first, second = ((a, mine), (b, theirs)) if a < b else ((b, theirs), (a, mine))
        yield _row(
            "keys", edits, first[0], second[0], requests=(first[1], second[1]),
            parameter=parameter, overlap=float(share[n]),
        )  # fmt: skip


def _reach(edit: Edit, parameter: str, keys: Tensor) -> Tensor | None:
    """``‖D k‖`` of every column, None if the edit changes this matrix by no matrix."""
    total = None
    for piece in edit.pieces:
        if piece.parameter != parameter:
            continue
        part = _times(piece, keys)
        total = part if total is None or part is None else total + part
    return None if total is None else total.norm(dim=0)


def _times(piece: Delta | Adapter, keys: Tensor) -> Tensor | None:
    low = piece.form == "low_rank" if isinstance(piece, Delta) else piece.kind == "hook_layer"
    if low:
        return piece.tensors["left"].float() @ (piece.tensors["right"].float().T @ keys)
    if isinstance(piece, Delta) and len(piece.shape) == 2:
        return piece.materialize(dtype=torch.float32) @ keys
    return None


# ---------------------------------------------------------------------- memories


def _memories(edits: Sequence[Edit], a: int, b: int) -> Iterator[Row]:
    for x in edits[a].pieces:
        for y in edits[b].pieces:
            both = isinstance(x, Adapter) and isinstance(y, Adapter)
            if not both or (x.parameter, x.kind) != (y.parameter, y.kind):  # type: ignore[union-attr]
                continue
            if y.kind in REPLACING and edits[a].id not in edits[b].parents:  # type: ignore[union-attr]
                yield _row("replaces", edits, a, b, parameter=y.parameter)
            elif y.kind == "codebook" and _renamed(x, y):  # type: ignore[arg-type, union-attr]
                yield _row("entries", edits, a, b, parameter=y.parameter)


def _renamed(x: Adapter, y: Adapter) -> bool:
    """Whether two codebooks give one name to entries that answer different things."""
    names = [dict(zip(p.tensors["ids"].tolist(), p.options["labels"], strict=True)) for p in (x, y)]
    keys = [dict(zip(p.tensors["ids"].tolist(), p.tensors["keys"], strict=True)) for p in (x, y)]
    return any(
        names[0][i] != names[1][i] or not torch.allclose(keys[0][i], keys[1][i], atol=1e-3)
        for i in set(names[0]) & set(names[1])
    )
