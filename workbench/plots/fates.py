"""The fate of every edit along a stream, as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.errors import OptionError
from workbench.forgetting import survival_map
from workbench.plots.forgetting import runs_of
from workbench.plots.theme import (
    SEQUENTIAL,
    finish,
    new_figure,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_survival_map"]

#: Rows and columns of a survival map, at most.
CELLS = 60


def plot_survival_map(
    rows: pd.DataFrame,
    *,
    correct: str = "exact",
    title: str = "Which edits live, and until when",
    subtitle: str = "",
    size: str = "square",
    theme: str = "light",
) -> go.Figure:
    """Every edit (down) at every moment (across): is it still right?

    Many edits or moments are put together, at most 60 each way; a dark column is the batch that
    killed what was alive before it.

    Args:
        rows: a table of ``wb.stream`` with one run.
        correct: as in ``wb.retention``.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or there are several runs.

    Example:
        >>> plot_survival_map(rows)
    """
    fates = survival_map(rows, correct=correct)
    if len(runs_of(fates, "plot_survival_map")) > 1:
        raise OptionError("plot_survival_map draws one run: choose rows of one value of 'run'.")
    shares, counts, names = _map(fates)
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme, legend=False)
    steps = [str(s) for s in shares.columns]
    fig.add_heatmap(
        x=steps,
        y=names,
        z=shares.to_numpy(),
        customdata=counts.to_numpy(),
        zmin=0,
        zmax=1,
        colorscale=SEQUENTIAL,
        colorbar={"title": {"text": "right"}, "tickformat": ".0%", "thickness": 14},
        hovertemplate="edits %{y}, after %{x}: %{z:.0%} of %{customdata}<extra></extra>",
        hoverongaps=False,
    )
    fig.update_xaxes(title="edits held when asked", type="category", showgrid=False, nticks=10)
    fig.update_yaxes(title="edit", type="category", autorange="reversed", showgrid=False, nticks=12)
    return finish(fig, _map_alt(fates))


def _map(fates: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Share of right facts by bin of edits and moment, facts behind it, names of the bins."""
    later = fates[fates["step"] > fates["edit_step"]]
    steps = np.sort(later["step"].unique()) if len(later) else np.sort(fates["step"].unique())
    if len(steps) > CELLS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, CELLS).round().astype(int))]
    made = np.sort(fates["edit_step"].unique())
    bins = np.array_split(made, min(len(made), CELLS))
    of = {int(step): i for i, group in enumerate(bins) for step in group}
    starts = {int(s): int(p) + 1 for s, p in zip(made, [0, *made[:-1]], strict=True)}
    names = [_bin_name(starts[int(g[0])], int(g[-1])) for g in bins]
    shown = fates[fates["step"].isin(steps)]
    right = shown["state"].isin(["held", "back"]).astype(float)
    grouped = right.groupby([shown["edit_step"].map(of), shown["step"]])
    index = range(len(bins))
    shares = grouped.mean().unstack("step").reindex(index=index, columns=steps)
    counts = grouped.size().unstack("step").reindex(index=index, columns=steps)
    return shares, counts, names


def _bin_name(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


# -------------------------------------------------------------------- in words


def _map_alt(fates: pd.DataFrame) -> str:
    last = fates.sort_values("step").groupby("case_id").last()
    counts = last["state"].value_counts()
    parts = [f"{counts[s]} {s}" for s in counts.index]
    killed = fates.drop_duplicates("case_id")["killed_at"].value_counts()
    worst = (
        f"; most were first found wrong after {killed.index[0]:.0f} edits ({killed.iloc[0]})"
        if len(killed)
        else ""
    )
    return f"Survival of {len(last)} edits: at the end {', '.join(parts)}{worst}."
