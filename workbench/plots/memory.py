"""A codebook over time and in the plane, and retention after every edit (GRACE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.plots.theme import (
    NEUTRAL,
    PALETTE,
    finish,
    frame,
    need_columns,
    new_figure,
    percent,
    plotly,
    style,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_codebook", "plot_codebook_map", "plot_radii", "plot_retention"]

OPS = ("add", "split", "expand", "refine", "overwrite")


def plot_codebook(
    table: pd.DataFrame,
    *,
    title: str = "The codebook grows",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Entries after each fact, marked by what the fact did.

    Args:
        table: as from ``wb.codebook_history``: ``op, size, edits_per_key, radius, prompt``.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_codebook(wb.codebook_history(view))
    """
    need_columns(table, ("op", "size", "edits_per_key", "radius", "prompt"), "plot_codebook")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    facts = pd.Series(range(1, len(table) + 1), index=table.index)
    line = {"color": NEUTRAL, "width": 1.5}
    fig.add_trace(
        plotly().Scatter(
            x=facts, y=table["size"], mode="lines", line=line, line_shape="hv",
            showlegend=False, hoverinfo="skip",
        )
    )  # fmt: skip
    present = [op for op in OPS if (table["op"] == op).any()]
    for i, op in enumerate(present):
        part = table[table["op"] == op]
        fig.add_trace(
            plotly().Scatter(
                name=op,
                x=facts[part.index],
                y=part["size"],
                mode="markers",
                marker=style(i)["marker"],
                text=[words(t) for t in part["prompt"]],
                customdata=part[["radius"]].to_numpy(),
                hovertemplate="%{text}<br>radius %{customdata[0]:.3g}<extra>" + op + "</extra>",
            )
        )
    fig.update_xaxes(title="facts written", **_whole(len(table)))
    fig.update_yaxes(title="entries", **_whole(int(table["size"].max())))
    counts = ", ".join(f"{op} {int((table['op'] == op).sum())}" for op in present)
    last = table.iloc[-1]
    alt = (
        f"{len(table)} facts made {int(last['size'])} entries, {last['edits_per_key']:.2f} facts "
        f"an entry: {counts}."
    )
    return finish(fig, alt)


def plot_codebook_map(
    table: pd.DataFrame,
    *,
    title: str = "Keys, balls and prompts",
    subtitle: str = "",
    size: str = "square",
    theme: str = "light",
) -> go.Figure:
    """Keys with their balls in the plane, and prompts by whether an entry answers them.

    Args:
        table: as from ``wb.codebook_map``: ``what, text, label, x, y, radius, fires, margin``.
        title, subtitle, size, theme: as in :func:`plot_codebook`.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_codebook_map(wb.codebook_map(view, prompts))
    """
    columns = ("what", "text", "label", "x", "y", "radius", "fires", "margin")
    need_columns(table, columns, "plot_codebook_map")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    keys, prompts = table[table["what"] == "key"], table[table["what"] == "prompt"]
    for row in keys.itertuples():
        r = float(row.radius)
        fig.add_shape(
            type="circle", x0=row.x - r, x1=row.x + r, y0=row.y - r, y1=row.y + r,
            line={"color": PALETTE[0], "width": 1}, fillcolor=PALETTE[0], opacity=0.15,
        )  # fmt: skip
    groups = [
        ("key", keys, style(0)),
        ("answered", prompts[prompts["fires"].astype(bool)], style(1)),
        ("left to the model", prompts[~prompts["fires"].astype(bool)], style(2)),
    ]
    for name, part, look in groups:
        if part.empty:
            continue
        value = part["radius"] if name == "key" else part["margin"]
        what = "radius" if name == "key" else "distance / radius"
        fig.add_trace(
            plotly().Scatter(
                name=name,
                x=part["x"],
                y=part["y"],
                mode="markers",
                marker=look["marker"],
                text=part["text"].map(words) + " → " + part["label"].map(words),
                customdata=value.to_numpy()[:, None],
                hovertemplate="%{text}<br>" + what + " %{customdata[0]:.3g}<extra></extra>",
            )
        )
    fig.update_yaxes(scaleanchor="x", title="component 2")
    fig.update_xaxes(title="component 1")
    share = table.attrs.get("explained")
    held = f"; the plane holds {percent(share)} of the variance" if share is not None else ""
    answered = int(prompts["fires"].sum())
    alt = f"{len(keys)} keys; {answered} of {len(prompts)} prompts are answered by one{held}."
    return finish(fig, alt)


def plot_retention(
    table: pd.DataFrame,
    *,
    title: str = "After every edit",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """A measure after every single edit, a line a kind of probe.

    Args:
        table: as from ``wb.retention_curves``: ``step, kind, value``.
        title, subtitle, size, theme: as in :func:`plot_codebook`.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_retention(wb.retention_curves(wb.answer_spans(view, cases)))
    """
    need_columns(table, ("step", "kind", "value"), "plot_retention")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    ends = []
    for i, (kind, part) in enumerate(table.dropna(subset=["value"]).groupby("kind", sort=False)):
        part = part.sort_values("step")
        fig.add_trace(
            plotly().Scatter(
                name=str(kind), x=part["step"], y=part["value"], mode="lines",
                line=style(i)["line"],
            )
        )  # fmt: skip
        ends.append(f"{kind} {part['value'].iloc[0]:.2f} to {part['value'].iloc[-1]:.2f}")
    fig.update_xaxes(title="edits", **_whole(int(table["step"].max())))
    fig.update_yaxes(title="share", range=[0, 1.02])
    return finish(fig, "From the first edit to the last: " + ", ".join(ends) + ".")


def plot_radii(
    table: pd.DataFrame,
    columns: Sequence[str] = ("err", "holdout", "trr", "keys"),
    *,
    title: str = "What a radius holds",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Measures by radius of a new ball, a panel a measure and a line a layer.

    Args:
        table: ``layer, epsilon`` and the measures, as from ``wb.radius_study`` or the ``.table`` of
            ``wb.GRACE.calibrate``.
        columns: the measures.
        title, subtitle, size, theme: as in :func:`plot_codebook`.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_radii(wb.radius_study(view, task, layers=(0, 1), epsilons=(0.5, 1.0)))
    """
    need_columns(table, ("layer", "epsilon", *columns), "plot_radii")
    fig = new_figure("", size=size, theme=theme)
    panels = [f"<b>{words(c)}</b>" for c in columns]
    plotly("subplots").make_subplots(rows=1, cols=len(columns), figure=fig, subplot_titles=panels)
    for i, (layer, part) in enumerate(table.dropna(subset=["epsilon"]).groupby("layer")):
        part = part.sort_values("epsilon")
        for k, column in enumerate(columns, 1):
            line = plotly().Scatter(
                name=f"layer {layer:g}", x=part["epsilon"], y=part[column], mode="lines+markers",
                legendgroup=str(layer), showlegend=k == 1, **style(i),
            )  # fmt: skip
            fig.add_trace(line, row=1, col=k)
    fig.update_xaxes(title="radius", type="log")
    for k, column in enumerate(columns, 1):
        share = float(table[column].max()) <= 1
        span = {"range": [0, 1.04]} if share else {"rangemode": "tozero"}
        fig.update_yaxes(**span, row=1, col=k)
    frame(fig, title, subtitle=subtitle, legend=True)
    ends = [f"{c} {table[c].min():.3g} to {table[c].max():.3g}" for c in columns]
    layers = ", ".join(f"{x:g}" for x in sorted(table["layer"].dropna().unique()))
    return finish(fig, f"Layers {layers}; over all radii: {'; '.join(ends)}.")


def _whole(most: int) -> dict[str, Any]:
    """An axis from zero on whose ticks are whole numbers, about six of them."""
    return {"rangemode": "tozero", "tickformat": "d", "dtick": max(1, round(most / 6))}
