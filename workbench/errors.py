"""Every error that Workbench raises on purpose: one tree, rooted in :class:`WorkbenchError`.

An error names the argument, the value, the rule and the next step. Where Python has a fitting
built-in (``ValueError``, ``KeyError``-like lookups), the class also derives from it, so that code
which catches the built-in keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BusyError",
    "DataError",
    "EditMismatchError",
    "FetchError",
    "NumericalError",
    "OptionError",
    "RequestError",
    "StatisticsError",
    "StorageError",
    "UnsupportedEditorError",
    "UnsupportedModelError",
    "WorkbenchError",
    "did_you_mean",
]


class WorkbenchError(Exception):
    """Root of all errors raised on purpose; catching it catches every one below."""


class RequestError(WorkbenchError, ValueError):
    """An edit request, probe or case is malformed (no ``{}``, empty target, prompt too long)."""


class OptionError(WorkbenchError, ValueError):
    """An option, editor, model or preset name is unknown or its value is out of range."""


class UnsupportedModelError(WorkbenchError):
    """The model cannot be viewed: unknown family, mixture of experts, quantised, offloaded."""


class UnsupportedEditorError(WorkbenchError):
    """This editor cannot edit this model; the message says which capability is missing."""


class StatisticsError(WorkbenchError):
    """Key statistics are missing, of another model, or from too few tokens."""


class NumericalError(WorkbenchError, ArithmeticError):
    """NaN or Inf appeared, or a system of constraints is infeasible; nothing was changed."""


class EditMismatchError(WorkbenchError):
    """An edit does not belong to this model: another base, other shapes, parameters changed."""


class BusyError(WorkbenchError):
    """Another writer holds the model; the message says what it is doing."""


class DataError(WorkbenchError):
    """A data set, cache, edit or model file is corrupted, truncated or of an unknown schema."""


class FetchError(WorkbenchError):
    """Something had to be fetched and could not be; the message names the offline way."""


class StorageError(WorkbenchError, OSError):
    """Writing failed (disk full, no permission); the previous file, if any, is intact."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'layers'?"`` for a near miss, else the list of known names.

    Args:
        word: what the caller wrote.
        known: the names that would have been accepted.
    """
    names = sorted(known)
    lowered = {n.lower(): n for n in names}
    close = difflib.get_close_matches(str(word).lower(), list(lowered), n=1, cutoff=0.6)
    if close:
        return f" Did you mean {lowered[close[0]]!r}?"
    return f" Known: {', '.join(names)}."
