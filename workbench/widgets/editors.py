"""The editor and its options, each explained where it is changed."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from html import escape
from typing import Any, ClassVar

import ipywidgets as ipw

from workbench.editors import EDITORS, Editor
from workbench.editors.explain import describe_editor, explain_options
from workbench.errors import OptionError, WorkbenchError
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, choice, column, row

__all__ = ["EditorPanel"]

PRESETS = {"measured for this model": "default", "as in the paper": "paper", "as released": "repo"}


class EditorPanel(Panel):
    """Which editor, which preset, which options."""

    title: ClassVar[str] = "Editor"
    name: ClassVar[str] = "editor"

    def _build(self) -> Any:
        self.editor = choice(
            "Editor", list(EDITORS), name="wb-editor", value=type(self.session.editor).__name__
        )
        self.preset = choice("Preset", list(PRESETS), name="wb-preset")
        self.about = ipw.HTML().add_class("wb-editor-about")
        self.fields: dict[str, Any] = {}
        self.rows = column()
        self.take = button("Use these options", self.use, name="wb-use-options")
        fold = ipw.Accordion(
            children=[column(self.rows, self.take)], titles=["Options"], selected_index=None
        ).add_class("wb-options")
        self.editor.observe(self._chosen, "value")
        self.preset.observe(self._chosen, "value")
        self._show(self.session.editor)
        return column(self.editor, self.preset, self.about, fold, self.message)

    def load(self) -> Editor:
        """The chosen editor."""
        editor: Editor = self.session.editor
        return editor

    def draw(self, found: Editor) -> None:
        """Show it, however it was chosen; what is being typed stays."""
        with self.bench.quiet():
            self.editor.value = type(found).__name__
            self.preset.value = next(k for k, v in PRESETS.items() if v == self.session.preset)
        if found != self.shown:
            self._show(found)

    def use(self) -> None:
        """Take the options in the fields."""
        typed = self.typed()
        self.act("take the options", lambda job: self.put(typed), light=True)

    def typed(self) -> dict[str, str]:
        """What stands in the fields."""
        return {name: part.value for name, part in self.fields.items()}

    def put(self, typed: Mapping[str, str]) -> None:
        """Change the editor's options to what was typed; runs in the worker thread.

        Raises:
            WorkbenchError: for a value that cannot be.
        """
        editor = self.session.editor
        if set(typed) == {f.name for f in dataclasses.fields(editor)}:  # of this editor
            options = changed(editor, typed)
            if options:
                self.session.adjust(**options)

    def _chosen(self, change: Any) -> None:
        if self.bench.is_quiet:
            return
        name, preset = self.editor.value, PRESETS[self.preset.value]
        self.act(
            "choose an editor", lambda job: self.session.choose(name, preset=preset), light=True
        )

    def forget(self) -> None:
        """Another model: its editor is shown anew."""
        super().forget()
        self._show(self.session.editor)

    def _show(self, editor: Editor) -> None:
        self.shown = editor
        table = explain_options(editor)
        if list(self.fields) != list(table["option"]):
            self.fields = {name: _field(name) for name in table["option"]}
            lines = [
                row(self.fields[r.option], ipw.HTML(f"<small>{_marked(r.meaning)}</small>"))
                for r in table.itertuples()
            ]
            self.rows.children = tuple(lines)
        for name, part in self.fields.items():
            part.value = _written(getattr(editor, name))
        self.about.value = self._about(editor)

    def _about(self, editor: Editor) -> str:
        view = self.session.view
        layers = tuple(getattr(editor, "layers", ()))
        where = ", ".join(view.weight_name(x) for x in layers[:8])
        writes = f"<br><small>Writes {escape(where)}.</small>" if layers else ""
        return f"<span>{escape(describe_editor(editor))}</span>{writes}{self._refusals()}"

    def _refusals(self) -> str:
        """Editors that cannot edit this model, with the reason; made once a model."""
        key = "bench: refused editors"
        cache = self.session.view.cache
        if key not in cache:
            cache[key] = {n: w for n in EDITORS if (w := _refusal(n, self.session.view))}
        if not cache[key]:
            return ""
        items = "".join(f"<li>{escape(n)}: {escape(w)}</li>" for n, w in cache[key].items())
        return f"<details><summary>Not for this model</summary><ul>{items}</ul></details>"


def changed(editor: Editor, typed: Mapping[str, str]) -> dict[str, Any]:
    """Options whose text differs from what an editor has.

    Raises:
        OptionError: for an empty field.
    """
    return {
        name: _read(name, text)
        for name, text in typed.items()
        if text.strip() != _written(getattr(editor, name))
    }


def _refusal(name: str, view: Any) -> str | None:
    try:
        return EDITORS[name].preset(view).unsupported(view)
    except WorkbenchError as err:
        return str(err)


def _marked(text: str) -> str:
    """A docstring's words as HTML: names in code."""
    return re.sub(r"(?::\w+:)?`+([^`]+)`+", r"<code>\1</code>", escape(text))


def _field(name: str) -> Any:
    made = ipw.Text(
        description=name, style={"description_width": "130px"}, layout=ipw.Layout(width="300px")
    )
    return made.add_class(f"wb-option-{name}")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _read(name: str, text: str) -> Any:
    """A field's text as a Python value; words that are none stay words."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        if not text.strip():
            raise OptionError(
                f"{name} is empty: type a value, or choose the preset again."
            ) from None
        return text.strip()
