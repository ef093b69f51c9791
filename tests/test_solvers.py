"""Oracles of the closed forms (specification: O1–O9, O24), in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.editors.locate.rome import rank_one
from workbench.editors.locate.solvers import (
    condition,
    equality,
    predicted_closure,
    ridge,
    rome_direction,
)
from workbench.errors import NumericalError
from workbench.linalg import Factor, cholesky

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
@given(seed=st.integers(0, 10_000), past=st.integers(1, 30))
def test_accumulated_keys(seed: int, past: int) -> None:
    _, c, keys, _ = draw(seed, past + 3)
    old, new = keys[:, :past], keys[:, past:]
    direct = torch.linalg.solve(2.0 * c + keys @ keys.T, new)
    assert relative(ridge(cholesky(c), new, 2.0, old), direct) < 1e-8


def test_sequential_batches_with_accumulation_equal_one_joint_batch() -> None:
    _, c, keys, values = draw(11, 9)
    factor = cholesky(c)
    joint = values @ ridge(factor, keys, 3.0).T
    weight, past = torch.zeros(D, M, dtype=torch.float64), None
    plain = torch.zeros(D, M, dtype=torch.float64)
    for start in (0, 2, 5):
        part = slice(start, {0: 2, 2: 5, 5: 9}[start])
        k, v = keys[:, part], values[:, part]
        weight = weight + (v - weight @ k) @ ridge(factor, k, 3.0, past).T
        plain = plain + (v - plain @ k) @ ridge(factor, k, 3.0).T
        past = k if past is None else torch.cat([past, k], dim=1)
    assert relative(weight, joint) < 1e-9
    assert relative(plain, joint) > 1e-3


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
