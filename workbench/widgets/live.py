"""Figures on the bench: static ones that come alive under the pointer, and the few that grow.

A plotly ``FigureWidget`` brings 5 MB of script and forgets what changed since it was made when the
page is reloaded or looked at twice; only figures that must change while they are looked at are
widgets, and :class:`LiveFigure` mends the forgetting. All others are plain outputs of some
kilobytes.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw
from plotly.graph_objects import FigureWidget

from workbench.plots.shown import MIMETYPE, alt_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["FigureArea", "LiveFigure"]


class FigureArea(ipw.Output):
    """A place for one static figure; the newest one replaces the one before.

    Attributes:
        figure: what is shown, None if nothing.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.figure: go.Figure | None = None

    def draw(self, fig: go.Figure | None) -> None:
        """Show a figure, or nothing."""
        self.figure = fig
        shown: tuple[Any, ...] = ()
        if fig is not None:
            data = {MIMETYPE: json.loads(fig.to_json()), "text/plain": alt_text(fig)}
            shown = ({"output_type": "display_data", "data": data, "metadata": {}},)
        self.outputs = shown


class LiveFigure(FigureWidget):  # type: ignore[misc]
    """A figure widget that shows its present state wherever it is opened."""

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        """The synchronized state; the whole of it is the figure as it is now."""
        if key is None and getattr(self, "comm", None) is not None:
            self._trait_values["_widget_data"] = deepcopy(self._data)
            self._trait_values["_widget_layout"] = deepcopy(self._layout)
        return super().get_state(key=key, drop_defaults=drop_defaults)

    def become(self, fig: go.Figure) -> None:
        """Show another figure; traces of the same kinds are changed in place."""
        old_ones: tuple[Any, ...] = self.data  # type: ignore[has-type]
        same = [t.type for t in old_ones] == [t.type for t in fig.data]
        with self.batch_update():
            if same:
                for old, new in zip(old_ones, fig.data, strict=True):
                    old.update(new.to_plotly_json(), overwrite=True)
            gone = {"shapes": (), "annotations": ()}  # an update alone would keep old ones
            self.layout.update(gone | fig.layout.to_plotly_json(), overwrite=True)
        if not same:
            self.data = ()
            self.add_traces(fig.data)
