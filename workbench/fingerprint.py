"""Hashes that name what a result depends on: of a pristine model, and of a recipe.

An edit belongs to the model whose fingerprint it carries; a cache file's name holds the hash of
everything it was computed from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["fingerprint_model", "fingerprint_of"]

#: Elements of each parameter that enter the fingerprint.
FINGERPRINT_SAMPLE = 65_536


def fingerprint_model(architecture: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of an architecture and of a sample of every parameter's values, taken in float32.

    Args:
        architecture: what the names and shapes of the parameters do not say.
        tensors: (name, values) of every parameter, always in the same order.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(architecture.encode())
    for name, data in tensors:
        digest.update(f"{name}{tuple(data.shape)}".encode())
        digest.update(_sample(data).numpy().tobytes())
    return digest.hexdigest()[:32]


def fingerprint_of(payload: Mapping[str, Any]) -> str:
    """Short hash of JSON-ready data, for cache names that must name all they depend on.

    Example:
        >>> name = f"run-{fingerprint_of({'seed': 0})}.safetensors"
    """
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]


def _sample(data: Tensor) -> Tensor:
    flat = data.detach().reshape(-1)
    step = max(1, flat.numel() // FINGERPRINT_SAMPLE)
    return flat[::step].to("cpu", torch.float32).contiguous()
