"""Counts of what was done to break the workbench: faults injected, inputs tried, failures."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: Everything is tried far more often when this is set; ``./run reliability --full`` sets it.
FULL = os.environ.get("WORKBENCH_RELIABILITY") == "full"
#: Chance of a whole run; another number gives other moments, bits and places.
SEED = int(os.environ.get("WORKBENCH_RELIABILITY_SEED", "7"))


def times(short: int, full: int) -> int:
    """How often something is tried in the short and in the full form."""
    return full if FULL else short


def chance(of: str) -> random.Random:
    """Random numbers of one test, the same in every run with one :data:`SEED`."""
    return random.Random(f"{SEED} {of}")


@dataclass
class Counts:
    """Of one kind of fault."""

    faults: int = 0
    inputs: int = 0
    failures: int = 0


@dataclass
class Ledger:
    """Kind → :class:`Counts`; what fails inside :meth:`fault` or :meth:`tried` is counted."""

    kinds: dict[str, Counts] = field(default_factory=dict)

    @contextmanager
    def fault(self, kind: str) -> Iterator[None]:
        """One fault is injected in the block, and what it left is looked at."""
        with self._counted(kind) as counts:
            counts.faults += 1
            yield

    @contextmanager
    def tried(self, kind: str) -> Iterator[None]:
        """One unusual input is tried in the block."""
        with self._counted(kind) as counts:
            counts.inputs += 1
            yield

    @contextmanager
    def _counted(self, kind: str) -> Iterator[Counts]:
        counts = self.kinds.setdefault(kind, Counts())
        try:
            yield counts
        except BaseException:
            counts.failures += 1
            raise

    def total(self) -> Counts:
        """Of all kinds."""
        found = [asdict(c) for c in self.kinds.values()]
        return Counts(**{f: sum(c[f] for c in found) for f in asdict(Counts())})

    def lines(self) -> Iterator[str]:
        """A table for people."""
        width = max(map(len, self.kinds))
        yield f"{'':{width}}  {'faults':>8}  {'inputs':>8}  {'failures':>8}"
        for kind, c in [*sorted(self.kinds.items()), ("all", self.total())]:
            yield f"{kind:{width}}  {c.faults:8,}  {c.inputs:8,}  {c.failures:8,}"

    def save(self, path: Path) -> None:
        """The same for programs."""
        kinds = {kind: asdict(c) for kind, c in sorted(self.kinds.items())}
        found = {"form": "full" if FULL else "short", "seed": SEED, "total": asdict(self.total())}
        path.write_text(json.dumps(found | {"kinds": kinds}, indent=1) + "\n")
