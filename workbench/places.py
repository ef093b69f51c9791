"""Where things lie: shipped data, and caches under ``WORKBENCH_HOME`` (design 9.10)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_dir", "home", "shipped"]

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parent


def in_checkout() -> bool:
    """True if the package runs from its repository."""
    return (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "data").is_dir()


def shipped(name: str) -> Path:
    """Folder of shipped data (``tiny``, ``facts``, ``results``): in the package or the checkout."""
    installed = _PACKAGE / "data" / name
    return installed if installed.exists() else _CHECKOUT / "data" / name


def home() -> Path:
    """Root of all caches: ``$WORKBENCH_HOME``, else ``data/`` in a checkout, else the user's."""
    chosen = os.environ.get("WORKBENCH_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if in_checkout():
        return _CHECKOUT / "data"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "workbench"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(base) / "workbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def cache_dir(name: str) -> Path:
    """A cache folder: ``models``, ``stats`` or ``runs``; made on first write, not here."""
    return home() / name
