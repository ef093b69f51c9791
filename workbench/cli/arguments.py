"""What ``score``, ``stream``, ``train`` and ``summary`` are told on the command line."""

from __future__ import annotations

__all__ = ["EDITOR", "LOADING", "MODEL", "SCORE", "STREAM", "SUMMARY", "TRAIN", "Argument"]

#: Name or flag, and options of ``ArgumentParser.add_argument``.
Argument = tuple[str, dict[str, object]]


def _many(help: str, metavar: str) -> dict[str, object]:
    """An option that may be given again."""
    return {"action": "append", "default": [], "metavar": metavar, "help": help}


def _number(help: str, *, several: bool = False) -> dict[str, object]:
    return {"type": int, "metavar": "N", "help": help} | ({"nargs": "+"} if several else {})


def _flag(help: str) -> dict[str, object]:
    return {"action": "store_true", "help": help}


MODEL: Argument = ("model", {"metavar": "MODEL", "help": "a name, a folder or a hub id"})
LOADING: tuple[Argument, ...] = (
    ("--device", {"help": "cpu, cuda, cuda:1 … (default: a GPU if there is one)"}),
    ("--dtype", {"help": "float32, bfloat16 … (default: float32 on a CPU, else the model's)"}),
)
EDITOR: tuple[Argument, ...] = (
    ("--preset", {"default": "default", "help": "default, paper or repo (default: %(default)s)"}),
    ("--option", _many("of the editor", "NAME=VALUE")),
)
_CASES: tuple[Argument, ...] = (
    (
        "data",
        {
            "metavar": "DATA",
            "help": "tiny, facts, counterfact, multi_counterfact, zsre, easyedit, or a file",
        },
    ),
    ("--dataset", {"metavar": "NAME", "help": "how to read the file (default: by its keys)"}),
    ("--zsre", {"metavar": "WHAT", "help": "what zsRE writes: memit (gold) or easyedit (other)"}),
    ("--limit", _number("only the first records")),
    ("--skip", _number("pass over the first records")),
    ("--ids", {"metavar": "FILE", "help": "only these case ids, in this order: a JSON list"}),
    ("--sample", {"metavar": "NAME", "help": "the list to take if --ids names several"}),
    ("--kinds", {"nargs": "+", "metavar": "KIND", "help": "only probes of these kinds"}),
)
_TASKS: tuple[Argument, ...] = (
    ("--tasks", {"nargs": "+", "metavar": "TASK", "help": "downstream tasks, such as sst2 mmlu"}),
    ("--few-shots", _number("solved examples: one number, or one a task", several=True)),
    ("--tests", _number("items a task (default: all)")),
    ("--tasks-path", {"metavar": "FOLDER", "help": "that holds the tasks' files"}),
    ("--tasks-generate", _flag("also read answers off free text")),
)
_WRITING: tuple[Argument, ...] = (
    ("--write-every", _number("write freely about every N-th case; measure fluency")),
    ("--write-tokens", _number("of a text (default: 100)") | {"default": 100}),
    ("--snippets", {"metavar": "FILE", "help": "reference texts for consistency"}),
)
SCORE: tuple[Argument, ...] = (
    MODEL,
    *_CASES,
    ("--edit", _many("apply a saved edit", "FILE")),
    (
        "--run",
        {"dest": "held", "metavar": "FOLDER", "help": "apply the edits of a run or a kept stack"},
    ),
    ("--at", _number("of that run, only the edits held after N facts")),
    ("--protocol", {"help": "counterfact, zsre or easyedit"}),
    ("--generate", _flag("also whether free text begins with the target")),
    *_TASKS,
    *_WRITING,
    *LOADING,
    ("--out", {"metavar": "FILE", "help": "save the table here (.csv)"}),
)
STREAM: tuple[Argument, ...] = (
    MODEL,
    *_CASES,
    ("--out", {"required": True, "metavar": "FOLDER", "help": "the run's folder"}),
    ("--editor", {"default": "MEMIT", "help": "an editor's name (default: %(default)s)"}),
    *EDITOR,
    ("--batch-size", {"type": int, "default": 1, "help": "facts an edit (default: 1)"}),
    ("--single-round", _flag("every batch on the model as it was, instead of adding up")),
    ("--evaluate-at", _number("measure everything after N edits", several=True)),
    ("--dense-every", _number("a subset every N edits as well")),
    ("--no-before", _flag("do not measure the unedited model first")),
    (
        "--watch",
        _many("take a metric every N edits, at 100,500, at checkpoints, or off", "NAME=WHEN"),
    ),
    ("--texts", {"metavar": "FILE", "help": "whose perplexity is watched (default: facts)"}),
    *_TASKS,
    *_WRITING,
    ("--keep-model-at", _number("keep the edits held after N facts", several=True)),
    ("--skip-errors", _flag("leave out batches that fail")),
    ("--fresh", _flag("delete an older run in this folder first")),
    *LOADING,
)
TRAIN: tuple[Argument, ...] = (
    ("editor", {"metavar": "EDITOR", "help": "mend, ke (or efk) or enn"}),
    ("--model", {"required": True, "help": "a name, a folder or a hub id"}),
    ("--data", {"metavar": "DATA", "help": "tiny, facts, or a file (default: the task's)"}),
    (
        "--task",
        {
            "help": "gen, qa, fc or tiny: how lessons are made of the data; without it the file is "
            "one of cases"
        },
    ),
    (
        "--locality",
        {
            "default": "same",
            "help": "where unrelated texts come from: same, nq, openwebtext or wikitext (default: "
            "%(default)s)",
        },
    ),
    ("--local", {"metavar": "FILE", "help": "of unrelated texts, where --locality names a source"}),
    ("--validation", {"metavar": "FILE", "help": "what is held out (default: a share of DATA)"}),
    (
        "--rewordings",
        {"metavar": "FILE", "help": "De Cao's questions or claims with filtered rephrasings"},
    ),
    ("--limit", _number("only the first records")),
    ("--steps", {"type": int, "default": 1000, "help": "optimizer steps (default: 1000)"}),
    ("--seed", {"type": int, "default": 0, "help": "of the lessons and of the beginning"}),
    *EDITOR,
    *LOADING,
    (
        "--out",
        {"metavar": "FILE", "help": "the trained editor (default: where preset(view) finds it)"},
    ),
    ("--fresh", _flag("begin anew, and replace an older file")),
)
SUMMARY: tuple[Argument, ...] = (
    (
        "runs",
        {"nargs": "+", "metavar": "RUN", "help": "table, run folder, or a folder of runs"},
    ),
    ("--first", _number("only the first N cases of every run")),
    ("--over-runs", _flag("mean and deviation over runs")),
    ("--out", {"metavar": "FILE", "help": "save the table here (.csv)"}),
)
