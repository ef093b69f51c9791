"""Where a training stands, in one file: killed at any moment, it is the old or the new one.

Tensors (the learner, its best state so far, Adam's moments) in safetensors, everything else as its
JSON header; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from workbench.atomic import write_atomically
from workbench.errors import DataError

__all__ = ["Progress", "read_checkpoint", "write_checkpoint"]

FORMAT = "workbench-training/1"


@dataclass
class Progress:
    """What a training knows besides its learner and its optimizer.

    Attributes:
        step: optimizer steps done.
        best_step: when validation was best; -1 before the first.
        best: its total loss.
        best_state: the learner then.
        skipped: steps left out because they were not finite.
        history: a row a validation: losses of training since the last one, and of validation.
    """

    step: int = 0
    best_step: int = -1
    best: float = float("inf")
    best_state: dict[str, Tensor] = field(default_factory=dict)
    skipped: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def write_checkpoint(
    path: Path,
    identity: str,
    progress: Progress,
    state: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write everything that is needed to go on.

    Args:
        identity: what is being trained; a checkpoint of something else is not read.
    """
    tensors = {f"now.{k}": t for k, t in state.items()}
    tensors |= {f"best.{k}": t for k, t in progress.best_state.items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": torch.as_tensor(t) for k, t in moments.items()}
    kept = ("step", "best_step", "best", "skipped", "history")
    header = {"format": FORMAT, "identity": identity}
    header |= {"progress": {k: getattr(progress, k) for k in kept}}  # type: ignore[dict-item]
    plain = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    write_atomically(path, safetensors_bytes(plain, metadata={"workbench": json.dumps(header)}))


def read_checkpoint(
    path: Path,
    identity: str,
    learner: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Progress | None:
    """Put learner and optimizer where they were; None if the checkpoint is of another training.

    Raises:
        DataError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("workbench", "{}"))
        tensors = load_file(path)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} is damaged ({error}): delete it, or train with fresh=True."
        ) from error
    if header.get("format") != FORMAT or header.get("identity") != identity:
        return None
    learner.load_state_dict(_under(tensors, "now."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "adam.").items():
        i, _, key = name.partition(".")
        moments.setdefault(int(i), {})[key] = tensor
    whole: dict[str, Any] = optimizer.state_dict()
    optimizer.load_state_dict(whole | {"state": moments})
    return Progress(**header["progress"], best_state=_under(tensors, "best."))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
