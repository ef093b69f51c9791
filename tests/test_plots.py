"""Figures: every one has title, units, hover and its finding in words; both themes are readable."""

from __future__ import annotations

import asyncio
import base64
import functools
import sys

import numpy as np
import pandas as pd
import pytest
from browsers import require_chromium
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import plots
from workbench.errors import OptionError, WorkbenchError
from workbench.plots import shown, theme

BEFORE = pd.DataFrame(
    {"token": [" French", " Italian", " the", "<|end|>"], "prob": [0.57, 0.06, 0.05, 0.001]}
)
AFTER = pd.DataFrame({"token": [" English", " French", " the"], "prob": [0.9, 0.004, 0.003]})
SUMMARY = pd.DataFrame(
    {
        "kind": ["score", "neighborhood", "efficacy"],
        "n": [3, 30, 3],
        "success": [0.8, 0.7, 1.0],
        "low": [0.7, 0.6, 0.9],
        "high": [0.9, 0.8, 1.0],
        "exact": [np.nan, 0.4, 0.9],
    }
)
LAYERS = np.arange(6)
DRIFT = pd.DataFrame({"layer": LAYERS, "relative": [0, 0, 0.01, 0.03, 0, 0]})
SWEEP = pd.DataFrame({"layer": LAYERS, "efficacy": 1 - LAYERS / 10, "score": [1, 4, 9, 4, 1, 0]})
SWEEP["score"] /= 10
CLOSURE = pd.DataFrame({"lam": [1.0, 10.0, 1e4], "predicted_closure": [0.99, 0.9, 0.1]})
TRACE = pd.DataFrame(
    [
        {"request": r, "step": s, "loss": 5 - s, "nll": 4 - s, "kl": 0.1, "prob": s / 4 - r / 9}
        for r in range(2)
        for s in range(5)
    ]
)
TRAINING = pd.DataFrame(
    {
        "step": [20, 40, 60],
        "train_edit": [2.0, 0.5, 0.1],
        "edit": [2.5, 0.4, 0.0],
        "local": [0.0, 0.02, 0.01],
        "success": [0.1, 0.8, 0.95],
        "accuracy_before": 1.0,
        "accuracy_after": [1.0, 0.96, 0.98],
        "drawdown": [0.0, 0.04, 0.02],
        "best": [False, False, True],
    }
)
GRADIENTS = pd.DataFrame(
    {
        "matrix": [f"model.layers.{i}.mlp.{m}_proj.weight" for i in (2, 3) for m in ("up", "down")],
        "gradient_norm": [0.1, 0.2, 0.4, 0.8],
        "change_norm": [0.01, 0.05, 0.02, 0.0],
        "cosine": [-1.0, -0.5, 0.2, 0.0],
    }
)
STREAM = pd.DataFrame(
    [
        {"edit_step": i, "case_id": i, "step": s, "exact": (s - i) % 3 != 2, "run": "one"}
        for s in range(1, 9)
        for i in range(1, s + 1)
    ]
).assign(kind="efficacy", success=True)
MOMENTS = pd.DataFrame(
    [
        {"run": "one", "step": s, "metric": m, "layer": 5, "value": s * (2.0 + (m == "x"))}
        for s in range(9)
        for m in ("weight_distance", "perplexity", "hidden_shift")
    ]
)
FACTS = pd.DataFrame(
    {
        "prompt": "The capital of France is",
        "target_new": "Rome",
        "p_before": 0.001,
        "p_after": np.linspace(0.05, 0.99, 12),
        "outcome": ["did not take", "teacher-forced only", "lost"] * 2
        + ["took", "held before", "later in the text"] * 2,
        "wrote_after": "Rome, and so on",
    }
)
EFFECTS = pd.DataFrame(
    {
        "kind": "free",
        "prompt": [f"Prompt {i} says" for i in range(12)],
        "top_before": " Paris",
        "p_top_before": 0.9,
        "top_after": [" Rome", " Paris"] * 6,
        "p_top_after": 0.8,
        "changed": [True, False] * 6,
        "kl": np.linspace(2, 0.01, 12),
    }
)
COMPARED = pd.DataFrame(
    {"editor": ["A", "B", "C"], "efficacy": [1, 0.5, np.nan], "exact": [0.9, 0.4, np.nan]}
).assign(efficacy_low=0.2, efficacy_high=1.0, problem=[None, None, "it needs a decoder."])
GRID = pd.DataFrame(
    [
        {"case_id": c, "editor": e, "success": (c % 3) / 2 if e == "A" else np.nan}
        for c in range(6)
        for e in "AB"
    ]
).assign(prompt="The capital of France is", target_new="Rome", kind="efficacy", probes=2)
TRACED = pd.DataFrame(
    [
        {"kind": k, "layer": x, "position": i, "token": t, "role": r, "prob": 0.02 + 0.1 * i * x}
        for k in ("residual", "mlp")
        for x in range(4)
        for i, (t, r) in enumerate((("Fr", "last subject token"), (" is", "last")))
    ]
).assign(low=0.01, high=0.4, effect=0.01, prob_clean=0.5, prob_corrupted=0.02, answer=" Paris", n=9)
LENS = pd.DataFrame(
    [
        {"layer": x, "rank": r, "token": t, "token_id": r, "prob": 0.2 * x / r, "tracked": True}
        for x in range(4)
        for r, t in ((1, " Paris"), (2, " Rome"))
    ]
).assign(position=5, prompt_token=" is")
STRIP = pd.DataFrame(
    [
        {"layer": x, "place": p, "token": " is", "relative": x / 9, "edited": x == 2, "kl": 0.1}
        for x in range(-1, 4)
        for p in ("last token", "subject")
    ]
).assign(cosine=0.9)
PUSHED = pd.DataFrame(
    {"token": list("abcd"), "change": [3.0, 1, -1, -2], "rank": [1, 2, 2, 1], "layer": 2}
).assign(direction=["promoted"] * 2 + ["suppressed"] * 2, request=0, prompt="A prompt", open=True)
BATCHES = pd.DataFrame(
    [
        {"editor": e, "at once": n, "score": 90.0 - n / 10 * k, "exact": 80.0 - n}
        for k, e in enumerate(("MEMIT", "EMMET"))
        for n in (64, 1, 16)
    ]
)
FIGURES = {
    "batch sizes": lambda **k: plots.plot_batch_sizes(BATCHES, measures=["score", "exact"], **k),
    "trace of a fact": lambda **k: plots.plot_causal(TRACED, **k),
    "average trace": lambda **k: plots.plot_causal_average(TRACED, **k),
    "lens": lambda **k: plots.plot_lens(LENS, LENS, **k),
    "residual shift": lambda **k: plots.plot_residual_shift(STRIP, **k),
    "promoted": lambda **k: plots.plot_promoted(PUSHED, **k),
    "receipt": lambda **k: plots.plot_receipt(FACTS[4:8], **k),
    "receipt of many": lambda **k: plots.plot_receipt(FACTS, **k),
    "side effects": lambda **k: plots.plot_side_effects(EFFECTS, **k),
    "comparison": lambda **k: plots.plot_comparison(COMPARED, **k),
    "comparison grid": lambda **k: plots.plot_comparison_grid(GRID, **k),
    "tokens": lambda **k: plots.plot_next_tokens(BEFORE, AFTER, target="English", **k),
    "summary": lambda **k: plots.plot_summary({"a": SUMMARY, "b": SUMMARY}, **k),
    "drift": lambda **k: plots.plot_drift(DRIFT, **k),
    "drift of two": lambda **k: plots.plot_drift(
        pd.concat([DRIFT.assign(editor=e) for e in ("A", "B")]), by="editor", **k
    ),
    "sweep": lambda **k: plots.plot_layer_sweep(SWEEP, chosen=2, **k),
    "closure": lambda **k: plots.plot_closure(CLOSURE, chosen=15.0, **k),
    "trace": lambda **k: plots.plot_target_trace(TRACE, **k),
    "forgetting": lambda **k: plots.plot_forgetting(STREAM, moments=MOMENTS, **k),
    "forgetting of two": lambda **k: plots.plot_forgetting(
        pd.concat([STREAM, STREAM.assign(run="two")]), **k
    ),
    "survival": lambda **k: plots.plot_survival_map(STREAM, size="wide", **k),
    "moments": lambda **k: plots.plot_moments(MOMENTS, marks=(4,), **k),
    "training": lambda **k: plots.plot_training(TRAINING, **k),
    "tradeoff": lambda **k: plots.plot_tradeoff(TRAINING, size="wide", **k),
    "gradients": lambda **k: plots.plot_gradients(GRADIENTS, **k),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("look", ["light", "dark"])
def test_every_figure_is_complete(name, look):
    fig = FIGURES[name](theme=look, title="A title")
    spec = fig.to_dict()
    assert fig.layout.title.text == "A title"
    assert plots.alt_text(fig).endswith(".") and plots.alt_text(fig) != "A title"
    assert (fig.layout.width, fig.layout.height) == plots.SIZES["wide"]
    assert fig.layout.template.layout.autosize is False
    for axis in (k for k in spec["layout"] if k.startswith("xaxis")):
        assert spec["layout"][axis]["title"]["text"]
    drawn = [t for t in fig.data if t.x is not None and t.x[0] is not None]
    assert drawn and all(t.hovertext is not None or t.hovertemplate for t in drawn)
    assert fig.layout.template.layout.paper_bgcolor == theme._INK[look]["paper"]


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("look", ["light", "dark"])
def test_colors_stand_out_from_the_paper(look):
    ink = theme._INK[look]
    assert min(_contrast(c, ink["paper"]) for c in plots.theme.PALETTE) >= 3
    assert _contrast(ink["ink"], ink["paper"]) >= 7
    assert min(_contrast(c, ink["paper"]) for c in (ink["soft"], theme.NEUTRAL)) >= 3.9


def test_long_prompts_keep_both_ends():
    text = "The city in which Danielle Darrieux was born is called"
    short = theme.ellipsis(text, 30)
    assert len(short) <= 30 and short.startswith("The city") and short.endswith("is called")
    assert theme.ellipsis(text, len(text)) == text


def test_target_and_old_answer_are_pinned_and_marked():
    many = pd.DataFrame(
        {"token": [f" word{i}" for i in range(20)] + [" French", " English"], "prob": 0.01}
    )
    many.loc[20:, "prob"] = [1e-4, 1e-5]
    fig = plots.plot_next_tokens(many, AFTER, target="English", old="French", top_k=3)
    ticks = fig.layout.yaxis.ticktext
    assert ticks[:1] == ("English <b>(target)</b>",)
    assert any(t == "French <b>(old)</b>" for t in ticks) and len(ticks) == 5
    assert "target 'English' goes from < 0.1 % to 90 %" in plots.alt_text(fig)


def test_the_longest_first_token_of_the_answer_is_marked():
    table = pd.DataFrame({"token": [" N", " New", " Old"], "prob": [0.5, 0.3, 0.2]})
    fig = plots.plot_next_tokens(table, target="New York")
    assert fig.layout.yaxis.ticktext == ("N", "New <b>(target)</b>", "Old")


def test_tokens_that_look_alike_or_like_markup_stay_apart():
    table = pd.DataFrame(
        {"token": [" a", "a", "<b>", " ", "\n"], "prob": [0.5, 0.2, 0.1, 0.1, 0.1]}
    )
    ticks = plots.plot_next_tokens(table).layout.yaxis.ticktext
    assert ticks == ("␣a", "a", "&lt;b&gt;", "␣", "⏎")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.floats(0, 1), min_size=1, max_size=15))
def test_any_tokens_can_be_drawn(probs):
    table = pd.DataFrame({"token": list(probs), "prob": list(probs.values())})
    fig = plots.plot_next_tokens(table, AFTER, target="English")
    n = len(fig.layout.yaxis.ticktext)
    assert n <= 8 and all(len(bar.x) == n for bar in fig.data)
    assert max(fig.data[0].x) <= fig.layout.xaxis.range[1] or np.isnan(fig.data[0].x).any()


def test_summary_shows_intervals_exact_match_and_the_order_of_kinds():
    fig = plots.plot_summary(SUMMARY)
    assert fig.layout.yaxis.ticktext == ("efficacy", "neighborhood", "score")
    exact, success = fig.data[0], fig.data[1]
    assert "open" in exact.marker.symbol and list(success.y) == [2, 1, 0]
    np.testing.assert_allclose(success.error_x.arrayminus, [0.1, 0.1, 0.1])
    assert "95 %: 60.0 to 80.0" in success.hovertext[1]


def test_a_success_that_counts_exact_matches_is_an_open_mark_alone():
    fig = plots.plot_summary(SUMMARY.assign(measure=["harmonic", "exact", "two-way"]))
    assert np.isnan(fig.data[1].x[1]) and fig.data[0].x[1] == 0.4
    assert "neighborhood 70 % (exact match)" in plots.alt_text(fig)


def test_the_chosen_layer_may_come_from_the_table():
    fig = plots.plot_layer_sweep(SWEEP.assign(chosen=SWEEP["layer"] == 2))
    assert fig.layout.shapes[0].x0 == 2
    assert "score peaks at layer 2 (90 %); layer 2 is chosen" in plots.alt_text(fig)


def test_drift_says_which_layers_moved():
    assert "2 of 6 layers moved, most layer 3 (3.0 %)" in plots.alt_text(plots.plot_drift(DRIFT))


@pytest.mark.parametrize(
    ("draw", "table", "missing"),
    [
        (plots.plot_next_tokens, AFTER.drop(columns="prob"), "prob"),
        (plots.plot_summary, SUMMARY.drop(columns="kind"), "kind"),
        (plots.plot_drift, DRIFT.drop(columns="relative"), "frobenius"),
        (plots.plot_layer_sweep, SWEEP[["layer"]], "efficacy"),
        (plots.plot_closure, CLOSURE.drop(columns="lam"), "lam"),
        (plots.plot_target_trace, TRACE.drop(columns="prob"), "prob"),
        (plots.plot_training, TRAINING.drop(columns="edit"), "edit"),
        (plots.plot_tradeoff, TRAINING.drop(columns="drawdown"), "drawdown"),
        (plots.plot_gradients, GRADIENTS.drop(columns="cosine"), "cosine"),
    ],
)
def test_a_missing_column_is_named(draw, table, missing):
    with pytest.raises(OptionError, match=missing):
        draw(table)


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match="no rows"):
        plots.plot_drift(DRIFT.head(0))
    with pytest.raises(OptionError, match="Did you mean 'dark'"):
        plots.template("drak")
    with pytest.raises(OptionError, match="size='big'"):
        plots.plot_drift(DRIFT, size="big")
    with pytest.raises(OptionError, match="positive"):
        plots.plot_closure(CLOSURE.assign(lam=0.0))


def test_without_plotly_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(WorkbenchError, match=r"pip install 'workbench-editing\[lab\]'"):
        plots.plot_drift(DRIFT)


def test_a_bundle_has_words_and_the_figure_and_no_still_in_a_live_session(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    view = plots.show(plots.plot_drift(DRIFT))
    out = view._repr_mimebundle_()
    assert out["text/plain"] == repr(view) == plots.alt_text(view.figure)
    assert set(out) == {"text/plain", "application/vnd.plotly.v1+json"}


def test_a_headless_bundle_has_a_still_that_does_not_change(monkeypatch):
    require_chromium()
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    fig = plots.plot_drift(DRIFT)
    stills = {plots.bundle(fig, interactive=False)["image/png"] for _ in range(2)}
    assert len(stills) == 1
    png = base64.b64decode(stills.pop())
    assert png.startswith(b"\x89PNG")
    assert [int.from_bytes(png[i : i + 4], "big") for i in (16, 20)] == [900, 380]


def test_a_browser_that_does_not_start_is_given_up(monkeypatch):
    async def never(self: object) -> None:
        await asyncio.sleep(60)

    stuck = type("Kaleido", (), {"__aenter__": never})
    monkeypatch.setitem(sys.modules, "kaleido", type(sys)("kaleido"))
    monkeypatch.setattr(sys.modules["kaleido"], "Kaleido", stuck, raising=False)
    monkeypatch.setattr(shown, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(shown, "has_browser", lambda: True)
    monkeypatch.setattr(shown, "_camera", functools.cache(shown._camera.__wrapped__))
    with pytest.warns(UserWarning, match="no stills of figures"):
        assert shown.still(plots.plot_drift(DRIFT)) is None
    assert shown.still(plots.plot_drift(DRIFT)) is None


def test_forgetting_draws_each_curve_and_marks_the_collapse():
    fig = plots.plot_forgetting(STREAM)
    names = [t.name for t in fig.data if t.showlegend]
    assert names == list(plots.forgetting.CURVES.values())
    retained = next(t for t in fig.data if t.name == "earlier edits, right now")
    assert list(retained.x) == list(range(1, 9)) and retained.y[2] == pytest.approx(2 / 3)
    assert "after 8 edits" in plots.alt_text(fig) and not fig.layout.shapes
    fallen = STREAM.assign(exact=(STREAM["step"] < 6) | (STREAM["step"] == STREAM["edit_step"]))
    jumps = MOMENTS[MOMENTS["metric"] == "weight_distance"].copy()
    jumps["value"] += 400 * (jumps["step"] >= 6)
    fig = plots.plot_forgetting(fallen, moments=jumps)
    assert fig.layout.shapes[0].x0 == 6 and "Inflection at 6 edits." in plots.alt_text(fig)


def test_newest_edits_are_averaged_one_by_one_they_would_flicker():
    rows = STREAM[STREAM["step"] == STREAM["edit_step"]].assign(exact=[True, False] * 4)
    raw = plots.plot_forgetting(rows, window=1).data
    smooth = plots.plot_forgetting(rows, window=4).data
    newest = [next(t for t in d if t.name == "newest edits, right") for d in (raw, smooth)]
    assert set(newest[0].y) == {0.0, 1.0} and newest[1].y[-1] == 0.5


def test_a_survival_map_is_at_most_sixty_cells_wide_and_high():
    many = pd.DataFrame(
        [
            {"edit_step": i, "case_id": i, "step": s, "exact": s < 150}
            for s in range(2, 200)
            for i in range(1, s + 1, 7)
        ]
    ).assign(kind="efficacy", success=True)
    heat = plots.plot_survival_map(many).data[0]
    assert np.asarray(heat.z).shape[0] <= 60 and np.asarray(heat.z).shape[1] <= 60
    small = plots.plot_survival_map(STREAM).data[0]
    assert list(small.y) == [str(i) for i in range(1, 9)] and list(small.x)[0] == "2"
    assert np.asarray(small.z)[0][:3].tolist() == [1.0, 0.0, 1.0]  # right, forgotten, back
    with pytest.raises(OptionError, match="one run"):
        plots.plot_survival_map(pd.concat([STREAM, STREAM.assign(run="two")]))


def test_moments_are_refused_by_name():
    with pytest.raises(OptionError, match="perplexity"):
        plots.plot_moments(MOMENTS, metrics=("perplexty",))
    fig = plots.plot_moments(MOMENTS, metrics=("perplexity",))
    assert len(fig.data) == 1 and list(fig.data[0].y) == [2.0 * s for s in range(9)]
    assert "perplexity 0 → 16" in plots.alt_text(fig)


def test_training_says_what_was_kept():
    fig = plots.plot_training(TRAINING)
    assert "at step 60 95 % of held-out edits succeed, and 2.0 % of other" in plots.alt_text(fig)
    assert fig.layout.shapes[0].x0 == 60
    values = {t.name: list(t.y) for t in fig.data}
    assert values["edit, held out"][-1] > 0, "zero has no place on a logarithmic axis"


def test_tradeoff_joins_edits_at_once():
    table = pd.DataFrame(
        {"editor": ["MEND", "ENN"] * 2, "n_edits": [5, 5, 1, 1], "drawdown": [0.01, 0.03, 0.0, 0.0],
         "success": [0.9, 0.7, 0.98, 0.99]}
    )  # fmt: skip
    fig = plots.plot_tradeoff(table)
    assert [t.name for t in fig.data] == ["MEND", "ENN"]
    assert list(fig.data[0].text) == [1, 5] and list(fig.data[0].y) == [0.98, 0.9]
    assert "ENN: success 99 % at drawdown 0" in plots.alt_text(fig)


def test_gradients_drop_what_names_have_in_common():
    fig = plots.plot_gradients(GRADIENTS)
    assert list(fig.data[0].y)[:2] == ["2.mlp.up_proj", "2.mlp.down_proj"]
    assert min(fig.data[1].x) > 0 and list(fig.data[2].x) == [-1.0, -0.5, 0.2, 0.0]


def test_batch_sizes_are_drawn_in_their_order_and_said():
    fig = plots.plot_batch_sizes(BATCHES, measures=["exact"])
    assert [t.name for t in fig.data] == ["MEMIT", "EMMET"]
    assert list(fig.data[0].x) == [1, 16, 64] and list(fig.data[0].y) == [79.0, 64.0, 16.0]
    assert "MEMIT, from 1 to 64 at once: exact 79.0 → 16.0" in fig.layout.meta["alt"]
    low, high = fig.layout.yaxis.range
    assert low < 16.0 and high > 79.0
    near = plots.plot_batch_sizes(
        BATCHES.assign(exact=99.0 + BATCHES["exact"] / 80), measures=["exact"]
    )
    assert near.layout.yaxis.range[1] - near.layout.yaxis.range[0] > 19  # two points look like two
    for same in (0.0, float("nan")):
        assert plots.plot_batch_sizes(BATCHES.assign(exact=same), measures=["exact"]).data
    with pytest.raises(OptionError, match="0 measures"):
        plots.plot_batch_sizes(BATCHES, measures=[])
