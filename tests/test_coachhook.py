"""CoachHook: gates, hook layers on a model, and agreement with the authors' code (O15, O16)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import GOLDEN, OPTIONS, load, relative
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import workbench as wb
from workbench.adapters import Context, HookLayer, gate_scores, opened
from workbench.edits import Adapter, AdapterEdit, load_edit
from workbench.errors import (
    EditMismatchError,
    NumericalError,
    OptionError,
    UnsupportedEditorError,
)
from workbench.linalg import Grown, cholesky
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.stats import SecondMoment

FAMILIES = ("gpt2", "llama", "opt", "gptj", "bloom", "phi")
TEMPLATES = ("{}", "I saw it. {}")
REQUESTS = [
    wb.EditRequest(
        prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English"
    ),
    wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome"),
]
LATER = wb.EditRequest(prompt="{} plays the", subject="Miles Davis", target_new="piano")


def make(**options: object) -> wb.CoachHook:
    plain = {"layers": (0, 1), "steps": 6, "lr": 0.3, "templates": TEMPLATES, "lam": 0.5}
    return wb.CoachHook(**{"corpus": "identity", **plain, **options})  # type: ignore[arg-type]


def logits(view: ModelView, text: str) -> Tensor:
    ids = torch.tensor([view.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return view.model(ids).logits[0]


def hooks(view: ModelView) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.model.modules())


# ---------------------------------------------------------------------- gates


@pytest.mark.parametrize("name", ["B1_T9", "B2_T2", "B3_T17"])
def test_gates_as_released(name: str) -> None:
    g = load(f"coachhook_hooks_{name}")
    u, s, v = torch.linalg.svd(g["W_new"] - g["W0"], full_matrices=False)
    hook = HookLayer(u * s, v.T, 0.0, "reference")
    y = g["x"] @ g["W0"].T + g["bias"]
    everything = torch.ones(g["x"].shape[:2], dtype=torch.bool)
    context = Context(everything, everything)
    for key in ("neg", "zero", "one", "2p2", "pos"):
        alpha = float(g[f"alpha_{key}"])
        out = dataclasses.replace(hook, alpha=alpha)(0, g["x"], y, context)
        assert relative(out, g[f"out_alpha_{key}"]) < 1e-9
    z = hook.scores(0, hook.difference(g["x"]).norm(dim=-1), context)
    assert torch.allclose(z, g["z_scores"], atol=1e-8)
    assert torch.allclose(z.amax(1), g["max_z_per_row"].double(), atol=1e-5)
    for start in (2.2, 0.5, -1):
        after = min(start, float(z.amax(1).min()))
        assert after == pytest.approx(float(g[f"alpha_after_from_{start}"]), abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    nu=st.lists(st.floats(0, 1e3), min_size=2, max_size=12),
    pad=st.integers(0, 4),
    more=st.lists(st.floats(0, 1e3), max_size=4),
)
def test_neither_padding_nor_what_follows_moves_a_gate(
    nu: list[float], pad: int, more: list[float]
) -> None:  # O16
    alone = torch.tensor([nu], dtype=torch.float64)
    real = torch.ones_like(alone, dtype=torch.bool)
    z, _ = gate_scores(alone, real, real)
    n = len(nu)
    longer = torch.cat([alone, torch.tensor([more], dtype=torch.float64)], 1)
    wide = torch.nn.functional.pad(longer, (0, pad), value=7.0)
    mask = torch.arange(wide.shape[1])[None] < n + len(more)
    prompt = torch.arange(wide.shape[1])[None] < n
    both = torch.cat([wide, wide.flip(1) * 3])  # another row in the batch
    found, _ = gate_scores(both, mask.expand(2, -1), prompt.expand(2, -1))
    assert torch.allclose(found[0, :n], z[0], rtol=1e-12, atol=0)
    assert (found[0, n + len(more) :] == -math.inf).all()
    assert float(z.max()) <= (n - 1) / math.sqrt(n) + 1e-9
    # token by token after the prompt gives what one pass gives
    step, state = gate_scores(alone, real, real)
    for i, value in enumerate(more):
        one = torch.tensor([[value]], dtype=torch.float64)
        yes, no = torch.ones_like(one, dtype=torch.bool), torch.zeros_like(one, dtype=torch.bool)
        step, state = gate_scores(one, yes, no, state)
        assert torch.allclose(step[0, 0], found[0, n + i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("values", [[0.0] * 9, [2.5] * 5, [1.0]])
def test_equal_differences_and_single_tokens_stay_closed(values: list[float]) -> None:
    nu = torch.tensor([values], dtype=torch.float64)
    real = torch.ones_like(nu, dtype=torch.bool)
    z, _ = gate_scores(nu, real, real)
    assert (z == -math.inf).all() and not opened(z, -100.0).any() and opened(z, -math.inf).all()


# ---------------------------------------------------------------------- on a model


@pytest.mark.parametrize("family", FAMILIES)
def test_thresholds_at_their_ends(make_view, family: str) -> None:  # O15
    view = make_view(family, torch.float64)
    text = "The mother tongue of Danielle Darrieux is"
    plain = logits(view, text)
    edit = make().edit(view, REQUESTS)

    def with_alpha(alpha: float, *, empty: bool = False) -> AdapterEdit:
        adapters = tuple(
            Adapter(
                a.parameter,
                a.kind,
                {k: t * 0 if empty else t for k, t in a.tensors.items()},
                {**a.options, "alpha": alpha},
            )
            for a in edit.adapters
        )
        return dataclasses.replace(edit, adapters=adapters)

    with view.applied(with_alpha(math.inf)):
        assert torch.equal(logits(view, text), plain)
    for alpha in (-3.0, 0.0, 2.2):
        with view.applied(with_alpha(alpha, empty=True)):
            assert torch.equal(logits(view, text), plain)
    weights = wb.WeightEdit(
        tuple(
            wb.Delta.low_rank(a.parameter, a.tensors["left"], a.tensors["right"])
            for a in edit.adapters
        ),
        (),
        "open",
        {},
        view.fingerprint,
    )
    with view.applied(weights):
        opened_everywhere = logits(view, text)
    with view.applied(with_alpha(-math.inf)):
        assert relative(logits(view, text), opened_everywhere) < 1e-9
    assert float((opened_everywhere - plain).abs().max()) > 1e-6
    assert hooks(view) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_without_hooks_it_is_accumulated_memit(make_view, family: str) -> None:  # O15, C5
    view = make_view(family, torch.float64)
    options = {k: v for k, v in make().config().items() if k in wb.MEMIT(layers=(0,)).config()}
    memit = wb.MEMIT.from_config({**options, "accumulate": True})
    plain = make(hooks=False)
    always = make(alpha_z=-math.inf)
    for batch in (REQUESTS, [LATER]):
        a, b = plain.edit(view, batch), memit.edit(view, batch)
        for x, y in zip(a.pieces, b.pieces, strict=True):
            first, second = (d.materialize(dtype=torch.float64) for d in (x, y))
            assert relative(first, second) < 1e-9
        view.push(b)
    with view.as_if():
        first = always.edit(view, REQUESTS)
        with view.applied(first):
            second = always.edit(view, [LATER])
    for edit, reference in zip((first, second), view.stack, strict=True):
        for x, y in zip(edit.pieces, reference.pieces, strict=True):
            left, right = x.tensors["left"], x.tensors["right"]
            tol = 1e-6 if family == "bloom" else 1e-8  # Bloom's attention is float32
            assert relative(left @ right.T, y.materialize(dtype=torch.float64)) < tol


@pytest.mark.parametrize("family", FAMILIES)
def test_every_prompt_of_a_batch_opens_its_gates(make_view, family: str) -> None:
    """Short prompts (fewer than seven tokens) too, which the first threshold shuts out."""
    view = make_view(family, torch.float64)
    edit = make().edit(view, REQUESTS)
    view.push(edit)
    alphas = {r["layer"]: r["alpha"] for r in edit.report["alpha"]}
    assert all(r["alpha"] < r["alpha_before"] == 2.2 for r in edit.report["alpha"])
    for request in REQUESTS:
        ids = torch.tensor([view.tokenizer(request.text)["input_ids"]])
        pivot = wb.tokens.encode_request(view.tokenizer, request)[0].pivot
        gates: dict = {}
        with torch.no_grad(), view.reading(gates=gates):
            view.model(ids)
        for layer in (0, 1):
            assert gates[layer].alpha == alphas[layer]
            assert bool(gates[layer].open[0, pivot])
            assert float(gates[layer].z[0, pivot]) >= alphas[layer]
    # and the weakest sits a margin above the threshold: recorded as it is at inference
    weakest = min(r["weakest"] - r["alpha"] for r in edit.report["alpha"])
    assert weakest == pytest.approx(1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_company_do_not_change_an_edited_prompt(make_view, family: str) -> None:  # O16
    view = make_view(family)
    view.push(make().edit(view, REQUESTS))
    rows = [view.tokenizer(r.text)["input_ids"] for r in (*REQUESTS, LATER)]
    width = max(map(len, rows)) + 3
    ids = torch.tensor([r + [5] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    with torch.no_grad():
        together = view.model(input_ids=ids, attention_mask=mask).logits
        for i, row in enumerate(rows):
            alone = view.model(torch.tensor([row])).logits[0]
            assert torch.allclose(together[i, : len(row)], alone, atol=2e-5)


@pytest.mark.parametrize("generation", ["running", "off"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_equals_one_pass(make_view, family: str, generation: str) -> None:
    """Generation uses the edit, and each token is judged as teacher forcing judges it."""
    view = make_view(family, torch.float64)
    edit = make(generation=generation, lam=1e-6, lr=1.0, alpha_z=0.5).edit(view, REQUESTS)
    prompts = [r.text for r in REQUESTS]
    view.push(edit)
    rows = [view.tokenizer(p)["input_ids"] for p in prompts]
    for row in rows:
        ids = torch.tensor([row])
        out = view.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        stepwise = torch.stack(out.logits)[:, 0]
        with torch.no_grad(), view.reading(torch.tensor([len(row)])):
            whole = view.model(out.sequences[:, :-1]).logits[0, len(row) - 1 :]
        assert relative(whole, stepwise.double()) < 1e-6  # generate hands out float32
    with torch.no_grad():
        plain = view.model(torch.tensor([rows[0]])).logits[0, -1]
    with view.pristine(), torch.no_grad():
        assert relative(plain, view.model(torch.tensor([rows[0]])).logits[0, -1]) > 1e-6


def test_scores_judge_a_candidate_by_its_prompt(make_view) -> None:
    """Two-token targets: the gate of the prompt is the same whichever candidate follows."""
    view = make_view("llama", torch.float64)
    view.push(make(lam=1e-6, lr=1.0).edit(view, REQUESTS))
    text = REQUESTS[0].text
    single = {t: score_of(view, text, t) for t in ("English", "French and English")}
    probes = (
        wb.Probe(kind="paraphrase", prompt=text, target="English", foil="French and English"),
    )
    case = wb.EditCase(request=REQUESTS[0], probes=probes, case_id=0)
    row = wb.score(view, [case], kinds=["paraphrase"]).iloc[0]
    assert row["nll_target"] == pytest.approx(single["English"], rel=1e-9)
    assert row["nll_foil"] == pytest.approx(single["French and English"], rel=1e-9)


def score_of(view: ModelView, prompt: str, target: str) -> float:
    ids = view.tokenizer(prompt)["input_ids"]
    whole = view.tokenizer(f"{prompt} {target}")["input_ids"]
    assert whole[: len(ids)] == ids
    with torch.no_grad(), view.reading(torch.tensor([len(ids)])):
        logp = view.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    labels = torch.tensor(whole[len(ids) :])
    at = logp[len(ids) - 1 : len(whole) - 1]
    return -float(at.gather(1, labels[:, None]).mean())


def test_it_stands_on_the_stack_like_any_edit(make_view, tmp_path) -> None:
    view = make_view("gpt2")
    before = {k: v.clone() for k, v in view.model.state_dict().items()}
    text = REQUESTS[0].text
    states = [logits(view, text)]
    for batch in (REQUESTS[:1], REQUESTS[1:], [LATER]):
        view.push(make().edit(view, batch))
        states.append(logits(view, text))
    assert all(torch.equal(v, before[k]) for k, v in view.model.state_dict().items())
    for n in range(4):
        with view.at(n):
            assert torch.equal(logits(view, text), states[n])
    files = [e.save(tmp_path / f"{i}.safetensors") for i, e in enumerate(view.stack)]
    view.pop()
    assert torch.equal(logits(view, text), states[2])
    view.reset()
    assert torch.equal(logits(view, text), states[0]) and hooks(view) == 0
    for file in files:
        view.push(load_edit(file))
    assert torch.equal(logits(view, text), states[3])
    with pytest.raises(OptionError, match="hook layers"):
        view.save_pretrained(tmp_path / "model")
    with pytest.raises(OptionError, match="beside the weights"):
        wb.export_peft(view.stack[0], view, tmp_path / "peft")
    with pytest.raises(UnsupportedEditorError, match="hook layer"):
        wb.MEMIT(layers=(1,), lam=1.0, templates=TEMPLATES, corpus="identity", steps=2).edit(
            view, [LATER]
        )
    above = wb.MEMIT(layers=(2,), lam=1.0, templates=TEMPLATES, corpus="identity", steps=2)
    view.push(above.edit(view, [LATER]))
    with view.pristine():
        below = dataclasses.replace(above, layers=(0,)).edit(view, REQUESTS)
    with pytest.warns(UserWarning, match="at or above|computed on a stack") as found:
        view.push(below)
    assert any("at or above" in str(w.message) for w in found)


def test_targets_are_trained_through_the_gates(make_view) -> None:
    """Replay on a view with hook layers equals a plain forward with the vector added."""
    view = make_view("llama", torch.float64)
    view.push(make(lam=1e-6, lr=1.0).edit(view, REQUESTS))
    editor = wb.MEMIT(layers=(2,), lam=1.0, templates=TEMPLATES, corpus="identity", steps=4, lr=0.3)
    found = editor._targets(view, REQUESTS, editor._contexts(view))
    for i, request in enumerate(REQUESTS):
        site = wb.trace.Site(2, "residual")
        row = wb.tokens.encode_request(view.tokenizer, request, ("{}",))[0]
        ids, length = torch.tensor([row.ids]), torch.tensor([row.target_start])
        with torch.no_grad(), view.reading(length), wb.trace.trace(view, [site]) as seen:
            view.model(ids)
        assert torch.allclose(seen[site][0, row.pivot], found.h0[:, i], atol=1e-9)
    last = [r for r in found.trace if r["request"] == 0][-1]
    prompts = wb.tokens.encode_request(view.tokenizer, REQUESTS[0], TEMPLATES)
    losses = []
    for p in prompts:
        add = {site: lambda h, c=p.pivot: add_at(h, c, found.delta[:, 0])}
        length = torch.tensor([p.target_start])
        with torch.no_grad(), view.reading(length), wb.trace.trace(view, write=add):
            logp = view.model(torch.tensor([p.ids])).logits[0].log_softmax(-1)
        at = logp[p.target_start - 1 : len(p.ids) - 1]
        losses.append(-at.gather(1, torch.tensor(p.target_ids)[:, None]).mean())
    assert float(torch.stack(losses).mean()) == pytest.approx(last["nll"], rel=1e-6)


def add_at(h: Tensor, column: int, vector: Tensor) -> Tensor:
    h = h.clone()
    h[:, column] += vector
    return h


def test_hook_layers_below_stay_at_work(make_view) -> None:
    """A batch at layer 2 is written on what hook layers at layer 0 make of its prompts."""
    view = make_view("llama", torch.float64)
    view.push(make(layers=(0,), lam=1e-6, lr=1.0).edit(view, REQUESTS))
    upper = make(layers=(1, 2))
    edit = upper.edit(view, [REQUESTS[0]])
    name = view.weight_name(1)
    with view.pristine():
        other = upper.edit(view, [REQUESTS[0]])
    assert relative(edit.keys[name], other.keys[name]) > 1e-6
    site, row = wb.trace.Site(1, "key"), wb.tokens.encode_request(view.tokenizer, REQUESTS[0])[0]
    with torch.no_grad(), wb.trace.trace(view, [site]) as seen:
        view.model(torch.tensor([row.prompt_ids]))
    bare = upper.with_options(templates=("{}",), steps=1).edit(view, [REQUESTS[0]])
    assert torch.allclose(bare.keys[name][:, 0], seen[site][0, row.pivot], atol=1e-9)
    view.push(edit)
    with pytest.raises(UnsupportedEditorError, match=r"layers \[1, 2\] have hook layers"):
        make(layers=(0, 3)).edit(view, [LATER])


def test_bad_adapters_are_refused(make_view) -> None:
    view = make_view("gpt2")
    edit = make().edit(view, REQUESTS)
    first = edit.adapters[0]

    def changed(**fields: object) -> AdapterEdit:
        return dataclasses.replace(edit, adapters=(dataclasses.replace(first, **fields),))

    bad = {k: t * math.nan for k, t in first.tensors.items()}
    for broken, error, message in (
        (changed(parameter="nowhere.weight"), EditMismatchError, "no module"),
        (changed(kind="riddle"), EditMismatchError, "riddle"),
        (changed(tensors={**first.tensors, "left": torch.zeros(3, 2)}), EditMismatchError, "shape"),
        (changed(tensors=bad), NumericalError, "NaN"),
    ):
        with pytest.raises(error, match=message):
            view.push(broken)
        assert view.stack == () and hooks(view) == 0


# ---------------------------------------------------------------------- the authors' numbers


@pytest.mark.parametrize("name", ["N04_L2_lam15", "N06_L3_lam2"])
def test_batches_in_the_linear_world(name: str) -> None:
    g = load(f"coachhook_batches_{name}")
    n_layers = len(g["C"])
    grown = [Grown(cholesky(c), float(g["lam"])) for c in g["C"]]
    hidden, weight = g["H0"].clone(), g["W"].clone()
    for batch in (0, 1, 2):
        columns = g[f"batch{batch}_ids"]
        for x in range(n_layers):
            keys = g["K"][x][:, columns]
            residual = (g["Z"] - hidden)[:, columns] / (n_layers - x)
            update = residual @ wb.editors.locate.solvers.ridge_after(grown[x], keys).T
            weight[x] += update
            hidden = hidden + update @ g["K"][x]
        assert relative(weight - g["W"], g[f"batch{batch}_new_weight"] - g["W"]) < 2e-5
        for x in range(n_layers):
            grown[x].append(g["K"][x][:, columns])


def test_end_to_end() -> None:
    """Three batches of two in order, with the released gate: weights and thresholds."""
    g = load("e2e_coachhook")
    folder = GOLDEN / "tiny_model"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    view = open_view(model, AutoTokenizer.from_pretrained(folder), name="golden")
    told = json.loads((GOLDEN / "e2e_requests.json").read_text())
    requests = [
        wb.EditRequest(
            prompt=r["prompt"], subject=r["subject"], target_new=r["target_new"]["str"].strip()
        )
        for r in told["requests"]
    ]
    templates = tuple(itertools.chain.from_iterable(told["context_templates"]))
    statistics = {
        layer: SecondMoment(
            layer=layer,
            matrix=load("e2e_covariance")["C"][layer - 1],
            mean=torch.zeros(view.d_mlp, dtype=torch.float64),
            n_tokens=10**6,
            fingerprint=view.fingerprint,
            source={},
            reservoir=torch.zeros(view.d_mlp, 0),
        )
        for layer in (1, 2)
    }
    editor = wb.CoachHook(
        layers=(1, 2), lam=float(g["lam"]), templates=templates, gate="reference",
        generation="off", alpha_from="prompt", margin=0.0, **OPTIONS,
    )  # fmt: skip
    for batch in range(3):
        edit = editor.edit(view, requests[2 * batch : 2 * batch + 2], statistics=statistics)
        view.push(edit)
        for layer in (1, 2):
            hook = view.adapters[layer]
            total = (hook.left @ hook.right.T).double()
            before = view.weight(layer).double()
            reference = g[f"batch{batch}_layer{layer}_new_weight"].double() - before
            assert relative(total, reference) < 1e-3
            assert hook.alpha == pytest.approx(
                float(g[f"batch{batch}_layer{layer}_alpha"]), abs=1e-3
            )
