"""Where the edits of a run or of a saved stack lie: a folder with a list that is not trusted."""

from __future__ import annotations

import json
from pathlib import Path

from workbench.errors import DataError
from workbench.runs import RunFolder, is_run

__all__ = ["STACK_FORMAT", "files_of", "sources_of"]

STACK_FORMAT = "workbench-stack/1"


def files_of(path: Path) -> list[tuple[int, Path]]:
    """(edits held, file) of every edit of a run or a saved folder, oldest first.

    Raises:
        DataError: if it is neither, or its list names anything but files inside of it.
    """
    if is_run(path):
        folder = RunFolder(path)
        made = [r for r in folder.all_records() if r.get("edit")]
        return [(r["step"], folder.file("edits", r["batch"])) for r in made]
    try:
        listed = json.loads((path / "stack.json").read_text(encoding="utf-8"))
        if listed["format"] != STACK_FORMAT:
            raise ValueError(f"its format is {listed['format']!r}")
        return [(int(held), _inside(path, name)) for held, name in listed["edits"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise DataError(f"{path} holds no run and no kept stack ({err}): check the path.") from err


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder, named by a list that may come from anywhere."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\:\0"):
        raise ValueError(f"its list names {name!r}, which is no file of that folder")
    return folder / name


def sources_of(path: Path) -> list[Path]:
    """The files of a patch: the path itself, or what a folder lists."""
    return [file for _, file in files_of(path)] if path.is_dir() else [path]
