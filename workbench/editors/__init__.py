"""Editors: frozen configurations that compute edits and never write.

:data:`EDITORS` lists those that work, by name.
"""

from __future__ import annotations

from workbench.editors.base import Editor
from workbench.editors.continual import FTEWC, FTRetrain
from workbench.editors.finetune import FT, FTL, FTW
from workbench.editors.keeping import FTKL
from workbench.editors.learned.enn import ENN
from workbench.editors.learned.ke import KE
from workbench.editors.learned.mend import MEND
from workbench.editors.locate import EMMET, MEMIT, NSE, ROME, AlphaEdit, CoachHook, prune
from workbench.editors.memory import GRACE, Defer, MemoryNetwork
from workbench.edits import Edit
from workbench.errors import OptionError, did_you_mean

__all__ = [
    "EDITORS",
    "EMMET",
    "ENN",
    "FT",
    "FTEWC",
    "FTKL",
    "FTL",
    "FTRetrain",
    "FTW",
    "GRACE",
    "KE",
    "MEMIT",
    "MEND",
    "NSE",
    "ROME",
    "AlphaEdit",
    "CoachHook",
    "Defer",
    "Editor",
    "MemoryNetwork",
    "find_editor",
    "prune",
]

#: name → editor class
EDITORS: dict[str, type[Editor]] = {
    cls.__name__: cls
    for cls in (
        FT,
        FTL,
        FTW,
        FTKL,
        FTEWC,
        FTRetrain,
        ROME,
        MEMIT,
        EMMET,
        NSE,
        AlphaEdit,
        CoachHook,
        GRACE,
        Defer,
        MemoryNetwork,
        MEND,
        KE,
        ENN,
    )
}


def find_editor(name: str) -> type[Editor]:
    """The editor class of a name, in any case.

    Raises:
        OptionError: for an unknown name, with the nearest known one.
    """
    found = {known.lower(): cls for known, cls in EDITORS.items()}.get(str(name).lower())
    if found is None:
        raise OptionError(f"there is no editor {name!r}." + did_you_mean(name, EDITORS))
    return found


def rebuild_editor(edit: Edit) -> Editor:
    """The editor that computed an edit, from its recorded configuration."""
    return find_editor(edit.editor).from_config(edit.config)
