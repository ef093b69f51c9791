"""How a session goes on: where its streams lie, which of them can go on, a stack put back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.editors import Editor
from workbench.edits import Edit
from workbench.errors import DataError
from workbench.experiment.configuration import digest
from workbench.experiment.running import rewind
from workbench.facts import EditCase
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.runs import RunFolder

__all__ = ["Folders", "goes_on", "put_back", "unwritten"]


class Folders:
    """Folders of streams, by all that a stream depends on."""

    def __init__(self) -> None:
        self._known: dict[str, Path] = {}

    @property
    def known(self) -> dict[str, str]:
        """What is streamed → its folder, JSON-ready."""
        return {recipe: str(path) for recipe, path in self._known.items()}

    def remember(self, known: Mapping[str, str]) -> None:
        """Take over what another session knew."""
        self._known |= {recipe: Path(path) for recipe, path in known.items()}

    def of(
        self,
        view: ModelView,
        editor: Editor,
        cases: Sequence[EditCase],
        *,
        batch_size: int,
        subset: int,
        watch_all: bool,
    ) -> Path:
        """The folder of a stream that was stopped, if it can go on; else a new one.

        The name depends on the edits below, too, so that the same stream, started again in this
        kernel or the next, goes on where it was.
        """
        recipe = digest([
            type(editor).__name__, editor.config(), list(cases), batch_size, subset, watch_all,
            view.fingerprint, str(view.dtype),
        ])  # fmt: skip
        known = self._known.get(recipe)
        if known is not None and goes_on(view, known):
            return known
        below = [e.id for e in view.stack]
        name = f"bench-{view.name}-{digest([recipe, below])[:12]}".replace("/", "_")
        self._known[recipe] = cache_dir("runs") / name
        return self._known[recipe]


def goes_on(view: ModelView, folder: Path) -> bool:
    """Whether the view holds just what an unfinished run has written so far."""
    run = RunFolder(folder)
    try:
        parents = list(run.config().get("parents", []))
        made = [r["edit"] for r in run.records() if r.get("edit")]
    except DataError:
        return False
    held = [e.id for e in view.stack]
    return run.status().get("state") != "complete" and held == parents + made


def unwritten(view: ModelView, cases: Sequence[EditCase]) -> list[EditCase]:
    """The cases whose fact no edit on the stack has written."""
    written = {r for e in view.stack for r in e.requests}
    return [c for c in cases if c.request not in written]


def put_back(view: ModelView, edits: Sequence[Edit]) -> None:
    """Put edits on a stack that stood on it before; all of them or none."""
    depth = len(view.stack)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what speaks against them was said then
        try:
            for edit in edits:
                view.push(edit)
        except BaseException:
            rewind(view, depth)
            raise
