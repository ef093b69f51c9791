"""GRACE's study of radius and block: what is held, what follows, what is harmed (section 4.3).

For each block and each radius of a new ball the task's mistakes are mended in turn; then ERR, TRR
and the holdout wordings are judged. The paper has T5 on zsRE with 3,000 edits, blocks 0, 2, 4, 6 of
the encoder and radii 0.1, 0.5, 1, 3 (arXiv 2211.11031; spec memory-and-meta 1.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.editors.memory.grace import GRACE
from workbench.errors import OptionError
from workbench.experiment.foresight import Foresight
from workbench.experiment.lifetime import AHEAD, holdout_of, own_probe, wrong_by
from workbench.facts import EditCase, Probe
from workbench.metrics.judging import MEASURES, averages, judge
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.tasks import Task

__all__ = ["radius_study"]

#: Radii of the paper's study.
EPSILONS = (0.1, 0.5, 1.0, 3.0)


def radius_study(
    view: ModelView,
    task: Task,
    *,
    layers: Sequence[int],
    epsilons: Sequence[float] = EPSILONS,
    edits: int | None = None,
    ahead: int = AHEAD,
    **options: Any,
) -> pd.DataFrame:
    """Mend a task's mistakes once for every layer and radius.

    Args:
        view: the model, without edits; it is as before afterwards.
        task: see :mod:`workbench.tasks`; its cases' ``holdout`` probes are other wordings.
        layers: blocks.
        epsilons: radii of a new ball.
        edits: at most so many a run; None goes through all cases.
        ahead: cases whose edits are computed together, as in :func:`lifelong`.
        options: of the editor, on top of its preset.

    Returns:
        One row a layer and radius, and first one of the unedited model (``layer`` and ``epsilon``
        missing): ``layer, epsilon, edits, keys, edits_per_key, err, trr`` (mean over the sets),
        ``holdout`` in the task's main measure.

    Raises:
        OptionError: for a view with edits, or options out of range.

    Example:
        >>> task = wb.tasks.tiny_task(view, limit=60)  # doctest: +SKIP
        >>> wb.plot_radii(wb.radius_study(view, task, layers=(0, 1)))  # doctest: +SKIP
    """
    if view.stack:
        raise OptionError(f"the view holds {len(view.stack)} edits: view.reset() first.")
    view.check_layers(list(layers))
    rows = [{"layer": None, "epsilon": None, "edits": 0, "keys": 0, **_judged(view, task, [])}]
    with Bar("radii", len(layers) * len(epsilons)) as bar:
        for layer in layers:
            for epsilon in epsilons:
                editor = GRACE.preset(
                    view, **(options | {"layers": (layer,), "epsilon": float(epsilon)})
                )
                try:
                    rows.append(_run(view, editor, task, edits, ahead))
                finally:
                    view.reset()
                bar.step()
    return pd.DataFrame(rows)


def _run(
    view: ModelView, editor: GRACE, task: Task, edits: int | None, ahead: int
) -> dict[str, Any]:
    """Edit, judge; leaves the edits on the stack."""
    wrong = wrong_by(view, task.kind)
    foresee = Foresight(view, editor, task.cases, wrong, edits, ahead)
    held: list[EditCase] = []
    position = 0
    while position < len(task.cases) and (edits is None or len(held) < edits):
        found = foresee(position)
        for i, edit in found.items():
            if edit is not None:
                view.push(edit)
                held.append(task.cases[i])
        position += len(found)
    keys = int(view.stack[-1].report["size"]) if view.stack else 0
    row = {"layer": editor.layers[0], "epsilon": editor.epsilon, "edits": len(held), "keys": keys}
    row["edits_per_key"] = len(held) / keys if keys else float("nan")
    return row | _judged(view, task, held)


def _judged(view: ModelView, task: Task, held: Sequence[EditCase]) -> dict[str, float]:
    """ERR, TRR and holdout in the main measure; the unedited model's on the first cases."""
    asked = held or task.cases

    def mean(probes: Sequence[Probe]) -> float:
        table = judge(view, task.kind, probes)
        return averages(task.kind, table).get(MEASURES[task.kind][0], float("nan"))

    kept = [mean(probes) for probes in task.upstream.values()]
    return {
        "err": mean([own_probe(c) for c in asked]),
        "trr": sum(kept) / len(kept) if kept else float("nan"),
        "holdout": mean([p for c in asked for p in holdout_of(c)]),
    }
