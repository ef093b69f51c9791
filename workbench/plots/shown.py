"""Showing a figure: one bundle that a notebook, a code-hosting site and a screen reader can use.

A bundle holds the finding in words, the live figure, and, in a headless run, a PNG still (a live
JupyterLab adds the still by itself). Nothing here displays anything: return the object from a cell.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import functools
import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from workbench.plots.theme import plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Shown", "alt_text", "bundle", "show", "still"]

MIMETYPE = "application/vnd.plotly.v1+json"
#: A browser that has not answered by then is given up.
PATIENCE_SECONDS = 60
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Shown:
    """What :func:`show` returns: displays as the figure, prints as its finding in words."""

    def __init__(self, figure: go.Figure) -> None:
        self.figure = figure

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return bundle(self.figure)

    def __repr__(self) -> str:
        return alt_text(self.figure)


def show(fig: go.Figure) -> Shown:
    """Wrap a figure for the last line of a notebook cell.

    Example:
        >>> show(plot_next_tokens(before, after))
    """
    return Shown(fig)


def alt_text(fig: go.Figure) -> str:
    """The finding in words: what the plot function wrote, else the figure's title."""
    meta = fig.layout.meta
    if isinstance(meta, dict) and meta.get("alt"):
        return str(meta["alt"])
    return str(fig.layout.title.text or "A figure without a description.")


def bundle(fig: go.Figure, *, interactive: bool = True) -> dict[str, Any]:
    """Mimetype → content of one output cell.

    Args:
        fig: any plotly figure.
        interactive: include the live figure.

    Returns:
        ``text/plain`` always; plotly's mimetype if interactive; ``image/png`` (base64) in headless
        runs where a Chromium is found.
    """
    out: dict[str, Any] = {"text/plain": alt_text(fig)}
    if interactive:
        out[MIMETYPE] = json.loads(fig.to_json())
    if headless():
        png = still(fig)
        if png is not None:
            out["image/png"] = base64.b64encode(png).decode()
    return out


def headless() -> bool:
    """True unless a live front end shows the output: ``WORKBENCH_HEADLESS`` or ``CI`` is set, or
    the kernel was not started by a Jupyter server."""
    if os.environ.get("WORKBENCH_HEADLESS") or os.environ.get("CI"):
        return True
    return "ipykernel" in sys.modules and "JPY_SESSION_NAME" not in os.environ


def still(fig: go.Figure, *, scale: float = 1.0) -> bytes | None:
    """A PNG of the figure at its own size; None where kaleido or a working Chromium is missing.

    The first picture of a process starts a browser (seconds), later ones take a quarter second.
    """
    camera = _camera() if has_browser() else None
    if camera is None:
        return None
    return camera.take(plotly().Figure(fig), {"format": "png", "scale": scale})


def has_browser() -> bool:
    """True if a Chromium or Chrome is on the path or named by ``BROWSER_PATH``."""
    named = os.environ.get("BROWSER_PATH")
    return bool(named and os.path.exists(named)) or any(map(shutil.which, _BROWSERS))


class _Camera:
    """kaleido's browser, started once, in a thread with a loop of its own.

    kaleido's own server waits forever if its browser does not start; here everything has a limit.
    """

    def __init__(self, kaleido: Any) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._kaleido = kaleido.Kaleido()
        self._do(self._kaleido.__aenter__())
        atexit.register(self.close)

    def take(self, fig: go.Figure, options: dict[str, Any]) -> bytes | None:
        """The picture, None if the browser does not answer in time."""
        try:
            png: bytes = self._do(self._kaleido.calc_fig(fig, opts=options))
        except TimeoutError:
            return None
        return png

    def close(self) -> None:
        """End the browser and the loop."""
        with contextlib.suppress(Exception):
            self._do(self._kaleido.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)


@functools.cache
def _camera() -> _Camera | None:
    """The camera of this process; None if it cannot be had, and then for good."""
    try:
        import kaleido

        return _Camera(kaleido)
    except (ImportError, TimeoutError, OSError, RuntimeError) as err:
        warnings.warn(f"no stills of figures: {type(err).__name__}: {err}", stacklevel=3)
        return None
