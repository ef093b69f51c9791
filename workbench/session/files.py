"""Edits of a session as files: one for the whole stack, or a folder with a file an edit."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from workbench.conflicts import find_conflicts
from workbench.experiment import save_stack
from workbench.model import ModelView
from workbench.patches import apply_patch, save_patch

__all__ = ["load_edits", "newest_conflicts", "save_edits"]


def save_edits(view: ModelView, path: str | os.PathLike[str]) -> Path:
    """See :meth:`workbench.session.Session.save`."""
    path = Path(path).expanduser()
    save = save_patch if path.suffix == ".safetensors" else save_stack
    return save(view, path)


def load_edits(view: ModelView, path: str | os.PathLike[str]) -> None:
    """See :meth:`workbench.session.Session.load`."""
    apply_patch(path, view)


def newest_conflicts(view: ModelView, newest: int) -> pd.DataFrame:
    """See :meth:`workbench.session.Session.conflicts`."""
    below = len(view.held) - newest
    return find_conflicts(view.held, origin=[i >= below for i in range(len(view.held))])
