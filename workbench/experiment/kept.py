"""Stacks that can be opened again: all edits of a run up to some moment, or those of a view."""

from __future__ import annotations

import json
import os
from pathlib import Path

from workbench.atomic import write_atomically
from workbench.edits import Edit, load_edit
from workbench.errors import OptionError
from workbench.model import ModelView
from workbench.patches import push_all
from workbench.runs import RunFolder, is_run
from workbench.stackfiles import STACK_FORMAT, files_of

__all__ = ["keep_stack", "link_file", "open_stack", "save_stack"]


def open_stack(
    path: str | os.PathLike[str], view: ModelView, *, at: int | None = None
) -> tuple[Edit, ...]:
    """Put the edits of a run onto a view, as they were at some moment.

    Args:
        path: a run's folder, one that ``stream(keep_model_at=...)`` made in its ``models/``, or one
            of :func:`save_stack`.
        view: the model it was made on, holding what it held when the run began.
        at: number of edits of the run; None takes all there are.

    Returns:
        The edits, oldest first; they are on the view's stack.

    Raises:
        DataError: if there is no such folder, or an edit is damaged.
        OptionError: if no batch ended at ``at`` edits.
        EditMismatchError: for another model.

    Example:
        >>> wb.open_stack("data/runs/memit", view, at=500)  # doctest: +SKIP
    """
    files = files_of(Path(path).expanduser())
    steps = [0, *(step for step, _ in files)]
    step = steps[-1] if at is None else at
    if step not in steps:
        near = sorted(steps, key=lambda s: abs(s - step))[:3]
        raise OptionError(
            f"at={at}: no batch ended there; the nearest moments are "
            f"{', '.join(map(str, sorted(near)))}."
        )
    edits = [load_edit(file) for held, file in files if held <= step]
    push_all(view, edits)  # an edit that stands there already is not stacked again
    return tuple(edits)


def save_stack(view: ModelView, path: str | os.PathLike[str]) -> Path:
    """Write the edits a view holds into a folder, a file an edit and a list of them.

    Args:
        view: a model with edits on its stack.
        path: a folder; made if missing. Edits that lie there already are not written again.

    Returns:
        The folder, for :func:`open_stack`.

    Raises:
        OptionError: if the stack is empty, or the folder holds a run.
        StorageError: if it cannot be written; an older list is left as it was.

    Example:
        >>> wb.save_stack(view, "capitals/")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    if not view.stack:
        raise OptionError("the stack is empty: there is no edit to save.")
    if is_run(path):
        raise OptionError(f"{path} is the folder of a run: choose another one.")
    held, listed = 0, []
    for edit in view.stack:
        held += len(edit.requests)
        name = f"{edit.id}.safetensors"
        if not (path / name).exists():
            edit.save(path / name)
        listed.append([held, name])
    content = {"format": STACK_FORMAT, "run": path.name, "edits": listed}
    write_atomically(path / "stack.json", json.dumps(content, indent=1).encode())
    return path


def keep_stack(folder: RunFolder, step: int) -> Path:
    """Link the run's edits up to a moment into ``models/STEP``, with a list of them."""
    target = folder.path / "models" / str(step)
    files = [(held, file) for held, file in files_of(folder.path) if held <= step]
    for _, file in files:
        link_file(file, target / file.name)
    listed = {"format": STACK_FORMAT, "run": folder.name, "edits": [[h, f.name] for h, f in files]}
    return write_atomically(target / "stack.json", json.dumps(listed, indent=1).encode())


def link_file(file: Path, target: Path) -> None:
    """A second name for a file, a copy where the disk knows no such thing."""
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)
    except OSError:
        write_atomically(target, file.read_bytes())
