"""How fast the bench is: first useful output, and a click to a redrawn panel.

    python benchmarks/bench.py --models tiny smollm2-135m

Three numbers a model, each the median of several: a fresh interpreter until the bench has drawn its
first bars, imports included (``first_output``); Run All in JupyterLab until the bars are on the
screen (``in_the_browser``, once); a click that needs nothing computed until the panel has changed
on the screen (``click``: the slider over time, between moments seen before). Caches are warm: the
model and its statistics are on the disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workbench as wb
from workbench.atomic import write_atomically
from workbench.experiment.environment import environment

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "tests")]

FIRST = """
import time; began = time.perf_counter()
import workbench as wb
bench = wb.EditBench(wb.load({model!r}))
assert bench.answers.area.figure is not None
print(time.perf_counter() - began)
"""
#: The bars' heading tells which moment they show.
HEADING = "() => document.querySelector('.wb-answers .gtitle-subtitle')?.textContent || ''"


def main() -> None:
    """Measure, then write the table."""
    args = _arguments()
    found = {model: _measured(model, args.repeats) for model in args.models}
    for model, row in found.items():
        print(model, {k: round(v, 3) for k, v in row.items()})
    record = {
        "seconds": found,
        "repeats": args.repeats,
        "environment": environment(wb.load("tiny")),
    }
    write_atomically(Path(args.out), json.dumps(record, indent=1).encode())


def _measured(model: str, repeats: int) -> dict[str, float]:
    first = [_first_output(model) for _ in range(repeats)]
    opened, clicks = _in_the_browser(model, 4 * repeats)
    return {
        "first_output": statistics.median(first),
        "in_the_browser": opened,
        "click": statistics.median(clicks),
        "click_slowest": max(clicks),
    }


def _first_output(model: str) -> float:
    code = FIRST.format(model=model)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def _in_the_browser(model: str, clicks: int) -> tuple[float, list[float]]:
    import nbformat
    from browsers import require_chromium
    from labserver import LabPage, LabServer
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root, home = Path(folder) / "root", Path(folder) / "home"
        root.mkdir()
        home.mkdir()
        sources = [
            f"import workbench as wb\nview = wb.load({model!r})\nbench = wb.EditBench(view)\nbench"
        ]
        cells = [nbformat.v4.new_code_cell(s) for s in sources]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "b.ipynb")
        server = LabServer(home, root)
        try:
            browser = playwright.chromium.launch(
                executable_path=require_chromium(), args=["--no-sandbox", "--disable-gpu"]
            )
            page = LabPage(browser.new_page(viewport={"width": 1200, "height": 1500}))
            page.open(server.address("b.ipynb"))
            began = time.perf_counter()
            page.run_all()
            page.until(lambda: page.figure(".wb-answers"), "no bars")
            return time.perf_counter() - began, _clicks(page, clicks)
        finally:
            server.stop()


def _clicks(page: object, n: int) -> list[float]:
    """Seconds from a key on the slider to the figure of the other moment."""
    page.click("wb-preview")
    page.until(lambda: "preview of" in page.text("wb-where"), "no preview")
    page.click("wb-accept")
    page.until(lambda: page.text("wb-where").endswith("1 edit"), "not accepted")
    page.tab("Timeline")
    page.until(lambda: page.page.locator(".wb-timeline td").count(), "no timeline")
    handle = page.page.locator(".wb-moment .noUi-handle").first
    seconds = []
    for i in range(n + 2):
        handle.focus()
        wanted = "after 0" if i % 2 == 0 else "now"
        began = time.perf_counter()
        handle.press("ArrowLeft" if i % 2 == 0 else "ArrowRight")
        page.page.wait_for_function(
            f"() => ({HEADING})().includes({wanted!r})", timeout=60_000, polling=10
        )
        seconds.append(time.perf_counter() - began)
    return seconds[2:]  # both moments have been seen by then


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2-135m"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="data/results/bench_cpu.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
