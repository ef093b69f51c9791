"""Forgetting curves on tables made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.errors import OptionError
from workbench.forgetting import wilson


def table(fates: dict[int, str], steps: tuple[int, ...] = (1, 2, 3, 4)) -> pd.DataFrame:
    """Case → a letter a step: ``+`` right, ``-`` wrong, blank not asked; case i is edited at i."""
    rows = [
        {"case_id": case, "edit_step": case, "step": step, "kind": "efficacy", "exact": c == "+"}
        for case, letters in fates.items()
        for step, c in zip(steps, letters, strict=True)
        if c != " "
    ]
    return pd.DataFrame(rows).assign(success=True)


def curve(found: pd.DataFrame, name: str, what: str = "value") -> dict[int, Any]:
    part = found[found["curve"] == name]
    return dict(zip(part.iloc[:, 0], part[what], strict=True))


FATES = {1: "+-++", 2: " +++", 3: "  -+", 4: "   +"}


def test_the_three_curves_are_what_the_paper_says() -> None:
    found = wb.retention(table(FATES))
    assert curve(found, "newest") == {1: 1, 2: 1, 3: 0, 4: 1}
    # case 1 is wrong at 2 and right again at 3: never un-forgotten; case 3 was never learned
    assert curve(found, "forgotten") == {1: 0, 2: 1 / 2, 3: 1 / 2, 4: 1 / 3}
    assert curve(found, "retained") == {1: 1, 2: 1 / 2, 3: 1, 4: 1}
    assert curve(found, "retained", "n") == {1: 1, 2: 2, 3: 2, 4: 3}
    assert list(found.columns) == ["step", "curve", "value", "n", "low", "high"]


def test_before_the_run_and_other_kinds_do_not_count() -> None:
    rows = table(FATES)
    before = rows.drop_duplicates("case_id").assign(step=0, exact=False)
    other = rows.assign(kind="neighborhood", exact=False)
    pd.testing.assert_frame_equal(
        wb.retention(pd.concat([before, rows, other])), wb.retention(rows)
    )
    assert set(wb.retention(rows, correct="success")["value"]) == {0.0, 1.0}


def test_a_fact_with_two_probes_needs_both() -> None:
    rows = table({1: "++"}, steps=(1, 2))
    both = pd.concat([rows.assign(probe=0), rows.assign(probe=1, exact=[True, False])])
    assert curve(wb.retention(both), "retained") == {1: 1, 2: 0}


def test_dense_moments_speak_for_the_subset_alone() -> None:
    # all are asked at 2 and 4; at 3 only case 1 (the subset) and the newest
    rows = table({1: "+++-", 2: " + +", 3: "  ++", 4: "   +"})
    found = wb.retention(rows)
    assert curve(found, "retained", "n") == {1: 1, 2: 2, 3: 1, 4: 4}
    assert curve(found, "retained") == {1: 1, 2: 1, 3: 1, 4: 3 / 4}
    # a moment that asks the newest alone says nothing about earlier ones, subset or not
    rows = table({1: "+ ++", 2: " +++", 3: "  ++", 4: "   +"})
    assert curve(wb.retention(rows[rows["case_id"] != 3]), "retained", "n") == {1: 1, 3: 2, 4: 3}
    rows = pd.concat([table({1: "+  -", 2: " + +"}), table({3: "  ++", 4: "   +"})])
    assert curve(wb.retention(rows), "retained", "n") == {1: 1, 4: 4}
    # without any moment between, only the newest are known there
    rows = table({1: "+  -", 2: " + +", 3: "  ++", 4: "   +"})
    assert curve(wb.retention(rows), "retained", "n") == {1: 1, 4: 4}


def test_survival_counts_by_age() -> None:
    found = wb.survival(table(FATES))
    assert curve(found, "retained") == {0: 1, 1: 1 / 2, 2: 1, 3: 1}
    assert curve(found, "unforgotten") == {0: 1, 1: 1 / 2, 2: 1 / 2, 3: 0}
    assert curve(found, "retained", "n") == {0: 3, 1: 2, 2: 2, 3: 1}


def test_the_map_says_which_batch_killed_an_edit() -> None:
    fates = wb.survival_map(table({1: "++-+", 2: " -+ ", 3: "  ++"}))
    first = fates[fates["case_id"] == 1]
    assert list(first["state"]) == ["held", "held", "forgotten", "back"]
    assert set(first["killed_at"]) == {3} and set(first["held_until"]) == {2}
    second = fates[fates["case_id"] == 2]
    assert list(second["state"]) == ["not learned", "not learned"]
    assert second["killed_at"].isna().all() and second["held_until"].isna().all()
    third = fates[fates["case_id"] == 3]
    assert third["killed_at"].isna().all() and set(third["held_until"]) == {4}


def collapse(at: int, n: int = 200, jump: float = 40.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Edits of which all are lost at one of them; distance grows by about 1 an edit but there."""
    steps = range(10, n + 1, 10)
    rows = [
        {"case_id": i, "edit_step": i, "step": s, "kind": "efficacy", "exact": s < at or s == i}
        for i in steps
        for s in steps
        if s >= i
    ]
    growth = [10 + (s % 3) + (10 * jump if s == at else 0) for s in steps]
    moments = pd.DataFrame(
        {"metric": "weight_distance", "step": list(steps), "value": np.cumsum(growth), "layer": 1}
    )
    return pd.DataFrame(rows), moments


def test_inflection_needs_the_drop_and_the_jump() -> None:
    rows, moments = collapse(120)
    found = wb.inflection(rows, moments).iloc[0]
    assert found["step"] == 120 and found["jump"] > 30
    assert found["before"] == 1 and found["after"] < 0.2
    assert math.isnan(wb.inflection(rows, collapse(120, jump=0)[1])["step"].iloc[0])
    assert math.isnan(wb.inflection(collapse(10_000)[0], moments)["step"].iloc[0])
    assert wb.inflection(rows)["step"].iloc[0] == 120  # without distances the drop decides
    assert math.isnan(wb.inflection(rows, moments, drop=0.99)["step"].iloc[0])


def test_several_runs_stay_apart() -> None:
    rows, moments = collapse(120)
    calm, quiet = collapse(10_000)
    both = pd.concat([rows.assign(run="a"), calm.assign(run="b")])
    seen = pd.concat([moments.assign(run="a"), quiet.assign(run="b")])
    found = wb.inflection(both, seen).set_index("run")["step"]
    assert found["a"] == 120 and math.isnan(found["b"])
    assert set(wb.retention(both)["run"]) == {"a", "b"}
    only = wb.retention(both)
    pd.testing.assert_frame_equal(
        only[only["run"] == "a"].drop(columns="run").reset_index(drop=True), wb.retention(rows)
    )


def test_intervals_are_wilsons() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert all(map(math.isnan, wilson(0.5, 0)))


@pytest.mark.parametrize(
    ("change", "options", "word"),
    [
        (lambda t: t, {"correct": "exat"}, "exact"),
        (lambda t: t, {"kind": "paraphrase"}, "efficacy"),
        (lambda t: t.drop(columns="edit_step"), {}, "edit_step"),
        (lambda t: t.assign(step=0), {}, "step 0"),
    ],
)
def test_wrong_tables_are_refused(change: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        wb.retention(change(table(FATES)), **options)
