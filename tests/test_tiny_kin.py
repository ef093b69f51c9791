"""``tiny-bert`` and ``tiny-t5``: they know the world, and everything that measures or edits a model
does something sensible with them or says why not."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

import workbench as wb
from workbench.errors import OptionError, RequestError, UnsupportedEditorError
from workbench.metrics import generate_text, score, summary
from workbench.model import ModelView
from workbench.places import shipped

KIN = {"tiny-bert": "encoder_classifier", "tiny-t5": "encoder_decoder"}


@pytest.fixture(scope="module")
def views() -> dict[str, ModelView]:
    return {name: wb.load(name, device="cpu") for name in KIN}


@pytest.fixture(scope="module")
def cases() -> list[wb.EditCase]:
    return list(wb.datasets.tiny(limit=40))


def known(cases: list[wb.EditCase]) -> list[wb.EditRequest]:
    """What is true, in the cases' own prompts, rewordings and other facts."""
    found = []
    for case in cases:
        true = case.request.target_true
        texts = [case.request.text, *(p.prompt for p in case.probes if p.kind == "paraphrase")]
        found += [wb.EditRequest(prompt=t, target_new=true) for t in texts]
        more = (p for p in case.probes if p.kind == "attribute")
        found += [wb.EditRequest(prompt=p.prompt, target_new=p.target) for p in more]
    return found


@pytest.mark.parametrize("name", KIN)
def test_they_know_the_world(views, name: str) -> None:
    view = views[name]
    assert view.kind == KIN[name] and view.name == name
    assert view.capabilities.linear
    asked = known(list(wb.datasets.tiny(limit=60)))
    assert len(asked) >= 400
    assert score(view, asked)["exact"].mean() >= 0.95


@pytest.mark.parametrize("folder", ["bert", "t5"])
def test_they_are_small(folder: str) -> None:
    files = list((shipped("tiny") / folder).iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in files}
    assert sum(f.stat().st_size for f in files) < 3 * 2**20


def test_labels_are_the_objects_of_the_world(views) -> None:
    labels = views["tiny-bert"].labels
    assert len(set(labels)) == len(labels) == 108
    assert {"French", "Kestria", "lute"} <= set(labels) and views["tiny-t5"].labels == ()


def test_next_tokens_and_generation(views, cases: list[wb.EditCase]) -> None:
    case = cases[0].request
    for view in views.values():
        table = wb.next_tokens(view, case.text, top_k=3)
        assert table.token.iloc[0].strip() == case.target_true and table.prob.iloc[0] > 0.9
    said = generate_text(views["tiny-t5"], [case.text, "What is the mother tongue of Nora Y?"])
    assert said[0].strip() == case.target_true and said[1].strip() in views["tiny-bert"].labels
    with pytest.raises(OptionError, match="classifier"):
        generate_text(views["tiny-bert"], [case.text])
    scores = wb.score(views["tiny-t5"], cases[:4], generate=True)
    assert scores[scores.kind == "neighborhood"]["generated_match"].mean() > 0.9


def test_a_question_gets_its_answer(views, cases: list[wb.EditCase]) -> None:
    """Other words than any template's end."""
    wording = {
        "employer": "Who is the employer of {}?",
        "sport": "In what does {} train every week?",
    }
    right = []
    for case in (c for c in cases if c.tags["relation"] in wording):
        text = wording[case.tags["relation"]].format(case.request.subject)
        true = wb.EditRequest(prompt=text, target_new=case.request.target_true)
        right += [bool(score(v, true)["exact"].iloc[0]) for v in views.values()]
    assert len(right) >= 10 and sum(right) / len(right) >= 0.95


@pytest.mark.parametrize("name", KIN)
def test_editors_work_or_say_why_not(views, cases: list[wb.EditCase], name: str) -> None:
    view, request = views[name], cases[0].request
    for editor in ("ROME", "MEMIT", "CoachHook"):
        with pytest.raises(UnsupportedEditorError, match="decoder"):
            wb.EDITORS[editor](layers=(0,)).edit(view, request)
    for editor in ("FT", "FTEWC", "FTRetrain", "GRACE"):
        edit = wb.EDITORS[editor].preset(view, **({"lr": 1e-3} if editor == "FT" else {}))
        with view.applied(edit.edit(view, request)):
            assert wb.score(view, request)["exact"].all(), editor
    assert view.stack == ()
    if view.labels:
        with pytest.raises(RequestError, match="'Atlantis' is not a label"):
            wb.FT(layers=(1,)).edit(view, dataclasses.replace(request, target_new="Atlantis"))


@pytest.mark.parametrize("name", ["tiny", *KIN])
def test_grace_on_the_tiny_models(cases: list[wb.EditCase], name: str) -> None:
    """The presets: every fact written, most rewordings with it, neighbors left alone."""
    view = wb.load(name, device="cpu")
    edit = wb.GRACE.preset(view).edit(view, cases)
    with view.applied(edit):
        table: pd.DataFrame = summary(score(view, cases), resamples=1)["exact"]
    reworded = 0.3 if name == "tiny-t5" else 0.85
    assert table["efficacy"] >= 0.97 and table["paraphrase"] >= reworded
    assert table["neighborhood"] >= 0.93 and table["attribute"] >= (
        0.6 if name == "tiny-t5" else 0.97
    )


def test_a_large_radius_costs_other_facts(views, cases: list[wb.EditCase]) -> None:
    view = views["tiny-t5"]
    kept = {}
    for epsilon in (0.3, 1.0):
        with view.applied(wb.GRACE.preset(view, epsilon=epsilon).edit(view, cases)):
            kept[epsilon] = summary(score(view, cases), resamples=1)["exact"]
    assert kept[1.0]["paraphrase"] > kept[0.3]["paraphrase"] + 0.4
    assert kept[1.0]["attribute"] < kept[0.3]["attribute"] - 0.3
