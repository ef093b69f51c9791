"""The logit lens: its last layer is the model, on every family; what an edit changed inside."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch

import workbench as wb
from workbench.errors import OptionError, RequestError, UnsupportedEditorError
from workbench.plots import alt_text

PROMPT = "In Oslo Miles Davis plays the"


@pytest.fixture
def view(make_view):
    return make_view("gpt2", torch.float64)


@pytest.mark.parametrize("family", families.CAUSAL)
def test_the_last_layer_is_the_model(family: str, make_view) -> None:
    view = make_view(family, torch.float64)
    ids = view.tokenizer(PROMPT)["input_ids"]
    logits = view.model(input_ids=torch.tensor([ids])).logits[0].detach().double()
    vocab = logits.shape[-1]
    table = wb.logit_lens(view, PROMPT, top_k=vocab, positions="all")
    assert len(table) == (view.n_layers + 1) * len(ids) * vocab
    last = table[table.layer == view.n_layers - 1]
    probs = last.pivot(index="position", columns="token_id", values="prob").to_numpy()
    np.testing.assert_allclose(probs, logits.softmax(-1).numpy(), rtol=1e-5)
    best = last[last["rank"] == 1].sort_values("position")
    assert best.token_id.tolist() == logits.argmax(-1).tolist()


def test_layers_below_are_read_by_norm_and_head(view) -> None:
    table = wb.logit_lens(view, PROMPT, top_k=3, positions="all")
    ids = torch.tensor([view.tokenizer(PROMPT)["input_ids"]])
    states = view.model(input_ids=ids, output_hidden_states=True).hidden_states
    decoder = view.model.transformer
    for layer in (-1, 0, 2):
        want = view.model.lm_head(decoder.ln_f(states[layer + 1][0])).softmax(-1)
        part = table[table.layer == layer]
        for row in part.itertuples():
            assert row.prob == pytest.approx(float(want[row.position, row.token_id].detach()))
        top = part[part["rank"] == 1].sort_values("position").token_id.tolist()
        assert top == want.argmax(-1).tolist()
    assert table["rank"].tolist() == [1, 2, 3] * (view.n_layers + 1) * ids.shape[1]


def test_tracked_answers_are_listed_at_every_layer(view) -> None:
    table = wb.logit_lens(view, PROMPT, track=["piano", "Oslo"], top_k=2)
    assert set(table.position) == {len(view.tokenizer(PROMPT)["input_ids"]) - 1}
    assert set(table.prompt_token) == {
        view.tokenizer.decode(view.tokenizer(PROMPT)["input_ids"][-1:])
    }
    tracked = table[table.tracked]
    assert set(table.attrs["tracked"]) == {"piano", "Oslo"}
    for answer, token in table.attrs["tracked"].items():
        assert f" {answer}".startswith(token)
        rows = tracked[tracked.token == token]
        assert rows.layer.tolist() == list(range(-1, view.n_layers))
    everything = wb.logit_lens(view, PROMPT, top_k=10_000)
    both = tracked.merge(everything, on=["layer", "token_id"], suffixes=("", "_all"))
    assert (both["rank"] == both["rank_all"]).all() and (tracked["rank"] > 2).any()
    untracked = table[~table.tracked].groupby("layer").size()
    assert untracked.max() == 2


def test_what_an_edit_changed_inside(tiny) -> None:
    case = wb.datasets.tiny(limit=1)[0]
    request = case.request
    answers = [request.target_true, request.target_new]
    edit = wb.ROME.preset(tiny, layers=(2,)).edit(tiny, case)
    read = {"track": answers, "positions": "all"}
    before = wb.logit_lens(tiny, request.text, **read)
    with tiny.applied(edit):
        after = wb.logit_lens(tiny, request.text, **read)
    assert (before.attrs["edits"], after.attrs["edits"]) == (0, 1)
    table = wb.lens_difference(before, after)
    last_of_subject = len(tiny.tokenizer(request.subject)["input_ids"]) - 1  # it comes first
    below = table[table.layer < 2]  # nothing below the edit moves at all
    assert len(below) and (below.change == 0).all()
    moved = table[table.layer == 2].groupby("position").change.apply(lambda c: c.abs().max())
    assert moved.idxmax() == last_of_subject and moved.max() > 0.01
    end = table[(table.layer == 4) & (table.position == table.position.max()) & table.tracked]
    change = end.set_index("token").change
    assert change[after.attrs["tracked"][request.target_true]] < -0.5
    assert change[after.attrs["tracked"][request.target_new]] > 0.5
    np.testing.assert_allclose(end.change, end.prob_after - end.prob_before)
    unlisted = table[table.prob_before.isna()]
    assert len(unlisted) and unlisted.change.isna().all() and unlisted.rank_after.notna().all()
    same = wb.lens_difference(before, wb.logit_lens(tiny, request.text, **read))
    assert (same.change == 0).all() and (same.rank_before == same.rank_after).all()


def test_errors_and_an_untouched_view(view, make_view) -> None:
    hooks = sum(len(m._forward_hooks) for m in view.model.modules())
    table = wb.logit_lens(view, PROMPT)
    with pytest.raises(OptionError, match="top_k=0"):
        wb.logit_lens(view, PROMPT, top_k=0)
    with pytest.raises(OptionError, match="Did you mean 'all'"):
        wb.logit_lens(view, PROMPT, positions="al")
    with pytest.raises(RequestError, match="non-empty"):
        wb.logit_lens(view, " ")
    with pytest.raises(RequestError, match="track"):
        wb.logit_lens(view, PROMPT, track=[""])
    with pytest.raises(RequestError, match="context is"):
        wb.logit_lens(view, "word " * 200)
    with pytest.raises(UnsupportedEditorError, match="decoder"):
        wb.logit_lens(make_view("bert"), PROMPT)
    with pytest.raises(OptionError, match="differ"):
        wb.lens_difference(table, wb.logit_lens(view, "In Rome"))
    with pytest.raises(OptionError, match="no column 'token_id'"):
        wb.lens_difference(table, table.drop(columns="token_id"))
    assert sum(len(m._forward_hooks) for m in view.model.modules()) == hooks


def test_hook_layers_are_seen(view) -> None:
    fact = wb.EditRequest(prompt="In Oslo {} plays the", subject="Miles Davis", target_new="piano")
    editor = wb.CoachHook(
        layers=(0, 1), steps=5, lr=0.3, templates=("{}",), corpus="identity", lam=0.5
    )
    before = wb.logit_lens(view, fact.text, track="piano")
    with view.applied(editor.edit(view, fact)):
        after = wb.logit_lens(view, fact.text, track="piano")
        want = wb.next_tokens(view, fact.text, top_k=1)
    last = after[(after.layer == 3) & (after["rank"] == 1)].iloc[0]
    assert last.token == want.token[0] and last.prob == pytest.approx(want.prob[0])
    tracked = wb.lens_difference(before, after).query("tracked and layer == 3")
    assert tracked.change.iloc[0] > 0


# ---------------------------------------------------------------------- figures


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_map_of_all_positions(view, theme: str) -> None:
    table = wb.logit_lens(view, PROMPT, positions="all")
    fig = wb.plot_lens(table, theme=theme)
    best = table[table["rank"] == 1]
    grid = best.pivot(index="layer", columns="position", values="prob")
    np.testing.assert_array_equal(fig.data[0].z, grid.to_numpy())
    assert fig.layout.yaxis.ticktext[0] == "emb." and fig.layout.xaxis.title.text
    assert not fig.layout.shapes
    final = best[(best.layer == 3) & (best.position == best.position.max())].iloc[0]
    assert repr(final.token) in alt_text(fig)
    other = table.copy()
    spot = (other.layer == 2) & (other.position == 1) & (other["rank"] == 1)
    other.loc[spot, "token"] = "else"
    changed = wb.plot_lens(table, other)
    assert len(changed.layout.shapes) == 1 and "1 of" in alt_text(changed)
    assert "before: " in changed.data[0].hovertext[3][1]


def test_lines_of_one_position(view) -> None:
    table = wb.logit_lens(view, PROMPT, track=["piano", "Oslo"])
    fig = wb.plot_lens(table)
    assert len(fig.data) == 2 and list(fig.data[0].x) == list(range(-1, view.n_layers))
    both = wb.plot_lens(table, table)
    assert [t.line.dash for t in both.data] == ["dash", "solid"] * 2
    assert both.data[0].name.endswith(", before") and "before" in alt_text(both)
    free = wb.plot_lens(wb.logit_lens(view, PROMPT, top_k=6))
    assert len(free.data) == 4 and alt_text(free).count("ends at") == 4
    with pytest.raises(OptionError, match="differ"):
        wb.plot_lens(table, wb.logit_lens(view, "In Rome"))
    with pytest.raises(OptionError, match="no column"):
        wb.plot_lens(table.drop(columns="rank"))
