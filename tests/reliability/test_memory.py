"""Memory that runs out at any operation and in every phase, and weights that are no numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from faults import ANNA, BO, NO_MEMORY, OutOfMemory, intact, left_behind, state
from ledger import FULL, Ledger, chance, times
from work import WORK, editor_of, prepared

from workbench.editors import EDITORS
from workbench.errors import NumericalError, WorkbenchError
from workbench.model import ModelView
from workbench.progress import progress_to

pytestmark = pytest.mark.filterwarnings("ignore:edit .* was computed on a stack")


@pytest.fixture(scope="module")
def view(make_view: Any) -> ModelView:
    return prepared(make_view("llama"))


@pytest.mark.parametrize("what", WORK)
def test_out_of_memory_at_any_operation(view: ModelView, ledger: Ledger, what: str) -> None:
    work, luck = WORK[what], chance(what)
    expected = work(view)  # some of it is remembered, and not done again
    with OutOfMemory() as calm:
        assert work(view) == expected
    assert left_behind(view) == [] and calm.seen > 2
    places = sorted({luck.randint(1, calm.seen) for _ in range(times(4, 40))})
    for n, at in enumerate(places):
        error = NO_MEMORY[n % len(NO_MEMORY)]
        with ledger.fault("out of memory at an operation"), intact(view):
            mode = OutOfMemory(at, error)
            try:
                with mode:
                    work(view)
            except error:
                pass
            else:  # whoever catches it has to do without
                assert mode.seen >= at
    with intact(view):
        assert work(view) == expected


@pytest.mark.parametrize("what", [w for w in WORK if w.startswith("edit with")])
def test_out_of_memory_in_every_phase(view: ModelView, ledger: Ledger, what: str) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with progress_to(lambda *event: seen.append(event)):
        expected = WORK[what](view)
    first = {phase: i for i, (phase, *_) in reversed(list(enumerate(seen)))}
    last = {phase: i for i, (phase, *_) in enumerate(seen)}
    for at in sorted({*first.values(), *last.values(), *(range(len(seen)) if FULL else ())}):
        left = [at]

        def sink(*event: Any, left: list[int] = left, at: int = at) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise NO_MEMORY[at % len(NO_MEMORY)]("no memory")

        kind = "out of memory in a phase"
        with ledger.fault(kind), intact(view), pytest.raises(NO_MEMORY), progress_to(sink):
            WORK[what](view)
    assert WORK[what](view) == expected


@pytest.mark.parametrize("name", EDITORS)
def test_weights_that_are_no_numbers(make_view: Any, ledger: Ledger, name: str) -> None:
    """Wherever NaN or Inf stands: refused with the model as it was, or an edit of finite numbers.

    A parameter that the prompts do not touch may hold anything.
    """
    view, luck = make_view("llama"), chance(name)
    editor = editor_of(name, view)
    matrices = [p for p in view.model.parameters() if p.ndim == 2]
    for n in range(times(3, 25)):
        weight = luck.choice(matrices)
        place = luck.randrange(weight.shape[0]), luck.randrange(weight.shape[1])
        with torch.no_grad():
            kept = weight[place].clone()
            weight[place] = (math.nan, math.inf, -math.inf)[n % 3]
        with ledger.fault("weights that are no numbers"), intact(view):
            try:
                assert editor.edit(view, [BO, ANNA]).is_finite()
            except NumericalError as err:
                assert str(err)
        with torch.no_grad():
            weight[place] = kept
    assert editor.edit(view, [BO, ANNA]).is_finite()


def test_two_views_in_one_process(make_view: Any, ledger: Ledger) -> None:
    """Edits that come and go on one view are not seen by the other, whatever fails in between."""
    one, other, alone = make_view("llama"), make_view("llama"), make_view("llama")
    before, luck = state(other), chance("two views")
    for n in range(times(12, 120)):
        name = luck.choice([*EDITORS])
        with ledger.fault("two views in one process"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            edit = editor_of(name, one).edit(one, BO)
            assert editor_of(name, alone).edit(alone, BO).id == edit.id
            try:
                with OutOfMemory(luck.randint(1, 40)):
                    one.push(edit)
            except NO_MEMORY + (WorkbenchError,):
                one.push(edit)
            assert state(other) == before and left_behind(other) == []
            assert editor_of(name, other).edit(other, BO).id == edit.id
            one.reset()
            assert state(one)[0] == before[0] and left_behind(one) == []
            alone.cache.clear() if n % 3 == 0 else None
