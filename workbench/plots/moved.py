"""What an edit moved: residuals by layer, tokens that its change of the value pushes."""

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
    token_label,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_promoted", "plot_residual_shift"]

PLACES = {"subject": "last token of the subject", "last token": "last token of the prompt"}


def plot_residual_shift(
    table: pd.DataFrame,
    *,
    title: str = "How far the edit moves the residual",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """Relative change of the residual by layer; edited layers are shaded.

    Args:
        table: as from ``wb.residual_shift``.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or the table is empty.

    Example:
        >>> plot_residual_shift(wb.residual_shift(view, edit, edit.requests[0]))
    """
    names = ("layer", "place", "token", "relative", "cosine", "kl", "edited")
    need_columns(table, names, "plot_residual_shift")
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    edited = sorted(table.loc[table["edited"].astype(bool), "layer"].unique())
    for layer in edited:
        fig.add_vrect(
            x0=layer - 0.5, x1=layer + 0.5, fillcolor=NEUTRAL, opacity=0.25, line_width=0,
            layer="below",
        )  # fmt: skip
    if edited:
        fig.add_annotation(
            x=edited[0], y=1, yref="paper", yanchor="bottom", xanchor="center", text="edited"
        )
    said = []
    places = [p for p in PLACES if p in set(table["place"])]
    for i, place in enumerate(places):
        part = table[table["place"] == place].sort_values("layer")
        fig.add_trace(
            plotly().Scatter(
                name=f"{PLACES[place]} ({token_label(part['token'].iloc[0])})",
                x=part["layer"], y=part["relative"], mode="lines+markers",
                customdata=part[["cosine", "kl"]],
                hovertemplate="layer %{x}: %{y:.2%}<br>cosine %{customdata[0]:.3f}, KL of the lens "
                "%{customdata[1]:.3g} nats<extra></extra>",
                **style(i),
            )
        )  # fmt: skip
        best = part.loc[part["relative"].idxmax()]
        said.append(f"{PLACES[place]} most at layer {best['layer']} ({percent(best['relative'])})")
    low, high = int(table["layer"].min()), int(table["layer"].max())
    fig.update_xaxes(
        title="layer (-1: embedding)", range=[low - 0.6, high + 0.6], showgrid=False,
        zeroline=False, tick0=0, dtick=max(1, -(-(high + 1) // 15)),
    )  # fmt: skip
    fig.update_yaxes(
        title="change of the residual, relative", tickformat=".2~%", rangemode="tozero"
    )
    where = f" Edited: {', '.join(map(str, edited))}." if edited else ""
    return finish(fig, "Shift of the residual: " + "; ".join(said) + "." + where)


def plot_promoted(
    table: pd.DataFrame,
    *,
    layer: int | None = None,
    request: int = 0,
    title: str = "What the edit pushes up and down",
    subtitle: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Tokens promoted and suppressed by the change of one layer's value, for one request.

    Args:
        table: as from ``wb.promoted_tokens``.
        layer: which edited layer; None takes the one with the largest change.
        request: which of the edit's requests.
        title, subtitle: may use plotly's markup; a subtitle of None names layer and prompt.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing, the table is empty, or layer or request is not in it.

    Example:
        >>> plot_promoted(wb.promoted_tokens(view, edit))
    """
    names = ("layer", "request", "prompt", "direction", "rank", "token", "change")
    need_columns(table, names, "plot_promoted")
    part = table[table["request"] == request]
    if layer is None and len(part):
        layer = int(part.loc[part["change"].abs().idxmax(), "layer"])
    part = part[part["layer"] == layer]
    if part.empty:
        raise OptionError(f"plot_promoted: layer={layer}, request={request} is not in the table.")
    if subtitle is None:
        subtitle = f"layer {layer}, {words(part['prompt'].iloc[0])}"
    part = part.sort_values("change", ascending=False, kind="stable").reset_index(drop=True)
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    for i, direction in enumerate(("promoted", "suppressed")):
        rows = part[part["direction"] == direction]
        fig.add_trace(
            plotly().Bar(
                name=direction, x=rows["change"], y=rows.index, orientation="h",
                marker={"color": PALETTE[i], "line": {"width": 0}},
                text=[token_label(t) for t in rows["token"]], textposition="outside",
                cliponaxis=False, constraintext="none",
                hovertext=[
                    f"{words(repr(t))}: {c:+.3g}"
                    for t, c in zip(rows["token"], rows["change"], strict=True)
                ],
                hoverinfo="text",
            )
        )  # fmt: skip
    reach = float(part["change"].abs().max()) * 1.3 or 1.0
    fig.update_xaxes(
        title="change of the logit, against the vocabulary's mean", range=[-reach, reach]
    )
    fig.update_yaxes(showticklabels=False, showgrid=False, autorange="reversed")
    fig.update_layout(bargap=0.25, barmode="overlay")
    ups = part[part["direction"] == "promoted"]["token"].head(3).map(repr)
    downs = part[part["direction"] == "suppressed"].sort_values("rank")["token"].head(3).map(repr)
    return finish(
        fig,
        f"At layer {layer} the edit promotes {', '.join(ups)} and suppresses {', '.join(downs)}.",
    )
