"""Edits of a session as files: one edit a file, several a folder."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.edits import load_edit
from workbench.errors import OptionError
from workbench.experiment import open_stack, save_stack
from workbench.model import ModelView

__all__ = ["load_edits", "save_edits"]


def save_edits(view: ModelView, path: str | os.PathLike[str]) -> Path:
    """See :meth:`workbench.session.Session.save`."""
    path, stack = Path(path).expanduser(), view.stack
    if not stack:
        raise OptionError("the stack is empty: there is no edit to save.")
    if path.suffix != ".safetensors":
        return save_stack(view, path)
    if len(stack) > 1:
        raise OptionError(
            f"the stack holds {len(stack)} edits and {path.name} can hold one: give the name of a "
            "folder, without .safetensors."
        )
    return stack[0].save(path)


def load_edits(view: ModelView, path: str | os.PathLike[str]) -> None:
    """See :meth:`workbench.session.Session.load`."""
    path = Path(path).expanduser()
    if path.is_dir():
        open_stack(path, view)
    else:
        view.push(load_edit(path))
