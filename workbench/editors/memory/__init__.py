"""Editors that keep a memory beside the model: GRACE and the baselines of its paper."""

from workbench.editors.memory.grace import GRACE
from workbench.editors.memory.network import Defer, MemoryNetwork

__all__ = ["GRACE", "Defer", "MemoryNetwork"]
