"""Run a notebook without a browser, with other parameters, and keep what it showed.

The parameters are the names assigned in the cell tagged ``parameters``; a cell with the new values
is put behind it (the convention of papermill). Timing, widget state and progress bars, which freeze
in a file, are left out, so that a second run of the same notebook writes the same file. Needs the
extra ``lab`` (nbclient, nbformat), imported on first use.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.atomic import write_atomically
from workbench.errors import DataError, OptionError, WorkbenchError, did_you_mean

__all__ = ["parse_parameters", "run_notebook"]

TAG, INJECTED = "parameters", "injected-parameters"
WIDGET = "application/vnd.jupyter.widget-view+json"
#: ``phase:  40%|████      | 8/20 [00:01<00:02, 5.00it/s]`` and tqdm's note that it has no widgets
_BAR = re.compile(
    r"\d+%\|.*\||\d+it \[|TqdmWarning|TqdmExperimental|import notebook_tqdm|autonotebook"
)


def run_notebook(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> Path:
    """Execute a notebook from a clean kernel, in its own folder.

    Args:
        path: the notebook; it is not changed unless ``out`` names the same file.
        out: where the executed notebook goes; None takes ``NAME.run.ipynb`` in the current folder.
        parameters: new values of names in the cell tagged ``parameters``.

    Returns:
        The executed notebook's path.

    Raises:
        OptionError: for a file that is no ``.ipynb``, or a parameter that the notebook lacks.
        DataError: if the file is missing or damaged.
        WorkbenchError: if a cell fails or the kernel dies; what ran is kept at ``out``.
        StorageError: if ``out`` cannot be written.

    Example:
        >>> run_notebook("tutorials/01_your_first_edit.ipynb", "out.ipynb", model="tiny")
        ... # doctest: +SKIP
    """
    path = Path(path).expanduser()
    notebook = _read(path)
    _inject(notebook, parameters, path)
    out = Path(f"{path.stem}.run.ipynb") if out is None else Path(out).expanduser()
    try:
        _execute(notebook, path.parent)
    except Exception as error:
        raise _explain(error, path, out) from error
    finally:
        _tidy(notebook)
        text = _package("nbformat").writes(notebook)
        written = write_atomically(out, text.rstrip("\n").encode() + b"\n")
    return written


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """``["edits=20", "model=tiny"]`` as ``{"edits": 20, "model": "tiny"}``.

    Raises:
        OptionError: for a word without ``=``, or a name that is none in Python.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise OptionError(f"-p {word!r}: write NAME=VALUE, such as model=tiny.")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise WorkbenchError(
            f"{name} is not installed: pip install 'workbench-editing[lab]' {name}."
        ) from error


def _read(path: Path) -> Any:
    if path.suffix != ".ipynb":
        raise OptionError(f"{path} is not a notebook: only files that end in .ipynb are run.")
    if not path.is_file():
        raise DataError(f"there is no notebook at {path}: check the path.")
    nbformat = _package("nbformat")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # JSON, schema and version errors have no common base
        raise DataError(f"{path} is not a readable notebook ({error}).") from error


def _inject(notebook: Any, parameters: Mapping[str, Any], path: Path) -> None:
    """Put the values behind the cell tagged ``parameters``, in place of earlier injected ones."""
    if not parameters:
        return
    tagged = [i for i, c in enumerate(notebook.cells) if TAG in c.metadata.get("tags", ())]
    if not tagged:
        raise OptionError(f"{path} has no cell tagged {TAG!r}, so it takes no parameters.")
    known = _assigned(notebook.cells[tagged[0]].source)
    for name, value in parameters.items():
        if name not in known:
            raise OptionError(f"{path.name} has no parameter {name!r}." + did_you_mean(name, known))
        _require_literal(name, value)
    notebook.cells = [c for c in notebook.cells if INJECTED not in c.metadata.get("tags", ())]
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cell = _package("nbformat").v4.new_code_cell(source, id=INJECTED, metadata={"tags": [INJECTED]})
    notebook.cells.insert(tagged[0] + 1, cell)


def _assigned(source: str) -> list[str]:
    """Names to which the top level of a cell assigns."""
    names = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names += [t.id for t in targets if isinstance(t, ast.Name)]
    return names


def _require_literal(name: str, value: Any) -> None:
    try:
        same = ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise OptionError(
            f"{name}={value!r}: a parameter is a text, a number, a bool, None, or a tuple, list or "
            "dictionary of these."
        )


def _execute(notebook: Any, folder: Path) -> None:
    client = _package("nbclient").NotebookClient(
        notebook,
        timeout=None,  # an experiment may take hours
        startup_timeout=120,
        kernel_name=notebook.metadata.get("kernelspec", {}).get("name", "python3"),
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        extra_arguments=["--log-level=40"],  # every start warns of TCP, which stays on this machine
        resources={"metadata": {"path": str(folder.resolve())}},
    )
    client.execute(env=os.environ | {"WORKBENCH_HEADLESS": "1", "TQDM_DISABLE": "1"})


def _tidy(notebook: Any) -> None:
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_without_bars, cell.outputs) if output]


def _without_bars(output: Any) -> Any:
    """The output without progress bars; None if nothing is left."""
    if output.output_type in ("display_data", "execute_result") and WIDGET in output.data:
        return None
    if output.output_type != "stream" or output.name != "stderr":
        return output
    lines = [x for x in re.split(r"[\r\n]+", output.text) if x.strip() and not _BAR.search(x)]
    output.text = "".join(f"{line}\n" for line in lines)
    return output if lines else None


def _explain(error: Exception, path: Path, out: Path) -> WorkbenchError:
    if isinstance(error, WorkbenchError):
        return error
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return WorkbenchError(
        f"{path.name} stopped with {name}: {str(value).strip()}. What ran is kept in {out}."
    )
