"""Files: save and load edits, export a report that opens anywhere."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd

from workbench.edits import Edit
from workbench.errors import OptionError
from workbench.patches import conflict_line, count, model_line, show_patch
from workbench.session.reporting import write_report
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, column, field, row

__all__ = ["FilesPanel"]

SHOWN = ("editor", "prompt", "target")


class FilesPanel(Panel):
    """Save the stack, load edits or runs, write a report."""

    title: ClassVar[str] = "Files"
    name: ClassVar[str] = "files"

    def _build(self) -> Any:
        self.path = field("Edits", name="wb-file", hint="edits.safetensors, or a folder")
        save = button("Save", self.save, name="wb-save")
        load = button("Load", self.load_file, name="wb-load")
        look = button("Show", self.show_file, name="wb-show")
        self.report = field("Report", name="wb-report", value="workbench-report.html")
        export = button("Export", self.export, name="wb-export")
        return column(self.path, row(save, look, load), self.report, export, self.message)

    def load(self) -> None:
        """Nothing: files are asked for by hand."""

    def draw(self, found: None) -> None:
        """Nothing."""

    def save(self) -> None:
        """Save the stack."""
        path = self._named(self.path, "edits")
        self.act(
            "save",
            lambda job: self.session.save(path()),
            lambda where: self.message.say(f"Saved: {where}"),
        )

    def load_file(self) -> None:
        """Load edits on top of those there, and say where they are in conflict."""
        path = self._named(self.path, "edits")
        self.act(
            "load",
            lambda job: self._loaded(self.session.load(path())),
            self.message.say,
        )

    def show_file(self) -> None:
        """Say what a file holds, from its manifest."""
        path = self._named(self.path, "edits")
        self.act("show", lambda job: _manifest_line(show_patch(path())), self.message.say)

    def _loaded(self, edits: tuple[Edit, ...]) -> str:
        found = self.session.conflicts(len(edits))
        warning = f" Note: {conflict_line(found)}" if len(found) else ""
        return f"Loaded {count(len(edits), 'edit')}.{warning}"

    def export(self) -> None:
        """Write the report."""
        path = self._named(self.report, "a report")
        drawn = self.bench.figures()
        self.act(
            "report",
            lambda job: write_report(self.session, path(), figures=drawn),
            lambda where: self.message.say(f"Written: {where}"),
        )

    def _named(self, part: Any, what: str) -> Any:
        """The path in a field, asked for when the work begins so that an error lands here."""

        def path() -> str:
            if not part.value.strip():
                raise OptionError(f"type a file name for {what} first.")
            return str(part.value.strip())

        return path


def _manifest_line(table: pd.DataFrame) -> str:
    facts = [f"{e}: {p} → {t}" for e, p, t in zip(*(table[c] for c in SHOWN), strict=True)]
    more = f" and {len(facts) - 5} more" if len(facts) > 5 else ""
    model = model_line(table.attrs["model"])
    return f"{count(len(facts), 'edit')} for {model}. {'; '.join(facts[:5])}{more}."
