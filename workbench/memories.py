"""What stands in for a module's output: how a memory reads and writes a text, and the codebook.

A memory looks at one position of a text, the query, and may write an answer of its own over the
module's output (Hartvigsen et al., arXiv 2211.11031; spec memory-and-meta 1). Of a
:class:`Codebook` (GRACE) the nearest key answers if the query lies inside its ball; otherwise the
very output passes. Trained memories are in :mod:`workbench.networks`.

What was decided on a prompt holds while it is continued on a cache. Nothing here is random, and
nothing changes in a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.adapters import Context
from workbench.edits import Adapter
from workbench.shelves import Shelf, nearest

__all__ = [
    "QUERIES",
    "REPLACEMENTS",
    "Codebook",
    "Entries",
    "Settings",
    "as_adapter",
    "queries_of",
    "query_columns",
    "write_over",
    "written_columns",
]

#: Which token asks: the prompt's last or first, or as released (the one after the prompt where
#: something follows it, else the last column, padding or not).
QUERIES = ("last", "first", "released")
#: Which outputs are written over: the query's, every token's, the prompt's, or as released (all
#: columns before the query).
REPLACEMENTS = ("last", "all", "prompt", "before")

#: Ids of a target's tokens, or whatever else two equal answers share.
Label = tuple[float | int, ...]


@dataclass(frozen=True)
class Settings:
    """How a memory reads and writes a text.

    Attributes:
        query: one of :data:`QUERIES`.
        replacement: one of :data:`REPLACEMENTS`.
        tolerance: added to every radius; noise of the same text in another batch stays below it.
    """

    query: str = "last"
    replacement: str = "all"
    tolerance: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"query": self.query, "replacement": self.replacement, "tolerance": self.tolerance}


def query_columns(settings: Settings, context: Context) -> Int[Tensor, " rows"]:
    """The column of each row that asks."""
    prompt = context.prompt
    rows, width = prompt.shape
    places = torch.arange(width, device=prompt.device)
    if settings.query == "last":
        return places.where(prompt, -1).amax(1).clamp_min(0)
    if settings.query == "first":
        return places.where(prompt, width).amin(1).clamp_max(width - 1)
    if context.whole:
        return torch.full((rows,), width - 1, device=prompt.device)
    return prompt.sum(1).clamp_max(width - 1)


def written_columns(settings: Settings, context: Context) -> Bool[Tensor, "rows pos"]:
    """The columns a memory that answers writes over."""
    mask = context.mask
    if settings.replacement == "all":
        return mask
    if context.continues:  # the prompt, and with it the query, was read before
        return torch.zeros_like(mask)
    if settings.replacement == "prompt":
        return context.prompt
    places = torch.arange(mask.shape[1], device=mask.device)[None]
    column = query_columns(settings, context)[:, None]
    return places < column if settings.replacement == "before" else places == column


def queries_of(
    settings: Settings, x: Float[Tensor, "rows pos d_in"], context: Context
) -> Float[Tensor, "rows d_in"]:
    """What the module is given at the query, in float32."""
    rows = torch.arange(len(x), device=x.device)
    return x[rows, query_columns(settings, context).to(x.device)].float()


def write_over(
    settings: Settings, y: Tensor, answer: Tensor, answers: Tensor, context: Context
) -> Tensor:
    """``answer`` ``[rows, d_out]`` over the output of the rows that have one."""
    where = written_columns(settings, context).to(y.device) & answers[:, None]
    return torch.where(where[..., None], answer[:, None].to(y.dtype), y)


# ---------------------------------------------------------------------- the codebook


@dataclass(frozen=True)
class Entries:
    """Entries as they are after an edit, new ones and changed ones.

    Attributes:
        ids: ``[n]`` names of the entries.
        keys, values: ``[n, d_in]`` and ``[n, d_out]``; values None where only decisions count.
        radii: ``[n]``.
        labels: what each answers.
        shrunk: ``[m]`` names of entries of which only the radius changes,
        shrunk_radii: ``[m]`` to these.
    """

    ids: Int[Tensor, " n"]
    keys: Float[Tensor, "n d_in"]
    values: Float[Tensor, "n d_out"] | None
    radii: Float[Tensor, " n"]
    labels: tuple[Label, ...]
    shrunk: Int[Tensor, " m"]
    shrunk_radii: Float[Tensor, " m"]


@dataclass(frozen=True, eq=False)
class Codebook:
    """GRACE's discrete memory; what :meth:`after` returns shares its rows.

    Attributes:
        settings: how texts are read and written.
        d_out: width of the values.
        ids: ``[n]`` names of the entries, in the order in which they came.
        keys: shelf of ``d_in`` wide rows.
        radii: ``[n]``.
        values: shelf of ``d_out`` wide rows, of which entry i has row ``value_rows[i]``.
        labels: what the entries answer.
        kind: its name among adapters.
    """

    settings: Settings
    d_out: int
    ids: Int[Tensor, " n"]
    keys: Shelf
    radii: Float[Tensor, " n"]
    values: Shelf
    value_rows: Int[Tensor, " n"]
    labels: tuple[Label, ...]
    n_values: int = 0
    kind: str = "codebook"

    def __post_init__(self) -> None:
        self.keys.seen_by(self, len(self.ids))
        self.values.seen_by(self, self.n_values)

    @classmethod
    def empty(
        cls, d_in: int, d_out: int, settings: Settings, *, device: torch.device | str = "cpu"
    ) -> Codebook:
        """A codebook without entries."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(
            settings,
            d_out,
            none,
            Shelf.empty(d_in, device=device, searched=True),
            torch.zeros(0, device=device),
            Shelf.empty(d_out, device=device),
            none.to(device),
            (),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module it stands beside."""
        return self.d_out, self.keys.data.shape[1]

    @cached_property
    def places(self) -> dict[int, int]:
        """Name → number of an entry."""
        return {name: i for i, name in enumerate(self.ids.tolist())}

    def key(self, entry: int) -> Float[Tensor, " d_in"]:
        """The key of entry number ``entry``."""
        return self.keys.data[: len(self)][entry]

    def value(self, entry: int) -> Float[Tensor, " d_out"]:
        """The value of entry number ``entry``."""
        return self.values.data[self.value_rows[entry]]

    def search(
        self, queries: Float[Tensor, "b d_in"], *, k: int = 1
    ) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
        """Distances and numbers of the nearest entries."""
        return nearest(self.keys, len(self), queries, k=k)

    def fired(self, queries: Float[Tensor, "b d_in"]) -> Int[Tensor, " b"]:
        """The entry that answers each query; -1 for none."""
        distance, index = (t[:, 0] for t in self.search(queries))
        inside = distance <= self.radii[index] + self.settings.tolerance
        return torch.where(inside, index, -1)

    def __call__(self, name: Any, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """The module's output with the values of the entries that answer; the very ``y`` if none
        does."""
        entry = self._decided(name, x, context)
        if entry is None or not bool((entry >= 0).any()):
            return y
        value = self.values.data[self.value_rows[entry.clamp_min(0)]]
        return write_over(self.settings, y, value, entry >= 0, context)

    def _decided(self, name: Any, x: Tensor, context: Context) -> Tensor | None:
        if context.continues:
            return context.memory.get(name)
        if not len(self):
            return None
        entry = self.fired(queries_of(self.settings, x, context))
        context.memory[name] = entry
        return entry

    # ------------------------------------------------------------------ growing

    def after(self, settings: Settings, entries: Entries) -> Codebook:
        """The codebook one edit later; changes nothing that this one sees.

        Entries that this codebook does not have, because an earlier edit was dropped, are added;
        radii of such are left out.
        """
        book = replace(self, settings=settings)._added(entries)
        known = book.places
        pairs = zip(entries.shrunk.tolist(), entries.shrunk_radii.tolist(), strict=True)
        narrower = {known[name]: radius for name, radius in pairs if name in known}
        if not narrower:
            return book
        radii = book.radii.clone()
        radii[list(narrower)] = torch.tensor(list(narrower.values())).to(radii)
        return replace(book, radii=radii)

    def _added(self, entries: Entries) -> Codebook:
        n, k = len(self), len(entries.ids)
        names = entries.ids.tolist()
        known = self.places if n else {}
        fresh = [i for i, name in enumerate(names) if name not in known]
        old = [i for i, name in enumerate(names) if name in known]
        spot = torch.tensor([known[names[i]] for i in old], dtype=torch.long)
        keys = self._moved(entries, old, spot).extended(n, entries.keys[fresh])
        radii = torch.cat([self.radii, entries.radii[fresh].to(self.radii)])
        radii[spot] = entries.radii[old].to(radii)
        values, rows, held = self.values, torch.full((k,), -1), self.n_values
        if entries.values is not None:
            values, rows = values.extended(held, entries.values), torch.arange(held, held + k)
            held += k
        rows = rows.to(self.value_rows)
        value_rows = torch.cat([self.value_rows, rows[fresh]])
        value_rows[spot] = rows[old]
        labels = [*self.labels, *(entries.labels[i] for i in fresh)]
        for i, place in zip(old, spot.tolist(), strict=True):
            labels[place] = entries.labels[i]
        return replace(
            self,
            ids=torch.cat([self.ids, entries.ids[fresh]]),
            keys=keys,
            radii=radii,
            values=values,
            value_rows=value_rows,
            labels=tuple(labels),
            n_values=held,
        )

    def _moved(self, entries: Entries, old: list[int], spot: Tensor) -> Shelf:
        """The keys with those of old entries where they are now."""
        if not old:
            return self.keys
        now = entries.keys[old].to(self.keys.data)
        moved = (self.keys.data[spot] != now).any(1).cpu()
        if not bool(moved.any()):
            return self.keys
        return self.keys.changed(len(self), spot[moved], now[moved])

    # ------------------------------------------------------------------ as data

    def joined(self, newer: Codebook) -> Codebook:
        """One edit later."""
        assert newer.written is not None
        return self.after(newer.settings, newer.written)

    written: Entries | None = field(default=None, repr=False)

    @classmethod
    def load(cls, adapter: Adapter, *, device: torch.device | str) -> Codebook:
        """What an edit added, as a codebook of its own."""
        t, options = adapter.tensors, adapter.options
        labels = tuple(tuple(each) for each in options["labels"])
        entries = Entries(
            t["ids"], t["keys"], t["values"], t["radii"], labels, t["shrunk"], t["shrunk_radii"]
        )
        settings = Settings(**options["settings"])
        empty = cls.empty(t["keys"].shape[1], t["values"].shape[1], settings, device=device)
        return replace(empty.after(settings, entries), written=entries)


def as_adapter(parameter: str, settings: Settings, entries: Entries) -> Adapter:
    """What an edit adds to a codebook, as data."""
    assert entries.values is not None
    tensors = {
        "ids": entries.ids,
        "keys": entries.keys,
        "values": entries.values,
        "radii": entries.radii,
        "shrunk": entries.shrunk,
        "shrunk_radii": entries.shrunk_radii,
    }
    labels = [list(label) for label in entries.labels]
    return Adapter(
        parameter, "codebook", tensors, {"settings": settings.as_dict(), "labels": labels}
    )
