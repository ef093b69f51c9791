"""Agreement with arrays that the reference implementations computed (tests/golden/README.md).

Closed forms are compared in the unit-gain linear world of the files: what a layer writes reaches
the target layer unchanged. End-to-end runs use the files' own four-block GPT-2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.editors import EMMET, MEMIT, NSE, ROME, AlphaEdit
from workbench.editors.locate.alphaedit import null_space
from workbench.editors.locate.contexts import contexts
from workbench.editors.locate.nse import _Rounds, unpack_bits
from workbench.editors.locate.rome import rank_one
from workbench.editors.locate.solvers import equality, ridge, ridge_after, rome_direction
from workbench.editors.locate.targets import optimize_targets
from workbench.edits import WeightEdit
from workbench.facts import EditRequest
from workbench.linalg import Grown, cholesky
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


@pytest.mark.parametrize("name", ["memitseq_N04_L1_lam2", "memitseq_N04_L2_lam2"])
def test_sequential_memit_with_accumulated_keys(name: str) -> None:
    g = load(name)
    n_layers = len(g["C"])
    grown = [Grown(cholesky(c), float(g["lam"])) for c in g["C"]]
    hidden = g["H0"].clone()
    for batch in (0, 1):
        columns = g[f"batch{batch}_ids"]
        for layer in range(n_layers):
            keys = g["K"][layer][:, columns]
            residual = (g["Z"] - hidden)[:, columns] / (n_layers - layer)
            update = residual @ ridge_after(grown[layer], keys).T
            assert relative(update, g[f"batch{batch}_deltaW"][layer]) < 1e-6
            hidden = hidden + update @ g["K"][layer]
        for layer in range(n_layers):
            grown[layer].append(g["K"][layer][:, columns])


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


# ---------------------------------------------------------------------- sequences


class LinearWorld:
    """The files' world as a view and a sweep: what a layer writes reaches the top unchanged."""

    def __init__(self, g: dict[str, Tensor], columns: Tensor, stack: tuple = ()) -> None:
        self.g, self.columns, self.layers = g, columns, tuple(range(len(g["C"])))
        self.stack, self.cache, self.fingerprint = stack, {}, "world"
        self.dtype, self.d_mlp = torch.float64, g["K"].shape[1]
        self.shown: dict[str, Tensor] = {}
        self.hidden = g["H0"]

    # as a view
    def weight_name(self, layer: int) -> str:
        return f"w{layer}"

    def applied(self, *edits: WeightEdit) -> AbstractContextManager[None]:
        deltas = [d for e in (*self.stack, *edits) for d in e.deltas]
        self.shown = {f"w{x}": torch.zeros_like(self.g["W"][x]) for x in self.layers}
        for d in deltas:
            self.shown[d.parameter] = self.shown[d.parameter] + d.materialize(dtype=torch.float64)
        return nullcontext()

    # as a sweep over the batch, or some of its requests
    def take(self, which: list[int]) -> LinearWorld:
        small = LinearWorld(self.g, self.columns[which], self.stack)
        small.shown, small.cache = self.shown, self.cache
        return small

    def restart(self) -> None:
        self.hidden = self.g["H0"] + sum(self.shown[f"w{x}"] @ self.g["K"][x] for x in self.layers)

    def enter(self, layer: int) -> Tensor:
        self.layer = layer
        return self.g["K"][layer][:, self.columns]

    def keys(self) -> dict[int, Tensor]:
        return {x: self.enter(x) for x in self.layers}

    def at_target(self) -> Tensor:
        return self.hidden[:, self.columns]

    def residual(self, layer: int, z: Tensor, remaining: int) -> tuple[Tensor, Tensor]:
        gap = z - self.at_target()
        return gap, gap / remaining

    def update(self, residual: Tensor, x: Tensor) -> None:
        self.hidden = self.hidden + residual @ x.T @ self.g["K"][self.layer]


@pytest.mark.parametrize(
    "name",
    ["nse_N04_L1_p1_lam2_iters2", "nse_N06_L2_p0.8_lam0.5_iters4", "nse_N16_L1_p0.5_lam15_iters3"],
)
def test_nse_in_rounds(name: str) -> None:
    g = load(name)
    editor = NSE(
        layers=tuple(range(len(g["C"]))),
        lam=float(g["lam"]),
        neuron_threshold=float(g["neuron_threshold"]),
        alpha=float(g["alpha"]),
        upper_bound=float(g["upper_bound"]),
        max_iterations=int(g["max_iterations"]),
        selection="repo",
    )
    moments = {
        x: SimpleNamespace(matrix=c, factor=cholesky(c))
        for x, c in zip(editor.layers, g["C"], strict=True)
    }
    logged = sorted(k.removesuffix("_selected") for k in g if k.endswith("_selected"))
    stack: tuple[WeightEdit, ...] = ()
    for batch in (0, 1):
        columns = g[f"batch{batch}_ids"]
        world = LinearWorld(g, columns, stack)
        run = _Rounds(editor, world, world, moments, g["Z"][:, columns])  # type: ignore[arg-type]
        deltas = run.write()
        total = torch.stack([d.materialize(dtype=torch.float64) for d in deltas])
        assert relative(total, g[f"batch{batch}_deltaW"]) < 1e-6
        for row in run.layer_rows:
            key = logged.pop(0)
            assert row["round"] == int(g[f"{key}_round"]) and row["layer"] == int(g[f"{key}_layer"])
            assert torch.equal(unpack_bits(row["selected"]), g[f"{key}_selected"].sort().values)
            assert torch.equal(columns[row["requests"]], g[f"{key}_requests"])
        keys = {f"w{x}": k for x, k in run.final_keys.items()}
        edit = WeightEdit(tuple(deltas), (), "NSE", {"batch": batch}, "world", keys=keys)
        stack = (*stack, edit)
    assert not logged


@pytest.mark.parametrize(
    "name", ["alphaedit_N01_L1_L210", "alphaedit_N04_L3_L210", "alphaedit_N08_L2_L21"]
)
def test_alphaedit_in_sequence(name: str) -> None:
    g = load(name)
    n_layers = len(g["C"])
    spaces = [
        null_space(
            SimpleNamespace(matrix=c, layer=x, n_tokens=1),  # type: ignore[arg-type]
            float(g["threshold"]),
        )
        for x, c in enumerate(g["C"])
    ]
    assert [s.basis.shape[1] for s in spaces] == g["null_rank"].tolist()
    for space, projector in zip(spaces, g["P"], strict=True):
        assert relative(space.basis @ space.basis.T, projector) < 1e-9
    bases = [s.basis for s in spaces]
    grown = [Grown(cholesky(torch.eye(q.shape[1], dtype=q.dtype)), float(g["L2"])) for q in bases]
    hidden = g["H0"].clone()
    for batch in (0, 1, 2):
        columns = g[f"batch{batch}_ids"]
        for x in range(n_layers):
            keys = bases[x].T @ g["K"][x][:, columns]
            residual = (g["Z"] - hidden)[:, columns] / (n_layers - x)
            update = residual @ (bases[x] @ ridge_after(grown[x], keys)).T
            assert relative(update, g[f"batch{batch}_deltaW"][x]) < 1e-9
            hidden = hidden + update @ g["K"][x]
        for x in range(n_layers):
            grown[x].append(bases[x].T @ g["K"][x][:, columns])


def in_sequence(
    editor: NSE | AlphaEdit,
    view: ModelView,
    requests: list[EditRequest],
    statistics: Mapping[int, SecondMoment],
    g: dict[str, Tensor],
) -> None:
    """Two batches of three on one stack, compared with the file; the view is reset."""
    try:
        for batch in (0, 1):
            part = requests[3 * batch : 3 * batch + 3]
            assert relative(last_logits(view, part), g[f"batch{batch}_logits_before"]) < 1e-6
            edit = editor.edit(view, part, statistics=statistics)
            for i, delta in enumerate(edit.deltas):
                update = delta.materialize(dtype=torch.float64)
                assert relative(update, g[f"batch{batch}_deltaW"][i]) < 1e-4
            view.push(edit)
            assert relative(last_logits(view, part), g[f"batch{batch}_logits_after"]) < 1e-6
    finally:
        view.reset()


def test_nse_end_to_end(
    view: ModelView,
    requests: list[EditRequest],
    templates: tuple[str, ...],
    statistics: Mapping[int, SecondMoment],
) -> None:
    g = load("e2e_nse")
    editor = NSE(
        layers=(1, 2),
        lam=float(g["lam"]),
        neuron_threshold=float(g["neuron_threshold"]),
        alpha=float(g["alpha"]),
        max_iterations=int(g["max_iterations"]),
        selection="repo",
        rewind=False,  # the file's second batch was trained on the edited weights
        templates=templates,
        **OPTIONS,
    )
    targets = editor._targets(view, requests[:3], editor._contexts(view))
    assert relative(targets.z.T, g["batch0_z"]) < 1e-5
    in_sequence(editor, view, requests, statistics, g)


def test_alphaedit_end_to_end(
    view: ModelView,
    requests: list[EditRequest],
    templates: tuple[str, ...],
    statistics: Mapping[int, SecondMoment],
) -> None:
    g = load("e2e_alphaedit")
    editor = AlphaEdit(layers=(1, 2), l2=float(g["L2"]), templates=templates, **OPTIONS)
    in_sequence(editor, view, requests, statistics, g)
