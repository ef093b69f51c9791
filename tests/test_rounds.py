"""Single rounds: every batch on the model as it was; and free writing about edited subjects."""

from __future__ import annotations

import math

import pytest
from streams import Nudge

import workbench as wb
from workbench import metrics
from workbench.errors import NumericalError, OptionError
from workbench.metrics.language import consistency, fluency


def cases(n):
    return list(wb.datasets.tiny(limit=n))


def test_every_round_is_that_batch_alone(tiny, tmp_path):
    facts, editor = cases(5), Nudge()
    rows = wb.rounds(tmp_path / "run", tiny, editor, facts, batch_size=2)
    assert not tiny.stack and set(rows["step"]) == {0, 1}
    for batch in (facts[:2], facts[2:4], facts[4:]):
        edit = editor.edit(tiny, [c.request for c in batch])
        with tiny.applied(edit):
            alone = wb.score(tiny, batch)
        mine = rows[(rows["step"] == 1) & rows["case_id"].isin([c.case_id for c in batch])]
        assert mine["nll_target"].to_numpy() == pytest.approx(alone["nll_target"].to_numpy())
    summed = wb.summary(tmp_path / "run")
    assert set(summed["moment"]) == {"before", "after"} and summed.loc["efficacy", "n"].eq(5).all()


def test_a_stopped_run_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    facts = cases(3)
    with pytest.raises(NumericalError):
        wb.rounds(tmp_path / "run", tiny, Nudge(refuse=facts[2].request.subject), facts)
    assert len(wb.stream_rows(tmp_path / "run")["case_id"].unique()) == 2
    with pytest.raises(OptionError, match="refuse"):
        wb.rounds(tmp_path / "run", tiny, Nudge(), facts)
    whole = wb.rounds(tmp_path / "run", tiny, Nudge(), facts, fresh=True)
    (tmp_path / "run" / "batches" / "000003.json").unlink()
    seen = []
    monkeypatch.setattr(Nudge, "edit", _counting(seen, Nudge.edit))
    again = wb.rounds(tmp_path / "run", tiny, Nudge(), facts)
    assert len(seen) == 1 and again.drop(columns="seconds").equals(whole.drop(columns="seconds"))


def _counting(seen, edit):
    def counted(self, view, requests, **given):
        seen.append(len(requests))
        return edit(self, view, requests, **given)

    return counted


def test_rounds_start_from_what_the_view_holds(tiny, tmp_path):
    facts = cases(2)
    tiny.push(Nudge(scale=0.5).edit(tiny, [facts[1].request]))
    held = wb.score(tiny, facts[:1])
    rows = wb.rounds(tmp_path / "run", tiny, Nudge(), facts[:1])
    assert rows[rows["step"] == 0]["nll_target"].to_numpy() == pytest.approx(
        held["nll_target"].to_numpy()
    )
    assert len(tiny.stack) == 1


@pytest.mark.parametrize(
    ("options", "said"), [({"batch_size": 0}, "batch_size=0"), ({"cases": []}, "cases is empty")]
)
def test_what_rounds_refuse(tiny, tmp_path, options, said):
    asked = {"cases": cases(1), **options}
    with pytest.raises(OptionError, match=said):
        wb.rounds(tmp_path / "run", tiny, Nudge(), **asked)
    with pytest.raises(OptionError, match="occurs twice"):
        wb.rounds(tmp_path / "run", tiny, Nudge(), cases(1) * 2)


def test_free_writing_measures_its_own_texts(tiny):
    facts = cases(3)
    key = ("r", "t")
    tags = {"relation": "r", "target_new_id": "t", "generation_prompts": ("Klara is", "Milan is")}
    facts[0] = wb.EditCase(request=facts[0].request, case_id="a", tags=tags)
    table = metrics.free_writing(
        tiny, facts, snippets={key: ["Klara is a pilot"]}, every=2, max_new_tokens=6
    )
    assert list(table["case_id"]) == ["a", facts[2].case_id] and list(table["texts"]) == [2, 1]
    prompts = ["Klara is", "Milan is", facts[2].request.text]
    texts = metrics.generate_text(tiny, prompts, max_new_tokens=6, top_k=5)
    assert table["fluency"].tolist() == [fluency(texts[:2]), fluency(texts[2:])]
    whole = [p + t for p, t in zip(prompts, texts, strict=True)]
    assert table["consistency"][0] == consistency(whole[:2], ["Klara is a pilot"])
    assert math.isnan(table["consistency"][1])
    with pytest.raises(OptionError, match="every=0"):
        metrics.free_writing(tiny, facts, every=0)
