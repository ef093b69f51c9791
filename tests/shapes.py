"""The run-time check of tensor shapes: beartype on the functions that write shapes, no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., object])

#: How an annotation that states a shape begins, as text and as an evaluated type.
MARKS = ("Float[", "Int[", "Bool[", "Shaped[", "Num[", "jaxtyping.")


def check(function: Function) -> Function:
    """The function with its arguments checked, if any of them states a shape."""
    written = " ".join(map(str, getattr(function, "__annotations__", {}).values()))
    return beartype(function) if any(mark in written for mark in MARKS) else function
