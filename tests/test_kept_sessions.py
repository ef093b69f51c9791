"""Sessions that are kept: what was finished comes back, whoever ended it, and nobody else's."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench import atomic
from workbench.demo import weights_digest
from workbench.errors import BusyError, DataError, OptionError
from workbench.session import Session
from workbench.session.keeping import KEPT, LOCK, sessions_dir


@pytest.fixture
def view(tiny: wb.ModelView, tmp_path: Path, monkeypatch: Any) -> Iterator[wb.ModelView]:
    for module in ("resuming", "keeping"):
        monkeypatch.setattr(f"workbench.session.{module}.cache_dir", lambda name: tmp_path / name)
    yield tiny
    tiny.reset()


def worked(view: wb.ModelView, n: int = 2) -> Session:
    """A session in which some facts were accepted."""
    session = Session(view, editor="FT", autosave=True)
    for case in wb.datasets.tiny(limit=n):
        session.take(case)
        accept(session)
    return session


def accept(session: Session) -> None:
    """Without the measurements of a dry run."""
    session.preview = session.editor.with_options(steps=1).edit(session.view, session.cases)
    session.accept()


def end(session: Session) -> None:
    """As a process that dies does: nothing is written, the lock is gone."""
    assert session._keeper is not None
    session._keeper.close()
    session.view.reset()


def test_a_session_comes_back_as_it_was(view: wb.ModelView) -> None:
    session = worked(view, 3)
    session.note(session.view.stack[1].id, "the second")
    session.undo()
    session.adjust(steps=7)
    session.redo()
    session.undo()
    wanted, ids = weights_digest(view), [e.id for e in view.stack]
    assert Session(view, autosave=True).earlier() == [], "it has not ended"
    end(session)
    again = Session(view, autosave=True)
    (kept,) = again.earlier()
    assert kept.n_edits == 2 and kept.describe().startswith("2 edits, 20")
    assert [e.id for e in again.restore(kept)] == ids and weights_digest(view) == wanted
    assert again.cases == session.cases and again.notes == session.notes
    assert again.editor == session.editor and again.redoable == 1
    again.redo()
    assert len(view.stack) == 3 and again.earlier() == []
    end(again)
    (kept,) = Session(view, autosave=True).earlier()
    assert kept.n_edits == 3, "one that was restored is kept in turn, in its old place"


def test_a_look_at_ended_sessions_keeps_nobody_from_them(view: wb.ModelView) -> None:
    session = worked(view, 1)
    folder = session._keeper.folder  # type: ignore[union-attr]
    end(session)
    again = Session(view, autosave=True)
    look = atomic.try_lock(folder / LOCK, shared=True)  # as another process looks
    assert look is not None
    (kept,) = again.earlier()
    over = threading.Timer(0.1, look.close)
    over.start()
    assert len(again.restore(kept)) == 1
    over.join()
    assert atomic.try_lock(folder / LOCK, shared=True) is None, "now it is open: no look helps"


def test_what_a_stream_had_finished_comes_back(view: wb.ModelView, tmp_path: Path) -> None:
    """What lies on the disk after three of five batches is what a kill would leave."""
    session, states = worked(view, 1), []
    cases = wb.datasets.tiny(limit=6)[1:]

    def snapshot(step: Any) -> None:
        states.append((weights_digest(view), [e.id for e in view.stack]))
        if step.batch == 3:
            for name in ("sessions", "runs"):
                shutil.copytree(tmp_path / name, tmp_path / "then" / name)

    session.stream(cases, on_step=snapshot)
    end(session)
    (folder,) = (tmp_path / "sessions").rglob("session.json")
    held = json.loads(folder.read_text())
    assert len(held["edits"]) == 6 and held["stream"] is None
    run = next((tmp_path / "runs").rglob("000005.safetensors"))
    assert run.stat().st_nlink == 2, "a run's edits are not stored twice"
    for name in ("sessions", "runs"):
        shutil.rmtree(tmp_path / name)
        (tmp_path / "then" / name).rename(tmp_path / name)
    again = Session(view, editor="FT", autosave=True)
    (kept,) = again.earlier()
    again.restore(kept)
    assert (weights_digest(view), [e.id for e in view.stack]) == states[3] and kept.n_edits == 4
    again.stream(cases)
    assert (weights_digest(view), [e.id for e in view.stack]) == states[5]
    assert len(list((tmp_path / "runs").iterdir())) == 1, "the same run went on"


def test_a_session_of_another_model_is_not_offered(view: wb.ModelView, make_view: Any) -> None:
    end(worked(view, 1))
    other = Session(make_view("gpt2"), autosave=True)
    assert other.earlier() == [] and sessions_dir(other.view) != sessions_dir(view)


def test_what_cannot_be_restored_is_refused_and_changes_nothing(view: wb.ModelView) -> None:
    end(worked(view, 2))
    plain, again = Session(view), Session(view, autosave=True)
    (kept,) = again.earlier()
    assert plain.earlier() == []
    with pytest.raises(OptionError, match="autosave=True"):
        plain.restore(kept)
    rival = Session(view, autosave=True)
    rival.restore(kept)
    with pytest.raises(OptionError, match="holds 2 edits"):
        again.restore(kept)
    view.reset()
    with pytest.raises(BusyError, match="open elsewhere"):
        again.restore(kept)
    end(rival)
    file = sorted((kept.path / "edits").iterdir())[1]
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)
    before = weights_digest(view)
    with pytest.raises(DataError, match=file.stem):
        again.restore(kept)
    assert not view.stack and weights_digest(view) == before
    assert [k.path for k in again.earlier()] == [kept.path], "the lock was given back"
    again.forget(kept)
    assert again.earlier() == [] and not kept.path.exists()


def test_a_damaged_list_is_not_offered(view: wb.ModelView, tmp_path: Path) -> None:
    end(worked(view, 1))
    (listed,) = tmp_path.rglob("session.json")
    for text in ("{", "[]", listed.read_text().replace("workbench-session/1", "workbench-x/1")):
        listed.write_text(text)
        assert Session(view, autosave=True).earlier() == []


def test_the_oldest_go(view: wb.ModelView, tmp_path: Path) -> None:
    for _ in range(KEPT + 2):
        end(worked(view, 1))
    offered = Session(view, autosave=True).earlier()
    assert len(offered) == KEPT == len(list(tmp_path.rglob("session.json")))
    assert [k.saved for k in offered] == sorted((k.saved for k in offered), reverse=True)


def test_files_that_no_edit_needs_go(view: wb.ModelView, tmp_path: Path) -> None:
    session = worked(view, 2)
    gone = session.drop(0)
    names = {p.stem for p in tmp_path.rglob("edits/*.safetensors")}
    assert names == {e.id for e in view.stack} and gone.id not in names


def test_a_full_disk_costs_the_copy_and_not_the_work(
    view: wb.ModelView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = worked(view, 1)
    (before,) = tmp_path.rglob("session.json")
    text = before.read_text()
    session.take(wb.datasets.tiny(limit=2)[1:])
    session.preview = session.editor.edit(view, session.cases)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", full)
        with pytest.warns(UserWarning, match="was not kept.*No space left"):
            session.accept()
    assert len(view.stack) == 2 and before.read_text() == text
    session.note(view.stack[0].id, "now there is room")
    assert len(json.loads(before.read_text())["edits"]) == 2
