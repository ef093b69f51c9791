"""Editors side by side: the same numbers as by hand, refusals as rows, the model left alone."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest

import workbench as wb
from workbench.demo import weights_digest
from workbench.errors import BusyError, OptionError, RequestError
from workbench.plots import alt_text

EDITORS = ("ROME", "MEMIT", "refuses", "FT")


class Cancelled(Exception):
    """What a progress sink raises."""


def editors(view):
    return {
        "ROME": wb.ROME.preset(view),
        "MEMIT": wb.MEMIT.preset(view),
        "refuses": wb.ROME.preset(view, layers=(99,)),
        "FT": wb.FT(layers=(1,), lr=1e-3),
    }


@pytest.fixture(scope="module")
def view():
    return wb.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cases():
    return list(wb.datasets.tiny(limit=6))


@pytest.fixture(scope="module")
def found(view, cases):
    digest = weights_digest(view)
    comparison = wb.compare(view, editors(view), cases, generate=True)
    assert weights_digest(view) == digest and view.stack == ()
    return comparison


def test_the_numbers_are_those_of_score_and_summary(view, cases, found) -> None:
    table = found.summary.set_index("editor")
    assert tuple(table.index) == EDITORS and set(found.edits) == set(EDITORS) - {"refuses"}
    reference = wb.metrics.reference(view, cases)
    for name in ("ROME", "MEMIT", "FT"):
        edit, row = found.edits[name], table.loc[name]
        with view.applied(edit):
            scores = wb.score(view, cases, reference=reference, generate=True)
        by_hand = wb.summary(scores)
        for kind in ("efficacy", "paraphrase", "neighborhood", "score"):
            assert row[kind] == by_hand.loc[kind].success
            assert (row[f"{kind}_low"], row[f"{kind}_high"]) == tuple(
                by_hand.loc[kind, ["low", "high"]]
            )
        assert row.exact == by_hand.loc["efficacy"].exact
        assert row.exact_low <= row.exact <= row.exact_high
        assert row.written == by_hand.loc["efficacy"].generated_match
        assert row.gap == row.efficacy - row.written
        assert row.kl == wb.metrics.median_kl(scores) > 0
        assert row.file_bytes == len(edit.to_bytes()) and row.facts == 6 and row.problem is None
        norms = wb.weight_updates(view, edit).update_norm
        assert row.update_norm == pytest.approx(math.hypot(*norms))
        assert row.seconds == edit.meta["seconds"] / 6
        assert tuple(r.text for r in edit.requests) == tuple(c.request.text for c in cases)


def test_a_refusal_is_a_row(found) -> None:
    row = found.summary.set_index("editor").loc["refuses"]
    assert row.problem.startswith("layers=(99,): tiny has layers 0 to 4")
    assert math.isnan(row.efficacy) and math.isnan(row.seconds)
    assert found.grid[found.grid.editor == "refuses"].success.isna().all()
    assert "refuses refused (layers=(99,)" in repr(found)
    page = found._repr_html_()
    assert "tiny + 0 edits" in page and "layers=(99,)" in page


def test_or_it_is_raised(view, cases) -> None:
    with pytest.raises(OptionError, match="has layers 0 to 4"):
        wb.compare(view, editors(view), cases, on_error="raise")
    assert view.stack == ()


def test_the_grid_has_every_case_kind_and_editor(view, cases, found) -> None:
    grid = found.grid
    kinds = {p.kind for c in cases for p in c.all_probes}
    assert len(grid) == len(cases) * len(kinds) * len(EDITORS)
    with view.applied(found.edits["FT"]):
        scores = wb.score(view, cases)
    by_hand = scores[scores.kind == "neighborhood"].groupby("case_id").success.mean()
    ours = grid[(grid.kind == "neighborhood") & (grid.editor == "FT")].set_index("case_id")
    pd.testing.assert_series_equal(ours.success, by_hand, check_dtype=False, check_index=False)
    assert set(ours.probes) == {sum(p.kind == "neighborhood" for p in cases[0].probes)}
    assert ours.prompt.tolist() == [c.request.text for c in cases]


def test_before_is_the_view_as_it_is(tiny, cases) -> None:
    tiny.push(wb.ROME.preset(tiny).edit(tiny, cases[0]))
    found = wb.compare(tiny, [wb.FT(layers=(1,), lr=1e-4, steps=2)], cases[:1])
    assert found.where == "tiny + 1 edit"
    before = found.before.iloc[0]
    assert before.editor == "as it is" and before.exact == 1
    assert before.kl > 0  # against the unedited model
    assert found.summary.editor.tolist() == ["FT"] and len(tiny.stack) == 1
    assert found.edits["FT"].parents == (tiny.stack[0].id,)


def test_steps_come_one_by_one_and_leave_the_view_free(tiny, cases) -> None:
    digest = weights_digest(tiny)
    steps = wb.compare_steps(tiny, editors(tiny), cases[:2], kinds=("efficacy",))
    first = next(steps)
    assert first.summary.empty and first.grid.empty and "no editor yet" in repr(first)
    assert first.before.efficacy[0] == 0 and "no edit" in first._repr_html_()
    for n in (1, 2, 3):
        found = next(steps)
        assert found.summary.editor.tolist() == list(EDITORS[:n])
        assert weights_digest(tiny) == digest
    assert set(found.grid.kind) == {"efficacy"} and math.isnan(found.summary.neighborhood[0])
    steps.close()
    assert tiny.stack == ()
    tiny.push(found.edits["ROME"])  # nothing holds the view


def test_a_stack_that_changes_in_between_is_refused(tiny, cases) -> None:
    steps = wb.compare_steps(tiny, editors(tiny), cases[:1])
    next(steps)
    edit = next(steps).edits["ROME"]
    tiny.push(edit)
    with pytest.raises(BusyError, match="stack was changed"):
        next(steps)
    assert tiny.stack == (edit,)


def test_a_sink_cancels_inside_an_editor(tiny, cases) -> None:
    digest = weights_digest(tiny)
    phases = []

    def sink(phase, done, total):
        phases.append(phase)
        if phase == "fine-tuning" and done == 3:
            raise Cancelled

    chosen = {"MEMIT": wb.MEMIT.preset(tiny), "FT": wb.FT(layers=(1,))}
    steps = wb.compare_steps(tiny, chosen, cases[:2])
    last = next(steps)
    with wb.progress_to(sink), pytest.raises(Cancelled):
        for last in steps:  # noqa: B007
            pass
    assert last.summary.editor.tolist() == ["MEMIT"] and "compare" in phases
    assert weights_digest(tiny) == digest and tiny.stack == ()


def test_probes_with_and_without_foil_are_never_averaged(tiny, cases) -> None:
    mixed = [
        *cases[1:],
        dataclasses.replace(
            cases[0],
            request=dataclasses.replace(cases[0].request, target_true=None),
            probes=tuple(dataclasses.replace(p, foil=None) for p in cases[0].probes),
        ),
    ]
    found = wb.compare(tiny, {"FT": wb.FT(layers=(1,), lr=2e-3)}, mixed)
    with tiny.applied(found.edits["FT"]):
        means = wb.score(tiny, mixed).groupby("kind")[["exact", "success"]].mean()
    exact = means.exact
    assert (exact < means.success)[["efficacy", "neighborhood"]].any()
    row = found.summary.iloc[0]
    assert row.efficacy == row.exact == exact["efficacy"]
    assert row.neighborhood == pytest.approx(exact["neighborhood"])


def test_names_and_refused_arguments(tiny, cases) -> None:
    twice = [wb.FT(layers=(0,), steps=1), wb.ROME.preset(tiny), wb.FT(layers=(1,), steps=1)]
    steps = wb.compare_steps(tiny, twice, cases[:1], kinds="efficacy")
    *_, last = steps
    assert last.summary.editor.tolist() == ["FT 1", "ROME", "FT 2"]
    for wrong, error, words in (
        ({"editors": []}, OptionError, "editors is empty"),
        ({"editors": {"a": 3}}, OptionError, "'a' is a int"),
        ({"cases": []}, OptionError, "cases is empty"),
        ({"cases": [cases[0], cases[0]]}, OptionError, "occurs twice"),
        ({"cases": ["a"]}, RequestError, r"cases\[0\] is a str"),
        ({"kinds": ("efficiency",)}, OptionError, "Did you mean 'efficacy'"),
        ({"on_error": "skip"}, OptionError, "on_error='skip'"),
    ):
        given = {"editors": twice, "cases": cases[:1]} | wrong
        with pytest.raises(error, match=words):
            wb.compare_steps(tiny, given.pop("editors"), given.pop("cases"), **given)


def test_a_model_that_an_editor_cannot_edit(make_view) -> None:
    view = make_view("bert")
    request = wb.EditRequest(prompt="Bo lives", target_new="yes")
    chosen = {"ROME": wb.ROME(layers=(0,)), "FT": wb.FT(layers=(0, 1), lr=1e-2, steps=30)}
    found = wb.compare(view, chosen, request)
    assert "needs a decoder" in found.summary.problem[0] and found.summary.exact[1] == 1


# ---------------------------------------------------------------------- figures


def test_the_dots_are_the_summary(found) -> None:
    fig = wb.plot_comparison(found)
    traces = {t.name: t for t in fig.data}
    for measure in ("efficacy", "paraphrase", "neighborhood"):
        x = traces[measure].x
        assert list(x[[0, 1, 3]]) == found.summary[measure][[0, 1, 3]].tolist()
        high = found.summary[f"{measure}_high"] - found.summary[measure]
        assert traces[measure].error_x.array[3] == pytest.approx(high[3])
    assert len({traces[m].marker.symbol for m in ("efficacy", "paraphrase", "neighborhood")}) == 3
    assert [a.text for a in fig.layout.annotations if "refused: layers=(99,)" in a.text]
    assert "refuses: layers=(99,)" in alt_text(fig)
    with pytest.raises(OptionError, match="none of efficacy"):
        wb.plot_comparison(pd.DataFrame({"editor": ["a"], "speed": [1]}))


def test_the_grid_is_drawn_with_symbols(found) -> None:
    fig = wb.plot_comparison_grid(found, kind="neighborhood")
    cells = fig.data[0]
    shares = {0.0: "○", 1.0: "●"}
    for row, texts in zip(cells.z, cells.text, strict=True):
        assert [t for t in texts] == ["" if v != v else shares.get(v, "◐") for v in row]
    assert any("◐" in texts for texts in cells.text)
    assert list(fig.data[1].x) == [2] * 6 and fig.data[1].text == "–"
    assert "refuses refused" in alt_text(fig) and "● every probe right" in str(fig.layout.title)
    assert wb.plot_comparison_grid(found, value="exact").layout.height == 380
    with pytest.raises(OptionError, match="kind='upstream' has no probes; there are efficacy"):
        wb.plot_comparison_grid(found, kind="upstream")
