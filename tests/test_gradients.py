"""The capture of gradients, the factors made of them, and MEND's networks: numerical oracles.

Numbers are those of spec memory-and-meta, section 14.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import families
import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from workbench.capabilities import orient
from workbench.editors.learned.aggregation import least_squares, wanted
from workbench.editors.learned.base import deltas_of, gram
from workbench.editors.learned.enn import EnnLearner, EnnSettings, _prepared
from workbench.editors.learned.gradients import (
    Factors,
    Pairs,
    capture,
    check_matrices,
    double_backward,
    matrices,
    writing,
)
from workbench.editors.learned.ke import KeLearner, KeSettings, conditions
from workbench.editors.learned.learner import sizes
from workbench.editors.learned.mend import MendLearner, MendSettings
from workbench.editors.learned.prefixes import lowest_block, share_prefixes
from workbench.editors.learned.texts import logits_of, read
from workbench.editors.learned.transforms import Layer, Normalizer, Shape
from workbench.errors import NumericalError, OptionError
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.trace import frozen

REQUESTS = [
    EditRequest(prompt="The mother tongue of {} is", subject="Danielle", target_new="English"),
    EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome"),
]


def requests_for(view: ModelView) -> list[EditRequest]:
    if not view.labels:
        return REQUESTS
    return [
        dataclasses.replace(r, target_new=t) for r, t in zip(REQUESTS, ("yes", "no"), strict=True)
    ]


def learner_for(view: ModelView, **options: Any) -> MendLearner:
    settings = MendSettings(**{"matrices": matrices(view), "rank": 4} | options)
    return MendLearner(sizes(view, settings.matrices), settings).to(view.weight(0).dtype)


def shaken(learner: MendLearner, seed: int = 0) -> MendLearner:
    """Away from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in learner.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator).to(p)
    return learner


def close(a: Tensor, b: Tensor, tol: float) -> bool:
    return float((a - b).norm()) <= tol * float(b.norm())


# -------------------------------------------------------------------- 25: capture


@pytest.mark.parametrize("family", families.FAMILIES)
def test_capture_is_the_gradient(make_view, family: str) -> None:
    view = make_view(family, torch.float64)
    names = matrices(view)
    top = [name for name in names if f".{view.n_layers - 1}." in name]
    assert len(names) == (8 if family in families.SEQ2SEQ else 6) and len(top) >= 2
    texts = read(view, requests_for(view))
    with frozen(view.model):
        found = capture(view, texts, names, n_lessons=1)
    loss = torch.nn.functional.cross_entropy(logits_of(view, texts), texts.label)
    loss.backward()
    for name in names:
        module = view.module_of(name)
        grad = module.weight.grad.T if isinstance(module, Conv1D) else module.weight.grad
        assert close(found.pairs[name].dense(), grad, 1e-10)
    assert found.loss == pytest.approx(float(loss.detach()), abs=1e-12)
    assert not view.model._forward_hooks and all(not m._forward_hooks for m in view.model.modules())


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart", "bert"])
def test_logits_only_at_the_spots(make_view, family: str) -> None:
    view = make_view(family)
    texts = read(view, requests_for(view))
    with torch.no_grad():
        whole = view.model(**texts.inputs).logits
        found = logits_of(view, texts)
    expected = whole if view.labels else whole[texts.row, texts.column]
    assert torch.allclose(found, expected, atol=1e-5) and expected.std() > 0.1
    assert texts.answer.all() and len(found) == (2 if view.labels else len(texts.label))


def test_whole_texts_add_the_prompts_positions(make_view) -> None:
    view = make_view("llama")
    part, whole = (read(view, REQUESTS, everywhere=[k, False]) for k in (False, True))
    n = len(view.tokenizer(REQUESTS[0].text)["input_ids"])
    assert len(whole.row) == len(part.row) + n - 1
    assert torch.equal(whole.label[whole.answer], part.label)
    assert torch.equal(whole.column[whole.answer], part.column)
    ids, prompt = whole.inputs["input_ids"], ~whole.answer
    assert torch.equal(ids[whole.row[prompt], whole.column[prompt] + 1], whole.label[prompt])


def test_rows_that_say_nothing_drop_out(make_view) -> None:
    """In the last block only positions before an answer's tokens remain."""
    view = make_view("gpt2", torch.float64)
    names = matrices(view)
    texts = read(view, REQUESTS)
    with frozen(view.model):
        found = capture(view, texts, names, n_lessons=2)
    lengths = [len(view.tokenizer(r.text)["input_ids"]) for r in REQUESTS]
    answers = [int((texts.row == i).sum()) for i in range(2)]
    low, high = found.pairs[names[0]], found.pairs[names[-1]]
    assert torch.bincount(high.lesson).tolist() == answers
    assert torch.bincount(low.lesson).tolist() == [
        n + a - 1 for n, a in zip(lengths, answers, strict=True)
    ]


def test_padding_changes_nothing(make_view) -> None:  # 30
    view = make_view("llama", torch.float64)
    long = EditRequest(prompt="Bo and Anna and Bo and Anna and Bo live in", target_new="Rome")
    learner = shaken(learner_for(view, norm=False))
    with frozen(view.model):
        alone = learner.rewrite(view, read(view, REQUESTS[1:]), n_lessons=1)
        padded = learner.rewrite(view, read(view, [REQUESTS[1], long]), n_lessons=2)
    for name in learner.matrices:
        a, b = (f.factors[name].detached() for f in (alone, padded))
        assert close(b.left[0].T @ b.right[0], a.left[0].T @ a.right[0], 1e-10)


# -------------------------------------------------------------------- 26 to 29: the networks


def test_the_beginning_is_the_identity() -> None:  # 26
    layer = Layer(6, 2, Shape(rank=3), torch.Generator().manual_seed(0))
    z, mode = torch.randn(5, 6), torch.tensor([0, 1, 0, 1, 0])
    out = layer(z, mode)
    assert torch.equal(out, z)
    out.square().sum().backward()
    assert float(layer.u.grad.norm()) > 0 and not layer.v.grad.any()


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_without_norm_mend_begins_as_a_gradient_step(make_view, family: str) -> None:  # 27
    view = make_view(family, torch.float64)
    texts = read(view, requests_for(view))
    for ascent, sign in ((False, -1), (True, 1)):
        learner = learner_for(view, norm=False, edit_lr=0.03, ascent=ascent)
        with frozen(view.model):
            made = learner.rewrite(view, texts, n_lessons=1)
        for name, delta in zip(learner.matrices, deltas_of(view, made.factors), strict=True):
            step = sign * 0.03 * made.gradients.pairs[name].dense()
            assert close(delta.materialize(dtype=torch.float64), step, 1e-6)


def test_with_norm_it_begins_as_standardized_rows(make_view) -> None:  # 28
    view = make_view("llama", torch.float64)
    learner = learner_for(view, edit_lr=1.0, ascent=True, shared=False).train()
    with frozen(view.model):
        made = learner.rewrite(view, read(view, REQUESTS), n_lessons=1)
    for name in learner.matrices:
        pairs = made.gradients.pairs[name]
        x, delta = ((t - t.mean(0)) / (t.std(0) + 1e-7) for t in (pairs.x, pairs.delta))
        change = made.factors[name].detached()
        assert close(change.left[0].T @ change.right[0], delta.T @ x, 1e-6)


@pytest.mark.parametrize("cuts", [(1,) * 20, (20,), (3, 9, 8)])
def test_statistics_merge(cuts: tuple[int, ...]) -> None:  # 29
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)) * 3 + 7
    norm = Normalizer(5)
    with pytest.raises(NumericalError, match="no gradients"):
        norm(rows)
    for i, part in enumerate(rows.split(list(cuts))):
        if i == 1:  # saved and loaded in between: goes on with the same numbers
            again = Normalizer(5)
            again.load_state_dict(norm.state_dict())
            norm = again
        norm.see(part)
    assert int(norm.count) == 20
    assert torch.allclose(norm.mean, rows.double().mean(0), rtol=1e-12)
    assert torch.allclose(norm.deviation(), rows.double().std(0), rtol=1e-12)


@pytest.mark.parametrize("factors", ["both", "apart", "x", "delta", "smaller"])
def test_variants(make_view, factors: str) -> None:
    view = make_view("llama", torch.float64)
    learner = shaken(learner_for(view, norm=False, factors=factors, shared=factors != "x"))
    with frozen(view.model):
        made = learner.rewrite(view, read(view, REQUESTS), n_lessons=1)
    for name in learner.matrices:
        old = Factors.of(made.gradients.pairs[name], 1)
        new = made.factors[name].detached()
        i = learner.matrices.index(name)
        x_same = torch.allclose(new.right, old.right)
        delta_same = torch.allclose(new.left, -learner.edit_lr[i].detach() * old.left)
        d_in, d_out = old.right.shape[-1], old.left.shape[-1]
        side = {"smaller": "x" if d_in <= d_out else "delta"}.get(factors, factors)
        assert x_same is (side == "delta") and delta_same is (side == "x")
    assert len(learner.networks) == (6 if factors == "x" else 2)


def test_matrices_of_one_shape_differ_by_scale_and_shift(make_view) -> None:
    view = make_view("llama", torch.float64)
    learner = shaken(learner_for(view, norm=False))
    names = learner.groups[0]
    x, delta = torch.randn(3, 32).double(), torch.randn(3, 64).double()
    d_in, d_out = sizes(view, learner.matrices)[names[0]]
    x, delta = torch.randn(3, d_in).double(), torch.randn(3, d_out).double()
    pairs = [Pairs(x, delta, torch.zeros(3, dtype=torch.long))] * 3
    one, two, _ = learner._transformed(learner.networks[0], pairs)
    assert not torch.allclose(one.x, two.x)
    with torch.no_grad():
        for layer in learner.networks[0].parts[0]:
            layer.scale[1], layer.shift[1] = layer.scale[0], layer.shift[0]
    one, two, _ = learner._transformed(learner.networks[0], pairs)
    assert torch.equal(one.x, two.x)


# -------------------------------------------------------------------- 31, 32, 35: factors


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "t5", "bart", "bert"])
def test_writing_is_as_if_written(make_view, family: str) -> None:  # 31
    """Factors by hooks equal materialized edits, and many lessons at once equal one by one."""
    view = make_view(family, torch.float64)
    learner = shaken(learner_for(view, norm=False, edit_lr=0.05))
    requests = requests_for(view)
    both = read(view, requests)
    with frozen(view.model):
        made = learner.rewrite(view, both, n_lessons=2)
    factors = {n: f.detached() for n, f in made.factors.items()}
    with torch.no_grad(), writing(view, factors):
        together = logits_of(view, both)
    plain = made.gradients.logits
    for i, request in enumerate(requests):
        with frozen(view.model):
            alone = learner.rewrite(view, read(view, [request]), n_lessons=1)
        for name, delta in zip(learner.matrices, deltas_of(view, alone.factors), strict=True):
            weight = orient(view.module_of(name)).detach()
            assert delta.shape == tuple(weight.shape)
        edit = _pushed(view, deltas_of(view, alone.factors), request)
        with torch.no_grad(), view.applied(edit):
            found = logits_of(view, read(view, [request]))
        rows = both.row == i
        assert torch.allclose(found, together[rows], atol=1e-8)
        assert float((found - plain[rows]).abs().max()) > 1e-4


def _pushed(view: ModelView, deltas: Any, request: EditRequest) -> Any:
    from workbench.edits import WeightEdit

    return WeightEdit(
        deltas=tuple(deltas), requests=(request,), editor="FT", config={}, base=view.fingerprint
    )


def test_gram_products_are_dense_ones() -> None:  # 32
    a, b, c, d = (torch.randn(4, k).double() for k in (5, 7, 5, 7))
    assert gram(a, b) == pytest.approx(float((a.T @ b).square().sum()))
    assert gram(a, b, c, d) == pytest.approx(float(((a.T @ b) * (c.T @ d)).sum()))


def test_edits_of_one_lesson_are_written_together(make_view) -> None:  # 35
    """The joint loss is the mean over all tokens; parts of a batch add up to the whole."""
    view = make_view("llama", torch.float64)
    names = matrices(view)
    with frozen(view.model):
        whole = capture(view, read(view, REQUESTS), names, n_lessons=1)
        parts = [capture(view, read(view, [r]), names, n_lessons=1) for r in REQUESTS]
        each = capture(view, read(view, REQUESTS), names, n_lessons=2)
    tokens = torch.bincount(read(view, REQUESTS).row).double()
    for name in names:
        weighted = sum(
            w * p.pairs[name].dense() for w, p in zip(tokens / tokens.sum(), parts, strict=True)
        )
        assert close(whole.pairs[name].dense(), weighted, 1e-9)
        for i, part in enumerate(parts):
            pairs, mine = each.pairs[name], each.pairs[name].lesson == i
            dense = pairs.delta[mine].T @ pairs.x[mine]
            assert close(dense, part.pairs[name].dense(), 1e-9)


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
@pytest.mark.parametrize("each", [False, True])
def test_large_batches_are_taken_in_parts(make_view, monkeypatch, family, each) -> None:  # 35
    view = make_view(family, torch.float64)
    long = EditRequest(prompt="Bo and Anna live in", target_new="Seattle, Oslo and Rome")
    requests = [
        *REQUESTS,
        long,
        *(dataclasses.replace(r, prompt=f"So {r.prompt}") for r in REQUESTS),
    ]
    if view.labels:
        requests = [dataclasses.replace(r, target_new="yes") for r in requests]
    names, texts = matrices(view), read(view, requests)
    n = len(texts) if each else 1
    edited = torch.tensor([True, True, True, False, True])
    found = []
    for rows in (64, 2):
        monkeypatch.setattr("workbench.editors.learned.gradients.ROWS", rows)
        with frozen(view.model):
            found.append(capture(view, texts, names, n_lessons=n, edited=edited))
    for name in names:
        whole, parts = (f.pairs[name] for f in found)
        assert close(parts.dense(), whole.dense(), 1e-6)  # norms in float32
        assert torch.equal(parts.lesson, whole.lesson) and torch.allclose(
            parts.x, whole.x, atol=1e-6
        )
    assert torch.allclose(found[0].logits, found[1].logits, atol=1e-5)
    if not each:
        assert found[0].loss == pytest.approx(found[1].loss)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "falcon", "gemma2"])
def test_lower_blocks_are_run_once(make_view, family: str) -> None:
    """Gradients and edited answers are those of whole passes."""
    view = make_view(family, torch.float64)
    names = matrices(view)
    batches = read(view, [REQUESTS[0], REQUESTS[1]]), read(view, [REQUESTS[1]], everywhere=[True])
    assert lowest_block(view, names) == 1
    entered: list[int] = []
    handle = view.block(0).register_forward_hook(lambda m, a, out: entered.append(1))
    with frozen(view.model):
        whole = capture(view, batches[0], names, n_lessons=2)
        entered.clear()
        shared = share_prefixes(view, names, batches)
        part = capture(view, shared[0], names, n_lessons=2)
        factors = {n: Factors.of(p, 2) for n, p in part.pairs.items()}
        one = {n: Factors(f.left[1:], f.right[1:]) for n, f in factors.items()}
        with torch.no_grad(), writing(view, one):
            found = logits_of(view, shared[1])
            assert len(entered) == 1, "both batches in one pass"
            expected = logits_of(view, batches[1])
    handle.remove()
    assert shared[0].blocks.hidden.shape[0] == 2 and shared[1].blocks.hidden.shape[0] == 1
    for name in names:
        assert close(part.pairs[name].dense(), whole.pairs[name].dense(), 1e-5)
    assert torch.allclose(part.logits, whole.logits, atol=1e-5)
    assert torch.allclose(found, expected, atol=1e-5)
    assert share_prefixes(view, [view.weight_name(0)], batches)[0].blocks is None


def test_rows_are_sorted_into_lessons() -> None:
    lesson = torch.tensor([1, 0, 1, 2, 1])
    rows = torch.arange(5.0)[:, None] + 1
    found = Factors.of(Pairs(rows, 10 * rows, lesson), 4)
    assert found.right[:, :, 0].tolist() == [[2, 0, 0], [1, 3, 5], [4, 0, 0], [0, 0, 0]]
    assert torch.equal(found.left, 10 * found.right)


def test_names_of_matrices_are_checked(make_view) -> None:
    view = make_view("llama")
    name = matrices(view)[0]
    for bad, words in (
        (("model.layers.9.mlp.up_proj.weight",), "Did you mean"),
        (("model.norm.weight",), "no weight of a linear module"),
        (("model.embed_tokens.weight",), "no weight of a linear module"),
        ((name, name), "once"),
        ((), "at least one"),
    ):
        with pytest.raises(OptionError, match=words):
            check_matrices(view, bad)


# -------------------------------------------------------------------- 38: least squares


def system(n: int, d_in: int = 6, d_out: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = ((2, n, d_in), (2, n, d_out))
    keys, changes = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return keys, changes


@pytest.mark.parametrize("n", [1, 5, 6, 7, 40])
def test_least_squares_both_ways(n: int) -> None:
    """Over rows and over inputs the same solution, that of the normal equations."""
    keys, changes = system(n)
    ridge = torch.tensor(0.7)
    left, right = least_squares(keys, changes, ridge)
    gram_ = keys.mT @ keys + 0.7 * torch.eye(6).double()
    expected = torch.linalg.solve(gram_, keys.mT @ changes)
    assert torch.allclose((left.mT @ right).mT, expected, atol=1e-6)
    # rows of zeros (lessons with fewer tokens) change nothing
    padded = [torch.cat([t, torch.zeros_like(t)], 1) for t in (keys, changes)]
    left, right = least_squares(*padded, ridge)
    assert torch.allclose((left.mT @ right).mT, expected, atol=1e-6)


def test_least_squares_at_its_ends() -> None:
    keys, changes = system(3)
    left, right = least_squares(keys, changes, torch.tensor(1e12))
    assert float((left.mT @ right).norm()) < 1e-10
    keys, changes = system(1)
    left, right = least_squares(keys, changes, torch.tensor(0.5))
    expected = keys.mT @ changes / (keys.square().sum((1, 2)) + 0.5)[:, None, None]
    assert torch.allclose((left.mT @ right).mT, expected)


@pytest.mark.parametrize("n", [4, 9])
def test_least_squares_meta_gradients(n: int) -> None:
    """By autograd as in closed form: ∂L/∂D = K M, ∂L/∂log λ = −λ ⟨M, S⟩."""
    keys, changes = (t[:1] for t in system(n))
    changes.requires_grad_()
    log_ridge = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    left, right = least_squares(keys, changes, log_ridge.exp())
    s = (left.mT @ right).mT
    outer = torch.randn(s.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (s * outer).sum().backward()
    ridge = float(log_ridge.detach().exp())
    m = torch.linalg.solve(keys.mT @ keys + ridge * torch.eye(6).double(), outer)
    assert torch.allclose(changes.grad, keys @ m)
    assert float(log_ridge.grad) == pytest.approx(-ridge * float((m * s).sum().detach()))


def test_mend_by_least_squares(make_view) -> None:
    """One pair: the output at its own input moves by what was wanted, shrunk by the ridge."""
    view = make_view("llama", torch.float64)
    learner = shaken(
        learner_for(view, norm=False, aggregate="least_squares", edit_lr=0.1, scale_last=True)
    )
    texts = read(view, [EditRequest(prompt="Bo lives in", target_new="in")])
    with frozen(view.model):
        made = learner.rewrite(view, texts, n_lessons=1)
    name = learner.matrices[-1]
    old = made.gradients.pairs[name]
    assert len(old.x) == 1
    with torch.no_grad():
        new = learner._transformed(
            learner.networks[1], [made.gradients.pairs[n] for n in learner.groups[1]]
        )
        rate = learner.edit_lr[-1]
        aim = rate * wanted(old.x[None], new[-1].x[None], new[-1].delta[None])[0]
        change = made.factors[name]
        moved = old.x @ (change.left[0].T @ change.right[0]).T
        square = old.x.square().sum()
        expected = aim * square / (square + learner.log_ridge[-1].exp())
    assert close(moved.detach(), expected, 1e-8) and float(aim.norm()) > 0


# -------------------------------------------------------------------- 36: KE


def ke_for(view: ModelView, **options: Any) -> KeLearner:
    settings = KeSettings(matrices=matrices(view), hidden=6, condition=5, width=4, **options)
    width = view.model.get_input_embeddings().weight.shape[1]
    learner = KeLearner(sizes(view, settings.matrices), settings, width)
    return learner.to(view.weight(0).dtype).requires_grad_(False)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_ke_in_factors_is_the_dense_formula(make_view, family: str) -> None:
    view = make_view(family, torch.float64)
    learner = ke_for(view)
    for i, p in enumerate(learner.parameters()):
        p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p)
    texts = read(view, requests_for(view))
    with frozen(view.model):
        made = learner.rewrite(view, texts, n_lessons=1)
        each = capture(view, texts, learner.matrices, n_lessons=2)
        said = made.gradients.logits.argmax(-1)
    h = learner._read(view, conditions(view, texts, said, [0, 1]))
    for name, head in zip(learner.matrices, learner.heads, strict=True):
        gates, expected = head(h), 0
        for i in range(2):
            pairs, mine = each.pairs[name], each.pairs[name].lesson == i
            gradient = pairs.delta[mine].T @ pairs.x[mine]
            a = gates.row[i][:, None] * gates.column[i]
            b = gates.row_added[i][:, None] * gates.column_added[i]
            expected = expected + gates.scale[i] * (a * gradient + b)
        change = made.factors[name]
        assert close(change.left[0].T @ change.right[0], expected, 1e-9)
        assert change.left.shape[1] <= len(each.pairs[name].x) + 2  # rank: rows, and one an edit


def test_ke_without_scale_changes_nothing(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    learner = ke_for(view)
    for head in learner.heads:
        head.last.bias[-1] = -1e6
    with frozen(view.model):
        made = learner.rewrite(view, read(view, REQUESTS), n_lessons=1)
    assert all(not f.left.any() for f in made.factors.values())


def test_ke_reads_the_edit(make_view) -> None:
    """Another target, another gate; padding beside a longer edit changes nothing."""
    view = make_view("gpt2", torch.float64)
    learner = ke_for(view)
    texts = ["Rome >> Oslo || Bo lives in", "Rome >> Seattle || Bo lives in and lives in"]
    both = learner._read(view, texts)
    alone = torch.cat([learner._read(view, [t]) for t in texts])
    assert torch.allclose(both, alone, atol=1e-12)
    assert not torch.allclose(both[0], both[1], atol=1e-5)
    view = make_view("bert")
    batch = read(view, requests_for(view))
    assert conditions(view, batch, torch.tensor([2, 0]), [1]) == ["no >> no || Bo lives in"]


# -------------------------------------------------------------------- 37: ENN


def enn_for(view: ModelView, **options: Any) -> EnnLearner:
    names = matrices(view)[-2:]
    settings = EnnSettings(**{"matrices": names, "edit_lr": 0.05} | options)
    learner = EnnLearner(_prepared(view, settings), settings).to(view.weight(0).dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for change in learner.changes:
            for p in change:
                p += 0.01 * torch.randn(p.shape, generator=generator).to(p)
    return learner


def outer_loss(view: ModelView, learner: EnnLearner) -> Tensor:
    texts = read(view, requests_for(view))
    with frozen(view.model):
        made = learner.rewrite(view, texts, n_lessons=1)
        with writing(view, made.factors), double_backward(True):
            logits = logits_of(view, texts, learner.values(view))
    return torch.nn.functional.cross_entropy(logits, texts.label)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "bert"])
@pytest.mark.parametrize("options", [{}, {"rank": 2, "prepared": "matrices"}, {"n_steps": 2}])
def test_enn_differentiates_twice(make_view, family: str, options: dict[str, Any]) -> None:
    """Against finite differences, along step sizes and along the preparation."""
    view = make_view(family, torch.float64)
    # Llama's norms compute in float32
    step, tol = (1e-3, 1e-2) if family == "llama" else (1e-5, 1e-4)
    learner = enn_for(view, **options)
    outer_loss(view, learner).backward()
    for p in (learner.edit_lr, learner.changes[-1][0]):
        grad = p.grad.clone()
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p)
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * step * direction
            found.append(float(outer_loss(view, learner).detach()))
            with torch.no_grad():
                p -= sign * step * direction
        slope = (found[0] - found[1]) / (2 * step)
        assert slope == pytest.approx(float((grad * direction).sum()), rel=tol, abs=1e-9)


def test_first_order_is_another_gradient_and_the_same_edit(make_view) -> None:
    view = make_view("llama", torch.float64)
    found = []
    for first_order in (False, True):
        learner = enn_for(view, first_order=first_order)
        loss = outer_loss(view, learner)
        loss.backward()
        found.append((float(loss.detach()), learner.changes[0][0].grad, learner.edit_lr.grad))
    assert found[0][0] == found[1][0]
    assert float((found[0][1] - found[1][1]).norm()) > 1e-3 * float(found[0][1].norm())
    assert torch.allclose(found[0][2], found[1][2])  # the step sizes have no second order


def test_enn_without_a_step_is_its_base(make_view) -> None:
    view = make_view("gpt2", torch.float64)
    learner = enn_for(view, edit_lr=0.0).requires_grad_(False)
    texts = read(view, REQUESTS)
    with frozen(view.model):
        made = learner.rewrite(view, texts, n_lessons=1)
    values = learner.values(view)
    with torch.no_grad():
        with writing(view, made.factors):
            edited = logits_of(view, texts, values)
        base, original = logits_of(view, texts, values), logits_of(view, texts)
    assert torch.equal(edited, base) and not torch.allclose(base, original, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_preparation_is_what_was_trained_on(make_view, rank: int) -> None:
    """Pushed as an edit, it is the base model of training; biases and norms included."""
    view = make_view("gpt2", torch.float64)
    learner = enn_for(view, rank=rank).requires_grad_(False)
    texts = read(view, REQUESTS)
    with torch.no_grad():
        trained = logits_of(view, texts, learner.values(view))
        with view.applied(_pushed(view, learner.preparation(torch.float64), REQUESTS[0])):
            pushed = logits_of(view, texts)
    assert torch.allclose(trained, pushed, atol=1e-10)
    names = set(learner.names)
    assert names == {n for n, _ in view.model.named_parameters() if ".h.3." in n}
