"""GRACE beside models: what answers, what passes untouched, and what an edit is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from workbench.capabilities import orient
from workbench.editors.memory.behind import losses_of_values, only_behind
from workbench.editors.memory.examples import Examples, Place
from workbench.editors.memory.grace import PRESETS
from workbench.errors import EditMismatchError, OptionError
from workbench.memories import Codebook, written_columns
from workbench.model import ModelView
from workbench.tokens import pad_right
from workbench.trace import Site, trace

A = wb.EditRequest(prompt="The mother tongue of {} is", subject="Danielle Darrieux",
                   target_new="English")  # fmt: skip
B = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
C = wb.EditRequest(prompt="The house is old, however, and nobody knows who", target_new="Berlin")
OTHERS = ["In 1969 people walked on the", "LeBron James plays the sport of", "I saw it. The"]
FAST: dict[str, Any] = {"layers": (1,), "steps": 8, "lr": 0.1, "init": "warm"}


def editor(**options: Any) -> wb.GRACE:
    return wb.GRACE(**{**FAST, **options})


def suited(view: ModelView, *requests: wb.EditRequest) -> list[wb.EditRequest]:
    if not view.labels:
        return list(requests)
    return [dataclasses.replace(r, target_new=view.labels[i]) for i, r in enumerate(requests)]


def book_of(view: ModelView, layer: int = 1) -> Codebook:
    book = view.memory(view.weight_name(layer), Codebook)
    assert book is not None
    return book


def ids_of(view: ModelView, text: str) -> list[int]:
    return list(view.tokenizer(text)["input_ids"])


@torch.no_grad()
def logits(view: ModelView, rows: list[list[int]], *, left: bool = False,
           lengths: list[int] | None = None) -> list[Tensor]:  # fmt: skip
    """Logits of each row's own tokens."""
    ids, mask = pad_right([r[::-1] for r in rows] if left else rows)
    if left:
        ids, mask = ids.flip(1), mask.flip(1)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
    if view.kind == "decoder":
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    if view.kind == "encoder_decoder":
        inputs["decoder_input_ids"] = ids[:, :1] * 0 + 1
    told = None if lengths is None else torch.tensor(lengths)
    with view.reading(told):
        out = view.model(**inputs).logits
    if view.kind != "decoder":
        return [out[i].flatten() for i in range(len(rows))]
    return [out[i][mask[i]] for i in range(len(rows))]


# ---------------------------------------------------------------------- what it does


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_answers_inside_and_nothing_outside(make_view, family: str) -> None:
    view = make_view(family)
    requests = suited(view, A, B)
    before = [logits(view, [ids_of(view, t)])[0] for t in (*OTHERS, A.text)]
    edit = editor(epsilon=1e-3).edit(view, requests)
    with view.applied(edit):
        after = [logits(view, [ids_of(view, t)])[0] for t in (*OTHERS, A.text)]
        draw = torch.get_rng_state()
        again = logits(view, [ids_of(view, A.text)])[0]
        assert torch.equal(draw, torch.get_rng_state())
        assert len(book_of(view)) == 2
    for was, now in zip(before[:-1], after[:-1], strict=True):
        assert torch.equal(was, now)  # to the bit
    assert not torch.equal(before[-1], after[-1]) and torch.equal(after[-1], again)
    assert torch.equal(logits(view, [ids_of(view, A.text)])[0], before[-1])


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_value_is_what_the_module_gives(make_view, family: str) -> None:
    view = make_view(family)
    edit = editor().edit(view, [A, B])
    ids = torch.tensor([ids_of(view, A.text)])
    with torch.no_grad(), view.applied(edit):
        value = book_of(view).value(0)
        with trace(view, [Site(1, "value")]) as seen:
            if family == "t5":
                view.model(input_ids=ids, decoder_input_ids=ids[:, :1])
            else:
                view.model(input_ids=ids)
        found = seen[Site(1, "value")][0]
    columns = range(ids.shape[1]) if family == "t5" else [ids.shape[1] - 1]
    assert all(torch.equal(found[c], value) for c in columns)
    if family == "llama":
        assert not torch.equal(found[-2], value)


def test_the_key_is_the_last_token_of_the_prompt(make_view) -> None:
    view = make_view("gpt2")
    edit = editor().edit(view, [A, C])
    for i, request in enumerate((A, C)):
        with torch.no_grad(), trace(view, [Site(1, "key")]) as seen:
            view.model(input_ids=torch.tensor([ids_of(view, request.text)]))
        key = seen[Site(1, "key")][0, -1]
        assert torch.allclose(edit.adapters[0].tensors["keys"][i], key, atol=1e-5)


@pytest.mark.parametrize("replacement", ["last", "all", "prompt"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_and_batches_change_nothing(make_view, family: str, replacement: str) -> None:
    view = make_view(family)
    view.push(editor(replacement=replacement, steps=3).edit(view, [A, B]))
    rows = [ids_of(view, t) for t in (A.text, OTHERS[0], B.text)]
    alone = [logits(view, [row])[0] for row in rows]
    for left in (False, True):
        for one, batched in zip(alone, logits(view, rows, left=left), strict=True):
            assert torch.allclose(one, batched, atol=2e-4), (left, replacement)
    # with an answer behind the prompt, the prompt still decides
    longer = logits(view, [[*rows[0], 7, 8, 9]], lengths=[len(rows[0])])[0]
    if replacement != "all":
        assert torch.allclose(longer[: len(rows[0])], alone[0], atol=2e-4)


def test_padding_of_encoders(make_view) -> None:
    for family in ("t5", "bert"):
        view = make_view(family)
        view.push(editor(steps=3).edit(view, suited(view, A, B)))
        rows = [ids_of(view, t) for t in (A.text, OTHERS[0], B.text)]
        for one, batched in zip((logits(view, [r])[0] for r in rows), logits(view, rows),
                                strict=True):  # fmt: skip
            assert torch.allclose(one, batched, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_entry_however_the_prompt_comes(make_view, dtype: torch.dtype) -> None:
    """Alone, padded left or right, with an answer after it: the same entry answers."""
    view = make_view("llama", dtype)
    view.push(editor(epsilon=0.05, steps=2).edit(view, [A, B, C]))
    book = book_of(view)
    fired: list[list[int]] = []
    real = Codebook.fired

    def spy(self: Codebook, queries: Tensor) -> Tensor:
        found = real(self, queries)
        fired.append(found.tolist())
        return found

    rows = [ids_of(view, r.text) for r in (A, B, C)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codebook, "fired", spy)
        for row in rows:
            logits(view, [row])
            logits(view, [[*row, 7, 8]], lengths=[len(row)])
        logits(view, rows)
        logits(view, rows, left=True)
    singles = [[i] for i in range(3) for _ in range(2)]
    assert fired == [*singles, [0, 1, 2], [0, 1, 2]]
    assert book.settings.tolerance > 0


@pytest.mark.parametrize("replacement", ["last", "all", "prompt"])
def test_cached_generation_is_uncached_generation(make_view, replacement: str) -> None:
    view = make_view("llama")
    view.push(editor(replacement=replacement, steps=3).edit(view, [A, B]))
    rows = [ids_of(view, t) for t in (A.text, B.text, OTHERS[0])]
    ids, mask = pad_right([r[::-1] for r in rows])
    ids, mask = ids.flip(1), mask.flip(1).long()
    options: dict[str, Any] = {
        "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None,
        "return_dict_in_generate": True, "output_logits": True,
    }  # fmt: skip
    model: Any = view.model
    cached = model.generate(input_ids=ids, attention_mask=mask, **options)
    with view.reading(torch.tensor([len(r) for r in rows])):
        plain = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached.sequences, plain.sequences)
    for a, b in zip(cached.logits, plain.logits, strict=True):
        assert torch.allclose(a, b, atol=2e-4)
    with view.pristine():
        bare = model.generate(input_ids=ids, attention_mask=mask, **options)
    assert not torch.allclose(bare.logits[0][0], cached.logits[0][0], atol=1e-2)


def test_training_mode_is_not_editing(make_view) -> None:
    view = make_view("llama")
    view.push(editor().edit(view, A))
    row = ids_of(view, A.text)
    quiet = logits(view, [row])[0]
    view.model.train()
    assert torch.equal(logits(view, [row])[0], quiet)
    view.model.eval()
    assert len(book_of(view)) == 1


# ---------------------------------------------------------------------- what an edit is


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_together_is_one_after_another(make_view, family: str) -> None:
    view = make_view(family)
    requests = suited(view, A, B, C)
    make = editor(steps=6, init="cold")
    for request in requests:
        view.push(make.edit(view, request))
    again = dataclasses.replace(requests[0], target_true="German")  # trained once more
    view.push(make.edit(view, again))
    one_by_one = book_of(view)
    view.reset()
    view.push(make.edit(view, [*requests, again]))
    together = book_of(view)
    assert together.labels == one_by_one.labels and len(together) == 3
    assert torch.equal(together.ids, one_by_one.ids)
    assert torch.allclose(together.radii, one_by_one.radii, atol=1e-5)
    for i in range(3):
        assert torch.allclose(together.key(i), one_by_one.key(i), atol=1e-5)
        assert torch.allclose(together.value(i), one_by_one.value(i), atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_skipping_the_blocks_below_changes_no_loss(make_view, family: str) -> None:
    view = make_view(family)
    requests = suited(view, A, B)
    place = Place(2, view.weight_name(2))
    fast = Examples(view, requests, place)
    slow = Examples(view, requests, Place(0, place.parameter))
    value = torch.zeros(view.d_model, requires_grad=True)
    found = []
    for examples in (fast, slow):
        losses = examples.losses(lambda x, y, context: y + value)
        (grad,) = torch.autograd.grad(losses.sum(), value)
        found.append((losses.detach(), grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)
    assert all("forward" not in view.block(x).__dict__ for x in range(view.n_layers))
    expected = wb.score(view, requests)["nll_target"].to_numpy()
    assert found[0][0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("site", ["down", "up"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "bloom", "opt", "qwen3"])
def test_running_from_the_prompts_end_on_changes_no_loss(make_view, family: str, site: str) -> None:
    """Prompts of several lengths, with a codebook beside the module that answers one of them."""
    view = make_view(family)
    make = editor(layers=(2,), site=site)
    if make.unsupported(view) or view.up_name(2) is None:
        pytest.skip(f"{family} has no such module")
    place, settings = make.place(view), make.settings(view)
    plain = wb.score(view, [A, B, C])["nll_target"]
    for before in (None, A):
        if before is not None:
            view.push(make.edit(view, before))
        assert only_behind(view, place, settings)
        width = orient(view.module_of(place.parameter)).shape[0]
        value = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
        value.requires_grad_()
        slow = Examples(view, [A, B, C], place)

        def write(x: Tensor, y: Tensor, context: Any, value: Tensor = value) -> Tensor:
            where = written_columns(settings, context)
            return torch.where(where[..., None], value[:, None], y)

        wanted = slow.losses(write)
        (grad,) = torch.autograd.grad(wanted.sum(), value)
        with losses_of_values(view, [A, B, C], place, settings) as losses:
            found = losses(value)
            (ours,) = torch.autograd.grad(found.sum(), value)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert torch.allclose(ours, grad, atol=1e-5)
        assert float(grad.abs().max()) > 1e-4
        assert (found.detach().numpy() != pytest.approx(plain.to_numpy(), abs=1e-4)) or site == "up"


def test_whole_prompts_are_run_where_more_than_the_end_is_written(make_view) -> None:
    view = make_view("gpt2")
    make = editor()
    place, settings = make.place(view), make.settings(view)
    assert not only_behind(view, place, dataclasses.replace(settings, replacement="all"))
    with view.applied(wb.FT(layers=(2,), steps=1).edit(view, A), make.edit(view, B)):
        assert not only_behind(view, place, settings)  # the memory cannot be left out alone
    other = editor(layers=(2,))
    with view.applied(other.edit(view, B)):
        assert not only_behind(view, place, settings)
    for family in ("t5", "bert"):
        assert not only_behind(make_view(family), place, settings)


def test_a_prompt_can_be_edited_again(make_view) -> None:
    view = make_view("gpt2")
    make = editor(steps=100, lr=1.0)
    view.push(make.edit(view, A))
    other = dataclasses.replace(A, target_new="Spanish")
    edit = make.edit(view, other)
    assert [e["op"] for e in edit.report["events"]] == ["overwrite"]
    before = {r: wb.score(view, r)["nll_target"].iloc[0] for r in (A, other)}
    view.push(edit)
    assert len(book_of(view)) == 1
    after = {r: wb.score(view, r)["nll_target"].iloc[0] for r in (A, other)}
    assert after[other] < before[other] - 0.3 and after[A] > before[A] + 0.3
    view.pop()
    assert wb.score(view, A)["nll_target"].iloc[0] == before[A]


def test_undo_drop_and_files(make_view, tmp_path) -> None:
    view = make_view("gpt2")
    make = editor(epsilon=1e-3)
    row = ids_of(view, B.text)
    bare = logits(view, [row])[0]
    view.push(make.edit(view, A))
    view.push(make.edit(view, B))
    both = logits(view, [row])[0]
    later = view.stack[1]
    view.drop(0)
    assert len(book_of(view)) == 1 and torch.equal(logits(view, [row])[0], both)
    again = wb.load_edit(later.save(tmp_path / "b.safetensors"))
    view.reset()
    assert torch.equal(logits(view, [row])[0], bare)
    with pytest.warns(UserWarning, match="stack of 1 edits"):
        view.push(again)
    assert torch.equal(logits(view, [row])[0], both)


def test_a_split_is_taken_back(make_view) -> None:
    """Undo restores the radius that a later edit took from an earlier one."""
    view = make_view("gpt2")
    make = editor(epsilon=1e3, steps=2)
    view.push(make.edit(view, A))
    view.push(make.edit(view, dataclasses.replace(B, target_new="Oslo")))
    assert [e["op"] for e in view.stack[1].report["events"]] == ["split"]
    assert float(book_of(view).radii[0]) < 1e3
    view.pop()
    assert float(book_of(view).radii[0]) == 1e3
    table = view.check()
    assert table.open.all() and len(table) == 1


def test_other_modules_and_other_editors(make_view) -> None:
    view = make_view("gpt2")
    up = editor(site="up", steps=20)
    edit = up.edit(view, A)
    assert edit.parameters == ("transformer.h.1.mlp.c_fc.weight",)
    before = wb.score(view, A)["nll_target"].iloc[0]
    view.push(edit)
    assert wb.score(view, A)["nll_target"].iloc[0] < before
    view.push(editor(steps=20).edit(view, B))  # beside the second matrix of the same block
    assert view.adapted == (1,)
    assert wb.score(view, B)["nll_target"].iloc[0] < before
    assert view.check().open.all() and len(view.check()) == 2
    with view.pristine():
        below = wb.FT(layers=(0,), steps=3, lr=0.1).edit(view, C)
    with pytest.warns(UserWarning) as told:
        view.push(below)
    assert "memories at or above" in str(told[-1].message)
    assert not view.check().open.any()  # the keys are elsewhere now


def test_published_positions(make_view) -> None:
    """As released: the key is the first token of the answer, the prompt is written over."""
    view = make_view("gpt2")
    options = {k: v for k, v in PRESETS["repo"]["gpt2-xl"].options.items() if k != "layers"}
    request = dataclasses.replace(A, target_new="English, Spanish")
    edit = editor(**options, steps=20).edit(view, request)
    prompt = ids_of(view, request.text)
    whole = ids_of(view, f"{request.text} {request.target_new}")
    name, seen = edit.adapters[0].parameter, []
    module = view.module_of(name)
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    logits(view, [whole])
    handle.remove()
    key = edit.adapters[0].tensors["keys"][0]
    assert torch.allclose(seen[0][0, len(prompt)], key, atol=1e-5)
    before = wb.score(view, request)["nll_target"].iloc[0]
    with view.applied(edit):
        assert wb.score(view, request)["nll_target"].iloc[0] < before
    assert edit.config["released"] and edit.config["replacement"] == "before"


def test_refusals(make_view) -> None:
    view = make_view("gpt2")
    for options, message in (
        ({"layers": (1, 2)}, "exactly one layer"),
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"replacement": "lst"}, "Did you mean 'last'"),
        ({"expand": "average"}, "expand="),
        ({"tolerance": -1.0}, "tolerance"),
        ({"steps": 0}, "steps=0"),
    ):
        with pytest.raises(OptionError, match=message):
            editor(**options).edit(view, A)
    with pytest.raises(OptionError, match="site='up'"):
        editor(site="up").edit(make_view("t5"), A)
    view.push(editor().edit(view, A))
    with pytest.raises(OptionError, match="replacement='all'"):
        editor(replacement="all").edit(view, B)
    edit = editor().edit(view, B)
    broken = dataclasses.replace(edit.adapters[0], kind="riddle")
    with pytest.raises(EditMismatchError, match="riddle"):
        view.push(dataclasses.replace(edit, adapters=(broken,)))
    with pytest.raises(OptionError, match="no 'repo' preset"):
        wb.GRACE.preset(view, "repo")
    with pytest.raises(OptionError, match="memories"):
        view.save_pretrained("nowhere")


def test_a_radius_below_the_noise_is_told(make_view) -> None:
    view = make_view("gpt2")
    make = editor(steps=2, tolerance=10.0, epsilon=30.0)
    view.push(make.edit(view, A))
    gap = float((make._asked(view, [B], make.settings(view))[0] - book_of(view).key(0)).norm())
    wide = make.with_options(tolerance=gap * 0.9)
    with pytest.warns(UserWarning, match="noise of the same text"):
        wide.edit(view, B)
