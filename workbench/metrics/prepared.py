"""Which items of a downstream task are tested, with which examples, and their tokens.

All of it depends on the view's tokenizer, the file and a few numbers, not on the weights. It is
kept in ``view.cache``, so that a measurement repeated during a stream of edits only runs the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.downstream import TaskItem, task_file, task_items
from workbench.errors import OptionError, RequestError
from workbench.metrics.plan import Plan, is_causal, make_plan
from workbench.model import ModelView
from workbench.tokens import context_length, join

__all__ = ["RESERVED", "Prepared", "check_room", "prepare", "split"]

#: Items at the head of every file that are never tested, whatever the number of examples.
RESERVED = 10


@dataclass(frozen=True)
class Prepared:
    """One task, chosen and tokenized.

    Attributes:
        shots: the examples in each prompt.
        items: what is tested.
        prompts: texts of the questions, examples included.
        plan: a query for each item and label; the labels of an item stand together.
    """

    shots: tuple[TaskItem, ...]
    items: tuple[TaskItem, ...]
    prompts: tuple[str, ...]
    plan: Plan

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.items[0].task

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.plan.spots[self.plan.first_spots, 1].max()) + 1


def prepare(
    view: ModelView, task: str, n_shots: int, tests: int | None, path: Pathlike | None, seed: int
) -> Prepared:
    """A task ready to run: from the view's cache, or made and kept there.

    Raises:
        OptionError: for numbers that the file or the context cannot satisfy.
        DataError: for a missing or malformed file.
    """
    file = task_file(task, path)
    key = ("downstream", *_state(file), n_shots, tests, seed, is_causal(view))
    if key not in view.cache:
        shots, items = split(task_items(task, path), n_shots, tests, seed)
        prompts = _prompts(shots, items)
        view.cache[key] = Prepared(
            tuple(shots), tuple(items), tuple(prompts), _plan(view, shots, items, prompts)
        )
    found: Prepared = view.cache[key]
    return found


def split(
    items: Sequence[TaskItem], n_shots: int, tests: int | None, seed: int
) -> tuple[list[TaskItem], list[TaskItem]]:
    """(examples, tested items), each balanced over the classes and in the file's order.

    The choice for ``tests=50`` is part of the one for ``tests=100`` with the same seed, and does
    not depend on the number of examples up to :data:`RESERVED`.

    Raises:
        OptionError: if there are not so many.
    """
    kept = max(RESERVED, n_shots)
    head, rest = items[:kept], items[kept:]
    task = items[0].task
    if not rest:
        raise OptionError(
            f"few_shots={n_shots}: {task} has {len(items)} items, and the first {kept} are kept "
            "for examples, so none is left to test. Give fewer examples or a longer file."
        )
    if tests is not None and tests > len(rest):
        raise OptionError(
            f"tests={tests}: {task} has {len(rest)} items to test ({len(items)}, less the first "
            f"{kept} that are kept for examples). Ask for fewer, or None for all."
        )
    order = np.random.default_rng(seed).permutation(len(rest))
    drawn = rest if tests is None else _balanced([rest[i] for i in order], tests)
    return _balanced(head, n_shots), sorted(drawn, key=lambda item: item.item)


def check_room(view: ModelView, part: Prepared, n_tokens: int) -> None:
    """Refuse a task whose prompts leave no room for so many written tokens.

    Raises:
        OptionError: naming the number of examples that fits.
    """
    length = context_length(view.model.config)
    if length is not None and part.longest + n_tokens > length:
        _refuse_length(view, part.shots, part.items, n_tokens)


def _balanced(items: Sequence[TaskItem], n: int) -> list[TaskItem]:
    """The first ``n`` when the classes take turns, put back in the order given."""
    seen: dict[int, int] = {}
    turns = []
    for item in items:
        seen[item.answer] = turn = seen.get(item.answer, 0) + 1
        turns.append(turn)
    chosen = sorted(range(len(items)), key=turns.__getitem__)[:n]
    return [items[i] for i in sorted(chosen)]


def _state(file: Path) -> tuple[str, int, int]:
    """What changes when the file does."""
    stat = file.stat()
    return str(file.resolve()), stat.st_mtime_ns, stat.st_size


def _prompts(shots: Sequence[TaskItem], items: Sequence[TaskItem]) -> list[str]:
    examples = "".join(f"{shot.solved}\n" for shot in shots)
    return [examples + item.prompt for item in items]


def _plan(
    view: ModelView, shots: Sequence[TaskItem], items: Sequence[TaskItem], prompts: Sequence[str]
) -> Plan:
    both = zip(prompts, items, strict=True)
    pairs = [(prompt, label) for prompt, item in both for label in item.labels]
    try:
        return make_plan(view, pairs)
    except RequestError:
        _refuse_length(view, shots, items, 0)
        raise  # something else was wrong


def _refuse_length(
    view: ModelView, shots: Sequence[TaskItem], items: Sequence[TaskItem], n_tokens: int
) -> None:
    """Say how many examples fit; nothing if all do."""
    length = context_length(view.model.config)
    if length is None:
        return
    fits = [n for n in range(len(shots) + 1) if _needed(view, shots, n, items, n_tokens) <= length]
    if len(shots) in fits:
        return
    task = items[0].task
    way = (
        f"{max(fits)} fit all of them: give few_shots={max(fits)}"
        if fits
        else f"even without examples they do not: leave {task} out"
    )
    written = f" and {n_tokens} written tokens" if n_tokens else ""
    raise OptionError(
        f"few_shots={len(shots)}: the longest question of {task} with its examples{written} has "
        f"{_needed(view, shots, len(shots), items, n_tokens)} tokens, the context of {view.name} "
        f"is {length}. Of the examples, {way}, or use a model with a longer context."
    )


def _needed(
    view: ModelView, shots: Sequence[TaskItem], n: int, items: Sequence[TaskItem], n_tokens: int
) -> int:
    """Tokens of the longest question with ``n`` examples and what follows it."""
    prompts = _prompts(_balanced(shots, n), items)
    both = zip(prompts, items, strict=True)
    answered = [join(prompt, label) for prompt, item in both for label in item.labels]
    return max(_longest(view, prompts) + n_tokens, _longest(view, answered))


def _longest(view: ModelView, texts: Sequence[str]) -> int:
    return max(map(len, view.tokenizer(list(texts), verbose=False)["input_ids"]))
