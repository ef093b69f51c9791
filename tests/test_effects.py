"""Side effects and tokens of a prompt: tables that a computation of our own confirms."""

from __future__ import annotations

import warnings

import pytest
import torch

import workbench as wb
from workbench.demo import weights_digest
from workbench.edits import Delta, WeightEdit
from workbench.errors import OptionError, RequestError
from workbench.plots import alt_text
from workbench.tokens import encode_request

PROMPTS = ["Bo lives in", "Miles Davis plays the", "I saw it. The"]
REQ = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome", target_true="Paris")
CASE = wb.EditCase(
    request=REQ,
    probes=(
        wb.Probe(prompt="Bo lives in", target="Rome", foil="Paris"),
        wb.Probe(prompt="Anna lives in", target="Paris", foil="Rome", kind="neighborhood"),
        wb.Probe(prompt="Bo plays the", target="piano", kind="attribute"),
    ),
    case_id=7,
)


def change(view, layer=0, scale=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    left, right = (scale * torch.randn(n, 1, generator=g) for n in (view.d_model, view.d_mlp))
    delta = Delta.low_rank(view.weight_name(layer), left, right)
    return WeightEdit((delta,), (REQ,), "by hand", {}, view.fingerprint)


def _push(view, *edits):
    """Edits made by hand were not computed on the stack on which they come to stand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for edit in edits:
            view.push(edit)


@torch.no_grad()
def log_probs(view, prompt):
    ids = torch.tensor([view.tokenizer(prompt)["input_ids"]])
    return view.model(ids).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_free_prompts(make_view, family) -> None:
    view = make_view(family)
    edit, digest = change(view), weights_digest(view)
    table = wb.side_effects(view, edit, PROMPTS)
    assert weights_digest(view) == digest and view.stack == ()
    assert set(table.prompt) == set(PROMPTS) and set(table.kind) == {"free"}
    for row in table.itertuples():
        old = log_probs(view, row.prompt)
        with view.applied(edit):
            new = log_probs(view, row.prompt)
        assert row.kl == pytest.approx(float((old.exp() * (old - new)).sum()), abs=1e-5)
        assert row.top_before == view.tokenizer.decode([int(old.argmax())])
        assert row.p_top_after == pytest.approx(float(new.max().exp()), rel=1e-4)
        assert row.changed == (int(old.argmax()) != int(new.argmax()))
        assert row.target is None and row.success_after is None and row.flipped is False
    assert table.changed.any()


def test_changed_ones_come_first_then_by_kl(tiny) -> None:
    cases = list(wb.datasets.tiny(limit=2))
    table = wb.side_effects(tiny, wb.ROME.preset(tiny).edit(tiny, cases[0]), cases)
    moved = table.changed | table.flipped
    assert moved.is_monotonic_decreasing and 0 < moved.sum() < len(table)
    for part in (table[moved], table[~moved]):
        assert part.kl.is_monotonic_decreasing


def test_probes_agree_with_score(make_view) -> None:
    view = make_view("gpt2")
    edit = change(view)
    table = wb.side_effects(view, edit, [CASE, "I saw it. The"]).set_index("kind")
    assert set(table.index) == {"neighborhood", "attribute", "free"}
    before = wb.score(view, [CASE]).set_index("kind")
    with view.applied(edit):
        after = wb.score(view, [CASE]).set_index("kind")
    for kind in ("neighborhood", "attribute"):
        row = table.loc[kind]
        assert row.case_id == 7 and row.target == before.loc[kind].target
        assert row.p_before == pytest.approx(before.loc[kind].p_target)
        assert row.p_after == pytest.approx(after.loc[kind].p_target)
        assert row.success_before == before.loc[kind].success
        assert row.flipped == (before.loc[kind].success != after.loc[kind].success)
    texts = [p.prompt for p in CASE.probes[1:]]
    free = wb.side_effects(view, edit, texts).set_index("prompt")
    for row in table.loc[["neighborhood", "attribute"]].itertuples():
        alone = free.loc[row.prompt]
        assert row.kl == pytest.approx(alone.kl, rel=1e-3) and row.top_after == alone.top_after
        assert row.p_top_before == pytest.approx(alone.p_top_before, rel=1e-4)
    assert free.kl.nunique() == 2
    assert table.loc["attribute"].foil is None and table.loc["free"].case_id is None
    asked = wb.side_effects(view, edit, CASE, kinds=("efficacy",))
    assert asked.prompt.tolist() == ["Bo lives in"]


def test_a_flip_is_seen(tiny) -> None:
    """What the edit writes on purpose flips; a change of nothing flips nothing and has no KL."""
    case = wb.datasets.tiny(limit=1)[0]
    edit = wb.ROME.preset(tiny).edit(tiny, case)
    own = wb.side_effects(tiny, edit, case, kinds="efficacy").iloc[0]
    assert own.flipped and own.changed and not own.success_before and own.success_after
    still = wb.side_effects(tiny, change(tiny, scale=0.0), case)
    assert (still.kl == 0).all() and not still.flipped.any() and not still.changed.any()


def test_where_edits_stand(make_view) -> None:
    view = make_view("gpt2")
    a, b, c = (change(view, layer, seed=layer) for layer in range(3))
    alone = wb.side_effects(view, a, PROMPTS).set_index("prompt")
    both = wb.side_effects(view, [a, b], PROMPTS).set_index("prompt")
    _push(view, a, b)
    digest = weights_digest(view)

    def kl(*args, **kwargs):
        found = wb.side_effects(view, *args, **kwargs).set_index("prompt").loc[PROMPTS].kl
        return pytest.approx(found.tolist(), abs=1e-7)

    assert kl(a, PROMPTS) == alone.loc[PROMPTS].kl.tolist() == kl(0, PROMPTS)
    assert kl([a, b], PROMPTS) == both.loc[PROMPTS].kl.tolist() == kl((), PROMPTS)
    assert kl(b, PROMPTS, before=0) == both.loc[PROMPTS].kl.tolist()
    assert kl((), PROMPTS, before=1) == kl(b, PROMPTS).expected
    assert kl((), PROMPTS, before=2) == [0, 0, 0]
    assert kl(c, PROMPTS) != [0, 0, 0]
    assert weights_digest(view) == digest
    _push(view, c)
    for wrong, words in (([a, c], "neighbors"), ([a, change(view, 0, seed=9)], "neighbors")):
        with pytest.raises(OptionError, match=words):
            wb.side_effects(view, wrong, PROMPTS)
    with pytest.raises(OptionError, match="before=4: the stack holds 3"):
        wb.side_effects(view, (), PROMPTS, before=4)
    with pytest.raises(OptionError, match="expected an edit"):
        wb.side_effects(view, "a", PROMPTS)  # type: ignore[arg-type]


def test_nothing_to_ask(make_view) -> None:
    view = make_view("gpt2")
    with pytest.raises(OptionError, match="nothing to ask: 1 cases have no probes"):
        wb.side_effects(view, change(view), REQ)
    with pytest.raises(RequestError, match=r"prompts\[1\] is a int"):
        wb.side_effects(view, change(view), ["a", 3])  # type: ignore[list-item]


def test_many_prompts_go_in_parts(make_view, monkeypatch) -> None:
    view = make_view("gpt2")
    whole = wb.side_effects(view, change(view), PROMPTS)
    monkeypatch.setattr("workbench.inspectors.effects.CHUNK", 2)
    parts = wb.side_effects(view, change(view), PROMPTS)
    assert parts.prompt.tolist() == whole.prompt.tolist()
    assert parts.kl.tolist() == pytest.approx(whole.kl.tolist(), abs=1e-6)


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_other_kinds_of_models(make_view, family) -> None:
    view = make_view(family)
    edit = wb.FT(layers=(0, 1), lr=1e-2, steps=20).edit(
        view, [wb.EditRequest(prompt="Bo", target_new=(view.labels or ("Rome",))[-1])]
    )
    table = wb.side_effects(view, edit, ["Bo", "Anna lives"])
    assert (table.kl > 0).all()
    if view.labels:
        assert set(table.top_before) <= set(view.labels)


def test_the_figure(tiny) -> None:
    case = wb.datasets.tiny(limit=1)[0]
    table = wb.side_effects(tiny, wb.ROME.preset(tiny).edit(tiny, case), case)
    fig = wb.plot_side_effects(table, top=5)
    shown = [v for t in fig.data for v in t.x]
    rest = table[table.kind != "paraphrase"]
    assert sorted(shown, reverse=True) == pytest.approx(sorted(rest.kl, reverse=True)[:5])
    hatched = next(t for t in fig.data if t.name == "another answer leads")
    assert hatched.marker.pattern.shape and len(hatched.x) == rest.nlargest(5, "kl").changed.sum()
    assert alt_text(fig).startswith(f"{rest.changed.sum()} of {len(rest)} prompts")
    assert len(wb.plot_side_effects(table, kinds="paraphrase").layout.yaxis.ticktext) == 2
    for wrong in ({"kinds": ("holdout",)}, {"top": 0}):
        with pytest.raises(OptionError, match="plot_side_effects"):
            wb.plot_side_effects(table, **wrong)


# ---------------------------------------------------------------------- tokens of a prompt


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_subject_tokens(make_view, family) -> None:
    view = make_view(family)
    request = wb.EditRequest(
        prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English"
    )
    table = wb.subject_tokens(view, request)
    inside = table[table.in_subject]
    assert "".join(inside.token).strip() == "Danielle Darrieux" and len(inside) > 1
    assert inside.position.tolist() == list(range(inside.position.min(), inside.position.max() + 1))
    (encoded,) = encode_request(view.tokenizer, request, with_target=False)
    assert table[table.is_last_subject].position.tolist() == [encoded.pivot]
    assert "".join(table.token) == request.text


def test_the_shipped_tokenizer(tiny) -> None:
    request = wb.datasets.tiny(limit=1)[0].request
    table = wb.subject_tokens(tiny, request)
    assert "".join(table[table.in_subject].token).strip() == request.subject
    page = wb.subject_html(table)
    assert page.count("<mark") == table.in_subject.sum() and page.count("double") == 1
    last = int(table[table.is_last_subject].position.iloc[0])
    assert f"the edit reads token {last}" in page and f"“{request.subject}”" in page


def test_without_subject_and_with_markup(make_view) -> None:
    view = make_view("gpt2")
    table = wb.subject_tokens(view, wb.EditRequest(prompt="<i>no</i> & is", target_new="x"))
    assert not table.in_subject.any() and not table.is_last_subject.any()
    page = wb.subject_html(table)
    assert "<i>" not in page and "<mark" not in page and "no subject" in page
    with pytest.raises(RequestError, match="too long"):
        wb.subject_tokens(view, wb.EditRequest(prompt="word " * 500, target_new="x"))
