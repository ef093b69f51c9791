"""Ctrl-C while something is set up: no hook, no flag and no setting is left behind."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import workbench as wb
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.replay import capture_blocks
from workbench.trace import Site, frozen, trace

REQUEST = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")


def _trace(view: ModelView) -> None:
    with trace(view, [Site(0, "key"), Site(1, "value")]):
        pass


ACTIONS: dict[str, Callable[[ModelView], Any]] = {
    "open": lambda v: open_view(v.model, v.tokenizer, name="x"),
    "capture": lambda v: capture_blocks(v, [[1, 2, 3]], 1, 3),
    "trace": _trace,
    "FT": lambda v: wb.FT(layers=(1, 2), steps=2).edit(v, REQUEST),
    "ROME": lambda v: wb.ROME(
        layers=(v.n_layers - 1,), templates=("{}",), corpus="identity", steps=2
    ).edit(v, REQUEST),
}


@pytest.mark.parametrize("what", ACTIONS)
def test_no_hook_outlives_an_interruption(make_view, monkeypatch, what: str) -> None:
    view = make_view("llama")
    left = 0

    def interrupting(register: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return register(*args, **kwargs)

        return call

    for name in ("register_forward_hook", "register_forward_pre_hook"):
        monkeypatch.setattr(nn.Module, name, interrupting(getattr(nn.Module, name)))
    n = 0
    while left <= 0:
        n += 1
        left = n
        try:
            ACTIONS[what](view)
        except KeyboardInterrupt:
            left = 0
        modules = list(view.model.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules), n
        assert all(p.requires_grad for p in view.model.parameters()) and not view._busy
    assert n > 2


def test_frozen_thaws_what_it_had_frozen() -> None:
    def refuse(flag: bool) -> None:
        if not flag:
            raise KeyboardInterrupt

    first = nn.Parameter(torch.zeros(1))
    second = SimpleNamespace(requires_grad=True, requires_grad_=refuse)
    model: Any = SimpleNamespace(parameters=lambda: [first, second])
    with pytest.raises(KeyboardInterrupt), frozen(model):
        pass
    assert first.requires_grad
