"""Whether a patch is whole, fits a model, and still does what it was made for: a table of findings.

Nothing raises but a wrong call: a damaged file is a finding like any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.edits import AdapterEdit, Edit
from workbench.errors import WorkbenchError
from workbench.facts import EditCase
from workbench.inspectors import check_entries
from workbench.metrics import score
from workbench.model import ModelView
from workbench.patches import Patch, count, load_patch, model_line, outcome_of, patch_conflicts
from workbench.weights import lineage

__all__ = ["verify_patch"]

COLUMNS = ("check", "ok", "finding")
Finding = tuple[str, bool | None, str]


def verify_patch(
    patch: str | os.PathLike[str] | Patch, view: ModelView | None = None
) -> pd.DataFrame:
    """Check a patch, alone or against the model it shall be applied to; the view is as before.

    Args:
        patch: the path of a file or folder, or a patch that was read.
        view: the model; its stack is left aside, the patch is tried on the unedited weights.

    Returns:
        One row a check: ``check, ok, finding``. Alone: ``file`` (header, manifest, sizes, every
        checksum and id), ``numbers`` (finite), ``lineage`` (each edit stands on those it was
        computed on), ``conflicts``. With a view: ``base``, ``shapes``, ``bits`` (the weights are
        those that the patch left where it was saved; None where it does not say, or was saved in
        another dtype), ``holds`` (own prompts, teacher-forced) and ``gates`` (of hook layers and
        memories). ``ok`` is True, False, or None for what can be said but is no failure.
        ``attrs["ok"]``: nothing failed.

    Example:
        >>> wb.verify_patch("capitals.safetensors", view)  # doctest: +SKIP
    """
    rows = list(_findings(patch, view))
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    table.attrs["ok"] = not any(ok is False for _, ok, _ in rows)
    return table


def _findings(patch: str | os.PathLike[str] | Patch, view: ModelView | None) -> Iterator[Finding]:
    try:
        found = patch if isinstance(patch, Patch) else load_patch(patch)
    except WorkbenchError as err:
        yield "file", False, str(err)
        return
    n = sum(len(e.pieces) for e in found.edits)
    yield (
        "file",
        True,
        f"{count(len(found.edits), 'edit')} with {count(n, 'change')}; checksums and ids fit",
    )
    bad = [i for i, e in enumerate(found.edits) if not e.is_finite()]
    yield "numbers", not bad, f"NaN or Inf in entries {bad}" if bad else "all finite"
    yield _lineage(found.edits)
    conflicts = patch_conflicts(found)
    said = ", ".join(f"{k}: {n}" for k, n in conflicts["kind"].value_counts().items())
    yield "conflicts", None if said else True, said or "none between entries"
    if view is not None:
        yield from _against(found, view)


def _lineage(edits: Sequence[Edit]) -> Finding:
    lost = [i for i, e in enumerate(edits) if tuple(e.parents) != lineage(edits[:i])]
    if not lost:
        return "lineage", True, "each edit stands on those it was computed on"
    said = f"entries {_few(lost)} were computed on another stack: their effect may differ"
    return "lineage", None, said


def _against(patch: Patch, view: ModelView) -> Iterator[Finding]:
    if patch.base != view.fingerprint:
        yield (
            "base", False,
            f"made for {model_line(patch.model)}; this is {view.name} ({view.fingerprint})",
        )  # fmt: skip
        return
    yield "base", True, model_line(patch.model)
    try:
        with view.as_if(*patch.edits):
            outcome = outcome_of(view)
            yield "shapes", True, "every change fits its parameter"
            yield _bits(patch.outcome, outcome)
            yield from _effects(view, patch.edits)
    except WorkbenchError as err:
        yield "shapes", False, str(err)


def _bits(saved: Mapping[str, Any], found: Mapping[str, Any]) -> Finding:
    if not saved:
        return "bits", None, "the file does not say what the weights should be"
    if saved["dtype"] != found["dtype"]:
        return "bits", None, f"saved in {saved['dtype']}, this model is {found['dtype']}"
    names = list(saved["parameters"])
    other = [n for n in names if saved["parameters"][n] != found["parameters"].get(n)]
    if not other:
        return "bits", True, f"{len(names)} parameters are as they were when it was saved"
    where = f"saved on {saved['device']}, this is {found['device']}"
    return "bits", None, f"{len(other)} of {len(names)} parameters differ in last bits ({where})"


def _effects(view: ModelView, edits: Sequence[Edit]) -> Iterator[Finding]:
    facts = [(i, r) for i, e in enumerate(edits) for r in e.requests]
    if facts:
        cases = [EditCase(request=r, case_id=n) for n, (_, r) in enumerate(facts)]
        own = score(view, cases).query("kind == 'efficacy'").set_index("case_id")["success"]
        lost = sorted({i for n, (i, _) in enumerate(facts) if not bool(own[n])})
        held = int(own.astype(bool).sum())
        said = f"{held} of {len(facts)} own prompts are answered as written"
        yield "holds", held == len(facts), said + (f"; not in entries {_few(lost)}" if lost else "")
    if any(isinstance(e, AdapterEdit) for e in edits):
        table = check_entries(view)
        shut = table[~table["open"].astype(bool)] if len(table) else table
        said = f"{len(table) - len(shut)} of {len(table)} open on their own prompts"
        yield "gates", len(shut) == 0, said


def _few(entries: Sequence[int]) -> str:
    shown = ", ".join(map(str, entries[:8]))
    return f"{shown} and {len(entries) - 8} more" if len(entries) > 8 else shown
