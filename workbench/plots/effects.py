"""What an edit did: its facts before and after, and what else moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from workbench.errors import OptionError
from workbench.plots.theme import (
    NEUTRAL,
    PALETTE,
    ellipsis,
    finish,
    need_columns,
    new_figure,
    percent,
    plotly,
    token_label,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_receipt", "plot_side_effects"]

#: Facts that are drawn one by one; more become a sorted strip.
MAX_FACTS = 8
MAX_EFFECTS = 10
#: Outcome → what the mark of the state afterwards looks like; the first two count as taken.
LOOKS = {
    "took": (PALETTE[2], "circle", "took"),
    "held before": (PALETTE[0], "square", "held before"),
    "later in the text": (PALETTE[3], "diamond", "later in the text"),
    "teacher-forced only": (PALETTE[1], "triangle-up", "teacher-forced only"),
    "did not take": (PALETTE[1], "x", "did not take"),
    "lost": (PALETTE[1], "cross", "lost"),
}
_NEEDED = ("prompt", "target_new", "p_before", "p_after", "outcome")


class HasFacts(Protocol):
    """A receipt, as far as it is drawn."""

    @property
    def facts(self) -> pd.DataFrame:
        """One row a request."""


def plot_receipt(
    receipt: HasFacts | pd.DataFrame,
    *,
    title: str = "Did the edit take?",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Probability of the new answer before and after; the mark says what became of the fact.

    Up to eight facts are drawn one by one, with what the model writes freely; more are a strip,
    sorted by the probability afterwards.

    Args:
        receipt: as from ``wb.receipt``, or its table ``facts``: ``prompt, target_new, p_before,
            p_after, outcome``; if present ``wrote_after``.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing or there is no fact.

    Example:
        >>> plot_receipt(wb.receipt(view, edit))
    """
    facts = receipt if isinstance(receipt, pd.DataFrame) else receipt.facts
    need_columns(facts, _NEEDED, "plot_receipt")
    unknown = set(facts["outcome"]) - set(LOOKS)
    if unknown:
        raise OptionError(f"plot_receipt: outcome {sorted(unknown)[0]!r} is unknown.")
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    (_dumbbells if len(facts) <= MAX_FACTS else _strip)(fig, facts.reset_index(drop=True))
    return finish(fig, _receipt_alt(facts))


def plot_side_effects(
    table: pd.DataFrame,
    *,
    kinds: Sequence[str] | None = None,
    top: int = MAX_EFFECTS,
    title: str = "What else moved",
    subtitle: str = "",
    size: str = "wide",
    theme: str = "light",
) -> go.Figure:
    """Bars of the largest effects on other prompts; changed answers are hatched and named.

    Args:
        table: as from ``wb.side_effects``: ``kind, prompt, top_before, p_top_before, top_after,
            p_top_after, changed, kl``.
        kinds: only probes of these kinds; None leaves out paraphrases, which shall move, unless
            there is nothing else.
        top: prompts drawn, most moved first.
        title, subtitle: may use plotly's markup.
        size: ``wide``, ``half`` or ``square``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing, the table is empty or has none of the kinds, or
            ``top < 1``.

    Example:
        >>> plot_side_effects(wb.side_effects(view, edit, cases))
    """
    names = ("kind", "prompt", "top_before", "p_top_before", "top_after", "p_top_after")
    need_columns(table, (*names, "changed", "kl"), "plot_side_effects")
    if top < 1:
        raise OptionError(f"plot_side_effects: top={top}: it must be at least 1.")
    once = (
        _of_kinds(table, kinds)
        .drop_duplicates("prompt")
        .sort_values("kl", ascending=False, kind="stable")
    )
    shown = once.head(top).reset_index(drop=True)
    fig = new_figure(title, subtitle=subtitle, size=size, theme=theme)
    for changed, name in ((False, "same answer"), (True, "another answer leads")):
        fig.add_trace(_bars(shown, changed, name))
    _prompt_axis(fig, [words(ellipsis(p, 44)) for p in shown["prompt"]])
    right = max(1e-6, 1.45 * float(shown["kl"].max()))  # room for the words behind the bars
    fig.update_layout(barmode="overlay", bargap=0.3)
    fig.update_xaxes(title="KL(before ‖ after) of the next token, nats", range=[0, right])
    return finish(fig, _effects_alt(once))


# -------------------------------------------------------------------- receipts


def _dumbbells(fig: go.Figure, facts: pd.DataFrame) -> None:
    for i, fact in facts.iterrows():
        line = {"color": NEUTRAL, "width": 2, "dash": "solid"}
        x = [fact["p_before"], fact["p_after"]]
        fig.add_trace(
            plotly().Scatter(x=x, y=[i, i], mode="lines", line=line, hoverinfo="skip",
                             hovertext=["", ""], showlegend=False)
        )  # fmt: skip
    _marks(fig, facts, pd.Series(range(len(facts))))
    labels = zip(facts["prompt"], facts["target_new"], strict=True)
    _prompt_axis(fig, [f"{words(ellipsis(p, 40))} <b>{_cut(t, 16)}</b>" for p, t in labels])
    written = "wrote_after" in facts and facts["wrote_after"].notna().any()
    if written:
        for i, text in enumerate(facts["wrote_after"]):
            said = _cut(_line(text), 20)
            fig.add_annotation(
                x=1.04, y=i, xref="x", yref="y", text=f"writes “{said}”", xanchor="left"
            )
    ticks = {"tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1]}
    right = 1.62 if written else 1.04
    fig.update_xaxes(title="probability of the new answer, a token", tickformat=".0%",
                     range=[-0.03, right], **ticks)  # fmt: skip


def _strip(fig: go.Figure, facts: pd.DataFrame) -> None:
    facts = facts.sort_values(["p_after", "p_before"], kind="stable").reset_index(drop=True)
    _marks(fig, facts, pd.Series(range(1, len(facts) + 1)), across=True)
    fig.update_xaxes(title="facts, sorted by the probability after the edit", showgrid=False)
    fig.update_yaxes(
        title="probability of the new answer, a token", tickformat=".0%", range=[-0.03, 1.03]
    )


def _marks(fig: go.Figure, facts: pd.DataFrame, place: pd.Series, *, across: bool = False) -> None:
    """Open marks before, filled ones after, a series for each outcome."""
    size = 12 if len(facts) <= MAX_FACTS else 8
    open_mark = {"symbol": "circle-open", "size": size, "color": NEUTRAL, "line": {"width": 2}}
    groups = [("before", facts.index, "p_before", open_mark)]
    for outcome, (color, symbol, name) in LOOKS.items():
        mark = {"symbol": symbol, "size": size + 1, "color": color}
        groups.append((f"after: {name}", facts.index[facts["outcome"] == outcome], "p_after", mark))
    for name, index, column, marker in groups:
        if not len(index):
            continue
        part, spots = facts.loc[index], place.loc[index]
        x, y = (spots, part[column]) if across else (part[column], spots)
        fig.add_trace(
            plotly().Scatter(name=name, x=x, y=y, mode="markers", marker=marker,
                             hovertext=_fact_hover(part), hoverinfo="text")
        )  # fmt: skip


def _fact_hover(facts: pd.DataFrame) -> list[str]:
    texts = []
    for fact in facts.to_dict("records"):
        text = (
            f"{words(fact['prompt'])} <b>{words(fact['target_new'])}</b><br>"
            f"{percent(fact['p_before'])} → {percent(fact['p_after'])}, {fact['outcome']}"
        )
        if fact.get("wrote_after") is not None:
            text += f"<br>writes “{words(_line(fact['wrote_after']))}”"
        texts.append(text)
    return texts


def _receipt_alt(facts: pd.DataFrame) -> str:
    taken = int(facts["outcome"].isin(list(LOOKS)[:2]).sum())
    said = [f"{taken} of {len(facts)} facts took"]
    if len(facts) <= MAX_FACTS:
        said += [
            f"{f['prompt']!r} {f['target_new']!r} goes from {percent(f['p_before'])} to "
            f"{percent(f['p_after'])} ({f['outcome']})"
            for f in facts.to_dict("records")
        ]
    else:
        low, high = (percent(facts[c].median()) for c in ("p_before", "p_after"))
        counts = facts["outcome"].value_counts()
        said += [f"median probability {low} before, {high} after"]
        said += [f"{counts[name]} {name}" for name in LOOKS if name in counts]
    return "; ".join(said) + "."


# -------------------------------------------------------------------- side effects


def _of_kinds(table: pd.DataFrame, kinds: Sequence[str] | None) -> pd.DataFrame:
    if kinds is None:
        others = table[table["kind"] != "paraphrase"]
        return table if others.empty else others
    chosen = table[table["kind"].isin([kinds] if isinstance(kinds, str) else list(kinds))]
    if chosen.empty:
        known = ", ".join(dict.fromkeys(table["kind"]))
        raise OptionError(f"plot_side_effects: no probes of kinds={kinds!r}; there are {known}.")
    return chosen


def _bars(shown: pd.DataFrame, changed: bool, name: str) -> Any:
    part = shown[shown["changed"] == changed]
    pattern = {"shape": "/", "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.4,
               "solidity": 0.3, "size": 6}  # fmt: skip
    marker: dict[str, Any] = {"color": PALETTE[int(changed)], "line": {"width": 0}}
    if changed:
        marker["pattern"] = pattern
    return plotly().Bar(
        name=name, x=part["kl"], y=list(part.index), orientation="h", marker=marker,
        text=[_move(row) for row in part.to_dict("records")], textposition="outside",
        textfont={"size": 12}, constraintext="none", cliponaxis=False,
        hovertext=[_effect_hover(row) for row in part.to_dict("records")], hoverinfo="text",
    )  # fmt: skip


def _move(row: dict[str, Any]) -> str:
    """How the leading answer changed, in a few words."""
    before, after = (token_label(row[c]) for c in ("top_before", "top_after"))
    if row["changed"]:
        return f"{before} {percent(row['p_top_before'])} → {after} {percent(row['p_top_after'])}"
    return f"{before} {percent(row['p_top_before'])} → {percent(row['p_top_after'])}"


def _effect_hover(row: dict[str, Any]) -> str:
    return f"{words(row['prompt'])} ({row['kind']})<br>{_move(row)}<br>KL {row['kl']:.3g} nats"


def _effects_alt(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    n = int(table["changed"].sum())
    return (
        f"{n} of {len(table)} prompts have another leading answer; median KL "
        f"{table['kl'].median():.2g} nats, largest {first['kl']:.2g} for {first['prompt']!r} "
        f"({first['top_before'].strip()!r} {percent(first['p_top_before'])}, then "
        f"{first['top_after'].strip()!r} {percent(first['p_top_after'])})."
    )


def _prompt_axis(fig: go.Figure, labels: list[str]) -> None:
    fig.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
        ticklabelstandoff=6,
    )


def _cut(text: object, length: int) -> str:
    said = str(text).strip()
    return words(said if len(said) <= length else said[: length - 1] + "…")


def _line(text: object) -> str:
    return " ".join(str(text).split())
