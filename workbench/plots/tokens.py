"""Next-token probabilities, before and after an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.plots.theme import (
    PALETTE,
    finish,
    need_columns,
    new_figure,
    percent,
    plotly,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_next_tokens"]

#: Rows that a wide figure holds without crowding, pinned ones included.
MAX_ROWS = 8


def plot_next_tokens(
    before: pd.DataFrame,
    after: pd.DataFrame | None = None,
    *,
    target: str | None = None,
    old: str | None = None,
    top_k: int = 6,
    title: str = "What the model says next",
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """Horizontal bars of the likeliest next tokens, before and after an edit.

    Rows are the union of both tables' likeliest tokens; target and old answer are always among
    them and are marked.

    Args:
        before: columns ``token``, ``prob``, as from ``wb.next_tokens``.
        after: the same after the edit; None draws one series.
        target: the new answer; its first token is looked for, with or without leading space.
        old: the answer held before.
        top_k: tokens besides target and old.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or a table is empty.

    Example:
        >>> plot_next_tokens(before, after, target="English", old="French")
    """
    frames = {"before": before} if after is None else {"before": before, "after": after}
    for frame in frames.values():
        need_columns(frame, ("token", "prob"), "plot_next_tokens")
    probs = _joined(frames)
    marks = _marks(probs, {"target": target, "old": old})
    rows = _rows(probs, marks, top_k)
    fig = new_figure(title, subtitle=subtitle, theme=theme, legend=len(frames) > 1)
    for i, name in enumerate(frames):
        fig.add_trace(_bars(rows, name, i))
    fig.update_layout(bargap=0.16, bargroupgap=0.0)
    ticks = [_tick(token, marks, rows.index) for token in rows.index]
    fig.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=ticks,
        autorange="reversed",
        showgrid=False,
        ticklabelstandoff=6,
    )
    fig.update_xaxes(title="probability of the next token", tickformat=".0%", range=[0, _top(rows)])
    return finish(fig, _alt(rows, marks))


def _joined(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a token, one column a table; NaN where a table does not list the token."""
    columns = {name: f.groupby("token", sort=False)["prob"].max() for name, f in frames.items()}
    joined = pd.concat(columns, axis=1)
    return joined.loc[joined.max(axis=1).sort_values(ascending=False, kind="stable").index]


def _marks(probs: pd.DataFrame, wanted: dict[str, str | None]) -> dict[str, str]:
    """token → "target" or "old", for the first token of each wanted answer."""
    marks: dict[str, str] = {}
    for role, answer in wanted.items():
        token = _first_token(answer, probs.index) if answer else None
        if token is not None:
            marks.setdefault(token, role)
    return marks


def _first_token(answer: str, tokens: pd.Index) -> str | None:
    """The longest listed token with which the answer begins; one with a space wins a tie."""
    begins = [t for t in tokens if t.strip() and answer.strip().startswith(t.strip())]
    return max(begins, key=lambda t: (len(t.strip()), t.startswith(" ")), default=None)


def _rows(probs: pd.DataFrame, marks: dict[str, str], top_k: int) -> pd.DataFrame:
    room = max(1, min(top_k, MAX_ROWS - len(marks)))
    others = [t for t in probs.index if t not in marks][:room]
    return probs.loc[[t for t in probs.index if t in marks or t in others]]


def _bars(rows: pd.DataFrame, name: str, i: int) -> Any:
    values = rows[name]
    shown = [percent(v) if pd.notna(v) else "" for v in values]
    floor = percent(float(values.min()))
    hover = [
        f"{words(repr(token))}<br>{name}: "
        + (f"{100 * v:.3g} %" if pd.notna(v) else f"not listed (below {floor})")
        for token, v in values.items()
    ]
    return plotly().Bar(
        name=name,
        x=values,
        y=list(range(len(rows))),
        orientation="h",
        text=shown,
        textposition="outside",
        textfont={"size": 10.5},
        constraintext="none",
        cliponaxis=False,
        hovertext=hover,
        hoverinfo="text",
        marker={
            "color": PALETTE[i],
            "line": {"width": 0},
            "pattern": {
                "shape": "" if i else "/",
                "fillmode": "overlay",
                "fgcolor": "#ffffff",
                "fgopacity": 0.4,
                "solidity": 0.3,
                "size": 6,
            },
        },
    )


def _tick(token: str, marks: dict[str, str], listed: pd.Index) -> str:
    text = token.strip().replace("\n", "⏎")
    twins = [t for t in listed if t.strip() == token.strip()]
    if not text or len(twins) > 1:
        text = token.replace(" ", "␣").replace("\n", "⏎")
    label = words(text)
    return f"{label} <b>({marks[token]})</b>" if token in marks else label


def _top(rows: pd.DataFrame) -> float:
    """Right end of the axis, with room for the label of the longest bar."""
    return min(1.08, max(0.02, float(rows.max().max()) * 1.12))


def _alt(rows: pd.DataFrame, marks: dict[str, str]) -> str:
    first, last = rows.columns[0], rows.columns[-1]
    best = {c: rows[c].idxmax() for c in rows.columns}
    said = [f"{c} {best[c].strip()!r} leads with {percent(rows[c].max())}" for c in rows.columns]
    moves = [
        f"{role} {token.strip()!r} goes from {_share(rows, token, first)} to "
        f"{_share(rows, token, last)}"
        for token, role in marks.items()
        if first != last
    ]
    return "Next-token probabilities: " + "; ".join([*said, *moves]) + "."


def _share(rows: pd.DataFrame, token: str, column: str) -> str:
    value = rows.loc[token, column]
    return percent(float(value)) if pd.notna(value) else "below those listed"
