"""The command line: help, mistakes, ``check`` and ``demo``."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from test_downstream import write as _tasks

import workbench as wb
from workbench import __main__ as cli
from workbench.cli.asked import cases_of
from workbench.cli.commands import _side_by_side
from workbench.places import shipped
from workbench.runs import RunFolder


def write_tasks(folder):
    """A folder of small downstream tasks, as a word."""
    return str(_tasks(folder))


COMMANDS = (
    *("demo", "lab", "check", "edit", "score", "stats", "stream", "train", "summary", "patch"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"example: workbench {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmo"], "there is no command 'dmo'. Did you mean 'demo'?"),
        (["demo", "--modle", "tiny"], "Did you mean '--model'?"),
        (["demo", "--model"], "expected one argument"),
        (["check"], "required: MODEL"),
        (["check", "/no/such/folder"], "no model folder at /no/such/folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, said, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out


def test_an_interrupt_ends_quietly(monkeypatch, capsys):
    def stop(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_check", stop)
    assert cli.main(["check", "tiny"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_check_says_what_a_model_can_do(make_model, tokenizer, tmp_path, capsys):
    make_model("gemma2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert cli.main(["check", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "gemma2 decoder, 4 layers" in out
    assert "linear yes" in out and "additive no: a norm stands between" in out
    assert " FT yes" in out and "MEMIT no: " in out


def test_lab_outside_a_checkout_copies_and_keeps_changes(monkeypatch, tmp_path):
    package = tmp_path / "site" / "workbench"
    shipped = package / "data" / "tutorials" / "01_your_first_edit.ipynb"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("shipped")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(cli.places, "__file__", str(package / "places.py"))
    monkeypatch.setattr(cli.places, "in_checkout", lambda: False)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "_become", lambda command: calls.append(command) or 0)
    assert cli.main(["lab", "--port", "8899"]) == 0
    copy = work / cli.COPIES / "tutorials" / "01_your_first_edit.ipynb"
    assert copy.read_text() == "shipped"
    where = "/lab/tree/tutorials/01_your_first_edit.ipynb"
    assert calls[0][-2:] == ["--port", "8899"]
    assert f"--LabApp.default_url={where}" in calls[0]
    assert f"--ServerApp.root_dir={work / cli.COPIES}" in calls[0]
    copy.write_text("mine")
    cli.main(["lab"])
    assert copy.read_text() == "mine"


def _check_demo(out: str, report: str, new: str) -> None:
    assert "Undone: every weight is what it was, to the bit." in out
    lines = out.splitlines()
    digests = [ln.rsplit(" ", 1)[1] for ln in lines if ln.startswith("SHA-256")]
    assert len(digests) == 3 and digests[0] == digests[2] != digests[1]
    first = next(i for i, ln in enumerate(lines) if ln.startswith("next token")) + 1
    assert any(f"' {new}'" in ln for ln in lines[first : first + 2]) and out.count(" s] ") == 5
    assert report.count("wb-figure") >= 2 and new in report


def test_demo_on_tiny(tiny, tmp_path, capsys):
    from workbench import datasets

    new = datasets.tiny(limit=1)[0].request.target_new
    assert cli.main(["demo", "--model", "tiny", "--out", str(tmp_path / "r.html")]) == 0
    _check_demo(capsys.readouterr().out, (tmp_path / "r.html").read_text(), new)


@pytest.mark.slow
def test_demo_on_the_default_model(smollm2, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "r.html")]) == 0
    _check_demo(capsys.readouterr().out, (tmp_path / "r.html").read_text(), "English")


def test_edit_score_and_summary_work_together(tmp_path, capsys):
    edit, table = str(tmp_path / "edit.safetensors"), str(tmp_path / "scores.csv")
    words = ["--subject", "Klara Farnfeld", "--target", "pilot", "--out", edit]
    assert cli.main(["edit", "tiny", "--prompt", "The profession of {} is", *words]) == 0
    assert "pilot" in capsys.readouterr().out
    assert cli.main(["score", "tiny", "tiny", "--limit", "3", "--edit", edit, "--out", table]) == 0
    out = capsys.readouterr().out
    assert "1 edit; 3 cases" in out and "neighborhood" in out
    assert cli.main(["summary", table]) == 0
    assert "neighborhood" in capsys.readouterr().out


def test_stream_and_summary_work_together(tmp_path, capsys):
    words = ["stream", "tiny", "tiny", "--limit", "6", "--batch-size", "2", "--editor", "FT"]
    for name in ("a", "b"):
        assert cli.main([*words, "--out", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert "retained" in out and "6 edits" not in out and "3 edits; FT(" in out
    runs = [str(tmp_path / name) for name in ("a", "b")]
    assert cli.main(["summary", *runs, "--first", "2", "--over-runs"]) == 0
    table = capsys.readouterr().out
    assert "lowest" in table and "before" in table and "not finished" not in table
    RunFolder(runs[1]).set_status("interrupted")
    assert cli.main(["summary", *runs]) == 0
    assert "not finished: b (6 of 6 cases, interrupted)" in capsys.readouterr().out
    assert cli.main([*words, "--out", runs[0], "--batch-size", "3"]) == 2
    assert "batch_size=2" in capsys.readouterr().err


def test_a_stream_is_told_what_to_measure(tmp_path, capsys):
    (tmp_path / "ids.json").write_text(json.dumps({"a": [7, 3, 5, 9], "b": [1]}))
    tasks = write_tasks(tmp_path / "tasks")
    out = str(tmp_path / "run")
    words = ["stream", "tiny", "tiny", "--editor", "FT", "--out", out, "--no-before"]
    words += ["--ids", str(tmp_path / "ids.json"), "--sample", "a", "--skip", "1", "--limit", "2"]
    words += ["--kinds", "efficacy", "--evaluate-at", "1", "--keep-model-at", "1"]
    words += ["--watch", "perplexity=off", "--watch", "downstream=1", "--watch", "hidden_shift=off"]
    words += ["--watch", "upstream=off", "--tasks", "sst2", "--tests", "4", "--tasks-path", tasks]
    words += ["--few-shots", "0", "--write-every", "2", "--write-tokens", "5"]
    assert cli.main([*words, "--option", "steps=3"]) == 0
    rows, watched = wb.stream_rows(out), wb.moments(out)
    assert list(rows["case_id"].unique()) == [3, 5] and set(rows["kind"]) == {"efficacy"}
    assert rows["step"].min() == 1  # not before
    asked = watched[watched["metric"] == "downstream_accuracy"]
    assert list(asked["step"]) == [0, 1, 2] and set(asked["n"]) == {4}
    assert not {"perplexity", "hidden_shift", "upstream_kl"} & set(watched["metric"])
    written = pd.read_csv(tmp_path / "run" / "writing.csv")
    assert list(written["case_id"]) == [3] and "fluency" in capsys.readouterr().out
    kept = str(tmp_path / "run" / "models" / "1")
    score = ["score", "tiny", "tiny", "--run", kept, "--limit", "1", "--generate"]
    assert cli.main([*score, "--tasks", "sst2", "--tests", "4", "--tasks-path", tasks]) == 0
    told = capsys.readouterr().out
    assert "1 edit;" in told and "generated_match" in told and "sst2" in told


def test_single_rounds_do_not_add_up(tmp_path, capsys):
    words = ["stream", "tiny", "tiny", "--limit", "3", "--editor", "FT", "--single-round"]
    words += ["--out", str(tmp_path / "runs" / "a"), "--batch-size", "2", "--option", "steps=3"]
    assert cli.main([*words, "--kinds", "efficacy"]) == 0
    assert "each batch on its own" in capsys.readouterr().out
    rows = wb.stream_rows(tmp_path / "runs" / "a")
    assert set(rows["step"]) == {0, 1} and rows["case_id"].nunique() == 3
    table = tmp_path / "table.csv"
    assert cli.main(["summary", str(tmp_path / "runs"), "--out", str(table)]) == 0
    assert set(pd.read_csv(table)["moment"]) == {"before", "after"}
    assert cli.main([*words, "--keep-model-at", "1"]) == 2
    assert "--keep-model-at needs edits that add up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "zsr"], "--dataset 'zsr' is unknown. Did you mean 'zsre'?"),
        (["--zsre", "gold"], "choose memit or easyedit"),
        (["--skip", "-1"], "--skip -1: it must be at least 0"),
        (["--limit", "0"], "--limit 0: it must be at least 1"),
        (["--sample", "a"], "--sample names a list of --ids"),
        (["--ids", "/no/such"], "--ids /no/such is no JSON file"),
        (["--tests", "4"], "options of tasks without tasks"),
        (["--snippets", "x"], "--snippets is for free writing"),
        (["--at", "4"], "--at is a moment of --run"),
    ],
)
def test_what_a_score_cannot_be_asked(words, said, capsys):
    assert cli.main(["score", "tiny", "tiny", "--limit", "1", *words]) == 2
    assert said in capsys.readouterr().err


def test_files_are_read_as_they_are_told(tmp_path):
    record = {"prompt": "Bo is in Rome", "subject": "Bo", "target_new": "Oslo"}
    rows = [{"src": "Where is Bo?", "subject": "Bo", "answers": ["Rome"], "alt": "Oslo"}]
    (tmp_path / "z.json").write_text(json.dumps(rows))
    (tmp_path / "f.json").write_text(json.dumps([record]))
    parse = cli._parser().parse_args

    def ask(*words: str) -> object:
        return cases_of(parse(["score", "tiny", *words]))[0].request.target_new

    assert ask(str(tmp_path / "z.json")) == "Rome"
    assert ask(str(tmp_path / "z.json"), "--zsre", "easyedit") == "Oslo"
    assert ask(str(tmp_path / "z.json"), "--dataset", "zsre", "--zsre", "easyedit") == "Oslo"
    assert ask(str(tmp_path / "f.json"), "--dataset", "facts") == "Oslo"


def test_an_unknown_editor_or_option_is_named(capsys):
    words = ["edit", "tiny", "--prompt", "{} is", "--subject", "Klara", "--target", "here"]
    assert cli.main([*words, "--editor", "ROM"]) == 2
    assert "Did you mean 'ROME'" in capsys.readouterr().err
    assert cli.main([*words, "--option", "layrs=(1,)"]) == 2
    assert "Did you mean 'layers'" in capsys.readouterr().err


def test_tokens_that_print_alike_keep_their_own_probabilities():
    columns = ["token_id", "token", "prob"]
    before = pd.DataFrame([(3, "�", 0.5), (7, "�", 0.25), (1, " Rome", 0.1)], columns=columns)
    after = pd.DataFrame([(1, " Rome", 0.9), (7, "�", 0.06), (3, "�", 0.04)], columns=columns)
    joined = _side_by_side(before, after)
    assert list(joined.index) == [" Rome", "�", "�"]
    assert joined.to_numpy().tolist() == [[0.1, 0.9], [0.25, 0.06], [0.5, 0.04]]


def test_training_an_editor_and_editing_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    data = tmp_path / "cases.jsonl"
    lines = (shipped("tiny") / "facts.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    data.write_text("\n".join(lines), encoding="utf-8")
    words = ["train", "efk", "--model", "tiny", "--data", str(data), "--steps", "1"]
    for option in ("batch=2", "together=2", "validation=2", "evaluation=2", "width=4"):
        words += ["--option", option]
    out = tmp_path / "ke.safetensors"
    assert cli.main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "success" in said and f"trained: {out}" in said and out.is_file()
    assert cli.main([*words[:1], "grace", *words[2:]]) == 2
    assert "cannot be trained. Known: efk, enn, ke, mend" in capsys.readouterr().err
    words = ["train", "mend", "--model", "tiny", "--data", str(data), "--validation", str(data)]
    assert cli.main(words) == 2
    assert "--validation is for lessons of a task: say which with --task" in capsys.readouterr().err
    assert cli.main(["train", "mend", "--model", "tiny"]) == 2
    assert "--data tiny" in capsys.readouterr().err
