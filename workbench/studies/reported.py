"""What the papers published, as a table; and ours beside it.

The numbers lie in ``data/published/results.csv``, with the place where each was read. A number
that only others' transcriptions of a paper give is marked so and is provisional.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from workbench.errors import DataError, OptionError, did_you_mean
from workbench.places import shipped
from workbench.studies.learned import LearnedRecord

__all__ = ["gaps", "learned_gaps", "published"]

#: Task of learned editors → model and data of the paper's table of it.
MEND_TASKS = {
    "qa": ("BART-base", "zsRE"),
    "gen": ("distilGPT-2", "WikiText"),
    "fc": ("BERT-base", "FEVER"),
}

COLUMNS = ("paper", "table", "model", "data", "edits", "batch", "editor", "metric", "value")


def published(paper: str | None = None, **filters: object) -> pd.DataFrame:
    """Published results.

    Args:
        paper: such as ``"NSE"``; None gives all.
        filters: only rows with these values, such as ``model="Llama-3-8B"``.

    Returns:
        One row a number: ``paper, arxiv, table, model, data, edits, batch`` (facts at once),
        ``editor, metric, value, unit, read`` (``paper``: in its text; ``figure``: off a figure, ± 2
        points; ``transcription``: only in others' copies, provisional).

    Raises:
        OptionError: for a paper or column that is not there.

    Example:
        >>> wb.published("NSE", editor="NSE", metric="efficacy")["value"].tolist()
        [96.14, 96.8, 99.55]
    """
    table = pd.read_csv(shipped("published") / "results.csv")
    if paper is not None:
        filters = {"paper": paper, **filters}
    for column, value in filters.items():
        if column not in table:
            raise OptionError(f"{column!r} is no column." + did_you_mean(column, list(table)))
        kept = table[table[column] == value]
        if kept.empty:
            known = sorted({str(v) for v in table[column].dropna()})
            raise OptionError(f"{column}={value!r}: nothing." + did_you_mean(str(value), known))
        table = kept
    return table.reset_index(drop=True)


def gaps(
    paper: pd.DataFrame, ours: pd.DataFrame, metrics: Mapping[str, str], *, on: str = "run"
) -> pd.DataFrame:
    """Published and own numbers of the same editors in one table.

    Args:
        paper: rows of :func:`published`, of one setting.
        ours: one row an editor, such as ``Record.table()``.
        metrics: published metric → column of ``ours``.
        on: column of ``ours`` with the names of the editors as the paper's table has them.

    Returns:
        One row an editor and metric that both have: ``editor, metric, paper, ours, gap`` (ours less
        the paper's), ``read``.

    Raises:
        OptionError: if a column is missing.
        DataError: if no editor is in both tables, or a published one stands there twice.

    Example:
        >>> wb.gaps(wb.published("NSE", model="Llama-3-8B"), record.table(),
        ...           {"efficacy": "efficacy success"})  # doctest: +SKIP
    """
    for column in (on, *metrics.values()):
        if column not in ours:
            raise OptionError(f"ours has no column {column!r}." + did_you_mean(column, list(ours)))
    known = ours.set_index(on)
    rows = []
    for row in paper[paper["metric"].isin(list(metrics))].itertuples():
        if row.editor in known.index:
            mine = float(known.loc[row.editor, metrics[row.metric]])
            rows.append(
                {
                    "editor": row.editor,
                    "metric": row.metric,
                    "paper": row.value,
                    "ours": mine,
                    "gap": mine - row.value,
                    "read": row.read,
                }
            )
    table = pd.DataFrame(rows)
    if table.empty:
        raise DataError("no editor and metric is in both tables: check the names in column on.")
    if table.duplicated(["editor", "metric"]).any():
        raise DataError("the published rows hold several settings: filter them to one.")
    return table


def learned_gaps(records: Mapping[str, LearnedRecord]) -> pd.DataFrame:
    """MEND's table of small models (arXiv 2110.11309, table 4) and ours beside it.

    Args:
        records: task → record; a task without a record stands there with the paper's numbers alone.
            The tiny world is in no paper: its record does not belong here.

    Returns:
        One row a task, editor and metric (``edit success`` and ``drawdown``; % and points, of
        perplexity for ``gen``): ``task, editor, metric, paper's model, paper, our model, ours,
        gap`` (ours less the paper's).

    Raises:
        OptionError: for a task that the paper does not have.

    Example:
        >>> wb.learned_gaps({})["paper"].notna().all()
        True
    """
    for task in records:
        if task not in MEND_TASKS:
            raise OptionError(f"task={task!r} is in no table." + did_you_mean(task, MEND_TASKS))
    return pd.concat([_task_gaps(t, records.get(t)) for t in MEND_TASKS], ignore_index=True)


def _task_gaps(task: str, record: LearnedRecord | None) -> pd.DataFrame:
    model, data = MEND_TASKS[task]
    paper = published("MEND", table="4", model=model, data=data)
    own = record.part("editors").set_index("editor") if record is not None else pd.DataFrame()
    ours = {}
    for editor in own.index:
        points = 100.0 if own.loc[editor, "unit"] == "accuracy" else 1.0
        ours[editor, "edit success"] = 100.0 * own.loc[editor, "edit success"]
        ours[editor, "drawdown"] = points * own.loc[editor, "drawdown"]
    mine = [ours.get((r.editor, r.metric), float("nan")) for r in paper.itertuples()]
    our_model = next(iter(record.configs.values()))["model"] if record is not None else ""
    return pd.DataFrame(
        {
            "task": task,
            "editor": paper["editor"],
            "metric": paper["metric"],
            "paper's model": model,
            "paper": paper["value"],
            "our model": our_model,
            "ours": mine,
        }
    ).assign(gap=lambda t: t["ours"] - t["paper"])
