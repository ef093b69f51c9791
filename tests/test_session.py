"""A session: what a person does at the bench, as method calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import workbench as wb
from workbench.demo import weights_digest
from workbench.errors import EditMismatchError, OptionError, RequestError, WorkbenchError
from workbench.metrics.generation import next_probs
from workbench.session import Session, write_report
from workbench.session.looking import Looker


@pytest.fixture
def session(tiny: wb.ModelView) -> Iterator[Session]:
    made = Session(tiny)
    made.take(wb.datasets.tiny(limit=1))
    yield made
    tiny.reset()


@pytest.fixture
def here(monkeypatch: Any, tmp_path: Path) -> Path:
    """Runs go to a folder of the test's own."""
    monkeypatch.setattr("workbench.session.resuming.cache_dir", lambda name: tmp_path / name)
    return tmp_path


# -------------------------------------------------------------------- dry run, accept, undo


def test_a_dry_run_changes_nothing_and_accepting_writes_the_very_edit(session: Session) -> None:
    before = weights_digest(session.view)
    found = session.dry_run()
    assert found.took and session.preview is not None and not session.view.stack
    assert weights_digest(session.view) == before
    with session.view.applied(session.preview):
        tried = weights_digest(session.view)
    edit = session.accept()
    assert weights_digest(session.view) == tried != before
    assert session.receipts[(edit.id,)].facts is found.facts and session.preview is None
    assert session.receipts[(edit.id,)].where == "tiny + 1 edit, entry 0 of the stack"
    assert session.undo().id == edit.id and weights_digest(session.view) == before
    assert session.redoable == 1
    session.redo()
    assert weights_digest(session.view) == tried and not session.redoable


def test_nothing_to_preview_accept_or_redo_is_said(tiny: wb.ModelView) -> None:
    session = Session(tiny)
    for act, said in (
        (session.dry_run, "no fact on the desk"),
        (session.accept, "preview an edit first"),
        (session.redo, "nothing to put back"),
        (lambda: session.take([]), "at least one"),
        (lambda: session.look_at(1), "holds 0 edits"),
        (lambda: session.compare(["ROME"]), "at least two"),
        (lambda: session.save("x.safetensors"), "stack is empty"),
    ):
        with pytest.raises(OptionError, match=said):
            act()


def test_a_preview_ends_with_what_it_was_made_of(session: Session) -> None:
    session.dry_run()
    session.choose("FT")
    assert session.preview is None
    session.dry_run()
    session.take(wb.datasets.tiny(limit=2))
    assert session.preview is None and len(session.cases) == 2


def test_an_editor_that_is_refused_leaves_the_old_one(session: Session) -> None:
    before = session.editor
    for name, options in (("Rome2", {}), ("ROME", {"layerz": 1})):
        with pytest.raises(OptionError):
            session.choose(name, **options)
    assert session.editor is before


# -------------------------------------------------------------------- the stack


@pytest.fixture
def stacked(session: Session) -> Session:
    """Three accepted edits."""
    for case in wb.datasets.tiny(limit=3):
        session.take(case)
        session.dry_run()
        session.accept()
    return session


def test_dropping_keeps_later_edits_and_replaying_computes_them_again(stacked: Session) -> None:
    ids = [e.id for e in stacked.view.stack]
    stacked.undo()
    stacked.redo()
    gone = stacked.drop(0)
    assert gone.id == ids[0] and [e.id for e in stacked.view.stack] == ids[1:]
    assert not stacked.redoable, "what was undone before belongs to another past"
    stacked.drop(0, replay=True)
    assert len(stacked.view.stack) == 1 and stacked.view.stack[0].id != ids[2]


def test_time_is_scrubbed_without_changing_anything(stacked: Session) -> None:
    looker, now = Looker(stacked), weights_digest(stacked.view)
    text = wb.datasets.tiny(limit=1)[0].request.text
    for n in (0, 1, 3):
        stacked.look_at(n)
        answers = looker.answers(text)
        with stacked.view.at(n):
            wanted = wb.next_tokens(stacked.view, text, top_k=5)
        assert answers.after is not None
        assert answers.after.head(5)[["token", "prob"]].equals(wanted[["token", "prob"]])
        assert weights_digest(stacked.view) == now
    assert stacked.moment is None, "the newest moment is now"


def test_the_timeline_tells_what_became_of_each(stacked: Session) -> None:
    stacked.notes[stacked.view.stack[1].id] = "the second"
    table = stacked.timeline()
    assert table["entry"].tolist() == [0, 1, 2] and (table["took"] == 1).all()
    assert table["note"].tolist() == ["", "the second", ""]
    assert table["target"].tolist() == [e.requests[0].target_new for e in stacked.view.stack]
    stacked.view.push(wb.FT.preset(stacked.view).edit(stacked.view, wb.datasets.tiny(limit=5)[4:]))
    assert stacked.timeline()["took"].isna().tolist() == [False, False, False, True]


def test_where_we_are_is_said(stacked: Session) -> None:
    assert stacked.describe() == "tiny · 3 edits"
    stacked.look_at(1)
    assert stacked.describe().endswith("looking at the moment after 1")
    stacked.dry_run()
    assert "preview of ROME, not applied" in stacked.describe()
    stacked.view.reset()
    stacked.discard()
    assert stacked.describe() == "tiny · unedited"


# -------------------------------------------------------------------- looking


def test_sides_are_the_ones_a_person_means(session: Session) -> None:
    looker = Looker(session)
    assert [s.name if s else None for s in looker.sides()] == ["now", None]
    assert looker.focus() is None and looker.receipt() is None
    session.dry_run()
    before, after = looker.sides()
    assert after is not None and (before.name, after.name) == ("now", "with the preview")
    session.accept()
    before, after = looker.sides()
    assert after is not None and (before.name, after.name) == ("unedited", "now")
    session.look_at(0)
    before, after = looker.sides()
    assert after is not None and after.edits == () and "0 of 1" in after.name


def test_each_side_lists_what_the_other_one_does(stacked: Session) -> None:
    request = stacked.cases[0].request
    found = Looker(stacked).answers(request.text, Looker.pins(request))
    assert found.after is not None
    assert set(found.before["token_id"]) == set(found.after["token_id"])
    assert found.before["pinned"].sum() == 2 == found.after["pinned"].sum()


def test_nothing_is_measured_twice(stacked: Session, monkeypatch: Any) -> None:
    looker, asked = Looker(stacked), []

    def counted(view: Any, prompt: str) -> Any:
        asked.append(prompt)
        return next_probs(view, prompt)

    monkeypatch.setattr("workbench.session.looking.next_probs", counted)
    for moment in (None, 1, None, 1, 2, 2):
        stacked.look_at(moment)
        looker.answers("Klara Farnfeld works as a")
    assert len(asked) == 4  # unedited, and after 3, 1 and 2 edits


def test_tables_about_an_edit_do_not_depend_on_later_ones(stacked: Session) -> None:
    looker, first = Looker(stacked), stacked.view.stack[0]
    stacked.look_at(1)
    then = looker.shift(first.requests[0].text)
    stacked.view.reset()
    alone = wb.residual_shift(stacked.view, first, first.requests[0].text)
    pd.testing.assert_frame_equal(then, alone)


def test_gates_are_there_only_with_hook_layers(session: Session) -> None:
    looker, text = Looker(session), session.cases[0].request.text
    assert looker.gates(text) is None
    session.choose("CoachHook")
    session.dry_run()
    table = looker.gates(text)
    assert table is not None and table["open"].any()
    session.discard()
    assert looker.gates(text) is None


# -------------------------------------------------------------------- long work


def test_a_stream_stops_by_hand_and_goes_on(session: Session, here: Path) -> None:
    session.choose("FT")
    cases, seen = wb.datasets.tiny(limit=6), []
    rows = session.stream(cases, on_step=lambda s: seen.append(s.batch), stop=lambda: len(seen) > 3)
    assert rows.attrs["stopped"] == "stopped by hand" and len(session.view.stack) == 3
    folder = session.run_folder(cases, 1, subset=50, watch_all=False)
    rows = session.stream(cases)
    assert session.run_folder(cases, 1, subset=50, watch_all=False) != folder, (
        "a finished run is not gone on with"
    )
    assert len(session.view.stack) == 6 and rows["step"].max() == 6
    assert sorted(p.name for p in (here / "runs").iterdir()) == [folder.name]


def test_another_session_finds_the_unfinished_run(session: Session, here: Path) -> None:
    session.choose("FT")
    cases = wb.datasets.tiny(limit=4)
    session.stream(cases, stop=lambda: True)
    session.view.reset()
    again = Session(session.view, editor="FT")
    rows = again.stream(cases)
    assert rows["step"].max() == 4 and len(list((here / "runs").iterdir())) == 1


def test_editors_are_compared_and_the_model_is_as_before(session: Session) -> None:
    session.choose("ROME", steps=3)
    before = weights_digest(session.view)
    found = session.compare(["ROME", "FT"])
    assert found.summary["editor"].tolist() == ["ROME", "FT"]
    assert found.edits["ROME"].config["steps"] == 3, "the chosen options count"
    assert weights_digest(session.view) == before and not session.view.stack


# -------------------------------------------------------------------- files


def test_one_edit_and_several_are_saved_and_loaded(stacked: Session, tmp_path: Path) -> None:
    wanted = weights_digest(stacked.view)
    for path in (tmp_path / "all.safetensors", tmp_path / "all"):
        made = stacked.save(path)
        assert made.is_dir() is (path.suffix == "")
        stacked.view.reset()
        assert len(stacked.load(made)) == 3 and weights_digest(stacked.view) == wanted
    stacked.view.reset()
    stacked.dry_run()
    edit = stacked.accept()
    one = stacked.save(tmp_path / "one.safetensors")
    stacked.view.reset()
    assert stacked.load(one)[0].id == edit.id


def test_a_load_that_fails_or_adds_nothing_loses_nothing(stacked: Session, tmp_path: Path) -> None:
    one = stacked.view.stack[0].save(tmp_path / "one.safetensors")
    stacked.undo()
    stacked.dry_run()
    with pytest.raises(WorkbenchError):
        stacked.load(tmp_path / "nothing")
    assert stacked.preview is not None and stacked.redoable == 1
    with pytest.warns(UserWarning, match="already"):
        assert stacked.load(one) == ()


def test_what_another_thread_sees_is_the_stack_that_lasts(stacked: Session) -> None:
    with stacked.view.at(1), stacked.view.pristine():
        assert len(stacked.view.stack) == 0 and len(stacked.view.held) == 3
        assert stacked.describe() == "tiny · 3 edits"
    assert stacked.view.held == stacked.view.stack


def test_an_edit_of_another_model_is_refused(
    stacked: Session, make_view: Any, tmp_path: Path
) -> None:
    folder = stacked.save(tmp_path / "all")
    other = Session(make_view("gpt2"))
    with pytest.raises(EditMismatchError):
        other.load(folder)
    assert not other.view.stack


def test_the_report_holds_every_edit_and_asks_nothing_outside(
    stacked: Session, tmp_path: Path
) -> None:
    looker = Looker(stacked)
    shift = wb.plot_residual_shift(looker.shift(stacked.cases[0].request.text))
    page = write_report(stacked, tmp_path / "edits.html", figures=[shift]).read_text()
    for edit in stacked.view.stack:
        assert edit.id in page and edit.requests[0].target_new in page
    assert page.count('class="wb-figure"') == 4
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.http", page)
    assert len(page) < 6_000_000


def test_a_fact_the_model_cannot_read_is_refused_before_anything(session: Session) -> None:
    session.take(wb.EditRequest(prompt="no subject here", target_new="Rome"))
    with pytest.raises(RequestError, match="subject"):
        session.dry_run()
    assert session.preview is None and not session.receipts
