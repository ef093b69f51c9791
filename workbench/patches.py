"""Patches: edits of one base model in one file, to be shown, picked, merged and applied elsewhere.

A file of one edit, a file of a whole stack, a saved folder and a run are all read the same way. The
format is described in :mod:`workbench.editfiles`; what a patch says can be read without a model.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.atomic import write_atomically
from workbench.conflicts import OVERLAP, find_conflicts
from workbench.editfiles import open_contents
from workbench.edits import Edit, WeightEdit, edits_in, pack_edits
from workbench.errors import DataError, EditMismatchError, OptionError
from workbench.model import ModelView
from workbench.stackfiles import sources_of
from workbench.tensorfiles import checksum, steadily
from workbench.weights import lineage

__all__ = [
    "Patch",
    "apply_patch",
    "load_patch",
    "conflict_line",
    "count",
    "merge_patches",
    "model_line",
    "outcome_of",
    "patch_conflicts",
    "push_all",
    "save_patch",
    "show_patch",
]

Pathlike = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Patch:
    """Edits of one base model, oldest first.

    Attributes:
        edits: of the patch.
        model: ``name``, ``revision`` and ``fingerprint`` of the base.
        outcome: ``dtype``, ``device`` and ``parameters`` (name → SHA-256 of what the edits leave
            behind, applied alone); empty where nobody knows.
        source: where it was read, for messages.
    """

    edits: tuple[Edit, ...]
    model: Mapping[str, Any]
    outcome: Mapping[str, Any] = field(default_factory=dict)
    source: str = "the patch"

    @property
    def base(self) -> str:
        """Fingerprint of the model it belongs to."""
        return str(self.model["fingerprint"])

    def pick(self, entries: Iterable[int]) -> Patch:
        """The patch of some entries, in the order given: cherry-pick and reorder in one.

        Raises:
            OptionError: for an entry that is not there or named twice, or none at all.
        """
        wanted = list(entries)
        bad = [i for i in wanted if not 0 <= i < len(self.edits)]
        if bad or not wanted or len(set(wanted)) != len(wanted):
            raise OptionError(
                f"entries {wanted}: name each at most once, from 0 to {len(self.edits) - 1}, and "
                "at least one."
            )
        same = wanted == list(range(len(self.edits)))
        edits = tuple(self.edits[i] for i in wanted)
        return replace(self, edits=edits, outcome=self.outcome if same else {})

    def drop(self, *entries: int) -> Patch:
        """The patch without some entries; later ones stay as they were computed.

        Raises:
            OptionError: as :meth:`pick`.
        """
        self.pick(entries)
        return self.pick(i for i in range(len(self.edits)) if i not in entries)

    def save(self, path: Pathlike) -> Path:
        """Write one safetensors file, atomically.

        Raises:
            StorageError: as :meth:`workbench.Edit.save`.
        """
        more = {"outcome": dict(self.outcome)} if self.outcome else {}
        return write_atomically(
            Path(path).expanduser(), pack_edits(self.edits, model=dict(self.model), **more)
        )

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(e.editor for e in self.edits))
        facts = sum(len(e.requests) for e in self.edits)
        kib = sum(e.nbytes for e in self.edits) / 1024
        return (
            f"<Patch of {count(len(self.edits), 'edit')} ({names}), {count(facts, 'fact')}, "
            f"{kib:.0f} KiB, for "
            f"{model_line(self.model)}>"
        )


def load_patch(path: Pathlike) -> Patch:
    """Read a file of one or several edits, a folder of :func:`save_stack`, or a run.

    Raises:
        DataError: if it is missing, damaged or of another format, or its edits have two bases.

    Example:
        >>> wb.load_patch("capitals.safetensors").edits  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    found = [steadily(file, partial(_read, file)) for file in sources_of(path)]
    edits = tuple(e for _, held in found for e in held)
    if not edits:
        raise DataError(f"{path} holds no edit.")
    first = found[0][0]
    model = first["model"]
    if {e.base for e in edits} != {model.get("fingerprint")}:
        raise DataError(f"{path} holds edits of several base models: they cannot stand together.")
    outcome = first.get("outcome", {}) if len(found) == 1 else {}
    return Patch(edits, model, outcome, str(path))


def _read(file: Path) -> tuple[Mapping[str, Any], tuple[Edit, ...]]:
    """Manifest and edits of one file."""
    contents = open_contents(file)
    return contents.manifest, edits_in(contents)


def save_patch(what: ModelView | Patch | Edit | Sequence[Edit], path: Pathlike) -> Path:
    """Write edits into one file, with a manifest that says what they are and belong to.

    Args:
        what: a view, whose stack is saved; a patch; an edit; or several, oldest first.
        path: of the file, by custom ``NAME.safetensors``.

    Raises:
        OptionError: if there is no edit.
        EditMismatchError: for edits of several base models.
        StorageError: if it cannot be written; an older file is left as it was.

    Example:
        >>> wb.save_patch(view, "capitals.safetensors")  # doctest: +SKIP
    """
    if isinstance(what, ModelView):
        model = {"name": what.name, "revision": what.revision, "fingerprint": what.fingerprint}
        if not what.stack:
            raise OptionError("the stack is empty: there is no edit to save.")
        return Patch(what.stack, model, outcome_of(what)).save(path)
    return as_patch(what).save(path)


def show_patch(path: Pathlike) -> pd.DataFrame:
    """What a patch says of itself: read from its manifest, without a model and without its tensors.

    Returns:
        One row an edit: ``entry, editor, prompt, target`` (of the first fact), ``facts,
        parameters`` (changed, or adapted), ``form`` (how changes are stored, or kinds of adapters),
        ``seed, parents`` (edits it was computed on), ``id``. ``attrs``: ``model, versions, format,
        file_bytes, manifests`` (of every file, whole).

    Raises:
        DataError: as :func:`load_patch`; checksums of tensors are not looked at.

    Example:
        >>> wb.show_patch("capitals.safetensors")  # doctest: +SKIP
    """
    files = sources_of(Path(path).expanduser())
    manifests = [dict(open_contents(file).manifest) for file in files]
    entries = [entry for m in manifests for entry in m["edits"]]
    table = pd.DataFrame([_shown(i, entry) for i, entry in enumerate(entries)])
    table.attrs = {
        "model": dict(manifests[0]["model"]),
        "versions": manifests[0].get("versions") or _old_versions(entries[0]),
        "format": manifests[0]["format"],
        "file_bytes": sum(file.stat().st_size for file in files),
        "manifests": manifests,
    }
    return table


def apply_patch(
    patch: Pathlike | Patch | Edit | Sequence[Edit], view: ModelView
) -> tuple[Edit, ...]:
    """Put the edits of a patch on a view's stack: all of them, or none.

    Args:
        patch: a patch, edits, or the path of either.
        view: the model they were made for.

    Returns:
        Those that were added; an edit that stood there already is not stacked again.

    Raises:
        EditMismatchError: for another base model, with both fingerprints, or other shapes.
        NumericalError: for NaN or Inf.

    Example:
        >>> wb.apply_patch("capitals.safetensors", view)  # doctest: +SKIP
    """
    patch = as_patch(patch)
    if patch.base != view.fingerprint:
        raise EditMismatchError(
            f"{patch.source} was made for {model_line(patch.model)}, and this is {view.name} "
            f"(fingerprint {view.fingerprint}): load the model it was made for."
        )
    return push_all(view, patch.edits)


def push_all(view: ModelView, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Push edits one after the other; if one is refused, the view is as before.

    Several edits that were computed on other stacks are warned of in one sentence.

    Returns:
        Those that were added.
    """
    with view.writing("apply a patch"):
        depth, strangers = len(view.stack), 0
        held = {e.id for e in view.stack}
        try:
            for edit in edits:
                if edit.id not in held or len(edits) == 1:
                    strangers += tuple(edit.parents) != lineage(view.stack)
                    view.push(edit, warn=len(edits) == 1)
                    held.add(edit.id)
        except BaseException:
            while len(view.stack) > depth:
                view.pop()
            raise
        if strangers and len(edits) > 1:
            warnings.warn(
                f"{strangers} of {len(edits)} edits were computed on another stack than the one "
                "they now stand on: their effect may differ. view.replay computes edits again.",
                stacklevel=3,
            )
        return view.stack[depth:]


def merge_patches(
    patches: Iterable[Pathlike | Patch | Edit | Sequence[Edit]],
    *,
    keep: Sequence[int] | None = None,
    drop: Sequence[int] = (),
    overlap: float = OVERLAP,
) -> Patch:
    """Several patches of one base model as one stack, the first one's edits lowest.

    An edit that several of them hold is taken once. A warning counts what
    :func:`patch_conflicts` finds between them.

    Args:
        patches: paths, patches or edits.
        keep: entries of the merged stack to take, in this order; None takes all.
        drop: entries of the merged stack to leave out.
        overlap: as in :func:`patch_conflicts`.

    Raises:
        EditMismatchError: for patches of several base models.
        OptionError: for entries that are not there; ``keep`` and ``drop`` together.

    Example:
        >>> wb.merge_patches(["mine.safetensors", "yours.safetensors"], drop=[2])  # doctest: +SKIP
    """
    parts = [as_patch(p) for p in patches]
    if not parts:
        raise OptionError("there is nothing to merge: give at least one patch.")
    if keep is not None and drop:
        raise OptionError("give keep or drop, not both: entries count from the merged stack.")
    for part in parts[1:]:
        _same_base(parts[0], part)
    owner = {e.id: i for i, p in reversed(list(enumerate(parts))) for e in p.edits}
    edits = {e.id: e for p in parts for e in p.edits}
    merged = replace(parts[0], edits=tuple(edits.values()), source="the merged patch")
    merged = merged.pick(keep) if keep is not None else merged.drop(*drop) if drop else merged
    if merged.edits != parts[0].edits:
        merged = replace(merged, outcome={})
    origin = [owner[e.id] for e in merged.edits]
    found = find_conflicts(merged.edits, origin=origin, overlap=overlap)
    if len(found):
        warnings.warn(conflict_line(found), stacklevel=2)
    return merged


def patch_conflicts(
    patch: Pathlike | Patch | Edit | Sequence[Edit], *, overlap: float = OVERLAP
) -> pd.DataFrame:
    """Pairs of a patch's edits that may undo, double or disturb each other.

    Args:
        patch: a patch, edits, or the path of either.
        overlap: least share of one edit's change that reaches another's key.

    Returns:
        The table of :func:`workbench.conflicts.find_conflicts`: ``kind, a, b, parameter, overlap,
        prompt_a, target_a, prompt_b, target_b``.

    Example:
        >>> wb.patch_conflicts("capitals.safetensors")  # doctest: +SKIP
    """
    return find_conflicts(as_patch(patch).edits, overlap=overlap)


def as_patch(what: Pathlike | Patch | Edit | Sequence[Edit]) -> Patch:
    """A patch of whatever holds edits.

    Raises:
        OptionError: if it holds none.
    """
    if isinstance(what, Patch):
        return what
    if isinstance(what, str | os.PathLike):
        return load_patch(what)
    edits = (what,) if isinstance(what, Edit) else tuple(what)
    if not edits or not all(isinstance(e, Edit) for e in edits):
        raise OptionError("a patch is made of edits: give at least one, or the path of a file.")
    first = edits[0]
    about = {n: first.meta.get(k) for n, k in (("name", "model"), ("revision", "revision"))}
    parts = [Patch((e,), about | {"fingerprint": e.base}, source=f"edit {e.id}") for e in edits]
    for part in parts[1:]:
        _same_base(parts[0], part)
    return replace(
        parts[0], edits=edits, source="the patch" if len(edits) > 1 else f"edit {first.id}"
    )


def outcome_of(view: ModelView) -> dict[str, Any]:
    """What the stack leaves in the weights: ``dtype, device, parameters`` (name → SHA-256)."""
    names = [n for e in view.stack if isinstance(e, WeightEdit) for n in e.parameters]
    parameters = dict(view.model.named_parameters(remove_duplicate=False))
    return {
        "dtype": str(view.dtype).removeprefix("torch."),
        "device": view.device.type,
        "parameters": {n: checksum(parameters[n]) for n in dict.fromkeys(names)},
    }


def count(n: int, what: str) -> str:
    """``1 edit``, ``2 edits``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def model_line(model: Mapping[str, Any]) -> str:
    """A base model in words."""
    revision = f"revision {model['revision']}, " if model.get("revision") else ""
    return f"{model.get('name') or 'a model'} ({revision}fingerprint {model['fingerprint']})"


def conflict_line(found: pd.DataFrame) -> str:
    """Conflicts in a sentence."""
    counts = ", ".join(
        f"{n} × {kind}" for kind, n in found["kind"].value_counts(sort=False).items()
    )
    worst = found.iloc[0]
    return (
        f"the patches are in conflict ({counts}); first: entry {worst['a']} "
        f"({worst['prompt_a']} → {worst['target_a']}) and entry {worst['b']} "
        f"({worst['prompt_b']} → {worst['target_b']}), {worst['kind']}. patch_conflicts lists "
        "them; of two edits in conflict the later one weighs more."
    )


def _shown(i: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    first = entry["requests"][0] if entry["requests"] else {}
    pieces = [(p[0], p[1]) for p in (*entry["deltas"], *entry.get("adapters", ()))]
    text = str(first.get("prompt", ""))
    return {
        "entry": i,
        "editor": entry["editor"],
        "prompt": text.replace("{}", first["subject"], 1) if "subject" in first else text,
        "target": first.get("target_new", ""),
        "facts": len(entry["requests"]),
        "parameters": ", ".join(dict.fromkeys(name for name, _ in pieces)),
        "form": ", ".join(dict.fromkeys(form for _, form in pieces)),
        "seed": entry["config"].get("seed"),
        "parents": len(entry["parents"]),
        "id": entry.get("id", ""),
    }


def _old_versions(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = ("torch", "transformers", "workbench-editing")
    return {n: entry["meta"][n] for n in names if n in entry["meta"]}


def _same_base(a: Patch, b: Patch) -> None:
    if a.base != b.base:
        raise EditMismatchError(
            f"{a.source} was made for {model_line(a.model)} and {b.source} for "
            f"{model_line(b.model)}: edits of two base models cannot stand on one stack."
        )
