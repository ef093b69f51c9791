"""Agreement with arrays that the reference implementations computed (tests/golden/README.md).

Closed forms are compared in the unit-gain linear world of the files: what a layer writes reaches
the target layer unchanged. End-to-end runs use the files' own four-block GPT-2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.editors import EMMET, MEMIT, ROME
from workbench.editors.locate.contexts import contexts
from workbench.editors.locate.rome import rank_one
from workbench.editors.locate.solvers import equality, ridge, rome_direction
from workbench.editors.locate.targets import optimize_targets
from workbench.facts import EditRequest
from workbench.linalg import cholesky
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.stats import SecondMoment

GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {k: torch.as_tensor(arrays[k]) for k in arrays.files}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def spread(g: dict[str, Tensor], solve: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The insertion loop in the linear world; updates of all layers, ``[L, d, m]``."""
    n_layers = len(g["K"])
    hidden = g["H0"].clone()
    updates = []
    for layer in range(n_layers):
        keys = g["K"][layer]
        residual = (g["Z"] - hidden) / (n_layers - layer)
        updates.append(residual @ solve(layer, keys).T)
        hidden = hidden + updates[-1] @ keys
    return torch.stack(updates)


@pytest.mark.parametrize(
    ("name", "tol"), [("memit_N04_L1_lam15", 1e-9), ("memit_N16_L3_lam15", 1e-6)]
)
def test_memit_closed_form(name: str, tol: float) -> None:
    g = load(name)
    factors = [cholesky(c) for c in g["C"]]
    got = spread(g, lambda layer, keys: ridge(factors[layer], keys, float(g["lam"])))
    assert relative(got, g["deltaW"]) < tol


@pytest.mark.parametrize(
    ("name", "tol"),
    [
        ("emmet_N01_L1_s1_unl0_el0.1", 1e-9),
        ("emmet_N04_L1_s7_unl0.5_el0.1", 1e-9),
        ("emmet_N16_L3_s5_unl0_el0.02", 1e-6),
    ],
)
def test_emmet_closed_form(name: str, tol: float) -> None:
    g = load(name)
    n = g["K"].shape[-1]
    alpha = float(g["emmet_lambda"]) if n > 1 else 0.0  # the newest reference: no ridge at N = 1
    eye = torch.eye(g["C"].shape[-1], dtype=torch.float64)
    mixed = [
        float(g["mom2_update_weight"]) * c + float(g["update_norm_lambda"]) * eye for c in g["C"]
    ]
    factors = [cholesky(c) for c in mixed]
    got = spread(g, lambda layer, keys: equality(factors[layer], keys, alpha=alpha))
    assert relative(got, g["deltaW"]) < tol


def test_older_emmet_adds_alpha_at_one_edit() -> None:
    g = load("unified_emmet_N01_L1_s1_unl0_el0.1")
    factor = cholesky(g["C"][0])
    alpha = float(g["emmet_lambda"])
    got = spread(g, lambda layer, keys: equality(factor, keys, alpha=alpha))
    assert relative(got, g["deltaW"].reshape(got.shape)) < 1e-9


def test_rome_over_several_layers() -> None:
    g = load("unified_rome_N01_L3_s1_unl0_el0")
    factors = [cholesky(c) for c in g["C"]]
    got = spread(g, lambda layer, keys: rome_direction(factors[layer], keys[:, 0])[:, None])
    assert relative(got, g["deltaW"]) < 1e-6


@pytest.mark.parametrize("name", ["rome_J01", "rome_J06", "rome_J21"])
def test_rome_closed_form(name: str) -> None:
    g = load(name)
    templates = g["k_templates"]
    moment = SimpleNamespace(factor=cholesky(g["C"]))
    step = rank_one(
        moment,  # type: ignore[arg-type]
        keys=torch.cat([g["k_bare"][None], templates[1:]]),
        values=torch.cat([g["k_bare"][None], templates[1:]]) @ g["W"].T,
        v_star=g["v_star"],
        weights=torch.full((len(templates),), 1 / len(templates), dtype=torch.float64),
        variant="rome",
    )
    update = step.left[:, None] * step.right
    assert relative(update, g["deltaW"]) < 1e-9
    assert relative(step.right, g["u"]) < 1e-9
    # the published form satisfies the constraint on the bare key
    assert relative((g["W"] + update) @ g["k_bare"], g["v_star"]) < 1e-9


def test_sequential_memit_with_accumulated_keys() -> None:
    g = load("memitseq_N04_L2_lam2")
    lam, n_layers = float(g["lam"]), len(g["C"])
    factors = [cholesky(c) for c in g["C"]]
    hidden = g["H0"].clone()
    past: list[Tensor | None] = [None] * n_layers
    for batch in (0, 1):
        columns = g[f"batch{batch}_ids"]
        for layer in range(n_layers):
            keys = g["K"][layer][:, columns]
            residual = (g["Z"] - hidden)[:, columns] / (n_layers - layer)
            update = residual @ ridge(factors[layer], keys, lam, past[layer]).T
            assert relative(update, g[f"batch{batch}_deltaW"][layer]) < 1e-6
            hidden = hidden + update @ g["K"][layer]
        for layer in range(n_layers):
            keys = g["K"][layer][:, columns]
            before = past[layer]
            past[layer] = keys if before is None else torch.cat([before, keys], dim=1)


# ---------------------------------------------------------------------- end to end

OPTIONS = {
    "lr": 0.3,
    "steps": 20,
    "weight_decay": 0.1,
    "clamp": 1.0,
    "kl_factor": 0.0625,
}


@pytest.fixture(scope="module")
def view() -> ModelView:
    folder = GOLDEN / "tiny_model"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    return open_view(model, AutoTokenizer.from_pretrained(folder), name="golden")


@pytest.fixture(scope="module")
def requests() -> list[EditRequest]:
    rows = json.loads((GOLDEN / "e2e_requests.json").read_text())["requests"]
    return [
        EditRequest(
            prompt=r["prompt"], subject=r["subject"], target_new=r["target_new"]["str"].strip()
        )
        for r in rows
    ]


@pytest.fixture(scope="module")
def templates() -> tuple[str, ...]:
    groups = json.loads((GOLDEN / "e2e_requests.json").read_text())["context_templates"]
    return tuple(t for group in groups for t in group)


@pytest.fixture(scope="module")
def statistics(view: ModelView) -> Mapping[int, SecondMoment]:
    matrices = load("e2e_covariance")["C"]
    return {
        layer: SecondMoment(
            layer=layer,
            matrix=matrices[layer - 1],
            mean=torch.zeros(view.d_mlp, dtype=torch.float64),
            n_tokens=10**6,
            fingerprint=view.fingerprint,
            source={},
            reservoir=torch.zeros(view.d_mlp, 0),
        )
        for layer in (1, 2)
    }


def last_logits(view: ModelView, requests: list[EditRequest]) -> Tensor:
    with torch.no_grad():
        inputs = [view.tokenizer(r.text, return_tensors="pt") for r in requests]
        return torch.stack([view.model(**x).logits[0, -1] for x in inputs])


@pytest.mark.parametrize(
    ("name", "changes", "request_index"),
    [
        ("default", {}, 0),
        ("default", {}, 1),
        ("noclamp", {"clamp": 4.0, "lr": 0.5}, 2),
        ("steps1", {"steps": 1}, None),
    ],
)
def test_targets(
    view: ModelView,
    requests: list[EditRequest],
    templates: tuple[str, ...],
    name: str,
    changes: dict[str, float],
    request_index: int | None,
) -> None:
    g = load("e2e_memit")
    options = MEMIT(layers=(1, 2), **{**OPTIONS, **changes}).target_options()
    found = optimize_targets(view, requests[:3], contexts(view, "memit", 0, templates), 2, options)
    assert relative(found.h0.T, g["h0"]) < 1e-9
    assert relative(found.z.T, g[f"z_{name}"]) < 1e-5
    if request_index is None:
        assert torch.equal(found.delta, torch.zeros_like(found.delta))  # O21: one step, no update
        return
    columns = ("loss", "nll", "kl", "weight_decay", "prob")
    rows = [[r[c] for c in columns] for r in found.trace if r["request"] == request_index]
    reference = g[f"r{request_index}_{name}_trace"]
    assert float((torch.tensor(rows, dtype=torch.float64) - reference).abs().max()) < 1e-6


def test_memit_end_to_end(
    view: ModelView,
    requests: list[EditRequest],
    templates: tuple[str, ...],
    statistics: Mapping[int, SecondMoment],
) -> None:
    g = load("e2e_memit")
    editor = MEMIT(layers=(1, 2), lam=0.2, templates=templates, **OPTIONS)
    edit = editor.edit(view, requests[:3], statistics=statistics)
    assert relative(last_logits(view, requests), g["logits_before"]) < 1e-9
    for i, delta in enumerate(edit.deltas):
        assert relative(delta.materialize(dtype=torch.float64), g["deltaW"][i]) < 1e-4
    # the lower layer's keys are those of the unedited model
    assert relative(edit.keys[view.weight_name(1)], g["keys_unedited"][0].T) < 1e-9
    with view.applied(edit):
        assert relative(last_logits(view, requests), g["logits_after"]) < 1e-6


def test_rome_end_to_end(
    view: ModelView,
    requests: list[EditRequest],
    templates: tuple[str, ...],
    statistics: Mapping[int, SecondMoment],
) -> None:
    g = load("e2e_rome")
    editor = ROME(layers=(1,), variant="rome", templates=templates, **OPTIONS)
    together = editor.edit_each(view, requests[:3], statistics=statistics)
    for i, edit in enumerate(together):
        alone = editor.edit(view, requests[i], statistics=statistics)
        for found in (edit, alone):
            update = found.deltas[0].materialize(dtype=torch.float64)
            assert relative(update, g[f"r{i}_deltaW"]) < 1e-4
    with view.applied(together[0]):
        assert relative(last_logits(view, requests[:1])[0], g["r0_logits_after"]) < 1e-6


def test_emmet_end_to_end(
    view: ModelView,
    requests: list[EditRequest],
    templates: tuple[str, ...],
    statistics: Mapping[int, SecondMoment],
) -> None:
    g = load("e2e_emmet")
    editor = EMMET(layers=(2,), alpha=0.1, templates=templates, **OPTIONS)
    edit = editor.edit(view, requests[:3], statistics=statistics)
    assert relative(edit.deltas[0].materialize(dtype=torch.float64), g["deltaW"]) < 1e-4
    assert edit.report["solver"][0]["same_as"] == "MEMIT(lam=0.1)"
