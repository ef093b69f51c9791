"""Locate-then-edit editors: find a key, find a target, write it in closed form."""

from workbench.editors.locate.alphaedit import AlphaEdit
from workbench.editors.locate.coachhook import CoachHook
from workbench.editors.locate.emmet import EMMET
from workbench.editors.locate.memit import MEMIT
from workbench.editors.locate.nse import NSE
from workbench.editors.locate.rome import ROME
from workbench.editors.locate.shrinking import prune

__all__ = ["EMMET", "MEMIT", "NSE", "ROME", "AlphaEdit", "CoachHook", "prune"]
