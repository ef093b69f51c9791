"""One model, its pristine weights and a stack of edits: the only writer in the package.

The state is a function of the pristine weights and the stack (design 9.1): ``W_n = W_{n-1} +
delta_n``, one delta at a time in stack order. Undo, time travel and roll-back after a failure swap
references to tensors that are never written again (:mod:`workbench.weights`), so undo is exact to
the bit in every dtype.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.adapters import Gates, HookLayer
from workbench.atomic import write_folder
from workbench.beside import Beside
from workbench.capabilities import Capabilities, get_module, orient
from workbench.edits import Edit
from workbench.errors import BusyError, EditMismatchError, OptionError
from workbench.fingerprint import fingerprint_model
from workbench.layouts import Layout
from workbench.looks import stack_html, view_line
from workbench.states import States
from workbench.weights import State, Weights, doubts

__all__ = ["ModelView"]

M = TypeVar("M")


class ModelView:
    """A transformers model, its tokenizer and a stack of edits.

    Make one with :func:`workbench.load`. ``view.model`` and ``view.tokenizer`` are the transformers
    objects; the model always holds the edits of the stack.

    Attributes:
        name: what the user called the model.
        revision: which version of it, None if nobody said.
        kind: ``decoder``, ``encoder_classifier`` or ``encoder_decoder``.
        layout: the family's row of :data:`workbench.layouts.LAYOUTS`.
        capabilities: what was proved at load.
        labels: label names of a classifier, else an empty tuple.
        n_layers, d_model, d_mlp: sizes.
        cache: free storage for what depends on this view alone (context templates, statistics).

    Example:
        >>> view = wb.load("tiny")
        >>> edit = wb.ROME.preset(view).edit(view, [req])
        >>> view.push(edit); view.pop()
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layout: Layout,
        capabilities: Capabilities,
        name: str,
        labels: Sequence[str] = (),
        revision: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.layout = layout
        self.capabilities = capabilities
        self.name, self.revision = name, revision
        self.kind = layout.kind
        self.labels = tuple(labels)
        self.cache: dict[Any, Any] = {}
        self.n_layers = len(get_module(model, layout.blocks))  # type: ignore[arg-type]
        self.d_model, self.d_mlp = self.weight(0).shape
        self._weights = Weights(model)
        self._beside = Beside(model, layout, self.n_layers)
        self._states = States(self._weights, self._beside, self._accept)
        self._lock = threading.RLock()
        self._busy = ""

    # ------------------------------------------------------------------ parts of the model

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embedding."""
        embedding: Any = self.model.get_input_embeddings()
        return embedding.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the edited matrices."""
        return self.weight(0).dtype

    def block(self, layer: int) -> nn.Module:
        """Transformer block ``layer``."""
        return self._module(self.layout.block(layer))

    def value_module(self, layer: int) -> nn.Module:
        """The edited module of block ``layer``: its input is the key, its output the value."""
        return self._module(self.layout.value_path(layer))

    def weight(self, layer: int) -> Tensor:
        """The edited matrix, always ``[d_model, d_mlp]`` whatever the storage; do not write it."""
        return orient(self.value_module(layer)).detach()

    def up_name(self, layer: int) -> str | None:
        """Parameter name of the MLP's first matrix, None if the family has none of its own."""
        path = self.layout.up_path(layer)
        return None if path is None or get_module(self.model, path) is None else f"{path}.weight"

    def layer_of(self, parameter: str) -> int:
        """The block of a weight that adapters can stand beside."""
        return self._beside.layer_of(parameter)

    def module_of(self, parameter: str) -> nn.Module:
        """The module that a weight belongs to."""
        return self._module(parameter.removesuffix(".weight"))

    def weight_name(self, layer: int) -> str:
        """Parameter name of :meth:`weight`."""
        return f"{self.layout.value_path(layer)}.weight"

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse layers the model does not have.

        Raises:
            OptionError: naming the value and the valid range.
        """
        bad = [x for x in layers if not (type(x) is int and 0 <= x < self.n_layers)]
        if bad or not layers:
            raise OptionError(
                f"layers={tuple(layers)!r}: {self.name} has layers 0 to {self.n_layers - 1}; "
                "choose one or more of these."
            )

    def _module(self, path: str) -> nn.Module:
        module = get_module(self.model, path)
        assert module is not None, path
        return module

    # ------------------------------------------------------------------ identity

    @property
    def fingerprint(self) -> str:
        """Hash of the pristine model: architecture, and a sample of every parameter's values.

        Equal for the same checkpoint in a wider dtype; computed once.
        """
        if "fingerprint" not in self.cache:
            architecture = f"{self.layout.family}:{self.n_layers}"
            found = fingerprint_model(architecture, self._weights.pristine())
            self.cache["fingerprint"] = found
        return str(self.cache["fingerprint"])

    # ------------------------------------------------------------------ the stack

    @property
    def stack(self) -> tuple[Edit, ...]:
        """The edits the model holds, oldest first."""
        return self._states.now.stack

    @property
    def held(self) -> tuple[Edit, ...]:
        """The edits that last: :attr:`stack` outside ``applied``, ``at`` and ``as_if``, also while
        another thread is inside such a block."""
        return self._states.held

    @property
    def adapters(self) -> Mapping[int, HookLayer]:
        """Layer → the hook layer that the stack put beside its edited matrix."""
        return self._beside.hook_layers(self._states.now.adapters)

    @property
    def adapted(self) -> tuple[int, ...]:
        """Layers that have a hook layer or a memory beside one of their modules."""
        return self._beside.layers(self._states.now.adapters)

    def memory(self, parameter: str, kind: type[M]) -> M | None:
        """The memory of a kind that the stack put beside a module, None if there is none."""
        held = self._states.now.adapters.get(parameter, ())
        return next((each for each in held if isinstance(each, kind)), None)

    def reading(
        self, lengths: Tensor | None = None, *, gates: dict[int, Gates] | None = None
    ) -> AbstractContextManager[None]:
        """For adapters: how long the prompts of the forward passes inside the block are.

        Args:
            lengths: ``[rows]`` tokens of the prompt, after which something else follows; None if
                every token belongs to the prompt.
            gates: filled with what each layer's gate did in the newest pass.
        """
        return self._beside.reading(lengths, gates)

    def push(self, edit: Edit, *, warn: bool = True) -> None:
        """Put an edit on the stack and into the weights.

        An edit that is on the stack already is not stacked again. ``warn`` tells of that, and of
        what speaks against this edit.

        Raises:
            OptionError: if it is not an edit.
            EditMismatchError: if the edit belongs to another base model or has other shapes, or
                if the model was moved or converted outside the view.
            NumericalError: if it would write NaN or Inf. The model is as before.
            BusyError: if another thread is writing.
        """
        if not isinstance(edit, Edit):
            raise OptionError(
                f"push takes one edit, not {type(edit).__name__}: compute it with "
                "editor.edit(view, requests), or read it with load_edit(path)."
            )
        with self._changing("push"):
            twin = [i for i, e in enumerate(self.stack) if e.id == edit.id]
            if twin and warn:
                warnings.warn(
                    f"edit {edit.id} is on the stack already (entry {twin[0]}); it was not stacked "
                    "again. To write the fact anew, compute a new edit.",
                    stacklevel=2,
                )
            if twin:
                return
            for doubt in (*doubts(edit, self.stack), *self._beside.doubts(edit)) if warn else ():
                warnings.warn(doubt, stacklevel=2)
            self._states.commit(self._states.after(self._states.now, edit))

    def pop(self) -> Edit:
        """Take the newest edit off; the weights are what they were before it, to the bit.

        Raises:
            OptionError: if the stack is empty.
        """
        with self._changing("pop"):
            if not self.stack:
                raise OptionError("the stack is empty: there is no edit to take back.")
            last = self.stack[-1]
            self._states.install(self._states.at(len(self.stack) - 1))
            return last

    def reset(self) -> None:
        """Take every edit off; every parameter is its stored original."""
        with self._changing("reset"):
            self._states.install(State())
            self._states.snapshots.clear()

    def drop(self, index: int) -> Edit:
        """Take entry ``index`` out and keep the later edits' changes as they were computed.

        Raises:
            OptionError: if there is no such entry.
        """
        with self._changing("drop"):
            index = self._states.entry(index)
            gone, *later = self.stack[index:]
            state = self._states.after(self._states.at(index), *later)
            self._states.prune(index)
            self._states.install(state)
            return gone

    def replay(self, *, without: int) -> Edit:
        """Take entry ``without`` out and recompute every later edit with its own editor.

        Raises:
            OptionError: if there is no such entry.
        """
        rebuild = importlib.import_module("workbench.editors").rebuild_editor
        with self._changing("replay"), self._states.restoring():
            index = self._states.entry(without)
            gone, *later = self.stack[index:]
            self._states.prune(index)
            self._states.install(self._states.at(index))
            for edit in later:
                again = rebuild(edit).edit(self, list(edit.requests))
                self._states.commit(self._states.after(self._states.now, again))
            return gone

    def check(self) -> pd.DataFrame:
        """Whether entries that stand beside weights still open on their own prompts.

        Returns:
            The table of :func:`workbench.inspectors.check_entries`.
        """
        table: pd.DataFrame = importlib.import_module("workbench.inspectors").check_entries(self)
        return table

    @contextmanager
    def applied(self, *edits: Edit) -> Iterator[ModelView]:
        """The view with more edits on top, for the length of the block."""
        with (
            self.writing("applied"),
            self._states.showing(self._states.after(self._ours(), *edits)),
        ):
            yield self

    @contextmanager
    def at(self, n: int) -> Iterator[ModelView]:
        """The view as it was after ``n`` edits, for the length of the block.

        Raises:
            OptionError: unless ``0 <= n <= len(stack)``.
        """
        if not 0 <= n <= len(self.stack):
            raise OptionError(f"n={n}: the stack holds {len(self.stack)} edits.")
        with self.writing("at"):
            self._ours()
            with self._states.showing(self._states.at(n)):
                yield self

    @contextmanager
    def as_if(self, *edits: Edit) -> Iterator[ModelView]:
        """The view as if its stack were these edits, for the length of the block."""
        with self.writing("as_if"):
            self._ours()
            with self._states.showing(self._states.after(State(), *edits)):
                yield self

    def pristine(self) -> Any:
        """The unedited model, for the length of a ``with`` block; same as ``at(0)``."""
        return self.at(0)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Hold the model for a piece of work; a second thread is told what is going on.

        Raises:
            BusyError: if another thread holds it.
        """
        if not self._lock.acquire(blocking=False):
            raise BusyError(f"busy: {self._busy or 'another thread is writing'}. Wait or stop it.")
        outer = self._busy
        try:
            self._busy = outer or what
            yield
        finally:
            self._busy = outer
            self._lock.release()

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """As :meth:`writing`, for changes of the stack that shall last."""
        with self.writing(what):
            if self._states.depth:
                raise BusyError(
                    f"{what} inside `with view.applied(...)` or `view.at(...)` would be lost at "
                    "its end: leave the block first."
                )
            self._ours()
            yield

    def say(self, what: str) -> None:
        """Describe the work in progress, for the error a second writer gets."""
        self._busy = what

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Save the edited model and its tokenizer as plain transformers files.

        Raises:
            OptionError: for adapters. StorageError: if the disk is full; old files are intact.
        """
        if self.adapted:
            raise OptionError(
                f"layers {list(self.adapted)} have hook layers or memories, which plain model "
                "files cannot hold: save the edits (edit.save) instead, or pop them first."
            )
        write_folder(path, lambda to: [m.save_pretrained(to) for m in (self.model, self.tokenizer)])

    # ------------------------------------------------------------------ internals of the stack

    def _ours(self) -> State:
        """The present state, if the model still holds it."""
        self._weights.refuse_foreign(self._states.now.live)
        return self._states.now

    def _accept(self, edit: Edit) -> None:
        """Refuse an edit of another base model."""
        if edit.base != self.fingerprint:
            raise EditMismatchError(
                f"edit {edit.id} was made for the base model {edit.base}, this is "
                f"{self.fingerprint} ({self.name}): load the model it was made for."
            )

    # ------------------------------------------------------------------ how it looks

    def describe(self) -> str:
        """One line: name, family, sizes, dtype, device and number of edits."""
        return view_line(self)

    def __repr__(self) -> str:
        return f"<ModelView {self.describe()}>"

    def _repr_html_(self) -> str:
        return stack_html(self.describe(), self.stack)
