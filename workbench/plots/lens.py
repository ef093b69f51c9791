"""The logit lens: what the model would say after each layer, before and after an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import OptionError
from workbench.plots.theme import (
    PALETTE,
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

__all__ = ["plot_lens"]

NEEDED = ("layer", "position", "prompt_token", "rank", "token", "token_id", "prob", "tracked")
#: Lines of a figure, if nothing is tracked; pixels of a row of the map; columns that hold text.
MAX_LINES, ROW_PIXELS, MAX_WORDS = 4, 17, 16


def plot_lens(
    table: pd.DataFrame,
    after: pd.DataFrame | None = None,
    *,
    title: str | None = None,
    subtitle: str = "",
    theme: str = "light",
) -> go.Figure:
    """A map of layers and tokens for all positions, lines over layers for one.

    For all positions a cell shows the likeliest token and, as color, its probability; with
    ``after`` the map is that of ``after``, and cells whose token changed are outlined. For one
    position lines follow the tracked tokens (else the last layer's likeliest, where listed); with
    ``after`` dashed lines are before.

    Args:
        table: as from ``wb.logit_lens``.
        after: the same after an edit.
        title, subtitle: may use plotly's markup.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: if a column is missing, or the tables are about different prompts.

    Example:
        >>> plot_lens(wb.logit_lens(view, prompt, track="Paris"))
    """
    for each in (table,) if after is None else (table, after):
        need_columns(each, NEEDED, "plot_lens")
    if after is not None and _spots(table) != _spots(after):
        raise OptionError("plot_lens: the tables differ in layers or tokens of the prompt.")
    if table["position"].nunique() > 1:
        return _map(
            table, after, title or "What the model would say after each layer", subtitle, theme
        )
    return _lines(table, after, title or "When the answer appears", subtitle, theme)


def _spots(table: pd.DataFrame) -> set[tuple[Any, ...]]:
    return set(table[["layer", "position", "prompt_token"]].itertuples(index=False, name=None))


# -------------------------------------------------------------------- all positions


def _map(
    table: pd.DataFrame, after: pd.DataFrame | None, title: str, subtitle: str, theme: str
) -> go.Figure:
    shown = _best(table if after is None else after)
    old = None if after is None else _best(table)["token"]
    prob, token = shown["prob"].unstack("position"), shown["token"].unstack("position")
    tokens = table.drop_duplicates("position").set_index("position")["prompt_token"].sort_index()
    fig = new_figure(title, subtitle=subtitle, theme=theme, legend=False)
    height = max(fig.layout.height, ROW_PIXELS * len(prob) + 150)
    fig.update_layout(height=height)
    frame(fig, title, subtitle=subtitle, legend=False)
    hover = [
        [_cell(shown, old, layer, position) for position in prob.columns] for layer in prob.index
    ]
    x = list(range(len(tokens)))
    fig.add_trace(
        plotly().Heatmap(
            z=prob.to_numpy(), x=x, y=prob.index.tolist(), zmin=0, zmax=1,
            colorscale=SEQUENTIAL, xgap=1, ygap=1,
            text=[[token_label(t, 10) for t in row] for row in token.to_numpy()],
            texttemplate="%{text}" if len(x) <= MAX_WORDS else None, textfont={"size": 10.5},
            hovertext=hover, hoverinfo="text",
            colorbar={
                "title": {"text": "probability", "font": {"size": 13}}, "tickformat": ".0%",
                "thickness": 12,
            },
        )
    )  # fmt: skip
    changed = [] if old is None else [k for k in shown.index if old[k] != shown["token"][k]]
    for layer, position in changed:
        i = list(prob.columns).index(position)
        fig.add_shape(
            type="rect", x0=i - 0.49, x1=i + 0.49, y0=layer - 0.47, y1=layer + 0.47,
            line={"width": 2, "color": PALETTE[1]},
        )  # fmt: skip
    fig.update_xaxes(
        title="token of the prompt", tickvals=x, ticktext=[token_label(t) for t in tokens],
        showgrid=False,
    )  # fmt: skip
    _layer_ticks(fig.update_yaxes, prob.index)
    return finish(fig, _map_in_words(prob, token, tokens, None if old is None else len(changed)))


def _best(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["rank"] == 1].set_index(["layer", "position"]).sort_index()


def _cell(shown: pd.DataFrame, old: Any, layer: int, position: int) -> str:
    row = shown.loc[(layer, position)]
    where = "embedding" if layer < 0 else f"layer {layer}"
    said = f"{where}, after {words(repr(row['prompt_token']))}<br>"
    said += f"{words(repr(row['token']))} {percent(row['prob'])}"
    if old is not None and old[(layer, position)] != row["token"]:
        said += f"<br>before: {words(repr(old[(layer, position)]))}"
    return said


def _map_in_words(
    prob: pd.DataFrame, token: pd.DataFrame, tokens: pd.Series, changed: int | None
) -> str:
    last = prob.columns[-1]
    final = token[last].iloc[-1]
    # the first layer from which the final token stays on top
    same = (token[last] == final).to_numpy()
    since = prob.index[len(same) - int(same[::-1].cumprod().sum())]
    end = "" if changed is None else f" {changed} of {prob.size} cells changed their token."
    return (
        f"Logit lens over {len(prob)} layers and {len(tokens)} tokens: behind the prompt "
        f"{final!r} leads from layer {since} on and ends at {percent(prob[last].iloc[-1])}.{end}"
    )


# -------------------------------------------------------------------- one position


def _lines(
    table: pd.DataFrame, after: pd.DataFrame | None, title: str, subtitle: str, theme: str
) -> go.Figure:
    frames = {"": table} if after is None else {"before": table, "after": after}
    tokens = _followed(list(frames.values()))
    fig = new_figure(title, subtitle=subtitle, theme=theme)
    said = []
    for i, (token_id, token) in enumerate(tokens.items()):
        for name, each in frames.items():
            part = each[each["token_id"] == token_id].sort_values("layer")
            look = style(i)
            if after is not None:
                look["line"] = look["line"] | {"dash": "dash" if name == "before" else "solid"}
                look["marker"] = look["marker"] | {"size": 5 if name == "before" else 8}
            fig.add_trace(
                plotly().Scatter(
                    name=f"{token_label(token)}, {name}" if name else token_label(token),
                    x=part["layer"], y=part["prob"], mode="lines+markers",
                    customdata=part["rank"],
                    hovertemplate=f"{words(repr(token))} {name}<br>layer %{{x}}: %{{y:.2%}}, "
                    "rank %{customdata}<extra></extra>",
                    **look,
                )
            )  # fmt: skip
        said.append(_line_in_words(token, token_id, frames))
    fig.update_yaxes(title="probability", tickformat=".0~%", rangemode="tozero")
    _layer_ticks(fig.update_xaxes, table["layer"])
    return finish(fig, "Logit lens behind the prompt: " + "; ".join(said) + ".")


def _followed(frames: list[pd.DataFrame]) -> dict[int, str]:
    """Token id → text of the tracked tokens; without any, of the last layer's likeliest."""
    both = pd.concat(frames, ignore_index=True)
    chosen = both[both["tracked"].astype(bool)]
    if chosen.empty:
        last = both[both["layer"] == both["layer"].max()]
        chosen = last.sort_values("rank", kind="stable")
    found = dict(zip(chosen["token_id"], chosen["token"], strict=True))
    return dict(list(found.items())[: 8 if both["tracked"].any() else MAX_LINES])


def _line_in_words(token: str, token_id: int, frames: dict[str, pd.DataFrame]) -> str:
    said = []
    for name, each in frames.items():
        part = each[each["token_id"] == token_id].sort_values("layer")
        if part.empty:
            continue
        ends = f"ends at {percent(part['prob'].iloc[-1])}"
        first = part[part["rank"] == 1]["layer"]
        leads = "never leads" if first.empty else f"first leads at layer {first.iloc[0]}"
        said.append(f"{name} {leads} and {ends}".strip())
    return f"{token!r} " + ", ".join(said)


def _layer_ticks(update: Any, layers: Any) -> None:
    """Layer axis; -1 is the embedding."""
    low, high = int(min(layers)), int(max(layers))
    step = max(1, -(-(high + 1) // 15))
    values = list(range(0, high + 1, step))
    names = [str(x) for x in values]
    if low < 0:
        skip = int(step > 1)  # no room for 0 beside the embedding
        values, names = [-1, *values[skip:]], ["emb.", *names[skip:]]
    update(title="layer", tickvals=values, ticktext=names, showgrid=False, zeroline=False)
