"""What an editor's scores become as more facts are written at once (arXiv 2403.14236, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from workbench.errors import OptionError
from workbench.plots.theme import (
    finish,
    frame,
    need_columns,
    new_figure,
    plotly,
    style,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_batch_sizes"]

SIZE = "at once"
MAX_PANELS, MAX_SERIES = 4, 8
#: An axis spans at least this share of its largest value: a point more or less is no slope.
LEAST_SPAN = 0.2


def plot_batch_sizes(
    table: pd.DataFrame,
    *,
    measures: Sequence[str],
    by: str = "editor",
    title: str = "How many facts at once",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """A panel a measure, a line an editor, facts at once along the axis (logarithmic).

    Args:
        table: one row a trial, such as ``Record.table()`` joined with ``Record.runs``: ``at once``,
            the column ``by``, and the measures.
        measures: one to four columns.
        by: whose values are lines; at most eight.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing, or for more panels or lines than can be read.

    Example:
        >>> plot_batch_sizes(table, measures=["efficacy success"])  # doctest: +SKIP
    """
    need_columns(table, (SIZE, by, *measures), "plot_batch_sizes")
    series = {str(name): part.sort_values(SIZE) for name, part in table.groupby(by, sort=False)}
    if not 1 <= len(measures) <= MAX_PANELS or len(series) > MAX_SERIES:
        raise OptionError(
            f"plot_batch_sizes: {len(measures)} measures and {len(series)} lines; choose one to "
            f"{MAX_PANELS} measures and at most {MAX_SERIES} lines."
        )
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    plotly("subplots").make_subplots(
        rows=1,
        cols=len(measures),
        figure=fig,
        subplot_titles=[f"<b>{words(m)}</b>" for m in measures],
        horizontal_spacing=0.08,
    )
    frame(fig, title, subtitle=subtitle, legend=True)
    fig.update_layout(margin_t=fig.layout.margin.t + 24)
    fig.update_annotations(font_size=13, yshift=6)
    for column, measure in enumerate(measures, 1):
        for i, (name, part) in enumerate(series.items()):
            fig.add_scatter(
                name=words(name),
                legendgroup=name,
                showlegend=column == 1,
                x=part[SIZE],
                y=part[measure],
                mode="lines+markers",
                hovertemplate=f"{words(name)}, %{{x}} at once: %{{y:.1f}}",
                row=1,
                col=column,
                **style(i),
            )
        fig.update_yaxes(range=_span(table[measure]), row=1, col=column)
    sizes = sorted(int(n) for n in table[SIZE].unique())
    fig.update_xaxes(
        title="facts at once", type="log", tickvals=sizes, ticktext=[f"{n:,}" for n in sizes]
    )
    fig.update_xaxes(showgrid=False)
    return finish(fig, _alt(series, measures))


def _span(values: pd.Series) -> list[float] | None:
    """The range of an axis, with some air; wide enough for small differences to look small."""
    low, high = float(values.min()), float(values.max())
    air = max(0.06 * (high - low), (LEAST_SPAN * abs(high) - (high - low)) / 2)
    return [low - air, high + air] if air > 0 else None


def _alt(series: dict[str, pd.DataFrame], measures: Sequence[str]) -> str:
    said = []
    for name, part in series.items():
        low, high = int(part[SIZE].iloc[0]), int(part[SIZE].iloc[-1])
        ends = [f"{m} {part[m].iloc[0]:.1f} → {part[m].iloc[-1]:.1f}" for m in measures]
        said.append(f"{name}, from {low:,} to {high:,} at once: {', '.join(ends)}")
    return "Batch sizes. " + "; ".join(said) + "."
