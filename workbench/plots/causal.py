"""The causal trace: which token and layer a fact passes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from workbench.errors import OptionError, did_you_mean
from workbench.plots.theme import (
    NEUTRAL,
    SEQUENTIAL,
    finish,
    frame,
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

__all__ = ["plot_causal", "plot_causal_average"]

#: kind → what is restored
KINDS = {
    "residual": "one residual",
    "mlp": "MLP outputs around a layer",
    "attention": "attention outputs around a layer",
}
DRAWN_ROLES = ("last subject token", "last")


def plot_causal(
    table: pd.DataFrame,
    *,
    kind: str | None = None,
    title: str = "Where the fact passes",
    subtitle: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """A map of tokens (down) and layers (across); tokens of the subject have an asterisk.

    Color is the answer's probability with the subject corrupted and the cell restored, from the
    corrupted run's (darkest) to the best cell's.

    Args:
        table: as from ``wb.causal_trace``.
        kind: ``residual``, ``mlp`` or ``attention``; None takes the table's first.
        title, subtitle: may use plotly's markup; a subtitle of None says what is restored.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or the kind is not in the table.

    Example:
        >>> plot_causal(wb.causal_trace(view, case), kind="mlp")
    """
    columns = ("kind", "layer", "position", "token", "role", "prob", "low", "high", "answer")
    need_columns(table, (*columns, "prob_clean", "prob_corrupted"), "plot_causal")
    part = _of_kind(table, kind, "plot_causal")
    kind, first = str(part["kind"].iloc[0]), part.iloc[0]
    answer = words(repr(first["answer"]))
    if subtitle is None:
        subtitle = (
            f"P({answer}) with {_restored(kind, table)} restored; clean "
            f"{percent(first['prob_clean'])}, corrupted {percent(first['prob_corrupted'])}"
        )
    grid = {
        c: part.pivot(index="position", columns="layer", values=c) for c in ("prob", "low", "high")
    }
    tokens = part.drop_duplicates("position").set_index("position").sort_index()
    fig = new_figure(title, subtitle=subtitle, theme=theme, legend=False)
    fig.update_layout(height=max(fig.layout.height, 22 * len(tokens) + 150))
    frame(fig, title, subtitle=subtitle, legend=False)
    rows = list(range(len(tokens)))
    top = max(float(part["prob"].max()), float(first["prob_corrupted"]) + 1e-6)
    fig.add_trace(
        plotly().Heatmap(
            z=grid["prob"].to_numpy(), x=grid["prob"].columns.tolist(), y=rows,
            zmin=float(first["prob_corrupted"]), zmax=top, colorscale=SEQUENTIAL, xgap=1, ygap=1,
            hovertext=_hover(grid, tokens, kind), hoverinfo="text",
            colorbar={
                "title": {"text": f"P({answer})", "font": {"size": 13}}, "tickformat": ".2~%",
                "thickness": 12,
            },
        )
    )  # fmt: skip
    inside = tokens["role"].str.contains("subject token")
    names = [
        token_label(t) + ("*" if s else "") for t, s in zip(tokens["token"], inside, strict=True)
    ]
    fig.update_yaxes(
        title="token", tickvals=rows, ticktext=names, autorange="reversed", showgrid=False
    )
    _layer_axis(fig, part["layer"])
    return finish(fig, _map_in_words(part, kind))


def plot_causal_average(
    table: pd.DataFrame,
    *,
    kind: str | None = None,
    title: str = "Where facts pass, on average",
    subtitle: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Mean effect by layer at the subject's last token and at the prompt's, with 95 % bands.

    Args:
        table: as from ``wb.causal_average``.
        kind: one of the table's kinds; None draws a panel each.
        title, subtitle: may use plotly's markup; a subtitle of None says how many facts.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing, or kind or both roles are not in the table.

    Example:
        >>> plot_causal_average(wb.causal_average(view, cases, limit=30))
    """
    names = ("kind", "role", "layer", "effect", "low", "high", "n")
    need_columns(table, names, "plot_causal_average")
    kinds = list(dict.fromkeys(table["kind"])) if kind is None else [kind]
    parts = {k: _of_kind(table, k, "plot_causal_average") for k in kinds}
    drawn = table[table["role"].isin(DRAWN_ROLES) & table["kind"].isin(kinds)]
    if drawn.empty:
        raise OptionError(f"plot_causal_average: no row has a role of {', '.join(DRAWN_ROLES)}.")
    if subtitle is None:
        subtitle = f"effect of restoring, mean of {int(drawn['n'].max())} facts, 95 % interval"
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    plotly("subplots").make_subplots(
        rows=1, cols=len(kinds), figure=fig, shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[f"<b>{_restored(k, table)}</b>" for k in kinds],
    )  # fmt: skip
    frame(fig, title, subtitle=subtitle, legend=True)
    fig.update_layout(margin_t=fig.layout.margin.t + 24)
    fig.update_annotations(font={"size": 13})
    for column, (name, part) in enumerate(parts.items(), 1):
        for i, role in enumerate(DRAWN_ROLES):
            line = part[part["role"] == role].sort_values("layer")
            if len(line):
                _band(fig, line, i, column, _role(role), legend=column == 1, kind=name)
        fig.add_hline(y=0, line={"color": NEUTRAL, "width": 1}, row=1, col=column)
    fig.update_yaxes(title="effect on P(answer)", tickformat=".0~%", col=1)
    _layer_axis(fig, drawn["layer"], labels=15 // len(kinds))
    return finish(fig, _average_in_words(drawn))


def _of_kind(table: pd.DataFrame, kind: str | None, who: str) -> pd.DataFrame:
    kinds = list(dict.fromkeys(table["kind"]))
    if kind is not None and kind not in kinds:
        raise OptionError(f"{who}: kind={kind!r} is not in the table." + did_you_mean(kind, kinds))
    return table[table["kind"] == (kinds[0] if kind is None else kind)]


def _restored(kind: str, table: pd.DataFrame) -> str:
    window, severed = table.attrs.get("window"), table.attrs.get("severed")
    if kind != "residual" and window:
        module = "MLP" if kind == "mlp" else kind
        return f"{module} output{'s' if window > 1 else ''} of {window} layer{'s' * (window > 1)}"
    names = {"mlp": "MLPs", "attention": "attention"}
    return KINDS.get(kind, kind) + (f", {names[severed]} above severed" if severed else "")


def _hover(grid: dict[str, pd.DataFrame], tokens: pd.DataFrame, kind: str) -> list[list[str]]:
    return [
        [
            f"{words(repr(row.token))}, {row.role}<br>{kind} at layer {layer}: "
            f"{100 * grid['prob'].loc[position, layer]:.3g} %<br>"
            f"5th to 95th percentile of the noise: {100 * grid['low'].loc[position, layer]:.2g} to "
            f"{100 * grid['high'].loc[position, layer]:.2g} %"
            for layer in grid["prob"].columns
        ]
        for position, row in zip(tokens.index, tokens.itertuples(), strict=True)
    ]


def _band(
    fig: go.Figure, line: pd.DataFrame, i: int, column: int, name: str, *, legend: bool, kind: str
) -> None:
    look = style(i)
    color = look["line"]["color"]
    bounds = line.dropna(subset=["low", "high"])
    fig.add_trace(
        plotly().Scatter(
            x=[*bounds["layer"], *bounds["layer"][::-1]], y=[*bounds["high"], *bounds["low"][::-1]],
            fill="toself", fillcolor=color, opacity=0.18, line={"width": 0}, mode="lines",
            hoverinfo="skip", showlegend=False, hovertext="",
        ),
        row=1, col=column,
    )  # fmt: skip
    fig.add_trace(
        plotly().Scatter(
            name=name, x=line["layer"], y=line["effect"], mode="lines+markers", showlegend=legend,
            legendgroup=name, customdata=line[["low", "high", "n"]],
            hovertemplate=f"{kind}, {name}<br>layer %{{x}}: %{{y:.2%}} (%{{customdata[0]:.2%}} to "
            "%{customdata[1]:.2%}, %{customdata[2]} facts)<extra></extra>",
            line=look["line"], marker=look["marker"] | {"size": 5},
        ),
        row=1, col=column,
    )  # fmt: skip


def _role(role: str) -> str:
    return "last token of the prompt" if role == "last" else role


def _layer_axis(fig: go.Figure, layers: pd.Series, *, labels: int = 15) -> None:
    low, high = int(layers.min()), int(layers.max())
    step = max(1, -(-(high - low + 1) // labels))
    fig.update_xaxes(
        title="layer", tick0=0, dtick=step, range=[low - 0.6, high + 0.6], showgrid=False,
        zeroline=False, tickangle=0,
    )  # fmt: skip


def _map_in_words(part: pd.DataFrame, kind: str) -> str:
    first, said = part.iloc[0], []
    for role, rows in (
        ("last subject token", part[part["role"] == "last subject token"]),
        ("any token", part),
    ):
        if len(rows):
            best = rows.loc[rows["prob"].idxmax()]
            place = f"{role}, {best['token']!r}" + (
                f" ({best['role']})" if role == "any token" else ""
            )
            said.append(f"{percent(best['prob'])} at layer {best['layer']} of {place}")
    return (
        f"Causal trace of {first['answer']!r}, {percent(first['prob_clean'])} clean and "
        f"{percent(first['prob_corrupted'])} corrupted: restoring {KINDS.get(kind, kind)} brings "
        f"at most {'; '.join(said)}."
    )


def _average_in_words(drawn: pd.DataFrame) -> str:
    said = []
    for (kind, role), part in drawn.groupby(["kind", "role"], sort=False):
        best = part.loc[part["effect"].idxmax()]
        said.append(
            f"{kind} at the {_role(str(role))}, layer {best['layer']} ({percent(best['effect'])})"
        )
    return "Mean effect of restoring is largest for " + "; ".join(said) + "."
