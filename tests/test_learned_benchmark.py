"""The benchmark of learned editors: its plan, and the table it writes from what is there."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import workbench as wb

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "learned_tables.py"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("learned_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def options(bench: ModuleType, monkeypatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["learned_tables.py", *words])
    return bench._arguments()  # type: ignore[no-any-return]


def test_every_run_has_a_folder_of_its_own(bench: ModuleType, monkeypatch) -> None:
    runs = bench.plan(options(bench, monkeypatch, "--ablations"))
    slugs = [run.slug for run in runs]
    assert len(set(slugs)) == len(slugs)
    at_once = {(r.editor, r.trained_at, r.n_edits) for r in runs if r.table == "at once"}
    assert {("MEND", 25, n) for n in (1, 5, 25, 75, 125)} <= at_once
    assert {r.name for r in runs if r.table == "ablations"} | {"MEND"} == set(bench.PAPER_ABLATIONS)
    # one training serves every number of edits at once, an ablation has its own
    assert len({r.training_slug for r in runs if r.editor == "MEND"}) == 2 + len(bench.ABLATIONS)


def test_numbers_of_the_paper_stand_beside_their_task(bench: ModuleType) -> None:
    def paper(task: str, **fields: Any) -> Any:
        return bench._paper(bench.Run(**fields), task)[1]

    mend = {"name": "MEND", "editor": "MEND", "trained_at": 1}
    assert paper("gen", table="editors", **mend) == (0.86, 0.225)
    assert paper("qa", table="editors", name="FT", editor="FT") == (0.96, 0.0009)
    assert paper("tiny", table="editors", **mend) is None
    many = {"name": "ENN", "table": "at once", "editor": "ENN"}
    assert paper("qa", **many, n_edits=25, trained_at=25) == (0.35, 0.005)
    assert paper("qa", **many, n_edits=25, trained_at=1) is None  # nobody published that
    assert paper("gen", **many, n_edits=25, trained_at=25) is None


def test_runs_are_resumed_and_what_is_missing_is_said(
    bench: ModuleType, monkeypatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--edits", "2", "--fewest", "2", "--n-local", "3", "--at-once", "--only", "FT", "KE"]
    words += ["--out", str(out), "--trained", str(tmp_path / "none")]
    chosen = tmp_path / "options.json"
    chosen.write_text('{"FT": {"lr": 1e-3, "steps": 2}}')
    monkeypatch.setattr("sys.argv", ["learned_tables.py", *words, "--options", str(chosen)])
    monkeypatch.setattr(bench, "LEARNED", ("MEND", "KE", "ENN"))
    monkeypatch.delitem(wb.EDITORS, "KE", raising=False)
    bench.main()
    table = pd.read_csv(out / "table.csv").set_index("editor")
    assert table.loc["FT", "edits"] == 2 and 0 <= table.loc["FT", "edit success"] <= 1
    assert table.loc["KE", "left out"] == "KE is not in wb.EDITORS"
    rows = pd.read_csv(out / "ft_1" / "rows.csv.gz")
    assert not {"prompt", "target"} & set(rows.columns)
    monkeypatch.setattr(wb, "score_lessons", lambda *a, **k: pytest.fail("made again"))
    bench.main()


def test_the_first_claims_give_a_head_and_the_others_lessons(
    bench: ModuleType, monkeypatch, make_model, tokenizer, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    model = make_model("bert")
    model.config.id2label = {0: "REFUTES", 1: "SUPPORTS"}
    model.config.label2id = {"REFUTES": 0, "SUPPORTS": 1}
    model.classifier = type(model.classifier)(model.config.hidden_size, 2)
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    claims = tmp_path / "claims.jsonl"
    line = '{{"id": {i}, "label": "{label}", "claim": "Claim {i} is so."}}\n'
    labels = ("SUPPORTS", "REFUTES")
    claims.write_text("".join(line.format(i=i, label=labels[i % 2]) for i in range(40)))
    words = ["--task", "fc", "--model", str(tmp_path / "bert"), "--data", str(claims)]
    args = options(bench, monkeypatch, *words, "--classifier", "12")
    view = bench._view(args)
    lessons = wb.make_lessons(view, "fc", data=args.data)
    assert view.labels == ("REFUTES", "SUPPORTS")
    assert len(lessons.training) + len(lessons.held_out) == 28
    taught = {f"Claim {i} is so." for i in range(12)}
    assert not taught & {t.prompt for t in (*lessons.training, *lessons.held_out)}
