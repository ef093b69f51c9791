"""The states that one model goes through: the live one, and the way to every other.

A state is never written again (:mod:`workbench.weights`), so going anywhere swaps references.
Log-spaced snapshots keep the way back to an early state short (design 9.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workbench.beside import Beside
from workbench.edits import AdapterEdit, Edit, WeightEdit
from workbench.errors import OptionError
from workbench.weights import State, Weights, spacing

__all__ = ["States"]


class States:
    """Which state a model is in; only :meth:`install` changes it.

    Args:
        weights: of the model.
        beside: what stands beside them.
        accept: raises for an edit that is not for this model.

    Attributes:
        now: the state the model is in.
        snapshots: depth of the stack → a state to begin from.
        depth: how many blocks of :meth:`showing` are open.
    """

    def __init__(self, weights: Weights, beside: Beside, accept: Callable[[Edit], None]) -> None:
        self.now = State()
        self.snapshots: dict[int, State] = {}
        self.depth = 0
        self._weights, self._beside, self._accept = weights, beside, accept
        self._lasting: tuple[Edit, ...] | None = None

    @property
    def held(self) -> tuple[Edit, ...]:
        """The stack that lasts: that before the outermost open block of :meth:`showing`."""
        lasting = self._lasting
        return self.now.stack if lasting is None else lasting

    def after(self, state: State, *edits: Edit) -> State:
        """The state some edits later; computes out of place and installs nothing."""
        for edit in edits:
            self._accept(edit)
            if isinstance(edit, AdapterEdit):
                state = self._beside.after(state, edit)
            else:
                assert isinstance(edit, WeightEdit)
                state = self._weights.after(state, edit)
        return state

    def at(self, n: int) -> State:
        """The state after the first ``n`` edits, from the nearest snapshot below."""
        stack = self.now.stack
        if n == len(stack):
            return self.now
        depth = max((d for d in self.snapshots if d <= n), default=0)
        return self.after(self.snapshots.get(depth, State()), *stack[depth:n])

    def entry(self, index: int) -> int:
        """The position of an entry, counted from the front.

        Raises:
            OptionError: if there is none.
        """
        n = len(self.now.stack)
        if not -n <= index < n:
            raise OptionError(f"entry {index} does not exist: the stack holds {n} edits.")
        return index % n

    def commit(self, state: State) -> None:
        """Install a state one edit later, and keep the one before to come back to."""
        before = self.now
        self.install(state)
        n = len(state.stack)
        self.snapshots[len(before.stack)] = before
        for depth in [d for d in self.snapshots if d % spacing(n - d)]:
            del self.snapshots[depth]

    def prune(self, depth: int) -> None:
        """Forget the snapshots above a depth."""
        self.snapshots = {d: s for d, s in self.snapshots.items() if d <= depth}

    def install(self, state: State) -> None:
        """Swap tensors in; on any interruption put the old ones back."""
        before = self.now
        touched = {*before.live, *state.live}
        try:
            self._weights.put(touched, state.live)
            self._beside.put(state.adapters)
            self.now = state
        except BaseException:
            self._weights.put(touched, before.live)
            self._beside.put(before.adapters)
            self.now = before
            raise
        self.prune(len(state.stack))

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Whatever ends the block early, the state is the one it began with."""
        before, snapshots = self.now, dict(self.snapshots)
        try:
            yield
        except BaseException:
            self.snapshots = snapshots
            self.install(before)
            raise

    @contextmanager
    def showing(self, state: State) -> Iterator[None]:
        """Be in a state for the length of the block."""
        before, snapshots, depth = self.now, dict(self.snapshots), self.depth
        try:
            if depth == 0:
                self._lasting = before.stack
            self.depth = depth + 1
            self.install(state)
            yield
        finally:
            self.depth = depth
            try:
                self.install(before)
            except BaseException:  # interrupted on the way back: the old state comes first
                self.install(before)
                raise
            finally:
                self.snapshots = snapshots
                if depth == 0:
                    self._lasting = None
