"""Layer by layer: how far weights moved, and which layer an editor should write to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from workbench.errors import OptionError
from workbench.plots.theme import (
    NEUTRAL,
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

__all__ = ["plot_drift", "plot_layer_sweep"]

#: Scores a sweep may hold, in the order in which they are drawn.
SWEPT = ("efficacy", "paraphrase", "neighborhood", "score")


def plot_drift(
    table: pd.DataFrame,
    *,
    by: str | None = None,
    title: str = "How far the weights moved",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Change of the edited matrix per layer, against the unedited model.

    Args:
        table: columns ``layer`` and ``relative`` (‖W − W₀‖ / ‖W₀‖) or ``frobenius`` (‖W − W₀‖).
        by: column that names series (such as ``editor``), drawn as lines; None draws bars.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing, the table is empty or there are over eight series.

    Example:
        >>> plot_drift(wb.drift(view))
    """
    measure = "relative" if "relative" in table.columns else "frobenius"
    need_columns(table, ("layer", measure) + ((by,) if by else ()), "plot_drift")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme, legend=by is not None)
    relative = measure == "relative"
    hover = "layer %{x}: " + ("%{y:.3%}" if relative else "%{y:.4g}")
    if by is None:
        bars = {"color": PALETTE[0], "line": {"width": 0}}
        fig.add_bar(
            x=table["layer"], y=table[measure], marker=bars, hovertemplate=hover + "<extra></extra>"
        )
    for i, (name, part) in enumerate(_series(table, by, "plot_drift")):
        part = part.sort_values("layer")
        fig.add_trace(
            plotly().Scatter(
                name=words(name),
                x=part["layer"],
                y=part[measure],
                mode="lines+markers",
                hovertemplate=hover,
                **style(i),
            )
        )
    unit = (
        "change of the weights, relative" if relative else "change of the weights, Frobenius norm"
    )
    fig.update_yaxes(title=unit, rangemode="tozero", tickformat=".2~%" if relative else "~g")
    _layer_axis(fig, table["layer"])
    return finish(fig, _drift_alt(table, measure))


def plot_layer_sweep(
    table: pd.DataFrame,
    *,
    chosen: int | None = None,
    title: str = "Which layer to edit",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Scores of an editor by the layer it writes to, with the chosen layer marked.

    Args:
        table: columns ``layer`` and one or more of ``efficacy``, ``paraphrase``, ``neighborhood``
            and ``score``, shares from 0 to 1; a true value in a column ``chosen`` marks the layer.
        chosen: the marked layer; overrides the column.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if the layer or every score is missing.

    Example:
        >>> plot_layer_sweep(calibration.table, chosen=7)
    """
    need_columns(table, ("layer",), "plot_layer_sweep")
    drawn = [c for c in SWEPT if c in table.columns]
    if not drawn:
        raise OptionError(f"plot_layer_sweep: the table has none of {', '.join(SWEPT)}.")
    if chosen is None and "chosen" in table.columns and table["chosen"].any():
        chosen = int(table.loc[table["chosen"].astype(bool), "layer"].iloc[0])
    table = table.sort_values("layer")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    for i, name in enumerate(drawn):
        fig.add_scatter(
            name=name,
            x=table["layer"],
            y=table[name],
            mode="lines+markers",
            hovertemplate="layer %{x}: %{y:.1%}",
            **style(i),
        )
    if chosen is not None:
        _mark_layer(fig, chosen)
    fig.update_yaxes(title="share of probes", tickformat=".0%", range=[-0.03, 1.03])
    _layer_axis(fig, table["layer"])
    return finish(fig, _sweep_alt(table, drawn, chosen))


def _series(table: pd.DataFrame, by: str | None, who: str) -> list[tuple[str, pd.DataFrame]]:
    if by is None:
        return []
    series = [(str(name), part) for name, part in table.groupby(by, sort=False)]
    if len(series) > 8:
        raise OptionError(f"{who}: {by!r} has {len(series)} values; draw eight or fewer at once.")
    return series


def _layer_axis(fig: go.Figure, layers: pd.Series) -> None:
    low, high = int(layers.min()), int(layers.max())
    fig.update_xaxes(
        title="layer",
        range=[low - 0.6, high + 0.6],
        tick0=0,
        dtick=max(1, (high - low) // 12),
        showgrid=False,
        zeroline=False,
    )


def _mark_layer(fig: go.Figure, layer: int) -> None:
    fig.add_vline(x=layer, line={"color": NEUTRAL, "width": 2, "dash": "dot"}, layer="below")
    fig.add_annotation(
        x=layer, y=0, yref="paper", yanchor="bottom", xanchor="left", xshift=4, text="chosen"
    )


def _drift_alt(table: pd.DataFrame, measure: str) -> str:
    most = table.groupby("layer")[measure].max()
    moved = int((most > 0).sum())
    if not moved:
        return "Change of the weights per layer: none moved."
    top = most.idxmax()
    value = percent(most[top]) if measure == "relative" else f"{most[top]:.3g}"
    return (
        f"Change of the weights per layer: {moved} of {len(most)} layers moved, most layer "
        f"{top} ({value})."
    )


def _sweep_alt(table: pd.DataFrame, drawn: list[str], chosen: int | None) -> str:
    means = table.groupby("layer")[drawn].mean().dropna(axis=1, how="all")
    best = [
        f"{name} peaks at layer {column.idxmax()} ({percent(column.max())})"
        for name, column in means.items()
    ]
    end = f"; layer {chosen} is chosen" if chosen is not None else ""
    return "Scores by edited layer: " + "; ".join(best) + end + "."
