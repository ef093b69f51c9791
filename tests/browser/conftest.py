"""One JupyterLab and one Chromium for all browser tests, a fresh page for each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import require_chromium
from labserver import ROOT, LabPage, LabServer

#: The server keeps the theme for the next page.
THEME = "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A server on copies of the notebooks."""
    pytest.importorskip("jupyterlab")
    require_chromium()
    home, root = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("work")
    for folder in ("notebooks", "tutorials"):
        shutil.copytree(ROOT / folder, root / folder)
    server = LabServer(home, root)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=require_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(
    lab: LabServer, chromium: Any, tmp_path: Path
) -> Iterator[Callable[..., LabPage]]:
    """Opens a notebook of the server's folder; at the end nothing may have left the machine."""
    pages: list[LabPage] = []
    contexts = []

    def open_(path: str, *, dark: bool = False) -> LabPage:
        context = chromium.new_context(viewport={"width": 1200, "height": 1100})
        contexts.append(context)
        page = LabPage(context.new_page()).open(lab.address(path))
        page.page.evaluate(THEME, "JupyterLab Dark" if dark else "JupyterLab Light")
        pages.append(page)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not [x for p in pages for x in p.outside], "requests left the machine"
    assert not [x for p in pages for x in p.errors]
