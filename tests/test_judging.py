"""Edit success and drawdown: against hand-computed tables, and against scores taken one by one."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.editors.learned.lessons import Lessons, Topic
from workbench.errors import DataError, OptionError

#: (lesson, part, item, flip, pristine, prepared, edited), each state (exact, nll, tokens).
HAND = [
    (0, "edits", 0, True, (0, 5.0, 2), (0, 5.0, 2), (1, 0.1, 2)),
    (0, "outer", 0, True, (0, 5.0, 2), (0, 5.0, 2), (1, 0.2, 2)),
    (0, "local", 0, None, (1, 1.0, 1), (1, 1.0, 1), (0, 2.0, 1)),
    (0, "local", 1, None, (1, 2.0, 3), (0, 2.5, 3), (0, 3.0, 3)),
    (1, "edits", 0, False, (1, 0.1, 2), (1, 0.1, 2), (1, 0.1, 2)),
    (1, "outer", 0, False, (1, 0.1, 2), (1, 0.1, 2), (0, 0.9, 2)),
    (1, "local", 0, None, (1, 1.0, 2), (1, 1.0, 2), (1, 1.0, 2)),
    (1, "local", 1, None, (0, 4.0, 4), (0, 4.0, 4), (1, 3.0, 4)),
]


def table(measure: str) -> pd.DataFrame:
    rows = []
    for lesson, part, item, flip, *states in HAND:
        for state, (exact, nll, tokens) in zip(
            ("pristine", "prepared", "edited"), states, strict=True
        ):
            rows.append(
                {"lesson": lesson, "part": part, "item": item, "flip": flip, "state": state,
                 "exact": bool(exact), "nll": nll, "tokens": tokens, "token_accuracy": exact / 2,
                 "measure": measure, "seconds": 1.0 + lesson}
            )  # fmt: skip
    return pd.DataFrame(rows)


def value(found: pd.DataFrame, metric: str, against: str = "") -> float:
    row = found[(found["metric"] == metric) & (found["against"] == against)]
    return float(row["value"].iloc[0])


def test_a_hand_computed_case() -> None:
    found = wb.lesson_summary(table("accuracy"))
    assert value(found, "edit_success") == 0.5 and value(found, "own_success") == 1.0
    assert value(found, "success_flips") == 1.0 and value(found, "success_kept") == 0.0
    assert value(found, "token_accuracy") == 0.25
    assert value(found, "drawdown", "pristine") == pytest.approx(3 / 4 - 2 / 4)
    assert value(found, "drawdown", "prepared") == pytest.approx(2 / 4 - 2 / 4)
    assert value(found, "drawdown_prepared", "pristine") == pytest.approx(1 / 4)
    assert value(found, "token_drawdown", "pristine") == pytest.approx((3 / 4 - 2 / 4) / 2)
    assert value(found, "token_drawdown", "prepared") == 0.0
    assert value(found, "seconds") == 1.5
    assert (found["lessons"] == 2).all()
    low, high = found.loc[found["metric"] == "edit_success", ["low", "high"]].to_numpy()[0]
    assert (low, high) == (0.0, 1.0)


def test_perplexity_counts_every_token_of_every_text() -> None:
    found = wb.lesson_summary(table("perplexity"))
    before = math.exp((1.0 * 1 + 2.0 * 3 + 1.0 * 2 + 4.0 * 4) / 10)
    prepared = math.exp((1.0 * 1 + 2.5 * 3 + 1.0 * 2 + 4.0 * 4) / 10)
    after = math.exp((2.0 * 1 + 3.0 * 3 + 1.0 * 2 + 3.0 * 4) / 10)
    assert value(found, "drawdown", "pristine") == pytest.approx(after - before)
    assert value(found, "drawdown", "prepared") == pytest.approx(after - prepared)
    assert value(found, "drawdown_prepared", "pristine") == pytest.approx(prepared - before)
    assert set(found.loc[found["metric"] == "drawdown", "unit"]) == {"perplexity"}


def test_tables_that_are_none() -> None:
    with pytest.raises(DataError, match="lacks flip"):
        wb.lesson_summary(table("accuracy").drop(columns="flip"))
    mixed = pd.concat([table("accuracy"), table("perplexity")])
    with pytest.raises(DataError, match="mixes two measures"):
        wb.lesson_summary(mixed)


def test_every_lesson_starts_from_the_same_model(tiny) -> None:
    """Scores of the table are those of a model edited by hand, lesson by lesson."""
    lessons = wb.make_lessons(tiny, "tiny")
    editor = wb.FT(layers=(1, 2), steps=6, lr=3e-3)
    before = {k: v.clone() for k, v in tiny.model.state_dict().items()}
    rows = wb.score_lessons(tiny, editor, lessons, n=3, n_edits=2, n_local=5)
    assert all(torch.equal(v, before[k]) for k, v in tiny.model.state_dict().items())
    assert len(rows) == 3 * (2 + 2 + 5) * 3 and not tiny.stack
    for i, lesson in enumerate(lessons.validation(3, n_edits=2, n_local=5)):
        asked = [*lesson.edits, *lesson.outer, *lesson.local]
        with tiny.applied(editor.edit(tiny, list(lesson.edits))):
            now = wb.score(tiny, asked)
        part = rows[(rows["lesson"] == i) & (rows["state"] == "edited")]
        assert part["exact"].tolist() == now["exact"].tolist()
        assert part["nll"].tolist() == pytest.approx(now["nll_target"].tolist(), abs=1e-4)
    assert rows.loc[rows["state"] == "edited", "exact"].nunique() == 2
    alone = wb.score(
        tiny, [r for x in lessons.validation(3, n_edits=2, n_local=5) for r in x.edits]
    )
    own = rows[(rows["part"] == "edits") & (rows["state"] == "pristine")]
    assert own["exact"].tolist() == alone["exact"].tolist()
    assert own["flip"].tolist() == (~alone["exact"]).tolist()


def test_what_the_stack_holds_is_the_prepared_model(tiny) -> None:
    """A careless edit at the bottom costs something against pristine, nothing against itself."""
    lessons = wb.make_lessons(tiny, "tiny")
    idle = wb.FT(layers=(1,), steps=1, lr=1e-12)
    careless = wb.FT(layers=(0, 1), steps=30, lr=2e-2)
    tiny.push(careless.edit(tiny, wb.datasets.tiny(limit=1)))
    found = wb.lesson_summary(wb.score_lessons(tiny, idle, lessons, n=4, n_edits=1, n_local=20))
    assert value(found, "drawdown", "prepared") == 0.0
    assert value(found, "drawdown", "pristine") > 0.2
    assert value(found, "drawdown", "pristine") == value(found, "drawdown_prepared", "pristine")
    assert len(tiny.stack) == 1


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-t5"])
def test_encoders_are_judged(name: str) -> None:
    view = wb.load(name, device="cpu")
    lessons = wb.make_lessons(view, "tiny")
    editor = wb.FT(layers=(1,), steps=20, lr=2e-3, stop="correct")
    rows = wb.score_lessons(view, editor, lessons, n=3, n_edits=1, n_local=4)
    found = wb.lesson_summary(rows)
    assert value(found, "own_success") == 1.0
    pristine = rows[(rows["state"] == "pristine") & (rows["part"] == "local")]
    assert pristine["exact"].mean() > 0.9


def test_editors_that_read_unrelated_text_get_it_from_training(tiny) -> None:
    seen: list[list[str]] = []

    class Watching(wb.FTKL):
        def _memory(self, view, requests, *, local=None, **given):
            seen.append([r.text for r in local or []])
            return super()._memory(view, requests, local=local, **given)

    lessons = wb.make_lessons(tiny, "tiny")
    editor = Watching(layers=(1,), steps=2, local_texts=7)
    wb.score_lessons(tiny, editor, lessons, n=2, n_edits=1, n_local=3)
    trained = {r.text for t in lessons.training for r in t.local}
    assert [len(s) for s in seen] == [7, 7] and seen[0] != seen[1]
    assert set(seen[0]) | set(seen[1]) <= trained


def test_more_lessons_than_held_out(tiny) -> None:
    few = Lessons(
        training=(Topic(edits=(wb.EditRequest(prompt="a", target_new="b"),)),),
        held_out=(Topic(edits=(wb.EditRequest(prompt="c", target_new="d"),)),),
    )
    with pytest.raises(OptionError, match="n_edits=2.*validation has 1"):
        wb.score_lessons(tiny, wb.FT(layers=(1,)), few, n=1, n_edits=2, n_local=0)
