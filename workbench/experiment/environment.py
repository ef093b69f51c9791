"""What a run was made with: versions, device, threads, commit. Recorded, never compared."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from workbench import places
from workbench.model import ModelView

__all__ = ["environment"]

PACKAGES = ("workbench-editing", "torch", "transformers", "numpy", "pandas")


def environment(view: ModelView) -> dict[str, Any]:
    """Versions, device, threads and, in a checkout, the commit; JSON-ready."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device(view.device),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _commit() -> str | None:
    if not places.in_checkout():
        return None
    folder = Path(places.__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
