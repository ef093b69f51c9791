"""What a session works with: its editor and its facts."""

from __future__ import annotations

from typing import Any

from workbench.editors import EDITORS, Editor, find_editor
from workbench.errors import OptionError, UnsupportedEditorError, WorkbenchError
from workbench.facts import EditCase, EditRequest
from workbench.model import ModelView

__all__ = ["cases_of", "first_editor", "fitting", "like"]

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


def cases_of(facts: Any) -> list[EditCase]:
    """One fact or several, each with the probes that judge it.

    Raises:
        OptionError: if there is none, or something else.
    """
    items = [facts] if isinstance(facts, EditCase | EditRequest) else list(facts)
    cases = [
        EditCase(request=x, case_id=i) if isinstance(x, EditRequest) else x
        for i, x in enumerate(items)
    ]
    if not cases or not all(isinstance(c, EditCase) for c in cases):
        raise OptionError("take needs at least one EditRequest or EditCase.")
    return cases
