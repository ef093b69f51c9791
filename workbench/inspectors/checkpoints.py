"""Parameters of a model one by one: of a view, a loaded model, or files that are not loaded whole.

A folder's safetensors are read tensor by tensor, so that models larger than the memory can be
compared. Pickled weights are not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from workbench.errors import DataError, FetchError, OptionError
from workbench.model import ModelView
from workbench.pretrained import folder_of
from workbench.tensorfiles import Header, header_of, opened

__all__ = ["Checkpoint", "aligned", "checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Named parameters that are fetched one at a time.

    Attributes:
        label: what to call it.
        shapes: name → shape, in the model's order.
        get: name → the parameter.
        config: transformers' configuration.
        word: token id → its text.
    """

    label: str
    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]
    config: Any
    word: Callable[[int], str]


def checkpoint(
    source: ModelView | PreTrainedModel | str | os.PathLike[str], *, pristine: bool = False
) -> Checkpoint:
    """Open a view (as it is, or unedited), a loaded model, a known name, a folder or a hub id.

    Raises:
        DataError: if a folder has no safetensors, or its files are damaged.
        FetchError: if a hub id cannot be had.
        OptionError: for anything else.
    """
    if isinstance(source, ModelView):
        if pristine:
            with source.pristine():
                return _of_model(source.model, f"{source.name}, unedited", _words(source.tokenizer))
        label = f"{source.name}, {len(source.stack)} edits"
        return _of_model(source.model, label, _words(source.tokenizer))
    if isinstance(source, PreTrainedModel):
        return _of_model(source, source.config.name_or_path or type(source).__name__, _number)
    if isinstance(source, str | os.PathLike):
        return _of_folder(_local(str(source)), str(source))
    raise OptionError(f"expected a view, a model or a path, not {type(source).__name__}.")


def aligned(a: Checkpoint, b: Checkpoint) -> list[tuple[str, str]]:
    """Names of the parameters that two models share; one may lack the other's first prefix."""
    tails = {name.partition(".")[2]: name for name in b.shapes}
    found = []
    for name in a.shapes:
        others = (name, name.partition(".")[2], tails.get(name, ""))
        match = next((n for n in others if n in b.shapes), None)
        if match is not None:
            found.append((name, match))
    return found


def _of_model(model: PreTrainedModel, label: str, word: Callable[[int], str]) -> Checkpoint:
    held = {n: p.data for n, p in model.named_parameters()}  # of a view: never written again
    shapes = {n: tuple(t.shape) for n, t in held.items()}
    return Checkpoint(label, shapes, lambda name: held[name].cpu(), model.config, word)


def _of_folder(folder: Path, label: str) -> Checkpoint:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as err:
        raise DataError(f"{folder} has no readable config.json ({err}): check the path.") from err
    home: dict[str, Header] = {}
    for file in _weights(folder):
        header = header_of(file)
        home |= dict.fromkeys(header.places, header)
    shapes = {n: h.places[n].shape for n, h in home.items()}

    def get(name: str) -> Tensor:
        with opened(home[name]) as handle:
            return handle.get_tensor(name)  # type: ignore[no-any-return]

    return Checkpoint(label, shapes, get, config, _words_of(folder))


def _local(name: str) -> Path:
    folder = Path(folder_of(name))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as err:  # the hub client raises many kinds
        first = str(err).strip().split("\n")[0][:200]
        raise FetchError(
            f"{name!r} is no local folder and could not be had from the hub ({first})."
        ) from err


def _weights(folder: Path) -> list[Path]:
    """The safetensors that hold the model, all of them files of this folder."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        whole = folder / "model.safetensors"
        found = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
        if not found:
            raise DataError(
                f"{folder} has no .safetensors file. Pickled weights (.bin, .pt) are not read: "
                "they can run code."
            )
        return found
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(n).name != n or "\\" in n for n in names):
            raise ValueError(f"it names {names[0]!r}, which is no file of that folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise DataError(f"{index} is damaged ({err}): get the folder again.") from err
    return [folder / n for n in names]


def _words_of(folder: Path) -> Callable[[int], str]:
    try:
        return _words(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError, KeyError):
        return _number


def _words(tokenizer: Any) -> Callable[[int], str]:
    return lambda token: str(tokenizer.decode([token]))


def _number(token: int) -> str:
    return f"#{token}"
