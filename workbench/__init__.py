"""Workbench: change facts inside a transformer language model, and see what it cost.

    import workbench as wb

    view = wb.load("tiny")
    req = wb.EditRequest(prompt="The capital of {} is", subject="France", target_new="Rome")
    edit = wb.ROME.preset(view).edit(view, [req])
    view.push(edit)
    view.pop()
"""

from __future__ import annotations

from workbench import datasets, errors, metrics, plots
from workbench.edits import Delta, Edit, WeightEdit, load_edit
from workbench.editors import EDITORS, EMMET, FT, FTL, FTW, MEMIT, ROME, Editor
from workbench.errors import WorkbenchError
from workbench.facts import EditCase, EditRequest, Probe
from workbench.inspectors import weight_drift
from workbench.metrics import next_tokens, score, summary
from workbench.model import ModelView
from workbench.plots import (
    plot_closure,
    plot_drift,
    plot_layer_sweep,
    plot_next_tokens,
    plot_summary,
    plot_target_trace,
)
from workbench.pretrained import load
from workbench.progress import progress_to
from workbench.stats import SecondMoment, second_moments

__version__ = "0.1.0"

__all__ = [
    "EDITORS",
    "EMMET",
    "FT",
    "FTL",
    "FTW",
    "MEMIT",
    "ROME",
    "Delta",
    "Edit",
    "EditCase",
    "EditRequest",
    "Editor",
    "ModelView",
    "Probe",
    "SecondMoment",
    "WeightEdit",
    "WorkbenchError",
    "datasets",
    "errors",
    "load",
    "load_edit",
    "metrics",
    "next_tokens",
    "plot_closure",
    "plot_drift",
    "plot_layer_sweep",
    "plot_next_tokens",
    "plot_summary",
    "plot_target_trace",
    "plots",
    "progress_to",
    "score",
    "second_moments",
    "summary",
    "weight_drift",
]
