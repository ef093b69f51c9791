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
from workbench.weights import lineage

__all__ = ["COLUMNS", "OVERLAP", "find_conflicts"]

COLUMNS = (
    *("kind", "a", "b", "parameter", "overlap"),
    *("prompt_a", "target_a", "prompt_b", "target_b"),
)
#: Share of a change that reaches another edit's key, from which on it is a conflict.
OVERLAP = 0.5
#: Kinds of conflicts, the worst first.
KINDS = ("other target", "replaces", "entries", "keys", "same fact", "same subject")
#: Keys of more edits than these are not compared: the work grows with the square.
MANY = 2000
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
        ``prompt_a, target_a, prompt_b, target_b`` (of the facts concerned). ``attrs["keys"]``:
        whether keys were compared; they are not for more than :data:`MANY` edits.
    """
    groups = list(range(len(edits))) if origin is None else [int(n) for n in origin]
    few = len(edits) <= MANY
    rows = [*_facts(edits, groups), *_memories(edits, groups)]
    rows += _keys(edits, groups, overlap) if few else ()
    rows.sort(key=lambda r: (KINDS.index(r["kind"]), -r["overlap"] if r["kind"] == "keys" else 0))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    twice = table.duplicated(["a", "b", "parameter"]) & (table["kind"] == "keys")
    table = table[~twice].reset_index(drop=True)
    table.attrs["keys"] = few
    return table


def _row(kind: str, edits: Sequence[Edit], a: int, b: int, **more: Any) -> Row:
    row: Row = {"kind": kind, "a": a, "b": b, "parameter": "", "overlap": float("nan")}
    i, k = more.pop("requests", (0, 0))
    for side, edit, n in (("a", edits[a], i), ("b", edits[b], k)):
        request = edit.requests[n] if n < len(edit.requests) else None
        row[f"prompt_{side}"] = request.text if request else ""
        row[f"target_{side}"] = request.target_new if request else ""
    return row | more


# ---------------------------------------------------------------------- the same prompt or subject


def _facts(edits: Sequence[Edit], groups: Sequence[int]) -> Iterator[Row]:
    same = list(_shared(edits, groups, _text))
    for (a, i), (b, k) in same:
        equal = _alike(edits[a].requests[i].target_new, edits[b].requests[k].target_new)
        yield _row("same fact" if equal else "other target", edits, a, b, requests=(i, k))
    said = set(same)
    for (a, i), (b, k) in _shared(edits, groups, _subject):
        if ((a, i), (b, k)) not in said:
            yield _row("same subject", edits, a, b, requests=(i, k))


def _shared(
    edits: Sequence[Edit], groups: Sequence[int], key: Callable[[Any], str | None]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs (entry, request) of two groups that have a text in common."""
    for places in _places(edits, key).values():
        for one, other in combinations(places, 2):
            if groups[one[0]] != groups[other[0]]:
                yield one, other


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


def _keys(edits: Sequence[Edit], groups: Sequence[int], least: float) -> Iterator[Row]:
    for parameter in dict.fromkeys(name for e in edits for name in e.keys):
        held = [i for i, e in enumerate(edits) if parameter in e.keys]
        keys = torch.cat([edits[i].keys[parameter].float() for i in held], dim=1)
        owner = [(i, k) for i in held for k in range(edits[i].keys[parameter].shape[1])]
        entry = torch.tensor([i for i, _ in owner])
        group = torch.tensor([groups[i] for i, _ in owner])
        for a in held:
            reach = _reach(edits[a], parameter, keys)
            if reach is None:
                continue
            own = (entry == a).nonzero()[:, 0]
            share = reach / reach[own].median().clamp_min(torch.finfo(reach.dtype).tiny)
            far = ((group != groups[a]) & (share >= least)).nonzero()[:, 0]
            best: dict[int, int] = {}
            for n in far[share[far].argsort()].tolist():
                best[owner[n][0]] = n  # the one that is reached most comes last
            for b, n in best.items():
                like = torch.cosine_similarity(keys[:, own], keys[:, n : n + 1], dim=0)
                pair = sorted([(a, owner[int(own[like.argmax()])][1]), (b, owner[n][1])])
                yield _row(
                    "keys", edits, pair[0][0], pair[1][0], requests=(pair[0][1], pair[1][1]),
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


def _memories(edits: Sequence[Edit], groups: Sequence[int]) -> Iterator[Row]:
    held: dict[tuple[str, str], list[tuple[int, Adapter]]] = {}
    for i, edit in enumerate(edits):
        for piece in edit.pieces:
            if isinstance(piece, Adapter):
                held.setdefault((piece.parameter, piece.kind), []).append((i, piece))
    fits = {
        i: tuple(edits[i].parents) == lineage(edits[:i])  # computed on all those below
        for i in {i for pieces in held.values() for i, _ in pieces}
    }
    for (parameter, kind), pieces in held.items():
        for (a, x), (b, y) in combinations(pieces, 2):
            if groups[a] == groups[b] or fits[b] or edits[a].id in edits[b].parents:
                continue
            if kind in REPLACING:
                yield _row("replaces", edits, a, b, parameter=parameter)
            elif kind == "codebook" and _renamed(x, y):
                yield _row("entries", edits, a, b, parameter=parameter)


def _renamed(x: Adapter, y: Adapter) -> bool:
    """Whether two codebooks give one name to entries that answer different things."""
    names = [dict(zip(p.tensors["ids"].tolist(), p.options["labels"], strict=True)) for p in (x, y)]
    keys = [dict(zip(p.tensors["ids"].tolist(), p.tensors["keys"], strict=True)) for p in (x, y)]
    return any(
        names[0][i] != names[1][i] or not torch.allclose(keys[0][i], keys[1][i], atol=1e-3)
        for i in set(names[0]) & set(names[1])
    )
