"""One contract for every editor on every family (design 6.8).

In short form every editor meets three families and every family two editors; with
``WORKBENCH_FULL_GRID=1`` everything meets everything.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from typing import Any

import families
import pytest
import torch
from learned import LEARNED, untrained

from workbench.editors import EDITORS, FT, ROME, Editor, find_editor, prune, rebuild_editor
from workbench.editors.learned.base import LearnedEditor
from workbench.editors.locate.base import LocateEditor
from workbench.editors.locate.nse import unpack_bits
from workbench.editors.memory.base import MemoryEditor
from workbench.edits import AdapterEdit, Delta, Edit, WeightEdit, load_edit
from workbench.errors import OptionError, UnsupportedEditorError
from workbench.facts import EditRequest
from workbench.metrics import score
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.stats import SecondMoment
from workbench.tokens import encode_request
from workbench.trace import Site, trace

TEMPLATES = ("{}", "I saw it. {}")
LOCATE = {"layers": (1,), "steps": 6, "lr": 0.3, "templates": TEMPLATES, "corpus": "identity"}
OPTIONS: dict[str, dict[str, Any]] = {
    "FT": {"layers": (1, 2), "steps": 4, "lr": 1e-2},
    "FTL": {"layers": (1,), "steps": 4, "lr": 1e-2, "epsilon": 1e-3},
    "FTW": {"layers": (1,), "steps": 4, "lr": 1e-2, "decay": 0.1},
    "ROME": LOCATE,
    "MEMIT": {**LOCATE, "layers": (0, 1, 2), "lam": 2.0},
    "EMMET": LOCATE,
    "NSE": {**LOCATE, "layers": (0, 1, 2), "lam": 2.0, "neuron_threshold": 0.8},
    "AlphaEdit": {**LOCATE, "layers": (0, 1, 2), "threshold": 2.0, "l2": 2.0},
    "CoachHook": {**LOCATE, "layers": (0, 1), "lam": 2.0},
    "GRACE": {"layers": (1,), "steps": 30, "lr": 0.3, "init": "warm"},
    "Defer": {"layers": (1,), "steps": 10, "lr": 0.03},
    "MemoryNetwork": {"layers": (1,), "steps": 10, "lr": 0.03, "slots": 5},
    "FTEWC": {"layers": (1,), "steps": 4, "lr": 1e-2, "penalty": 10.0},
    "FTRetrain": {"layers": (1,), "steps": 4, "lr": 1e-2, "stop": "loss"},
    "FTKL": {"layers": (1,), "steps": 4, "lr": 1e-2, "matrices": "down", "corpus": "facts"},
    **{name: {} for name in LEARNED},
}
#: Editors that work beside any module of any family.
TUNING = ("FT", "FTL", "FTW", "FTKL", "FTEWC", "FTRetrain")
ANYWHERE = (*TUNING, "GRACE", "Defer", "MemoryNetwork", *LEARNED)
#: Options under which the bare prompt's key is written (almost) exactly.
EXACT: dict[str, dict[str, Any]] = {
    "MEMIT": {"lam": 1e-9},
    "NSE": {"lam": 1e-9},
    "AlphaEdit": {"l2": 1e-9},
    "CoachHook": {"lam": 1e-9, "alpha_z": -math.inf},
}
REQUESTS = [
    EditRequest(
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_new="English",
        target_true="French",
    ),
    EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome"),
]
POST_NORM = ("gemma2", "gemma3_text", "olmo2", "granite")
NOT_DECODERS = (*families.SEQ2SEQ, *families.CLASSIFIERS)


def expected_support(editor: str, family: str) -> bool:
    if editor in ANYWHERE:
        return True
    if family in NOT_DECODERS:
        return False
    return family not in POST_NORM or editor == "ROME"


def grid() -> list[tuple[str, str]]:
    every = [(e, f) for e in OPTIONS for f in families.FAMILIES]
    if os.environ.get("WORKBENCH_FULL_GRID"):
        return every
    anchors = ("gpt2", "llama", "opt")
    names = list(OPTIONS)
    turn = {
        f: {names[i % len(names)], names[(i + 3) % len(names)]}
        for i, f in enumerate(families.FAMILIES)
    }
    return [(e, f) for e, f in every if f in anchors or e in turn[f]]


def make_editor(name: str, view: ModelView | None = None) -> Editor:
    if view is not None and name in LEARNED:
        return EDITORS[name](weights=str(untrained(name, view)))
    return EDITORS[name](**OPTIONS[name])


def requests_for(view: ModelView) -> list[EditRequest]:
    if view.labels:
        return [dataclasses.replace(r, target_new="yes", target_true=None) for r in REQUESTS]
    return REQUESTS


def state(view: ModelView) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in view.model.state_dict().items()}


def same(view: ModelView, before: dict[str, torch.Tensor]) -> bool:
    now = view.model.state_dict()
    return all(torch.equal(now[k], v) for k, v in before.items())


def hooks(view: ModelView) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.model.modules())


def flags(view: ModelView) -> list[bool]:
    return [p.requires_grad for p in view.model.parameters()]


def test_every_editor_is_in_the_contract() -> None:
    assert set(OPTIONS) == set(EDITORS)


@pytest.mark.parametrize(("name", "family"), grid())
def test_contract(make_view, tmp_path, name: str, family: str) -> None:
    view = make_view(family, torch.float32)
    editor, requests = make_editor(name, view), requests_for(view)
    before, hooks_before, flags_before = state(view), hooks(view), flags(view)
    if not expected_support(name, family):
        assert editor.unsupported(view)
        with pytest.raises(UnsupportedEditorError, match=name):
            editor.edit(view, requests)
        assert same(view, before)
        return
    assert editor.unsupported(view) is None
    edit = editor.edit(view, requests)
    # computing writes nothing and leaves nothing behind
    assert same(view, before) and hooks(view) == hooks_before and flags(view) == flags_before
    assert view.stack == ()
    # same seed, same edit
    assert editor.edit(make_view(family, torch.float32), requests).id == edit.id
    # applying changes the named parameters and no others; undo is exact to the bit
    view.push(edit)
    changed = {k for k, v in view.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == (set(edit.parameters) if isinstance(edit, WeightEdit) else set())
    assert (hooks(view) > hooks_before) is isinstance(edit, AdapterEdit)
    view.pop()
    assert same(view, before) and hooks(view) == hooks_before
    # saved = loaded, and the configuration rebuilds the editor
    again = load_edit(edit.save(tmp_path / "edit.safetensors"))
    assert again.id == edit.id and again.requests == edit.requests
    assert rebuild_editor(again) == editor
    assert type(editor).from_config(json.loads(json.dumps(editor.config()))) == editor
    with view.applied(edit):
        edited, answers = state(view), score(view, requests)["nll_target"]
    with view.applied(again):
        assert same(view, edited) and score(view, requests)["nll_target"].equals(answers)
    check_equation(view, editor, requests)


def check_equation(view: ModelView, editor: Editor, requests: list[EditRequest]) -> None:
    """Fine-tuning, memories and gradients lower their loss; a locate-then-edit editor that writes
    the bare prompt's key exactly brings the subject's state to the target vector."""
    if isinstance(editor, FT | MemoryEditor | LearnedEditor):
        with view.applied(editor.edit(view, requests)):
            after = score(view, requests)["nll_target"].mean()
        assert after < score(view, requests)["nll_target"].mean()
        return
    assert isinstance(editor, LocateEditor)
    exact = EXACT.get(type(editor).__name__, {})
    bare = editor.with_options(templates=("{}",), **exact)
    target = bare._targets(view, requests[:1], bare._contexts(view))
    part = "value" if isinstance(editor, ROME) else "residual"
    site = Site(max(bare.layers), part)
    row = encode_request(view.tokenizer, requests[0])[0]
    with view.applied(bare.edit(view, requests[0])), trace(view, [site]) as seen:
        view.model(input_ids=torch.tensor([row.ids]))
    found = seen[site][0, row.pivot].detach()
    assert float((found - target.z[:, 0]).norm() / target.delta.norm()) < 1e-2
    assert float(target.delta.norm()) > 0


@pytest.mark.parametrize("name", ["ROME", "MEMIT", "EMMET"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_view, name: str, dtype: torch.dtype) -> None:
    view = make_view("llama", dtype)
    before = state(view)
    edit = make_editor(name).edit(view, REQUESTS)
    assert all(d.dtype == torch.float32 for d in edit.deltas)
    view.push(edit)
    assert all(v.isfinite().all() for v in view.model.state_dict().values())
    view.pop()
    assert same(view, before)


@pytest.mark.parametrize("name", ["ROME", "MEMIT", "EMMET"])
def test_storage_order_does_not_matter(make_model, tokenizer, name: str) -> None:  # O17
    """Conv1D and Linear copies of one model give the same update and the same logits."""
    plain = make_model("gpt2", torch.float64)
    turned = copy.deepcopy(plain)
    for block in turned.transformer.h:
        old = block.mlp.c_proj
        new = torch.nn.Linear(*old.weight.shape, dtype=torch.float64)
        new.weight.data, new.bias.data = old.weight.data.T.contiguous(), old.bias.data
        block.mlp.c_proj = new
    a = open_view(plain, tokenizer, name="conv1d")
    b = open_view(turned.eval(), tokenizer, name="linear")
    edits = [make_editor(name).edit(v, REQUESTS) for v in (a, b)]
    for d, e in zip(edits[0].deltas, edits[1].deltas, strict=True):
        x, y = (t.materialize(dtype=torch.float64) for t in (d, e))
        assert float((x - y).norm() / y.norm()) < 1e-9
    ids = torch.tensor([tokenizer("Bo lives in Oslo")["input_ids"]])
    with torch.no_grad(), a.applied(edits[0]), b.applied(edits[1]):
        assert torch.allclose(plain(ids).logits, turned(ids).logits, atol=1e-9)


def test_rome_writes_one_request_after_another(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    editor = make_editor("ROME")
    both = editor.edit(view, REQUESTS)
    first = editor.edit(view, REQUESTS[0])
    with view.applied(first):
        second = editor.edit(view, REQUESTS[1])
    total = sum(e.deltas[0].materialize(dtype=torch.float64) for e in (first, second))
    joint = both.deltas[0].materialize(dtype=torch.float64)
    assert float((joint - total).norm() / total.norm()) < 1e-9


def test_single_edits_together_equal_single_edits(make_view) -> None:
    view = make_view("llama", torch.float64)
    for name in ("ROME", "MEMIT", "EMMET"):
        editor = make_editor(name)
        for request, edit in zip(REQUESTS, editor.edit_each(view, REQUESTS), strict=True):
            alone = editor.edit(view, request)
            for a, b in zip(edit.deltas, alone.deltas, strict=True):
                x, y = (t.materialize(dtype=torch.float64) for t in (a, b))
                assert float((x - y).norm() / y.norm()) < 1e-6


def update(edit: Edit, index: int = 0) -> torch.Tensor:
    return edit.deltas[index].materialize(dtype=torch.float64)


def apart(a: Edit, b: Edit) -> float:
    """Relative distance of two edits' updates, over all layers."""
    pairs = [(update(a, i), update(b, i)) for i in range(len(b.deltas))]
    return float(sum((x - y).norm() for x, y in pairs) / sum(y.norm() for _, y in pairs))


@pytest.mark.parametrize("name", ["MEMIT", "EMMET", "NSE", "AlphaEdit"])
def test_accumulating_editors_read_the_stack(make_view, name: str) -> None:
    view = make_view("gpt2", torch.float64)
    editor = EDITORS[name](**{**OPTIONS[name], "accumulate": True})
    plain = editor.with_options(accumulate=False)
    first = editor.edit(view, REQUESTS[0])
    assert apart(first, plain.edit(view, REQUESTS[0])) < 1e-9
    view.push(first)
    again, alone = editor.edit(view, REQUESTS[1]), plain.edit(view, REQUESTS[1])
    assert apart(again, alone) > 1e-3
    # whoever wrote the keys, and however the history was derived
    view.push(again)
    third = editor.edit(view, REQUESTS[0])
    view.cache.pop("history")
    assert editor.edit(view, REQUESTS[0]).id == third.id
    view.pop()
    assert editor.edit(view, REQUESTS[1]).id == again.id


def test_an_accumulating_stream_keeps_its_first_lam(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    editor = EDITORS["MEMIT"](**LOCATE, accumulate=True)
    first = editor.edit(view, REQUESTS[0])
    alone = editor.edit(view, REQUESTS[1]).report["solver"][0]["lam"]
    view.push(first)
    again = editor.edit(view, REQUESTS[1])
    assert again.report["solver"] == first.report["solver"]
    assert again.report["solver"][0]["lam"] != alone
    plain = editor.with_options(accumulate=False).edit(view, REQUESTS[1])
    assert plain.report["solver"][0]["lam"] == pytest.approx(alone, rel=0.2)
    assert len(view.cache["history"]) == 1


def test_sequential_accumulated_memit_moves_earlier_edits_less(make_view) -> None:
    """What the accumulation is for: the first key's value survives the second batch."""
    view = make_view("gpt2", torch.float64)
    editor = EDITORS["MEMIT"](
        **{**OPTIONS["MEMIT"], "layers": (1,), "accumulate": True, "lam": 0.1}
    )
    first = editor.edit(view, REQUESTS[0])
    view.push(first)
    key = first.keys[view.weight_name(1)]
    moved = {
        accumulate: float(
            (
                update(editor.with_options(accumulate=accumulate).edit(view, REQUESTS[1])) @ key
            ).norm()
        )
        for accumulate in (True, False)
    }
    assert moved[True] < 0.5 * moved[False]


def test_nse_with_every_neuron_in_one_round_is_memit(make_view) -> None:  # O13
    view = make_view("gpt2", torch.float64)
    nse = EDITORS["NSE"](**{**OPTIONS["NSE"], "neuron_threshold": 1.0, "max_iterations": 2})
    memit = EDITORS["MEMIT"](**OPTIONS["MEMIT"])
    assert apart(nse.edit(view, REQUESTS), memit.edit(view, REQUESTS)) < 1e-9
    some = nse.with_options(neuron_threshold=0.5).edit(view, REQUESTS)
    for i, layer in enumerate(nse.layers):
        row = next(r for r in some.report["layers"] if r["layer"] == layer)
        untouched = torch.ones(view.d_mlp, dtype=torch.bool)
        untouched[unpack_bits(row["selected"])] = False
        assert 0 < int(untouched.sum()) < view.d_mlp
        assert not update(some, i)[:, untouched].any()
        assert (update(some, i)[:, ~untouched] != 0).any(0).all()


def test_nse_leaves_finished_requests_alone(make_view) -> None:  # O14
    view = make_view("gpt2", torch.float64)
    editor = make_editor("NSE")
    assert editor.with_options(alpha=1e9).edit(view, REQUESTS).deltas == ()
    rounds = [editor.with_options(max_iterations=m).edit(view, REQUESTS) for m in (2, 3, 6)]
    left = [e.report["rounds"][-1]["max_distance"] for e in rounds]
    assert left[0] > left[1] > left[2]  # every round comes nearer to the targets
    view.push(rounds[2])
    before = state(view)
    near = editor.with_options(alpha=1.01 * left[2])
    second = near.edit(view, REQUESTS)  # rewound targets are those of the first call
    assert second.deltas == () and second.report["rounds"][0]["done"] == len(REQUESTS)
    with pytest.warns(UserWarning, match="already written"):
        view.push(second)
    assert same(view, before)


def test_nse_counts_and_names_refused_requests(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    editor = make_editor("NSE")
    free = editor.edit(view, REQUESTS)
    distances = {
        i: editor.edit(view, r).report["rounds"][0]["max_distance"] for i, r in enumerate(REQUESTS)
    }
    far = max(distances, key=lambda i: distances[i])
    bound = sum(distances.values()) / 2
    edit = editor.with_options(upper_bound=bound).edit(view, REQUESTS)
    assert [r["prompt"] for r in edit.report["refused"]] == [REQUESTS[far].text]
    name = view.weight_name(1)
    assert edit.keys[name].shape[1] == 1 and free.keys[name].shape[1] == 2
    kept = editor.with_options(upper_bound=bound, keep_refused_keys=True).edit(view, REQUESTS)
    assert kept.keys[name].shape[1] == 2
    alone = editor.edit(view, REQUESTS[1 - far])
    assert apart(edit, alone) < 1e-9


def test_nse_rewinds(make_view) -> None:
    """Targets of a later batch do not depend on the edits before it."""
    view = make_view("llama", torch.float64)
    editor = make_editor("NSE")
    texts = editor._contexts(view)
    fresh = editor._targets(view, REQUESTS[1:], texts).z
    view.push(make_editor("MEMIT").edit(view, REQUESTS[0]))
    assert torch.equal(editor._targets(view, REQUESTS[1:], texts).z, fresh)
    moved = editor.with_options(rewind=False)._targets(view, REQUESTS[1:], texts).z
    assert float((moved - fresh).norm()) > 1e-3 * float(fresh.norm())


def test_nse_in_clusters(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    editor = make_editor("NSE").with_options(n_clusters=2, neuron_threshold=0.3)
    edit = editor.edit(view, REQUESTS)
    first_layer = [
        r["requests"] for r in edit.report["layers"] if (r["round"], r["layer"]) == (0, 0)
    ]
    assert sorted(first_layer) == [[0], [1]]
    assert edit.report["rounds"][-1]["max_distance"] < edit.report["rounds"][0]["max_distance"]
    with pytest.raises(OptionError, match="n_clusters=3"):
        editor.with_options(n_clusters=3).edit(view, REQUESTS)


def test_rect_makes_a_sparse_update(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    editor = make_editor("MEMIT").with_options(layers=(1,))
    whole, part = editor.edit(view, REQUESTS), editor.with_options(rect=0.2).edit(view, REQUESTS)
    assert part.deltas[0].form == "sparse"
    kept = update(part) != 0
    assert abs(float(kept.double().mean()) - 0.2) < 1e-3
    assert torch.allclose(update(part)[kept], update(whole)[kept])


def test_prune_is_an_edit_that_can_be_taken_back(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    with pytest.raises(OptionError, match="nothing to prune"):
        prune(view)
    before = view.weight(1).clone()
    memit = make_editor("MEMIT").with_options(layers=(1,), lam=1e-6)
    edit = memit.edit(view, REQUESTS)
    strong = Delta.dense(view.weight_name(1), 40 * update(edit))
    view.push(dataclasses.replace(edit, deltas=(strong,)))
    edited = view.weight(1).clone()
    compressing = prune(view)
    row = compressing.report["layers"][0]
    assert row["sigma_weight"] < row["sigma_after"] < row["sigma_before"]
    view.push(compressing)
    sigma = float(torch.linalg.matrix_norm(view.weight(1) - before, ord=2))
    assert sigma == pytest.approx(row["sigma_after"], rel=1e-9)
    view.pop()
    assert torch.equal(view.weight(1), edited)


def test_ftl_stays_in_its_box(make_view) -> None:  # O22
    view = make_view("llama", torch.float64)
    editor = make_editor("FTL")
    change = editor.edit(view, REQUESTS).deltas[0].materialize(dtype=torch.float64)
    assert float(change.abs().max()) == pytest.approx(1e-3)
    none = editor.with_options(epsilon=0.0).edit(view, REQUESTS).deltas[0]
    assert not none.materialize(dtype=torch.float64).any()


def test_ftw_pulls_toward_the_original(make_view) -> None:
    view = make_view("llama", torch.float64)
    free = make_editor("FT").with_options(layers=(1,), steps=8)
    norms = [float(free.edit(view, REQUESTS).deltas[0].tensors["change"].norm())]
    for decay in (1.0, 100.0):
        held = EDITORS["FTW"](layers=(1,), steps=8, lr=1e-2, decay=decay)
        norms.append(float(held.edit(view, REQUESTS).deltas[0].tensors["change"].norm()))
    assert norms[2] < norms[1] <= norms[0]


def test_emmet_says_when_it_is_memit(make_view) -> None:  # O8 on a model
    view = make_view("gpt2", torch.float64)
    soft = EDITORS["EMMET"](**LOCATE, alpha=0.5, scale=4.0)
    memit = EDITORS["MEMIT"](**{**LOCATE, "clamp": 0.75, "lam": 2.0})
    a, b = soft.edit(view, REQUESTS), memit.edit(view, REQUESTS)
    x, y = (e.deltas[0].materialize(dtype=torch.float64) for e in (a, b))
    assert float((x - y).norm() / y.norm()) < 1e-9
    assert a.report["solver"][0]["same_as"] == "MEMIT(lam=2)"


def test_statistics_enter_the_edit(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(view.d_mlp, 4 * view.d_mlp, generator=g, dtype=torch.float64)
    moment = SecondMoment(
        layer=1,
        matrix=keys @ keys.T / keys.shape[1] + torch.diag(torch.arange(view.d_mlp).double()),
        mean=keys.mean(1),
        n_tokens=keys.shape[1],
        fingerprint=view.fingerprint,
        source={},
        reservoir=torch.zeros(view.d_mlp, 0),
    )
    editor = make_editor("ROME")
    a = editor.edit(view, REQUESTS[0], statistics={1: moment})
    b = editor.edit(view, REQUESTS[0])
    assert a.id != b.id


@pytest.mark.parametrize("name", [n for n in OPTIONS if n not in LEARNED])
def test_options_and_citations(make_view, name: str) -> None:
    cls = find_editor(name.lower())
    with pytest.raises(OptionError, match="Did you mean 'layers'"):
        cls(layrs=(1,))
    assert cls.cite().startswith("@")
    view = make_view("gpt2")
    editor = cls.preset(view, layers=(2,))
    assert editor.layers == (2,)
    with pytest.raises(OptionError, match="preset"):
        cls.preset(view, "defualt")
    with pytest.raises(OptionError):
        cls.preset(view, "paper")
