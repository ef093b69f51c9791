"""Every notebook: as committed it obeys the rules, and it runs on ``tiny`` from a clean kernel."""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench import __main__ as cli
from workbench.errors import DataError, OptionError, WorkbenchError
from workbench.notebooks import parse_parameters, run_notebook

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(p for d in ("tutorials", "notebooks") for p in (ROOT / d).glob("*.ipynb"))
#: Small parameters, by notebook; ``model`` is set to tiny where a notebook has it.
SMALL: dict[str, dict[str, Any]] = {
    "coachhook_consecutive": {
        "live": True,
        "edits": 4,
        "batch": 2,
        "trials": ("CoachHook, 4 layers", "MEMIT"),
    },
    "grace_lifelong": {"live": True, "edits": 4, "trials": ("GRACE", "FT")},
    "compare_editors": {"live": True, "edits": 3, "trials": ("FT", "FTL", "ROME", "GRACE")},
    "emmet_batch_sizes": {
        "live": True,
        "edits": 3,
        "trials": (
            *("EMMET, batches of 64", "EMMET, one layer, batches of 64"),
            *("EMMET, one layer, batches of 1", "MEMIT, one layer, batches of 1"),
        ),
        "sequences": ("MEMIT, 64 at once", "MEMIT, 1 at once"),
    },
    "forgetting_curves": {"live": True, "edits": 4, "trials": ("ROME", "MEMIT")},
    "mend_learned_editors": {
        "live": True,
        "edits": 2,
        "steps": 2,
        "at_once": (1, 3),
        "trained_at": (1,),
        "ablations": False,
        "editors": ("MEND", "ENN"),
    },
    "nse_sequential": {
        "live": True,
        "edits": 4,
        "batch": 2,
        "trials": ("ROME", "MEMIT", "MEMIT accumulated", "NSE", "NSE, one round", "AlphaEdit"),
    },
}
MAX_BYTES, MAX_LINES = 500_000, 12
#: A guard against hanging, not a measurement: each takes well under a minute on two free cores.
HANGS_SECONDS = 400
#: Tutorials that build a method themselves: they define functions, in somewhat longer cells.
FROM_SCRATCH = [p for p in NOTEBOOKS if re.match(r"0[2-9]_", p.name)]
MAX_LINES_FROM_SCRATCH = 26
LIVE, STILL = "application/vnd.plotly.v1+json", "image/png"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


@pytest.fixture(autouse=True)
def _kernel_finds_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is another process: it gets the checkout on its path."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def code_cells(notebook: Any) -> list[Any]:
    return [c for c in notebook.cells if c.cell_type == "code"]


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in code_cells(notebook):
        yield from cell.outputs


def lines_of_code(source: str) -> list[str]:
    return [x for x in source.splitlines() if x.strip() and not x.strip().startswith("#")]


def test_there_are_notebooks():
    assert ROOT / "tutorials" / "01_your_first_edit.ipynb" in NOTEBOOKS


# ---------------------------------------------------------------- as committed


@each
def test_cells_are_short_and_define_nothing(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        scratch = path in FROM_SCRATCH
        defined = {ast.ClassDef} if scratch else {ast.FunctionDef, ast.ClassDef, ast.Lambda}
        assert not (defined | {ast.AsyncFunctionDef}) & kinds, f"{cell.id} defines something"
        limit = MAX_LINES_FROM_SCRATCH if scratch else MAX_LINES
        assert len(lines_of_code(cell.source)) <= limit, f"{cell.id} is too long"
    tagged = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1
    assert not [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", ())]


@each
def test_outputs_are_kept_and_can_be_seen_without_running(path):
    assert path.stat().st_size <= MAX_BYTES
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    found = list(outputs(notebook))
    assert found and all(c.execution_count for c in code_cells(notebook))
    for output in found:
        assert output.output_type != "error"
        if output.output_type == "stream":
            assert output.name == "stdout", output.text
            continue
        assert "application/vnd.jupyter.widget-view+json" not in output.data
        assert output.data.get("text/plain", "").strip()
        if LIVE in output.data:
            assert STILL in output.data and len(output.data["text/plain"]) > 20
    assert any(LIVE in o.get("data", {}) for o in found)


@each
def test_no_machine_is_named(path):
    notebook = nbformat.read(path, as_version=4)
    said = [o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs(notebook)]
    text = "\n".join([*said, *(c.source for c in notebook.cells)])
    assert not re.search(r"/(home|root|Users|tmp|work)/", text)


@each
def test_kernel_and_order_are_those_of_a_clean_run(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    counts = [c.execution_count for c in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def _compares(source: str) -> bool:
    """Whether a cell asserts, or calls torch's or pandas' comparison."""
    named = (n.attr for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute))
    asserts = any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(source)))
    return asserts or bool({"assert_close", "assert_frame_equal"} & set(named))


@pytest.mark.parametrize("path", FROM_SCRATCH, ids=lambda p: p.stem)
def test_a_tutorial_from_scratch_proves_itself_without_the_editors_insides(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    proofs = [c for c in cells if "proof" in c.metadata.get("tags", ())]
    assert len(proofs) >= 2 and all(_compares(c.source) for c in proofs)
    imported = "\n".join(c.source for c in cells)
    inside = r"workbench\.(editors|inspectors|linalg|replay|tokens|adapters|memories|trace)\b"
    assert not re.search(inside, imported)


@pytest.mark.parametrize("path", FROM_SCRATCH, ids=lambda p: p.stem)
def test_schematics_are_attached_as_pictures(path):
    """JupyterLab shows no attached SVG; 04 to 07 open with a schematic."""
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        named = re.findall(r"!\[[^]]{40,}\]\(attachment:(\S+)\)", cell.source)
        held = cell.get("attachments", {})
        assert sorted(named) == sorted(held)
        assert all(list(each) == ["image/png"] for each in held.values())
    if path.name[:2] in ("04", "05", "06", "07"):
        assert cells[0].get("attachments")


# ---------------------------------------------------------------- run again


@each
@pytest.mark.slow
@pytest.mark.timeout(HANGS_SECONDS)
def test_it_runs_on_tiny(path, tmp_path, monkeypatch):
    if path.stem in SMALL:  # a run is recorded: not where the next test would read it
        monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    copy = tmp_path / path.parent.name / path.name
    copy.parent.mkdir()
    shutil.copyfile(path, copy)
    before = copy.read_bytes()
    parameters = {"model": "tiny"} | SMALL.get(path.stem, {})
    done = run_notebook(copy, tmp_path / "done.ipynb", **parameters)
    assert copy.read_bytes() == before and list(copy.parent.iterdir()) == [copy]
    notebook = nbformat.read(done, as_version=4)
    (injected,) = [c for c in code_cells(notebook) if c.id == "injected-parameters"]
    assert "model = 'tiny'" in injected.source
    assert all(c.execution_count for c in code_cells(notebook))
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert "timing" not in notebook.metadata and "execution" not in injected.metadata


# ---------------------------------------------------------------- the runner


def small(path: Path, *sources: str) -> Path:
    v4 = nbformat.v4
    cells = [v4.new_code_cell(s) for s in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def test_parameters_are_injected_behind_their_cell_and_only_once(tmp_path):
    path = small(tmp_path / "n.ipynb", "n = 1\nname: str = 'a'", "print(n, name)")
    done = run_notebook(path, tmp_path / "a.ipynb", n=3)
    again = run_notebook(done, tmp_path / "b.ipynb", n=4, name="it's")
    notebook = nbformat.read(again, as_version=4)
    assert [o.text for o in outputs(notebook)] == ["4 it's\n"]
    assert len(notebook.cells) == 3 and notebook.cells[1].source == 'n = 4\nname = "it\'s"'


def test_a_second_run_writes_the_same_file(tmp_path):
    path = small(tmp_path / "n.ipynb", "n = 1", "for i in range(3):\n    print(i)")
    first = run_notebook(path, tmp_path / "a.ipynb").read_bytes()
    assert run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb").read_bytes() == first


def test_progress_bars_are_left_out_and_other_words_kept(tmp_path):
    bar = "import sys\n_ = sys.stderr.write('\\rfit:  50%|###   | 1/2 [00:01<00:01]\\rdone\\n')"
    path = small(tmp_path / "n.ipynb", bar)
    notebook = nbformat.read(run_notebook(path, tmp_path / "a.ipynb"), as_version=4)
    assert [(o.name, o.text) for o in outputs(notebook)] == [("stderr", "done\n")]


def test_an_error_stops_the_run_and_keeps_what_ran(tmp_path):
    path = small(tmp_path / "n.ipynb", "n = 1", "print('here')", "1 / 0", "print('never')")
    with pytest.raises(WorkbenchError, match="ZeroDivisionError: division by zero.*a.ipynb"):
        run_notebook(path, tmp_path / "a.ipynb")
    kept = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    kinds = [o.output_type for o in outputs(kept)]
    assert kinds == ["stream", "error"] and not kept.cells[3].outputs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modle": "tiny"}, "no parameter 'modle'. Did you mean 'model'?"),
        ({"model": object()}, "a parameter is a text, a number"),
    ],
)
def test_unknown_and_unusable_parameters_are_refused(tmp_path, given, said):
    path = small(tmp_path / "n.ipynb", "model = 'tiny'")
    with pytest.raises(OptionError, match=re.escape(said)):
        run_notebook(path, tmp_path / "a.ipynb", **given)
    assert not (tmp_path / "a.ipynb").exists()


def test_only_notebooks_are_run(tmp_path):
    script = tmp_path / "n.py"
    script.write_text("print(1)")
    with pytest.raises(OptionError, match="only files that end in .ipynb"):
        run_notebook(script)
    with pytest.raises(DataError, match="no notebook at"):
        run_notebook(tmp_path / "n.ipynb")
    (tmp_path / "n.ipynb").write_text("{")
    with pytest.raises(DataError, match="not a readable notebook"):
        run_notebook(tmp_path / "n.ipynb")


def test_parameters_on_the_command_line():
    words = ["model=tiny", "edits=20", "live=True", "at=(1, 2)", "note=a=b", "none="]
    assert parse_parameters(words) == {
        "model": "tiny",
        "edits": 20,
        "live": True,
        "at": (1, 2),
        "note": "a=b",
        "none": "",
    }
    for word in ("model", "a-b=1"):
        with pytest.raises(OptionError, match="NAME=VALUE"):
            parse_parameters([word])


def test_the_command_runs_a_notebook(tmp_path, monkeypatch, capsys):
    path = small(tmp_path / "n.ipynb", "n = 1", "print(n + 1)")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", str(path), "-p", "n=41"]) == 0
    assert "executed: n.run.ipynb" in capsys.readouterr().out
    notebook = nbformat.read(tmp_path / "n.run.ipynb", as_version=4)
    assert [o.text for o in outputs(notebook)] == ["42\n"]
    assert cli.main(["run", str(path), "-p", "m=41"]) == 2
    assert "no parameter 'm'" in capsys.readouterr().err
