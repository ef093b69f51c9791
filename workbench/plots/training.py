"""Learned editors: how training went, what success costs, and what becomes of a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from workbench.plots.theme import (
    NEUTRAL,
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

__all__ = ["plot_gradients", "plot_tradeoff", "plot_training"]

LOSSES = {"train_edit": "edit, training", "edit": "edit, held out", "local": "rest, held out"}
SHARES = {"success": "edit success", "accuracy_before": "rest, before", "accuracy_after": "after"}
#: Logarithmic axes begin here.
FLOOR = 1e-6


def plot_training(
    table: pd.DataFrame,
    *,
    title: str = "How the editor was trained",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """Training curves: left the losses, right edit success and what is left of other answers.

    Args:
        table: of :func:`workbench.training_curve`: ``step, train_edit, edit, local, success,
            accuracy_before, accuracy_after``, and ``best`` if the kept state shall be marked.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_training(wb.training_curve(wb.MEND.preset(view)))  # doctest: +SKIP
    """
    need_columns(table, ("step", *LOSSES, *SHARES), "plot_training")
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    plotly("subplots").make_subplots(rows=1, cols=2, figure=fig, horizontal_spacing=0.13)
    frame(fig, title, subtitle=subtitle, legend=True)
    _add_curves(fig, table, LOSSES, 1, "legend", "step %{x}: %{y:.3g} nats")
    _add_curves(fig, table, SHARES, 2, "legend2", "step %{x}: %{y:.1%}")
    fig.update_layout(legend2=legend_row(fig, fig.layout.margin.t, 0.53))
    fig.update_xaxes(title="optimizer steps", rangemode="tozero", showgrid=False)
    fig.update_yaxes(title="loss (nats a token)", type="log", tickformat="~g", col=1)
    fig.update_yaxes(title="share of answers", tickformat=".0%", range=[-0.03, 1.03], col=2)
    best = table[table["best"]] if "best" in table.columns else table.iloc[:0]
    for step in best["step"]:
        fig.add_vline(x=step, line={"color": NEUTRAL, "width": 2, "dash": "dot"}, layer="below")
    return finish(fig, _training_alt(table, best))


def plot_tradeoff(
    table: pd.DataFrame,
    *,
    title: str = "What edit success costs",
    subtitle: str = "",
    size: str = "square",
    theme: str = "light",
) -> go.Figure:
    """Edit success against drawdown; the upper left is where an editor should be.

    Args:
        table: columns ``success`` and ``drawdown`` (shares, or a rise of perplexity); if present
            ``editor`` (a series each), ``n_edits`` (joined in this order and written beside the
            points) or ``step``.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_tradeoff(wb.training_curve(wb.MEND.preset(view)))  # doctest: +SKIP
    """
    need_columns(table, ("success", "drawdown"), "plot_tradeoff")
    if "editor" not in table.columns:
        table = table.assign(editor="editor")
    order = next((c for c in ("n_edits", "step") if c in table.columns), None)
    several = table["editor"].nunique() > 1
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme, legend=several)
    for i, (editor, part) in enumerate(table.groupby("editor", sort=False)):
        part = part.sort_values(order) if order else part
        labeled = order == "n_edits"
        fig.add_scatter(
            name=words(editor),
            x=part["drawdown"],
            y=part["success"],
            text=part[order] if order else None,
            mode="lines+markers+text" if labeled else "lines+markers" if order else "markers",
            textposition="top center",
            hovertemplate="drawdown %{x:.3g}, success %{y:.1%}"
            + (f", {words(order.replace('_', ' '))} %{{text}}" if order else ""),
            **style(i),
        )
    fig.update_xaxes(title="drawdown on the rest", rangemode="tozero")
    fig.update_yaxes(title="edit success", tickformat=".0%", range=[-0.03, 1.06])
    return finish(fig, _tradeoff_alt(table))


def plot_gradients(
    table: pd.DataFrame,
    *,
    title: str = "From gradient to edit",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """Each matrix's gradient and its change: left their norms, right the cosine of the two.

    Args:
        table: of :func:`workbench.gradient_table`: ``matrix, gradient_norm, change_norm, cosine``.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_gradients(wb.gradient_table(view, editor, request))  # doctest: +SKIP
    """
    need_columns(table, ("matrix", "gradient_norm", "change_norm", "cosine"), "plot_gradients")
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    plotly("subplots").make_subplots(rows=1, cols=2, figure=fig, horizontal_spacing=0.06)
    frame(fig, title, subtitle=subtitle, legend=True)
    names = [words(n) for n in _short(list(table["matrix"]))]
    for i, (column, name) in enumerate(
        (("gradient_norm", "gradient"), ("change_norm", "change of the weight"))
    ):
        fig.add_scatter(
            name=name,
            x=table[column].clip(lower=FLOOR),
            y=names,
            mode="markers",
            marker=style(i)["marker"],
            hovertemplate="%{y}: %{x:.3g}",
            row=1,
            col=1,
        )
    fig.add_bar(
        x=table["cosine"],
        y=names,
        orientation="h",
        marker={"color": style(2)["marker"]["color"]},
        showlegend=False,
        hovertemplate="%{y}: %{x:.2f}",
        row=1,
        col=2,
    )
    fig.update_xaxes(title="norm", type="log", tickformat="~g", col=1)
    fig.update_xaxes(title="cosine (−1: a plain step down)", range=[-1.05, 1.05], col=2)
    fig.update_yaxes(autorange="reversed")
    fig.update_yaxes(showticklabels=False, col=2)
    return finish(fig, _gradients_alt(table))


def _add_curves(
    fig: go.Figure, table: pd.DataFrame, columns: dict[str, str], col: int, legend: str, hover: str
) -> None:
    for i, (column, name) in enumerate(columns.items()):
        values = table[column].clip(lower=FLOOR) if col == 1 else table[column]
        fig.add_scatter(
            name=name,
            x=table["step"],
            y=values,
            mode="lines+markers",
            legend=legend,
            hovertemplate=hover,
            row=1,
            col=col,
            **style(i + (3 if col == 2 else 0)),
        )


def _short(names: list[str]) -> list[str]:
    """Names of matrices without what they have in common."""
    parts = [n.removesuffix(".weight").split(".") for n in names]
    while len(parts) > 1 and all(len(p) > 2 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return [".".join(p) for p in parts]


def _training_alt(table: pd.DataFrame, best: pd.DataFrame) -> str:
    end = best.iloc[-1] if len(best) else table.iloc[-1]
    lost = end["accuracy_before"] - end["accuracy_after"]
    return (
        f"Training over {int(table['step'].max())} steps: at step {int(end['step'])} "
        f"{percent(end['success'])} of held-out edits succeed, and {percent(lost)} of other "
        "answers are lost."
    )


def _tradeoff_alt(table: pd.DataFrame) -> str:
    best = table.loc[table.groupby("editor", sort=False)["success"].idxmax()]
    said = [
        f"{r.editor}: success {percent(r.success)} at drawdown {r.drawdown:.3g}"
        for r in best.itertuples()
    ]
    return "Edit success against drawdown. " + "; ".join(said) + "."


def _gradients_alt(table: pd.DataFrame) -> str:
    top = table.loc[table["change_norm"].idxmax()]
    return (
        f"Gradient and change of {len(table)} matrices: the largest change is that of "
        f"{top['matrix']}, norm {top['change_norm']:.3g}, at cosine {top['cosine']:.2f} to its "
        "gradient."
    )
