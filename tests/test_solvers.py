"""Oracles of the closed forms (specification: O1–O13, O24), in float64."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.editors.locate.alphaedit import null_space
from workbench.editors.locate.rome import rank_one
from workbench.editors.locate.selection import neuron_scores, select
from workbench.editors.locate.shrinking import compressed, largest_relative
from workbench.editors.locate.solvers import (
    condition,
    equality,
    equality_after,
    predicted_closure,
    ridge,
    ridge_after,
    rome_direction,
)
from workbench.errors import NumericalError, OptionError
from workbench.linalg import Factor, Grown, cholesky

M, D = 20, 12


def draw(seed: int, n: int, m: int = M, d: int = D) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corpus keys, second moment, edit keys, residuals."""
    g = torch.Generator().manual_seed(seed)
    corpus = torch.randn(m, 10 * m, generator=g, dtype=torch.float64)
    corpus *= torch.logspace(-1, 1, m, dtype=torch.float64)[:, None]
    keys = torch.randn(m, n, generator=g, dtype=torch.float64)
    return (
        corpus,
        corpus @ corpus.T / corpus.shape[1],
        keys,
        torch.randn(d, n, generator=g, dtype=torch.float64),
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def test_mean_leverage_of_the_defining_sample_is_m() -> None:  # O1
    corpus, c, _, _ = draw(0, 1)
    assert float(cholesky(c).leverage(corpus).mean()) == pytest.approx(M, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), variant=st.sampled_from(["r-rome", "rome", "p-rome"]))
def test_rome_writes_its_key_and_moves_the_rest_least(seed: int, variant: str) -> None:  # O2, O3
    corpus, c, keys, _ = draw(seed, 4)
    g = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(D, M, generator=g, dtype=torch.float64)
    v_star = torch.randn(D, generator=g, dtype=torch.float64)
    step = rank_one(
        SimpleNamespace(factor=cholesky(c)),  # type: ignore[arg-type]
        keys=keys.T,
        values=keys.T @ weight.T,
        v_star=v_star,
        weights=torch.full((4,), 0.25, dtype=torch.float64),
        variant=variant,
    )
    update = step.left[:, None] * step.right
    assert relative((weight + update) @ step.key, v_star) < 1e-9
    if variant != "rome":  # direction and constraint use the same key: the minimum
        other = torch.randn(D, M, generator=g, dtype=torch.float64)
        other -= (other @ step.key)[:, None] * step.key / step.key.square().sum()
        moved = ((update + 0.1 * other) @ corpus).norm()
        assert moved >= (update @ corpus).norm() * (1 - 1e-12)


def test_published_rome_is_the_corrected_one_over_tau() -> None:  # O3
    _, c, keys, _ = draw(3, 4)
    values, v_star = torch.zeros(4, D, dtype=torch.float64), torch.ones(D, dtype=torch.float64)
    steps = {
        variant: rank_one(
            SimpleNamespace(factor=cholesky(c)),  # type: ignore[arg-type]
            keys=keys.T,
            values=values,
            v_star=v_star,
            weights=torch.full((4,), 0.25, dtype=torch.float64),
            variant=variant,
        )
        for variant in ("rome", "r-rome")
    }
    outer = {k: s.left[:, None] * s.right for k, s in steps.items()}
    assert relative(outer["rome"], outer["r-rome"] / steps["rome"].tau) < 1e-9


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
def test_rome_ignores_the_scale_of_the_statistics(seed: int, scale: float) -> None:  # O4
    _, c, keys, _ = draw(seed, 1)
    a = rome_direction(cholesky(c), keys[:, 0])
    b = rome_direction(cholesky(scale * c), keys[:, 0])
    assert relative(a, b) < 1e-9


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), lam=st.floats(1e-3, 1e4))
def test_memit_normal_equations(seed: int, n: int, lam: float) -> None:  # O5
    _, c, keys, residual = draw(seed, n)
    update = residual @ ridge(cholesky(c), keys, lam).T
    left = update @ (lam * c + keys @ keys.T)
    assert relative(left, residual @ keys.T) < 1e-8
    direct = residual @ torch.linalg.solve(lam * c + keys @ keys.T, keys).T
    assert relative(update, direct) < 1e-8


def test_memit_shrinks_as_lambda_grows() -> None:  # O5
    _, c, keys, residual = draw(5, 6)
    norms = [
        float((residual @ ridge(cholesky(c), keys, lam).T).norm())
        for lam in (1e-2, 1.0, 1e2, 1e4, 1e12)
    ]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-8 * norms[0]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), lam=st.floats(1e-3, 1e4))
def test_one_edit_closes_the_predicted_share(seed: int, lam: float) -> None:  # O6
    _, c, keys, residual = draw(seed, 1)
    factor = cholesky(c)
    written = residual @ ridge(factor, keys, lam).T @ keys
    share = predicted_closure(factor.leverage(keys), lam)
    assert relative(written, residual * share) < 1e-9


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 8), scale=st.floats(1e-3, 1e3))
def test_emmet_writes_every_key_exactly(seed: int, n: int, scale: float) -> None:  # O7
    _, c, keys, residual = draw(seed, n)
    factor = cholesky(c)
    update = residual @ equality(factor, keys, scale=scale).T
    assert relative(update @ keys, residual) < 1e-8
    assert relative(update, residual @ equality(factor, keys).T) < 1e-9
    if n == 1:
        assert relative(update, residual @ rome_direction(factor, keys[:, 0])[None]) < 1e-9


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    alpha=st.floats(1e-3, 10),
    scale=st.floats(1e-2, 1e3),
)
def test_soft_emmet_is_memit(seed: int, n: int, alpha: float, scale: float) -> None:  # O8
    _, c, keys, _ = draw(seed, n)
    eye = torch.eye(n, dtype=torch.float64)
    gram = keys.T @ torch.linalg.solve(scale * c, keys)
    textbook = torch.linalg.solve(scale * c, keys) @ torch.linalg.inv(gram + alpha * eye)
    factor = cholesky(c)
    assert relative(equality(factor, keys, scale=scale, alpha=alpha), textbook) < 1e-7
    assert relative(ridge(factor, keys, alpha * scale), textbook) < 1e-7


def test_emmet_refuses_infeasible_batches_and_names_alpha() -> None:  # O9
    _, c, keys, _ = draw(9, M + 1)
    with pytest.raises(NumericalError, match=r"alpha=0\.1"):
        equality(cholesky(c), keys)
    twins = torch.cat([keys[:, :1], keys[:, :1]], dim=1)
    with pytest.raises(NumericalError, match="nearly dependent"):
        equality(cholesky(c), twins)
    assert equality(cholesky(c), twins, alpha=0.1).isfinite().all()


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    lam=st.floats(0.1, 100),
)
def test_a_factor_that_grows_equals_one_that_is_made_anew(
    seed: int, sizes: list[int], lam: float
) -> None:  # O11
    _, c, keys, _ = draw(seed, sum(sizes) + 3)
    grown, seen = Grown(cholesky(c), lam), 0
    for n in sizes:
        grown.append(keys[:, seen : seen + n])
        seen += n
        assert grown.n_pending <= M // 2
    old, new = keys[:, :seen], keys[:, seen:]
    a = lam * c + old @ old.T
    assert relative(grown.solve(new), torch.linalg.solve(a, new)) < 1e-8
    direct = torch.linalg.solve(a + new @ new.T, new)
    assert relative(ridge_after(grown, new), direct) < 1e-8
    textbook = torch.linalg.solve(a, new) @ torch.linalg.inv(new.T @ torch.linalg.solve(a, new))
    assert relative(equality_after(grown, new), textbook) < 1e-7


@settings(deadline=None, max_examples=25)
@given(cuts=st.sets(st.integers(1, 8)))
def test_sequential_batches_with_accumulation_equal_one_joint_batch(cuts: set[int]) -> None:  # O10
    _, c, keys, values = draw(11, 9)
    factor = cholesky(c)
    joint = values @ ridge(factor, keys, 3.0).T
    weight, grown = torch.zeros(D, M, dtype=torch.float64), Grown(factor, 3.0)
    plain = torch.zeros(D, M, dtype=torch.float64)
    edges = [0, *sorted(cuts), 9]
    for start, end in itertools.pairwise(edges):
        k, v = keys[:, start:end], values[:, start:end]
        weight = weight + (v - weight @ k) @ ridge_after(grown, k).T
        plain = plain + (v - plain @ k) @ ridge(factor, k, 3.0).T
        grown.append(k)
    assert relative(weight, joint) < 1e-9
    assert (relative(plain, joint) > 1e-3) is bool(cuts)


def test_alphaedit_in_reduced_coordinates() -> None:  # O12
    _, c, keys, values = draw(21, 9)
    moment = SimpleNamespace(matrix=c, layer=0, n_tokens=1)
    values_of_c = torch.linalg.eigvalsh(c)
    cut = float(values_of_c[M // 2 - 1 : M // 2 + 1].mean())
    q = null_space(moment, cut).basis
    assert q.shape[1] == M // 2
    p, eye = q @ q.T, torch.eye(M, dtype=torch.float64)
    l2 = 1.0
    old, new, r = keys[:, :5], keys[:, 5:], values[:, 5:]
    grown = Grown(cholesky(torch.eye(q.shape[1], dtype=q.dtype)), l2)
    grown.append(q.T @ old)
    update = r @ (q @ ridge_after(grown, q.T @ new)).T
    both = old @ old.T + new @ new.T
    released = torch.linalg.solve(p @ both + l2 * eye, p @ new @ r.T).T
    paper = r @ new.T @ p @ torch.linalg.inv(both @ p + eye)
    assert relative(update, released) < 1e-9 and relative(update, paper) < 1e-9
    assert float((update @ (eye - p)).norm()) < 1e-9 * float(update.norm())
    # sequential equals the joint ridge solution inside the null space
    weight, grown = torch.zeros(D, M, dtype=torch.float64), grown_from(q, l2)
    for part in (slice(0, 5), slice(5, 9)):
        k, v = keys[:, part], values[:, part]
        weight = weight + (v - weight @ k) @ (q @ ridge_after(grown, q.T @ k)).T
        grown.append(q.T @ k)
    joint = values @ (q @ ridge_after(grown_from(q, l2), q.T @ keys)).T
    assert relative(weight, joint) < 1e-9


def grown_from(q: Tensor, l2: float) -> Grown:
    return Grown(cholesky(torch.eye(q.shape[1], dtype=q.dtype)), l2)


@pytest.mark.parametrize("rule", ["mean", "sum", "trace"])
def test_null_space_thresholds(rule: str) -> None:
    _, c, _, _ = draw(22, 1)
    values = torch.linalg.eigvalsh(c)
    moment = SimpleNamespace(matrix=c, layer=3, n_tokens=1000)
    share = float(values[:4].sum() / values.sum())
    threshold = {
        "mean": float(values[4]) * 0.999,
        "sum": float(values[4]) * 999,
        "trace": share * 1.001,
    }[rule]
    space = null_space(moment, threshold, rule)
    assert space.basis.shape == (M, 4)
    assert space.energy == pytest.approx(share)
    with pytest.raises(OptionError, match="no eigenvalue of layer 3"):
        null_space(moment, 1e-30, rule)


@settings(deadline=None, max_examples=50)
@given(
    scores=st.lists(st.floats(0.01, 100), min_size=1, max_size=40),
    threshold=st.floats(0.01, 0.999),
)
def test_neuron_selection(scores: list[float], threshold: float) -> None:
    values = torch.tensor(scores, dtype=torch.float64)
    total = float(values.sum())
    chosen = select(values, threshold)
    got = float(values[chosen].sum())
    assert got >= threshold * total * (1 - 1e-12)  # it reaches the threshold
    assert got - float(values[chosen].min()) < threshold * total * (1 + 1e-12)  # and is smallest
    assert float(values[chosen].min()) >= max(
        [float(v) for i, v in enumerate(values) if i not in set(chosen.tolist())], default=0.0
    )
    released = select(values, threshold, "repo")
    assert len(released) == 1 or float(values[released].sum()) <= threshold * total
    assert len(chosen) - len(released) in (0, 1)
    assert select(values, 1.0).tolist() == list(range(len(scores)))


def test_restricted_update_is_the_optimum_on_its_columns() -> None:  # O13
    _, c, keys, residual = draw(23, 4)
    chosen = select(neuron_scores(keys), 0.6)
    assert 1 < len(chosen) < M
    lam = 2.0
    a = lam * c[chosen][:, chosen]
    part = torch.linalg.solve(a + keys[chosen] @ keys[chosen].T, keys[chosen])
    update = torch.zeros(D, M, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        update[:, chosen] = residual @ part.T
    loss = lam * (update @ c * update).sum() + (update @ keys - residual).square().sum()
    (grad,) = torch.autograd.grad(loss, update)
    rest = [i for i in range(M) if i not in set(chosen.tolist())]
    assert float(grad[:, chosen].norm()) < 1e-9 * float(grad[:, rest].norm())
    whole = residual @ ridge(cholesky(c), keys, lam).T
    assert relative(update[:, chosen].detach(), whole[:, chosen]) > 1e-3


def test_rect_keeps_the_largest_relative_changes() -> None:
    g = torch.Generator().manual_seed(0)
    weight, change = (torch.randn(5, 8, generator=g, dtype=torch.float64) for _ in range(2))
    kept = largest_relative(change, weight, 0.4)
    ratio = (change / weight).abs()
    assert int((kept != 0).sum()) == 16
    assert float(ratio[kept != 0].min()) >= float(ratio[kept == 0].max())
    assert torch.equal(kept[kept != 0], change[kept != 0])
    assert torch.equal(largest_relative(change, weight, 1.0), change)


def test_prune_compresses_only_singular_values_above_the_weights() -> None:
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 9, generator=g, dtype=torch.float64)
    top = float(torch.linalg.matrix_norm(weight, ord=2))
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    sigma = torch.tensor([20.0, 3.0, 2.0, 1.0, 0.5, 0.1]).double() * top
    total = left @ torch.diag(sigma) @ right
    found = torch.linalg.svdvals(compressed(total, weight))
    above = sigma.log() - math.log(top) + top
    expected = torch.where(sigma > top, above, sigma).sort(descending=True).values
    assert torch.allclose(found, expected)
    for scale in (1 / (100 * top), 1e-4):  # below the weight's; then a weight below 1
        small, tiny = total * scale, weight * (1 if scale != 1e-4 else 1e-4)
        assert relative(compressed(small, tiny), small) < 1e-12


def test_preservation_error_is_a_trace() -> None:  # O24
    corpus, c, keys, residual = draw(12, 3)
    update = residual @ ridge(cholesky(c), keys, 1.0).T
    sampled = (update @ corpus).square().sum(0).mean()
    assert float(sampled) == pytest.approx(float((update @ c @ update.T).trace()), rel=1e-9)


def test_jitter_only_where_it_is_needed() -> None:
    _, c, keys, _ = draw(13, 1)
    assert cholesky(c).jitter == 0.0
    singular = keys @ keys.T
    assert cholesky(singular).jitter > 0
    with pytest.raises(NumericalError, match="NaN"):
        cholesky(torch.full((3, 3), float("nan")))
    with pytest.raises(NumericalError, match="not positive definite"):
        cholesky(-torch.eye(3))
    assert condition(torch.zeros(2, 2)) == float("inf")
    assert isinstance(cholesky(c), Factor)
