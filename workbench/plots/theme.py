"""One look for every figure: template, palette, sizes, and the frame every plot starts from.

Colors are the first four of Okabe and Ito's palette: at least 3.1:1 against white and against
JupyterLab's dark background, and distinct under the three common color-vision deficiencies. Color
never stands alone: lines also differ in dash and marker, bars in hatching.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from workbench.errors import OptionError, WorkbenchError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["DASHES", "MARKERS", "PALETTE", "SIZES", "template"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up")
#: Sequential and diverging scales.
SEQUENTIAL, DIVERGING = "Cividis", "RdBu"
#: name → (width, height) in pixels.
SIZES = {"wide": (900, 380), "half": (440, 340), "square": (520, 480)}
FONT = "DejaVu Sans, Arial, sans-serif"
#: Readable on white (4.2:1) and on dark (4.5:1): for marks that both themes share.
NEUTRAL = "#767c85"

_INK = {
    "light": {"ink": "#1a1d21", "soft": "#565c64", "grid": "#e3e6ea", "paper": "#ffffff"},
    "dark": {"ink": "#e8eaed", "soft": "#a9b0b8", "grid": "#363b42", "paper": "#16181c"},
}
#: Pixels: plot edge to figure edge, and the height of title, subtitle and legend rows.
_EDGE, _TITLE, _SUBTITLE, _LEGEND = 24, 34, 20, 28


def plotly(module: str = "graph_objects") -> Any:
    """A module of plotly, imported on first use.

    Raises:
        WorkbenchError: naming the extra to install, if plotly is missing.
    """
    try:
        return importlib.import_module(f"plotly.{module}")
    except ImportError as err:
        raise WorkbenchError(
            "figures need plotly, which is not installed: pip install 'workbench-editing[lab]'. "
            "Tables and scores work without it."
        ) from err


def template(theme: str = "light") -> go.layout.Template:
    """The plotly template behind every figure.

    Args:
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: for another theme.

    Example:
        >>> fig.update_layout(template=template("dark"))
    """
    if theme not in _INK:
        raise OptionError(f"theme={theme!r} is unknown." + did_you_mean(theme, _INK))
    return plotly().layout.Template(layout=_layout(_INK[theme]), data=_traces())


def _layout(color: dict[str, str]) -> dict[str, Any]:
    axis = {
        "gridcolor": color["grid"],
        "linecolor": color["soft"],
        "zerolinecolor": color["grid"],
        "tickcolor": color["soft"],
        "tickfont": {"size": 13, "color": color["ink"]},
        "title": {"font": {"size": 13, "color": color["soft"]}, "standoff": 8},
        "automargin": True,
    }
    return {
        "autosize": False,
        "colorway": list(PALETTE),
        "colorscale": {"sequential": SEQUENTIAL, "diverging": DIVERGING},
        "font": {"family": FONT, "size": 14, "color": color["ink"]},
        "paper_bgcolor": color["paper"],
        "plot_bgcolor": color["paper"],
        "hoverlabel": {"font": {"family": FONT, "size": 13}},
        "title": {
            "font": {"size": 17, "color": color["ink"]},
            "subtitle": {"font": {"size": 13, "color": color["soft"]}},
        },
        "legend": {"font": {"size": 13, "color": color["ink"]}, "bgcolor": "rgba(0,0,0,0)"},
        "annotationdefaults": {"font": {"size": 12, "color": color["soft"]}, "showarrow": False},
        "xaxis": axis,
        "yaxis": axis,
    }


def _traces() -> dict[str, Any]:
    lines = [
        {"line": {"width": 2, "dash": dash}, "marker": {"symbol": marker, "size": 8}}
        for dash, marker in zip(DASHES, MARKERS, strict=True)
    ]
    return {"scatter": lines}


def new_figure(
    title: str, *, subtitle: str = "", size: str = "wide", theme: str = "light", legend: bool = True
) -> go.Figure:
    """An empty figure with title, subtitle and room for a legend row above the plot.

    Raises:
        OptionError: for an unknown size or theme.
    """
    if size not in SIZES:
        raise OptionError(f"size={size!r} is unknown." + did_you_mean(size, SIZES))
    width, height = SIZES[size]
    fig = plotly().Figure(layout={"template": template(theme), "width": width, "height": height})
    frame(fig, title, subtitle=subtitle, legend=legend)
    return fig


def frame(fig: go.Figure, title: str, *, subtitle: str, legend: bool) -> None:
    """Put title, subtitle and legend above the plot, aligned with the figure's left edge."""
    top = _EDGE // 2 + _TITLE + (_SUBTITLE if subtitle else 0) + (_LEGEND if legend else 8)
    width = fig.layout.width
    fig.update_layout(
        margin={"l": _EDGE, "r": _EDGE, "t": top, "b": _EDGE},
        title={
            "text": title,
            "x": _EDGE / width,
            "xanchor": "left",
            "y": 1 - _EDGE / 2 / fig.layout.height,
            "yanchor": "top",
            "subtitle": {"text": subtitle},
        },
        showlegend=legend,
        legend=legend_row(fig, top, _EDGE / width),
    )


def legend_row(fig: go.Figure, top: float, x: float) -> dict[str, Any]:
    """A legend in one row that ends where the plot begins, ``x`` from the left as a share."""
    return {
        "orientation": "h",
        "x": x,
        "xref": "container",
        "xanchor": "left",
        "y": 1 - (top - _LEGEND) / fig.layout.height,
        "yref": "container",
        "yanchor": "top",
    }


def finish(fig: go.Figure, alt: str) -> go.Figure:
    """Attach the finding in words; screen readers, logs and reports show it."""
    fig.update_layout(meta={"alt": alt})
    return fig


def style(i: int) -> dict[str, Any]:
    """Line and marker of series ``i``: color, dash and symbol cycle together."""
    n = len(PALETTE)
    return {
        "line": {"color": PALETTE[i % n], "dash": DASHES[(i + i // n) % n], "width": 2},
        "marker": {"color": PALETTE[i % n], "symbol": MARKERS[(i + i // n) % n], "size": 8},
    }


def words(text: object) -> str:
    """Text as plotly shows it literally: ``<`` and ``&`` are not markup."""
    return html.escape(str(text), quote=False)


def token_label(token: str, limit: int = 14) -> str:
    """A token as a label: blanks and line breaks visible where there is nothing else, cut short."""
    text = token.strip() or token.replace(" ", "␣").replace("\t", "⇥")
    text = text.replace("\n", "⏎")
    return words(text if len(text) <= limit else f"{text[: limit - 1]}…")


def ellipsis(text: object, length: int) -> str:
    """A text of at most so many characters: subject and relation stand at a prompt's two ends."""
    said = str(text).strip()
    if len(said) <= length:
        return said
    tail = length // 2
    return f"{said[: length - 1 - tail].rstrip()}…{said[-tail:].lstrip()}"


def percent(share: float) -> str:
    """A share in words: ``12 %``, ``0.4 %``, ``< 0.1 %``, ``> 99 %``."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.995 <= share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %" if share >= 0.095 or share == 0 else f"{100 * share:.1f} %"


def need_columns(table: pd.DataFrame, names: Iterable[str], who: str) -> None:
    """Refuse a table that lacks a column or has no rows.

    Raises:
        OptionError: naming the columns that are there.
    """
    missing = [n for n in names if n not in table.columns]
    if missing:
        has = ", ".join(map(str, table.columns)) or "none"
        raise OptionError(f"{who}: the table has no column {missing[0]!r}; it has {has}.")
    if table.empty:
        raise OptionError(f"{who}: the table has no rows, so there is nothing to draw.")
