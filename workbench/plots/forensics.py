"""Where two models differ, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from workbench.plots.theme import (
    PALETTE,
    finish,
    need_columns,
    new_figure,
    percent,
    plotly,
    style,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_model_comparison"]


def plot_model_comparison(
    table: pd.DataFrame,
    *,
    title: str = "Where two models differ",
    subtitle: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Change of every parameter over the layers; the number at a mark is the change's rank.

    Args:
        table: as from ``wb.compare_models``.
        title, subtitle: may use plotly's markup; a subtitle of None is the finding.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or the table is empty (the models are equal).

    Example:
        >>> plot_model_comparison(wb.compare_models("base/", "edited/"))  # doctest: +SKIP
    """
    need_columns(table, ("layer", "part", "relative", "rank", "more"), "plot_model_comparison")
    finding = str(table.attrs.get("finding", ""))
    shown = words(finding) if subtitle is None else subtitle
    fig = new_figure(title, subtitle=shown, theme=theme)
    totals = table.groupby("part")["relative"].sum().sort_values(ascending=False)
    kept = list(totals.index[: 2 * len(PALETTE) - 1])
    part_of = table["part"].where(table["part"].isin(kept), "others")
    for i, (part, rows) in enumerate(table.groupby(part_of, sort=False)):
        rank = [f"{r}{'+' if m else ''}" for r, m in zip(rows["rank"], rows["more"], strict=True)]
        fig.add_trace(
            plotly().Scatter(
                name=words(part),
                x=rows["layer"].fillna(-1).astype(int),
                y=rows["relative"],
                mode="markers+text" if len(table) <= 40 else "markers",
                text=rank,
                textposition="top center",
                customdata=rows[["parameter"]].assign(rank=rank),
                hovertemplate="%{customdata[0]}<br>%{y:.3%}, rank %{customdata[1]}<extra></extra>",
                marker=style(i)["marker"],
            )
        )
    fig.update_xaxes(title="layer (-1: outside the blocks)", showgrid=False, zeroline=False)
    fig.update_yaxes(title="change of the weights, relative", tickformat=".2~%", rangemode="tozero")
    most = table.loc[table["relative"].idxmax()]
    return finish(
        fig,
        f"Where two models differ: {finding or f'{len(table)} parameters'}; most in "
        f"{most['parameter']} ({percent(float(most['relative']))}).",
    )
