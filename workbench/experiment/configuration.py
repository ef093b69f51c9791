"""What decides a run's numbers: written into ``run.json``, compared on a second start."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from workbench.editors.base import Editor
from workbench.experiment.environment import environment
from workbench.experiment.running import Plan
from workbench.facts import EditCase
from workbench.model import ModelView

__all__ = ["config_of", "digest"]


def config_of(
    view: ModelView,
    editor: Editor,
    plan: Plan,
    kinds: list[str] | None,
    parents: list[str],
    seed: int,
) -> dict[str, Any]:
    """Everything that decides the numbers, and the environment they were made in."""
    size = min(plan.batch_size, len(plan.cases))
    batched = "batched" if plan.n_batches == 1 else "sequential-batched"
    return {
        "regime": "sequential" if size == 1 else batched,
        "editor": type(editor).__name__,
        "editor_config": editor.config(),
        "model": view.name,
        "fingerprint": view.fingerprint,
        "dtype": str(view.dtype),
        "case_ids": [c.case_id for c in plan.cases],
        "cases": digest(plan.cases),
        "batch_size": plan.batch_size,
        "evaluate_at": list(plan.marks.steps),
        "dense_every": plan.dense.every,
        "subset": [plan.cases[i].case_id for i in plan.subset],
        "kinds": kinds,
        "watch": {k: [s.every, list(s.steps)] for k, s in sorted(plan.watch.items())},
        "before": plan.before,
        "on_error": "skip" if plan.skip else "stop",
        "parents": parents,
        "seed": seed,
        "environment": environment(view),
    }


def digest(items: Any) -> str:
    def plain(x: Any) -> Any:
        if isinstance(x, EditCase):
            probes = [[p.prompt, p.target, p.foil, p.kind] for p in x.all_probes]
            return [x.case_id, x.request.as_dict(), probes]
        return [plain(v) for v in x] if isinstance(x, list | tuple) else x

    text = json.dumps(plain(list(items)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
