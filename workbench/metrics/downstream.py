"""``downstream``: small tasks that show whether edits cost a model its general ability.

Protocol of "Model Editing at Scale leads to Gradual and Catastrophic Forgetting" (arXiv 2401.07453)
and of its released code: the first ten items of a task are kept for few-shot examples, an item is
answered by the label with the smallest mean negative log-likelihood a token, and, if asked, by the
first label word in a short greedy continuation (no label word is class -1, which enters F1).
Departures: the labels of an item are scored in one batched pass and not in one forward each; a tie
for the best label is class -1 for any number of labels; examples that do not fit are an error and
are not dropped; tests are drawn balanced over the classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.downstream import TASKS
from workbench.errors import DataError, OptionError, did_you_mean
from workbench.forgetting import wilson
from workbench.layouts import DECODER
from workbench.metrics.answers import tally
from workbench.metrics.generation import generate_text
from workbench.metrics.plan import Plan
from workbench.metrics.prepared import Prepared, check_room, prepare
from workbench.model import ModelView

__all__ = ["downstream", "downstream_items", "downstream_summary"]

FewShots: TypeAlias = int | Sequence[int] | Mapping[str, int]

#: Tokens written with ``generate=True`` (NSE's evaluation).
GENERATED_TOKENS = 5
#: Class of an item without an answer.
UNANSWERED = -1


def downstream(
    view: ModelView,
    tasks: str | Sequence[str] = ("sst2", "mmlu"),
    *,
    few_shots: FewShots = 0,
    tests: int | None = None,
    path: Pathlike | None = None,
    generate: bool | int = False,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> pd.DataFrame:
    """Measure a model on the small tasks that are followed while it is edited.

    Args:
        view: a decoder, with whatever edits it holds.
        tasks: ``sst2, mrpc, cola, rte, nli, mmlu, sentiment_analysis, dialogue, hellaswag``.
        few_shots: solved examples before each question: one number for all tasks, a sequence with
            one number a task, or task → number (0 for the others). The paper uses 4 for sst2 and
            6 for mrpc and cola. Examples come from the head of the file, balanced over the
            classes; the first 10 items (more if more examples are asked for) are never tested.
        tests: items a task, balanced over the classes and drawn by seed; None takes all.
        path: folder with ``<task>.json`` files, see :func:`workbench.datasets.task_items`.
        generate: also read the answer off a greedy continuation of so many tokens (True: 5).
            hellaswag's labels are whole sentences and are not looked for.
        seed: of the choice of tests.
        batch_tokens: padded tokens in a batch; None suits the device.

    Returns:
        One row a task: ``task, n`` (items tested), ``few_shots, accuracy, low, high`` (Wilson 95 %
        interval), ``f1`` (weighted over classes, as scikit-learn), ``chance`` (accuracy of always
        saying the most frequent class); with ``generate`` also ``generated_f1,
        generated_accuracy, unanswered`` (share of continuations without a label word).
        :func:`workbench.metrics.downstream_items` gives the answers behind it.

    Raises:
        OptionError: for an unknown task, numbers that do not fit the tasks or the files, examples
            that do not fit the context (the number that fits is named), or a model that is no
            decoder. Nothing has run then.
        DataError: for a missing or malformed file.

    Example:
        >>> wb.downstream(view, ("sst2", "cola"), few_shots=(4, 6), tests=100)  # doctest: +SKIP
    """
    table = downstream_items(
        view,
        tasks,
        few_shots=few_shots,
        tests=tests,
        path=path,
        generate=generate,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    return downstream_summary(table)


def downstream_items(
    view: ModelView,
    tasks: str | Sequence[str] = ("sst2", "mmlu"),
    *,
    few_shots: FewShots = 0,
    tests: int | None = None,
    path: Pathlike | None = None,
    generate: bool | int = False,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> pd.DataFrame:
    """The answers that :func:`workbench.downstream` sums up; arguments and errors as there.

    Returns:
        One row a tested item: ``task, item`` (position in the file), ``few_shots, label`` (the
        right class), ``predicted`` (class of the cheapest label, -1 for a tie or NaN), ``correct``,
        ``nll_0, nll_1, ...`` (mean nats a token of each class's label; NaN where the task has
        fewer classes); with ``generate`` also ``generated`` (text) and ``generated_label`` (-1
        without a label word; both missing for hellaswag).

    Example:
        >>> wb.metrics.downstream_items(view, "sst2", tests=20)  # doctest: +SKIP
    """
    shots = _few_shots(_tasks(tasks), few_shots)
    n_tokens = _generated_tokens(generate)
    _check(view, tests, seed)
    with view.writing("downstream"):
        prepared = [prepare(view, task, n, tests, path, seed) for task, n in shots.items()]
        for part in prepared:
            check_room(view, part, n_tokens)
        tables = [_answers(view, part, batch_tokens) for part in prepared]
        written = [_generated(view, part, n_tokens) for part in prepared] if n_tokens else []
    table = pd.concat(tables, ignore_index=True)
    if n_tokens:
        texts, found = zip(*(pair for pairs in written for pair in pairs), strict=True)
        table["generated"] = texts
        table["generated_label"] = pd.array(found, dtype="Int64")
    table.attrs = {"model": view.name, "seed": seed}
    return table


def downstream_summary(items: pd.DataFrame) -> pd.DataFrame:
    """Sum up a table of :func:`downstream_items`; columns as :func:`workbench.downstream`.

    Raises:
        DataError: if columns are missing.

    Example:
        >>> wb.metrics.downstream_summary(items)  # doctest: +SKIP
    """
    missing = {"task", "few_shots", "label", "predicted"} - set(items.columns)
    if missing:
        raise DataError(f"the table has no column {', '.join(sorted(missing))}.")
    groups = items.groupby(["task", "few_shots"], sort=False)
    table = pd.DataFrame([_summarize(str(key[0]), int(key[1]), part) for key, part in groups])
    table.attrs = dict(items.attrs)
    return table


# ---------------------------------------------------------------- options


def _tasks(tasks: str | Sequence[str]) -> list[str]:
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in names:
        if name not in TASKS:
            raise OptionError(f"tasks has {name!r}, which is unknown." + did_you_mean(name, TASKS))
    if not names or len(set(names)) < len(names):
        raise OptionError(f"tasks={tuple(names)!r}: name one task or more, each once.")
    return names


def _few_shots(tasks: list[str], few_shots: FewShots) -> dict[str, int]:
    """task → number of examples."""
    if isinstance(few_shots, Mapping):
        for name in few_shots:
            if name not in tasks:
                raise OptionError(
                    f"few_shots has a number for {name!r}, which is not among the tasks "
                    f"({', '.join(tasks)}): name the task in tasks=, or leave the number out."
                )
        numbers = [few_shots.get(name, 0) for name in tasks]
    elif isinstance(few_shots, Iterable):
        numbers = list(few_shots)
    else:
        numbers = [few_shots] * len(tasks)
    if len(numbers) != len(tasks):
        raise OptionError(
            f"few_shots has {len(numbers)} numbers for {len(tasks)} tasks ({', '.join(tasks)}): "
            "give one number a task, or one number for all."
        )
    for name, number in zip(tasks, numbers, strict=True):
        if not _is_count(number, least=0):
            raise OptionError(f"few_shots={number!r} for {name}: it must be a whole number >= 0.")
    return dict(zip(tasks, map(int, numbers), strict=True))


def _generated_tokens(generate: bool | int) -> int:
    if generate is True:
        return GENERATED_TOKENS
    if generate is not False and not _is_count(generate, least=1):
        raise OptionError(f"generate={generate!r}: it must be a number of tokens, True or False.")
    return int(generate)


def _is_count(value: object, *, least: int) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(value) >= least  # type: ignore[call-overload]


def _check(view: ModelView, tests: int | None, seed: int) -> None:
    if view.kind != DECODER:
        raise OptionError(
            f"{view.name} is an {view.kind}: downstream tasks are prompts for a decoder to go on "
            "with. Measure this model with wb.score on cases of its own task."
        )
    if tests is not None and not _is_count(tests, least=1):
        raise OptionError(f"tests={tests!r}: it must be at least 1, or None for all items.")
    if not _is_count(seed, least=0):
        raise OptionError(f"seed={seed!r}: it must be a whole number >= 0.")


# ---------------------------------------------------------------- answers


def _answers(view: ModelView, part: Prepared, batch_tokens: int | None) -> pd.DataFrame:
    phase = f"downstream {part.task}"
    found = tally(view, part.plan, batch_tokens=batch_tokens, phase=phase)
    nll = _mean_nll(part.plan, found.log_prob.numpy()).reshape(len(part.items), -1)
    label, predicted = np.array([item.answer for item in part.items]), cheapest(nll)
    columns: dict[str, Any] = {
        "task": part.task,
        "item": [item.item for item in part.items],
        "few_shots": len(part.shots),
        "label": label,
        "predicted": predicted,
        "correct": predicted == label,
    }
    return pd.DataFrame(columns | {f"nll_{i}": column for i, column in enumerate(nll.T)})


def _mean_nll(plan: Plan, log_prob: np.ndarray) -> np.ndarray:
    """``[n_queries]`` nats a token."""
    return -np.add.reduceat(log_prob, plan.starts[:-1]) / np.diff(plan.starts)


def cheapest(nll: np.ndarray) -> np.ndarray:
    """Class of the smallest number in each row of ``[n, classes]``; -1 for a tie or no number."""
    known = np.where(np.isnan(nll), np.inf, nll)
    first, second = np.sort(known, axis=1)[:, :2].T
    return np.where(first < second, known.argmin(axis=1), UNANSWERED)


def _generated(view: ModelView, part: Prepared, n_tokens: int) -> list[tuple[Any, Any]]:
    """(text, class) of every item; nothing where the labels are not words."""
    if not TASKS[part.task].labels:
        return [(None, None)] * len(part.items)
    texts = generate_text(view, part.prompts, max_new_tokens=n_tokens)
    both = zip(texts, part.items, strict=True)
    return [(text, label_in(text, item.labels)) for text, item in both]


def label_in(text: str, labels: Sequence[str]) -> int:
    """Class of the label word that comes first in a text, -1 without any.

    Words count whole and in upper or lower case; a single letter has to be written as it is.
    """
    found = [(m.start(), i) for i, label in enumerate(labels) if (m := _word(label).search(text))]
    return min(found)[1] if found else UNANSWERED


def _word(label: str) -> re.Pattern[str]:
    flags = re.IGNORECASE if len(label) > 1 else re.NOFLAG
    return re.compile(rf"(?<!\w){re.escape(label)}(?!\w)", flags)


# ---------------------------------------------------------------- summary


def _summarize(task: str, few_shots: int, part: pd.DataFrame) -> dict[str, Any]:
    label, predicted = part["label"].to_numpy(), part["predicted"].to_numpy()
    accuracy = float((label == predicted).mean())
    low, high = wilson(accuracy, len(part))
    row = {"task": task, "n": len(part), "few_shots": few_shots, "accuracy": accuracy}
    row |= {"low": low, "high": high, "f1": weighted_f1(label, predicted)}
    row["chance"] = np.unique(label, return_counts=True)[1].max() / len(part)
    if "generated_label" in part:
        row |= _summarize_generated(label, part["generated_label"])
    return row


def _summarize_generated(label: np.ndarray, said: pd.Series) -> dict[str, float]:
    names = ("generated_f1", "generated_accuracy", "unanswered")
    if said.isna().any():
        return dict.fromkeys(names, math.nan)
    found = said.to_numpy(dtype=int)
    values = (weighted_f1(label, found), (found == label).mean(), (found == UNANSWERED).mean())
    return dict(zip(names, map(float, values), strict=True))


def weighted_f1(label: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of each class, averaged with the classes' shares among the right labels."""
    from sklearn.metrics import f1_score

    return float(f1_score(label, predicted, average="weighted", zero_division=0))
