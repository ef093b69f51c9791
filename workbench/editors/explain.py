"""What an editor's options mean, from its own docstrings: one row an option."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pandas as pd

from workbench.editors.base import Editor

__all__ = ["describe_editor", "explain_options"]

#: ``name: text`` or ``name, other: text`` at the indentation of an Args block
_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")


def explain_options(editor: Editor | type[Editor]) -> pd.DataFrame:
    """The options of an editor with what they mean.

    Args:
        editor: an editor, or its class (then the values are the defaults).

    Returns:
        One row an option: ``option, value`` (None where the class has no default), ``type``,
        ``meaning``.

    Example:
        >>> wb.explain_options(wb.ROME.preset(view))  # doctest: +SKIP
    """
    cls = editor if isinstance(editor, type) else type(editor)
    meanings = _meanings(cls)
    rows = []
    for f in dataclasses.fields(cls):
        default = None if f.default is dataclasses.MISSING else f.default
        value = default if isinstance(editor, type) else getattr(editor, f.name)
        rows.append((f.name, value, str(f.type), meanings.get(f.name, "")))
    table = pd.DataFrame(rows, columns=["option", "value", "type", "meaning"], dtype=object)
    return table


def describe_editor(editor: Editor | type[Editor]) -> str:
    """The first sentence about an editor.

    Example:
        >>> describe_editor(wb.ROME)
        'Rank-one model editing; several requests are written one after another.'
    """
    cls = editor if isinstance(editor, type) else type(editor)
    return (inspect.getdoc(cls) or cls.__name__).split("\n\n")[0].replace("\n", " ")


def _meanings(cls: type[Editor]) -> dict[str, str]:
    """Option → its text, the most derived class first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _args(base.__doc__ or "")
    return found


def _args(doc: str) -> dict[str, str]:
    block = re.search(r"^( *)Args:\n(.*?)(?:\n\s*\n|\Z)", doc, re.S | re.M)
    if block is None:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in block[2].splitlines():
        line = line.removeprefix(block[1])
        entry = _ENTRY.match(line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip():
            found |= {n: f"{found[n]} {line.strip()}" for n in names}
    return found
