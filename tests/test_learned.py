"""Trained editors: their files, whose they are, how they are trained and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from learned import LEARNED, SETTINGS, few_lessons, untrained

import workbench as wb
from workbench.editors import EDITORS
from workbench.editors.learned.base import LearnedEditor, deltas_of, settings_from
from workbench.editors.learned.files import file_name, read_trained
from workbench.editors.learned.gradients import capture
from workbench.editors.learned.learner import Learner
from workbench.editors.learned.lessons import Lessons
from workbench.editors.learned.mend import MEND, MendLearner, MendSettings
from workbench.editors.learned.outcome import divergence, evaluate, outcome
from workbench.editors.learned.recipe import Recipe
from workbench.editors.learned.tasks import make_lessons
from workbench.editors.learned.texts import logits_of, read
from workbench.edits import WeightEdit
from workbench.errors import DataError, OptionError, UnsupportedEditorError
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.places import shipped
from workbench.progress import progress_to
from workbench.trace import frozen

BO = EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
ANNA = EditRequest(prompt="{} lives in", subject="Anna", target_new="Oslo")
#: Small and quick, with a checkpoint every other step.
QUICK: dict[str, Any] = {
    "batch": 2,
    "together": 2,
    "validate_every": 2,
    "validation": 2,
    "evaluation": 2,
    "validation_local": 1,
}


class Enough(BaseException):
    """Ends a training from its progress hook."""


@contextmanager
def until(step: int) -> Iterator[None]:
    def sink(phase: str, done: int, total: int | None) -> None:
        if phase.startswith("training") and done >= step:
            raise Enough

    with pytest.raises(Enough), progress_to(sink):
        yield


def fresh(view: ModelView, name: str = "MEND", **options: Any) -> Learner:
    cls: Any = EDITORS[name]
    given = cls.usual(view) | SETTINGS[name] | options
    return cls.learner(view, cls.settings_class(**given)).requires_grad_(False)  # type: ignore[no-any-return]


# -------------------------------------------------------------------- files


@pytest.mark.parametrize("name", LEARNED)
def test_another_model_is_refused(make_view, name: str) -> None:
    cls: Any = EDITORS[name]
    editor = cls(weights=str(untrained(name, make_view("llama"))))
    assert editor.unsupported(make_view("llama")) is None
    other = make_view("llama", seed=1)
    with pytest.raises(UnsupportedEditorError, match="trained for random llama.*workbench train"):
        editor.edit(other, BO)


@pytest.mark.parametrize("name", LEARNED)
def test_files_that_are_no_trained_editors(make_view, tmp_path, name: str) -> None:
    view = make_view("llama")
    cls: Any = EDITORS[name]
    good = untrained(name, view)
    whole = good.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    (tmp_path / "text.safetensors").write_text("nothing")
    for weights, sha256, words in (
        (tmp_path / "none.safetensors", "", "no trained editor at"),
        (tmp_path / "cut.safetensors", "", "no trained editor, or damaged"),
        (tmp_path / "text.safetensors", "", "no trained editor, or damaged"),
        (good, "0" * 64, "another file"),
    ):
        with pytest.raises(UnsupportedEditorError, match=words):
            cls(weights=str(weights), sha256=sha256).edit(view, BO)
    others = [n for n in LEARNED if n != name]
    if others:
        with pytest.raises(UnsupportedEditorError, match=f"is a trained {others[0]}"):
            cls(weights=str(untrained(others[0], view))).edit(view, BO)
    for option, value in (("weights", 3), ("sha256", None), ("scale", 0.0), ("scale", "x")):
        with pytest.raises(OptionError, match=option):
            cls(**{"weights": str(good), option: value}).edit(view, BO)
    with pytest.raises(OptionError, match="Did you mean 'weights'"):
        cls(weight=str(good))


@pytest.mark.parametrize("name", LEARNED)
def test_a_preset_is_found_or_says_how_to_train(make_view, tmp_path, monkeypatch, name) -> None:
    view = make_view("gpt2")
    cls: Any = EDITORS[name]
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    with pytest.raises(OptionError, match=f"workbench train {name.lower()} --model random gpt2"):
        cls.preset(view)
    with pytest.raises(OptionError, match="Did you mean 'paper'"):
        cls.preset(view, "papr")
    place = tmp_path / "editors" / file_name(name, view.fingerprint)
    place.parent.mkdir()
    place.write_bytes(untrained(name, view).read_bytes())
    editor = cls.preset(view)
    assert editor.weights == place.name and len(editor.sha256) == 64
    assert cls.from_config(json.loads(json.dumps(editor.config()))) == editor
    edit = editor.edit(view, BO)
    assert edit.config["weights"] == place.name
    half = editor.with_options(scale=0.5).edit(view, BO)
    for a, b in zip(half.deltas[-2:], edit.deltas[-2:], strict=True):
        full, part = (d.materialize(dtype=torch.float64) for d in (b, a))
        assert torch.allclose(2 * part, full, rtol=1e-5)


def test_settings_of_another_version_are_refused() -> None:
    with pytest.raises(DataError, match="does not know"):
        settings_from(MendSettings, {"matrices": ["a"], "colour": 3})
    with pytest.raises(OptionError, match="aggregate='mean'.*Known"):
        MendSettings(matrices=("a",), aggregate="mean")


def test_edits_say_what_they_did(make_view) -> None:
    view = make_view("llama")
    editor = MEND(weights=str(untrained("MEND", view)))
    edit = editor.edit(view, [BO, ANNA])
    rows = edit.report["gradients"]
    assert [r["matrix"] for r in rows] == list(edit.parameters)
    for row, delta in zip(rows, edit.deltas, strict=True):
        assert row["change_norm"] == pytest.approx(
            float(delta.materialize(dtype=torch.float64).norm()), rel=1e-4
        )
        assert row["cosine"] == pytest.approx(-1, abs=1e-4)  # a plain step down
    with pytest.warns(UserWarning, match="trained to write 2 at once"):
        editor.edit(view, [BO, ANNA, EditRequest(prompt="Seattle is", target_new="Rome")])


# -------------------------------------------------------------------- 33, 34: losses


def test_no_change_diverges_by_nothing(make_view) -> None:  # 34
    view = make_view("llama", torch.float64)
    lessons = few_lessons(view)
    drawn = [lessons.draw(i, n_edits=2, n_local=2) for i in range(2)]
    with frozen(view.model):
        still = outcome(view, fresh(view, edit_lr=0.0).double(), drawn, Recipe(), judge=True)
        moved = outcome(view, fresh(view, edit_lr=0.5).double(), drawn, Recipe())
    assert abs(float(still.local)) < 1e-12 and float(moved.local) > 1e-3
    assert still.judged["right_before"] == still.judged["right_after"]
    logits = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)).double()
    assert bool((divergence(logits[0], logits[1]) > 0).all())
    p, q = (t.log_softmax(-1) for t in logits)
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(divergence(logits[0], logits[1]), expected)


def test_step_sizes_have_a_rate_of_their_own(make_view, tmp_path) -> None:  # 33
    view = make_view("llama")
    for rate_lr in (0.0, 1e-3):
        path = tmp_path / f"{rate_lr}.safetensors"
        MEND.train(
            view, few_lessons(view), out=path, steps=1, rank=4, edit_lr=0.01, norm=False,
            rate_lr=rate_lr, lr=1e-5, **QUICK,
        )  # fmt: skip
        rates = read_trained(path)[0].tensors["edit_lr"]
        assert torch.allclose((rates - 0.01).abs(), torch.full_like(rates, rate_lr), atol=1e-6)


def test_lessons_together_are_lessons_alone(make_view) -> None:
    """Independent lessons of one pass do not see each other."""
    view = make_view("gpt2", torch.float64)
    lessons = few_lessons(view)
    drawn = [lessons.draw(i, n_edits=1, n_local=2) for i in range(3)]
    learner = fresh(view, edit_lr=0.05).double()
    with frozen(view.model):
        both = outcome(view, learner, drawn, Recipe())
        alone = [outcome(view, learner, [x], Recipe()) for x in drawn]
        whole = evaluate(view, learner, drawn, Recipe(together=2, batch=2))
    for name in ("edit", "local"):
        mean = sum(float(getattr(x, name)) for x in alone) / 3
        assert float(getattr(both, name)) == pytest.approx(mean, rel=1e-9)
        assert whole[name] == pytest.approx(mean, rel=1e-9)


def test_evaluation_counts(make_view) -> None:
    """Success, accuracy and drawdown are those of edits that are really applied."""
    view = make_view("llama")
    learner = fresh(view, edit_lr=2.0)
    drawn = few_lessons(view).validation(2, n_edits=1, n_local=2)
    with frozen(view.model):
        found = evaluate(view, learner, drawn, Recipe())
    assert found["n"] == 2
    said, kept = [], []
    cls = type(learner)
    assert cls is MendLearner
    for lesson in drawn:
        with frozen(view.model):
            made = learner.rewrite(view, read(view, lesson.edits), n_lessons=1)
        edit = WeightEdit(
            deltas=tuple(deltas_of(view, made.factors)), requests=lesson.edits, editor="MEND",
            config={}, base=view.fingerprint,
        )  # fmt: skip
        with torch.no_grad(), view.applied(edit):
            for texts, into in ((lesson.outer, said), (lesson.local, kept)):
                for request in texts:
                    batch = read(view, [request])
                    right = logits_of(view, batch).argmax(-1) == batch.label
                    into.append(float(right.all()))
    assert found["success"] == sum(said) / len(said)
    assert found["accuracy_after"] == sum(kept) / len(kept)
    assert found["drawdown"] == found["accuracy_before"] - found["accuracy_after"]


# -------------------------------------------------------------------- training


@pytest.mark.parametrize("name", LEARNED)
def test_stopped_training_goes_on_to_the_same_file(make_view, tmp_path, name: str) -> None:
    view = make_view("llama")
    cls: Any = EDITORS[name]
    options = {**SETTINGS[name], **QUICK, "steps": 5, "seed": 3}
    if name == "MEND":
        options["norm"] = True  # statistics must be kept as well
    calm, torn = tmp_path / "calm.safetensors", tmp_path / "torn.safetensors"
    cls.train(view, few_lessons(view), out=calm, **options)
    with until(3):
        cls.train(view, few_lessons(view), out=torn, **options)
    assert not torn.exists() and torn.with_suffix(".checkpoint").exists()
    seen: list[int] = []
    with progress_to(lambda phase, done, total: seen.append(done)):
        cls.train(view, few_lessons(view), out=torn, **options)
    assert seen[0] == 2, "goes on from its checkpoint"
    assert not torn.with_suffix(".checkpoint").exists()
    assert torn.read_bytes() == calm.read_bytes()
    # a complete file is taken as it is; anything else in its place is left alone
    stamp = calm.stat().st_mtime_ns
    cls.train(view, few_lessons(view), out=calm, **options)
    assert calm.stat().st_mtime_ns == stamp
    with pytest.raises(OptionError, match="holds something else.*fresh"):
        cls.train(view, few_lessons(view), out=calm, **{**options, "steps": 6})
    cls.train(view, few_lessons(view), out=calm, fresh=True, **{**options, "steps": 1})
    assert read_trained(calm)[0].training["steps"] == 1
    assert view.stack == () and not any(m._forward_hooks for m in view.model.modules())


def test_training_changes_only_what_it_says(make_view, tmp_path) -> None:
    view = make_view("llama")
    before = {k: t.clone() for k, t in view.model.state_dict().items()}
    asks = [p.requires_grad for p in view.model.parameters()]
    out = tmp_path / "mend.safetensors"
    editor = MEND.train(view, few_lessons(view), out=out, steps=4, rank=4, **QUICK)
    assert all(torch.equal(t, before[k]) for k, t in view.model.state_dict().items())
    assert [p.requires_grad for p in view.model.parameters()] == asks
    trained, sha256 = read_trained(out)
    assert editor == MEND(weights=str(out), sha256=sha256)
    assert trained.base == view.fingerprint and trained.settings["rank"] == 4
    kept = trained.training
    assert kept["lessons"] == few_lessons(view).digest
    assert [row["step"] for row in kept["history"]] == [2, 4]
    assert 0 <= kept["evaluation"]["success"] <= 1


def test_training_stops_when_nothing_gets_better(make_view, tmp_path) -> None:
    view = make_view("llama")
    out = tmp_path / "mend.safetensors"
    MEND.train(
        view, few_lessons(view), out=out, steps=50, rank=4, lr=0.5, patience=3, norm=False, **QUICK
    )
    kept = read_trained(out)[0].training
    assert kept["stopped_at"] <= kept["best_step"] + 4 < 50


def test_bad_training(make_view, tmp_path) -> None:
    view = make_view("llama")
    lessons = few_lessons(view)
    out = tmp_path / "mend.safetensors"
    for options, words in (
        ({"steps": -1}, "steps=-1"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"steps": 1, "rnk": 3}, "no option 'rnk'.*Did you mean 'rank'"),
        ({"steps": 1, "lr": 0.0}, "lr=0.0 must be above 0"),
        ({"steps": 1, "c_edit": -1.0}, "c_edit=-1.0"),
        ({"steps": 1, "batch": 3, "together": 2}, "multiple of together=2"),
        ({"steps": 1, "preset": "papr"}, "Did you mean 'paper'"),
        ({"steps": 1, "matrices": ("lm_head.wieght",)}, "Did you mean 'lm_head.weight'"),
        ({"steps": 1, "factors": "z"}, "factors='z'"),
        ({"steps": 1, "start": "zeros"}, "start='zeros'"),
        ({"steps": 1, "rank": 0}, "rank=0"),
        ({"steps": 1, "ridge": 0.0}, "ridge=0.0"),
        ({"steps": 1, "n_edits": 99}, "n_edits=99"),
    ):
        with pytest.raises(OptionError, match=words):
            MEND.train(view, lessons, out=out, **options)  # type: ignore[arg-type]
    view.push(MEND(weights=str(untrained("MEND", view))).edit(view, BO))
    with pytest.raises(OptionError, match="holds 1 edits.*view.reset"):
        MEND.train(view, lessons, out=out, steps=1)
    assert not out.exists()


def test_a_damaged_checkpoint_is_named(make_view, tmp_path) -> None:
    view = make_view("llama")
    out = tmp_path / "mend.safetensors"
    out.with_suffix(".checkpoint").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged.*fresh=True"):
        MEND.train(view, few_lessons(view), out=out, steps=1, rank=4, **QUICK)
    MEND.train(view, few_lessons(view), out=out, steps=1, rank=4, fresh=True, **QUICK)


CHILD = """
import sys
import workbench as wb
from workbench.editors.learned.lessons import Lessons
lessons = Lessons.from_cases(wb.datasets.tiny(limit=60), seed=0)
wb.MEND.train(wb.load("tiny", device="cpu"), lessons, out=sys.argv[1], steps=4, rank=4, batch=2,
              together=2, validate_every=1, validation=2, evaluation=2)
"""


@pytest.mark.slow
def test_killed_training_goes_on_to_the_same_file(tmp_path) -> None:
    calm, torn = tmp_path / "calm.safetensors", tmp_path / "torn.safetensors"
    mark = torn.with_suffix(".checkpoint")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", CHILD, str(calm)], check=True, env=env)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(torn)], env=env)
    while not mark.is_file() and child.poll() is None:
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert mark.is_file() and not torn.exists(), "killed in time"
    subprocess.run([sys.executable, "-c", CHILD, str(torn)], check=True, env=env)
    assert torn.read_bytes() == calm.read_bytes()


# -------------------------------------------------------------------- does it work?


@pytest.mark.slow
def test_mend_learns_to_edit_the_tiny_model(tiny: ModelView, tmp_path: Path) -> None:
    """At least 90 % of held-out edits answered in other words, at most 5 % of the rest lost."""
    lessons = make_lessons(tiny, "tiny", seed=0)
    out = tmp_path / "mend.safetensors"
    MEND.train(tiny, lessons, out=out, steps=60, seed=0, rank=32, lr=1e-3, rate_lr=1e-4,
               validate_every=30)  # fmt: skip
    found = read_trained(out)[0].training["evaluation"]
    assert found["success"] >= 0.9 and found["drawdown"] <= 0.05
    assert found["accuracy_before"] > 0.95
    # without training, nothing of this
    assert evaluate_untrained(tiny, lessons)["success"] < 0.5


def evaluate_untrained(view: ModelView, lessons: Lessons) -> dict[str, float]:
    cls: type[LearnedEditor] = MEND
    settings = MendSettings(matrices=cls.usual(view)["matrices"], rank=32, norm=False)
    with frozen(view.model):
        drawn = lessons.validation(20, n_edits=1, n_local=4)
        return evaluate(view, cls.learner(view, settings), drawn, Recipe())


# -------------------------------------------------------------------- ENN's preparation


def prepared_enn(view: ModelView, folder: Path) -> Any:
    """An ENN that was trained a little, so that its preparation is not empty."""
    return wb.ENN.train(
        view, few_lessons(view), out=folder / "enn.safetensors", steps=3, lr=1e-2, rank=2, **QUICK
    )


def test_an_edit_brings_the_preparation_along_once(make_view, tmp_path) -> None:
    view = make_view("gpt2")
    enn = prepared_enn(view, tmp_path)
    whole = enn.edit(view, BO)
    bottom = enn.prepare(view)
    assert bottom.requests == () and bottom.nbytes > 0 and not enn.is_prepared(view)
    path = bottom.save(tmp_path / "bottom.safetensors")
    assert wb.load_edit(path).id == bottom.id
    view.push(bottom)
    assert enn.is_prepared(view)
    step = enn.edit(view, BO)
    assert len(step.deltas) < len(whole.deltas) == len(step.deltas) + len(bottom.deltas)
    view.push(step)
    apart = {k: t.clone() for k, t in view.model.state_dict().items()}
    view.reset()
    view.push(whole)
    assert enn.is_prepared(view)
    for name, value in view.model.state_dict().items():
        assert torch.allclose(value, apart[name], atol=1e-6), name
    second = enn.edit(view, ANNA)
    assert len(second.deltas) == len(step.deltas)
    view.pop()
    assert not enn.is_prepared(view)
    with pytest.raises(UnsupportedEditorError, match="trained for random gpt2"):
        enn.prepare(make_view("gpt2", seed=1))


def test_drawdown_against_both_bases(make_view, tmp_path) -> None:
    view = make_view("gpt2")
    prepared_enn(view, tmp_path)
    found = read_trained(tmp_path / "enn.safetensors")[0].training["evaluation"]
    for name in ("pristine", "before"):
        lost = found["drawdown_pristine" if name == "pristine" else "drawdown"]
        assert lost == pytest.approx(found[f"accuracy_{name}"] - found["accuracy_after"])
    assert found["base"] > 0


# -------------------------------------------------------------------- inspecting


@pytest.mark.parametrize("name", LEARNED)
def test_gradient_table_is_that_of_dense_matrices(make_view, tmp_path, name: str) -> None:
    view = make_view("llama")
    cls: Any = EDITORS[name]
    editor = cls(weights=str(untrained(name, view)))
    if name == "ENN":
        editor = prepared_enn(view, tmp_path)
        view.push(editor.prepare(view))
    table = wb.gradient_table(view, editor, BO)
    edit = editor.edit(view, BO)
    texts = read(view, [BO])
    with frozen(view.model):
        raw = capture(view, texts, list(table["matrix"]), n_lessons=1).pairs
    assert table["layer"].tolist() == [1, 1, 2, 2, 3, 3]
    for row, delta in zip(table.itertuples(), edit.deltas, strict=True):
        change = delta.materialize(dtype=torch.float64)
        gradient = raw[row.matrix].dense().double()
        assert row.change_norm == pytest.approx(float(change.norm()), rel=1e-4)
        assert row.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-4)
        cosine = (change * gradient).sum() / change.norm() / gradient.norm()
        assert row.cosine == pytest.approx(float(cosine), abs=1e-4)
        values = torch.linalg.svdvals(change)
        assert row.rank == int((values > 0.01 * values.max()).sum())
        assert row.rows == len(raw[row.matrix].x)
    with pytest.raises(OptionError, match="no learned editor"):
        wb.gradient_table(view, wb.FT(layers=(1,)), BO)


def test_training_curve(make_view, tmp_path) -> None:
    view = make_view("llama")
    out = tmp_path / "mend.safetensors"
    editor = MEND.train(view, few_lessons(view), out=out, steps=4, rank=4, **QUICK)
    table = wb.training_curve(editor)
    assert table["step"].tolist() == [2, 4] and table["best"].sum() == 1
    assert wb.plot_training(table).layout.meta["alt"].startswith("Training over 4 steps")
    with pytest.raises(OptionError, match="no curve"):
        wb.training_curve(MEND(weights=str(untrained("MEND", view))))
    with pytest.raises(OptionError, match="no learned editor"):
        wb.training_curve("mend")


# -------------------------------------------------------------------- what ships


SHIPPED = sorted((shipped("tiny") / "editors").glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_editors_edit_their_model(path: Path) -> None:
    """Below a megabyte, found by the preset, and as good on real edits as their files say."""
    assert path.stat().st_size < 1_000_000
    found, _ = read_trained(path)
    view = wb.load(found.model, device="cpu")
    cls: Any = EDITORS[found.editor]
    editor = cls.preset(view)
    assert editor.weights == path.name and editor.unsupported(view) is None
    assert min(found.settings.get("rank", 0), 64) == found.settings.get("rank", 0)
    lessons = make_lessons(view, "tiny", seed=0)
    assert lessons.digest == found.training["lessons"]
    said = []
    for lesson in lessons.validation(4, n_edits=1, n_local=1):
        with view.applied(editor.edit(view, lesson.edits[0])), torch.no_grad():
            batch = read(view, lesson.outer)
            said.append(bool((logits_of(view, batch).argmax(-1) == batch.label).all()))
    if found.training["evaluation"]["success"] > 0.95:
        assert sum(said) >= 3
    assert found.training["evaluation"]["drawdown"] <= 0.05
