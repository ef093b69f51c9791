"""What became of earlier edits: tables of a stream in, forgetting curves out (arXiv 2401.07453).

A fact is *learned* if it is right at the moment right after its own edit. It is *forgotten* at the
first later moment at which it is wrong, and is never un-forgotten; the *retained* share asks only
whether it is right now. Moments that measure a part of the edits (a stream's dense subset) speak
for that part: every value comes with the number of facts behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pandas as pd

from workbench.errors import OptionError, did_you_mean

__all__ = ["STATES", "inflection", "retention", "survival", "survival_map", "wilson"]

#: Columns that tell several runs in one table apart.
RUNS = ("run", "editor", "model")
CORRECT = ("exact", "success")
NEEDED = ("step", "edit_step", "case_id", "kind")
#: States of an edit in a survival map.
STATES = ("not learned", "held", "forgotten", "back")
#: Inflection: a drop of the retained share, within so many edits, with a jump of the distance.
DROP, WITHIN, JUMP = 0.20, 50, 5.0
#: 97.5 % quantile of the normal distribution.
NORMAL_975 = NormalDist().inv_cdf(0.975)


def retention(
    rows: pd.DataFrame, *, correct: str = "exact", kind: str = "efficacy"
) -> pd.DataFrame:
    """Forgetting curves of a stream.

    Args:
        rows: a table of :func:`workbench.stream`; of several runs, told apart by ``run``.
        correct: what is right: ``"exact"`` (all target tokens are arg-max) or ``"success"`` (the
            target beats the foil).
        kind: the probes that are asked; a fact with several must have all of them right.

    Returns:
        One row a run, curve and moment: the run's columns, ``step`` (edits held), ``curve``
        (``newest``: right among the facts just edited; ``forgotten``: share of the learned facts
        that were wrong at a moment since, never un-forgotten; ``retained``: share of the learned
        facts that are right now), ``value`` (0 to 1), ``n`` (facts behind it), ``low, high`` (95 %
        interval, Wilson).

    Raises:
        OptionError: for an unknown ``correct``, a kind the table lacks, or a missing column.

    Example:
        >>> wb.retention(rows).pivot(index="step", columns="curve", values="value")
        ... # doctest: +SKIP
    """
    parts = [_curves(h).assign(**name) for name, h in _histories(rows, correct, kind)]
    return _front(pd.concat(parts, ignore_index=True))


def survival(rows: pd.DataFrame, *, correct: str = "exact", kind: str = "efficacy") -> pd.DataFrame:
    """How many learned facts are left, by age: edits made since their own.

    Args:
        rows, correct, kind: as in :func:`retention`.

    Returns:
        One row a run, curve and age: the run's columns, ``age``, ``curve`` (``retained``: right at
        that age; ``unforgotten``: not yet found wrong up to that age), ``value, n, low, high``.

    Raises:
        OptionError: as :func:`retention`.

    Example:
        >>> wb.survival(rows)  # doctest: +SKIP
    """
    parts = [_ages(h).assign(**name) for name, h in _histories(rows, correct, kind)]
    return _front(pd.concat(parts, ignore_index=True))


def survival_map(
    rows: pd.DataFrame, *, correct: str = "exact", kind: str = "efficacy"
) -> pd.DataFrame:
    """Every edit at every moment, and which stretch of the run killed it.

    Args:
        rows, correct, kind: as in :func:`retention`.

    Returns:
        One row a run, fact and moment at which it was measured: the run's columns, ``case_id,
        edit_step, step, state`` (``not learned``, ``held``, ``forgotten``, or ``back``: right
        again after it was forgotten), ``held_until`` (last moment before it was forgotten) and
        ``killed_at`` (the moment at which it was first found wrong, NaN if it never was): the
        edits after ``held_until`` and up to ``killed_at`` did it.

    Raises:
        OptionError: as :func:`retention`.

    Example:
        >>> fates = wb.survival_map(rows)
        ... fates[fates["case_id"] == 12]["killed_at"]  # doctest: +SKIP
    """
    parts = [_fates(h).assign(**name) for name, h in _histories(rows, correct, kind)]
    return _front(pd.concat(parts, ignore_index=True))


def inflection(
    rows: pd.DataFrame,
    moments: pd.DataFrame | None = None,
    *,
    correct: str = "exact",
    drop: float = DROP,
    within: int = WITHIN,
    jump: float = JUMP,
) -> pd.DataFrame:
    """The moment at which a run collapses, if it does.

    That is the first moment at which the retained share lies more than ``drop`` under its best
    within the last ``within`` edits (or since the moment before, where they lie farther apart),
    while in the same stretch the weights' distance made a step of more than ``jump`` times the
    median of its earlier steps.

    Args:
        rows: a table of :func:`workbench.stream`.
        moments: the run's table of :func:`workbench.moments`; without weight distances in it the
            drop alone decides.
        correct: as in :func:`retention`.
        drop: share of the learned facts.
        within: edits.
        jump: times the median step.

    Returns:
        One row a run: the run's columns, ``step`` (NaN without a collapse), ``before`` and
        ``after`` (retained shares), ``jump`` (step of the distance over the median step, NaN
        without distances).

    Raises:
        OptionError: as :func:`retention`.

    Example:
        >>> wb.inflection(rows, wb.moments("data/runs/rome"))["step"]  # doctest: +SKIP
    """
    curves = retention(rows, correct=correct)
    keys = [c for c in RUNS if c in curves]
    found = []
    for name, part in _grouped(curves, keys):
        mine = part[part["curve"] == "retained"].sort_values("step")
        steps, values = mine["step"].to_numpy(), mine["value"].to_numpy()
        distance = None if moments is None else _distance(moments, name)
        found.append(name | _collapse(steps, values, distance, drop, within, jump))
    return pd.DataFrame(found)


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of ``n`` trials (Wilson 1927); NaN without trials.

    Example:
        >>> tuple(round(x, 3) for x in wilson(0.5, 100))
        (0.404, 0.596)
    """
    if not n or math.isnan(share):
        return math.nan, math.nan
    z2 = NORMAL_975**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * share * (1 - share) / n + z2 * z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


# -------------------------------------------------------------------- one run


def _histories(
    rows: pd.DataFrame, correct: str, kind: str
) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    _check(rows, correct, kind)
    keys = [c for c in RUNS if c in rows]
    later = rows[(rows["kind"] == kind) & (rows["step"] >= rows["edit_step"])]
    for name, part in _grouped(later, keys):
        yield name, _history(part, correct)


def _check(rows: pd.DataFrame, correct: str, kind: str) -> None:
    if correct not in CORRECT:
        raise OptionError(f"correct={correct!r} is unknown." + did_you_mean(correct, CORRECT))
    for column in (*NEEDED, correct):
        if column not in rows:
            raise OptionError(
                f"the table has no column {column!r}: give the rows of workbench.stream."
            )
    if kind not in set(rows["kind"]):
        raise OptionError(f"kind={kind!r}: the table has {', '.join(sorted(set(rows['kind'])))}.")
    if not (rows["step"] >= rows["edit_step"]).any():
        raise OptionError("the table has no moment after an edit: it holds step 0 alone.")


def _grouped(
    table: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    if not keys:
        yield {}, table
        return
    for values, part in table.groupby(keys, sort=False, dropna=False):
        yield dict(zip(keys, values, strict=True)), part


def _history(part: pd.DataFrame, correct: str) -> pd.DataFrame:
    """One row a fact and moment: ``case_id, edit_step, step, right, learned, lost, counts``.

    ``lost`` is the moment at which a learned fact was first wrong (inf: never), ``counts`` says
    whether the moment speaks for the fact: it measured all facts, or the fact is in the subset.
    """
    asked = part.assign(right=part[correct].astype(bool))
    table = asked.groupby(["case_id", "edit_step", "step"], sort=False)["right"].all().reset_index()
    table = table.sort_values(["edit_step", "step"], kind="stable", ignore_index=True)
    age = table["step"] - table["edit_step"]
    learned = set(table.loc[(age == 0) & table["right"], "case_id"])
    table["learned"] = table["case_id"].isin(learned)
    wrong = table[(age > 0) & ~table["right"] & table["learned"]]
    first = wrong.groupby("case_id", sort=False)["step"].min()
    table["lost"] = table["case_id"].map(first).astype(float).fillna(math.inf)
    table["counts"] = _counts(table)
    return table


def _counts(table: pd.DataFrame) -> pd.Series:
    made = table.drop_duplicates("case_id")["edit_step"].sort_values().to_numpy()
    held = np.searchsorted(made, table["step"].to_numpy(), side="right")
    full = table.groupby("step")["case_id"].transform("size") == held
    old = table["step"] > table["edit_step"]
    subset = set(table.loc[~full & old, "case_id"])
    dense = old.groupby(table["step"]).transform("any")  # else the newest alone were asked
    return full | (dense & table["case_id"].isin(subset))


def _curves(table: pd.DataFrame) -> pd.DataFrame:
    newest = table[table["step"] == table["edit_step"]]
    known = table[table["counts"] & table["learned"]]
    forgotten = known["lost"] <= known["step"]
    parts = [
        _means(newest["right"], newest["step"], "newest"),
        _means(forgotten, known["step"], "forgotten"),
        _means(known["right"], known["step"], "retained"),
    ]
    return pd.concat(parts).sort_values("step", kind="stable", ignore_index=True)


def _ages(table: pd.DataFrame) -> pd.DataFrame:
    known = table[table["learned"]]
    age = (known["step"] - known["edit_step"]).rename("age")
    parts = [
        _means(known["right"], age, "retained"),
        _means(known["lost"] > known["step"], age, "unforgotten"),
    ]
    return pd.concat(parts).sort_values("age", kind="stable", ignore_index=True)


def _means(values: pd.Series, by: pd.Series, curve: str) -> pd.DataFrame:
    """Share of true values, their number and its interval, by step or age."""
    found = values.astype(float).groupby(by).agg(value="mean", n="size").reset_index()
    found.insert(1, "curve", curve)
    limits = [wilson(v, n) for v, n in zip(found["value"], found["n"], strict=True)]
    found["low"], found["high"] = [x[0] for x in limits], [x[1] for x in limits]
    return found


def _fates(table: pd.DataFrame) -> pd.DataFrame:
    held = table[table["learned"] & table["right"] & (table["step"] < table["lost"])]
    until = held.groupby("case_id", sort=False)["step"].max()
    after = table["step"] >= table["lost"]
    state = np.select(
        [~table["learned"], ~table["right"], after], ["not learned", "forgotten", "back"], "held"
    )
    return table[["case_id", "edit_step", "step"]].assign(
        state=state,
        held_until=table["case_id"].map(until),
        killed_at=table["lost"].where(np.isfinite(table["lost"])),
    )


def _front(table: pd.DataFrame) -> pd.DataFrame:
    """The run's columns first."""
    keys = [c for c in RUNS if c in table]
    return table[keys + [c for c in table.columns if c not in keys]]


# -------------------------------------------------------------------- the collapse


def _distance(moments: pd.DataFrame, name: dict[str, object]) -> pd.Series | None:
    """step → largest weight distance of a layer, of one run."""
    table = moments[moments["metric"] == "weight_distance"]
    for key, value in name.items():
        if key in table:
            table = table[table[key] == value]
    return table.groupby("step")["value"].max().sort_index() if len(table) else None


def _collapse(
    steps: np.ndarray,
    values: np.ndarray,
    distance: pd.Series | None,
    drop: float,
    within: int,
    jump: float,
) -> dict[str, float]:
    for i in range(1, len(steps)):
        since = min(steps[i] - within, steps[i - 1])
        best = values[:i][steps[:i] >= since].max()
        size = math.nan if distance is None else _largest_step(distance, since, steps[i])
        if best - values[i] > drop and (distance is None or size > jump):
            return {"step": float(steps[i]), "before": best, "after": values[i], "jump": size}
    return {"step": math.nan, "before": math.nan, "after": math.nan, "jump": math.nan}


def _largest_step(distance: pd.Series, since: float, until: float) -> float:
    """Largest change of the distance in (since, until] over the median of those before it."""
    at, change = distance.index.to_numpy()[1:], np.abs(np.diff(distance.to_numpy()))
    ratios = [
        change[i] / max(float(np.median(change[:i])), 1e-300)
        for i in range(1, len(at))
        if since < at[i] <= until
    ]
    return float(max(ratios, default=math.nan))
