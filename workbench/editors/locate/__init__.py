"""Locate-then-edit editors: find a key, find a target, write it in closed form."""

from workbench.editors.locate.emmet import EMMET
from workbench.editors.locate.memit import MEMIT
from workbench.editors.locate.rome import ROME

__all__ = ["EMMET", "MEMIT", "ROME"]
