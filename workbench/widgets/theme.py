"""Follow the page: light or dark, as JupyterLab is."""

from __future__ import annotations

import anywidget
import traitlets

__all__ = ["ThemeProbe"]


class ThemeProbe(anywidget.AnyWidget):  # type: ignore[misc]
    """Reads the page's theme and tells when it changes; shows nothing."""

    _esm = """
    function render({model}) {
      const body = document.body;
      const read = () => {
        const light = body.dataset.jpThemeLight;
        const dark = light === undefined
          ? window.matchMedia("(prefers-color-scheme: dark)").matches
          : light === "false";
        model.set("theme", dark ? "dark" : "light");
        model.save_changes();
      };
      const watcher = new MutationObserver(read);
      watcher.observe(body, {attributes: true, attributeFilter: ["data-jp-theme-light"]});
      read();
      return () => watcher.disconnect();
    }
    export default {render};
    """
    theme = traitlets.Unicode("light").tag(sync=True)
