"""The causal trace: equal to one full forward a cell, on every family, and what it says on tiny."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import families
from plain_trace import PlainTrace

import workbench as wb
from workbench.errors import DataError, OptionError, RequestError, UnsupportedEditorError
from workbench.inspectors import tracing
from workbench.inspectors.causal import ROLES
from workbench.plots import alt_text
from workbench.replay import run_rows
from workbench.trace import Site, trace

FACT = wb.EditRequest(
    prompt="In Oslo {} plays the sport of", subject="Miles Davis", target_new="soccer"
)
START = dataclasses.replace(FACT, prompt="{} plays the")
#: What a family computes in float32 whatever its weights.
HALF_WIDE = ("gpt_neo", "gptj")


@pytest.fixture
def view(make_view):
    return make_view("gpt2", torch.float64)


def state_of(view: wb.ModelView) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in view.model.named_parameters()}


def hooks_on(view: wb.ModelView) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.model.modules())


def plain(view: wb.ModelView, fact: wb.EditRequest, table: pd.DataFrame) -> PlainTrace:
    """One full forward a cell, for the answer and the noise of a table."""
    row = tracing.encode_fact(view, fact)
    first, last = table.attrs["subject"]
    width = view.model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(table.attrs["seed"])
    draw = torch.randn(table.attrs["samples"], last + 1 - first, width, generator=generator)
    logits = view.model(input_ids=torch.tensor([row.ids])).logits[0, -1]
    noise = table.attrs["noise"] * draw
    return PlainTrace(view, list(row.ids), (first, last), noise, int(logits.argmax()))


def differences(view, fact: wb.EditRequest, table: pd.DataFrame) -> tuple[float, float]:
    """Largest difference from the plain trace, and how much the cells differ among themselves."""
    slow = plain(view, fact, table)
    options = {"window": table.attrs["window"], "severed": table.attrs["severed"]}
    worst = abs(table.prob_clean.iloc[0] - slow.prob_clean)
    worst = max(worst, abs(table.prob_corrupted.iloc[0] - float(slow.prob_corrupted.mean())))
    for row in table.itertuples():
        found = slow.cell(row.kind, row.layer, row.position, **options)
        worst = max(worst, abs(float(found.mean()) - row.prob))
        worst = max(worst, abs(float(found.quantile(0.95)) - row.high))
    return worst, table.prob.max() - table.prob.min()


# ---------------------------------------------------------------------- exactness


@pytest.mark.parametrize("family", families.CAUSAL)
def test_equal_to_one_full_forward_a_cell(family: str, make_view) -> None:
    """Every family, every kind; tokens before, in and behind the subject, and the last."""
    view = make_view(family, torch.float64)
    length = len(tracing.encode_fact(view, FACT).ids)
    first = tracing.encode_fact(view, FACT).first
    some = (first - 1, first, first + 1, length - 1)
    table = wb.causal_trace(view, FACT, samples=2, window=2, positions=some, seed=3)
    assert len(table) == 3 * view.n_layers * len(some)
    worst, spread = differences(view, FACT, table)
    assert spread > 1e-5 and worst < spread * (1e-4 if family in HALF_WIDE else 1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon", "bloom", "gemma2", "opt"])
@pytest.mark.parametrize("severed", ["mlp", "attention"])
def test_severed_paths_stay_corrupted(family: str, severed: str, make_view) -> None:
    """From the first token of a text on, where nothing stands before the subject."""
    view = make_view(family, torch.float64)
    table = wb.causal_trace(view, START, samples=2, severed=severed, seed=1)
    assert set(table.kind) == {"residual"} and table.attrs["severed"] == severed
    worst, spread = differences(view, START, table)
    assert worst < 1e-9 * spread
    whole = wb.causal_trace(view, START, samples=2, kinds="residual", seed=1)
    apart = (table.prob - whole.prob).abs()
    top = table.layer == view.n_layers - 1
    assert (apart[top] < 1e-15).all()  # above the last residual there is nothing to sever
    assert (apart[table.layer == 0] > 1e-6 * spread).any()


@pytest.mark.parametrize("window", [1, 2, 3])
def test_windows_are_those_of_the_paper(window: int, view) -> None:
    table = wb.causal_trace(view, START, samples=2, window=window, kinds=("attention", "mlp"))
    worst, spread = differences(view, START, table)
    assert worst < 1e-9 * spread
    assert list(dict.fromkeys(table.kind)) == ["attention", "mlp"]


def test_ten_layers_around_a_layer_as_in_the_paper() -> None:
    spans = [(c.start, c.stop) for c in tracing.cells_of("mlp", 48, window=10)]
    assert spans[0] == (0, 5) and spans[20] == (15, 25) and spans[47] == (42, 48)


def test_pieces_of_a_pass_make_no_difference(view, monkeypatch) -> None:
    whole = wb.causal_trace(view, FACT, samples=2)
    monkeypatch.setattr(tracing, "PASS_TOKENS", 20)
    monkeypatch.setattr(tracing, "READOUT_ELEMENTS", 1)
    pieces = wb.causal_trace(view, FACT, samples=2)
    np.testing.assert_allclose(pieces.prob, whole.prob, rtol=1e-12)


@pytest.mark.parametrize(
    "family", [f for f in families.CAUSAL if f not in ("gemma2", "gemma3_text", "olmo2", "granite")]
)
def test_what_the_modules_add_is_the_step_of_the_residual(family: str, make_view) -> None:
    """``residual = input + attention + value``: the restored outputs are contributions."""
    view = make_view(family, torch.float64)
    ids = tracing.encode_fact(view, FACT).ids
    parts = ("input", "attention", "value", "residual")
    with trace(view, [Site(1, p) for p in parts]) as seen:
        run_rows(view, [ids])
    before, attention, value, after = (seen[Site(1, p)] for p in parts)
    error = (before + attention + value - after).norm() / attention.norm()
    assert error < (1e-6 if family in HALF_WIDE else 1e-12)


# ---------------------------------------------------------------------- the table


def test_table_and_roles(view) -> None:
    table = wb.causal_trace(view, FACT, samples=3)
    ids = tracing.encode_fact(view, FACT).ids
    assert len(table) == 3 * view.n_layers * len(ids)
    assert (table.low <= table.prob).all() and (table.prob <= table.high).all()
    np.testing.assert_allclose(table.effect, table.prob - table.prob_corrupted, atol=1e-15)
    tokens = table.drop_duplicates("position")
    assert "".join(tokens.token) == FACT.text
    assert list(dict.fromkeys(tokens.role)) == list(ROLES)
    inside = tokens[tokens.role.str.contains("subject token")]
    assert "".join(inside.token).strip() == FACT.subject
    assert inside.role.iloc[0] == "first subject token"
    assert inside.role.iloc[-1] == "last subject token"
    assert (table[table.role == "before subject"].effect == 0).all()
    assert (table[table.role == "last"].effect != 0).any()
    assert table.answer.iloc[0] == table.attrs["predicted"]
    assert table.attrs["model"] == view.name and table.attrs["edits"] == 0
    same = wb.causal_trace(view, FACT, samples=3)
    pd.testing.assert_frame_equal(table, same)
    other = wb.causal_trace(view, FACT, samples=3, seed=1)
    assert not np.allclose(table.prob_corrupted, other.prob_corrupted)


def test_a_subject_of_one_token_and_one_that_ends_the_prompt(view) -> None:
    one = wb.causal_trace(
        view, dataclasses.replace(FACT, prompt="In {} plays", subject="Oslo"), samples=1
    )
    roles = one.drop_duplicates("position").set_index("position").role
    assert (
        "first subject token" not in set(roles) or one.attrs["subject"][0] < one.attrs["subject"][1]
    )
    assert roles[one.attrs["subject"][1]] == "last subject token"
    end = wb.causal_trace(view, dataclasses.replace(FACT, prompt="We hear {}"), samples=1)
    last = end[end.position == end.position.max()]
    assert set(last.role) == {"last subject token"}
    np.testing.assert_allclose(last[(last.layer == 3) & (last.kind == "residual")].prob,
                               last.prob_clean.iloc[0])  # fmt: skip


def test_more_noise_forgets_more(tiny) -> None:
    case = wb.datasets.tiny(limit=1)[0]
    found = [
        wb.causal_trace(tiny, case, noise_sigmas=s, kinds="residual", samples=8) for s in (0.01, 3)
    ]
    clean = found[0].prob_clean.iloc[0]
    assert found[0].prob_corrupted.iloc[0] == pytest.approx(clean, abs=0.01)
    assert found[1].prob_corrupted.iloc[0] < 0.6 * clean


def test_nothing_of_the_view_changes(view) -> None:
    before, hooks = state_of(view), hooks_on(view)
    wb.causal_trace(view, FACT, samples=1)

    def stop(phase: str, done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    for work in (wb.causal_trace, wb.causal_average):
        requests = FACT if work is wb.causal_trace else [FACT] * 4
        with pytest.raises(KeyboardInterrupt), wb.progress_to(stop):
            work(view, requests, samples=1)
    assert hooks_on(view) == hooks and view.stack == ()
    for name, p in view.model.named_parameters():
        assert torch.equal(p, before[name]), name
    wb.causal_trace(view, FACT, samples=1)  # the view is free again


# ---------------------------------------------------------------------- refusals


def test_errors_say_what_to_do(view, make_view) -> None:
    with pytest.raises(RequestError, match="does not answer.*must_know=False"):
        wb.causal_trace(view, dataclasses.replace(FACT, target_true="Oslo"))
    traced = wb.causal_trace(
        view, dataclasses.replace(FACT, target_true="Oslo"), samples=1, must_know=False
    )
    assert FACT.text + traced.answer.iloc[0] in FACT.text + " Oslo"
    with pytest.raises(RequestError, match="names none"):
        wb.causal_trace(view, wb.EditRequest(prompt="Oslo is", target_new="old"))
    with pytest.raises(RequestError, match="causal_average"):
        wb.causal_trace(view, [FACT, FACT])
    for options, message in (
        ({"severed": "mpl"}, "Did you mean 'mlp'"),
        ({"kinds": ("residual", "head")}, "'head' is unknown"),
        ({"kinds": ()}, "one or more"),
        ({"kinds": ("mlp",), "severed": "mlp"}, "must be"),
        ({"samples": 0}, "samples=0"),
        ({"window": 0}, "window=0"),
        ({"noise_sigmas": 0}, "noise_sigmas=0"),
        ({"std": float("nan")}, "std=nan"),
        ({"positions": (99,)}, "tokens 0 to"),
    ):
        with pytest.raises(OptionError, match=message):
            wb.causal_trace(view, FACT, **options)
    with pytest.raises(UnsupportedEditorError, match="decoder"):
        wb.causal_trace(make_view("t5"), FACT)
    with pytest.raises(RequestError, match="answers none of the 2"):
        wb.causal_average(view, [dataclasses.replace(FACT, target_true="Oslo")] * 2, samples=1)
    with pytest.raises(OptionError, match="limit=0"):
        wb.causal_average(view, [FACT], limit=0)


def test_hook_layers_are_refused_and_the_state_below_them_is_not(view) -> None:
    editor = wb.CoachHook(
        layers=(0, 1), steps=2, lr=0.3, templates=("{}",), corpus="identity", lam=0.5
    )
    view.push(editor.edit(view, [FACT]))
    with pytest.raises(UnsupportedEditorError, match="hook layers"):
        wb.causal_trace(view, FACT, samples=1)
    with view.pristine():
        assert len(wb.causal_trace(view, FACT, samples=1))


# ---------------------------------------------------------------------- averages


def test_average_is_the_mean_of_the_traces(view) -> None:
    facts = [
        FACT,
        dataclasses.replace(FACT, subject="Anna", target_true="Oslo"),  # not known
        dataclasses.replace(FACT, subject="LeBron James"),
        dataclasses.replace(FACT, prompt="{} lives in", subject="Danielle Darrieux"),
    ]
    table = wb.causal_average(view, facts, samples=2, std=0.5)
    assert table.attrs["skipped"] == 1 and table.attrs["traced"] == [0, 2, 3]
    traces = [wb.causal_trace(view, facts[i], samples=2, std=0.5) for i in (0, 2, 3)]
    for kind, role, layer in (
        ("mlp", "middle subject token", 1),
        ("residual", "last", 3),
        ("attention", "first after", 0),
    ):
        each = []
        for one in traces:
            cell = one[(one.kind == kind) & (one.role == role) & (one.layer == layer)]
            if len(cell):
                each.append(cell.effect.mean())
        row = table[(table.kind == kind) & (table.role == role) & (table.layer == layer)].iloc[0]
        assert row.n == len(each) and row.effect == pytest.approx(np.mean(each))
        half = 1.96 * np.std(each, ddof=1) / np.sqrt(len(each))
        assert (row.low, row.high) == pytest.approx((row.effect - half, row.effect + half))
    clean = np.mean([t.prob_clean.iloc[0] for t in traces])
    corrupted = np.mean([t.prob_corrupted.iloc[0] for t in traces])
    assert table.attrs["total_effect"] == pytest.approx(clean - corrupted)
    two = wb.causal_average(view, facts, samples=2, limit=2)
    assert two.attrs["facts"] == 2 and two.attrs["traced"] == [0, 2]
    assert list(dict.fromkeys(two.kind)) == ["residual", "mlp", "attention"]


def test_noise_is_measured_over_all_subjects(view) -> None:
    facts = [FACT, dataclasses.replace(FACT, subject="LeBron James")]
    table = wb.causal_average(view, facts, samples=1, noise_sigmas=2.0, kinds="residual")
    embedding = view.model.transformer.wte.weight.detach()
    ids = []
    for fact in facts:
        row = tracing.encode_fact(view, fact)
        ids += row.ids[row.first : row.pivot + 1]
    assert table.attrs["noise"] == pytest.approx(2 * float(embedding[ids].std()))


def test_where_to_edit() -> None:
    rows = [
        {"kind": kind, "role": role, "layer": layer, "effect": effect}
        for kind, role, effects in (
            ("residual", "last subject token", (0.1, 0.2, 0.5)),
            ("mlp", "last subject token", (0.1, 0.3, 0.0)),
            ("mlp", "last", (0.0, 0.0, 0.9)),
        )
        for layer, effect in enumerate(effects)
    ]
    table = pd.DataFrame(rows)
    assert wb.edit_site(table) == 1
    assert wb.edit_site(table[table.kind == "residual"]) == 2
    with pytest.raises(OptionError, match="last subject token"):
        wb.edit_site(table[table.role == "last"])


# ---------------------------------------------------------------------- what it shows


def test_tiny_has_a_late_site_and_keeps_its_facts_in_the_subject(tiny) -> None:
    """Two sides: the answer is read at the last token late, and comes from subject tokens early.

    The early site of this model is not the last subject token alone: its names are told apart by
    their middle tokens.
    """
    table = wb.causal_average(tiny, wb.datasets.tiny(limit=12), samples=4)
    assert table.attrs["skipped"] == 0 and table.attrs["total_effect"] > 0.6
    effect = table[table.kind == "residual"].pivot(index="role", columns="layer", values="effect")
    assert effect.loc["last", 4] == pytest.approx(table.attrs["total_effect"], abs=1e-4)
    assert effect.loc["last", 4] > 3 * effect.loc["last", 0]
    early = effect[0]
    assert early["middle subject token"] > early["last"] > early["further"]
    assert early["middle subject token"] > 0.1 > abs(early["further"])
    assert abs(effect.loc["middle subject token", 4]) < 1e-4
    mlp = table[table.kind == "mlp"].pivot(index="role", columns="layer", values="effect")
    assert wb.edit_site(table) == 0 == mlp.loc["last subject token"].idxmax()


def test_an_edit_is_found_where_it_was_written(tiny) -> None:
    """ROME at layer 2: there, and at no layer beside it, the MLP at the subject brings it back."""
    case = wb.datasets.tiny(limit=2)[1]
    edit = wb.ROME.preset(tiny, layers=(2,)).edit(tiny, case)
    written = dataclasses.replace(case.request, target_true=case.request.target_new)
    with tiny.applied(edit):
        table = wb.causal_trace(tiny, written, kinds="mlp", window=1, samples=4)
    at = table[table.role == "last subject token"].set_index("layer").effect
    assert at[2] > 0.3 and at[2] > 10 * at[[1, 3, 4]].abs().max()


def test_early_and_late_site_of_a_real_fact(smollm2) -> None:
    fact = wb.EditRequest(
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_new="English",
        target_true="French",
    )
    last = len(tracing.encode_fact(smollm2, fact).ids) - 1
    table = wb.causal_trace(
        smollm2, fact, kinds="residual", samples=4, positions=(4, last - 1, last)
    )
    effect = table.pivot(index="layer", columns="role", values="effect")
    subject, end = effect["last subject token"], effect["last"]
    early, late = range(3, 14), range(24, 30)
    assert subject[early].min() > 0.02 > 5 * end[early].abs().max()
    assert end[late].min() > 0.1 > 20 * subject[late].abs().max()
    assert subject[early].min() > 3 * effect["first subject token"].abs().max()


# ---------------------------------------------------------------------- known facts, figures


def test_known_facts(tmp_path) -> None:
    record = {
        "known_id": 7,
        "subject": "Marshall Islands",
        "attribute": "English",
        "template": "In {}, the language spoken is",
        "prompt": "In Marshall Islands, the language spoken is a mixture of",
        "relation_id": "P37",
    }
    path = tmp_path / "known_1000.json"
    path.write_text(json.dumps([record, record | {"known_id": 8}, {"known_id": 9}]))
    with pytest.raises(DataError, match="record 3"):
        wb.datasets.known_facts(path)
    with pytest.warns(UserWarning, match="1 of 3"):
        cases = wb.datasets.known_facts(path, skip_bad=True)
    assert [c.case_id for c in cases] == [7, 8]
    request = cases[0].request
    assert request.prompt == "In {}, the language spoken is a mixture of"
    assert request.target_true == request.target_new == "English"
    assert cases[0].tags == {"relation": "P37"}
    assert wb.datasets.known_facts(path, case_ids=[8])[0].case_id == 8
    assert len(wb.datasets.known_facts(path, limit=1)) == 1


def test_known_facts_of_the_paper(data_dir) -> None:
    cases = wb.datasets.known_facts(data_dir / "known_facts.json")
    assert len(cases) == 800 and all(c.request.subject for c in cases)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_say_what_the_table_says(view, theme: str) -> None:
    table = wb.causal_trace(view, FACT, samples=2)
    fig = wb.plot_causal(table, kind="mlp", theme=theme)
    part = table[table.kind == "mlp"]
    grid = part.pivot(index="position", columns="layer", values="prob")
    np.testing.assert_array_equal(fig.data[0].z, grid.to_numpy())
    names = fig.layout.yaxis.ticktext
    first, last = table.attrs["subject"]
    assert [i for i, n in enumerate(names) if n.endswith("*")] == list(range(first, last + 1))
    best = part.loc[part.prob.idxmax()]
    assert f"layer {best.layer}" in alt_text(fig) and repr(best.token) in alt_text(fig)
    assert len(fig.data[0].hovertext) == len(grid) and fig.layout.xaxis.title.text
    assert wb.plot_causal(table).data[0].z[0][0] == table.prob.iloc[0]
    with pytest.raises(OptionError, match="kind='mpl'"):
        wb.plot_causal(table, kind="mpl")
    average = wb.causal_average(view, [FACT, START], samples=2)
    fig = wb.plot_causal_average(average, theme=theme)
    lines = [t for t in fig.data if t.name]
    assert len(lines) == 6 and len(fig.data) == 12
    want = average[(average.kind == "residual") & (average.role == "last")]
    line = next(t for t in lines if t.name.startswith("last token"))
    np.testing.assert_array_equal(line.y, want.effect)
    assert "residual at the last token of the prompt, layer" in alt_text(fig)
    assert len(wb.plot_causal_average(average, kind="mlp").data) == 4
    with pytest.raises(OptionError, match="no row has a role"):
        wb.plot_causal_average(average[average.role == "first after"])
