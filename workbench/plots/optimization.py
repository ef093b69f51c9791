"""Inside an edit: how closely a constraint is met, and how a target was found."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from workbench.errors import OptionError
from workbench.plots.theme import (
    NEUTRAL,
    PALETTE,
    finish,
    frame,
    legend_row,
    need_columns,
    new_figure,
    percent,
    plotly,
    style,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_closure", "plot_target_trace"]

CLOSURES = ("predicted_closure", "closure", "achieved_closure")
PARTS = ("loss", "nll", "kl", "weight_decay")
PART_NAMES = {"nll": "target (nll)", "kl": "drift (KL)", "weight_decay": "weight decay"}
#: Edits whose probability gets a legend entry of its own.
NAMED_EDITS = 4


def plot_closure(
    table: pd.DataFrame,
    *,
    chosen: float | None = None,
    title: str = "How much of the residual is written",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Share of the residual that a regularized solve closes, by its regularization λ.

    Args:
        table: columns ``lam`` (or ``lambda``) and ``predicted_closure`` (or ``closure``), shares
            from 0 to 1; if present ``achieved_closure`` (drawn beside it) and ``layer`` (a line
            a layer).
        chosen: the λ in use, marked.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or a λ is not positive (the axis is logarithmic).

    Example:
        >>> plot_closure(wb.closure(view, cases), chosen=1.5e4)
    """
    table = table.rename(columns={"lambda": "lam"})
    drawn = [c for c in CLOSURES if c in table.columns] or ["predicted_closure"]
    need_columns(table, ("lam", *drawn), "plot_closure")
    if not (table["lam"] > 0).all():
        raise OptionError("plot_closure: lam must be positive, the axis is logarithmic.")
    groups = table.groupby("layer", sort=True) if "layer" in table.columns else [("", table)]
    series = [
        (_closure_name(column, layer), part.sort_values("lam"), column)
        for layer, part in groups
        for column in drawn
    ]
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme, legend=len(series) > 1)
    for i, (name, part, column) in enumerate(series):
        fig.add_scatter(
            name=name,
            x=part["lam"],
            y=part[column],
            mode="lines+markers",
            hovertemplate="λ = %{x:.3g}: %{y:.1%}",
            **style(i),
        )
    if chosen is not None:
        _mark_lambda(fig, chosen)
    fig.update_xaxes(title="regularization λ", type="log", tickformat="~s", dtick=1)
    fig.update_yaxes(title="share closed", tickformat=".0%", range=[-0.03, 1.03])
    return finish(fig, _closure_alt(table, drawn[0], chosen))


def plot_target_trace(
    table: pd.DataFrame,
    *,
    title: str = "How the target was found",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """Optimization of the target value: parts of the loss, and the target's probability.

    Left, the median over edits of every part of the loss; right, the probability of each edit.

    Args:
        table: columns ``request``, ``step``, ``prob`` and one or more of ``loss``, ``nll``,
            ``kl``, ``weight_decay`` (nats).
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_target_trace(pd.DataFrame(targets.trace))
    """
    need_columns(table, ("step", "prob"), "plot_target_trace")
    if "request" not in table.columns:
        table = table.assign(request=0)
    parts = [c for c in PARTS if c in table.columns]
    if not parts:
        raise OptionError(f"plot_target_trace: the table has none of {', '.join(PARTS)}.")
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    plotly("subplots").make_subplots(rows=1, cols=2, figure=fig, horizontal_spacing=0.13)
    frame(fig, title, subtitle=subtitle, legend=True)
    _add_losses(fig, table, parts)
    _add_probabilities(fig, table)
    fig.update_layout(legend2=legend_row(fig, fig.layout.margin.t, 0.57))
    fig.update_xaxes(title="step of the optimization", rangemode="tozero", showgrid=False)
    several = table["request"].nunique() > 1
    loss = "loss, median (nats)" if several else "loss (nats)"
    fig.update_yaxes(title=loss, rangemode="tozero", col=1)
    fig.update_yaxes(title="probability of the target", tickformat=".0%", col=2)
    fig.update_yaxes(range=[-0.03, 1.03], col=2)
    return finish(fig, _trace_alt(table))


def _closure_name(column: str, layer: object) -> str:
    name = column.removesuffix("_closure")
    return f"layer {layer}, {name}" if layer != "" else name


def _mark_lambda(fig: go.Figure, lam: float) -> None:
    fig.add_vline(x=lam, line={"color": NEUTRAL, "width": 2, "dash": "dot"}, layer="below")
    fig.add_annotation(
        x=math.log10(lam),
        y=0,
        yref="paper",
        yanchor="bottom",
        xanchor="left",
        xshift=4,
        text=f"λ = {_number(lam)}",
    )


def _number(lam: float) -> str:
    return f"{lam:,.0f}" if lam >= 100 else f"{lam:.3g}"


def _add_losses(fig: go.Figure, table: pd.DataFrame, parts: list[str]) -> None:
    median = table.groupby("step")[parts].median()
    for i, part in enumerate(parts):
        fig.add_scatter(
            name=PART_NAMES.get(part, part),
            x=median.index,
            y=median[part],
            mode="lines",
            line=style(i)["line"],
            hovertemplate="step %{x}: %{y:.3f} nats",
            row=1,
            col=1,
        )


def _add_probabilities(fig: go.Figure, table: pd.DataFrame) -> None:
    edits = list(table.groupby("request", sort=True))
    few = len(edits) <= NAMED_EDITS
    for i, (request, part) in enumerate(edits):
        part = part.sort_values("step")
        look = style(i) if few else {"line": {"color": PALETTE[0], "width": 1.2, "dash": "solid"}}
        fig.add_scatter(
            name=f"edit {words(request)}",
            x=part["step"],
            y=part["prob"],
            mode="lines+markers" if few else "lines",
            opacity=1 if few else max(0.25, 4 / len(edits)),
            showlegend=few and len(edits) > 1,
            legend="legend2",
            hovertemplate="step %{x}: %{y:.1%}",
            row=1,
            col=2,
            **look,
        )


def _closure_alt(table: pd.DataFrame, column: str, chosen: float | None) -> str:
    by_lam = table.groupby("lam")[column].mean()
    text = (
        f"Share of the residual that is written: {percent(by_lam.iloc[0])} at λ = "
        f"{_number(by_lam.index[0])}, {percent(by_lam.iloc[-1])} at λ = {_number(by_lam.index[-1])}"
    )
    if chosen is not None:
        near = min(by_lam.index, key=lambda lam: abs(math.log10(lam / chosen)))
        text += f"; in use is λ = {_number(chosen)}, near {percent(by_lam[near])}"
    return text + "."


def _trace_alt(table: pd.DataFrame) -> str:
    ends = table.sort_values("step").groupby("request")["prob"]
    first, last = ends.first(), ends.last()
    n = len(last)
    who = "the target's probability" if n == 1 else f"the median target probability of {n} edits"
    return (
        f"Target optimization over {int(table['step'].max())} steps: {who} goes from "
        f"{percent(first.median())} to {percent(last.median())}."
    )
