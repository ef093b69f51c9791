"""The bench in a real browser: JupyterLab in headless Chromium, driven like a person would."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labserver import LabPage, LabServer

pytest.importorskip("playwright.sync_api")
nbformat = pytest.importorskip("nbformat")

import workbench as wb  # noqa: E402
from workbench.errors import FetchError  # noqa: E402
from workbench.plots.theme import PALETTE  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
#: Cells that do by code what these tests do by hand.
BY_CODE = ("by-code", "figures", "undo")
Open = Callable[..., LabPage]
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def bench(lab: LabServer, open_notebook: Open, request: Any) -> Callable[..., LabPage]:
    """Opens the bench on a model, in a notebook and kernel of its own."""
    numbers = itertools.count()

    def opened(model: str, *, dark: bool = False) -> LabPage:
        source = lab.root / "notebooks" / "workbench.ipynb"
        notebook = nbformat.read(source, as_version=4)
        notebook.cells = [c for c in notebook.cells if c.id not in BY_CODE]
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", ()):
                cell.source = f"model = {model!r}"
        copy = source.with_name(f"{request.node.originalname}-{next(numbers)}.ipynb")
        nbformat.write(notebook, copy)
        page = open_notebook(f"notebooks/{copy.name}", dark=dark)
        page.run_all()
        page.until(lambda: page.figure(".wb-answers"), "no bars")
        return page

    return opened


def bars(page: LabPage) -> dict[str, list[float]]:
    return {t["name"]: t["x"] for t in page.figure(".wb-answers")}


def picture(page: LabPage, name: str, top: str = ".wb-tabs") -> None:
    """Keep what is in sight from a part on, where a folder for pictures is named."""
    folder = os.environ.get("WORKBENCH_SCREENSHOTS")
    if folder:
        page.page.evaluate("(s) => document.querySelector(s).scrollIntoView()", top)
        page.page.mouse.move(2, 2)
        page.page.wait_for_timeout(800)
        area = page.page.locator(".jp-WindowedPanel-outer").bounding_box()
        page.page.screenshot(path=Path(folder) / f"{name}.png", clip=area)


def share_of(page: LabPage, selector: str, color: str) -> float:
    """Share of the pixels of a part of the page that have about this color."""
    png = page.page.locator(selector).first.screenshot()
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    found = page.page.evaluate(_COUNT, [base64.b64encode(png).decode(), wanted])
    return float(found)


_COUNT = """async ([png, wanted]) => {
  const image = new Image();
  image.src = 'data:image/png;base64,' + png;
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height).data;
  let n = 0;
  for (let i = 0; i < data.length; i += 4)
    n += wanted.every((c, j) => Math.abs(data[i + j] - c) < 24);
  return n / (image.width * image.height);
}"""


def accept(page: LabPage, edits: int = 1) -> None:
    page.click("wb-preview")
    page.until(lambda: "preview of" in page.text("wb-where"), "no preview")
    page.click("wb-accept")
    said = f"{edits} edit{'' if edits == 1 else 's'}"
    page.until(lambda: page.text("wb-where").endswith(said), "not accepted")


@pytest.mark.parametrize("model", ["tiny", pytest.param("smollm2-135m", marks=pytest.mark.real)])
def test_a_fact_is_edited_seen_and_undone(bench: Any, model: str) -> None:
    try:
        view = wb.load(model)
    except FetchError as err:
        pytest.skip(str(err))
    page = bench(model, dark=model == "tiny")
    before = bars(page)
    assert set(before) == {"before"}
    page.fill("wb-subject", "Nobody At All")
    page.click("wb-preview")
    page.until(lambda: "does not occur" in page.text("wb-fact-message"), "the mistake is not said")
    (case,) = (wb.datasets.tiny if model == "tiny" else wb.datasets.facts)(limit=1)
    page.fill("wb-subject", case.request.subject)
    page.click("wb-preview")
    page.until(lambda: set(bars(page)) == {"before", "after"}, "no bars of the preview")
    edit = wb.ROME.preset(view).edit(view, case)
    with view.applied(edit):
        wanted = wb.next_tokens(view, case.request.text, top_k=3)
    drawn = sorted(bars(page)["after"], reverse=True)[:3]
    assert drawn == pytest.approx(wanted["prob"].tolist(), abs=2e-3)
    picture(page, f"preview_{model}", top=".wb-bench")
    orange = share_of(page, ".wb-answers .js-plotly-plot", PALETTE[1])
    assert orange > 0.005, "the bars of the edit are not on the screen"
    page.click("wb-accept")
    page.until(lambda: page.text("wb-where").endswith("1 edit"), "not accepted")
    page.tab("Timeline")
    page.click("wb-undo")
    page.until(lambda: page.text("wb-where").endswith("unedited"), "not undone")
    page.until(lambda: bars(page) == before, "the bars are not what they were")
    after = share_of(page, ".wb-answers .js-plotly-plot", PALETTE[1])
    assert after < orange / 5, "the undone edit is still on the screen"


def test_a_stream_grows_stops_goes_on_and_survives_a_reload(bench: Any, lab: LabServer) -> None:
    page = bench("tiny", dark=True)
    page.page.locator(".wb-options .jupyter-widget-Collapse-header").click()
    for name, value in (("steps", "100"), ("stop_loss", "0.0")):  # slow enough to be watched
        page.fill(f"wb-option-{name}", value)
    page.click("wb-use-options")
    page.tab("Stream")
    page.fill("wb-stream-count", "20")
    page.click("wb-stream-start")
    seen: list[int] = []

    def longest() -> int:
        figure = page.figure(".wb-curve") or []
        return max((len(t["x"]) for t in figure), default=0)

    page.until(lambda: longest() > 1, "no curve")
    seen.append(longest())
    page.until(lambda: longest() > seen[0], "the curve does not grow")
    page.click("wb-stream-stop")
    page.until(lambda: "stopped by hand" in page.text("wb-stream-message"), "it does not stop")
    page.until(lambda: page.page.locator("button.wb-stream-start").is_enabled(), "still busy")
    held = int(page.text("wb-where").split("·")[1].split()[0])
    assert 1 < held < 20
    page.click("wb-stream-start")
    page.until(lambda: "20 facts written" in page.text("wb-stream-message"), "it does not go on")
    assert page.text("wb-where").endswith("20 edits") and longest() >= 20
    picture(page, "stream_tiny")
    file = page.save(lab.root)
    assert file.stat().st_size < 500_000
    shown = [o for c in nbformat.read(file, as_version=4).cells for o in c.get("outputs", [])]
    said = [o.data for o in shown if "EditBench" in o.get("data", {}).get("text/plain", "")]
    assert len(said) == 1 and WIDGET in said[0] and "<b>" in said[0]["text/html"]
    page.reload()
    page.tab("Stream")
    page.until(lambda: longest() >= 20, "after a reload the curve is as it was made, not as it is")


def test_editors_are_compared_and_a_fact_is_traced(bench: Any) -> None:
    page = bench("tiny")
    page.tab("Compare")
    page.click("wb-compare-run")
    table = page.until(lambda: page.text("wb-compare-table"), "no comparison")
    assert "ROME" in table and "FT" in table
    assert page.text("wb-where").endswith("unedited")
    picture(page, "compare_tiny")
    page.tab("Causal trace")
    page.click("wb-trace-run")
    page.until(lambda: page.figure(".wb-trace"), "no trace")
    page.click("wb-edit-here")
    page.until(lambda: "now writes layer" in page.text("wb-trace-message"), "no layer taken")
    picture(page, "trace_tiny")


def test_the_threshold_slider_moves_the_gate(bench: Any) -> None:
    page = bench("tiny")
    page.choose("wb-editor", "CoachHook")
    accept(page)
    page.tab("Hook layers")
    page.until(lambda: page.figure(".wb-gates"), "no gates")
    words = page.text("wb-hook-words")
    assert words.startswith("The edit is used at")
    opened = _shapes(page)
    handle = page.page.locator(".wb-alpha .noUi-handle").first
    handle.focus()
    for key in ("ArrowLeft", "ArrowLeft", "Home"):
        handle.press(key)
    page.until(lambda: _shapes(page) > opened, "the gate does not open further")
    assert page.text("wb-hook-words").startswith("With this threshold")
    picture(page, "hooks_tiny")


def test_the_memory_shows_which_entry_answers(bench: Any) -> None:
    page = bench("tiny")
    page.choose("wb-editor", "GRACE")
    accept(page)
    page.tab("Memory")
    page.fill("wb-lookup", "Klara Farnfeld works as a\nThe town of Klara Farnfeld is")
    page.click("wb-look-codebook")
    page.until(lambda: "The town of" in page.text("wb-codebook-table"), "not looked up")
    assert page.figure(".wb-codebook")
    picture(page, "memory_tiny")


def _shapes(page: LabPage) -> int:
    return int(page.page.evaluate(
        "() => document.querySelector('.wb-gates .js-plotly-plot').layout.shapes.length"
    ))  # fmt: skip


def test_saved_edits_are_loaded_in_a_new_kernel(bench: Any, tmp_path: Path) -> None:
    page = bench("tiny")
    accept(page)
    after = bars(page)["after"]
    page.tab("Files")
    page.fill("wb-file", str(tmp_path / "edits"))
    page.click("wb-save")
    page.until(lambda: "Saved" in page.text("wb-files-message"), "not saved")
    assert json.loads((tmp_path / "edits" / "stack.json").read_text())["edits"]
    other = bench("tiny")
    other.tab("Files")
    other.fill("wb-file", str(tmp_path / "edits"))
    other.click("wb-load")
    other.until(lambda: other.text("wb-where").endswith("1 edit"), "not loaded")
    other.until(lambda: "after" in bars(other), "no bars")
    assert bars(other)["after"] == pytest.approx(after)
