"""What to run and where to read it: unique rows, unique positions, and the tokens asked for.

A candidate of n tokens needs the model's answer at n positions: the prompt's last one and the first
n - 1 of its own. The last token is never fed in, so candidates of one token need the prompt's row
alone, and all of them read the same position of it. A row that begins another row is not run at
all; a causal model gives the same states inside the longer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import RequestError, did_you_mean
from workbench.layouts import DECODER, ENCODER_CLASSIFIER
from workbench.model import ModelView
from workbench.tokens import Item, context_length, encode

__all__ = ["Pair", "Plan", "Query", "assemble", "is_causal", "make_plan", "plan_prompts"]

#: A prompt and a completion.
Pair = tuple[str, str]
#: Token ids fed to the model: (decoder ids,), (encoder ids,) or (encoder ids, decoder labels).
#: Beside an adapter (decoder ids, (length of the prompt,)): its gate is decided by the prompt.
TokenRow = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Query:
    """One question to the model: read ``row`` at ``positions`` and ask for ``labels``."""

    row: TokenRow
    positions: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Rows, spots and cells, in the order in which they are run (longest row first).

    Attributes:
        rows: unique token rows.
        spots: ``[n_spots, 2]`` unique (row, position), sorted.
        cell_spot: ``[n_cells]`` the spot at which a cell reads.
        cell_label: ``[n_cells]`` the token (or class) it asks for.
        starts: ``n_queries + 1`` offsets; query i owns the cells ``starts[i]:starts[i + 1]``.
    """

    rows: list[TokenRow]
    spots: Tensor
    cell_spot: Tensor
    cell_label: Tensor
    starts: list[int]

    @property
    def first_spots(self) -> list[int]:
        """For each query the spot at the end of its prompt."""
        spots: list[int] = self.cell_spot[self.starts[:-1]].tolist()
        return spots


def make_plan(view: ModelView, pairs: Sequence[Pair]) -> Plan:
    """A plan for scoring completions.

    Args:
        view: the model.
        pairs: (prompt, completion); for a classifier the completion is a label name.

    Raises:
        RequestError: for a text without tokens, one that is too long, or an unknown label.
    """
    if view.kind == DECODER:
        return assemble(_decoder_queries(view, pairs), merge=is_causal(view))
    if view.kind == ENCODER_CLASSIFIER:
        return assemble(_class_queries(view, pairs))
    return assemble(_seq2seq_queries(view, pairs))


def plan_prompts(view: ModelView, prompts: Sequence[str]) -> Plan:
    """A plan that reads each prompt's next token (or class); labels are meaningless."""
    if view.kind == DECODER:
        length = context_length(view.model.config)
        rows = encode(view.tokenizer, [Item(p) for p in prompts], max_length=length)
        return assemble(
            [
                Query(_decoder_row(view, row.ids, len(row.ids)), (len(row.ids) - 1,), (0,))
                for row in rows
            ]
        )
    if view.kind == ENCODER_CLASSIFIER:
        return make_plan(view, [(p, view.labels[0]) for p in prompts])
    queries = _seq2seq_queries(view, [(p, "a") for p in prompts])
    return assemble([Query(q.row, q.positions[:1], q.labels[:1]) for q in queries])


def assemble(queries: Sequence[Query], *, merge: bool = False) -> Plan:
    """Make rows and spots unique; with ``merge`` a row that begins another is read inside it."""
    hosts = _hosts({q.row for q in queries}, merge)
    rows = sorted(set(hosts.values()), key=lambda r: (-_size(r), r))
    index = {row: i for i, row in enumerate(rows)}
    width = 1 + max(p for q in queries for p in q.positions)
    where = [index[hosts[q.row]] * width + p for q in queries for p in q.positions]
    starts = [0]
    for q in queries:
        starts.append(starts[-1] + len(q.positions))
    flat, cell_spot = torch.unique(torch.tensor(where), return_inverse=True)
    spots = torch.stack([flat // width, flat % width], dim=1)
    labels = torch.tensor([label for q in queries for label in q.labels])
    return Plan(rows, spots, cell_spot, labels, starts)


def _hosts(rows: set[TokenRow], merge: bool) -> dict[TokenRow, TokenRow]:
    """Row → the row it is read in. In sorted order whatever begins a row stands before it."""
    if not merge:
        return {row: row for row in rows}
    hosts: dict[TokenRow, TokenRow] = {}
    longer: TokenRow = ((),)
    for row in sorted(rows, reverse=True):
        begins = longer[0][: len(row[0])] == row[0]
        hosts[row] = longer = longer if begins and longer[0] else row
    return hosts


def _size(row: TokenRow) -> int:
    return sum(len(part) for part in row)


def is_causal(view: ModelView) -> bool:
    """Adapters may look at a whole row (gates, key positions); then each row is run as it is."""
    return not view.adapted


def _decoder_queries(view: ModelView, pairs: Sequence[Pair]) -> list[Query]:
    items = [Item(prompt, completion) for prompt, completion in pairs]
    rows = encode(view.tokenizer, items, max_length=context_length(view.model.config))
    return [
        Query(
            _decoder_row(view, r.ids[:-1], r.target_start),
            tuple(range(r.target_start - 1, len(r.ids) - 1)),
            r.target_ids,
        )
        for r in rows
    ]


def _decoder_row(view: ModelView, ids: tuple[int, ...], prompt: int) -> TokenRow:
    return (ids, (prompt,)) if view.adapted else (ids,)


def _class_queries(view: ModelView, pairs: Sequence[Pair]) -> list[Query]:
    for _, label in pairs:
        if label not in view.labels:
            raise RequestError(
                f"target {label!r} is not a label of {view.name}."
                + did_you_mean(label, view.labels)
            )
    rows = _plain(view, [prompt for prompt, _ in pairs])
    return [
        Query((row,), (0,), (view.labels.index(label),))
        for row, (_, label) in zip(rows, pairs, strict=True)
    ]


def _seq2seq_queries(view: ModelView, pairs: Sequence[Pair]) -> list[Query]:
    """Labels as the tokenizer writes targets; a leading begin-of-sequence token is not scored."""
    sources = _plain(view, [prompt for prompt, _ in pairs])
    targets = view.tokenizer(text_target=[t for _, t in pairs], verbose=False)["input_ids"]
    queries = []
    for source, ids in zip(sources, targets, strict=True):
        start = int(len(ids) > 1 and ids[0] == view.tokenizer.bos_token_id)
        positions = tuple(range(start, len(ids)))
        queries.append(Query((source, tuple(ids)), positions, tuple(ids[start:])))
    return queries


def _plain(view: ModelView, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Encoder inputs, special tokens included."""
    length = context_length(view.model.config)
    rows = view.tokenizer(list(prompts), verbose=False)["input_ids"]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row or (length is not None and len(row) > length):
            raise RequestError(
                f"prompt {prompt[:60]!r} has {len(row)} tokens, the model takes 1 to {length}."
            )
    return [tuple(row) for row in rows]
