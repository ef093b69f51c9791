"""Read and rewrite activations with plain hooks, always as ``[batch, pos, d]``.

with trace(view, [Site(5, "key")]) as seen:
    view.model(**inputs)
seen[Site(5, "key")]          # [batch, pos, d_mlp]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.capabilities import get_module, tensor_of, with_tensor
from workbench.errors import OptionError, did_you_mean
from workbench.model import ModelView

__all__ = ["PARTS", "Site", "frozen", "trace"]

#: input: residual before the block; attention: what attention adds; key, value: input and output
#: of the edited matrix; residual: output of the block.
PARTS = ("input", "attention", "key", "value", "residual")


@dataclass(frozen=True, order=True)
class Site:
    """A place in the model: a layer and one of :data:`PARTS`."""

    layer: int
    part: str = "residual"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise OptionError(f"part={self.part!r} is unknown." + did_you_mean(self.part, PARTS))


class _Stop(Exception):
    """Ends a forward pass once everything wanted was seen."""


@contextmanager
def trace(
    view: ModelView,
    read: Iterable[Site] = (),
    *,
    write: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    stop: bool = False,
) -> Iterator[dict[Site, Tensor]]:
    """Record activations of every forward pass in the block, and optionally rewrite them.

    Args:
        view: the model.
        read: sites to record (after rewriting); the newest forward pass wins.
        write: site → function of the activation ``[batch, pos, d]`` returning another one.
        stop: end the forward pass, and the ``with`` block, after the last site.

    Yields:
        A dictionary that fills with ``site → [batch, pos, d]`` tensors.
    """
    read, write = list(read), dict(write or {})
    sites = sorted({*read, *write}, key=lambda s: (s.layer, PARTS.index(s.part)))
    view.check_layers([s.layer for s in sites] or [0])
    seen: dict[Site, Tensor] = {}
    shape: list[torch.Size] = []
    handles: list[Any] = []
    try:
        handles.append(_remember_shape(view, sites[0].layer if sites else 0, shape))
        for site in sites:
            action = _action(site, site in read, write.get(site), seen, shape)
            handles.append(_attach(view, site, action, last=stop and site == sites[-1]))
        yield seen
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients inside; flags are put back on exit."""
    asking = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state among a block's arguments, positional in some families, named in others."""
    return args[0] if args else kwargs["hidden_states"]


def _remember_shape(view: ModelView, layer: int, shape: list[torch.Size]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape[:] = [hidden_of(args, kwargs).shape]

    return view.block(layer).register_forward_pre_hook(hook, with_kwargs=True)


def _action(
    site: Site,
    keep: bool,
    rewrite: Callable[[Tensor], Tensor] | None,
    seen: dict[Site, Tensor],
    shape: list[torch.Size],
) -> Callable[[Tensor], Tensor | None]:
    def act(x: Tensor) -> Tensor | None:
        full = x.reshape(*shape[0][:2], x.shape[-1])  # OPT flattens batch and position
        new = full if rewrite is None else rewrite(full)
        if keep:
            # some families add to a module's output in place (Falcon): keep what it was
            seen[site] = new.clone() if site.part in ("value", "attention") else new
        return None if rewrite is None else new.reshape(x.shape)

    return act


def _attach(view: ModelView, site: Site, act: Callable[[Tensor], Any], *, last: bool) -> Any:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = act(hidden_of(args, kwargs))
        if last:
            raise _Stop
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": new})

    def after(module: nn.Module, args: Any, out: Any) -> Any:
        new = act(tensor_of(out))
        if last:
            raise _Stop
        return None if new is None else with_tensor(out, new)

    module = _module(view, site)
    if site.part in ("input", "key"):
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _module(view: ModelView, site: Site) -> nn.Module:
    if site.part in ("key", "value"):
        return view.value_module(site.layer)
    if site.part == "attention":
        path = f"{view.layout.block(site.layer)}.{view.layout.attention}"
        module = get_module(view.model, path)
        assert module is not None, path
        return module
    return view.block(site.layer)
