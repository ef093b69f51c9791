"""Showing a figure: one bundle that a notebook, a code-hosting site and a screen reader can use.

A bundle holds the finding in words, the live figure, and, in a headless run, a PNG still (a live
JupyterLab adds the still by itself). Nothing here displays anything: return the object from a cell.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from workbench.plots.theme import plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Shown", "alt_text", "bundle", "show", "still"]

MIMETYPE = "application/vnd.plotly.v1+json"
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
    """A PNG of the figure at its own size; None where kaleido or a Chromium is missing.

    The first picture of a process starts a browser (seconds), later ones take a quarter second.
    """
    if not has_browser():
        return None
    kaleido = _kaleido()
    if kaleido is None:
        return None
    options = {"format": "png", "scale": scale}
    png: bytes = kaleido.calc_fig_sync(plotly().Figure(fig), opts=options)
    return png


def has_browser() -> bool:
    """True if a Chromium or Chrome is on the path or named by ``BROWSER_PATH``."""
    named = os.environ.get("BROWSER_PATH")
    return bool(named and os.path.exists(named)) or any(map(shutil.which, _BROWSERS))


@functools.cache
def _kaleido() -> Any:
    """kaleido with its one browser started; it ends with the process."""
    import atexit

    try:
        import kaleido
    except ImportError:
        return None
    kaleido.start_sync_server(silence_warnings=True)
    atexit.register(kaleido.stop_sync_server, silence_warnings=True)
    return kaleido
