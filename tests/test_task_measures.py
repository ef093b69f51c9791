"""Measures of lifelong tasks: F1 in both senses, right answers, accuracy, perplexity."""

from __future__ import annotations

import math

import pandas as pd
import pytest

import workbench as wb
from workbench.errors import OptionError
from workbench.metrics import judging
from workbench.metrics.judging import averages, f1_compat, judge, normalized, word_f1


def test_the_released_f1_counts_the_end_of_sequence_and_ours_does_not() -> None:
    assert f1_compat([5, 6, 7, 1], [2, 3, 4, 1]) == 0.25  # oracle 24
    assert f1_compat([5, 5, 6, 1], [5, 5, 6, 1]) == 0.75  # repeated ids never reach 1
    assert f1_compat([], [1]) == f1_compat([3], [4]) == 0
    assert word_f1(normalized("green red blue"), normalized("one two three")) == 0
    assert word_f1(["a", "a", "b"], ["a", "a", "b"]) == 1
    assert word_f1(["x", "b"], ["b"]) == pytest.approx(2 / 3)


def test_words_are_compared_without_case_punctuation_and_articles() -> None:
    assert normalized("The Hitchhiker's  Guide.") == normalized("hitchhikers guide")
    assert normalized("The") == ["the"]  # nothing would be left
    assert normalized("U.S.") != normalized("U K")


def test_a_decoder_is_judged_by_as_many_words_as_the_answer_has(
    tiny: wb.ModelView, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"a": " The red fox. And more", "b": " red", "c": ""}
    monkeypatch.setattr(
        judging, "generate_text", lambda v, prompts, **k: [said[p] for p in prompts]
    )
    table = judge(tiny, "qa", [wb.Probe(prompt=p, target="Red Fox") for p in "abc"])
    assert list(table["match"]) == [1, 0, 0]
    assert list(table["f1"]) == pytest.approx([1, 2 / 3, 0])
    encoder_decoder = wb.load("tiny-t5", device="cpu")
    table = judge(encoder_decoder, "qa", [wb.Probe(prompt="a", target="Red Fox")])
    assert table["match"][0] == 0 and 0 < table["f1"][0] < 1  # it should have stopped


def test_what_a_model_knows_is_right() -> None:
    view = wb.load("tiny-t5", device="cpu")
    facts = [c.request for c in wb.datasets.tiny(limit=4)]
    true = [wb.Probe(prompt=r.text, target=r.target_true or "") for r in facts]
    false = [wb.Probe(prompt=r.text, target=r.target_new) for r in facts]
    table = judge(view, "qa", [*true, *false])
    assert list(table["match"]) == [1] * 4 + [0] * 4
    assert list(table["f1"]) == [1] * 4 + [0] * 4
    assert (table["f1_compat"][4:] > 0).all()  # the end of sequence is shared
    classifier = wb.load("tiny-bert", device="cpu")
    assert (
        list(judge(classifier, "classification", [*true, *false])["accuracy"]) == [1] * 4 + [0] * 4
    )


def test_perplexity_of_texts_is_averaged_in_three_ways(tiny: wb.ModelView) -> None:
    cases = wb.datasets.tiny(limit=3)
    probes = [wb.Probe(prompt=c.request.text, target=c.request.target_new) for c in cases]
    table = judge(tiny, "text", probes)
    scores = wb.score(tiny, cases, kinds="efficacy")
    assert table["nll"].tolist() == pytest.approx(scores["nll_target"].tolist(), rel=1e-5)
    made = pd.DataFrame({"tokens": [1, 3], "nll": [0.0, math.log(4)], "perplexity": [1.0, 4.0]})
    found = averages("text", made)
    assert found["perplexity"] == 2.5 and found["median_perplexity"] == 2.5
    assert found["corpus_perplexity"] == pytest.approx(4**0.75)
    assert averages("text", made.iloc[:0]) == {}


def test_unknown_kinds_are_refused(tiny: wb.ModelView) -> None:
    with pytest.raises(OptionError, match="classification"):
        judge(tiny, "classificaton", [wb.Probe(prompt="a", target="b")])
    with pytest.raises(OptionError, match="kind="):
        wb.tasks.Task(name="x", kind="words", cases=wb.datasets.tiny(limit=1))
    with pytest.raises(OptionError, match="no cases"):
        wb.tasks.Task(name="x", kind="qa", cases=[])
