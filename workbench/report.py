"""One self-contained HTML file of prose, tables and live figures, readable without scripts.

plotly.js is inlined once; a content-security policy forbids every request to the outside. Every
figure comes with its finding in words and with its numbers as a table. All text is escaped.
"""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.atomic import write_atomically
from workbench.plots.shown import alt_text
from workbench.plots.theme import plotly, template

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Report"]

#: Rows of a table that a report shows; the rest is counted.
MAX_ROWS = 200

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #565c64; --line: #d5d9de; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a9b0b8; --line: #363b42; --page: #16181c; }
}
body { margin: 0 auto; padding: 24px; max-width: 948px; background: var(--page); color: var(--ink);
  font: 16px/1.5 "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 26px; } h2 { font-size: 20px; margin-top: 40px; }
pre { white-space: pre-wrap; }
code, pre { font-family: "DejaVu Sans Mono", monospace; font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 6px 0; }
th, td { padding: 4px 12px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 16px 0; } figcaption, .foot { color: var(--soft); font-size: 14px; }
summary { cursor: pointer; color: var(--soft); font-size: 14px; }
"""

_SCRIPT = """
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const themes = read("wb-themes");
  const config = {displaylogo: false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const draw = () => document.querySelectorAll("div.wb-figure").forEach((div) => {
    const spec = read(div.id + "-data");
    spec.layout.template = themes[dark.matches ? "dark" : "light"];
    Plotly.react(div, spec.data, spec.layout, config);
  });
  dark.addEventListener("change", draw);
  draw();
})();
"""


class Report:
    """Builds a report piece by piece; every method returns the report, so calls can be chained.

    Args:
        title: of the page and its heading.
        language: of the text, for screen readers.

    Example:
        >>> report = Report("One fact").text("Before the edit.").table(before, caption="Tokens")
        >>> report.figure(plot_next_tokens(before, after)).save("report.html")
    """

    def __init__(self, title: str, *, language: str = "en") -> None:
        self.title = title
        self.language = language
        self._parts: list[str] = []
        self._figures = 0

    def heading(self, text: str) -> Report:
        """Start a section."""
        return self._add(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> Report:
        """Add a paragraph; blank lines separate several."""
        for paragraph in text.split("\n\n"):
            self._add(f"<p>{html.escape(paragraph.strip())}</p>")
        return self

    def code(self, text: str) -> Report:
        """Add text as it is, in a monospaced font."""
        return self._add(f"<pre>{html.escape(text)}</pre>")

    def table(self, table: pd.DataFrame, *, caption: str, digits: int = 4) -> Report:
        """Add a table; at most 200 rows are shown and the rest is counted.

        Args:
            table: any table; the index is left out.
            caption: what it shows.
            digits: significant digits of fractional numbers.
        """
        return self._add(_table(table, caption, digits))

    def figure(
        self, fig: go.Figure, *, caption: str = "", numbers: pd.DataFrame | None = None
    ) -> Report:
        """Add a live figure with its finding in words and its numbers as a table.

        Args:
            fig: any plotly figure; those of :mod:`workbench.plots` follow the page's theme.
            caption: shown below; the figure's own finding if empty.
            numbers: the table behind it; read off the figure's traces if None.
        """
        self._figures += 1
        name = f"wb-figure-{self._figures}"
        said = alt_text(fig)
        numbers = _numbers(fig) if numbers is None else numbers
        layout = fig.layout
        size = f"width: {layout.width or 900}px; height: {layout.height or 380}px"
        return self._add(
            f'<figure><div class="wide"><div class="wb-figure" id="{name}" role="img" '
            f'aria-label="{html.escape(said)}" style="{size}">'
            "<noscript>The figure needs scripts; its numbers are in the table below.</noscript>"
            f"</div></div><figcaption>{html.escape(caption or said)}</figcaption>"
            f"<details><summary>The numbers of this figure</summary>"
            f"{_table(numbers, said, 4)}</details></figure>"
            f"{_data(f'{name}-data', _spec(fig))}"
        )

    def html(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        return (
            f'<!DOCTYPE html>\n<html lang="{html.escape(self.language)}">\n<head>\n'
            f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" '
            f'content="{_POLICY}">\n<meta name="viewport" content="width=device-width">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{title}</h1>\n" + "\n".join(self._parts) + f"\n</main>\n{self._scripts()}"
            "</body>\n</html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, all or nothing.

        Raises:
            StorageError: if the file cannot be written; an older one is left as it was.
        """
        return write_atomically(path, self.html().encode("utf-8"))

    def _add(self, part: str) -> Report:
        self._parts.append(part)
        return self

    def _scripts(self) -> str:
        if not self._figures:
            return ""
        themes = {name: template(name).to_plotly_json() for name in ("light", "dark")}
        library = plotly("offline").get_plotlyjs()
        text = json.dumps(themes, default=lambda piece: piece.to_plotly_json())
        return (
            f"<script>{library}</script>\n{_data('wb-themes', text)}\n<script>{_SCRIPT}</script>\n"
        )


def _data(name: str, text: str) -> str:
    """JSON in a script tag that nothing inside can close."""
    safe = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def _spec(fig: go.Figure) -> str:
    """The figure as JSON without its template: the page brings one for each theme."""
    spec = json.loads(fig.to_json())
    spec["layout"].pop("template", None)
    return json.dumps(spec)


def _table(table: pd.DataFrame, caption: str, digits: int) -> str:
    shown = table.head(MAX_ROWS)
    mark = {c: ' class="number"' if _is_number(table[c]) else "" for c in table.columns}
    head = "".join(
        f'<th scope="col"{mark[c]}>{html.escape(str(c).replace("_", " "))}</th>' for c in shown
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{mark[c]}>{html.escape(_cell(v, digits))}</td>"
            for c, v in zip(shown.columns, row, strict=True)
        )
        + "</tr>\n"
        for row in shown.itertuples(index=False, name=None)
    )
    more = f"<p class='foot'>and {len(table) - MAX_ROWS} more rows</p>"
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        + (more if len(table) > MAX_ROWS else "")
    )


def _is_number(column: pd.Series) -> bool:
    kinds = pd.api.types
    return kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column)


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _numbers(fig: go.Figure) -> pd.DataFrame:
    """What the traces draw: one row a point, category labels in place of positions."""
    axes = (fig.layout.xaxis, fig.layout.yaxis)
    rows: list[dict[str, Any]] = []
    across, up = (axis.title.text or fallback for axis, fallback in zip(axes, "xy", strict=True))
    for trace in fig.data:
        if trace.x is not None and trace.y is not None:
            xs, ys = _labels(axes[0], trace.x), _labels(axes[1], trace.y)
            name = _plain(trace.name or "")
            for point in _points(xs, ys, getattr(trace, "z", None)):
                found = dict(zip((across, up, "value"), point, strict=False))
                rows.append({"series": name} | found)
    return pd.DataFrame(rows)


def _points(xs: list[Any], ys: list[Any], z: Any) -> list[tuple[Any, ...]]:
    """The points of a trace; of a heat map every cell with its value."""
    if z is None:
        return list(zip(xs, ys, strict=True))
    return [(x, y, z[j][i]) for j, y in enumerate(ys) for i, x in enumerate(xs)]


def _labels(axis: Any, values: Any) -> list[Any]:
    """Positions as the tick labels that stand there, where an axis has its own labels."""
    if not axis.tickvals or not axis.ticktext:
        return list(values)
    named = dict(zip(axis.tickvals, map(_plain, axis.ticktext), strict=True))
    return [named.get(round(float(v)), v) if v == v else v for v in values]


def _plain(text: str) -> str:
    """Plotly's markup taken off."""
    return html.unescape(re.sub(r"</?[a-z]+>", "", text))
