"""The bench: controls and figures around a session. Needs the extra ``lab``."""

from __future__ import annotations

from workbench.errors import WorkbenchError

try:
    import anywidget  # noqa: F401
    import ipywidgets  # noqa: F401
    import plotly  # noqa: F401
except ImportError as err:
    raise WorkbenchError(
        f"the bench needs {err.name}, which is not installed: pip install "
        "'workbench-editing[lab]'. Everything it does can be done without it: wb.Session."
    ) from err

from workbench.widgets.bench import EditBench

__all__ = ["EditBench"]
