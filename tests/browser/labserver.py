"""JupyterLab on a free port with a home of its own, and a page of it in headless Chromium."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.places import cache_dir

ROOT = Path(__file__).resolve().parents[2]
#: No news, no updates, no autosave, and every cell in the page.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
#: A slow machine with other work is no failure.
PATIENCE = int(os.environ.get("WORKBENCH_PATIENCE", "180"))


class LabServer:
    """A server on a folder; :meth:`stop` ends it and its kernels."""

    def __init__(self, home: Path, root: Path) -> None:
        self.root = root
        self.token = secrets.token_hex(8)
        self.runtime = home / "runtime"
        self.port = _free_port()
        config = home / "config"
        labconfig = config / "labconfig"
        labconfig.mkdir(parents=True)
        (labconfig / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
        environment = os.environ | {
            "JUPYTER_CONFIG_DIR": str(config),
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
            "WORKBENCH_HOME": str(_caches(home / "workbench")),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        for name in ("CI", "WORKBENCH_HEADLESS"):  # the page is alive
            environment.pop(name, None)
        options = [
            "--no-browser", "--allow-root", f"--port={self.port}", "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={root}",
            "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True",
        ]  # fmt: skip
        self.log = home / "server.log"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options], env=environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait()

    def address(self, path: str) -> str:
        """One document, without side panels."""
        return f"http://127.0.0.1:{self.port}/doc/tree/{path}?token={self.token}&reset"

    def stop(self) -> None:
        """End the server with everything it started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        address = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(address, timeout=2)  # noqa: S310 - this machine
                return
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-2000:]}")


@dataclass
class LabPage:
    """A notebook in the browser.

    Attributes:
        page: Playwright's.
        outside: addresses of requests that left the machine.
        errors: uncaught errors of the page's scripts.
    """

    page: Any
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, address: str) -> LabPage:
        """Go there and wait for the kernel."""
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.goto(address, timeout=PATIENCE * 1000)
        return self._ready()

    def reload(self) -> LabPage:
        """Load the page again; the kernel goes on."""
        self.page.reload(timeout=PATIENCE * 1000)
        return self._ready()

    def save(self, root: Path) -> Path:
        """Save the notebook; its file."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        self.page.wait_for_timeout(1500)
        return root / self.page.url.split("/tree/")[1].split("?")[0]

    def _ready(self) -> LabPage:
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=PATIENCE * 1000)
        name = self.page.locator(".jp-Toolbar-kernelName")
        self.until(lambda: "Python 3" in name.inner_text(), "no kernel")
        self.idle()
        return self

    def run_all(self) -> None:
        """Run every cell and wait until the kernel is idle."""
        self.page.locator(".jp-Cell").first.click()
        self.page.keyboard.press("Escape")
        self.page.evaluate(_RUN_ALL)
        self.until(self._began, "the cells did not begin")
        self.idle()

    def idle(self) -> None:
        """Wait until no cell is running."""
        self.page.wait_for_selector(
            '.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=PATIENCE * 1000
        )

    def until(self, holds: Callable[[], Any], otherwise: str, seconds: float = PATIENCE) -> Any:
        """Wait for something to hold; its value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(Exception):
                value = holds()
                if value:
                    return value
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{otherwise} (within {seconds:.0f} s)")

    def click(self, name: str) -> None:
        """Press the button of a class, once it can be pressed."""
        button = self.page.locator(f"button.{name}")
        self.until(lambda: button.is_enabled(), f"{name} stays disabled")
        button.scroll_into_view_if_needed()
        button.click()

    def fill(self, name: str, text: str) -> None:
        """Type into the field of a class and leave it."""
        part = self.page.locator(f".{name} input, .{name} textarea").first
        part.fill(text)
        part.press("Tab")

    def choose(self, name: str, label: str) -> None:
        """Choose from the list of a class."""
        self.page.locator(f".{name} select").first.select_option(label)

    def tab(self, title: str) -> None:
        """Bring a tab of the bench to the front."""
        self.page.locator(".wb-tabs .lm-TabBar-tab", has_text=title).first.click()

    def text(self, name: str) -> str:
        """What stands in the parts of a class."""
        return str(self.page.locator(f".{name}").first.inner_text())

    def figure(self, inside: str) -> Any:
        """Data of the first figure inside a part: a list of traces with x and y."""
        return self.page.evaluate(_FIGURE, inside)

    def _began(self) -> bool:
        return any("*" in t or t.strip("[]: ").isdigit()
                   for t in self.page.locator(".jp-InputPrompt").all_inner_texts())  # fmt: skip

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")):
            self.outside.append(request.url)


#: The command behind the menu entry.
_RUN_ALL = """() => {
  const app = window.jupyterapp || window.jupyterlab;
  return app.commands.execute('notebook:run-all-cells');
}"""
_FIGURE = """(inside) => {
  const plots = [...document.querySelectorAll(inside + ' .js-plotly-plot')];
  const seen = plots.filter((p) => p.data && p.data.length && p.offsetParent !== null);
  if (!seen.length) return null;
  const list = (v) => v ? Array.from(v._inputArray || v) : [];
  return seen[0].data.map((t) => ({name: t.name, type: t.type, x: list(t.x), y: list(t.y)}));
}"""


def _caches(folder: Path) -> Path:
    """Models and statistics that are here already, and runs of its own: a stream that was recorded
    before would only be read."""
    folder.mkdir()
    for name in ("models", "stats"):
        cache_dir(name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache_dir(name), target_is_directory=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
