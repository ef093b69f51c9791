"""Scores by kind of probe, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import OptionError
from workbench.facts import KINDS
from workbench.plots.theme import (
    NEUTRAL,
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

__all__ = ["plot_summary"]

#: Distance of two summaries' marks and room for all of them, in distances between kinds.
STEP, ROOM = 0.25, 0.75


def plot_summary(
    summaries: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    title: str = "Scores by kind of probe",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Success of every kind of probe with its 95 % interval, one mark a summary.

    A filled mark is two-way success (the target beats the foil), an open one exact match, where
    the table has it.

    Args:
        summaries: one table as from ``wb.summary``, or name → table (such as before and after, or
            a table an editor). Columns: ``kind``, ``success``; if present ``success_low`` and
            ``success_high`` (or ``low`` and ``high``), ``exact``, ``n``, ``measure``. Shares from 0
            to 1. Rows whose measure is ``exact`` show the open mark alone.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or a table is empty.

    Example:
        >>> plot_summary({"before": wb.summary(s0), "after": wb.summary(s1)})
    """
    if isinstance(summaries, Mapping) and not summaries:
        raise OptionError("plot_summary: give at least one summary.")
    single = isinstance(summaries, pd.DataFrame)
    named = {"success": summaries} if single else dict(summaries)
    for table in named.values():
        need_columns(table, ("kind", "success"), "plot_summary")
    kinds = _kinds(named)
    exact = any("exact" in t.columns and t["exact"].notna().any() for t in named.values())
    legend = not single or exact
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme, legend=legend)
    for i, (name, table) in enumerate(named.items()):
        _add(fig, str(name), table, kinds, i, len(named))
    if exact:
        fig.add_trace(_open_mark())
    fig.update_yaxes(
        tickvals=list(range(len(kinds))),
        ticktext=[words(k) for k in kinds],
        range=[len(kinds) - 0.5, -0.5],
        zeroline=False,
    )
    fig.update_xaxes(title="share of probes", tickformat=".0%", range=[-0.03, 1.03])
    return finish(fig, _alt(named))


def _kinds(named: Mapping[str, pd.DataFrame]) -> list[str]:
    """Kinds in the order of :data:`workbench.facts.KINDS`, others (``score``) last."""
    found = dict.fromkeys(str(k) for t in named.values() for k in t["kind"])
    known = [k for k in KINDS if k in found]
    return known + [k for k in found if k not in known]


def _add(fig: go.Figure, name: str, table: pd.DataFrame, kinds: list[str], i: int, n: int) -> None:
    table = table.assign(kind=table["kind"].astype(str))
    shift = min(STEP, ROOM / n) * (i - (n - 1) / 2)
    y = [kinds.index(k) + shift for k in table["kind"]]
    marker = style(i)["marker"] | {"size": 10 if n <= 2 else 8}
    if "exact" in table.columns:
        fig.add_trace(_dots(table, "exact", name, y, marker | _hollow(marker), legend=False))
    if "measure" in table.columns:  # a success that counts exact matches is the open mark already
        table = table.assign(success=table["success"].mask(table["measure"] == "exact"))
    fig.add_trace(_dots(table, "success", name, y, marker, legend=True))


def _hollow(marker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "symbol": f"{marker['symbol']}-open",
        "size": marker["size"] + 3,
        "line": {"width": 2},
    }


def _dots(
    table: pd.DataFrame, what: str, name: str, y: list[float], marker: dict[str, Any], legend: bool
) -> Any:
    low, high = _interval(table) if what == "success" else (None, None)
    bars = None
    if low is not None and high is not None:
        up, down = high - table["success"], table["success"] - low
        bars = {"array": up.clip(0), "arrayminus": down.clip(0), "thickness": 2, "width": 5}
    return plotly().Scatter(
        name=words(name),
        legendgroup=name,
        x=table[what],
        y=y,
        mode="markers",
        marker=marker,
        error_x=bars,
        showlegend=legend,
        hovertext=_hover(table, what, name, low, high),
        hoverinfo="text",
    )


def _interval(table: pd.DataFrame) -> tuple[pd.Series | None, pd.Series | None]:
    for low, high in (("success_low", "success_high"), ("low", "high")):
        if low in table.columns and high in table.columns:
            return table[low], table[high]
    return None, None


def _hover(
    table: pd.DataFrame, what: str, name: str, low: pd.Series | None, high: pd.Series | None
) -> list[str]:
    label = "exact match" if what == "exact" else "success"
    texts = []
    for i in range(len(table)):
        row = table.iloc[i]
        text = f"{words(name)}, {words(row['kind'])}<br>{label} {100 * row[what]:.1f} %"
        if low is not None and high is not None:
            text += f" (95 %: {100 * low.iloc[i]:.1f} to {100 * high.iloc[i]:.1f})"
        if "n" in table.columns and pd.notna(row["n"]):
            text += f"<br>n = {row['n']:.0f}"
        texts.append(text)
    return texts


def _open_mark() -> Any:
    marker = {"symbol": "circle-open", "size": 13, "color": NEUTRAL, "line": {"width": 2}}
    return plotly().Scatter(
        name="open: exact match", x=[None], y=[None], mode="markers", marker=marker
    )


def _alt(named: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for name, table in named.items():
        known = table[table["success"].notna()]
        exact = known.get("measure", pd.Series("", index=known.index)) == "exact"
        said = [
            f"{kind} {percent(success)}{' (exact match)' if is_exact else ''}"
            for kind, success, is_exact in zip(known["kind"], known["success"], exact, strict=True)
        ]
        parts.append(f"{name}: {', '.join(said) or 'no scores'}")
    return "Share of probes by kind. " + "; ".join(parts) + "."
