"""What an edit moved: strips, neurons and tokens against hand computation; planted edits found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.edits import Delta, WeightEdit
from workbench.errors import OptionError
from workbench.plots import alt_text
from workbench.trace import Site, trace

FACT = wb.EditRequest(prompt="In Oslo {} plays the", subject="Miles Davis", target_new="piano")
OTHER = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
LOCATE = {"layers": (0, 1), "steps": 5, "lr": 0.3, "templates": ("{}",), "corpus": "identity"}


@pytest.fixture
def view(make_view):
    return make_view("gpt2", torch.float64)


@pytest.fixture
def edit(view):
    return wb.MEMIT(**LOCATE, lam=0.5).edit(view, [FACT, OTHER])


def planted(view: wb.ModelView, layer: int, neuron: int, direction: torch.Tensor) -> WeightEdit:
    """An edit of one column of one matrix, by hand."""
    change = torch.zeros(view.d_model, view.d_mlp, dtype=torch.float64)
    change[:, neuron] = direction
    delta = Delta.dense(view.weight_name(layer), change)
    return WeightEdit((delta,), (FACT,), "hand", {}, view.fingerprint)


def pivot(view: wb.ModelView, fact: wb.EditRequest) -> int:
    before = fact.text[: fact.text.index(fact.subject) + len(fact.subject)]
    return len(view.tokenizer(before)["input_ids"]) - 1


def states(view: wb.ModelView, text: str) -> tuple[torch.Tensor, ...]:
    """Inputs of all blocks and the last output; transformers norms its last, so from a trace."""
    sites = [Site(x) for x in range(view.n_layers)]
    with torch.no_grad(), trace(view, sites) as seen:
        view.model(input_ids=torch.tensor([view.tokenizer(text)["input_ids"]]))
    return tuple(seen[s][0] for s in sites)


# ---------------------------------------------------------------------- the strip


def test_strip_is_the_change_of_the_residual(view, edit) -> None:
    table = wb.residual_shift(view, edit, FACT)
    assert view.stack == () and len(table) == 2 * (view.n_layers + 1)
    old = states(view, FACT.text)
    with view.applied(edit):
        new = states(view, FACT.text)
    position = {"subject": pivot(view, FACT), "last token": len(old[0]) - 1}
    for row in table[table.layer >= 0].itertuples():
        a, b = (s[row.layer][position[row.place]] for s in (old, new))
        assert row.position == position[row.place]
        assert row.relative == pytest.approx(float((b - a).norm() / a.norm()))
        assert row.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()))
        assert row.edited == (row.layer in (0, 1))
    norm, head = view.model.transformer.ln_f, view.model.lm_head
    with torch.no_grad():
        p, q = (head(norm(s[3][-1])).log_softmax(-1) for s in (new, old))
    last = table[(table.layer == 3) & (table.place == "last token")].iloc[0]
    assert last.kl == pytest.approx(float((p.exp() * (p - q)).sum())) and last.kl > 0
    nothing = table[table.layer == -1]
    assert (nothing.relative == 0).all() and (nothing.cosine == 1).all() and (nothing.kl == 0).all()


def test_nothing_moves_below_a_planted_edit(view) -> None:
    edit = planted(view, 2, 5, torch.ones(view.d_model, dtype=torch.float64))
    table = wb.residual_shift(view, edit, FACT.text)  # the subject is found in the text
    assert set(table.place) == {"subject", "last token"}
    moved = table.groupby("layer").relative.max()
    assert (moved[[-1, 0, 1]] == 0).all() and (moved[[2, 3]] > 0).all()
    assert table[table.edited].layer.unique().tolist() == [2]
    plain = wb.residual_shift(view, edit, "He lives in Oslo")
    assert set(plain.place) == {"last token"}


def test_an_edit_on_the_stack_is_compared_with_what_is_below_it(view, edit) -> None:
    later = planted(view, 3, 1, torch.ones(view.d_model, dtype=torch.float64))
    dry = wb.residual_shift(view, edit, FACT)
    neurons = wb.moved_neurons(view, edit, FACT)
    tokens = wb.promoted_tokens(view, edit)
    view.push(edit)
    with pytest.warns(UserWarning, match="stack of 0"):
        view.push(later)
    for before, after in (
        (dry, wb.residual_shift(view, edit, FACT)),
        (neurons, wb.moved_neurons(view, edit, FACT)),
        (tokens, wb.promoted_tokens(view, edit)),
    ):
        for name in before.select_dtypes("float"):
            np.testing.assert_allclose(before[name], after[name], rtol=1e-9, atol=1e-12)
    assert [e.id for e in view.stack] == [edit.id, later.id]
    by_number = wb.residual_shift(view, 0, FACT)
    np.testing.assert_array_equal(by_number.relative, wb.residual_shift(view, edit, FACT).relative)
    assert (before.attrs["edits"], after.attrs["edits"]) == (0, 2)


# ---------------------------------------------------------------------- neurons


def test_neurons_by_hand(view, edit) -> None:
    table = wb.moved_neurons(view, edit, FACT, top_k=view.d_mlp)
    where = pivot(view, FACT)
    sites = [Site(0, "key"), Site(1, "key")]
    with view.applied(edit), torch.no_grad(), trace(view, sites) as seen:
        view.model(input_ids=torch.tensor([view.tokenizer(FACT.text)["input_ids"]]))
    for layer, delta in enumerate(edit.deltas):
        part = table[table.layer == layer]
        key = seen[Site(layer, "key")][0, where]
        matrix = delta.materialize(dtype=torch.float64)
        parts = {j: key[j] * matrix[:, j] for j in range(view.d_mlp)}
        for row in part.itertuples():
            assert row.activation == pytest.approx(float(key[row.neuron]))
            assert row.contribution == pytest.approx(float(parts[row.neuron].norm()))
        total = matrix @ key
        assert table.attrs["output"][layer] == pytest.approx(float(total.norm()))
        assert part.share.sum() == pytest.approx(1) and part.along.sum() == pytest.approx(1)
        top = part.iloc[0]
        assert top.along == pytest.approx(float(parts[top.neuron] @ total / total.square().sum()))
        assert part.contribution.is_monotonic_decreasing and part["rank"].iloc[0] == 1
    few = wb.moved_neurons(view, edit, FACT, layer=1, top_k=3)
    assert few.layer.tolist() == [1, 1, 1]


def test_a_planted_neuron_comes_first(view) -> None:
    edit = planted(view, 1, 17, torch.linspace(-1, 1, view.d_model, dtype=torch.float64))
    table = wb.moved_neurons(view, edit, FACT)
    assert table.neuron[0] == 17 and table.share[0] == 1 and table.along[0] == pytest.approx(1)
    assert (table.share[1:] == 0).all() and set(table.layer) == {1}


# ---------------------------------------------------------------------- tokens


def test_a_planted_direction_promotes_its_token(view) -> None:
    """A column that points at a token's row of the head, along the final norm's gain."""
    token = view.tokenizer(" Rome")["input_ids"][0]
    head = view.model.lm_head.weight.detach()[token]
    edit = planted(view, 3, 5, 0.01 * (head - head.mean()))
    key = wb.moved_neurons(view, edit, FACT).activation[0]
    table = wb.promoted_tokens(view, edit, top_k=3)
    ends = {d: p for d, p in table.groupby("direction")}
    promoted = ends["promoted" if key > 0 else "suppressed"]
    assert promoted.token_id.iloc[0] == token and len(table) == 6
    assert (ends["promoted"].change > 0).all() and (ends["suppressed"].change < 0).all()
    old, new = states(view, FACT.text)[3], None
    with view.applied(edit):
        new = states(view, FACT.text)[3]
    where, norm = pivot(view, FACT), view.model.transformer.ln_f
    with torch.no_grad():
        logits = [view.model.lm_head(norm(s[where])) for s in (old, new)]
    want = logits[1] - logits[0]
    want = want - want.mean()
    assert promoted.change.iloc[0] == pytest.approx(float(want[token]))


def test_tokens_of_every_layer_and_request(view, edit) -> None:
    table = wb.promoted_tokens(view, edit, top_k=2)
    assert len(table) == 2 * 2 * 2 * 2 and set(table.prompt) == {FACT.text, OTHER.text}
    assert table.open.all() and table.attrs["editor"] == "MEMIT"
    assert set(wb.promoted_tokens(view, edit, limit=1).request) == {0}


# ---------------------------------------------------------------------- other kinds of edits


def test_hook_layers(view) -> None:
    """An open gate adds ``D k`` like a weight edit; a shut one adds nothing and says so."""
    edit = wb.CoachHook(**LOCATE, lam=0.5).edit(view, [FACT])
    strip = wb.residual_shift(view, edit, FACT)
    subject = strip[(strip.place == "subject") & (strip.layer == 0)].iloc[0]
    assert subject.relative > 0 and subject.edited
    table = wb.moved_neurons(view, edit, FACT, top_k=view.d_mlp)
    assert table.open.all() and set(table.layer) == {0, 1}
    where, old = pivot(view, FACT), states(view, FACT.text)[0]
    with view.applied(edit):
        new = states(view, FACT.text)[0]
    moved = float((new[where] - old[where]).norm())
    assert table.attrs["output"][0] == pytest.approx(moved)
    tokens = wb.promoted_tokens(view, edit, top_k=2)
    assert tokens.open.all() and len(tokens) == 8
    elsewhere = wb.moved_neurons(view, edit, wb.EditRequest(prompt="Oslo", target_new="x"))
    assert not elsewhere.open.any()  # the only token of its prompt: no gate opens
    quiet = wb.residual_shift(view, edit, "Oslo")
    assert (quiet.relative == 0).all()
    assert view.stack == () and not view.adapters


def test_what_has_no_answer_is_empty_and_says_why(view, make_view) -> None:
    bias = "transformer.h.1.mlp.c_proj.bias"
    change = torch.ones(view.d_model, dtype=torch.float64)
    edit = WeightEdit((Delta.dense(bias, change),), (FACT,), "hand", {}, view.fingerprint)
    for table in (wb.moved_neurons(view, edit, FACT), wb.promoted_tokens(view, edit)):
        assert table.empty and "none of the edited matrices" in table.attrs["why"]
        assert "layer" in table.columns
    strip = wb.residual_shift(view, edit, FACT)
    assert strip[strip.edited].layer.unique().tolist() == [1] and strip.relative.max() > 0
    scaled = make_view("granite", torch.float64)
    shape = scaled.weight(1).shape
    delta = Delta.dense(scaled.weight_name(1), torch.ones(shape, dtype=torch.float64))
    edit = WeightEdit((delta,), (FACT,), "hand", {}, scaled.fingerprint)
    table = wb.promoted_tokens(scaled, edit)
    assert table.empty and "not additive" in table.attrs["why"]
    assert len(wb.moved_neurons(scaled, edit, FACT)) == 10


def test_errors(view, edit, make_view) -> None:
    with pytest.raises(OptionError, match="expected an edit"):
        wb.residual_shift(view, "edit", FACT)
    with pytest.raises(OptionError, match="expected one edit, not 0"):
        wb.residual_shift(view, (), FACT)
    with pytest.raises(OptionError, match="layer=3: the edit changes layers"):
        wb.moved_neurons(view, edit, FACT, layer=3)
    with pytest.raises(OptionError, match="top_k=0"):
        wb.moved_neurons(view, edit, FACT, top_k=0)
    with pytest.raises(OptionError, match="limit=0"):
        wb.promoted_tokens(view, edit, limit=0)
    with pytest.raises(OptionError, match="decoders only"):
        wb.residual_shift(make_view("bert"), edit, FACT)


# ---------------------------------------------------------------------- figures


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures(view, edit, theme: str) -> None:
    strip = wb.residual_shift(view, edit, FACT)
    fig = wb.plot_residual_shift(strip, theme=theme)
    assert len(fig.data) == 2 and len(fig.layout.shapes) == 2
    part = strip[strip.place == "subject"]
    np.testing.assert_array_equal(fig.data[0].y, part.relative)
    best = part.loc[part.relative.idxmax()]
    assert f"subject most at layer {best.layer}" in alt_text(fig)
    assert "Edited: 0, 1." in alt_text(fig)
    table = wb.promoted_tokens(view, edit, top_k=3)
    fig = wb.plot_promoted(table, layer=1, request=1, theme=theme)
    part = table[(table.layer == 1) & (table.request == 1)]
    assert sorted([*fig.data[0].x, *fig.data[1].x]) == sorted(part.change)
    assert OTHER.text in fig.layout.title.subtitle.text
    top = part[(part.direction == "promoted") & (part["rank"] == 1)].token.iloc[0]
    assert f"promotes {top!r}" in alt_text(fig)
    assert "layer" in alt_text(wb.plot_promoted(table))
    with pytest.raises(OptionError, match="request=9"):
        wb.plot_promoted(table, request=9)
    with pytest.raises(OptionError, match="no rows"):
        wb.plot_promoted(table[:0])
