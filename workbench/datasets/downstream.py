"""Small classification tasks that show whether a model keeps its general ability.

The nine sets on which sequential editing is followed ("Model Editing at Scale leads to Gradual and
Catastrophic Forgetting", arXiv 2401.07453; NSE, arXiv 2410.04045). The templates of sst2, mrpc,
cola, rte, nli and mmlu are those published with that work (repository
scalable-model-editing/unified-model-editing, ``glue_eval``); those of sentiment_analysis, dialogue
and hellaswag are our own. Departures:

- no prompt ends in a blank and every label begins with one; the published cola template ends in a
  blank, so that two stood before the label;
- rte: class 0 is GLUE's entailment, answered True; the published code asks for False there;
- the published dialogue prompt shows option A again in the place of option D;
- texts are stripped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.reading import Row, read_rows
from workbench.datasets.selection import text_of
from workbench.datasets.sources import where
from workbench.errors import DataError, OptionError, RequestError, did_you_mean
from workbench.places import cache_dir

__all__ = ["TASKS", "Task", "TaskItem", "task_file", "task_items"]

LETTERS = ("A", "B", "C", "D")
#: Suffixes under which a task's file is looked for.
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class Task:
    """How the records of one task are read.

    Attributes:
        template: the prompt, with the names of the record's text fields in braces and
            ``{options}`` for lettered options.
        texts: the text fields.
        classes: what the answer field says → class.
        labels: a word for each class; empty if the options themselves are the labels.
        answer: name of the answer field.
        options: name of the field with a list of texts, one a class; empty if there is none.
    """

    template: str
    texts: tuple[str, ...]
    classes: Mapping[str, int]
    labels: tuple[str, ...] = ()
    answer: str = "label"
    options: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that a record must have."""
        return (*self.texts, *filter(None, (self.options,)), self.answer)


@dataclass(frozen=True, kw_only=True)
class TaskItem:
    """One question of a task.

    Attributes:
        task: name of the task.
        item: position in the file, from 0.
        prompt: text before the label, without a blank at its end.
        labels: what may follow, one a class, without blanks around it.
        answer: index of the right label.
    """

    task: str
    item: int
    prompt: str
    labels: tuple[str, ...]
    answer: int

    @property
    def solved(self) -> str:
        """Prompt and right label, as a few-shot example shows them."""
        return f"{self.prompt} {self.labels[self.answer]}"


def _binary(zero: str, one: str) -> dict[str, int]:
    return {zero: 0, one: 1}


_PAIR = ("sentence1", "sentence2")
_NUMBERS = {str(i): i for i in range(4)}

#: task → :class:`Task`.
TASKS: dict[str, Task] = {
    "sst2": Task(
        template="Review :{sentence}\nSentiment :",
        texts=("sentence",),
        classes=_binary("0", "1"),
        labels=("negative", "positive"),
    ),
    "mrpc": Task(
        template="Are the sentences paraphrases of each other.\n"
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nAnswer:",
        texts=_PAIR,
        classes=_binary("0", "1"),
        labels=("No", "Yes"),
    ),
    "cola": Task(
        template="Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer:",
        texts=("sentence",),
        classes=_binary("0", "1"),
        labels=("No", "Yes"),
    ),
    "rte": Task(
        template="{sentence1}\nquestion: {sentence2} True or False?\nanswer:",
        texts=_PAIR,
        classes=_binary("0", "1"),
        labels=("True", "False"),
    ),
    "nli": Task(
        template="{sentence1} entails the {sentence2} True or False? Answer:",
        texts=_PAIR,
        classes=_binary("entailment", "not_entailment"),
        labels=("True", "False"),
    ),
    "mmlu": Task(
        template="Question: {question}\n{options}\nAnswer:",
        texts=("question",),
        classes=_NUMBERS,
        labels=LETTERS,
        answer="answer",
        options="choices",
    ),
    "sentiment_analysis": Task(
        template="Text: {sentence}\nIs the sentiment of the text positive or negative?\nAnswer:",
        texts=("sentence",),
        classes=_binary("0", "1"),
        labels=("negative", "positive"),
    ),
    "dialogue": Task(
        template="Dialogue: {article}\nWhich of these is said next?\n{options}\nAnswer:",
        texts=("article",),
        classes={letter: i for i, letter in enumerate(LETTERS)},
        labels=LETTERS,
        answer="answers",
        options="options",
    ),
    "hellaswag": Task(
        template="{ctx}",
        texts=("ctx",),
        classes=_NUMBERS,
        options="endings",
    ),
}


def task_items(task: str, path: Pathlike | None = None) -> tuple[TaskItem, ...]:
    """The questions of one downstream task, in the file's order.

    Args:
        task: a key of :data:`TASKS`.
        path: folder with ``<task>.json`` (or ``.jsonl``, each also ``.gz``); None is the folder
            ``datasets/downstream`` of the cache.

    Raises:
        OptionError: for an unknown task.
        DataError: if the file is missing, damaged, or a record lacks a field.

    Example:
        >>> items = wb.datasets.task_items("sst2", "downstream/")  # doctest: +SKIP
    """
    file = task_file(task, path)
    return tuple(_checked(task, row, file) for row in read_rows(file))


def task_file(task: str, path: Pathlike | None = None) -> Path:
    """The file of a task in a folder. Arguments and errors as :func:`task_items`."""
    if task not in TASKS:
        raise OptionError(f"task {task!r} is unknown." + did_you_mean(task, TASKS))
    folder = cache_dir("datasets") / "downstream" if path is None else Path(path).expanduser()
    if folder.is_file():
        raise DataError(f"path={str(path)!r} is a file: give the folder that holds it.")
    for suffix in SUFFIXES:
        if (folder / f"{task}{suffix}").is_file():
            return folder / f"{task}{suffix}"
    raise DataError(
        f"there is no {task}.json in {folder}. A folder of downstream tasks holds one file a task "
        f"({', '.join(f'{name}.json' for name in TASKS)}), each a list of records; {task} has the "
        f"fields {', '.join(TASKS[task].fields)}. Give the folder as path=, or get the files:\n"
        + where("downstream")
    )


def _checked(task: str, row: Row, file: Path) -> TaskItem:
    """The item of a row, or an error that points at it."""
    try:
        if row.error or not isinstance(row.data, dict):
            raise RequestError(row.error or f"is a {type(row.data).__name__}, not a record")
        return _item(task, row.index, row.data)
    except RequestError as error:
        raise DataError(
            f"{file}, {row.place}: {error}. A record of {task} has the fields "
            f"{', '.join(TASKS[task].fields)}."
        ) from error


def _item(task: str, index: int, record: dict[str, Any]) -> TaskItem:
    how = TASKS[task]
    parts = {name: text_of(record, name).strip() for name in how.texts}
    options = _options(how, record) if how.options else ()
    if how.labels and options:
        lettered = zip(how.labels, options, strict=True)
        parts["options"] = "\n".join(f"({letter}) {text}" for letter, text in lettered)
    return TaskItem(
        task=task,
        item=index,
        prompt=how.template.format(**parts),
        labels=how.labels or options,
        answer=_answer(how, record),
    )


def _options(how: Task, record: dict[str, Any]) -> tuple[str, ...]:
    found = record.get(how.options)
    good = isinstance(found, list) and all(isinstance(x, str) and x.strip() for x in found)
    if not good or len(found) != len(how.classes):  # type: ignore[arg-type]
        raise RequestError(
            f"field {how.options!r} is {found!r}; it must be {len(how.classes)} non-empty texts"
        )
    return tuple(text.strip() for text in found)  # type: ignore[union-attr]


def _answer(how: Task, record: dict[str, Any]) -> int:
    said = record.get(how.answer)
    if str(said) not in how.classes:
        raise RequestError(
            f"field {how.answer!r} is {said!r}; it must be one of {', '.join(how.classes)}"
        )
    return how.classes[str(said)]
