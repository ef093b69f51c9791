"""The parameters of one model: their originals, what an edit makes of them, and the swap.

Masters of touched matrices are float32 (float64 where the weight is) and each delta is added out of
place (design 9.1). A state is therefore a set of references to tensors that are never written
again, and going from one state to another swaps references.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.capabilities import get_module
from workbench.edits import Delta, Edit, WeightEdit
from workbench.errors import EditMismatchError, NumericalError

__all__ = ["State", "Weights", "doubts", "lineage", "spacing"]

#: Longest stack whose ids an edit lists one by one.
LISTED = 32


@dataclass(frozen=True)
class State:
    """Stack plus references to the tensors it produced; nothing in it is ever written again.

    Attributes:
        stack: the edits, oldest first.
        masters, live: parameter name → exact values, and as the model holds them.
        adapters: parameter → the functions beside its module, see :mod:`workbench.beside`.
    """

    stack: tuple[Edit, ...] = ()
    masters: Mapping[str, Tensor] = field(default_factory=dict)
    live: Mapping[str, Tensor] = field(default_factory=dict)
    adapters: Mapping[str, Any] = field(default_factory=dict)


class Weights:
    """Named parameters of a model, which only :meth:`put` changes.

    Attributes:
        parameters: name → parameter, tied ones under each of their names.
        originals: name → pristine tensor of every parameter that an edit touched so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}  # tied weights are one parameter, whatever name a delta uses
        self._first_name = {n: first.setdefault(id(p), n) for n, p in self.parameters.items()}
        self.originals: dict[str, Tensor] = {}
        self._homes = {n: (p.dtype, p.device) for n, p in self.parameters.items()}

    def pristine(self) -> Iterator[tuple[str, Tensor]]:
        """Name and unedited values of every parameter."""
        for name, p in self.parameters.items():
            yield name, self.originals.get(self._first_name[name], p.data)

    def oriented(self, parameter: str) -> Tensor:
        """Present values as (out, in), whatever the storage."""
        data = self.parameters[parameter].data
        return data.T if self._is_transposed(parameter) else data

    def refuse_foreign(self, live: Mapping[str, Tensor]) -> None:
        """Refuse to go on after something else converted, moved or replaced parameters.

        Args:
            live: tensors of the state that the model should hold.

        Raises:
            EditMismatchError: naming the parameter.
        """
        for name, p in self.parameters.items():
            first = self._first_name[name]
            put = live.get(first, self.originals.get(first))
            is_ours = put is None or put.data_ptr() == p.data_ptr()
            if not is_ours or (p.dtype, p.device) != self._homes[name]:
                raise EditMismatchError(
                    f"the model's parameters were changed outside the view ({name!r}, now "
                    f"{p.dtype} on {p.device}): load the model again with the dtype and device it "
                    "shall have, or take it as it is: load(view.model, tokenizer=view.tokenizer)."
                )

    def check(self, edit: WeightEdit) -> None:
        """Refuse an edit whose changes do not fit these parameters.

        Raises:
            EditMismatchError: for an unknown parameter, another shape, or positions outside of it.
            NumericalError: if a change holds NaN or Inf.
        """
        for delta in edit.deltas:
            if delta.parameter not in self.parameters:
                raise EditMismatchError(f"the model has no parameter {delta.parameter!r}.")
            shape = tuple(self.oriented(delta.parameter).shape)
            if shape != delta.shape:
                raise EditMismatchError(
                    f"edit {edit.id} changes {delta.parameter!r} of shape {delta.shape}, this "
                    f"model's has {shape}."
                )
            if flaw := delta.flaw():
                raise EditMismatchError(
                    f"edit {edit.id} changes {delta.parameter!r}, but {flaw}: compute it anew."
                )
        if not edit.is_finite():
            raise NumericalError(f"edit {edit.id} holds NaN or Inf: it was not applied.")

    def after(self, state: State, edit: WeightEdit) -> State:
        """The state one edit later; computes out of place and changes nothing.

        Raises:
            EditMismatchError, NumericalError: as :meth:`check`.
            NumericalError: if NaN or Inf would be written.
        """
        self.check(edit)
        masters, live = dict(state.masters), dict(state.live)
        for delta in edit.deltas:
            name = self._first_name[delta.parameter]
            original = self.originals.setdefault(name, self.parameters[name].data)
            new = self._added(masters.get(name, original), delta, original)
            cast = new.to(original.dtype)
            if not bool(cast.isfinite().all()):
                raise NumericalError(
                    f"edit {edit.id} would write NaN or Inf into {name!r} ({original.dtype}): "
                    "nothing was changed. Use a smaller step, or load the model in float32."
                )
            masters[name], live[name] = new, cast
        return replace(state, stack=(*state.stack, edit), masters=masters, live=live)

    def put(self, names: Iterable[str], live: Mapping[str, Tensor]) -> None:
        """Let parameters hold the tensors of a state, or their originals where it has none."""
        for name in names:
            self.parameters[name].data = live.get(name, self.originals[name])

    def _added(self, master: Tensor, delta: Delta, original: Tensor) -> Tensor:
        """The master copy plus one change, as a new tensor."""
        dtype = torch.promote_types(original.dtype, torch.float32)
        master = master.to(original.device, dtype)
        change = delta.materialize(dtype=dtype, device=master.device)
        return master + (change.T if self._is_transposed(delta.parameter) else change)

    def _is_transposed(self, parameter: str) -> bool:
        path, _, leaf = parameter.rpartition(".")
        return leaf == "weight" and isinstance(get_module(self._model, path), Conv1D)


def spacing(age: int) -> int:
    """Depths of snapshots ``age`` edits back are kept only at multiples of this."""
    return 1 << max(0, age.bit_length() - 1)


def lineage(stack: Sequence[Edit]) -> tuple[str, ...]:
    """What an edit records of the stack it was computed on.

    The ids of its edits; of a longer stack than :data:`LISTED` their number with a hash of all of
    them, and the newest: else the files of a long stream would grow with its square.
    """
    ids = tuple(e.id for e in stack)
    if len(ids) <= LISTED:
        return ids
    return (f"{len(ids)}:{hashlib.sha256(''.join(ids).encode()).hexdigest()[:32]}", ids[-1])


def _depth(parents: Sequence[str]) -> int:
    return int(parents[0].split(":")[0]) if parents and ":" in parents[0] else len(parents)


def doubts(edit: Edit, stack: Sequence[Edit]) -> Iterator[str]:
    """What speaks against pushing an edit on a stack, though it can be done; a sentence each."""
    if tuple(edit.parents) != lineage(stack):
        yield (
            f"edit {edit.id} was computed on a stack of {_depth(edit.parents)} edits, not on this "
            f"one of {len(stack)}: its effect may differ."
        )
    if any(e.editor == edit.editor and e.requests == edit.requests for e in stack):
        yield f"the same request was already written by {edit.editor}; this stacks it again."
