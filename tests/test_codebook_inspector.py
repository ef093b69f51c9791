"""What a codebook tells: entries, events, the nearest key, the plane, and every moment at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import workbench as wb
from workbench.errors import OptionError
from workbench.memories import Codebook
from workbench.model import ModelView
from workbench.plots import alt_text


@pytest.fixture(scope="module")
def view() -> ModelView:
    return wb.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cases() -> list[wb.EditCase]:
    return list(wb.datasets.tiny(limit=8))


@pytest.fixture(scope="module")
def edited(view: ModelView, cases: list[wb.EditCase]) -> ModelView:
    """Eight facts, one of them changed once more, and two that clash in one wide ball."""
    grace = wb.GRACE(layers=(3,), epsilon=2.0, steps=25)
    view.reset()
    for case in cases:
        view.push(grace.edit(view, case))
    near = cases[0].request
    paraphrase = next(p for p in cases[0].probes if p.kind == "paraphrase")
    view.push(grace.edit(view, wb.EditRequest(prompt=paraphrase.prompt, target_new="Orbit")))
    view.push(grace.edit(view, dataclasses.replace(near, target_new="Nimbus")))
    return view


def test_the_tables_agree_with_the_codebook(edited: ModelView) -> None:
    history, entries = wb.codebook_history(edited), wb.codebook_table(edited)
    assert len(history) == 10 and history.step.tolist() == list(range(1, 11))
    assert history["size"].iloc[-1] == len(entries) == entries.entry.max() + 1
    assert history.op.iloc[0] == "add" and "overwrite" in set(history.op)
    assert entries.edits.sum() == len(history)
    assert history.edits_per_key.iloc[-1] == pytest.approx(len(history) / len(entries))
    book = edited.memory(edited.weight_name(3), Codebook)
    assert entries.radius.tolist() == pytest.approx(book.radii.tolist())
    last = history.iloc[-1]
    assert entries.set_index("entry").label[book.places[last["name"]]] == "Nimbus"
    assert (history.loss_last < history.loss_first).all()


def test_the_nearest_entry(edited: ModelView, cases: list[wb.EditCase]) -> None:
    prompts = [cases[3].request.text, "The weather was cold because of the"]
    table = wb.nearest_entries(edited, prompts)
    own = table.iloc[0]
    assert own.fires and own.distance < 1e-3 and own.made_for == prompts[0]
    assert own.label == cases[3].request.target_new and own.covered >= 1
    assert own.second_distance > own.distance and own.second != own.entry
    far = table.iloc[1]
    assert not far.fires and far.margin > 1
    with edited.pristine():
        bare = wb.score(edited, cases[3])["nll_target"].iloc[0]
    assert wb.score(edited, cases[3])["nll_target"].iloc[0] < bare  # an entry did answer
    with pytest.raises(OptionError, match="prompts is empty"):
        wb.nearest_entries(edited, [])


def test_the_plane(edited: ModelView, cases: list[wb.EditCase]) -> None:
    prompts = [p.prompt for p in cases[0].probes[:4]]
    table = wb.codebook_map(edited, prompts)
    keys = table[table.what == "key"]
    assert len(table) == len(keys) + len(prompts) and 0 < table.attrs["explained"] <= 1
    book = edited.memory(edited.weight_name(3), Codebook)
    truth = torch.cdist(book.keys.data[: len(book)], book.keys.data[: len(book)])
    flat = torch.tensor(keys[["x", "y"]].to_numpy())
    assert (torch.cdist(flat, flat) <= truth + 1e-3).all()  # a projection brings points closer
    figure = wb.plot_codebook_map(table)
    assert len(figure.layout.shapes) == len(keys)
    answered = int(table.fires.sum())
    assert f"{answered} of {len(prompts)} prompts are answered" in alt_text(figure)
    assert f"{len(keys)} entries" in alt_text(wb.plot_codebook(wb.codebook_history(edited)))


def test_every_moment_from_one_pass(edited: ModelView, cases: list[wb.EditCase]) -> None:
    """Spans equal scoring all cases after each single edit."""
    spans = wb.answer_spans(edited, cases)
    measures = ["nll_target", "nll_foil", "exact", "token_accuracy", "success"]
    for step in range(len(edited.stack) + 1):
        with edited.at(step):
            brute = wb.score(edited, cases)
        held = spans[(spans.since <= step) & (step < spans.until)]
        both = brute.merge(held, on=["case_id", "probe"], suffixes=("", "_planned"))
        assert len(both) == len(brute) == len(held)
        for name in measures:
            planned = both[f"{name}_planned"].astype(float)
            assert planned.to_numpy() == pytest.approx(
                both[name].astype(float).to_numpy(), abs=2e-4, nan_ok=True
            ), (step, name)
    runs = len(spans.drop_duplicates(["prompt", "target", "since"]))
    asked = sum(len(c.all_probes) for c in cases)
    assert runs < 3 * asked  # where brute force runs every probe at each of eleven moments


def test_curves_are_means_of_the_spans(edited: ModelView, cases: list[wb.EditCase]) -> None:
    spans = wb.answer_spans(edited, cases)
    since = {c.case_id: i + 1 for i, c in enumerate(cases)}
    curves = wb.retention_curves(spans, since=since)
    own = curves[curves.kind == "efficacy"].set_index("step")
    assert own.n.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    for step in (1, 4, 10):
        with edited.at(step):
            brute = wb.score(edited, cases[:step], kinds="efficacy")["exact"].mean()
        assert own.value[step] == pytest.approx(brute)
    everyone = wb.retention_curves(spans, value="success")
    assert (everyone[everyone.kind == "neighborhood"].n == 6 * len(cases)).all()
    assert "efficacy" in alt_text(wb.plot_retention(curves))
    with pytest.raises(OptionError, match="value='exat'"):
        wb.retention_curves(spans, value="exat")


def test_without_a_codebook(cases: list[wb.EditCase]) -> None:
    fresh = wb.load("tiny", device="cpu")
    with pytest.raises(OptionError, match="no codebook"):
        wb.codebook_table(fresh)
    fresh.push(wb.GRACE(layers=(3,), steps=2).edit(fresh, cases[0]))
    with pytest.raises(OptionError, match="at least three points"):
        wb.codebook_map(fresh)
    fresh.push(wb.FT(layers=(4,), steps=1).edit(fresh, cases[1]))
    with pytest.raises(OptionError, match="FT edit"):
        wb.answer_spans(fresh, cases)
