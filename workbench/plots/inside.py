"""Inside an edit: tokens that a hook layer let through, neurons that NSE wrote, keys that clash."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.errors import OptionError
from workbench.plots.theme import (
    DIVERGING,
    NEUTRAL,
    SEQUENTIAL,
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

__all__ = ["plot_alpha", "plot_closures", "plot_conflicts", "plot_hooks", "plot_neurons"]

#: Prompts beyond this many requests are numbered instead of written out.
MAX_NAMES = 16
#: Of a curve over thousands of neurons so many are drawn.
POINTS = 200


def plot_hooks(
    table: pd.DataFrame,
    *,
    prompt: int = 0,
    title: str = "Which tokens take the edited output",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Gate scores over the tokens of a prompt, a row a hook layer; open gates are outlined.

    Args:
        table: as from ``wb.hook_gates``: ``prompt, layer, pos, token, z, alpha, open``.
        prompt: which prompt of the table.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or the prompt is not in the table.

    Example:
        >>> plot_hooks(wb.hook_gates(view, "The mother tongue of Danielle Darrieux is"))
    """
    need_columns(table, ("prompt", "layer", "pos", "token", "z", "alpha", "open"), "plot_hooks")
    part = table[table["prompt"] == prompt]
    if part.empty:
        raise OptionError(f"plot_hooks: prompt={prompt} is not in the table.")
    z = part.pivot(index="layer", columns="pos", values="z").replace(-math.inf, math.nan)
    tokens = part.drop_duplicates("pos").sort_values("pos")["token"].tolist()
    alpha = part.drop_duplicates("layer").set_index("layer")["alpha"].reindex(z.index)
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme, legend=False)
    limit = float(z.abs().max().max())
    names = [f"layer {layer}<br>α {alpha[layer]:.2f}" for layer in z.index]
    fig.add_trace(
        plotly().Heatmap(
            z=z.to_numpy(),
            x=list(range(len(tokens))),
            y=names,
            zmin=-limit,
            zmax=limit,
            colorscale=DIVERGING,
            reversescale=True,
            texttemplate="%{z:.1f}",
            colorbar={"title": "Z", "thickness": 12},
            hovertemplate="%{y}, token %{x}: Z = %{z:.2f}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    for row in part[part["open"]].itertuples():
        y = list(z.index).index(row.layer)
        fig.add_shape(
            type="rect", x0=row.pos - 0.48, x1=row.pos + 0.48, y0=y - 0.47, y1=y + 0.47,
            line={"width": 3, "color": style(1)["line"]["color"]},
        )  # fmt: skip
    ticks = {"tickvals": list(range(len(tokens))), "ticktext": [words(t) for t in tokens]}
    fig.update_xaxes(**ticks, showgrid=False)
    fig.update_yaxes(showgrid=False, autorange="reversed")
    return finish(fig, _gates_in_words(part))


def plot_alpha(
    table: pd.DataFrame,
    *,
    title: str = "The gates' thresholds",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Threshold of each hook layer after every batch.

    Args:
        table: as from ``wb.alpha_history``: ``entry, layer, alpha_before, alpha``.
        title, subtitle, size, theme: as in :func:`plot_hooks`.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_alpha(wb.alpha_history(view))
    """
    need_columns(table, ("entry", "layer", "alpha_before", "alpha"), "plot_alpha")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    ends = []
    for i, (layer, part) in enumerate(_by_layer(table)):
        part = part.sort_values("entry")
        x = [0, *(part["entry"] + 1)]
        y = [part["alpha_before"].iloc[0], *part["alpha"]]
        fig.add_trace(
            plotly().Scatter(
                name=f"layer {layer}", x=x, y=y, mode="lines+markers",
                line_shape="hv", **style(i),
            )
        )  # fmt: skip
        ends.append(f"layer {layer} {y[0]:.2f} to {y[-1]:.2f}")
    fig.update_xaxes(title="edits on the stack", rangemode="tozero", tickformat="d")
    fig.update_yaxes(title="threshold α")
    return finish(fig, "Thresholds by number of edits: " + ", ".join(ends) + ".")


def plot_neurons(
    table: pd.DataFrame,
    *,
    title: str = "How many neurons hold the score",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Cumulative score over neurons, best first; the mark shows how many were chosen.

    Args:
        table: as from ``wb.neuron_table``: ``layer, rank, cumulative, selected``.
        title, subtitle, size, theme: as in :func:`plot_hooks`.

    Raises:
        OptionError: if a column is missing.

    Example:
        >>> plot_neurons(wb.neuron_table(view, cases))
    """
    need_columns(table, ("layer", "rank", "cumulative", "selected"), "plot_neurons")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    said = []
    for i, (layer, part) in enumerate(_by_layer(table)):
        part = part.sort_values("rank")
        line = part.iloc[np.unique(np.linspace(0, len(part) - 1, POINTS).round().astype(int))]
        look = style(i)
        fig.add_trace(
            plotly().Scatter(
                name=f"layer {layer}", x=line["rank"] / len(part), y=line["cumulative"],
                mode="lines",
                line=look["line"], hovertemplate="%{x:.0%} of neurons: %{y:.0%} of the score",
            )
        )  # fmt: skip
        chosen = part[part["selected"]]
        if len(chosen):
            last = chosen.iloc[-1]
            fig.add_trace(
                plotly().Scatter(
                    x=[last["rank"] / len(part)], y=[last["cumulative"]], mode="markers",
                    marker=look["marker"] | {"size": 12}, showlegend=False,
                    hovertemplate=f"{len(chosen)} of {len(part)} chosen<extra></extra>",
                )
            )  # fmt: skip
            said.append(f"layer {layer} {percent(len(chosen) / len(part))}")
    fig.update_xaxes(title="share of neurons, best first", tickformat=".0%", range=[0, 1])
    fig.update_yaxes(title="share of the score", tickformat=".0%", range=[0, 1.02])
    return finish(fig, "Share of neurons chosen: " + (", ".join(said) or "none") + ".")


def plot_closures(
    table: pd.DataFrame,
    *,
    title: str = "How much of its share each layer wrote",
    subtitle: str = "",
    size: str = "square",
    theme: str = "light",
) -> go.Figure:
    """Predicted against achieved closure, a dot a request and layer.

    Args:
        table: as from ``wb.closures``: ``layer, predicted, achieved``.
        title, subtitle, size, theme: as in :func:`plot_hooks`.

    Raises:
        OptionError: if a column is missing, or no layer has both numbers.

    Example:
        >>> plot_closures(wb.closures(edit))
    """
    need_columns(table, ("layer", "predicted", "achieved"), "plot_closures")
    known = table.dropna(subset=["predicted", "achieved"])
    if known.empty:
        raise OptionError("plot_closures: no row has both a predicted and an achieved closure.")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    low = min(0.0, float(known["achieved"].min()))
    high = max(1.0, float(known["achieved"].max()))
    fig.add_shape(
        type="line", x0=0, x1=1, y0=0, y1=1, line={"dash": "dot", "width": 1, "color": NEUTRAL}
    )
    for i, (layer, part) in enumerate(_by_layer(known)):
        fig.add_trace(
            plotly().Scatter(
                name=f"layer {layer}", x=part["predicted"], y=part["achieved"], mode="markers",
                marker=style(i)["marker"] | {"opacity": 0.7},
                hovertemplate="predicted %{x:.0%}, achieved %{y:.0%}",
            )
        )  # fmt: skip
    fig.update_xaxes(title="predicted from leverage and λ", tickformat=".0%", range=[0, 1.02])
    span = 0.03 * (high - low)
    fig.update_yaxes(title="achieved", tickformat=".0%", range=[low - span, high + span])
    medians = known.groupby("layer")[["predicted", "achieved"]].median()
    said = [
        f"layer {layer}: predicted {percent(row.predicted)}, achieved {percent(row.achieved)}"
        for layer, row in medians.iterrows()
    ]
    return finish(fig, "Median closure. " + "; ".join(said) + ".")


def plot_conflicts(
    table: pd.DataFrame,
    *,
    layer: int | None = None,
    title: str = "How alike the keys are",
    subtitle: str = "",
    size: str = "square",
    theme: str = "light",
) -> go.Figure:
    """Cosine of whitened keys for every pair of requests.

    Args:
        table: as from ``wb.key_conflicts``: ``layer, a, b, cosine, prompt_a, prompt_b``.
        layer: which layer; None takes the highest.
        title, subtitle, size, theme: as in :func:`plot_hooks`.

    Raises:
        OptionError: if a column is missing or the layer is not in the table.

    Example:
        >>> plot_conflicts(wb.key_conflicts(view, cases))
    """
    need_columns(table, ("layer", "a", "b", "cosine", "prompt_a", "prompt_b"), "plot_conflicts")
    layer = int(table["layer"].max()) if layer is None else layer
    part = table[table["layer"] == layer]
    if part.empty:
        raise OptionError(f"plot_conflicts: layer {layer} is not in the table.")
    n = int(part["b"].max()) + 1
    grid = [[1.0 if i == j else math.nan for j in range(n)] for i in range(n)]
    names = [str(i) for i in range(n)]
    for row in part.itertuples():
        grid[row.a][row.b] = grid[row.b][row.a] = row.cosine
        names[row.a], names[row.b] = row.prompt_a, row.prompt_b
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme, legend=False)
    short = [words(t if len(t) <= 28 else t[:27] + "…") for t in names]
    labels = short if n <= MAX_NAMES else [str(i) for i in range(n)]
    fig.add_trace(
        plotly().Heatmap(
            z=grid, x=labels, y=labels, zmin=0, zmax=1, colorscale=SEQUENTIAL,
            colorbar={"title": "cosine", "thickness": 12},
            hovertemplate="%{x}<br>%{y}<br>cosine %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(showgrid=False, tickangle=-45)
    fig.update_yaxes(showgrid=False, autorange="reversed")
    top = part.sort_values("cosine", ascending=False).iloc[0]
    return finish(
        fig,
        f"Most alike at layer {layer}: {top['prompt_a']!r} and {top['prompt_b']!r}, cosine "
        f"{top['cosine']:.2f}; median {part['cosine'].median():.2f}.",
    )


def _by_layer(table: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    for layer, part in table.groupby("layer", sort=True):
        yield int(layer), part


def _gates_in_words(part: pd.DataFrame) -> str:
    said = []
    for layer, rows in part.groupby("layer", sort=True):
        opened = rows[rows["open"]].sort_values("pos")["token"].str.strip().tolist()
        said.append(f"layer {layer} lets through {', '.join(map(repr, opened)) or 'nothing'}")
    return "Gates: " + "; ".join(said) + "."
