"""Weight edits as a LoRA adapter that plain ``peft`` loads, without this package.

A low-rank delta ``left @ rightᵀ`` is exactly LoRA's ``B A`` with scaling 1. Deltas of one module
are put side by side; dense ones are refused because they have no exact factors of low rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from workbench.atomic import write_atomically
from workbench.capabilities import get_module
from workbench.edits import Delta, Edit, WeightEdit
from workbench.errors import EditMismatchError, OptionError
from workbench.model import ModelView

__all__ = ["export_peft"]


def export_peft(edit: Edit | Sequence[Edit], view: ModelView, path: str | os.PathLike[str]) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into a folder.

    Args:
        edit: one weight edit or several, whose changes are added.
        view: the model they belong to.
        path: folder of the adapter.

    Raises:
        EditMismatchError: if an edit belongs to another base model.
        OptionError: for an adapter edit, a dense or sparse change, or one of a parameter that is no
            weight of a linear module.

    Example:
        >>> wb.export_peft(edit, view, "adapter/")  # doctest: +SKIP
    """
    edits = [edit] if isinstance(edit, Edit) else list(edit)
    by_module: dict[str, list[Delta]] = {}
    for one in edits:
        if one.base != view.fingerprint:
            raise EditMismatchError(
                f"edit {one.id} was made for the base model {one.base}, this is "
                f"{view.fingerprint} ({view.name})."
            )
        if not isinstance(one, WeightEdit):
            raise OptionError(
                f"edit {one.id} stands beside the weights ({one.editor}): PEFT adapters cannot "
                "hold its gate. Save it with edit.save."
            )
        for delta in one.deltas:
            by_module.setdefault(_module_path(delta), []).append(delta)
    if not by_module:
        raise OptionError("there is nothing to export: give at least one edit with changes.")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, deltas in by_module.items():
        left = torch.cat([d.tensors["left"] for d in deltas], dim=1)
        right = torch.cat([d.tensors["right"] for d in deltas], dim=1)
        ranks[module] = left.shape[1]
        tensors[f"base_model.model.{module}.lora_A.weight"] = right.T.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = left.contiguous()
    folder = Path(path)
    config = _config(view, ranks)
    write_atomically(folder / "adapter_model.safetensors", safetensors_bytes(tensors))
    return write_atomically(
        folder / "adapter_config.json", json.dumps(config, indent=2).encode()
    ).parent


def _module_path(delta: Delta) -> str:
    path, _, leaf = delta.parameter.rpartition(".")
    if delta.form != "low_rank" or leaf != "weight":
        raise OptionError(
            f"the change of {delta.parameter!r} is {delta.form}: only low-rank changes of weights "
            "are LoRA adapters. Save the edited model with view.save_pretrained(path) instead."
        )
    return path


def _config(view: ModelView, ranks: dict[str, int]) -> dict[str, object]:
    modules = list(ranks)
    transposed = isinstance(get_module(view.model, modules[0]), Conv1D)
    base = view.model.config.name_or_path or view.name
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
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
