"""Targets of the unedited model, trained once for all that ask for the same.

A target vector depends on the model's state, the request, the contexts, the layer and the options
of its training, not on the editor that writes it. So NSE, which takes its targets from the unedited
weights, trains each once a view, and a study that puts editors or batch sizes side by side may let
all of them share (:func:`shared_targets`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from workbench.editors.locate.contexts import Contexts
from workbench.editors.locate.targets import TargetOptions, Targets, optimize_targets
from workbench.facts import EditRequest
from workbench.model import ModelView

__all__ = ["residual_targets", "rewound_targets", "shared_targets"]

#: Entries of ``view.cache``: the trained targets, and whether every editor may take them.
MEMORY, SHARED = "rewound", "targets are shared"


@contextmanager
def shared_targets(view: ModelView) -> Iterator[None]:
    """Within, editors share the targets they train on the view without edits.

    Equal options and an equal highest layer make an equal target; that it was trained in another
    batch shows in its last bits only. The seconds of an edit then lack what another one spent.

    Example:
        >>> with shared_targets(view):  # doctest: +SKIP
        ...     edits = [e.edit(view, cases) for e in editors]
    """
    view.cache[SHARED] = True
    try:
        yield
    finally:
        view.cache.pop(SHARED, None)


def residual_targets(
    view: ModelView,
    requests: Sequence[EditRequest],
    texts: Contexts,
    layer: int,
    options: TargetOptions,
) -> Targets:
    """Targets at the output of a block for the view as it is; remembered ones where they are."""
    if view.cache.get(SHARED) and not view.stack:
        return rewound_targets(view, requests, texts, layer, options)
    return optimize_targets(view, requests, texts, layer, options)


def rewound_targets(
    view: ModelView,
    requests: Sequence[EditRequest],
    texts: Contexts,
    layer: int,
    options: TargetOptions,
) -> Targets:
    """Targets for the unedited weights, each trained once a view."""
    memory = view.cache.setdefault(MEMORY, {})
    place = (layer, options, texts.templates)
    missing = [r for r in dict.fromkeys(requests) if (*place, r) not in memory]
    if missing:
        with view.pristine():
            found = optimize_targets(view, missing, texts, layer, options)
        for i, request in enumerate(missing):
            memory[(*place, request)] = _ends_only(found.only([i]))
    return _joined([memory[(*place, r)] for r in requests])


def _joined(parts: Sequence[Targets]) -> Targets:
    """Targets of single edits as those of a batch, renumbered in order."""
    return Targets(
        torch.cat([p.z for p in parts], dim=1),
        torch.cat([p.h0 for p in parts], dim=1),
        [n for p in parts for n in p.updates],
        [row | {"request": i} for i, p in enumerate(parts) for row in p.trace],
    )


def _ends_only(targets: Targets) -> Targets:
    """One edit's targets with the first and the last step of their trace."""
    ends = targets.trace[:1] + targets.trace[1:][-1:]
    return Targets(targets.z, targets.h0, targets.updates, ends)
