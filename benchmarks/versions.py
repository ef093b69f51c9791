"""The oldest and the newest Python, torch and transformers: do the contract and the demo hold?

    python benchmarks/versions.py ENVIRONMENT... [--out data/results/versions.csv]
    python benchmarks/versions.py --make FOLDER [--python python3.13] [--torch 2.15.0]
        [--transformers 5.23.0] [--index-url https://download.pytorch.org/whl/cpu]

The second form makes an environment for the first one. In each a part of the suite runs: the
contract of every editor on a Llama and of some on BERT and T5, files, the stack, tokens; and
``workbench demo --model tiny``. A row an environment is added to the table, or takes the place of
the row with the same versions. The bounds stand in pyproject.toml.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    *("tests/contract", "tests/test_edits.py", "tests/test_model.py", "tests/test_tokens.py"),
    *("-k", "not contract or llama or (bert and FT) or (t5 and GRACE)"),
)
COLUMNS = (
    *("python", "torch", "transformers", "numpy", "pandas", "passed", "failed", "skipped"),
    *("demo", "seconds", "commit"),
)
#: What the part of the suite needs beside the package.
TOOLS = ("beartype", "hypothesis", "pytest", "pytest-timeout", "pyyaml", "plotly>=7.1,<7.2")
ASK = """
import json, platform
from importlib.metadata import version
names = ("torch", "transformers", "numpy", "pandas")
print(json.dumps({"python": platform.python_version()} | {n: version(n) for n in names}))
"""


def make(folder: Path, python: str, torch: str, transformers: str, index_url: str | None) -> None:
    """A virtual environment with these versions; torch alone comes from ``index_url``."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    more = ["--index-url", index_url] if index_url else []
    subprocess.run([*pip, *more, f"torch=={torch}"], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    others = [d for d in project["dependencies"] if not d.startswith(("torch", "transformers"))]
    subprocess.run([*pip, *others, *TOOLS, f"transformers=={transformers}"], check=True)


def tried(environment: Path) -> dict[str, Any]:
    """One row of the table."""
    python = str(environment / "bin" / "python")
    began = time.monotonic()
    row = json.loads(_run([python, "-c", ASK]).stdout)
    done = _run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS])
    for name in ("passed", "failed", "skipped"):
        found = re.findall(rf"(\d+) {name}", done.stdout.splitlines()[-1] if done.stdout else "")
        row[name] = int(found[0]) if found else 0
    row["failed"] += len(re.findall(r"^ERROR ", done.stdout, re.MULTILINE))
    with tempfile.TemporaryDirectory() as folder:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import workbench.__main__ as m; "
        code += "sys.argv = ['workbench', 'demo', '--model', 'tiny']; sys.exit(m.main())"
        demo = _run([python, "-c", code], folder)
    row["demo"] = "works" if demo.returncode == 0 else "fails"
    for said in (done, demo):
        if said.returncode:
            print(said.stdout[-4000:], said.stderr[-2000:], file=sys.stderr)
    commit = _run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
    return row | {"seconds": round(time.monotonic() - began), "commit": commit}


def record(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the table; a row takes the place of the one with the same versions."""
    held: dict[tuple[str, ...], dict[str, Any]] = {}
    if out.is_file():
        with out.open(newline="", encoding="utf-8") as file:
            held = {_key(r): r for r in csv.DictReader(file)}
    held |= {_key(r): r for r in rows}
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(held[key] for key in sorted(held))


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[n]) for n in ("python", "torch", "transformers"))


def _run(command: list[str], folder: str | Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WORKBENCH_HEADLESS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("environments", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "data/results/versions.csv")
    parser.add_argument("--make", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--torch", default="2.13.0")
    parser.add_argument("--transformers", default="5.23.0")
    parser.add_argument("--index-url")
    given = parser.parse_args()
    if given.make:
        make(given.make, given.python, given.torch, given.transformers, given.index_url)
    rows = []
    for environment in given.environments:
        rows.append(tried(environment.absolute()))
        print(rows[-1])
        record(rows, given.out)
    return int(any(r["failed"] or not r["passed"] or r["demo"] != "works" for r in rows))


if __name__ == "__main__":
    sys.exit(main())
