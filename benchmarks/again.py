"""Is a table that was made again the recorded one?

    python benchmarks/again.py again/table.csv data/results/learned_tiny_tiny/table.csv

Rows are matched by their names and numbers of edits, what depends on the machine (seconds, memory)
is left out, and the largest difference of each column is printed. Rows that one of the two lacks
are named: a part can be made again. Ends with 1 if a difference is above ``--within``.
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd

#: Columns that say which row it is.
NAMES = ("table", "run", "editor", "model", "edits at once", "trained for", "at once", "facts")
#: Parts of names of columns that another machine, or a busy one, changes.
OF_THE_MACHINE = ("seconds", "slowdown", "mib")


def differences(again: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """Largest difference of every measure over the rows that both have.

    Args:
        again, recorded: tables with equal columns.

    Returns:
        A row a measure: ``rows`` (compared), ``largest`` and ``where`` (the row's name).

    Raises:
        SystemExit: if the tables have no row, or no measure, in common.
    """
    shared = [c for c in recorded if c in again.columns]
    names = [c for c in shared if c in NAMES]
    of_machine = [c for c in shared if any(part in c.lower() for part in OF_THE_MACHINE)]
    numbers = [c for c in shared if pd.api.types.is_numeric_dtype(recorded[c])]
    measures = [c for c in numbers if c not in names and c not in of_machine]
    if not names:
        raise SystemExit("the two tables share no column that names their rows.")
    left, right = (t.astype(dict.fromkeys(names, str)).set_index(names) for t in (again, recorded))
    rows = left.index.intersection(right.index)
    if rows.empty or not measures:
        raise SystemExit("the two tables have no row in common: were both made by one command?")
    found = []
    for measure in measures:
        gap = (left.loc[rows, measure] - right.loc[rows, measure]).abs().dropna()
        if len(gap):
            where = gap.idxmax()
            name = " / ".join(str(x) for x in (where if isinstance(where, tuple) else (where,)))
            found.append(
                {"measure": measure, "rows": len(gap), "largest": gap.max(), "where": name}
            )
    for word, table, other in (("again", left, right), ("recorded", right, left)):
        missing = table.index.difference(other.index)
        if len(missing):
            print(f"only {word}: {len(missing)} rows")
    return pd.DataFrame(found)


def main() -> None:
    """Compare, print, and say by the exit code whether it is the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("again", help="table.csv of the new run")
    parser.add_argument("recorded", help="table.csv in data/results")
    parser.add_argument("--within", type=float, default=0.05, help="in the table's own units")
    args = parser.parse_args()
    found = differences(pd.read_csv(args.again), pd.read_csv(args.recorded))
    print(found.round(4).to_string(index=False))
    beyond = found[found["largest"] > args.within]
    if len(beyond):
        print(f"not within {args.within}: {', '.join(beyond['measure'])}")
    sys.exit(int(bool(len(beyond))))


if __name__ == "__main__":
    main()
