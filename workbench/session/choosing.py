"""Which editor a session works with."""

from __future__ import annotations

from workbench.editors import EDITORS, Editor, find_editor
from workbench.errors import UnsupportedEditorError, WorkbenchError
from workbench.model import ModelView

__all__ = ["first_editor", "fitting", "like"]

#: Offered first, in this order, where the model can take them.
PREFERRED = ("ROME", "MEMIT", "FT")


def fitting(view: ModelView, editor: Editor) -> Editor:
    """An editor that the model can be edited with.

    Raises:
        UnsupportedEditorError: saying why it cannot.
    """
    reason = editor.unsupported(view)
    if reason:
        raise UnsupportedEditorError(f"{type(editor).__name__} on {view.name}: {reason}")
    return editor


def like(editor: Editor, name: str, view: ModelView) -> Editor:
    """An editor under its own name, the default preset under another."""
    return editor if type(editor) is find_editor(name) else find_editor(name).preset(view)


def first_editor(view: ModelView) -> Editor:
    """The first that suits the model.

    Raises:
        UnsupportedEditorError: if none does.
    """
    for name in dict.fromkeys((*PREFERRED, *EDITORS)):
        try:
            return fitting(view, find_editor(name).preset(view))
        except WorkbenchError:
            continue
    raise UnsupportedEditorError(f"no editor can edit {view.name}.")
