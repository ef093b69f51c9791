"""What is declared: dependencies, pins, citations, the wheel, and the door ``./run``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench.citations import CITATIONS, bibliography, cite
from workbench.errors import OptionError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_references_hold_exactly_the_entries_of_the_package():
    assert (ROOT / "references.bib").read_text(encoding="utf-8") == bibliography()


@pytest.mark.parametrize("name", CITATIONS)
def test_an_entry_is_complete(name):
    entry = cite(name)
    for field in ("title", "author", "year", "eprint"):
        assert re.search(rf"^  {field}\s+= {{.", entry, re.MULTILINE), field
    assert entry.count("{") == entry.count("}") and entry.endswith("\n}\n")


def test_keys_are_unique_and_unknown_names_are_helped():
    keys = [re.match(r"@\w+{(\w+),", e).group(1) for e in CITATIONS.values()]
    assert len(set(keys)) == len(keys)
    with pytest.raises(OptionError, match="Did you mean 'MEMIT'"):
        cite("memitt")


def test_every_editor_has_its_citation():
    from workbench.editors import EDITORS

    assert {e.reference for e in EDITORS.values()} <= set(CITATIONS)


def test_the_conda_environment_names_no_package_of_its_own():
    spec = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, through_pip = spec["dependencies"]
    assert python.removeprefix("python") == PROJECT["requires-python"] and pip == "pip"
    assert through_pip == {"pip": ["-c constraints.txt", "-e .[lab,peft,sharded,test]"]}


def test_every_declared_package_is_pinned_inside_its_range():
    pins = {canonicalize_name(p.name): str(p.specifier).removeprefix("==") for p in PINS}
    declared = PROJECT["dependencies"] + [d for extra in EXTRAS.values() for d in extra]
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert all(re.fullmatch(r"==[\d.]+", str(p.specifier)) for p in PINS)


def test_imports_and_declared_dependencies_agree():
    command = [sys.executable, "-m", "deptry", "workbench", "--no-ansi"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]


def test_the_wheel_carries_the_shipped_data_and_no_caches(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "workbench").rglob("*.py")}
    assert modules <= set(names)
    for folder in ("facts", "tiny", "results"):
        has = (ROOT / "data" / folder).is_dir()
        assert any(n.startswith(f"workbench/data/{folder}/") for n in names) == has
    assert not [n for n in names if n.startswith(("data/", "tests/")) or "/models/" in n]
    assert not [n for n in names if n.startswith("workbench/data/") and n.endswith(".py")]


def _run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "run", *words],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_run_alone_explains_itself():
    done = _run()
    assert done.returncode == 0
    assert all(f"\n  {c} " in done.stdout for c in ("demo", "lab", "test", "check"))


def test_run_refuses_unknown_commands_and_other_pythons(tmp_path):
    assert _run("dmo").returncode == 2
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    python.chmod(0o755)
    venv = tmp_path / "venv"
    done = _run("demo", PYTHON=str(python), WORKBENCH_VENV=str(venv))
    assert done.returncode == 1 and "3.11, 3.12 or 3.13" in done.stderr
    assert "Python 3.9.2" in done.stderr and not venv.exists()


def test_the_map_in_the_readme_names_every_room_once():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = readme.split("\n## Map\n")[1].split("\n## ")[0].split("| room | purpose |")[1]
    named = [x for row in re.findall(r"^\| (`[^|]+) \|", rooms, re.M) for x in row.split(", ")]
    named = [x.strip("`/") for x in named]
    there = {p.stem for p in (ROOT / "workbench").iterdir() if not p.name.startswith("_")}
    assert sorted(named) == sorted({*there, "__main__"} - {"py"})
