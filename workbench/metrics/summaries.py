"""From score tables to figures: means over records with bootstrap intervals, the combined score.

A record's prompts are averaged first, then the records (MEMIT, arXiv 2210.07229); intervals
resample records. The combined score is the harmonic mean of efficacy, paraphrase and neighborhood.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from workbench.errors import DataError, OptionError, did_you_mean
from workbench.facts import KINDS
from workbench.runs import RunFolder, is_run

__all__ = ["harmonic_mean", "median_kl", "summary"]

Source: TypeAlias = "pd.DataFrame | str | os.PathLike[str]"

#: Columns by which tables are split when they hold more than one value.
GROUPS = ("run", "editor", "model", "step", "moment")
OVER = ("cases", "runs")
FILES = ("scores.csv", "scores.csv.gz", "rows.csv", "rows.csv.gz")
RESAMPLES = 1000
#: Columns averaged over a record's prompts, then over records.
AVERAGED = (
    "exact",
    "token_accuracy",
    "nll_difference",
    "magnitude",
    "agrees",
    "generated_match",
    "f1",
)


def summary(
    scores: Source | Sequence[Source],
    *,
    by: str | Sequence[str] | None = None,
    first: int | None = None,
    over: str = "cases",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Averages by kind of probe.

    Of a stream, the moments before it and at its end (the last one that measured everything) are
    summarized, told apart by the column ``moment``.

    Args:
        scores: a table of :func:`workbench.score` or :func:`workbench.stream`, a run folder, or a
            list of these; of several runs the column ``run`` is a group. Runs that have not come
            to their end are named in a warning and in ``attrs["incomplete"]``.
        by: columns that make groups; None takes those of run, editor, model, step and moment that
            differ.
        first: only the first so many cases of every run.
        over: ``"cases"``, or ``"runs"`` to average runs of the same editor and model, such as
            those of several seeds.
        resamples: of the bootstrap over cases.
        seed: of the bootstrap.

    Returns:
        One row a kind (also the index), and a row ``score`` with the harmonic mean of efficacy,
        paraphrase and neighborhood (or locality): 0 if one is 0, NaN if one is missing. Columns:
        the groups, ``kind, measure`` (what ``success`` counts), ``n`` (cases), ``probes,
        success, low, high`` (95 % interval), ``exact, token_accuracy, nll_difference`` (foil
        minus target, nats), ``magnitude`` (P(target) - P(foil)), ``deviation`` (standard, of
        success over cases), and, where measured, ``agrees, generated_match, f1, kl`` (median).
        Two-way success is never averaged with exact match: a kind that has both gets two rows.
        Over runs: ``editor, model, moment, kind, measure, runs, success, deviation`` (over runs),
        ``lowest, highest``.

    Raises:
        OptionError: for an unknown column in ``by``, or numbers out of range.
        DataError: for a run folder without scores, or a table without the columns.

    Example:
        >>> wb.summary(wb.score(view, cases))  # doctest: +SKIP
    """
    if over not in OVER:
        raise OptionError(f"over={over!r} is unknown." + did_you_mean(over, OVER))
    table, incomplete = gather(scores)
    if by is None and {"step", "edit_step"} <= set(table.columns):
        table = before_and_after(table)
    if first is not None:
        table = _first(table, first)
    if over == "runs":
        by = [c for c in GROUPS if c in table and c != "step"]
    groups = _groups(table, by)
    found = _grouped(_with_value(table), groups, resamples, seed)
    if over == "runs":
        found = _over_runs(found)
    found.attrs["incomplete"] = incomplete
    return found


def before_and_after(rows: pd.DataFrame) -> pd.DataFrame:
    """Of a stream's rows those at step 0 and at the last moment that measured everything.

    The step becomes the column ``moment``: before or after.
    """
    keys = [c for c in ("run", "editor", "model") if c in rows]
    parts = [p for _, p in rows.groupby(keys, sort=False)] if keys else [rows]
    kept = []
    for part in parts:
        kept.append(part[part["step"] == 0].assign(moment="before"))
        after = part[(part["step"] > 0) & (part["step"] == _last_full(part))]
        kept.append(after.assign(moment="after"))
    return pd.concat(kept, ignore_index=True).drop(columns="step")


def _last_full(rows: pd.DataFrame) -> int:
    made = np.sort(rows.drop_duplicates("case_id")["edit_step"].to_numpy())
    asked = rows[rows["step"] > 0].groupby("step")["case_id"].nunique()
    full = asked == np.searchsorted(made, asked.index.to_numpy(), side="right")
    return int(asked.index[full].max()) if full.any() else 0


def _first(table: pd.DataFrame, first: int) -> pd.DataFrame:
    """The first cases of every run, in the order in which they were edited."""
    if type(first) is not int or first < 1:
        raise OptionError(f"first={first!r}: it must be a whole number from 1 on.")
    keys = [c for c in ("run", "editor", "model") if c in table]
    parts = [p for _, p in table.groupby(keys, sort=False)] if keys else [table]
    kept = []
    for part in parts:
        order = part.sort_values("edit_step", kind="stable") if "edit_step" in part else part
        kept.append(part[part["case_id"].isin(order["case_id"].unique()[:first])])
    return pd.concat(kept, ignore_index=True)


def _grouped(table: pd.DataFrame, groups: list[str], resamples: int, seed: int) -> pd.DataFrame:
    if not groups:
        return _finish([_summarize(table, resamples, seed)])
    found = []
    for key, part in table.groupby(groups, sort=False, dropna=False):
        one = _summarize(part, resamples, seed)
        for column, value in reversed(list(zip(groups, key, strict=True))):
            one.insert(0, column, value)
        found.append(one)
    return _finish(found)


def _over_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation over runs of what was averaged over each run's cases."""
    table = table.reset_index(drop=True)
    if "run" not in table:
        table = table.assign(run="run")
    keys = [c for c in ("editor", "model", "moment") if c in table] + ["kind", "measure"]
    found = table.groupby(keys, sort=False, dropna=False).agg(
        runs=("run", "nunique"),
        success=("success", "mean"),
        deviation=("success", "std"),
        lowest=("success", "min"),
        highest=("success", "max"),
    )
    return _finish([found.reset_index()])


def median_kl(scores: pd.DataFrame, kind: str = "neighborhood") -> float:
    """Median KL divergence from the unedited model over the probes of a kind, nats.

    Raises:
        DataError: if the table was scored without a reference.

    Example:
        >>> wb.metrics.median_kl(scores)  # doctest: +SKIP
    """
    if "kl" not in scores:
        raise DataError(
            "the table has no column 'kl': score with reference=wb.metrics.reference(view, cases)."
        )
    return float(scores.loc[scores["kind"] == kind, "kl"].median())


def harmonic_mean(values: Iterable[float]) -> float:
    """Harmonic mean; 0 if a value is 0, NaN if one is missing or there is none.

    Example:
        >>> harmonic_mean([100, 100, 0])
        0.0
    """
    array = np.array(list(values), dtype=float)
    return float(_harmonic(array[None])[0]) if array.size else math.nan


def gather(scores: Source | Sequence[Source]) -> tuple[pd.DataFrame, list[str]]:
    """One table of several, and the names of runs that have not come to their end.

    A folder's table gets the folder's name as ``run``.
    """
    if isinstance(scores, pd.DataFrame | str | os.PathLike):
        scores = [scores]
    tables = [_table(item) for item in scores]
    if not tables:
        raise OptionError("scores is empty: give at least one table or run folder.")
    for i, table in enumerate(tables):
        if len(tables) > 1 and "run" not in table:
            tables[i] = table.assign(run=f"run {i}")
    incomplete = [n for n in map(_unfinished, scores) if n]
    if incomplete:
        warnings.warn(f"not finished: {'; '.join(incomplete)}.", stacklevel=3)
    return pd.concat(tables, ignore_index=True), incomplete


def _unfinished(item: Source) -> str | None:
    """A run's name and how far it got, None if it came to its end."""
    if isinstance(item, pd.DataFrame) or not is_run(item):
        return None
    folder = RunFolder(item)
    status = folder.status()
    if status.get("state") == "complete":
        return None
    done = sum(len(r["case_ids"]) for r in folder.records())
    why = f", {status['reason']}" if status.get("reason") else ""
    of = len(folder.config()["case_ids"])
    return f"{folder.name} ({done} of {of} cases, {status.get('state', 'never started')}{why})"


def _table(item: Source) -> pd.DataFrame:
    if isinstance(item, pd.DataFrame):
        return item
    path = Path(item).expanduser()
    if is_run(path):
        return _rows_of(RunFolder(path))
    file = path if path.is_file() else next((path / f for f in FILES if (path / f).is_file()), None)
    if file is None:
        raise DataError(f"{path} has no table of scores (looked for {', '.join(FILES)}).")
    try:
        table = pd.read_csv(file)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file} is damaged or not a table ({error}): record it again.") from error
    return table if "run" in table else table.assign(run=path.name)


def _rows_of(folder: RunFolder) -> pd.DataFrame:
    rows = folder.rows()
    if rows.empty:
        raise DataError(f"the run {folder.path} has no finished batch yet: let it go on.")
    return rows


def _groups(table: pd.DataFrame, by: str | Sequence[str] | None) -> list[str]:
    missing = {"case_id", "kind", "success"} - set(table.columns)
    if missing:
        raise DataError(f"the table of scores has no column {', '.join(sorted(missing))}.")
    if by is None:
        return [c for c in GROUPS if c in table and table[c].nunique(dropna=False) > 1]
    groups = [by] if isinstance(by, str) else list(by)
    for name in groups:
        if name not in table:
            raise OptionError(f"by={name!r} is no column." + did_you_mean(name, table.columns))
    return groups


def _with_value(table: pd.DataFrame) -> pd.DataFrame:
    """Tables without a protocol count success, two-way where there is a foil."""
    table = table.copy()
    if "value" not in table:
        two_way = table["foil"].notna() if "foil" in table else pd.Series(True, index=table.index)
        table["value"] = table["success"].astype(float)
        table["measure"] = two_way.map({True: "two-way", False: "exact"})
    if {"nll_target", "nll_foil"} <= set(table.columns):
        table["nll_difference"] = table["nll_foil"] - table["nll_target"]
        table["magnitude"] = np.exp(-table["nll_target"]) - np.exp(-table["nll_foil"])
    return table


def _summarize(table: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Rows of one group, the combined score last."""
    cases = pd.Index(table["case_id"].unique())
    weights = weights_of(len(cases), resamples, seed)
    rows: list[dict[str, object]] = []
    means: dict[str, tuple[float, np.ndarray] | None] = {}
    for (kind, measure), part in _by_kind(table):
        per_case = part.groupby("case_id")["value"].mean().reindex(cases).to_numpy()
        draws = _resampled(per_case, weights)
        low, high = interval(draws)
        mean = float(np.nanmean(per_case))
        means[kind] = None if kind in means else (mean, draws)
        rows.append(
            _row(kind, measure, part)
            | {"success": mean, "low": low, "high": high, "deviation": _deviation(per_case)}
        )
    # zsRE and EasyEdit ask for locality where CounterFact has neighbors
    third = "neighborhood" if "neighborhood" in means else "locality"
    chosen = [means.get(k) for k in ("efficacy", "paraphrase", third)]
    rows.append(_score_row(chosen, len(cases), len(table)))
    return pd.DataFrame(rows)


def _deviation(values: np.ndarray) -> float:
    """Standard deviation over the cases that have the kind."""
    held = values[np.isfinite(values)]
    return float(held.std(ddof=1)) if held.size > 1 else math.nan


def _by_kind(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    order = [*KINDS, *sorted(set(table["kind"]) - set(KINDS))]
    for kind in order:
        for measure, part in table[table["kind"] == kind].groupby("measure", sort=True):
            yield (kind, str(measure)), part


def _row(kind: str, measure: str, part: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = {"kind": kind, "measure": measure, "n": part["case_id"].nunique()}
    row |= {"probes": len(part), "success": math.nan, "low": math.nan, "high": math.nan}
    for name in AVERAGED:
        if name in part:
            row[name] = part[name].astype(float).groupby(part["case_id"]).mean().mean()
    return row | {"kl": part["kl"].median()} if "kl" in part else row


def _score_row(
    chosen: Sequence[tuple[float, np.ndarray] | None], n_cases: int, n_probes: int
) -> dict[str, object]:
    row: dict[str, object] = {"kind": "score", "measure": "harmonic mean", "n": n_cases}
    row["probes"] = n_probes
    if any(part is None for part in chosen):
        return row | {"success": math.nan, "low": math.nan, "high": math.nan}
    parts = [part for part in chosen if part is not None]
    low, high = interval(_harmonic(np.stack([draws for _, draws in parts], axis=1)))
    return row | {"success": harmonic_mean(m for m, _ in parts), "low": low, "high": high}


def weights_of(n: int, resamples: int, seed: int) -> np.ndarray:
    """``[resamples, n]`` how often each of ``n`` cases was drawn by the bootstrap."""
    if resamples < 1:
        raise OptionError(f"resamples={resamples}: it must be at least 1.")
    generator = np.random.default_rng(seed)
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)


def _resampled(per_case: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``[resamples]`` means over the drawn cases that have the kind."""
    held = np.isfinite(per_case)
    total = weights[:, held].sum(1)
    with np.errstate(invalid="ignore"):
        return weights[:, held] @ per_case[held] / total


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what resampling gave."""
    draws = draws[np.isfinite(draws)]
    if not draws.size:
        return math.nan, math.nan
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _harmonic(rows: np.ndarray) -> np.ndarray:
    """Harmonic mean along the last axis."""
    zero = (rows == 0).any(-1) & np.isfinite(rows).all(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = rows.shape[-1] / (1 / rows).sum(-1)
    return np.where(zero, 0.0, means)


def _finish(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts, ignore_index=True)
    return table.set_index("kind", drop=False).rename_axis(None)
