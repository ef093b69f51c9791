"""The engine against a plain loop: targets (O18, O21) and the insertion sweep (O19, O20)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import families
import plain

from workbench.editors.locate import targets as engine
from workbench.editors.locate.contexts import Contexts, contexts
from workbench.editors.locate.solvers import ridge
from workbench.editors.locate.sweep import insertion_sweep
from workbench.editors.locate.targets import TargetOptions, optimize_targets
from workbench.errors import NumericalError
from workbench.facts import EditRequest
from workbench.linalg import cholesky
from workbench.replay import Replay
from workbench.tokens import encode_request
from workbench.trace import Site, trace

TEMPLATES = ("{}", "I saw it. {}", "The house is old, and. {}")
OPTIONS = TargetOptions(steps=12, lr=0.3, weight_decay=0.1, clamp=2.0, kl_factor=0.0625)
REQUESTS = [
    EditRequest(
        prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English"
    ),
    EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome, in Italy"),
    EditRequest(prompt="In 1969 people saw {}", subject="the moon", target_new="Paris"),
    EditRequest(prompt="{} plays the sport of", subject="LeBron James", target_new="soccer"),
]
ADDITIVE = [f for f in families.CAUSAL if f not in ("gemma2", "gemma3_text", "olmo2", "granite")]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def texts() -> Contexts:
    return Contexts(TEMPLATES, (0.5, 0.25, 0.25))


@pytest.mark.parametrize("family", list(families.CAUSAL))
def test_replay_equals_a_plain_forward(make_view, family: str) -> None:  # O18
    view = make_view(family, torch.float64)
    rows = [r for q in REQUESTS for r in encode_request(view.tokenizer, q, TEMPLATES)]
    replay = Replay(view, rows, 2)
    order = torch.tensor([5, 0, 7])
    for part, kept in ((replay, rows), (replay.take(order), [rows[i] for i in order.tolist()])):
        with torch.no_grad():
            residual = part.run(part.hidden)
        for i, row in enumerate(kept):
            with torch.no_grad():
                full = view.model(input_ids=torch.tensor([row.ids])).logits[0, row.pivot :]
            n = len(full)
            with torch.no_grad():
                got = part.logits(residual, torch.full((n,), i), torch.arange(n))
            assert relative(got, full) < 1e-6  # norms of some families compute in float32


@pytest.mark.parametrize("family", ADDITIVE)
def test_batched_targets_equal_one_at_a_time(make_view, family: str) -> None:  # O18
    view = make_view(family, torch.float64)
    together = optimize_targets(view, REQUESTS, texts(), 1, OPTIONS)
    tol = 1e-9 if family in ("gpt2", "gptj", "gpt_neox", "opt", "phi") else 1e-5
    for i, request in enumerate(REQUESTS):
        z, h0, updates = plain.target(view, request, texts(), 1, OPTIONS)
        assert relative(together.h0[:, i], h0) < tol
        assert relative(together.z[:, i], z) < tol
        assert together.updates[i] == updates


def test_edits_stop_on_their_own(make_view, monkeypatch) -> None:
    """Stops at different steps, with finished edits leaving the batch, change nothing."""
    view = make_view("gpt2", torch.float64)
    alone = [optimize_targets(view, [r], texts(), 1, OPTIONS) for r in REQUESTS]
    first = [row["loss"] for t in alone for row in t.trace if row["step"] == 0]
    last = [row["loss"] for t in alone for row in t.trace][-1]
    stop = (sorted(first)[1] + min(first)) / 2 if min(first) > last else sorted(first)[1]
    options = TargetOptions(**{**OPTIONS.__dict__, "stop_loss": stop, "steps": 30})
    together = optimize_targets(view, REQUESTS, texts(), 1, options)
    for i, request in enumerate(REQUESTS):
        z, _, updates = plain.target(view, request, texts(), 1, options)
        assert together.updates[i] == updates
        assert relative(together.z[:, i], z) < 1e-9
    assert len(set(together.updates)) > 1
    monkeypatch.setattr(engine, "CHUNK_TOKENS", 1)  # every edit in a micro-batch of its own
    again = optimize_targets(view, REQUESTS, texts(), 1, options)
    assert again.updates == together.updates
    assert relative(again.z, together.z) < 1e-9


def test_one_step_or_a_known_fact_changes_nothing(make_view) -> None:  # O21
    view = make_view("llama", torch.float64)
    for changes in ({"steps": 1}, {"stop_loss": 1e9}):
        options = TargetOptions(**{**OPTIONS.__dict__, **changes})
        found = optimize_targets(view, REQUESTS, texts(), 1, options)
        assert torch.equal(found.delta, torch.zeros_like(found.delta))
        assert found.updates == [0] * len(REQUESTS)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("part", ["residual", "value"])
def test_clamp_at_every_layer(make_view, layer: int, part: str) -> None:  # O21, last layer too
    view = make_view("llama", torch.float64)
    options = TargetOptions(**{**OPTIONS.__dict__, "clamp": 0.05})
    found = optimize_targets(view, REQUESTS, texts(), layer, options, part=part)
    for i, request in enumerate(REQUESTS):
        row = encode_request(view.tokenizer, request)[0]
        with torch.no_grad(), trace(view, [Site(layer, part)]) as seen:
            view.model(input_ids=torch.tensor([row.ids]))
        assert relative(found.h0[:, i], seen[Site(layer, part)][0, row.pivot]) < 1e-6
    ratio = found.delta.norm(dim=0) / found.h0.norm(dim=0)
    assert float(ratio.max()) <= 0.05 * (1 + 1e-9)
    assert float(ratio.min()) > 0


def test_value_and_residual_targets_share_their_delta(make_view) -> None:
    """Where the value is added to the residual, the same vector is the same change."""
    view = make_view("gptj", torch.float64)
    loose = TargetOptions(**{**OPTIONS.__dict__, "clamp": 1e9, "weight_decay": 0.0})
    a = optimize_targets(view, REQUESTS, texts(), 1, loose, part="residual")
    b = optimize_targets(view, REQUESTS, texts(), 1, loose, part="value")
    assert relative(a.delta, b.delta) < 1e-8


def test_post_norm_families_train_the_value(make_view) -> None:
    view = make_view("gemma2", torch.float32)
    found = optimize_targets(view, REQUESTS, texts(), 1, OPTIONS, part="value")
    for i in range(len(REQUESTS)):
        losses = [row["nll"] for row in found.trace if row["request"] == i]
        assert min(losses) < losses[0]


@pytest.mark.parametrize("family", ADDITIVE)
@pytest.mark.parametrize("layers", [(1,), (0, 2), (1, 2, 3)])
def test_sweep_equals_full_forwards(make_view, family: str, layers: tuple[int, ...]) -> None:  # O19
    view = make_view(family, torch.float64)
    g = torch.Generator().manual_seed(0)
    n, m = len(REQUESTS), view.d_mlp
    z = torch.randn(view.d_model, n, generator=g, dtype=torch.float64)
    moments = {}
    for layer in layers:
        a = torch.randn(m, 4 * m, generator=g, dtype=torch.float64)
        moments[layer] = a @ a.T / (4 * m)
    factors = {layer: cholesky(c) for layer, c in moments.items()}
    before = {k: v.clone() for k, v in view.model.state_dict().items()}
    writes = insertion_sweep(
        view, REQUESTS, texts(), layers, z, lambda layer, keys: ridge(factors[layer], keys, 0.5)
    )
    expected = plain.memit(view, REQUESTS, texts(), layers, z, moments, 0.5)
    for write, update in zip(writes, expected, strict=True):
        assert relative(write.residual @ write.x.T, update) < 1e-6
    assert all(torch.equal(v, before[k]) for k, v in view.model.state_dict().items())


def test_exact_writes_leave_no_residual(make_view) -> None:  # O20
    view = make_view("gpt2", torch.float64)
    z = torch.randn(
        view.d_model, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    bare = Contexts(("{}",), (1.0,))
    eye = torch.eye(view.d_mlp, dtype=torch.float64)

    def exact(layer: int, keys: torch.Tensor) -> torch.Tensor:
        return keys / keys.square().sum()

    writes = insertion_sweep(view, REQUESTS[:1], bare, (3,), z, exact)
    assert float(writes[0].distance) > 1
    closed = writes[0].residual @ (writes[0].x.T @ writes[0].keys)
    assert relative(closed, writes[0].residual) < 1e-12
    half = insertion_sweep(
        view,
        REQUESTS[:1],
        bare,
        (3,),
        z,
        lambda _, k: ridge(cholesky(eye), k, float(k.square().sum())),
    )[0]
    share = (half.x.T @ half.keys).item()
    assert share == pytest.approx(0.5, rel=1e-9)  # leverage equals λ


def test_nan_weights_stop_the_engine(make_view) -> None:
    view = make_view("llama", torch.float32)
    with torch.no_grad():
        view.value_module(3).weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        optimize_targets(view, REQUESTS[:1], texts(), 1, OPTIONS)


def test_templates_are_seeded_and_cached(make_view) -> None:
    view = make_view("gpt2")
    a, b = contexts(view, "memit", 0), contexts(view, "memit", 0)
    assert a == b and len(a.templates) == 6 and a.weights[0] == 0.5
    assert sum(a.weights) == pytest.approx(1)
    rome = contexts(view, "rome", 0)
    assert len(rome.templates) == 21 and len(set(rome.weights)) == 1
    assert all(t.count("{}") == 1 and t.count("{") == 1 for t in rome.templates)
    assert contexts(make_view("gpt2"), "memit", 0) == a
