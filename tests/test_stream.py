"""Streams: what is measured when, resuming, refusing, skipping, stopping, cached evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import streams
import torch
from streams import Nudge

import workbench as wb
from workbench import metrics
from workbench.edits import load_edit
from workbench.errors import BusyError, DataError, NumericalError, OptionError, RequestError
from workbench.experiment.schedule import Schedule, checkpoints, parse_watch, spread
from workbench.facts import EditCase, EditRequest, Probe
from workbench.fingerprint import seal
from workbench.metrics.panel import Panel
from workbench.metrics.prefixes import Prefixes
from workbench.model import ModelView
from workbench.runs import MOMENT_COLUMNS, ROW_COLUMNS, RunFolder, read_table


@pytest.fixture(scope="module")
def calm(tmp_path_factory: Any) -> tuple[Path, pd.DataFrame]:
    """An undisturbed run."""
    view = wb.load("tiny", device="cpu")
    out = tmp_path_factory.mktemp("runs") / "calm"
    return out, streams.run(out, view)


# -------------------------------------------------------------------- what is measured


def test_a_row_a_probe_and_moment(calm: tuple[Path, pd.DataFrame]) -> None:
    out, rows = calm
    assert tuple(rows.columns) == ROW_COLUMNS and set(rows["run"]) == {"calm"}
    assert not rows.duplicated(["step", "case_id", "probe"]).any()
    by_step = {int(s): set(p["case_id"]) for s, p in rows.groupby("step")}
    everything = [c.case_id for c in wb.datasets.tiny(limit=24)]
    assert by_step[0] == by_step[24] == set(everything)
    assert by_step[6] == set(everything[:6]) and by_step[14] == set(everything[:14])
    assert by_step[2] == set(everything[:2]) and by_step[10] == set(everything[8:10])
    subset = set(RunFolder(out).config()["subset"])
    assert len(subset) == 6 and by_step[20] == (subset & set(everything[:20])) | set(
        everything[18:20]
    )
    made = dict(zip(everything, [2 * (i // 2) + 2 for i in range(24)], strict=True))
    assert (rows["edit_step"] == rows["case_id"].map(made)).all()
    assert (rows["seconds"] > 0).all() and rows.attrs["complete"]


def test_rows_are_the_scores_of_the_model_at_that_moment(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView
) -> None:
    out, rows = calm
    wb.open_stack(out, tiny, at=14)
    assert len(tiny.stack) == 7
    cases = wb.datasets.tiny(limit=14)
    plain = metrics.score(tiny, cases, kinds=("efficacy", "neighborhood"))
    ours = rows[rows["step"] == 14].reset_index(drop=True)
    for column in ("case_id", "probe", "kind", "target", "foil", "exact", "success"):
        assert list(ours[column]) == list(plain[column])
    np.testing.assert_allclose(ours["nll_target"], plain["nll_target"], atol=1e-5)
    before = metrics.score(wb.load("tiny", device="cpu"), cases, kinds=("efficacy",))
    first = rows[(rows["step"] == 0) & (rows["kind"] == "efficacy")].head(14)
    np.testing.assert_allclose(first["nll_target"], before["nll_target"], atol=1e-5)
    assert not np.allclose(ours["nll_target"][ours["kind"] == "efficacy"], before["nll_target"])


def test_moments_are_what_they_say(calm: tuple[Path, pd.DataFrame], tiny: ModelView) -> None:
    out, _ = calm
    table = wb.moments(out)
    assert tuple(table.columns) == MOMENT_COLUMNS
    value = table.set_index(["metric", "step"])["value"]
    before = tiny.weight(1).double()
    edits = wb.open_stack(out, tiny)
    distance = float((tiny.weight(1).double() - before).norm())
    assert value["weight_distance", 24] == pytest.approx(distance, rel=1e-12)
    assert value["weight_distance", 0] == 0 and distance > 0
    per_weight = value["weight_distance_per_weight", 24]
    assert per_weight == pytest.approx(distance / before.numel(), rel=1e-12)
    assert value["weight_norm", 24] == pytest.approx(float(tiny.weight(1).double().norm()))
    newest = float(edits[-1].deltas[0].materialize(dtype=torch.float64).norm())
    assert value["update_norm", 24] == pytest.approx(newest, rel=1e-4)
    assert set(value["hidden_shift"].index) == {0, 8, 16, 24}  # every 8, and both ends
    assert value["hidden_shift", 0] == 0 and value["hidden_shift", 24] > 1e-3
    assert value["hidden_cosine", 24] < 1 and value["process_peak", 24] > 50
    assert value["edits_per_second", 24] > 0 and "perplexity" not in value


def test_language_and_other_facts_are_watched(tiny: ModelView, tmp_path: Path) -> None:
    cases, text = wb.datasets.tiny(limit=4), "Anton Dorvmont works as a painter. " * 3
    other = wb.datasets.tiny(limit=30)[10:30]
    watch = {"perplexity": 2, "upstream": (2,), "weights": None}
    editor = Nudge(scale=4.0)
    streams.run(
        tmp_path, tiny, editor=editor, cases=cases, texts=[text], upstream=other, watch=watch
    )
    value = wb.moments(tmp_path).set_index(["metric", "step"])["value"]
    now = metrics.perplexity(tiny, [text])
    tiny.reset()
    before = metrics.perplexity(tiny, [text])
    assert value["perplexity", 4] == pytest.approx(now)
    assert value["perplexity_ratio", 4] == pytest.approx(now / before) != 1
    assert value["perplexity", 0] == pytest.approx(before)
    assert value["upstream_agreement", 0] == 1 > value["upstream_agreement", 4]
    assert abs(value["upstream_kl", 0]) < 1e-6 < value["upstream_kl", 4]
    assert "weight_distance" not in value


def test_tasks_are_followed(tiny: ModelView, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[tuple[int, dict[str, Any]]] = []

    def tasks(view: ModelView, **options: Any) -> pd.DataFrame:
        asked.append((len(view.stack), options))
        row = {"task": "sst2", "n": 8, "accuracy": 0.5, "low": 0.2, "high": 0.8, "f1": 0.4}
        return pd.DataFrame([row, {**row, "task": "cola"}])

    monkeypatch.setattr("workbench.experiment.watch.downstream", tasks)
    options = {"tasks": ("sst2", "cola"), "tests": 8}
    watch = {"downstream": 4, "weights": None}
    streams.run(tmp_path, tiny, cases=wb.datasets.tiny(limit=8), downstream=options, watch=watch)
    assert asked == [(n, options) for n in (0, 2, 4)]
    table = wb.moments(tmp_path).set_index(["metric", "task", "step"])
    assert table.loc[("downstream_accuracy", "cola", 8), ["value", "n", "high"]].tolist() == [
        0.5,
        8,
        0.8,
    ]
    assert table.loc[("downstream_f1", "sst2", 4), "value"] == 0.4
    tiny.reset()
    with pytest.raises(OptionError, match="tasks"):
        streams.run(tmp_path / "none", tiny, watch=watch)


# -------------------------------------------------------------------- cached evaluation


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2", "bloom", "falcon", "gptj"])
@pytest.mark.parametrize("budget", [1 << 30, 20_000, 0])
def test_states_below_the_edit_can_be_kept(make_view: Any, family: str, budget: int) -> None:
    view = make_view(family, torch.float64)
    cases = [
        EditCase(
            request=EditRequest(
                prompt="{} was born in", subject=s, target_new="Oslo", target_true="Vienna"
            ),
            probes=(
                Probe(prompt=f"The home of {s} is", target="Rome and Paris", kind="paraphrase"),
            ),
            case_id=s,
        )
        for s in ("Anna", "Bo", "LeBron James", "The old house")
    ]
    prefixes = Prefixes(view, 2, budget=budget)
    panel = Panel(view, cases, prefixes=prefixes, batch_tokens=24)
    assert_scores(panel, view, cases)
    used = prefixes.used
    assert used <= budget and (used > 0) == (budget >= 20_000)
    for layer in (2, 3):
        view.push(Nudge(layers=(layer,), scale=0.5).edit(view, cases[layer]))
        assert_scores(panel, view, cases)
    assert prefixes.usable() and prefixes.used == used
    view.push(Nudge(layers=(1,), scale=0.5).edit(view, cases[0]))  # below: nothing kept holds
    assert not prefixes.usable()
    assert_scores(panel, view, cases)
    view.pop()
    assert prefixes.usable()


def assert_scores(panel: Panel, view: ModelView, cases: list[EditCase]) -> None:
    plain = metrics.score(view, cases, batch_tokens=24)
    kept = panel.measure()
    for column in ("nll_target", "nll_foil"):
        np.testing.assert_allclose(kept[column], plain[column], rtol=1e-9)
    assert list(kept["predicted"]) == list(plain["predicted"])


def test_kept_states_give_the_same_bits(tiny: ModelView) -> None:
    cases = wb.datasets.tiny(limit=8)
    kept, full = Panel(tiny, cases, prefixes=Prefixes(tiny, 1)), Panel(tiny, cases)
    kept.measure()
    tiny.push(Nudge().edit(tiny, cases))
    pd.testing.assert_frame_equal(kept.measure(), full.measure(), check_exact=True)


def test_kept_states_are_really_used(tiny: ModelView, monkeypatch: Any) -> None:
    panel = Panel(tiny, wb.datasets.tiny(limit=4), prefixes=Prefixes(tiny, 1))
    panel.measure()
    monkeypatch.setattr(tiny.model, "forward", None)
    monkeypatch.setattr(tiny.block(0), "forward", None)
    assert len(panel.measure()) > 4


# -------------------------------------------------------------------- resuming


def test_a_second_start_reads_what_is_there(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView, monkeypatch: Any
) -> None:
    out, rows = calm
    monkeypatch.setattr(Nudge, "_compute", None)
    monkeypatch.setattr(Panel, "measure", None)
    pd.testing.assert_frame_equal(streams.run(out, tiny), rows, check_exact=True)
    assert len(tiny.stack) == 12
    pd.testing.assert_frame_equal(streams.run(out, tiny), rows)  # the view holds the run already
    tiny.pop()
    streams.run(out, tiny)
    assert len(tiny.stack) == 12


@pytest.mark.parametrize("phase", ["stream Nudge", "score"])
def test_an_interrupted_run_goes_on(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView, tmp_path: Path, phase: str
) -> None:
    out = tmp_path / "calm"
    stop = streams.sink_that_stops(phase, 7 if phase != "score" else 60, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), wb.progress_to(stop):
        streams.run(out, tiny)
    done = [r for r in RunFolder(out).records() if r["case_ids"]]
    assert len(tiny.stack) == len(done) < 12
    assert RunFolder(out).status()["state"] == "interrupted" and not RunFolder(out).complete
    streams.same(streams.run(out, tiny), calm[1])
    streams.same(wb.moments(out), wb.moments(calm[0]))


EDITORS: dict[str, dict[str, Any]] = {
    "ROME": {"layers": (1,)},
    "MEMIT": {"layers": (1, 2), "lam": 2.0, "accumulate": True},
    "NSE": {"layers": (1, 2), "lam": 2.0},
    "AlphaEdit": {"layers": (1, 2), "threshold": 2.0, "l2": 2.0},
    "CoachHook": {"layers": (1, 2), "lam": 2.0},
    "FTL": {"layers": (1,), "steps": 4, "lr": 1e-2, "epsilon": 1e-3},
}


@pytest.mark.parametrize("name", EDITORS)
def test_every_kind_of_editor_goes_on(make_view: Any, tmp_path: Path, name: str) -> None:
    view, options = make_view("gpt2"), EDITORS[name]
    if not name.startswith("FT"):
        options = {"steps": 4, "templates": ("{}",), "corpus": "identity", **options}
    editor = wb.EDITORS[name](**options)
    facts = wb.datasets.facts(limit=60)
    cases = [c for c in facts if c.request.subject and len(c.request.subject) < 14][:6]
    watch = {"weights": 1, "perplexity": None, "upstream": None, "hidden_shift": 2}
    size = 1 if name == "ROME" else 2
    calls: dict[str, Any] = {"editor": editor, "cases": cases, "watch": watch, "batch_size": size}
    rows = streams.run(tmp_path / "calm", view, **calls)
    whole = [e.id for e in view.stack]
    view.reset()
    stop = streams.sink_that_stops(f"stream {name}", 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), wb.progress_to(stop):
        streams.run(tmp_path / "cut", view, **calls)
    again = make_view("gpt2")
    streams.same(streams.run(tmp_path / "cut", again, **calls), rows)
    assert [e.id for e in again.stack] == whole and len(whole) == 6 // size
    streams.same(wb.moments(tmp_path / "cut"), wb.moments(tmp_path / "calm"))


@pytest.mark.parametrize("part", ["rows", "moments", "edits", "batches"])
@pytest.mark.parametrize("damage", ["change", "delete"])
def test_damaged_parts_are_made_again(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView, tmp_path: Path, part: str, damage: str
) -> None:
    import shutil

    out = tmp_path / "calm"
    shutil.copytree(calm[0], out)
    file = RunFolder(out).file(part, 5)
    file.write_bytes(file.read_bytes()[:-9] + b"x") if damage == "change" else file.unlink()
    if part != "edits":
        with pytest.raises(DataError, match="000005"):
            wb.moments(out) if part == "moments" else RunFolder(out).rows()
    streams.same(streams.run(out, tiny), calm[1])
    streams.same(wb.moments(out), wb.moments(calm[0]))


def test_an_edit_that_comes_out_otherwise_is_refused(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView, tmp_path: Path, monkeypatch: Any
) -> None:
    import shutil

    out = tmp_path / "calm"
    shutil.copytree(calm[0], out)
    RunFolder(out).file("edits", 5).unlink()
    compute = Nudge._compute
    monkeypatch.setattr(
        Nudge, "_compute", lambda self, v, r, **g: compute(replace(self, scale=0.1), v, r, **g)
    )
    with pytest.raises(DataError, match="gave another edit"):
        streams.run(out, tiny)
    assert len(tiny.stack) == 4


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"batch_size": 3}, "batch_size"),
        ({"editor": Nudge(scale=0.2)}, "editor_config"),
        ({"evaluate_at": (6,)}, "evaluate_at"),
        ({"seed": 1}, "seed"),
        ({"watch": {"weights": 3}}, "watch"),
        ({"kinds": "efficacy"}, "kinds"),
        ({"on_error": "skip"}, "on_error"),
    ],
)
def test_another_configuration_is_refused_by_name(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(OptionError, match=rf"a run with {name}=.*fresh=True"):
        streams.run(calm[0], tiny, **options)
    assert not tiny.stack


def test_changed_cases_are_refused_and_fresh_starts_over(tiny: ModelView, tmp_path: Path) -> None:
    cases = list(wb.datasets.tiny(limit=4))
    streams.run(tmp_path, tiny, cases=cases)
    tiny.reset()
    cases[1] = replace(cases[1], request=replace(cases[1].request, target_new="Oslo"))
    with pytest.raises(OptionError, match="cases="):
        streams.run(tmp_path, tiny, cases=cases)
    rows = streams.run(tmp_path, tiny, cases=cases, fresh=True)
    assert len(tiny.stack) == 2 and set(rows["step"]) == {0, 2, 4}


def test_another_number_of_threads_is_said(tiny: ModelView, tmp_path: Path) -> None:
    cases = wb.datasets.tiny(limit=4)
    streams.run(tmp_path, tiny, cases=cases)
    config = json.loads((tmp_path / "run.json").read_text())
    config["environment"] |= {"threads": 7, "commit": "another"}
    (tmp_path / "run.json").write_text(json.dumps(seal(config)))
    with pytest.warns(UserWarning, match="threads 7 → 2.*bit for bit") as said:
        streams.run(tmp_path, tiny, cases=cases)
    assert "commit" not in str(said[0].message)


def test_what_is_no_run_is_left_alone(tiny: ModelView, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(OptionError, match=r"thesis\.txt"):
            streams.run(tmp_path, tiny, fresh=fresh)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(DataError, match="no run"):
        wb.moments(tmp_path)


def test_two_writers_do_not_share_a_folder(tiny: ModelView, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(BusyError, match="another process"):
        streams.run(tmp_path, tiny)


def test_edits_on_the_view_are_refused_unless_asked_for(tiny: ModelView, tmp_path: Path) -> None:
    cases = wb.datasets.tiny(limit=4)
    own = Nudge(scale=0.2).edit(tiny, cases[3])
    tiny.push(own)
    with pytest.raises(OptionError, match="continue_on=True"):
        streams.run(tmp_path / "a", tiny, cases=cases[:2])
    streams.run(tmp_path / "a", tiny, cases=cases[:2], continue_on=True)
    assert [e.id for e in tiny.stack][:1] == [own.id] and len(tiny.stack) == 2
    value = wb.moments(tmp_path / "a").set_index(["metric", "step"])["value"]
    assert value["weight_distance", 0] == 0  # against the model as the run found it
    assert RunFolder(tmp_path / "a").config()["parents"] == [own.id]
    streams.run(tmp_path / "a", tiny, cases=cases[:2], continue_on=True)
    assert len(tiny.stack) == 2


# -------------------------------------------------------------------- when things go wrong


def test_a_batch_that_fails_stops_the_run_or_is_skipped(tiny: ModelView, tmp_path: Path) -> None:
    cases = wb.datasets.tiny(limit=8)
    editor = Nudge(refuse=cases[3].request.subject or "")
    with pytest.raises(NumericalError):
        streams.run(tmp_path / "stop", tiny, cases=cases, editor=editor)
    assert len(tiny.stack) == 1 and RunFolder(tmp_path / "stop").status()["state"] == "failed"
    tiny.reset()
    with pytest.warns(UserWarning, match="1 of 4 batches were skipped: 2"):
        rows = streams.run(tmp_path / "skip", tiny, cases=cases, editor=editor, on_error="skip")
    assert len(tiny.stack) == 3 and set(rows["step"]) == {0, 2, 4, 6}
    assert "cannot be edited" in rows.attrs["skipped"]["2"]
    assert not {cases[2].case_id, cases[3].case_id} & set(rows["case_id"])
    last = rows[rows["step"] == 6]
    assert set(last["case_id"]) == {c.case_id for i, c in enumerate(cases) if i not in (2, 3)}
    assert set(rows[rows["case_id"] == cases[4].case_id]["edit_step"]) == {4}
    with pytest.warns(UserWarning, match="skipped"):
        again = streams.run(tmp_path / "skip", tiny, cases=cases, editor=editor, on_error="skip")
    pd.testing.assert_frame_equal(again, rows)


def test_a_skipped_last_batch_still_ends_with_everything(tiny: ModelView, tmp_path: Path) -> None:
    cases = wb.datasets.tiny(limit=8)
    editor = Nudge(refuse=cases[7].request.subject or "")
    with pytest.warns(UserWarning, match="skipped"):
        rows = streams.run(tmp_path, tiny, cases=cases, editor=editor, on_error="skip")
    assert set(rows[rows["step"] == 6]["case_id"]) == {c.case_id for c in cases[:6]}
    assert not rows.duplicated(["step", "case_id", "probe"]).any()
    assert not wb.moments(tmp_path).duplicated(["step", "metric", "layer", "task"]).any()


def test_the_alarm_stops_a_collapse_and_can_be_lifted(tiny: ModelView, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "cases": wb.datasets.tiny(limit=12),
        "editor": Nudge(scale=2.0),
        "watch": {"perplexity": 4, "upstream": None, "hidden_shift": None},
    }
    alarm = wb.Alarm(perplexity_ratio=2.0, newest=None)
    rows = streams.run(tmp_path / "calm", tiny, stop_on=alarm, **options)
    assert "perplexity is" in rows.attrs["stopped"] and not rows.attrs["complete"]
    assert rows["step"].max() == 8 and len(tiny.stack) == 4
    status = RunFolder(tmp_path / "calm").status()
    assert status["state"] == "stopped" and "limit 2" in status["reason"]
    again = streams.run(tmp_path / "calm", tiny, stop_on=alarm, **options)
    pd.testing.assert_frame_equal(again, rows)
    rows = streams.run(tmp_path / "calm", tiny, **options)
    assert rows.attrs["complete"] and rows["step"].max() == 12
    tiny.reset()
    streams.same(rows, streams.run(tmp_path / "undisturbed", tiny, **options))


def test_the_alarm_looks_at_the_newest_facts() -> None:
    rows = pd.DataFrame(
        {"case_id": range(8), "step": [2, 2, 4, 4, 6, 6, 8, 8], "kind": "efficacy", "exact": True}
    )
    none = pd.DataFrame(columns=list(MOMENT_COLUMNS))
    alarm = wb.Alarm(newest=0.5, window=4)
    assert alarm(8, rows, none) is None
    rows.loc[5:, "exact"] = False
    assert "25% of the last 4 facts" in (alarm(8, rows, none) or "")
    assert wb.Alarm(newest=0.5, window=9)(8, rows, none) is None  # too few to tell
    assert wb.Alarm(newest=None)(8, rows, none) is None
    worse = pd.DataFrame({"metric": ["perplexity_ratio"], "value": [math.nan]})
    assert wb.Alarm(newest=None)(8, rows, worse) is not None


# -------------------------------------------------------------------- schedules and options


def test_schedules() -> None:
    assert [n for n in range(1, 13) if Schedule(every=4).due(n - 1, n)] == [4, 8, 12]
    assert Schedule(every=50).due(90, 100) and not Schedule(every=50).due(100, 140)
    assert Schedule(steps=(5,)).due(4, 8) and not Schedule(steps=(5,)).due(5, 8)
    assert checkpoints(None, 1000, 100).steps == (100, 200, 500)
    assert checkpoints((7, 3), 10, 1).steps == (3, 7)
    marks = Schedule(steps=(3,))
    found = parse_watch({"a": 5, "b": "checkpoints", "c": (1, 2), "d": None}, "abcd", marks)
    assert found == {"a": Schedule(5), "b": marks, "c": Schedule(steps=(1, 2))}
    drawn = spread(100, 10, seed=3)
    assert [i // 10 for i in drawn] == list(range(10)) and drawn == spread(100, 10, seed=3)
    assert drawn != spread(100, 10, seed=4) and spread(3, 10, seed=0) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"evaluate_at": (0,)}, "evaluate_at"),
        ({"watch": {"perplexty": 1}}, "perplexity"),
        ({"watch": {"weights": "often"}}, "checkpoints"),
        ({"watch": {"downstream": 0.5}}, "downstream"),
        ({"on_error": "ignore"}, "skip"),
        ({"keep_deltas": False}, "keep_deltas"),
        ({"subset": 0, "dense_every": 2}, "subset=0"),
        ({"kinds": "efficay"}, "efficacy"),
    ],
)
def test_wrong_options_are_refused(
    tiny: ModelView, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(OptionError, match=word):
        streams.run(tmp_path / "run", tiny, **options)
    assert not tiny.stack


def test_cases_need_ids_of_their_own(tiny: ModelView, tmp_path: Path) -> None:
    cases = list(wb.datasets.tiny(limit=2))
    with pytest.raises(OptionError, match="occurs twice"):
        streams.run(tmp_path, tiny, cases=[cases[0], replace(cases[1], case_id="0")])
    with pytest.raises(RequestError, match=r"cases\[1\] is a str"):
        streams.run(tmp_path, tiny, cases=[cases[0], "no case"])


def test_odd_texts_and_ids_survive_the_disk(tiny: ModelView, tmp_path: Path) -> None:
    request = EditRequest(prompt="{} works as a", subject="Anton Dorvmont", target_new="None")
    cases = [EditCase(request=request, case_id="007")]
    rows = streams.run(tmp_path, tiny, cases=cases, kinds=None)
    assert set(rows["case_id"]) == {"007"} and set(rows["target"]) == {"None"}
    assert rows["foil"].isna().all() and rows["nll_foil"].isna().all()
    payload = pd.DataFrame({"value": [0.1 + 0.2, 1e-320, math.inf, math.nan]}).to_csv(index=False)
    back = read_table(payload.encode())["value"]
    assert list(back[:3]) == [0.1 + 0.2, 1e-320, math.inf] and math.isnan(back[3])


def test_run_json_says_how_it_was_made(calm: tuple[Path, pd.DataFrame], tiny: ModelView) -> None:
    config = json.loads((calm[0] / "run.json").read_text())
    assert config["regime"] == "sequential-batched" and config["editor"] == "Nudge"
    assert config["fingerprint"] == tiny.fingerprint and config["editor_config"]["scale"] == 0.05
    assert config["case_ids"] == [c.case_id for c in wb.datasets.tiny(limit=24)]
    assert {"torch", "device", "threads", "commit"} <= set(config["environment"])


# -------------------------------------------------------------------- stacks and summaries


def test_kept_models_can_be_opened(tiny: ModelView, tmp_path: Path) -> None:
    cases = wb.datasets.tiny(limit=8)
    streams.run(tmp_path / "run", tiny, cases=cases, keep_model_at=(4,))
    with tiny.at(2):
        wanted = tiny.weight(1).clone()
    tiny.reset()
    assert len(wb.open_stack(tmp_path / "run" / "models" / "4", tiny)) == 2
    assert torch.equal(tiny.weight(1), wanted)
    tiny.reset()
    wb.open_stack(tmp_path / "run", tiny, at=4)
    assert torch.equal(tiny.weight(1), wanted)
    with pytest.raises(OptionError, match="2, 4, 6"):
        wb.open_stack(tmp_path / "run", tiny, at=5)
    with pytest.raises(DataError, match="no run"):
        wb.open_stack(tmp_path / "nothing", tiny)
    file = RunFolder(tmp_path / "run").file("edits", 1)
    assert load_edit(file).report == {"written": 2}


def test_a_stack_is_saved_and_opened(tiny: ModelView, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="stack is empty"):
        wb.save_stack(tiny, tmp_path / "mine")
    for case in wb.datasets.tiny(limit=3):
        tiny.push(streams.Nudge().edit(tiny, case))
    wanted, ids = tiny.weight(1).clone(), [e.id for e in tiny.stack]
    folder = wb.save_stack(tiny, tmp_path / "mine")
    tiny.reset()
    assert [e.id for e in wb.open_stack(folder, tiny)] == ids
    assert torch.equal(tiny.weight(1), wanted)
    tiny.pop()
    wb.save_stack(tiny, folder)  # a shorter stack replaces the list
    tiny.reset()
    assert [e.id for e in wb.open_stack(folder, tiny)] == ids[:2]
    streams.run(tmp_path / "run", tiny, continue_on=True)
    with pytest.raises(OptionError, match="folder of a run"):
        wb.save_stack(tiny, tmp_path / "run")


def test_a_listener_hears_of_every_batch_once_it_is_recorded(
    tiny: ModelView, tmp_path: Path
) -> None:
    heard: list[tuple[int, int, int]] = []

    def listen(step: wb.StreamStep) -> None:
        rows = wb.stream_rows(tmp_path / "run")
        heard.append((step.batch, step.step, int(rows["edit_step"].max()) if len(rows) else 0))
        assert step.batches == 12 and (step.edit is None) == (step.batch == 0)

    final = streams.run(tmp_path / "run", tiny, on_step=listen)
    assert heard == [(b, 2 * b, 2 * b) for b in range(13)]
    assert wb.stream_rows(tmp_path / "run").equals(final)
    heard.clear()
    streams.run(tmp_path / "run", tiny, on_step=lambda step: heard.append((step.batch, 0, 0)))
    assert [b for b, _, _ in heard] == list(range(13)), "what is read again is told, too"


def test_summaries_of_runs(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView, tmp_path: Path
) -> None:
    out, rows = calm
    found = wb.summary(out)
    assert set(found["moment"]) == {"before", "after"} and found.attrs["incomplete"] == []
    ends = rows[rows["step"].isin([0, 24]) & (rows["kind"] == "neighborhood")]
    by_case = ends.groupby(["step", "case_id"])["success"].mean()
    after = found[found["moment"] == "after"].loc["neighborhood"]
    assert after["success"] == pytest.approx(by_case[24].mean())
    assert after["deviation"] == pytest.approx(by_case[24].std()) and after["n"] == 24
    few = wb.summary(rows, first=6)
    few = few[few["moment"] == "after"].loc["neighborhood"]
    ids = [c.case_id for c in wb.datasets.tiny(limit=6)]
    assert few["n"] == 6 and few["success"] == pytest.approx(by_case[24][ids].mean())
    with pytest.raises(OptionError, match="first=0"):
        wb.summary(rows, first=0)
    assert "step" in wb.summary(rows, by="step").columns


def test_summaries_over_runs_and_of_unfinished_ones(
    calm: tuple[Path, pd.DataFrame], tiny: ModelView, tmp_path: Path
) -> None:
    stop = streams.sink_that_stops("stream Nudge", 20, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), wb.progress_to(stop):
        streams.run(tmp_path / "cut", tiny, editor=Nudge(scale=1.0))
    with pytest.warns(UserWarning, match=r"cut \(20 of 24 cases, interrupted"):
        each = wb.summary([calm[0], tmp_path / "cut"])
    assert set(each["run"]) == {"calm", "cut"} and "cut" in each.attrs["incomplete"][0]
    # the last moment that measured everything of the unfinished run is 14
    rows = RunFolder(tmp_path / "cut").rows()
    wanted = rows[(rows["step"] == 14) & (rows["kind"] == "efficacy")]["success"].mean()
    cut = each[(each["run"] == "cut") & (each["moment"] == "after")].loc["efficacy", "success"]
    assert cut == pytest.approx(wanted)
    with pytest.warns(UserWarning, match="cut"):
        both = wb.summary([calm[0], tmp_path / "cut"], over="runs")
    after = both[both["moment"] == "after"].loc["neighborhood"]
    means = each[each["moment"] == "after"].loc["neighborhood", "success"]
    assert after["runs"] == 2 and after["success"] == pytest.approx(means.mean())
    assert after["deviation"] == pytest.approx(means.std())
    assert (after["lowest"], after["highest"]) == (means.min(), means.max())
