"""Edit only on error: what is edited, what is measured, planned = in turn, resuming."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.editors.memory.examples import queries
from workbench.errors import OptionError
from workbench.metrics.judging import averages, judge
from workbench.runs import RunFolder
from workbench.tasks import Task

#: Columns that hold time, and metrics that do.
TIMES = ("seconds_editing", "seconds_measuring", "edits_per_second", "slowdown")


def case(i: int, *, true: bool = False, name: str | None = None) -> wb.EditCase:
    """Fact ``i`` of the tiny world, changed or as it is, with another wording as the holdout."""
    found = wb.datasets.tiny(limit=40)[i]
    r = found.request
    target = (r.target_true or "") if true else r.target_new
    asked = wb.EditRequest(prompt=r.prompt, subject=r.subject, target_new=target)
    other = next(p.prompt for p in found.probes if p.kind == "paraphrase")
    own = wb.Probe(prompt=r.text, target=target)
    held = wb.Probe(prompt=other, target=target, kind="holdout")
    return wb.EditCase(request=asked, probes=(own, held), case_id=name or f"{i}")


def upstream(n: int = 6) -> tuple[wb.Probe, ...]:
    facts = [c.request for c in wb.datasets.tiny(limit=40)[-n:]]
    return tuple(
        wb.Probe(prompt=r.text, target=r.target_true or "", kind="upstream") for r in facts
    )


def task(kind: str = "qa", cases: list[wb.EditCase] | None = None) -> Task:
    """Eight cases of which 2 and 5 are right already, then the first once more."""
    held = cases or [case(i, true=i in (2, 5)) for i in range(8)] + [case(0, name="again")]
    return Task(name="t", kind=kind, cases=held, upstream={"facts": upstream()})


@pytest.fixture(scope="module")
def _t5() -> wb.ModelView:
    return wb.load("tiny-t5", device="cpu")


@pytest.fixture
def t5(_t5: wb.ModelView) -> Any:
    yield _t5
    _t5.reset()


def grace(view: wb.ModelView, **options: Any) -> wb.GRACE:
    return wb.GRACE.preset(view, **({"steps": 15} | options))


def metric(out: Path, name: str, task: str | None = None) -> dict[int, float]:
    table = wb.moments(out)
    part = table[(table["metric"] == name) & ((table["task"] == task) if task else True)]
    return dict(zip(part["step"], part["value"], strict=True))


def same_tables(a: Path, b: Path) -> None:
    """Bit for bit but for times."""
    ours, theirs = (
        m[~m["metric"].isin(TIMES)].drop(columns="run").reset_index(drop=True)
        for m in (wb.moments(a), wb.moments(b))
    )
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    rows = [wb.stream_rows(x).drop(columns=["run", "seconds"]) for x in (a, b)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)


def test_only_what_is_wrong_by_then_is_edited(t5: wb.ModelView, tmp_path: Path) -> None:
    rows = wb.lifelong(tmp_path / "run", t5, grace(t5), task())
    edited = [e.requests[0].text for e in t5.stack]
    assert edited == [case(i).request.text for i in (0, 1, 3, 4, 6, 7)]
    records = RunFolder(tmp_path / "run").records()[1:]
    passed = [r["case_ids"][0] for r in records if r["skipped"] == "right already"]
    assert passed == ["2", "5", "again"]  # the last one because its entry answers it by then
    assert rows.attrs["skipped"] == {} and rows.attrs["complete"]
    assert set(rows["case_id"]) == {"0", "1", "3", "4", "6", "7"}


def test_a_run_ends_with_so_many_edits(t5: wb.ModelView, tmp_path: Path) -> None:
    for ahead in (1, 32):
        t5.reset()
        wb.lifelong(tmp_path / str(ahead), t5, grace(t5), task(), edits=3, ahead=ahead)
        assert len(t5.stack) == 3
        assert max(metric(tmp_path / str(ahead), "err", "f1")) == 3
    assert len(RunFolder(tmp_path / "32").records()) == 1 + 4  # case 2 was right, 4 never came


def test_planned_is_in_turn(t5: wb.ModelView, tmp_path: Path) -> None:
    """Oracle 15, with cases that wait for an entry, widen one and contradict one."""
    first = case(0)
    worded = next(p for p in first.probes if p.kind == "holdout")
    more = wb.EditRequest(prompt=worded.prompt, target_new=worded.target)
    other = wb.EditRequest(prompt=first.request.text, target_new=case(1).request.target_new)
    cases = [*task().cases, wb.EditCase(request=more, case_id="w")]
    cases.append(wb.EditCase(request=other, case_id="o"))
    start = grace(t5, steps=8)
    asked = [first.request.text, worded.prompt]
    keys, _ = queries(t5, asked, start.place(t5), start.settings(t5))
    editor = start.with_options(epsilon=0.7 * float((keys[0] - keys[1]).norm()))
    stacks = {}
    for ahead in (1, 4, 32):
        t5.reset()
        wb.lifelong(tmp_path / str(ahead), t5, editor, task(cases=cases), ahead=ahead)
        stacks[ahead] = t5.stack
    ops = [e.report["events"][0]["op"] for e in stacks[1]]
    assert {"add", "overwrite"} <= set(ops) and {"expand", "split"} & set(ops)
    for ahead in (4, 32):
        assert [e.report["events"][0]["op"] for e in stacks[ahead]] == ops
        for ours, theirs in zip(stacks[ahead], stacks[1], strict=True):
            a, b = (e.adapters[0].tensors for e in (ours, theirs))
            assert torch.equal(a["ids"], b["ids"])
            for name, tolerance in (("keys", 1e-5), ("radii", 1e-5), ("values", 5e-3)):
                torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=0)
        for name in ("err", "trr", "holdout", "es", "keys"):
            assert metric(tmp_path / str(ahead), name) == metric(tmp_path / "1", name)


def test_edits_in_turn_are_those_of_one_after_another(t5: wb.ModelView) -> None:
    first = case(0).request
    other = wb.EditRequest(prompt=first.text, target_new=case(1).request.target_new)
    batch = [first, case(1).request, first, other]  # an entry is trained again, then overwritten
    editor = grace(t5, steps=5)
    together = editor.edits(t5, batch)
    assert not t5.stack
    for request, planned in zip(batch, together, strict=True):
        alone = editor.edit(t5, request)
        assert planned.report["events"][0]["op"] == alone.report["events"][0]["op"]
        assert planned.report["size"] == alone.report["size"]
        for name in ("keys", "radii", "values"):
            a, b = (e.adapters[0].tensors[name] for e in (planned, alone))
            torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
        with warnings.catch_warnings():  # it says so where a request is written again
            warnings.simplefilter("ignore", UserWarning)
            t5.push(planned)
    assert [e.report["events"][0]["op"] for e in together] == ["add", "add", "refine", "overwrite"]
    assert together[1].parents == (together[0].id,)


def test_curves_are_what_measuring_after_every_edit_gives(t5: wb.ModelView, tmp_path: Path) -> None:
    """Oracle 16."""
    given = task()
    out = tmp_path / "run"
    wb.lifelong(out, t5, grace(t5, epsilon=1.5), given)
    held = [c for c in given.cases if c.request in {e.requests[0] for e in t5.stack}][:6]
    for n in range(len(t5.stack) + 1):
        with t5.at(n):
            own = [c.probes[0] for c in held[:n]]
            other = [c.probes[1] for c in held[:n]]
            for name, task_name, probes in (
                ("err", "f1", own),
                ("err", "match", own),
                ("holdout", "f1_compat", other),
                ("trr", "facts: f1", given.upstream["facts"]),
                ("es", "f1", own[-1:]),
            ):
                wanted = averages("qa", judge(t5, "qa", probes)).get(task_name.split(": ")[-1])
                assert metric(out, name, task_name).get(n) == pytest.approx(wanted), (n, name)
    assert metric(out, "holdout", "f1")[6] > 0, "the radius was meant to hold other wordings"


@pytest.mark.parametrize("name", ["GRACE", "FT"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    t5: wb.ModelView, tmp_path: Path, name: str
) -> None:
    editor = grace(t5) if name == "GRACE" else wb.FT(layers=(1,), lr=5e-3, steps=10)
    given = {"every": 2, "ahead": 3, "sample": 2}
    wb.lifelong(tmp_path / "calm", t5, editor, task(), **given)
    t5.reset()

    def die(step: wb.StreamStep) -> None:
        if step.batch == 2 and not seen:  # the third of a group was foreseen to be right
            seen.append(step.batch)
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        wb.lifelong(tmp_path / "cut", t5, editor, task(), on_step=die, **given)
    t5.reset()
    assert RunFolder(tmp_path / "cut").status()["state"] == "interrupted"
    wb.lifelong(tmp_path / "cut", t5, editor, task(), **given)
    same_tables(tmp_path / "cut", tmp_path / "calm")
    with pytest.raises(OptionError, match="task"):
        wb.lifelong(tmp_path / "cut", t5, editor, task(), edits=2, **given)


def test_other_editors_are_measured_on_the_way(t5: wb.ModelView, tmp_path: Path) -> None:
    out = tmp_path / "run"
    editor = wb.FT(layers=(1,), lr=5e-3, steps=10)
    wb.lifelong(out, t5, editor, task(), edits=5, every=2, sample=3)
    table = wb.moments(out)
    asked = table[(table["metric"] == "err") & (table["task"] == "f1")]
    assert dict(zip(asked["step"], asked["n"], strict=True)) == {2: 2, 4: 3, 5: 5}
    assert sorted(metric(out, "es", "f1")) == [1, 2, 3, 4, 5]
    assert sorted(metric(out, "trr", "facts: f1")) == [0, 2, 4, 5]
    assert metric(out, "trr", "facts: f1")[0] == 1 and "keys" not in set(table["metric"])
    assert list(metric(out, "slowdown")) == [5]


def test_classes_and_texts(tiny: wb.ModelView, tmp_path: Path) -> None:
    bert = wb.load("tiny-bert", device="cpu")
    wb.lifelong(tmp_path / "b", bert, grace(bert), task("classification"), edits=3)
    assert len(bert.stack) == 3 and "2" not in {r for e in bert.stack for r in [e.requests[0].text]}
    assert metric(tmp_path / "b", "es", "accuracy")[3] == 1
    cases = [case(i, true=True) for i in range(3)]
    texts = Task(
        name="x", kind="text", cases=cases, upstream={"u": upstream(3)}, accurate=upstream(2)
    )
    wb.lifelong(tmp_path / "t", tiny, grace(tiny, steps=3), texts)
    assert len(tiny.stack) == 3, "texts are always edited"
    before, after = (metric(tmp_path / "t", "arr", "perplexity")[n] for n in (0, 3))
    assert after == pytest.approx(before, rel=1e-4), "no entry answers other prompts"
    assert set(metric(tmp_path / "t", "err", "corpus_perplexity")) == {1, 2, 3}


def test_bad_options_are_refused(t5: wb.ModelView, tmp_path: Path) -> None:
    for wrong in ({"edits": 0}, {"every": 0}, {"sample": -1}, {"ahead": 0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            wb.lifelong(tmp_path / "a", t5, grace(t5), task(), **wrong)
    t5.push(grace(t5, steps=1).edit(t5, case(0).request))
    with pytest.raises(OptionError, match="holds 1 edits"):
        wb.lifelong(tmp_path / "a", t5, grace(t5), task())
    with pytest.raises(OptionError, match="holds 1 edits"):
        wb.radius_study(t5, task(), layers=(1,))
    with pytest.raises(OptionError, match="holds 1 edits"):
        wb.GRACE.calibrate(t5, task().cases)


def test_the_study_has_a_row_a_layer_and_radius(t5: wb.ModelView) -> None:
    table = wb.radius_study(t5, task(), layers=(1,), epsilons=(0.05, 1.5), edits=4, steps=15)
    assert not t5.stack
    assert table["edits"].tolist() == [0, 4, 4] and table["trr"][0] == 1
    narrow, wide = table.iloc[1], table.iloc[2]
    assert narrow["err"] == wide["err"] == 1
    assert wide["holdout"] > narrow["holdout"], "a wider ball holds more wordings"
    figure = wb.plot_radii(table)
    assert "keys" in figure.layout.meta["alt"] and len(figure.data) == 4
    with pytest.raises(OptionError, match="plot_radii"):
        wb.plot_radii(table.drop(columns="trr"))


def test_calibration_covers_most_among_what_spares_enough(t5: wb.ModelView) -> None:
    cases = wb.datasets.tiny(limit=8)
    given = {"layers": (1,), "epsilons": (0.05, 0.6, 3.0), "steps": 20}
    found = wb.GRACE.calibrate(t5, cases, spared=0.5, **given)
    table = found.table
    assert table["covered"].is_monotonic_increasing and table["spared"].is_monotonic_decreasing
    allowed = table[table["spared"] >= 0.5]
    best = allowed.loc[allowed["covered"].idxmax()]
    assert found.editor.epsilon == best["epsilon"] and found.editor.layers == (1,)
    assert best["exact"] == 1 and table["exact"].notna().sum() == 1
    strict = wb.GRACE.calibrate(t5, cases, spared=1.0, **given)
    assert strict.editor.epsilon < found.editor.epsilon
    assert not t5.stack and "covered" in found.figure.layout.meta["alt"]
