"""Rows that are only ever added to, shared by all states of a memory, and the exact nearest row.

A codebook of n keys and the one of n + 1 keys after it hold the same matrix: the newer one sees one
row more. A row that some living state sees is never overwritten, so going back to an older state
costs nothing and going on from it copies only where a newer state is still in use.

The nearest row is found by one matrix product over rows around a center, and measured again row by
row in float32 (spec memory-and-meta 1.10): as many candidates are measured as rounding could
confuse, so the answer is that of a plain search, which costs a difference a key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Shelf", "nearest"]

#: Candidates measured for every query at least.
MEASURED = 8
#: Queries searched at once.
QUERIES = 64
#: Below so many keys differences are taken directly.
FEW_KEYS = 32
#: Differences held at once, numbers.
AT_ONCE = 1 << 23
#: Room of a new shelf, rows.
FIRST_ROOM = 16


@dataclass(frozen=True, eq=False)
class Shelf:
    """Rows with room for more.

    Attributes:
        data: ``[room, d]``; what lies beyond the rows in use is not defined.
        center: what the keys have in common; None on a shelf that is not searched.
        squares: ``[room]`` squared distances of the rows from the center.
    """

    data: Float[Tensor, "room d"]
    center: Float[Tensor, " d"] | None = None
    squares: Float[Tensor, " room"] | None = None
    _users: WeakKeyDictionary[object, int] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def empty(cls, d: int, *, device: torch.device | str = "cpu", searched: bool = False) -> Shelf:
        """A shelf without rows."""
        return _fresh(torch.zeros(0, d, device=device), FIRST_ROOM, searched)

    def seen_by(self, user: object, n: int) -> None:
        """Keep the first ``n`` rows as they are while ``user`` lives."""
        self._users[user] = n

    def extended(self, n: int, rows: Float[Tensor, "new d"]) -> Shelf:
        """A shelf with ``rows`` after the first ``n``: this one where nobody sees what lies there.

        Args:
            n: rows in use.
            rows: what comes after them.
        """
        total = n + len(rows)
        in_use = max(self._users.values(), default=0)
        shelf = self
        if in_use > n or total > len(self.data):
            room = max(2 * total, FIRST_ROOM) if total > len(self.data) else len(self.data)
            shelf = _fresh(self.data[:n], room, self.center is not None)
        shelf._write(slice(n, total), rows)
        return shelf

    def changed(self, n: int, index: Int[Tensor, " k"], rows: Float[Tensor, "k d"]) -> Shelf:
        """A copy whose rows ``index``, of ``n``, are others."""
        shelf = _fresh(self.data[:n], len(self.data), self.center is not None)
        shelf._write(index, rows)
        return shelf

    def _write(self, where: slice | Tensor, rows: Tensor) -> None:
        rows = rows.to(self.data)
        self.data[where] = rows
        if self.center is not None and self.squares is not None:
            self.squares[where] = (rows - self.center).square().sum(1)


def _fresh(rows: Tensor, room: int, searched: bool) -> Shelf:
    """A shelf of its own with these rows."""
    data = rows.new_empty(room, rows.shape[1])
    data[: len(rows)] = rows
    if not searched:
        return Shelf(data)
    center = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
    squares = rows.new_empty(room)
    squares[: len(rows)] = (rows - center).square().sum(1)
    return Shelf(data, center, squares)


@torch.no_grad()
def nearest(
    shelf: Shelf, n: int, queries: Float[Tensor, "b d"], *, k: int = 1
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """The ``k`` nearest of the first ``n`` rows, nearest first; equal distances by row number.

    Args:
        shelf: made with ``searched=True``.
        n: rows in use, at least ``k``.
        queries: float32.

    Returns:
        Euclidean distances, measured on the rows themselves, and row numbers.
    """
    search = _plain if n <= max(FEW_KEYS, k + MEASURED) else _by_product
    parts = [search(shelf, n, q, k) for q in queries.split(QUERIES)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _plain(shelf: Shelf, n: int, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    index = torch.arange(n, device=queries.device).expand(len(queries), n)
    return _measured(shelf, queries, index, k)


def _by_product(shelf: Shelf, n: int, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    assert shelf.center is not None and shelf.squares is not None
    centered = queries - shelf.center
    squares = shelf.squares[:n]
    # ‖q − κ‖² less what all keys of a query have in common
    scores = torch.addmm(squares[None], centered, shelf.data[:n].T, alpha=-2)
    doubt = _rounding(shelf, n, centered)
    best = scores.topk(k, largest=False).values[:, -1]
    limit = best + 2 * doubt
    m = max(k + MEASURED, int((scores <= limit[:, None]).sum(1).max()))
    index = scores.topk(min(m, n), largest=False).indices.sort(1).values
    return _measured(shelf, queries, index, k)


def _rounding(shelf: Shelf, n: int, centered: Tensor) -> Tensor:
    """How far a score may be off, ``[b]``: four times the usual error of sums in float32."""
    assert shelf.center is not None and shelf.squares is not None
    short = centered.is_cuda and torch.get_float32_matmul_precision() != "highest"
    step = 2.0**-11 if short else 2.0**-24
    largest = shelf.squares[:n].max()
    length = centered.norm(dim=1) * (largest.sqrt() + shelf.center.norm())
    return 4 * step * centered.shape[1] ** 0.5 * (2 * length + largest)


def _measured(shelf: Shelf, queries: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Nearest among candidates (row numbers ascending), by differences."""
    if index.numel() * queries.shape[1] <= AT_ONCE:
        gaps = shelf.data[index] - queries[:, None]
        distance = gaps.square().sum(-1).sqrt()
    else:  # hosts of equal rows
        pairs = zip(queries, index, strict=True)
        distance = torch.stack([(shelf.data[i] - q).square().sum(1).sqrt() for q, i in pairs])
    found = distance.sort(dim=1, stable=True)
    return found.values[:, :k], index.gather(1, found.indices[:, :k])
