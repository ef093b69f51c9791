"""Hashes: of a pristine model, of a recipe, and of what is kept in files.

An edit belongs to the model whose fingerprint it carries; a cache file's name holds the hash of
everything it was computed from. A seal stands in a file and says what the file should hold, so that
a changed bit is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["checksum_of", "fingerprint_model", "fingerprint_of", "seal", "unseal"]

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


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and every bit of some tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def seal(note: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready data with a hash over all of it, under ``seal``."""
    plain = {k: v for k, v in note.items() if k != "seal"}
    return plain | {"seal": _hash_of(plain)}


def unseal(note: Mapping[str, Any]) -> dict[str, Any]:
    """The data without its seal; what never had one is taken as it is.

    Raises:
        ValueError: if the seal is broken.
    """
    plain = {k: v for k, v in note.items() if k != "seal"}
    if "seal" in note and note["seal"] != _hash_of(plain):
        raise ValueError("its content does not match its seal")
    return plain


def _hash_of(note: Mapping[str, Any]) -> str:
    content = json.loads(json.dumps(note))  # as it will be read: keys are texts
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sample(data: Tensor) -> Tensor:
    flat = data.detach().reshape(-1)
    step = max(1, flat.numel() // FINGERPRINT_SAMPLE)
    return flat[::step].to("cpu", torch.float32).contiguous()
