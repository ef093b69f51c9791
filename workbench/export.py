"""Weight edits as a LoRA adapter that plain ``peft`` loads, without this package.

A low-rank delta ``left @ rightᵀ`` is exactly LoRA's ``B A`` with scaling 1. Deltas of one module
are put side by side; dense ones are cut to a rank that the caller names, and the loss is stated.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.atomic import write_atomically
from workbench.capabilities import get_module
from workbench.edits import Delta, Edit, WeightEdit
from workbench.errors import EditMismatchError, OptionError
from workbench.layouts import DECODER, ENCODER_CLASSIFIER, ENCODER_DECODER
from workbench.linalg import leading
from workbench.model import ModelView

__all__ = ["export_peft"]

#: Kind of model → PEFT's name of its task.
TASKS = {DECODER: "CAUSAL_LM", ENCODER_CLASSIFIER: "SEQ_CLS", ENCODER_DECODER: "SEQ_2_SEQ_LM"}
#: A loss below this is that of float64's rounding.
ROUNDING = 1e-12


def export_peft(
    edit: Edit | Sequence[Edit],
    view: ModelView,
    path: str | os.PathLike[str],
    *,
    rank: int | None = None,
) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into a folder.

    Args:
        edit: one weight edit or several, whose changes are added.
        view: the model they belong to.
        path: folder of the adapter.
        rank: for changes that are no low-rank factors (fine-tuning): their sum in each module is
            cut to this rank. A warning states what that leaves out, and so does ``workbench.json``
            beside the adapter (module → ``rank``, ``error``: Frobenius, over the whole change).

    Raises:
        EditMismatchError: if an edit belongs to another base model.
        OptionError: for an adapter edit, a dense or sparse change without ``rank``, or one of a
            parameter that is no weight of a linear module.

    Example:
        >>> wb.export_peft(edit, view, "adapter/")  # doctest: +SKIP
    """
    edits = [edit] if isinstance(edit, Edit) else list(edit)
    if rank is not None and rank < 1:
        raise OptionError(f"rank={rank}: it must be at least 1.")
    by_module: dict[str, list[Delta]] = {}
    for one in edits:
        for delta in _checked(one, view).deltas:
            by_module.setdefault(_module_path(delta, view, rank), []).append(delta)
    if not by_module:
        raise OptionError("there is nothing to export: give at least one edit with changes.")
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, float]] = {}
    for module, deltas in by_module.items():
        left, right, error = _factors(deltas, rank)
        about[module] = {"rank": left.shape[1], "error": error}
        tensors[f"base_model.model.{module}.lora_A.weight"] = right.T.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = left.contiguous()
    folder, ranks = Path(path), {module: int(each["rank"]) for module, each in about.items()}
    config = _config(view, ranks)
    write_atomically(folder / "adapter_model.safetensors", safetensors_bytes(tensors))
    _write_json(folder / "workbench.json", {"edits": [e.id for e in edits], "modules": about})
    _write_json(folder / "adapter_config.json", config)
    worst = max(about, key=lambda module: about[module]["error"])
    if about[worst]["error"]:
        warnings.warn(
            f"rank={rank} leaves out {about[worst]['error']:.2g} of the change of {worst!r} "
            "(Frobenius norm, the worst of "
            f"{len(about)} modules): the adapter is an approximation. Raise rank, or save the "
            "whole model with view.save_pretrained(path).",
            stacklevel=2,
        )
    return folder


def _checked(edit: Edit, view: ModelView) -> WeightEdit:
    if edit.base != view.fingerprint:
        raise EditMismatchError(
            f"edit {edit.id} was made for the base model {edit.base}, this is "
            f"{view.fingerprint} ({view.name})."
        )
    if not isinstance(edit, WeightEdit):
        kinds = ", ".join(dict.fromkeys(p.kind for p in edit.pieces))  # type: ignore[union-attr]
        raise OptionError(
            f"edit {edit.id} ({edit.editor}) stands beside the weights ({kinds}) and decides text "
            "by text whether it acts; a LoRA adapter always acts. Save it with edit.save, and "
            "apply it with Workbench."
        )
    return edit


def _module_path(delta: Delta, view: ModelView, rank: int | None) -> str:
    path, _, leaf = delta.parameter.rpartition(".")
    module = get_module(view.model, path)
    if leaf != "weight" or not isinstance(module, nn.Linear | Conv1D):
        raise OptionError(
            f"the edit changes {delta.parameter!r}, and LoRA adapters change weights of linear "
            "modules only. Save the edited model with view.save_pretrained(path) instead."
        )
    if delta.form != "low_rank" and rank is None:
        raise OptionError(
            f"the change of {delta.parameter!r} is {delta.form}: only low-rank changes are LoRA "
            "adapters without loss. Give rank=, which cuts it and states the error, or save the "
            "edited model with view.save_pretrained(path)."
        )
    return path


def _factors(deltas: Sequence[Delta], rank: int | None) -> tuple[Tensor, Tensor, float]:
    """Factors of a sum of changes, side by side, and the share of it that they leave out."""
    low = [d for d in deltas if d.form == "low_rank"]
    pairs = [(d.tensors["left"], d.tensors["right"]) for d in low]
    error = 0.0
    if len(low) < len(deltas):
        rest = torch.stack(
            [d.materialize(dtype=torch.float64) for d in deltas if d.form != "low_rank"]
        ).sum(0)
        left, sizes, right = leading(rest, rank or 1)
        pairs.append(((left * sizes).float(), right.float()))
        whole = rest + sum(d.materialize(dtype=torch.float64) for d in low)
        lost = (rest - (left * sizes) @ right.T).norm()
        error = float(lost / whole.norm().clamp_min(torch.finfo(whole.dtype).tiny))
        error = error if error > ROUNDING else 0.0
    dtype = torch.promote_types(pairs[0][0].dtype, torch.float32)
    left, right = (torch.cat([p[i].to(dtype) for p in pairs], dim=1) for i in (0, 1))
    return left, right, error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2).encode())


def _config(view: ModelView, ranks: dict[str, int]) -> dict[str, object]:
    modules = list(ranks)
    transposed = isinstance(get_module(view.model, modules[0]), Conv1D)
    if any(isinstance(get_module(view.model, m), Conv1D) is not transposed for m in modules):
        raise OptionError(
            "the edits change modules of two storages (Linear and Conv1D), which one adapter "
            "cannot name: export them one by one."
        )
    base = view.model.config.name_or_path or view.name
    return {
        "peft_type": "LORA",
        "task_type": TASKS[view.kind],
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
    }
