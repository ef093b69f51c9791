"""Forgetting: how the newest edit, the earlier ones and the rest of the model fare along a stream.

Curves as in "Model Editing at Scale leads to Gradual and Catastrophic Forgetting" (arXiv
2401.07453).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import OptionError, did_you_mean
from workbench.forgetting import inflection, retention
from workbench.plots.theme import (
    NEUTRAL,
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

__all__ = ["plot_forgetting", "plot_moments", "runs_of"]

#: Curves in the order in which they are drawn, and what they say.
CURVES = {
    "newest": "newest edits, right",
    "retained": "earlier edits, right now",
    "forgotten": "earlier edits, ever forgotten",
}
PANELS = {"newest": "Newest edits", "retained": "Earlier edits", "forgotten": "Ever forgotten"}
#: Facts over which the curve of the newest edit is averaged.
WINDOW = 50
#: Metrics that are drawn if nobody chooses, in this order.
MOMENTS = (
    *("perplexity_ratio", "upstream_agreement", "downstream_accuracy", "weight_distance"),
    *("hidden_shift", "process_peak"),
)
#: metric → (title of its panel, its axis)
NAMES = {
    "perplexity": ("Perplexity", "per token"),
    "perplexity_ratio": ("Perplexity", "times that before"),
    "upstream_agreement": ("Other facts, same answer", "share"),
    "upstream_exact": ("Other facts, right", "share"),
    "upstream_kl": ("Other facts, KL", "nats, median"),
    "downstream_accuracy": ("Tasks, accuracy", "share"),
    "downstream_f1": ("Tasks, F1", "F1"),
    "weight_distance": ("Distance of the weights", "Frobenius norm"),
    "weight_distance_per_weight": ("Distance of the weights", "per weight"),
    "weight_norm": ("Norm of the weights", "Frobenius norm"),
    "update_norm": ("Norm of the newest edit", "Frobenius norm"),
    "hidden_shift": ("Shift of hidden states", "relative L2"),
    "hidden_cosine": ("Hidden states", "cosine"),
    "process_peak": ("Memory", "MiB, peak"),
    "cuda_peak": ("GPU memory", "MiB, peak"),
    "seconds_editing": ("Time of a batch", "seconds"),
    "seconds_measuring": ("Time of measuring", "seconds"),
    "edits_per_second": ("Speed", "edits a second"),
    "TRR": ("TRR: what it could do before", ""),
    "ERR": ("ERR: all edits so far", ""),
    "ARR": ("ARR: what it had right", ""),
    "holdout": ("Other wordings of the edits", ""),
    "keys": ("Size of the codebook", "entries"),
}


def plot_forgetting(
    rows: pd.DataFrame,
    *,
    moments: pd.DataFrame | None = None,
    correct: str = "exact",
    window: int = WINDOW,
    title: str = "What earlier edits are worth later",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """Share of right facts along a stream: the newest, the earlier ones now, those ever forgotten.

    One run is drawn in one plot, several in a plot a curve. Bands are 95 % intervals.

    Args:
        rows: a table of ``wb.stream``, or of ``wb.retention``.
        moments: the run's ``wb.moments``; its inflection point, if there is one, is marked.
        correct: as in ``wb.retention``.
        window: the newest edits are averaged over at least so many facts.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or there are over eight runs.

    Example:
        >>> plot_forgetting(rows, moments=wb.moments("data/runs/memit"))
    """
    curves = rows if "curve" in rows.columns else retention(rows, correct=correct)
    need_columns(curves, ("step", "curve", "value", "n"), "plot_forgetting")
    runs = runs_of(curves, "plot_forgetting")
    several = len(runs) > 1
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    if several:
        _panels(fig, [PANELS[c] for c in CURVES], title, subtitle)
    for i, (run, table) in enumerate(runs.items()):
        for j, curve in enumerate(CURVES):
            part = _smooth(table[table["curve"] == curve], window if curve == "newest" else 1)
            place = {"row": 1, "col": j + 1} if several else {}
            look, name = style(i if several else j), run if several else CURVES[curve]
            _line(fig, part, look, name, legend=j == 0 or not several, **place)
    fallen = None
    if moments is not None and "curve" not in rows.columns and not several:
        fallen = inflection(rows, moments, correct=correct)["step"].iloc[0]
        if pd.notna(fallen):
            _mark(fig, float(fallen))
    fig.update_xaxes(title="edits in sequence", rangemode="tozero", showgrid=False)
    fig.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    fig.update_yaxes(title="share of facts", **({"col": 1} if several else {}))
    return finish(fig, _forgetting_alt(runs, fallen))


def plot_moments(
    moments: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    marks: Sequence[float] = (),
    log: bool = False,
    title: str = "What the rest of the model went through",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """A small plot a metric along a stream: language, other facts, tasks, weights, memory.

    A line a run; of one run a line a layer or task where there are several.

    Args:
        moments: a table of ``wb.moments``, or several of them together.
        metrics: at most six; None takes up to six of those that the table has.
        marks: numbers of edits to mark, such as an inflection point.
        log: logarithmic axes, for perplexities that burst.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: for a metric the table lacks, or a missing column.

    Example:
        >>> plot_moments(wb.moments("data/runs/memit"), metrics=("perplexity", "weight_distance"))
    """
    need_columns(moments, ("step", "metric", "value"), "plot_moments")
    chosen = _chosen(moments, metrics)
    runs = runs_of(moments, "plot_moments")
    columns = min(3, len(chosen))
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    _panels(fig, [NAMES.get(m, (m, ""))[0] for m in chosen], title, subtitle, columns=columns)
    named: set[str] = set()
    for k, metric in enumerate(chosen):
        place = {"row": k // columns + 1, "col": k % columns + 1}
        for name, look, part in _moment_lines(runs, metric):
            _line(fig, part, look, name, legend=name != "" and name not in named, **place)
            named.add(name)
        share = metric.startswith(("upstream_a", "upstream_e", "downstream"))
        limits = {"range": [-0.03, 1.03], "tickformat": ".0%"} if share else {"rangemode": "tozero"}
        limits = {"type": "log"} if log else limits
        fig.update_yaxes(title=NAMES.get(metric, ("", ""))[1], **limits, **place)
        for mark in marks:
            _mark(fig, mark, text="", **place)
    fig.update_xaxes(title="edits in sequence", rangemode="tozero", showgrid=False)
    fig.update_layout(showlegend=bool(named - {""}))
    return finish(fig, _moments_alt(runs, chosen))


# -------------------------------------------------------------------- lines


def runs_of(table: pd.DataFrame, who: str) -> dict[str, pd.DataFrame]:
    """Name → table of every run; the name is the run's, or what tells the runs apart."""
    keys = [c for c in ("run", "editor", "model") if c in table.columns]
    telling = [c for c in keys if table[c].nunique() > 1] or keys[:1]
    if "run" in telling and table["run"].nunique() == table.groupby(telling).ngroups:
        telling = ["run"]
    if not telling:
        return {"": table}
    runs = {", ".join(map(str, k)): part for k, part in table.groupby(telling, sort=False)}
    if len(runs) > 8:
        raise OptionError(f"{who}: the table has {len(runs)} runs; draw eight or fewer at once.")
    return runs


def _smooth(part: pd.DataFrame, window: int) -> pd.DataFrame:
    """Trailing means over at least so many facts, weighted by facts."""
    part = part.sort_values("step")
    if part.empty or part["n"].median() >= window or len(part) < 3:
        return part
    size = int(np.ceil(window / part["n"].median()))
    total = (part["value"] * part["n"]).rolling(size, min_periods=1).sum()
    n = part["n"].rolling(size, min_periods=1).sum()
    return part.assign(value=total / n, n=n).drop(columns=["low", "high"], errors="ignore")


def _line(
    fig: go.Figure,
    part: pd.DataFrame,
    look: Mapping[str, Any],
    name: str,
    *,
    legend: bool,
    **place: int,
) -> None:
    part = part.sort_values("step")
    if {"low", "high"} <= set(part.columns) and part["low"].notna().any():
        _band(fig, part, look["line"]["color"], **place)
    few = len(part) <= 25
    number = ".1%" if part["value"].between(0, 1).all() else ".4~g"
    n = part["n"] if "n" in part.columns else None
    behind = "" if n is None or n.isna().all() else ", n = %{customdata}"
    fig.add_scatter(
        name=words(name),
        legendgroup=name,
        showlegend=legend,
        x=part["step"],
        y=part["value"],
        customdata=n,
        mode="lines+markers" if few else "lines",
        hovertemplate=f"after %{{x}} edits: %{{y:{number}}}{behind}",
        line=look["line"],
        marker=look["marker"] | {"size": 6},
        **place,
    )


def _band(fig: go.Figure, part: pd.DataFrame, color: str, **place: int) -> None:
    part = part[part["low"].notna()]
    fig.add_scatter(
        x=pd.concat([part["step"], part["step"][::-1]]),
        y=pd.concat([part["high"], part["low"][::-1]]),
        fill="toself",
        fillcolor=color,
        opacity=0.15,
        mode="none",
        showlegend=False,
        hovertext="",
        hoverinfo="skip",
        **place,
    )


def _mark(fig: go.Figure, step: float, *, text: str = "inflection", **place: int) -> None:
    line = {"color": NEUTRAL, "width": 2, "dash": "dot"}
    fig.add_vline(x=step, line=line, layer="below", **place)
    if text:
        fig.add_annotation(x=step, y=1, yref="paper", yanchor="bottom", xanchor="center", text=text)


def _panels(
    fig: go.Figure, titles: Sequence[str], title: str, subtitle: str, *, columns: int = 3
) -> None:
    rows = -(-len(titles) // columns)
    plotly("subplots").make_subplots(
        rows=rows,
        cols=columns,
        figure=fig,
        subplot_titles=[f"<b>{words(t)}</b>" for t in titles],
        horizontal_spacing=0.08,
        vertical_spacing=0.24,
    )
    if rows > 1:
        fig.update_layout(height=fig.layout.height + 240 * (rows - 1))
    frame(fig, title, subtitle=subtitle, legend=True)
    fig.update_layout(margin_t=fig.layout.margin.t + 24)


def _moment_lines(
    runs: Mapping[str, pd.DataFrame], metric: str
) -> list[tuple[str, dict[str, Any], pd.DataFrame]]:
    """(name, look, table) of each line of a metric."""
    lines = []
    for i, (run, table) in enumerate(runs.items()):
        part = table[table["metric"] == metric]
        by = _split(part)
        if len(runs) > 1:
            lines.append((run, style(i), part.groupby("step", as_index=False)["value"].max()))
        elif by is None:
            lines.append(("", style(0), part))
        else:
            keys = list(part.groupby(by, sort=True))
            lines += [
                (f"{by} {k}" if by == "layer" else str(k), style(j), p)
                for j, (k, p) in enumerate(keys[:8])
            ]
    return lines


def _split(part: pd.DataFrame) -> str | None:
    several = [c for c in ("layer", "task") if c in part.columns and part[c].nunique() > 1]
    return several[0] if several else None


def _chosen(moments: pd.DataFrame, metrics: Sequence[str] | None) -> list[str]:
    has = list(dict.fromkeys(moments["metric"]))
    if metrics is None:
        found = [m for m in MOMENTS if m in has] or has[:6]
        return found
    for name in metrics:
        if name not in has:
            raise OptionError(f"plot_moments: no metric {name!r}." + did_you_mean(name, has))
    if not 1 <= len(metrics) <= 6:
        raise OptionError(f"plot_moments: {len(metrics)} metrics; choose one to six.")
    return list(metrics)


# -------------------------------------------------------------------- the map


def _forgetting_alt(runs: Mapping[str, pd.DataFrame], fallen: float | None) -> str:
    said = []
    for run, table in runs.items():
        last = int(table["step"].max())
        smooth = {c: _smooth(p, WINDOW if c == "newest" else 1) for c, p in table.groupby("curve")}
        ends = {c: p["value"].iloc[-1] for c, p in smooth.items()}
        parts = [f"{CURVES[c]}: {percent(ends[c])}" for c in CURVES if c in ends]
        said.append(f"{run + ': ' if run else ''}after {last} edits, {'; '.join(parts)}")
    end = "" if fallen is None or pd.isna(fallen) else f" Inflection at {fallen:.0f} edits."
    return "Forgetting. " + ". ".join(said) + "." + end


def _moments_alt(runs: Mapping[str, pd.DataFrame], chosen: Sequence[str]) -> str:
    said = []
    for run, table in runs.items():
        parts = []
        for metric in chosen:
            values = table[table["metric"] == metric].groupby("step")["value"].max()
            if len(values):
                parts.append(
                    f"{metric.replace('_', ' ')} {values.iloc[0]:.3g} → {values.iloc[-1]:.3g}"
                )
        said.append(f"{run + ': ' if run else ''}{', '.join(parts)}")
    return "From the first to the last moment. " + "; ".join(said) + "."
