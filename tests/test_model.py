"""The stack: exact undo in every dtype, roll-back after failures, one writer at a time."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.edits import Delta, WeightEdit
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.weights import LISTED, lineage

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FAMILIES = ("gpt2", "llama", "opt")  # gpt2 stores transposed, gpt2 and opt tie their embeddings


def request(i: int) -> EditRequest:
    return EditRequest(prompt="{} lives in", subject=f"Anna {i}", target_new="Rome")


def wrap(view: ModelView, *deltas: Delta, n: int = 0, **changes: Any) -> WeightEdit:
    fields: dict[str, Any] = {"base": view.fingerprint, "parents": lineage(view.stack)}
    fields |= {"requests": (request(n),), "editor": "ROME", "config": {}} | changes
    return WeightEdit(deltas=deltas, **fields)


def embedding(view: ModelView) -> str:
    return f"{view.layout.embed}.weight"


def norm(view: ModelView) -> str:
    return next(k for k, p in view.model.named_parameters() if p.ndim == 1)


def make_edit(view: ModelView, n: int) -> WeightEdit:
    """Some of: low-rank, dense, sparse and vector changes, one parameter twice."""
    g = torch.Generator().manual_seed(n)
    d, m = view.d_model, view.d_mlp
    weights = dict(view.model.named_parameters())
    index = torch.randperm(weights[embedding(view)].numel(), generator=g)[:50]
    deltas = [
        Delta.low_rank(
            view.weight_name(1),
            torch.randn(d, 2, generator=g) / 10,
            torch.randn(m, 2, generator=g) / 10,
        ),
        Delta.dense(view.weight_name(2), torch.randn(d, m, generator=g) / 50),
        Delta.sparse(
            embedding(view),
            tuple(weights[embedding(view)].shape),
            index,
            torch.randn(50, generator=g) / 20,
        ),
        Delta.dense(norm(view), torch.randn(weights[norm(view)].shape, generator=g) / 30),
        Delta.dense(view.weight_name(1), torch.randn(d, m, generator=g) / 70),
    ]
    rng = random.Random(n)
    return wrap(view, *rng.sample(deltas, rng.randint(1, len(deltas))), n=n)


def params(view: ModelView) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in view.model.named_parameters(remove_duplicate=False)}


def same(view: ModelView, expected: dict[str, Tensor]) -> bool:
    now = view.model.named_parameters(remove_duplicate=False)
    return all(torch.equal(p, expected[k]) for k, p in now)


def fold(view: ModelView, pristine: dict[str, Tensor], edits: list[WeightEdit]) -> dict:
    """What the weights must be: float32 (or float64) sums in stack order, cast at the end."""
    masters = {k: p.to(torch.promote_types(p.dtype, torch.float32)) for k, p in pristine.items()}
    for edit in edits:
        for delta in edit.deltas:
            w = masters[delta.parameter]
            change = delta.materialize(dtype=w.dtype)
            masters[delta.parameter] = w + (change.T if change.shape != w.shape else change)
    found = {k: w.to(pristine[k].dtype) for k, w in masters.items()}
    if view.model.config.tie_word_embeddings:
        found["lm_head.weight"] = found[embedding(view)]
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_undo_is_exact(make_view, family: str, dtype: torch.dtype) -> None:
    view = make_view(family, dtype)
    pristine = params(view)
    places = {k: p.data_ptr() for k, p in view.model.named_parameters()}
    history, edits = [pristine], []
    for i in range(40):
        edits.append(make_edit(view, i))
        view.push(edits[-1])
        history.append(params(view))
        assert not same(view, history[-2])
    assert same(view, fold(view, pristine, edits))
    for n in (0, 1, 7, 23, 39, 40):
        with view.at(n) as shown:
            assert shown is view and view.stack == tuple(edits[:n]) and same(view, history[n])
    with view.pristine():
        assert same(view, pristine)
    assert same(view, history[40])
    fresh = make_view(family, dtype)
    expected = [params(fresh)]
    for edit in edits:
        fresh.push(edit)
        expected.append(params(fresh))
    for n in range(39, -1, -1):
        assert view.pop() is edits[n]
        assert same(view, history[n]) and same(view, expected[n])
        assert len(view._states.snapshots) <= 12  # log-spaced, not one per edit
    assert {k: p.data_ptr() for k, p in view.model.named_parameters()} == places
    extra = replace(make_edit(view, 50), parents=())
    with view.applied(extra, make_edit(view, 51)):
        assert len(view.stack) == 2 and not same(view, pristine)
        with view.at(1):
            assert same(view, fold(view, pristine, [extra]))
    assert view.stack == () and same(view, pristine)
    assert fresh.drop(3) is edits[3]
    assert same(fresh, fold(view, pristine, edits[:3] + edits[4:]))
    assert fresh.drop(-1) is edits[39]
    fresh.reset()
    assert same(fresh, pristine) and fresh.stack == ()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("push", "push", "push", "pop", "drop", "at", "applied", "reset")),
        st.integers(0, 10**6),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def half(make_view) -> tuple[ModelView, dict[str, Tensor]]:
    view = make_view("gpt2", torch.bfloat16)
    return view, params(view)


@given(operations=OPERATIONS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sequence_equals_a_rebuild(half, operations) -> None:
    view, pristine = half
    view.reset()
    held: list[WeightEdit] = []
    for step, (what, number) in enumerate(operations):
        if what == "push":
            held.append(make_edit(view, step))
            view.push(held[-1])
        elif what == "applied":
            extra = make_edit(view, 1000 + step)
            with view.applied(extra):
                assert same(view, fold(view, pristine, [*held, extra]))
        elif what == "reset" and number % 4 == 0:
            view.reset()
            held = []
        elif what == "at":
            n = number % (len(held) + 1)
            with view.at(n):
                assert same(view, fold(view, pristine, held[:n]))
        elif held and what == "pop":
            assert view.pop() is held.pop()
        elif held and what == "drop":
            index = number % len(held)
            assert view.drop(index) is held.pop(index)
        assert view.stack == tuple(held)
        assert same(view, fold(view, pristine, held))


def test_tiny_changes_accumulate(make_view) -> None:
    view = make_view("llama", torch.bfloat16)
    start = params(view)
    step = torch.full((view.d_model, view.d_mlp), 1e-5)
    edits = []
    for i in range(100):
        edits.append(wrap(view, Delta.dense(view.weight_name(1), step), n=i))
        view.push(edits[-1])
    name = view.weight_name(1)
    lossy = start[name]
    for _ in range(100):
        lossy = lossy + step.to(torch.bfloat16)
    assert same(view, fold(view, start, edits))
    true = start[name].double() + 1e-3
    now = view.weight(1).double()
    assert (now - true).norm() < 0.5 * (lossy.double() - true).norm()


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_tied_names_are_one_parameter(make_view, family: str) -> None:
    view = make_view(family)
    start = params(view)
    shape = tuple(start["lm_head.weight"].shape)
    for i, name in enumerate(("lm_head.weight", embedding(view))):
        view.push(wrap(view, Delta.dense(name, torch.full(shape, 0.5)), n=i))
    assert torch.equal(view.model.lm_head.weight, start["lm_head.weight"] + 0.5 + 0.5)
    view.drop(0)
    assert torch.equal(view.model.lm_head.weight, start["lm_head.weight"] + 0.5)
    view.reset()
    assert same(view, start)


def test_how_it_looks(make_model, tokenizer) -> None:
    view = open_view(make_model("llama"), tokenizer, name="<b>mine</b>")
    assert "<b>mine</b>: llama decoder" in repr(view) and "0 edits" in repr(view)
    asked = EditRequest(prompt="{} <i>is", subject="A&B", target_new="<script>")
    view.push(wrap(view, *make_edit(view, 0).deltas, requests=(asked,), editor="<u>"))
    view.push(wrap(view, *make_edit(view, 1).deltas, requests=()))
    html = view._repr_html_()
    assert "2 edits" in repr(view) and "2 edits" in html
    assert "&lt;b&gt;mine&lt;/b&gt;" in html and "A&amp;B &lt;i&gt;is" in html
    assert not any(tag in html for tag in ("<script>", "<i>", "<u>", "<b>mine"))
    for edit in view.stack:
        assert "<script>" not in edit._repr_html_() and edit.id in repr(edit)


def test_fingerprint(make_view, make_model, tokenizer) -> None:
    view = make_view("gpt2")
    found = view.fingerprint
    assert make_view("gpt2").fingerprint == found
    wide = open_view(make_model("gpt2").double(), tokenizer, name="other name")
    assert wide.fingerprint == found
    view.push(make_edit(view, 0))
    assert view.fingerprint == found
    view.cache.clear()
    assert view.fingerprint == found  # also when it is computed with edits on the stack
    assert make_view("gpt2", seed=1).fingerprint != found
    assert make_view("llama").fingerprint != found
    changed = make_model("gpt2")
    with torch.no_grad():
        changed.transformer.h[3].mlp.c_proj.weight[5, 5] += 1e-3
    assert open_view(changed, tokenizer, name="x").fingerprint != found


def test_long_stacks_are_recorded_in_short(make_view) -> None:
    view = make_view("gpt2")
    for i in range(LISTED + 3):
        view.push(make_edit(view, i))
    newest = view.stack[-1]
    assert len(view.stack[LISTED].parents) == LISTED and len(newest.parents) == 2
    assert newest.parents == lineage(view.stack[:-1])
    view.pop()
    other = view.pop()
    with pytest.warns(UserWarning, match=f"on a stack of {LISTED + 2} edits, not on this one of"):
        view.push(newest)
    view.pop()
    view.push(other)
    view.push(newest)  # the stack it was made on: no warning
