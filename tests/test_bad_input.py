"""Whatever goes wrong: a sentence that helps, the model as it was, no hook left behind."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from learned import LEARNED

from workbench.editors import EDITORS, Editor, find_editor
from workbench.errors import (
    OptionError,
    RequestError,
    UnsupportedEditorError,
    WorkbenchError,
)
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.tokens import encode_request

BO = EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
ANNA = EditRequest(prompt="The mother tongue of {} is", subject="Anna", target_new="English")
TEMPLATES = ("{}", "I saw it. {}")
LOCATE = {"layers": (1,), "steps": 5, "lr": 0.3, "templates": TEMPLATES, "corpus": "identity"}
TUNE = {"layers": (1,), "steps": 3, "lr": 1e-2}

SEVERAL = {"layers": (0, 1, 2), "lam": 2.0}
MORE: dict[str, dict[str, Any]] = {
    "MEMIT": SEVERAL,
    "NSE": SEVERAL,
    "CoachHook": SEVERAL,
    "AlphaEdit": {"layers": (0, 1, 2), "threshold": 2.0, "l2": 2.0},
}
#: options under which keys are written (almost) exactly
EXACT: dict[str, dict[str, Any]] = {
    "MEMIT": {"lam": 1e-9},
    "NSE": {"lam": 1e-9, "rewind": False},
    "CoachHook": {"lam": 1e-9},
    "AlphaEdit": {"l2": 1e-9},
}


def options(name: str) -> dict[str, Any]:
    return {**(LOCATE if EDITORS[name].needs_subject else TUNE), **MORE.get(name, {})}


def make(name: str, **changes: Any) -> Editor:
    return EDITORS[name](**{**options(name), **changes})


#: Learned editors have a file instead of options: tests/test_learned.py.
PLAIN = [n for n in EDITORS if n not in LEARNED]
LOCATING = [n for n in EDITORS if EDITORS[n].needs_subject]


def digest(view: ModelView) -> str:
    found = hashlib.sha256()
    for name, p in view.model.named_parameters():
        found.update(f"{name}{p.requires_grad}".encode())
        found.update(p.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def hooks(view: ModelView) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.model.modules())


@contextmanager
def untouched(view: ModelView) -> Iterator[None]:
    """Weights, gradient flags, stack, hooks and lock are the same afterwards."""
    before = digest(view), hooks(view), view.stack
    yield
    assert (digest(view), hooks(view), view.stack) == before
    assert not view._busy


@contextmanager
def refused(view: ModelView, error: type[WorkbenchError], words: str) -> Iterator[None]:
    with untouched(view), pytest.raises(error, match=words) as caught:
        yield
    assert type(caught.value) is error


@pytest.fixture(scope="module")
def view(make_view) -> ModelView:
    return make_view("llama")


# ---------------------------------------------------------------------- the lock


@pytest.mark.parametrize("each", [False, True])
def test_an_edit_is_recorded_before_the_view_is_let_go(
    view: ModelView, monkeypatch: pytest.MonkeyPatch, each: bool
) -> None:
    busy: list[str] = []
    finish = Editor._finish

    def spy(self: Editor, *args: Any) -> Any:
        busy.append(view._busy)
        return finish(self, *args)

    monkeypatch.setattr(Editor, "_finish", spy)
    editor = make("ROME")
    editor.edit_each(view, [BO, ANNA]) if each else editor.edit(view, BO)
    assert busy == (["ROME: 2 single edits"] * 2 if each else ["ROME edit of 1 facts"])


# ---------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "Bo lives in", "subject": "Bo"}, "has 0 slots"),
        ({"prompt": "{} and {}", "subject": "Bo"}, "has 2 slots"),
        ({"prompt": "{} is", "subject": ""}, "subject=''"),
        ({"prompt": "{} is", "subject": " \n"}, "subject"),
        ({"prompt": "{} is", "subject": "Bo", "target_new": ""}, "target_new=''"),
        ({"prompt": "{} is", "subject": "Bo", "target_new": "  "}, "target_new"),
        ({"prompt": "{} is", "subject": "Bo", "target_true": ""}, "target_true"),
        ({"prompt": ""}, "prompt=''"),
        ({"prompt": 3}, "prompt=3"),
        ({"prompt": "{} is", "subject": 3}, "subject=3"),
        ({"prompt": "{} is", "subject": "Bo", "target_new": None}, "target_new=None"),
    ],
)
def test_malformed_requests_cannot_be_made(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        EditRequest(**({"target_new": "Rome"} | fields))
    with pytest.raises(RequestError, match="does not occur"):
        EditRequest.from_text("Anna is", subject="Bo", target_new="x")


@pytest.mark.parametrize("name", PLAIN)
def test_lists_of_requests(view: ModelView, name: str) -> None:
    for given, words in (
        ([], "empty"),
        ({"prompt": "x"}, "not dict"),
        ([{"prompt": "x", "target_new": "y"}], "found dict"),
        ("Bo lives in", "not str"),
        (None, "not NoneType"),
        ([BO, None], "found NoneType"),
        ([BO, replace(BO, target_new="Oslo")], "different targets.*Rome.*Oslo"),
    ):
        with refused(view, RequestError, words):
            make(name).edit(view, given)
    with refused(view, OptionError, "needs a view, not LlamaForCausalLM"):
        make(name).edit(view.model, BO)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOCATING)
def test_a_subject_is_needed(view: ModelView, name: str) -> None:
    with refused(view, RequestError, f"{name} needs a subject.*from_text"):
        make(name).edit(view, [BO, EditRequest(prompt="Bo lives in", target_new="Rome")])


def filled(view: ModelView, request: EditRequest) -> EditRequest:
    """The request with a longer subject, such that it just fits the context."""
    n = 128 - len(encode_request(view.tokenizer, request)[0].ids)
    request = replace(request, subject=f"{request.subject}{' in' * n}")
    assert len(encode_request(view.tokenizer, request)[0].ids) == 128
    return request


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_too_long(make_view, family: str) -> None:
    view = make_view(family)
    for name in PLAIN:
        for request, words in (
            (replace(BO, subject="Bo " * 300), "subject too long.*context is 128"),
            (replace(BO, prompt="{} " + "and " * 300), "prompt too long"),
            (replace(BO, target_new="in " * 300), "too long.*Shorten"),
        ):
            with refused(view, RequestError, words):
                make(name).edit(view, [ANNA, request])
    # one token below the limit on its own, over it in a template or with the anchor prompt
    tight = filled(view, replace(BO, target_new="is"))
    for name in LOCATING:
        make(name, templates=("{}",)).edit(view, tight)
        with refused(view, RequestError, "too long"):
            make(name).edit(view, tight)
    tight = filled(view, replace(BO, prompt="{}", target_new="is"))
    with refused(view, RequestError, "too long: 'Bo in"):
        make("ROME", templates=("{}",), kl_position="prompt_end").edit(view, tight)


@pytest.mark.parametrize("family", ["bart", "bert"])
def test_too_long_for_other_kinds(make_view, family: str) -> None:
    view = make_view(family)
    long = EditRequest(prompt="Bo " * 200, target_new="yes")
    with refused(view, RequestError, "too long.*context is 128"):
        make("FT").edit(view, long)
    with refused(view, UnsupportedEditorError, "needs a decoder.*FT"):
        make("ROME").edit(view, BO)


def test_labels(make_view) -> None:
    view = make_view("bert")
    with refused(view, RequestError, "is not a label.*Did you mean 'yes'"):
        make("FT").edit(view, replace(BO, target_new="yess"))


@pytest.mark.parametrize("name", LOCATING)
def test_what_the_model_says_already(make_view, name: str) -> None:
    view = make_view("llama")
    prompts = [f"{{}}{p}" for p in (" lives in", " plays", " is", " was born in", " is a", "'s")]
    for request in (replace(BO, prompt=p, subject=s) for p in prompts for s in ("Bo", "Anna")):
        ids = torch.tensor([view.tokenizer(request.text)["input_ids"]])
        with torch.no_grad():
            said = view.tokenizer.decode(view.model(ids).logits[0, -1].argmax())
        if said.startswith(" ") and said.strip().isalpha():
            break
    known = replace(request, target_new=said.strip())
    sure = make(name, layers=(2,), templates=("{}",), steps=60, lr=0.5, clamp=20.0,
                weight_decay=0.0, kl_factor=0.0, stop_loss=0.01)  # fmt: skip
    with untouched(view):
        edit = make(name).edit(view, known)
        other = make(name).edit(view, replace(known, target_new="Seattle, Zürich"))
    row = edit.report["targets"][0]
    assert row["nll_before"] < other.report["targets"][0]["nll_before"]
    assert edit.is_finite() and row["nll"] < row["nll_before"]
    sure = sure.with_options(**EXACT.get(name, {}))
    view.push(sure.edit(view, known))
    reached = view.stack[0].report["targets"][0]["nll"] + 0.2
    assert reached < row["nll_before"]
    with untouched(view):
        again = sure.with_options(stop_loss=reached).edit(view, known)
    assert again.report["targets"][0]["updates"] == 0
    before = view.weight(2).clone()
    with view.applied(again):
        assert (view.weight(2) - before).norm() < 1e-3 * before.norm()


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("name", PLAIN)
def test_options_out_of_range(view: ModelView, name: str) -> None:
    bad: dict[str, tuple[Any, ...]] = {
        "layers": ((-1,), (4,), (1, 99), (), 1, "1", (1.0,), ("1",), (True,), None, (1, 1)),
        "steps": (0, -3, 2.5, "3", None),
        "lr": (-1.0, math.nan, "0.1"),
        "seed": ("x",),
        "stop_loss": (math.nan, "x"),
        "objective": ("target", 3),
        "mini_batch": (0, 1.5),
        "epsilon": (-1.0, math.nan),
        "decay": (-1.0,),
        "decay_to": ("none",),
        "weight_decay": (-1.0, math.nan),
        "clamp": (-1.0, math.nan),
        "kl_factor": (-1.0, math.nan),
        "kl_position": ("prompt",),
        "contexts": ("nope", 3),
        "templates": ((), ("I {}", "{}"), ("{}", "no slot"), ("{}", "{} {}"), "{}", ("{}", 3)),
        "lam": (0.0, -1.0, math.nan, "x"),
        "closure": (0.0, 1.0, "x"),
        "accumulate": ("no",),
        "alpha": (-1.0, math.nan),
        "scale": (0.0,),
        "ridge_norm": (-1.0,),
        "variant": ("romee",),
        "rect": (0.0, 1.5, math.nan, "x"),
        "neuron_threshold": (0.0, math.nan),
        "selection": ("papr",),
        "upper_bound": (0.0, math.nan),
        "max_iterations": (1, 2.5),
        "rewind": ("no",),
        "n_clusters": (0, 2, 1.5),
        "keep_refused_keys": (3,),
        "threshold": (0.0, math.nan),
        "threshold_on": ("max",),
        "l2": (0.0, math.nan),
        "alpha_z": (math.nan, "x"),
        "gate": ("mask",),
        "generation": ("on",),
        "alpha_from": ("subjects",),
        "margin": (-1.0, math.nan),
        "stop": ("right", None),
        "penalty": (-1.0, math.nan),
        "memory": (0, 2.5),
        "every": (0, 1.5),
        "epochs": (0,),
        "site": ("gate", 1),
        "query": ("second",),
        "replacement": ("none", 3),
        "tolerance": (-1.0, math.nan),
        "init": ("hot",),
        "expand": ("double",),
        "strict_overlap": ("no",),
        "cap_expand": (1,),
        "released": ("yes",),
        "slots": (0, 1.5),
        "hooks": ("no",),
    }
    known = {f.name for f in fields(EDITORS[name])}
    assert known - set(bad) <= {"corpus", "corpus_tokens"}
    for option in known & bad.keys():
        for value in bad[option]:
            with refused(view, OptionError, option):
                make(name, **{option: value}).edit(view, BO)


@pytest.mark.parametrize("name", PLAIN)
def test_misspelled_names(view: ModelView, name: str) -> None:
    cls = EDITORS[name]
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: cls(layer=(1,)), "'layers'"),
        (lambda: make(name, step=3), "'steps'"),
        (lambda: make(name).with_options(lrr=1.0), "'lr'"),
        (lambda: cls.preset(view, layerz=(1,)), "'layers'"),
        (lambda: cls.from_config({"layers": [1], "sed": 3}), "'seed'"),
        (lambda: cls.preset(view, "papr"), "'paper'"),
        (lambda: find_editor(f"{name}X"), "there is no editor"),
    ]
    for call, words in calls:
        with refused(view, OptionError, f"Did you mean .*{words}" if "'" in words else words):
            call()
    with refused(view, OptionError, "no editor 'Q'.*Known: .*MEMIT"):
        find_editor("Q")
    with refused(view, OptionError, "has no argument 'statistic'"):
        make(name).edit(view, BO, statistic={})
    with refused(view, OptionError, "has no 'repo' preset for random llama"):
        cls.preset(view, "repo")
