"""Inspectors: tables that agree with what the editors did, and figures that say it in words."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.editors.locate.nse import unpack_bits
from workbench.errors import OptionError
from workbench.plots import alt_text

TEMPLATES = ("{}", "I saw it. {}")
LOCATE = {"layers": (0, 1), "steps": 5, "lr": 0.3, "templates": TEMPLATES, "corpus": "identity"}
REQUESTS = [
    wb.EditRequest(
        prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English"
    ),
    wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome"),
    wb.EditRequest(prompt="{} plays the", subject="Miles Davis", target_new="piano"),
]


@pytest.fixture
def view(make_view):
    return make_view("gpt2", torch.float64)


# ---------------------------------------------------------------------- neurons


def test_neuron_table_is_what_nse_chooses(view) -> None:
    editor = wb.NSE(**LOCATE, lam=2.0, neuron_threshold=0.6)
    table = wb.neuron_table(view, REQUESTS, editor=editor)
    assert len(table) == 2 * view.d_mlp
    edit = editor.edit(view, REQUESTS)
    first = next(r for r in edit.report["layers"] if (r["round"], r["layer"]) == (0, 0))
    part = table[table.layer == 0]
    assert set(part[part.selected].neuron) == set(unpack_bits(first["selected"]).tolist())
    assert part.score.is_monotonic_decreasing and part["rank"].tolist() == list(
        range(1, view.d_mlp + 1)
    )
    assert part["cumulative"].iloc[-1] == pytest.approx(1)
    last = part[part.selected].iloc[-1]
    assert last["cumulative"] >= 0.6 > last["cumulative"] - last["share"]
    figure = wb.plot_neurons(table)
    assert all(len(trace.x) <= 200 and trace.x[-1] == 1 for trace in figure.data[::2])  # lines
    text = alt_text(figure)
    assert f"layer 0 {100 * part.selected.mean():.0f} %" in text


def test_selections_and_counts_of_a_stack(view) -> None:
    with pytest.raises(OptionError, match="no NSE edit"):
        wb.neuron_selections(view)
    editor = wb.NSE(**LOCATE, lam=2.0, neuron_threshold=0.5)
    view.push(editor.edit(view, REQUESTS[:2]))
    view.push(editor.edit(view, REQUESTS[2:]))
    table = wb.neuron_selections(view)
    assert set(table.entry) == {0, 1} and set(table["round"]) == {0, 1}
    assert table[table.entry == 0].overlap.isna().all()
    sets = []
    for edit in view.stack:
        row = next(r for r in edit.report["layers"] if (r["round"], r["layer"]) == (0, 1))
        sets.append(set(unpack_bits(row["selected"]).tolist()))
    jaccard = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    got = table.query("entry == 1 and layer == 1 and round == 0").overlap.iloc[0]
    assert got == pytest.approx(jaccard) and 0 < got < 1
    counts = wb.neuron_counts(view)
    changed = [
        (e.deltas[1].materialize(dtype=torch.float64) != 0).any(0).long() for e in view.stack
    ]
    total = sum(changed)
    layer = counts[counts.layer == 1].set_index("neuron").edits
    assert {int(i): int(total[i]) for i in total.nonzero()[:, 0]} == layer.to_dict()


# ---------------------------------------------------------------------- hook layers


def test_gates_and_thresholds(view) -> None:
    with pytest.raises(OptionError, match="no hook layer"):
        wb.hook_gates(view, "Bo lives in")
    editor = wb.CoachHook(**LOCATE, lam=0.5)
    view.push(editor.edit(view, REQUESTS[:2]))
    view.push(editor.edit(view, REQUESTS[2:]))
    prompts = [r.text for r in REQUESTS]
    table = wb.hook_gates(view, prompts)
    for i, prompt in enumerate(prompts):
        part = table[table.prompt == i]
        n = len(view.tokenizer(prompt)["input_ids"])
        assert len(part) == 2 * n and "".join(part[part.layer == 0].token) == prompt
        assert part.bound.unique() == pytest.approx((n - 1) / math.sqrt(n))
        assert (part.z <= part.bound + 1e-9).all()
        assert (part.open == (part.z >= part.alpha)).all()
        for _, rows in part.groupby("layer"):
            assert rows.z.to_numpy() == pytest.approx(
                ((rows.nu - rows.nu.mean()) / rows.nu.std()).to_numpy()
            )
    history = wb.alpha_history(view)
    assert history.groupby("layer").alpha.apply(lambda a: a.is_monotonic_decreasing).all()
    now = table.groupby("layer").alpha.first()
    assert history[history.entry == 1].set_index("layer").alpha.to_dict() == now.to_dict()
    picture = wb.plot_hooks(table, prompt=1)
    opened = table[(table.prompt == 1) & table.open]
    assert len(picture.layout.shapes) == len(opened)
    assert all(repr(t.strip()) in alt_text(picture) for t in opened.token)
    assert f"{history.alpha.iloc[-1]:.2f}" in alt_text(wb.plot_alpha(history))
    with pytest.raises(OptionError, match="prompt=9"):
        wb.plot_hooks(table, prompt=9)


def test_another_threshold_opens_what_the_model_would_open(view) -> None:
    edit = wb.CoachHook(**LOCATE, lam=0.5).edit(view, REQUESTS[:1])
    other = wb.rethreshold(edit, 0.25)
    assert {a.options["alpha"] for a in other.adapters} == {0.25} and other.id != edit.id
    assert 0.25 not in {a.options["alpha"] for a in edit.adapters}
    with pytest.raises(OptionError, match="alpha is NaN"):
        wb.rethreshold(edit, math.nan)
    with pytest.raises(OptionError, match="ROME has no hook layers"):
        wb.rethreshold(dataclasses.replace(edit, adapters=(), editor="ROME"), 1.0)
    with view.applied(edit):
        guessed = wb.with_alpha(wb.hook_gates(view, REQUESTS[0].text), 0.25)
    with view.applied(other):
        real = wb.hook_gates(view, REQUESTS[0].text)
    first = real.layer == 0  # the layer above reads another state
    assert guessed[first].equals(real[first]) and real[first].open.nunique() == 2
    assert wb.with_alpha(real, -math.inf).open.all() and not wb.with_alpha(real, 99.0).open.any()


def test_check_names_entries_that_no_longer_open(view) -> None:
    assert view.check().empty
    edit = wb.CoachHook(**LOCATE, lam=0.5).edit(view, REQUESTS[:2])
    view.push(edit)
    table = view.check()
    assert (
        len(table) == 4 and table.open.all() and set(table.prompt) == {r.text for r in REQUESTS[:2]}
    )
    view.pop()
    shut = dataclasses.replace(
        edit,
        adapters=(
            dataclasses.replace(
                edit.adapters[0], options={**edit.adapters[0].options, "alpha": 50.0}
            ),
            edit.adapters[1],
        ),
    )
    view.push(shut)
    table = view.check()
    assert not table[table.layer == 0].open.any() and table[table.layer == 1].open.any()


# ---------------------------------------------------------------------- keys


def test_key_table(view) -> None:
    editor = wb.MEMIT(**LOCATE, lam=3.0)
    table = wb.key_table(view, REQUESTS, editor=editor)
    edit = editor.edit(view, REQUESTS[0])
    key = edit.keys[view.weight_name(0)][:, 0]
    row = table.query("layer == 0 and request == 0").iloc[0]
    leverage = float(key @ key)  # C = I
    assert row.leverage == pytest.approx(leverage) and row["norm"] == pytest.approx(leverage**0.5)
    assert row.predicted_closure == pytest.approx(leverage / (3 + leverage))
    assert row.ratio == pytest.approx(leverage / view.d_mlp)
    rome = wb.ROME(layers=(0,), steps=2, templates=TEMPLATES, contexts="memit", corpus="identity")
    tau = rome.edit(view, REQUESTS[0]).report["layers"][0].get("tau")
    assert tau is None or row.tau == pytest.approx(tau, rel=1e-3)


def test_key_conflicts(view) -> None:
    twin = wb.EditRequest(prompt="{} was born in", subject="Bo", target_new="Oslo")
    editor = wb.MEMIT(**{**LOCATE, "layers": (1,)}, lam=3.0)
    table = wb.key_conflicts(view, [*REQUESTS, twin], editor=editor)
    assert len(table) == 6 and table.cosine.is_monotonic_decreasing
    assert {table.iloc[0].a, table.iloc[0].b} == {1, 3}  # the same subject
    keys = editor.with_options(steps=1).edit(view, [*REQUESTS, twin]).keys[view.weight_name(1)]
    unit = keys / keys.norm(dim=0)
    assert table.iloc[0].cosine == pytest.approx(float(unit[:, 1] @ unit[:, 3]))
    assert table.attrs["condition"][1] > 1e12  # equal keys: EMMET could not write both exactly
    apart = wb.key_conflicts(view, REQUESTS, editor=editor)
    values = np.linalg.eigvalsh((keys[:, :3].T @ keys[:, :3]).numpy())
    assert apart.attrs["condition"][1] == pytest.approx(values[-1] / values[0], rel=1e-6)
    assert f"{table.iloc[0].cosine:.2f}" in alt_text(wb.plot_conflicts(table))
    with pytest.raises(OptionError, match="at least two"):
        wb.key_conflicts(view, REQUESTS[:1], editor=editor)


def test_closures(view) -> None:
    """One request, bare prompt only, unit transfer: a layer writes what leverage predicts."""
    editor = wb.MEMIT(**{**LOCATE, "templates": ("{}",)}, lam=2.0)
    edit = editor.edit(view, REQUESTS[0])
    table = wb.closures(edit)
    assert table.share.tolist() == [0.5, 1.0]
    lower = table[table.layer == 0].iloc[0]
    assert lower.predicted == pytest.approx(lower.leverage / (2 + lower.leverage), rel=1e-3)
    before, after = edit.report["layers"][0], edit.report["layers"][1]
    share = 2 * (1 - after["distance_before"] / before["distance_before"])
    assert lower.achieved == pytest.approx(share, rel=1e-3)
    assert 0 < lower.achieved < 1.5
    assert math.isnan(table[table.layer == 1].achieved.iloc[0])
    assert "predicted" in alt_text(wb.plot_closures(table))
    with pytest.raises(OptionError, match="no distances"):
        wb.closures(wb.NSE(**LOCATE, lam=2.0).edit(view, REQUESTS))
