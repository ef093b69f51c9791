"""What every test of this suite looks at: nothing is left behind, and nothing has changed."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import workbench as wb
from workbench.model import ModelView

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Errors of a machine without memory.
NO_MEMORY: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError)


def weights(view: ModelView) -> str:
    """Hash of every parameter and buffer, bit by bit, and of what training would change."""
    found = hashlib.sha256()
    for name, p in (*view.model.named_parameters(), *view.model.named_buffers()):
        found.update(f"{name}{p.dtype}{p.device}{p.requires_grad}".encode())
        found.update(p.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def left_behind(view: ModelView) -> list[str]:
    """Hooks, gradients, modes, patched methods and locks that nobody took away; empty is right."""
    found = []
    for name, module in view.model.named_modules():
        found += [f"{name}.{h}" for h in HOOKS if getattr(module, h, None)]
        found += [f"{name} in training" for _ in range(module.training)]
        found += [f"{name}.forward" for _ in range("forward" in vars(module))]
    found += [f"{n}.grad" for n, p in view.model.named_parameters() if p.grad is not None]
    found += [] if torch.is_grad_enabled() else ["gradients are off"]
    found += [f"busy: {view._busy}"] if view._busy else []
    return found + ([] if _free(view) else ["the lock is held"])


def _free(view: ModelView) -> bool:
    """Whether another thread can have the model."""
    had: list[bool] = []

    def ask() -> None:
        had.append(view._lock.acquire(blocking=False))
        if had[0]:
            view._lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return had[0]


def state(view: ModelView) -> tuple[Any, ...]:
    """All that an edit may not change: weights, stack, the global chance and precision."""
    chance = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    ids = tuple(e.id for e in view.stack)
    return weights(view), ids, chance, torch.get_float32_matmul_precision()


@contextmanager
def intact(view: ModelView) -> Iterator[None]:
    """Whatever happens in the block: bit for bit the same model after it, and nothing left."""
    before = state(view)
    hooked = left_behind(view)  # those of adapters on the stack belong there
    yield
    assert state(view) == before
    assert left_behind(view) == hooked


class OutOfMemory(TorchDispatchMode):
    """Raises at the n-th operation of torch; counts them if n is never reached."""

    def __init__(self, at: int = -1, error: type[BaseException] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.at, self.error, self.seen = at, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise self.error(f"out of memory at operation {self.at} ({func})")
        return func(*args, **(kwargs or {}))


class FullDisk:
    """Stands for the module ``os`` and for ``open``: the n-th step of writing finds no room.

    A write that fails has written half of its bytes first.
    """

    def __init__(self, at: int = -1) -> None:
        self.at, self.seen = at, 0

    def step(self) -> None:
        """One more step; the n-th fails."""
        self.seen += 1
        if self.seen == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        return self._stepping(found) if name in ("fsync", "replace", "link") else found

    def _stepping(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return call(*args, **kwargs)

        return stepped

    def open(self, path: Any, mode: str = "r", **kwargs: Any) -> Any:
        """The built-in, with a ``write`` that may fail."""
        if "r" in mode:
            return open(path, mode, **kwargs)
        self.step()
        handle = open(path, mode, **kwargs)  # noqa: SIM115
        write = handle.write

        class Filling:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *exc: object) -> None:
                handle.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(handle, name)

            def write(inner, payload: Any) -> int:  # noqa: N805
                try:
                    self.step()
                except OSError:
                    write(payload[: len(payload) // 2])
                    raise
                return int(write(payload))

        return Filling()


def parts(folder: Path) -> list[str]:
    """Half-written files and folders below a folder; empty is right."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if _is_part(p))


def _is_part(path: Path) -> bool:
    return path.name.endswith(".part") or path.name.startswith(".smollm2")


#: Facts that short work is done with.
BO = wb.EditRequest(prompt="{} lives in", subject="Bo", target_new="Rome")
ANNA = wb.EditRequest(prompt="The mother tongue of {} is", subject="Anna", target_new="English")
