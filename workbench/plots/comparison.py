"""Editors side by side: scores with intervals, and which fact each editor wrote."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from workbench.errors import OptionError
from workbench.plots.theme import (
    NEUTRAL,
    SEQUENTIAL,
    ellipsis,
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

__all__ = ["plot_comparison", "plot_comparison_grid"]

MEASURES = ("efficacy", "paraphrase", "neighborhood")
STEP = 0.2
#: Facts that a grid of the usual height holds, pixels for each further one, and how many are named.
ROWS, ROW_HEIGHT, MAX_NAMES = 10, 22, 40
#: Symbols of a cell: every probe right, some, none; an editor that refused.
RIGHT, SOME, WRONG, REFUSED = "●", "◐", "○", "–"
KEY = f"{RIGHT} every probe right, {SOME} some, {WRONG} none, {REFUSED} the editor refused"


class HasTables(Protocol):
    """A comparison, as far as it is drawn."""

    @property
    def summary(self) -> pd.DataFrame:
        """One row an editor."""

    @property
    def grid(self) -> pd.DataFrame:
        """One row a case, editor and kind."""


def plot_comparison(
    comparison: HasTables | pd.DataFrame,
    *,
    title: str = "Editors on the same facts",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Efficacy, paraphrase and neighborhood of every editor, with 95 % intervals.

    Args:
        comparison: as from ``wb.compare``, or its table ``summary``: ``editor`` and one or more of
            ``efficacy, paraphrase, neighborhood``, shares from 0 to 1, each with ``_low`` and
            ``_high``; if present ``exact`` (drawn open), ``kl``, ``seconds`` and ``problem``.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or there is no editor.

    Example:
        >>> plot_comparison(wb.compare(view, editors, cases))
    """
    table = comparison if isinstance(comparison, pd.DataFrame) else comparison.summary
    need_columns(table, ("editor",), "plot_comparison")
    table = table.reset_index(drop=True)
    drawn = [m for m in MEASURES if m in table.columns and table[m].notna().any()]
    if not drawn and not _problems(table):
        raise OptionError(
            f"plot_comparison: the table has none of {', '.join(MEASURES)}; compare on cases with "
            "probes of these kinds."
        )
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    for i, measure in enumerate(drawn):
        fig.add_trace(_dots(table, measure, i, STEP * (i - (len(drawn) - 1) / 2)))
    if "exact" in table.columns and table["exact"].notna().any():
        fig.add_trace(_exact(table, STEP * -(len(drawn) - 1) / 2))
    for i, why in _problems(table).items():
        fig.add_annotation(x=0, y=i, xanchor="left", text=f"refused: {words(ellipsis(why, 90))}")
    fig.update_yaxes(
        tickvals=list(range(len(table))),
        ticktext=[words(e) for e in table["editor"]],
        range=[len(table) - 0.4, -0.6],
        zeroline=False,
        showgrid=False,
    )
    fig.update_xaxes(title="share of probes, 95 % interval", tickformat=".0%", range=[-0.03, 1.03])
    return finish(fig, _alt(table, drawn))


def plot_comparison_grid(
    comparison: HasTables | pd.DataFrame,
    *,
    kind: str = "efficacy",
    value: str = "success",
    title: str = "Which editor wrote which fact",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Facts down, editors across: ● every probe right, ◐ some, ○ none, – refused.

    Args:
        comparison: as from ``wb.compare``, or its table ``grid``: ``case_id, prompt, target_new,
            editor, kind, probes`` and the value.
        kind: of the probes.
        value: ``success`` or ``exact``.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``; more than ten facts make the figure taller, more
            than forty are not named.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing, or the table has no probe of the kind.

    Example:
        >>> plot_comparison_grid(wb.compare(view, editors, cases), kind="paraphrase")
    """
    table = comparison if isinstance(comparison, pd.DataFrame) else comparison.grid
    names = ("case_id", "prompt", "target_new", "editor", "kind", "probes", value)
    need_columns(table, names, "plot_comparison_grid")
    part = table[table["kind"] == kind]
    if part.empty:
        known = ", ".join(dict.fromkeys(table["kind"]))
        raise OptionError(f"plot_comparison_grid: kind={kind!r} has no probes; there are {known}.")
    cases = part.drop_duplicates("case_id")
    editors = list(dict.fromkeys(part["editor"]))
    shares = part.pivot(index="case_id", columns="editor", values=value)
    shares = shares.reindex(index=cases["case_id"], columns=editors).astype(float)
    counts = part.pivot(index="case_id", columns="editor", values="probes").reindex_like(shares)
    fig = new_figure(title, size=size, theme=theme, legend=False)
    labels = _fact_names(cases)
    fig.layout.height += ROW_HEIGHT * max(0, min(len(labels), MAX_NAMES) - ROWS)
    frame(fig, title, subtitle=subtitle or KEY, legend=False)
    fig.add_trace(_cells(shares, counts, cases, editors))
    fig.add_trace(_refused(shares))
    fig.update_xaxes(
        tickvals=list(range(len(editors))),
        ticktext=[words(e) for e in editors],
        showgrid=False,
        title=f"editor ({words(kind)} probes, {words(value)})",
    )
    fig.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return finish(fig, _grid_alt(shares, kind, value))


# -------------------------------------------------------------------- marks


def _dots(table: pd.DataFrame, measure: str, i: int, shift: float) -> Any:
    share = table[measure].astype(float)
    bars = None
    if {f"{measure}_low", f"{measure}_high"} <= set(table.columns):
        bars = {
            "array": (table[f"{measure}_high"] - share).clip(lower=0),
            "arrayminus": (share - table[f"{measure}_low"]).clip(lower=0),
            "thickness": 2,
            "width": 5,
        }
    return plotly().Scatter(
        name=measure,
        x=share,
        y=[k + shift for k in range(len(table))],
        mode="markers",
        marker=style(i)["marker"] | {"size": 10},
        error_x=bars,
        hovertext=[_hover(row, measure) for row in table.to_dict("records")],
        hoverinfo="text",
    )


def _exact(table: pd.DataFrame, shift: float) -> Any:
    """An open mark around efficacy's: the share whose answer is the model's first."""
    marker = {"symbol": "circle-open", "size": 15, "color": NEUTRAL, "line": {"width": 2}}
    return plotly().Scatter(
        name="open: efficacy, exact match",
        x=table["exact"].astype(float),
        y=[k + shift for k in range(len(table))],
        mode="markers",
        marker=marker,
        hovertext=[_hover(row, "exact") for row in table.to_dict("records")],
        hoverinfo="text",
    )


def _hover(row: dict[str, Any], measure: str) -> str:
    if math.isnan(row[measure]):
        return f"{words(row['editor'])}: no {measure}"
    text = f"{words(row['editor'])}<br>{measure} {100 * row[measure]:.1f} %"
    low, high = row.get(f"{measure}_low"), row.get(f"{measure}_high")
    if low is not None and high is not None:
        text += f" (95 %: {100 * low:.1f} to {100 * high:.1f})"
    for name, unit in (("kl", "nats, median KL on neighborhood"), ("seconds", "s a fact")):
        if not math.isnan(row.get(name, math.nan)):
            text += f"<br>{row[name]:.3g} {unit}"
    return text


def _problems(table: pd.DataFrame) -> dict[int, str]:
    """Row → why an editor refused."""
    if "problem" not in table.columns:
        return {}
    return {i: str(why) for i, why in enumerate(table["problem"]) if isinstance(why, str)}


def _alt(table: pd.DataFrame, drawn: list[str]) -> str:
    problems, parts = _problems(table), []
    for i, row in enumerate(table.to_dict("records")):
        said = [f"{m} {percent(row[m])}" for m in drawn if not math.isnan(row[m])]
        parts.append(f"{row['editor']}: {problems.get(i) or ', '.join(said)}".rstrip("."))
    return "Editors on the same facts. " + "; ".join(parts) + "."


# -------------------------------------------------------------------- cells


def _symbol(share: float) -> str:
    if math.isnan(share):
        return ""  # the hole gets a mark of its own
    return RIGHT if share == 1 else WRONG if share == 0 else SOME


def _cells(
    shares: pd.DataFrame, counts: pd.DataFrame, cases: pd.DataFrame, editors: list[str]
) -> Any:
    facts = [
        f"{words(p)} <b>{words(t)}</b>"
        for p, t in zip(cases["prompt"], cases["target_new"], strict=True)
    ]
    hover = [
        [
            f"{fact}<br>{words(e)}: {100 * share:.0f} % of {n:.0f}"
            for e, share, n in zip(editors, row, many, strict=True)
        ]
        for fact, row, many in zip(facts, shares.to_numpy(), counts.to_numpy(), strict=True)
    ]
    return plotly().Heatmap(
        z=shares.to_numpy(),
        x=list(range(len(editors))),
        y=list(range(len(facts))),
        zmin=0,
        zmax=1,
        colorscale=SEQUENTIAL,
        colorbar={"title": {"text": "right"}, "tickformat": ".0%", "thickness": 14},
        text=[[_symbol(v) for v in row] for row in shares.to_numpy()],
        texttemplate="%{text}",
        hovertext=hover,
        hoverinfo="text",
        hoverongaps=False,
        xgap=2,
        ygap=2,
    )


def _refused(shares: pd.DataFrame) -> Any:
    """Dashes where a heat map has a hole."""
    holes = [(x, y) for y, row in enumerate(shares.to_numpy()) for x, v in enumerate(row) if v != v]
    return plotly().Scatter(
        x=[float(x) for x, _ in holes] or [math.nan],
        y=[float(y) for _, y in holes] or [math.nan],
        mode="text",
        text=REFUSED,
        hovertext=[f"{words(shares.columns[x])} refused" for x, _ in holes] or [""],
        hoverinfo="text",
        showlegend=False,
    )


def _fact_names(cases: pd.DataFrame) -> list[str]:
    if len(cases) > MAX_NAMES:
        return ["" for _ in range(len(cases))]
    names = []
    for prompt, target in zip(cases["prompt"], cases["target_new"], strict=True):
        names.append(f"{words(ellipsis(prompt, 40))} <b>{words(ellipsis(target, 16))}</b>")
    return names


def _grid_alt(shares: pd.DataFrame, kind: str, value: str) -> str:
    n = len(shares)
    parts = []
    for name, column in shares.items():
        held = column.notna().any()
        parts.append(f"{name} {int((column == 1).sum())} of {n}" if held else f"{name} refused")
    return f"Facts whose {kind} probes are all right ({value}): " + ", ".join(parts) + "."
