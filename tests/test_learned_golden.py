"""Agreement of the learned editors with arrays that eric-mitchell/mend computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.editors.learned.gradients import Factors, Pairs, capture, nll, writing
from workbench.editors.learned.ke import Head
from workbench.editors.learned.learner import Learner, sizes
from workbench.editors.learned.mend import MendLearner, MendSettings
from workbench.editors.learned.texts import Texts, logits_of
from workbench.editors.learned.transforms import Shape, Transform
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.trace import frozen

GOLDEN = Path(__file__).parent / "golden"
TRANSFORMS = {
    "nonorm_combine_id": "both",
    "norm_combine_id_modes3": "both",
    "norm_combine_xavier": "both",
    "norm_twosided_id": "apart",
    "norm_xonly_id": "x",
}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {k: arrays[k] for k in arrays.files}


def as_tensor(a: np.ndarray) -> Tensor:
    return torch.as_tensor(a).float()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def put(layer: torch.nn.Module, g: dict[str, np.ndarray], prefix: str) -> None:
    """Give a layer the reference's parameters."""
    names = {"u": "u", "v": "v", "bias": "bias", "scale": "mode_scale.weight"}
    names["shift"] = "mode_shift.weight"
    with torch.no_grad():
        for own, theirs in names.items():
            if f"{prefix}.{theirs}" in g:
                getattr(layer, own).copy_(as_tensor(g[f"{prefix}.{theirs}"]))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name: str) -> None:
    g = load(f"mend_transform_{name}")
    shape = Shape(
        rank=int(g["rank"]),
        norm=bool(g["norm"]),
        identity="xavier" not in name,
        factors=TRANSFORMS[name],
    )
    network = Transform(7, 5, max(1, int(g["n_modes"])), shape, torch.Generator())
    nets = ["mlp"] if shape.factors == "both" else ["mlp1", "mlp2"]
    for part, net in zip(network.parts, nets, strict=False):
        for i, layer in enumerate(part):  # type: ignore[arg-type]
            put(layer, g, f"param_{net}.layers.{i}")
    for batch in range(3):
        x = as_tensor(g["u_batches"])[batch].flatten(0, 1)
        delta = as_tensor(g["delta_batches"])[batch].flatten(0, 1)
        kept = (x != 0).any(-1) & (delta != 0).any(-1)
        x, delta = x[kept], delta[kept]
        network.train(batch < 2)
        mode = torch.full((len(x),), max(0, int(g["param_idx"])))
        with torch.no_grad():
            x_new, delta_new = network(x, delta, mode)
        if batch < 2 and shape.norm:
            after = f"after_train_batch{batch}"
            for ours, theirs in ((network.x_norm, "u"), (network.delta_norm, "v")):
                assert int(ours.count) == int(g[f"{after}_k"][0])
                assert relative(ours.mean, as_tensor(g[f"{after}_{theirs}_mean"])) < 1e-5
                assert relative(ours.squares, as_tensor(g[f"{after}_{theirs}_s"])) < 1e-5
                assert relative(ours.deviation(), as_tensor(g[f"{after}_{theirs}_std"])) < 1e-5
    assert relative(x_new, as_tensor(g["eval_x_tilde"])) < 1e-6
    assert relative(delta_new, as_tensor(g["eval_delta_tilde"])) < 1e-6
    assert relative(delta_new.T @ x_new, as_tensor(g["eval_update_linear_ji"])) < 1e-6


@pytest.mark.parametrize("name", ["6x9", "9x6"])
def test_gates(name: str) -> None:
    """KE's gates in factors are the reference's dense formula."""
    g = load(f"ke_conditioned_parameter_{name}")
    gradient = as_tensor(g["grad"]).double()
    d_out, d_in = gradient.shape
    head = Head(10, 8, d_out, d_in).double()
    with torch.no_grad():
        for layer, i in ((head.first, 0), (head.last, 2)):
            prefix = f"param_conditioners.{i}"
            layer.bias.copy_(torch.as_tensor(g[f"{prefix}.bias"]))
            weight = layer.parametrizations.weight
            weight.original0.copy_(torch.as_tensor(g[f"{prefix}.weight_g"]))
            weight.original1.copy_(torch.as_tensor(g[f"{prefix}.weight_v"]))
        gates = head(torch.as_tensor(g["cond"]))
    u, s, v = torch.linalg.svd(gradient, full_matrices=False)
    pairs = Pairs(v, (u * s).T, torch.zeros(len(s), dtype=torch.long))
    parts = gates.gated(pairs, pairs.lesson), gates.added(torch.zeros(1, dtype=torch.long))
    found = sum(p.dense() for p in parts)
    assert relative(found, as_tensor(g["update"]).double()) < 1e-6


# -------------------------------------------------------------------- end to end


@pytest.fixture
def view() -> ModelView:
    folder = GOLDEN / "tiny_model"
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return open_view(model, AutoTokenizer.from_pretrained(folder), name="golden")


def edit_texts(g: dict[str, np.ndarray]) -> Texts:
    """The reference's one edit; only its answer has labels."""
    ids, labels = torch.as_tensor(g["input_ids"]), torch.as_tensor(g["labels"])
    row, column = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    return Texts(
        requests=(EditRequest(prompt="as recorded", target_new="as recorded"),),
        inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        lengths=None,
        row=row,
        column=column,
        label=labels[row, column + 1],
        answer=torch.ones_like(row, dtype=torch.bool),
    )


def check_edit(
    view: ModelView, g: dict[str, np.ndarray], factors: dict[str, Factors], tol: float
) -> None:
    """Updates, and what the edited model says."""
    texts = edit_texts(g)
    for name in g["inner_params"]:
        change = factors[name].left[0].T @ factors[name].right[0]
        assert relative(change.T, as_tensor(g[f"delta_{name}"])) < tol  # stored (in, out)
    with torch.no_grad(), writing(view, factors):
        loss = nll(logits_of(view, texts), texts.label).mean()
        ids = torch.as_tensor(g["probe_ids"])
        said = view.model(ids).logits[:, -1]
    assert float(loss) == pytest.approx(float(g["nll_after"]), abs=1e-4)
    assert relative(said, as_tensor(g["probe_logits_last_after"])) < tol


@pytest.mark.parametrize("kind", ["id", "rand"])
def test_mend_end_to_end(view: ModelView, kind: str) -> None:
    g = load(f"e2e_mend_{kind}")
    names = tuple(str(n) for n in g["inner_params"])
    settings = MendSettings(matrices=names, rank=6, norm=kind == "rand", ascent=True, edit_lr=0.01)
    learner: Learner = MendLearner(sizes(view, names), settings)
    for network, group in zip(learner.networks, learner.groups, strict=True):  # type: ignore[call-overload]
        d_in, d_out = sizes(view, names)[group[0]]
        for i, layer in enumerate(network.parts[0]):
            put(layer, g, f"param_({d_in}, {d_out}).mlp.layers.{i}")
        for norm, which in ((network.x_norm, "u"), (network.delta_norm, "v")):
            if kind == "rand":
                norm.count.fill_(2)
                norm.mean.copy_(as_tensor(g[f"stat_({d_in}, {d_out})_{which}_mean"]))
                norm.squares.copy_(as_tensor(g[f"stat_({d_in}, {d_out})_{which}_std"]) ** 2)
    texts = edit_texts(g)
    with torch.no_grad():
        before = nll(logits_of(view, texts), texts.label).mean()
    assert float(before) == pytest.approx(float(g["nll_before"]), abs=1e-5)
    with frozen(view.model):
        made = learner.eval().rewrite(view, texts, n_lessons=1)
    check_edit(view, g, {n: f.detached() for n, f in made.factors.items()}, 1e-4)
    if kind == "id":  # a plain step, upward
        gradient = made.gradients.pairs[names[0]].dense()
        assert relative(gradient.T, as_tensor(g[f"true_grad_{names[0]}"])) < 1e-5
        assert float(g["nll_after"]) > float(g["nll_before"])


@pytest.mark.parametrize(("file", "steps"), [("e2e_enn", 1), ("e2e_enn2", 3)])
def test_gradient_steps_end_to_end(view: ModelView, file: str, steps: int) -> None:
    g = load(file)
    names = tuple(str(n) for n in g["inner_params"])
    assert int(g["n_edit_steps"]) == steps
    written: dict[str, Factors] = {}
    with frozen(view.model):
        for _ in range(steps):
            found = capture(view, edit_texts(g), names, n_lessons=1, written=written)
            for name, rate in zip(names, g["edit_lrs"], strict=True):
                step = Factors.of(found.pairs[name], 1)
                step = Factors(step.left * -float(rate), step.right)
                written[name] = written[name].joined(step) if name in written else step
    check_edit(view, g, written, 1e-4)
