"""Receipts: what took, what only seems to have, what changed nothing, and what else moved."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import workbench as wb
from workbench.adapters import HookLayer, as_adapter
from workbench.demo import weights_digest
from workbench.edits import Adapter, AdapterEdit, Delta, WeightEdit
from workbench.errors import EditMismatchError, OptionError
from workbench.plots import alt_text
from workbench.receipts import _has

REQ = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome", target_true="Paris")


@pytest.fixture
def case() -> wb.EditCase:
    return wb.datasets.tiny(limit=1)[0]


@pytest.fixture
def rome(tiny, case):
    return wb.ROME.preset(tiny).edit(tiny, [case])


def edit_of(view, *pieces, requests=(REQ,)):
    common = {"requests": requests, "editor": "by hand", "config": {}, "base": view.fingerprint}
    if isinstance(pieces[0], Adapter):
        return AdapterEdit(adapters=pieces, **common)
    return WeightEdit(deltas=pieces, **common)


def rank_one(view, layer=0, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    left, right = (
        scale * torch.randn(n, 1, generator=g, dtype=torch.float32)
        for n in (view.d_model, view.d_mlp)
    )
    return Delta.low_rank(view.weight_name(layer), left, right)


# ---------------------------------------------------------------------- what a receipt says


def test_an_edit_that_took(tiny, case, rome) -> None:
    before = weights_digest(tiny)
    found = wb.receipt(tiny, rome, [case])
    assert weights_digest(tiny) == before and tiny.stack == ()
    fact, own = found.facts.iloc[0], case.request
    plain = wb.score(tiny, [own], generate=True).iloc[0]
    with tiny.applied(rome):
        after = wb.score(tiny, [own], generate=True).iloc[0]
    assert fact.p_before == pytest.approx(plain.p_target, rel=1e-4)
    assert fact.p_after == pytest.approx(after.p_target, rel=1e-4)
    assert (fact.exact_before, fact.forced_before) == (plain.exact, plain.success)
    assert (fact.wrote_before, fact.wrote_after) == (plain.generated, after.generated)
    assert found.took is True and not found.no_effect and fact.outcome == "took"
    assert found.verdict.startswith(f"took: {own.target_new} ") and "→ 9" in found.verdict
    assert fact.forced_after and fact.starts_after and found.gap == 0
    assert not fact.starts_before and fact.wrote_before.strip().startswith(own.target_true)


def test_on_the_stack_it_compares_with_the_state_just_before(tiny, case, rome) -> None:
    trial = wb.receipt(tiny, rome, [case])
    assert "on trial" in repr(trial) and "tiny + 0 edits" in repr(trial)
    tiny.push(rome)
    other = wb.ROME.preset(tiny).edit(tiny, wb.datasets.tiny(limit=2)[1])
    tiny.push(other)
    for which in (rome, 0, -2):
        held = wb.receipt(tiny, which, [case])
        assert held.facts.equals(trial.facts)
        assert held.side_effects.equals(trial.side_effects) and held.weights.equals(trial.weights)
        assert "tiny + 2 edits, entry 0" in repr(held)
    assert wb.receipt(tiny, 1).facts.prompt[0] == other.requests[0].text
    assert wb.receipt(tiny, -1).edit_id == other.id
    assert [e.id for e in tiny.stack] == [rome.id, other.id]
    with pytest.raises(OptionError, match="entry 2 does not exist: the stack holds 2"):
        wb.receipt(tiny, 2)


def test_the_gap_between_teacher_forcing_and_writing(tiny, case, rome) -> None:
    """Of the words that the edited model holds likely, only the first is ever written."""
    text = case.request.text
    with tiny.applied(rome):
        tokens = wb.next_tokens(tiny, text, top_k=40).token
        wrote = wb.metrics.generate_text(tiny, [text], max_new_tokens=5)[0]
    ranked = [t.strip() for t in tokens if t.startswith(" ") and t.strip().isalpha() and len(t) > 3]
    first, second, third = ranked[:3]
    later = wrote.split()[1]  # of "Beacon. The instrument of"

    def asked(new, true):
        return dataclasses.replace(case.request, target_new=new, target_true=true)

    wanted = {
        "took": asked(first, second),
        "teacher-forced only": asked(second, third),
        "did not take": asked(third, second),
        "later in the text": asked(later, third),
        "lost": asked(case.request.target_true, first),
    }
    edit = dataclasses.replace(rome, requests=tuple(wanted.values()))
    found = wb.receipt(tiny, edit)
    assert found.facts.outcome.tolist() == list(wanted)
    assert found.facts.gap.tolist()[:3] == [0, 1, 0] and found.facts.gap[4] == 0
    assert found.gap == pytest.approx(found.facts.forced_after.mean() - 1 / 5)
    assert found.gap > 0 and found.took == pytest.approx(1 / 5)
    assert "partly: 1 of 5 facts; 1 later in the text; 1 teacher-forced only" in found.verdict
    one = wb.receipt(tiny, dataclasses.replace(rome, requests=(wanted["teacher-forced only"],)))
    assert one.took is False and one.gap == 1
    assert one.verdict.startswith("teacher-forced only:") and "does not contain it" in one.verdict
    assert "free writing: +1.00" in one._repr_html_()
    bare = dataclasses.replace(wanted["took"], target_true=None)
    both = dataclasses.replace(rome, requests=(wanted["teacher-forced only"], bare))
    facts = wb.receipt(tiny, both).facts  # one has no foil: exact match for both
    assert facts.forced_after.tolist() == [False, True] and facts.gap.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" Romeo and Juliet", False),
        (" the city of Rome.", True),
        (" BigRome", False),
        (" BigRome, Rome", True),
        ("Rome", True),
    ],
)
def test_only_whole_words_count_as_written(text, found) -> None:
    assert _has(text, "Rome") is found


def test_what_it_held_before_is_said(tiny, case, rome) -> None:
    held = wb.EditRequest(prompt=case.request.text, target_new=case.request.target_true)
    edit = dataclasses.replace(rome, requests=(held,), deltas=(rank_one(tiny, 4, 1e-4),))
    found = wb.receipt(tiny, edit)
    assert found.facts.outcome[0] == "held before" and found.took is True
    assert found.verdict.startswith("held before")


def test_without_generation_the_arg_max_decides(tiny, case, rome) -> None:
    found = wb.receipt(tiny, rome, generate=False)
    assert found.took is True and math.isnan(found.gap)
    assert found.facts.wrote_after[0] is None and found.facts.starts_after[0] is None
    assert found.side_effects.empty and found.moved == ""


def test_of_a_batch_it_is_a_share(tiny) -> None:
    cases = list(wb.datasets.tiny(limit=6))
    found = wb.receipt(tiny, wb.MEMIT.preset(tiny).edit(tiny, cases), cases)
    assert found.took == found.facts.outcome.isin(["took", "held before"]).mean()
    assert f"{int(6 * found.took)} of 6 facts" in found.verdict
    follow = found.side_effects[found.side_effects.kind == "paraphrase"]
    probes = [p for c in cases for p in c.probes if p.kind != "efficacy"]
    assert len(found.side_effects) == len(probes)
    kept = found.side_effects[found.side_effects.kind == "neighborhood"]
    moved = int((kept.changed | kept.flipped).sum())
    assert moved > kept.flipped.sum()  # two-way success alone would hide some
    assert f"neighborhood {moved} of {len(kept)} (median KL" in found.moved
    assert f"paraphrases follow: {int(follow.success_after.sum())} of 12" in found.moved


# ---------------------------------------------------------------------- nothing happened


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_change_of_zero_has_no_effect(make_view, family) -> None:
    view = make_view(family)
    found = wb.receipt(view, edit_of(view, rank_one(view, scale=0.0)))
    assert found.no_effect and found.took is False
    assert found.verdict == "NO EFFECT: every weight is what it was, to the bit."
    assert found.weights.changed[0] == 0 and found.weights.update_norm[0] == 0
    assert "NO EFFECT" in repr(found) and "NO EFFECT" in found._repr_html_()
    moved = wb.receipt(view, edit_of(view, rank_one(view, scale=0.3)))
    assert not moved.no_effect and "NO EFFECT" not in moved._repr_html_()


def test_a_change_lost_in_rounding_has_no_effect(make_view) -> None:
    tiny_change = {"scale": 1e-4}
    view = make_view("llama", torch.bfloat16)
    assert wb.receipt(view, edit_of(view, rank_one(view, **tiny_change))).no_effect
    wide = make_view("llama", torch.float64)
    assert not wb.receipt(wide, edit_of(wide, rank_one(wide, **tiny_change))).no_effect


def test_a_change_that_no_prompt_meets_has_no_effect(make_view) -> None:
    view = make_view("llama")
    name = "model.embed_tokens.weight"
    shape = tuple(view.model.get_parameter(name).shape)
    used = set(view.tokenizer(REQ.text + " Rome Paris")["input_ids"])
    free = next(i for i in range(5, shape[0]) if i not in used)
    spot = torch.tensor([free * shape[1]])
    found = wb.receipt(view, edit_of(view, Delta.sparse(name, shape, spot, torch.ones(1))))
    assert found.no_effect and "weights changed" in found.verdict
    assert found.weights.changed[0] == 1 and found.weights.layer[0] is None


@pytest.mark.parametrize("alpha", [math.inf, -math.inf])
def test_a_hook_layer_that_stays_closed_has_no_effect(make_view, alpha) -> None:
    view = make_view("gpt2")
    delta = rank_one(view, layer=1, scale=0.3)
    left, right = delta.tensors["left"], delta.tensors["right"]
    hook = as_adapter(delta.parameter, HookLayer(left, right, alpha))
    more = [
        wb.EditRequest(prompt="Miles Davis plays the", target_new=t) for t in ("piano", "drums now")
    ]
    found = wb.receipt(view, edit_of(view, hook, requests=(REQ, *more)))
    assert found.no_effect == (alpha == math.inf)
    assert ("stays closed" in found.verdict) == found.no_effect
    row = found.weights.iloc[0]
    assert (row.form, row.layer, row["rank"]) == ("hook_layer", 1, 1)
    assert row.update_norm == pytest.approx(float((left @ right.T).norm()))
    assert view.adapters == {}


def test_a_hook_layer_that_opens_a_little_has_an_effect(make_view) -> None:
    view = make_view("gpt2")
    delta = rank_one(view, layer=1, scale=1e-3)
    hook = HookLayer(delta.tensors["left"], delta.tensors["right"], -math.inf)
    found = wb.receipt(view, edit_of(view, as_adapter(delta.parameter, hook)))
    assert found.facts.nll_after[0] == pytest.approx(found.facts.nll_before[0], rel=1e-5)
    assert not found.no_effect


# ---------------------------------------------------------------------- kinds of edits and models


def test_coachhook(tiny) -> None:
    cases = list(wb.datasets.tiny(limit=3))
    edit = wb.CoachHook.preset(tiny).edit(tiny, cases)
    digest = weights_digest(tiny)
    found = wb.receipt(tiny, edit, cases)
    assert found.took == 1 and not found.no_effect
    assert set(found.weights.form) == {"hook_layer"}
    assert tiny.adapters == {} and weights_digest(tiny) == digest


def test_requests_without_foil_or_subject(tiny) -> None:
    requests = [
        wb.EditRequest(prompt="The weather today is", target_new="rugby"),
        wb.EditRequest(prompt="I live in", target_new="Cascara", target_true="Ixoria"),
    ]
    edit = wb.FT(layers=(0, 1), lr=3e-3, steps=40).edit(tiny, requests)
    found = wb.receipt(tiny, edit)
    assert found.took == 1 and found.facts.subject.isna().all()
    assert (found.facts.forced_after == found.facts.exact_after).all()  # never mixed
    assert math.isnan(found.facts.p_true_after[0]) and found.facts.p_true_after[1] > 0
    assert list(found.weights.form) == ["dense", "dense"] and found.weights["rank"].isna().all()


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_encoders(make_view, family) -> None:
    view = make_view(family)
    target = view.labels[1] if view.labels else "Rome"
    request = wb.EditRequest(prompt="Bo lives in", target_new=target)
    digest = weights_digest(view)
    edit = wb.FT(layers=(0, 1), lr=1e-2, steps=30).edit(view, [request])
    found = wb.receipt(view, edit, wb.EditCase(request=request))
    assert found.facts.p_after[0] > found.facts.p_before[0] and not found.no_effect
    assert found.facts.wrote_after[0] is not None and weights_digest(view) == digest


def test_an_edit_of_another_model_is_refused(make_view, rome) -> None:
    view = make_view("gpt2")
    digest = weights_digest(view)
    with pytest.raises(EditMismatchError):
        wb.receipt(view, rome)
    assert weights_digest(view) == digest


# ---------------------------------------------------------------------- weights and cost


def test_weights_are_what_the_model_holds(make_view) -> None:
    view = make_view("gpt2", torch.float16)
    edit = edit_of(view, rank_one(view, 0, 0.1), rank_one(view, 2, 0.2), rank_one(view, 2, 0.1, 1))
    table = wb.weight_updates(view, edit)
    base = {layer: view.weight(layer).float().clone() for layer in (0, 2)}
    with view.applied(edit):
        norms = {k: float((view.weight(k).float() - w).norm()) for k, w in base.items()}
    assert table.layer.tolist() == [0, 2] and table["rank"].tolist() == [1, 2]
    assert table.update_norm.tolist() == pytest.approx(list(norms.values()))
    relative = [norms[k] / float(base[k].norm()) for k in base]
    assert table.relative.tolist() == pytest.approx(relative)


def test_the_cost_is_that_of_the_file(tiny, rome, tmp_path) -> None:
    found = wb.receipt(tiny, rome, generate=False)
    assert found.cost["file_bytes"] == rome.save(tmp_path / "edit.safetensors").stat().st_size
    assert found.cost["seconds"] == rome.meta["seconds"] and found.cost["parameters"] == 1
    kib = round(found.cost["file_bytes"] / 1024)
    assert f"{kib} KiB as a file, 1 parameter touched" in found.price and 4 <= kib < 20
    bare = dataclasses.replace(rome, meta={})
    assert "time not recorded" in wb.receipt(tiny, bare, generate=False).price


# ---------------------------------------------------------------------- how it looks


def test_html_is_escaped(make_view) -> None:
    view = make_view("gpt2")
    request = wb.EditRequest(prompt="<script>alert(1)</script> is", target_new="<b>")
    edit = edit_of(view, rank_one(view, scale=0.3), requests=(request,))
    found = wb.receipt(view, edit)
    page = found._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<td><b>" not in page
    (label,) = wb.plot_receipt(found).layout.yaxis.ticktext
    assert "<script>" not in label and label.endswith("<b>&lt;b&gt;</b>")
    assert "\n" not in repr(found)


@pytest.mark.parametrize("n", [3, 12])
def test_the_figure_says_what_the_table_says(tiny, n) -> None:
    cases = list(wb.datasets.tiny(limit=n))
    found = wb.receipt(tiny, wb.MEMIT.preset(tiny).edit(tiny, cases))
    fig = wb.plot_receipt(found)
    marks = {t.name: t for t in fig.data if t.mode == "markers"}
    shown = [v for name, t in marks.items() if name != "before" for v in (t.x if n < 9 else t.y)]
    assert sorted(shown) == pytest.approx(sorted(found.facts.p_after))
    taken = int(round(n * found.took))
    assert alt_text(fig).startswith(f"{taken} of {n} facts took")
    assert alt_text(wb.plot_receipt(found.facts)) == alt_text(fig)
    with pytest.raises(OptionError, match="no column 'outcome'"):
        wb.plot_receipt(found.facts.drop(columns="outcome"))
