"""What stands beside the weights of one model: hooks that run adapters, and what they must know.

An adapter sees a module's input and output, and the forward pass it belongs to: which columns are
real tokens, which of them are the prompt, and what was decided earlier on the same cache. One hook
on the model's trunk keeps that context; one hook a module runs its adapters. Without adapters on
the stack there is no hook at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.adapters import Context, Gates, HookLayer, as_hook, prompt_mask
from workbench.capabilities import get_module, orient, tensor_of, with_tensor
from workbench.edits import Adapter, AdapterEdit, Edit
from workbench.errors import EditMismatchError, NumericalError, UnsupportedEditorError
from workbench.layouts import Layout
from workbench.networks import MEMORIES, Memory, as_memory
from workbench.weights import State

__all__ = ["Beside", "Function"]

Function = HookLayer | Memory
#: parameter → the functions beside its module, in the order in which they are applied
Adapters = Mapping[str, tuple[Function, ...]]


class Beside:
    """Runs the adapters of a view.

    Args:
        model: the transformers model.
        layout: its row of the table.
        n_layers: number of blocks.
    """

    def __init__(self, model: nn.Module, layout: Layout, n_layers: int) -> None:
        self._trunk = get_module(model, layout.base)
        values = {layout.value_path(x): x for x in range(n_layers)}
        paths = values | {
            path: x for x in range(n_layers) if (path := layout.up_path(x)) is not None
        }
        self._layer_of = {f"{path}.weight": x for path, x in paths.items()}
        self._modules = {f"{path}.weight": get_module(model, path) for path in paths}
        self._values = {f"{path}.weight" for path in values}
        self._adapters: Adapters = {}
        self._handles: dict[str, Any] = {}
        self._now: Context | None = None
        self._lengths: Tensor | None = None
        self._seen: dict[int, Gates] | None = None
        self._memories: WeakKeyDictionary[Any, dict[int | str, Tensor]] = WeakKeyDictionary()

    def after(self, state: State, edit: AdapterEdit) -> State:
        """The state one adapter edit later; changes nothing.

        Raises:
            EditMismatchError: if the model has no such module, or one of another shape.
            NumericalError: if a piece holds NaN or Inf.
        """
        if not edit.is_finite():
            raise NumericalError(f"edit {edit.id} holds NaN or Inf: it was not applied.")
        adapters = dict(state.adapters)
        for adapter in edit.adapters:
            name, new = adapter.parameter, self._function(adapter, edit)
            adapters[name] = _joined(adapters.get(name, ()), new)
        return replace(state, stack=(*state.stack, edit), adapters=adapters)

    def _function(self, adapter: Adapter, edit: Edit) -> Function:
        """What an adapter describes, on the device of its module."""
        name = adapter.parameter
        module = self._modules.get(name)
        if module is None or (adapter.kind == "hook_layer" and name not in self._values):
            raise EditMismatchError(f"the model has no module for {name!r}.")
        weight = orient(module)
        try:
            new = _build(adapter, weight)
        except (KeyError, TypeError) as err:
            raise EditMismatchError(
                f"the adapter of {name!r} lacks or does not know {err}: it was made by another "
                "version of Workbench."
            ) from err
        if tuple(new.shape) != tuple(weight.shape):
            raise EditMismatchError(
                f"edit {edit.id} adapts {name!r} of shape {tuple(new.shape)}, this model's is "
                f"{tuple(weight.shape)}."
            )
        return new

    def layer_of(self, parameter: str) -> int:
        """The block of a module that can be adapted.

        Raises:
            EditMismatchError: if the model has no such module.
        """
        if parameter not in self._layer_of:
            raise EditMismatchError(f"the model has no module for {parameter!r}.")
        return self._layer_of[parameter]

    def layers(self, adapters: Adapters) -> tuple[int, ...]:
        """Layers that have something beside one of their modules, lowest first."""
        return tuple(sorted({self._layer_of[name] for name in adapters}))

    def hook_layers(self, adapters: Adapters) -> dict[int, HookLayer]:
        """Layer → its hook layer."""
        return {
            self._layer_of[name]: each
            for name, functions in adapters.items()
            for each in functions
            if isinstance(each, HookLayer)
        }

    def doubts(self, edit: Edit) -> Iterator[str]:
        """What speaks against pushing an edit beside these adapters; a sentence each."""
        if isinstance(edit, AdapterEdit) or not self._adapters:
            return
        top = max(self.layers(self._adapters))
        if any(self._layer_of.get(name, top + 1) <= top for name in edit.parameters):
            yield (
                "hook layers or memories at or above this edit were computed without it: "
                "view.check() lists those that no longer open on their own prompts."
            )

    def put(self, adapters: Adapters) -> None:
        """Run these adapters from now on, and no others."""
        wanted = {*adapters, *(["trunk", "end"] if adapters else [])}
        for name in wanted - set(self._handles):
            self._handles[name] = self._register(name)
        self._adapters = adapters
        for name in set(self._handles) - wanted:
            self._handles[name].remove()
            del self._handles[name]
        self._memories.clear()  # what was decided in another state does not hold in this one

    @contextmanager
    def reading(self, lengths: Tensor | None, seen: dict[int, Gates] | None) -> Iterator[None]:
        """Forward passes inside have prompts of these lengths; gates are noted in ``seen``."""
        before = self._lengths, self._seen
        try:
            self._lengths, self._seen = lengths, seen
            yield
        finally:
            self._lengths, self._seen = before

    def _register(self, name: str) -> Any:
        if name in self._modules:
            module = self._modules[name]
            assert module is not None
            return module.register_forward_hook(self._runner(name))
        assert self._trunk is not None
        if name == "trunk":
            return self._trunk.register_forward_pre_hook(self._enter, with_kwargs=True)
        return self._trunk.register_forward_hook(self._leave, with_kwargs=True, always_call=True)

    def _runner(self, name: str) -> Any:
        layer = self._layer_of[name]

        def run(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            if self._now is None:
                raise UnsupportedEditorError(
                    f"block {layer} has a hook layer or a memory and was run alone: take it off "
                    "the stack, or work on other layers."
                )
            shape = self._now.mask.shape
            y = tensor_of(out)
            x, full = (t.reshape(*shape, t.shape[-1]) for t in (args[0], y))
            new = full
            for each in self._adapters[name]:
                key = layer if isinstance(each, HookLayer) else f"{each.kind} {name}"
                new = each(key, x, new, self._now)  # type: ignore[arg-type]
            return out if new is full else with_tensor(out, new.reshape(y.shape))

        return run

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            ids = kwargs["inputs_embeds"]
        rows, pos = ids.shape[:2]
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            mask = mask[:, -pos:].bool()
        else:
            mask = torch.ones(rows, pos, dtype=torch.bool, device=ids.device)
        cache = kwargs.get("past_key_values")
        continues = cache is not None and cache.get_seq_length() > 0
        if continues:
            memory = dict(self._memories.get(cache, {}))
            prompt = torch.zeros_like(mask)
        else:
            memory, prompt = {}, prompt_mask(mask, self._lengths)
        self._now = Context(mask, prompt, memory, continues, self._lengths is None, self._seen)

    def _leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        now, self._now = self._now, None
        cache = getattr(out, "past_key_values", None) or kwargs.get("past_key_values")
        if now is not None and cache is not None:
            self._memories[cache] = now.memory


def _build(adapter: Adapter, weight: Tensor) -> Function:
    if adapter.kind == "hook_layer":
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return as_hook(adapter, device=weight.device, dtype=dtype)
    if adapter.kind in MEMORIES:
        return as_memory(adapter, device=weight.device)
    raise KeyError(adapter.kind)


def _joined(functions: tuple[Function, ...], new: Function) -> tuple[Function, ...]:
    """One edit later: a function of the same kind takes the new one in, where it stands."""
    for i, old in enumerate(functions):
        if type(old) is type(new):
            return (*functions[:i], old.joined(new), *functions[i + 1 :])  # type: ignore[arg-type]
    return (*functions, new)
