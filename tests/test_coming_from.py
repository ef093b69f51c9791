"""``notebooks/README.md``: every command and Python line of its right columns runs on ``tiny``."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_downstream import write as write_tasks

import workbench as wb
from workbench import __main__ as cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "notebooks" / "README.md"
LATER = "*(not there yet)*"
#: What ``…`` stands for, as the page says.
DOTS = "MODEL DATA --out RUN"
MARKS = ("workbench ", "python ", ">>> ")

# ---------------------------------------------------------------- what is made small, and how

#: Words of the page → words of the test; names of files become files of ``world``.
WORDS = {"MODEL": "tiny", "DATA": "tiny", "repo": "default", "paper": "default"}
#: Data sets by name are read from files in their schema, as nothing is fetched here.
FETCHED = ("counterfact", "multi_counterfact", "zsre", "easyedit")
#: Options whose numbers are replaced; every other whole number above 2 becomes 2.
NUMBERS = {"--few-shots": "0", "--layers": "0", "--tokens": "30000", "--corpus": "tiny"}
#: Options of editors.
OPTIONS = (
    (r"layers=\(.*\)", "layers=(0,)"),
    (r"steps=\d+", "steps=3"),
    (r"corpus=.*", "corpus=tiny"),
    (r"corpus_tokens=\d+", "corpus_tokens=30000"),
    (r"(\w+)=\d\d+", r"\1=1"),
)
#: Metrics that a stream is told to leave out, unless the line names them.
UNWATCHED = ("perplexity", "hidden_shift", "upstream")
#: What every training is told besides, and what replaces its own numbers.
TAUGHT = {"steps": 1, "batch": 2, "together": 2, "validation": 1, "evaluation": 1}
#: A script that is run once, on the tiny model with small numbers.
LEARNED = "--edits 2 --fewest 2 --at-once --trained-at --no-ablations --only KE"
#: Study → the one trial that is run.
TRIALS = {
    "nse_sequential": "NSE",
    "coachhook_consecutive": "CoachHook, 1 layer",
    "emmet_batch_sizes": "EMMET, batches of 4",
    "bigger_batches": "EMMET, 1 at once",
    "forgetting_curves": "ROME",
}

# ---------------------------------------------------------------- the page


@dataclass(frozen=True)
class Row:
    """A row of a table of the page."""

    section: str
    theirs: str
    ours: str

    @property
    def lines(self) -> list[str]:
        spans = re.findall(r"`([^`]+)`", self.ours)
        return [s for s in spans if s.startswith(MARKS)]


def rows() -> Iterator[Row]:
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and not line.startswith("| theirs"):
            theirs, _, ours = line.strip("| ").split(" | ")
            yield Row(section, theirs, ours)


ROWS = list(rows())
NOW = [r for r in ROWS if LATER not in r.section]
LINES = list(dict.fromkeys(x for r in NOW for x in r.lines))

#: Section → what the original is told with, all of which the page must answer.
THEIRS = {
    "NSE: `experiments/evaluate.py`": (
        "--alg_name --model_name --hparams_fname --ds_name --continue_from_run "
        "--dataset_size_limit --skip_generation_tests --generation_test_interval "
        "--conserve_memory --num_edits --use_cache --downstream_eval_steps"
    ),
    "NSE: `experiments/summarize.py`": "--dir_name --runs --first_n_cases --path",
    "Unified editing: `experiments/evaluate_unified_editing.py`": (
        "--sample_num --alg_name --model_name --hparams_fname --ds_name --continue_from_run "
        "--dataset_size_limit --skip_generation_tests --generation_test_interval "
        "--conserve_memory --num_edits --use_cache --sequential --downstream_eval_steps "
        "--do_downstream_eval --save_model --save_model_interval --save_model_location "
        "--downstream_tasks --number_of_few_shots --number_of_tests"
    ),
    "CoachHook: `CoachHooK_run.py`": (
        "--stats_dir --model --ds_dir --consecutive --bsz --mom2_update_weight --alpha_z "
        "--num_layers --sample --wohk"
    ),
    "GRACE: editors": (
        "editor=grace editor=defer editor=memory editor=ft editor=ft_ewc editor=ft_retrain "
        "editor.eps editor.edit_lr editor.n_iter editor.dist_fn editor.val_init editor.val_train "
        "editor.val_reg editor.reg editor.replacement editor.eps_expand editor.num_pert "
        "editor.threshold editor.nkeys editor.ewc_lambda editor.fisher_mem "
        "editor.retrain_frequency editor.retrain_memory n_iter device ckpt ckpt_dir reinit "
        "load_pretrained re_init_model dropout tags wandb wandb_mode wandb_project_name "
        "wandb_run_name"
    ),
    "GRACE: experiments": (
        "experiment=qa experiment=scotus experiment=hallucination experiment.cbase "
        "experiment.dataset max_n_edits metric_period batch_size pretrain"
    ),
    "MEND: `run.py`": (
        "+alg=mend +alg=efk +alg=enn +alg=ft +experiment=gen +experiment=qa +experiment=fc +model "
        "lr edit_lr lr_lr opt grad_clip cedit cloc cbase batch_size val_batch_size accumulate_bs "
        "max_iters val_interval val_steps early_stop_patience seed eval_only archive half "
        "no_grad_layers dropout train_base data.path data.rephrase data.zsre_nq data.nq_path "
        "data.wiki_webtext data.n_edits model.inner_params model.pt mend.rank mend.n_hidden "
        "mend.norm mend.init mend.x_only mend.delta_only mend.shared mend.one_sided mend.combine "
        "mend.act mend.mlp_class mend.hidden_dim enn.first_order enn.n_edit_steps ft.rank "
        "ft.opt ft.time_limit ft.init_std"
    ),
}


@pytest.mark.parametrize("section", THEIRS)
def test_every_option_of_theirs_is_answered(section):
    told = " ".join(r.theirs for r in ROWS if r.section == section)
    names = set(re.findall(r"[+\w.=-]+", told))
    missing = [x for x in THEIRS[section].split() if not any(_names(x, n) for n in names)]
    assert not missing


def _names(option: str, name: str) -> bool:
    return name == option or name.startswith(f"{option}=")


def test_every_row_has_a_line_or_a_reason():
    empty = [r.theirs for r in NOW if not r.lines and not r.ours.startswith(("— ", "see ["))]
    assert not empty and len(LINES) > 60
    assert not [r.section for r in NOW if "not there" in r.section]  # the mark, otherwise written


# ---------------------------------------------------------------- a world of small files


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, make_model: Any, tokenizer: Any
) -> dict[str, str]:
    """Names of the page → small files and finished runs."""
    top = tmp_path_factory.mktemp("world")
    _classifier(top / "classifier", make_model, tokenizer)
    facts = [_parts(case) for case in wb.datasets.tiny(limit=3)]
    files = {
        "counterfact": [_counterfact(i, f) for i, f in enumerate(facts)],
        "multi_counterfact": [_counterfact(i, f) for i, f in enumerate(facts)],
        "zsre": [_zsre(f) for f in facts],
        "easyedit": [_easyedit(f) for f in facts],
        "samples": {"0": [4, 2]},
        "snippets": [{"relation_id": "P0", "target_id": "Q0", "samples": [{"text": "Klara is"}]}],
    }
    for name, content in files.items():
        (top / f"{name}.json").write_text(json.dumps(content))
    (top / "texts.txt").write_text("Klara Farnfeld is a pilot.\n")
    taught = _lessons(top)
    tasks = str(write_tasks(top / "tasks"))
    moment = {"mom2.mom2": np.eye(512) * 1e5, "mom2.count": np.array(100_000)}
    np.savez(top / "moment.npz", **moment)
    words = "stream tiny tiny --limit 2 --no-before --kinds efficacy --option steps=3 --tasks sst2"
    words += " --tests 2 --watch downstream=1 --watch perplexity=off --watch upstream=off"
    out = ["--out", str(top / "runs" / "a"), "--tasks-path", tasks]
    assert cli.main([*words.split(), *out]) == 0
    shutil.copytree(top / "runs" / "a", top / "runs" / "b")
    return {
        "RUNS": str(top / "runs"),
        "RUN": str(top / "runs" / "a"),
        "OTHER": str(top / "runs" / "b"),
        "NPZ": str(top / "moment.npz"),
        "TASKS": tasks,
        "texts.txt": str(top / "texts.txt"),
        "samples.json": str(top / "samples.json"),
        "attribute_snippets.json": str(top / "snippets.json"),
        "zsre_mend_eval.json": str(top / "zsre.json"),
        "counterfact-edit.json": str(top / "easyedit.json"),
        "CLASSIFIER": str(top / "classifier"),
        **{path.name: str(path) for path in taught},
        **{name: str(top / f"{name}.json") for name in FETCHED},
    }


def _classifier(folder: Path, make_model: Any, tokenizer: Any) -> None:
    """A random encoder of two labels."""
    model = make_model("bert")
    model.config.id2label = {0: "REFUTES", 1: "SUPPORTS"}
    model.config.label2id = {"REFUTES": 0, "SUPPORTS": 1}
    model.classifier = type(model.classifier)(model.config.hidden_size, 2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _lessons(top: Path) -> list[Path]:
    """What learned editors are taught with: questions, claims and texts of the tiny world."""
    cases = wb.datasets.tiny(limit=120)
    said = [f"{c.request.text} {c.request.target_true} ." for c in cases]
    passages = "\n".join(" ".join(said[i : i + 12]) for i in range(0, 108, 3))
    asked = [(f"Where does {c.request.subject} live?", c.request.target_true) for c in cases]
    decao = [
        {"input": q, "output": [{"answer": a}], "alternatives": ["Oslo"]}
        | {"filtered_rephrases": [f"{q[:-1]} now?"]}
        for q, a in asked[:40]
    ]
    claims = [{"id": i, "label": ("SUPPORTS", "REFUTES")[i % 2], "claim": f"Claim {i} is so."}
              for i in range(60)]  # fmt: skip
    nq = [{"question": f"question {i} of others", "answer": ["yes"]} for i in range(40)]
    files = {
        "zsre_train.tsv": "".join(f"{q}\t{a}\n" for q, a in asked[:80]),
        "zsre_dev.tsv": "".join(f"{q}\t{a}\n" for q, a in asked[80:]),
        "zsre_decao.jsonl": "".join(json.dumps(d) + "\n" for d in decao),
        "fever.jsonl": "".join(json.dumps(c) + "\n" for c in claims),
        "nq.jsonl": "".join(json.dumps(q) + "\n" for q in nq),
        "wikitext.txt": passages,
        "webtext.txt": passages,
    }
    for name, content in files.items():
        (top / name).write_text(content)
    return [top / name for name in files]


def _parts(case: wb.EditCase) -> dict[str, Any]:
    by_kind = {p.kind: p for p in case.all_probes}
    near = by_kind["neighborhood"]
    return {
        "request": case.request,
        "reworded": by_kind["paraphrase"].prompt,
        "near": (near.prompt, near.target),
    }


def _counterfact(i: int, fact: dict[str, Any]) -> dict[str, Any]:
    req = fact["request"]
    rewrite = {"prompt": req.prompt, "subject": req.subject, "relation_id": "P0"}
    rewrite["target_new"] = {"str": req.target_new, "id": "Q0"}
    rewrite["target_true"] = {"str": req.target_true, "id": "Q1"}
    prompts = {"paraphrase_prompts": [fact["reworded"]], "neighborhood_prompts": [fact["near"][0]]}
    return {"case_id": i, "requested_rewrite": rewrite, "generation_prompts": [req.text], **prompts}


def _zsre(fact: dict[str, Any]) -> dict[str, Any]:
    req, (loc, answer) = fact["request"], fact["near"]
    asked = {"src": req.text, "subject": req.subject, "rephrase": fact["reworded"]}
    return asked | {
        "answers": [req.target_true],
        "alt": req.target_new,
        "loc": f"nq question: {loc}",
        "loc_ans": answer,
    }


def _easyedit(fact: dict[str, Any]) -> dict[str, Any]:
    req, (loc, answer) = fact["request"], fact["near"]
    asked = {"prompt": req.text, "subject": req.subject, "rephrase_prompt": fact["reworded"]}
    return asked | {
        "target_new": req.target_new,
        "ground_truth": req.target_true,
        "locality_prompt": loc,
        "locality_ground_truth": answer,
    }


# ---------------------------------------------------------------- every line


@pytest.mark.parametrize("line", LINES)
def test_the_line_runs(line, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "train(" in line or "learned_tables" in line:
        monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    if line.startswith(">>> "):
        _run_python(line.removeprefix(">>> "), world)
    elif line.startswith("python "):
        _run_script(shlex.split(line)[1:], world, tmp_path, monkeypatch)
    else:
        words = small(line, world, str(tmp_path / "run"))
        code = cli.main(words)
        told = capsys.readouterr()
        assert code == 0, f"{' '.join(words)}\n{told.err}"
        assert told.out.strip()
        if words[0] == "stream":
            assert len(wb.stream_rows(tmp_path / "run"))


def _run_python(line: str, world: dict[str, str]) -> None:
    view = wb.load("tiny-bert" if "topics_task" in line else "tiny")
    n = 40 if ".train(" in line else 2
    for name, value in TAUGHT.items() if n > 2 else ():
        line = re.sub(rf"\b{name}=\d+", f"{name}={value}", line)
    missing = [f"{k}={v}" for k, v in TAUGHT.items() if f"{k}=" not in line]
    line = line.replace("(view, cases", ", ".join(["(view, cases", *missing])) if n > 2 else line
    names = {"wb": wb, "view": view, "cases": list(wb.datasets.tiny(limit=n))}
    names |= {name: world[name] for name in ("RUN", "NPZ")}
    if "wb.lifelong(" in line:  # a run of its own, with files where the line looks for them
        names |= {"RUN": "lifelong", "task": wb.tasks.tiny_task(view, limit=2, upstream=2)}
        _write_streams(Path(), view)
    *before, last = ast.parse(line).body
    exec(compile(ast.Module(before, []), "page", "exec"), names)
    assert isinstance(last, ast.Expr)
    found = eval(compile(ast.Expression(last.value), "page", "eval"), names)
    assert not hasattr(found, "__len__") or len(found)


def _write_streams(folder: Path, view: wb.ModelView) -> None:
    """Two records of each of GRACE's tasks, in the names that the page has."""
    courts = [
        {"facts": f"Klara sued {i}.", "issue_area": (view.labels or ["a", "b"])[i % 2]}
        | {"term": str(1990 + 5 * (i // 2))}
        for i in range(6)
    ]
    asked = [{"question": f"who is number {i}", "answer": "Klara"} for i in range(2)]
    texts = [
        {"text": f"This is about {i}.", "labels": "He is old.", "concept": "x"} for i in (0, 1)
    ]
    (folder / "zsre.json").write_text(
        json.dumps([_zsre(_parts(c)) for c in wb.datasets.tiny(limit=2)])
    )
    for name, records in (("nq.jsonl", asked), ("scotus.jsonl", courts)):
        (folder / name).write_text("\n".join(map(json.dumps, records)))
    parts = dict.fromkeys(("edits", "originals", "accurates"), texts)
    (folder / "hallucination.json").write_text(json.dumps(parts))


def _run_script(
    words: list[str], world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "learned_tables" in words[0]:
        fast = tmp_path / "options.json"
        fast.write_text(json.dumps({"KE": TAUGHT}))
        more = [*words[1:], *LEARNED.split(), "--model", "tiny", "--options", str(fast)]
        if "qa" in words:
            more += ["--data", world["zsre_train.tsv"]]
        out = tmp_path / "record"
        monkeypatch.setattr(sys, "argv", [*words[:1], *more, "--out", str(out)])
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        assert (out / "table.csv").is_file()
        return
    script, study, *more = words
    given = ["--model", "tiny", "--edits", "2"]
    given += ["--batch", "1", "--only", TRIALS[study]] if study in TRIALS else ["--only", "GRACE"]
    more = [WORDS.get(w, w) for w in more]
    out = tmp_path / "record"
    monkeypatch.setattr(sys, "argv", [script, study, *more, *given, "--out", str(out)])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert (out / "table.csv").is_file()


def small(line: str, world: dict[str, str], out: str) -> list[str]:
    """The words of a command, on the tiny model with small numbers."""
    command, *words = shlex.split(line.replace("…", DOTS))[1:]
    found: list[str] = []
    flag = ""
    for word in words:
        flag = word if word.startswith("--") else flag
        found += [word] if word == flag else _small(word, flag, world, command, found, out)
    return [command, *found, *shlex.split(" ".join(_more(command, " ".join(found))))]


def _more(command: str, said: str) -> list[str]:
    """What a line is told besides."""
    if command == "train":
        more = [f"--option {k}={v}" for k, v in TAUGHT.items() if k != "steps"]
        more += ["--option validation_local=1"]
        size = "--limit 24" if "--task gen" in said else ""
        return [*more, "--steps 1", "--out editor.safetensors", size]
    if command not in ("stream", "score"):
        return []
    more = [] if "--limit" in said else ["--limit 2"]
    more += ["--write-tokens 4"] if "--write-every" in said else []
    if command == "score":
        return more
    more += ["--kinds efficacy"] + ([] if "steps=" in said else ["--option steps=3"])
    watched = () if "--single-round" in said else UNWATCHED
    return more + [f"--watch {x}=off" for x in watched if f"--watch {x}" not in said]


def _small(
    word: str, flag: str, world: dict[str, str], command: str, before: list[str], out: str
) -> list[str]:
    if word == "RUN":
        first = world["RUN"] not in before
        return [out if command == "stream" else world["RUN" if first else "OTHER"]]
    if word in FETCHED:
        return [word] if flag else [world[word], "--dataset", word]
    if flag == "--option":
        return [_option(word)]
    if flag == "--watch":
        return [re.sub(r"=\d+", "=1", word)]
    if flag in NUMBERS:
        return [NUMBERS[flag]]
    if word.isdigit() and int(word) > 2:
        return ["2"]
    return [world.get(word, WORDS.get(word, word))]


def _option(word: str) -> str:
    for pattern, new in OPTIONS:
        if re.fullmatch(pattern, word):
            return re.sub(pattern, new, word)
    return word
