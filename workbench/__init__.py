"""Workbench: change facts inside a transformer language model, and see what it cost.

    import workbench as wb

    view = wb.load("tiny")
    req = wb.EditRequest(prompt="The capital of {} is", subject="France", target_new="Rome")
    edit = wb.ROME.preset(view).edit(view, [req])
    view.push(edit)
    view.pop()

Names are imported on first use, so that ``workbench --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import datasets, errors, metrics, plots
    from workbench.comparison import Comparison, compare, compare_steps
    from workbench.editors import (
        EDITORS,
        EMMET,
        FT,
        FTL,
        FTW,
        MEMIT,
        NSE,
        ROME,
        AlphaEdit,
        CoachHook,
        Editor,
        prune,
    )
    from workbench.editors.explain import explain_options
    from workbench.edits import AdapterEdit, Delta, Edit, WeightEdit, load_edit
    from workbench.errors import WorkbenchError
    from workbench.experiment import (
        Alarm,
        StreamStep,
        moments,
        open_stack,
        save_stack,
        stream,
        stream_rows,
    )
    from workbench.export import export_peft
    from workbench.facts import EditCase, EditRequest, Probe
    from workbench.forgetting import inflection, retention, survival, survival_map
    from workbench.inputs import check_facts, parse_facts, read_facts
    from workbench.inspectors import (
        alpha_history,
        causal_average,
        causal_trace,
        closures,
        edit_site,
        hook_gates,
        key_conflicts,
        key_table,
        lens_difference,
        logit_lens,
        moved_neurons,
        neuron_counts,
        neuron_selections,
        neuron_table,
        promoted_tokens,
        residual_shift,
        side_effects,
        subject_html,
        subject_tokens,
        weight_drift,
        weight_updates,
        with_alpha,
    )
    from workbench.metrics import downstream, next_tokens, score, summary
    from workbench.model import ModelView
    from workbench.plots import (
        plot_alpha,
        plot_causal,
        plot_causal_average,
        plot_closure,
        plot_closures,
        plot_comparison,
        plot_comparison_grid,
        plot_conflicts,
        plot_drift,
        plot_forgetting,
        plot_hooks,
        plot_layer_sweep,
        plot_lens,
        plot_moments,
        plot_neurons,
        plot_next_tokens,
        plot_promoted,
        plot_receipt,
        plot_residual_shift,
        plot_side_effects,
        plot_summary,
        plot_survival_map,
        plot_target_trace,
    )
    from workbench.pretrained import load
    from workbench.progress import progress_to
    from workbench.receipts import Receipt, receipt
    from workbench.session import Session
    from workbench.stats import SecondMoment, second_moments
    from workbench.widgets import EditBench

__version__ = "0.1.0"

_ROOMS = {
    "explain_options": "editors.explain",
    "Session": "session",
    "EditBench": "widgets",
    "datasets": "",
    "errors": "",
    "metrics": "",
    "plots": "",
    "Comparison": "comparison",
    "compare": "comparison",
    "compare_steps": "comparison",
    "Delta": "edits",
    "Edit": "edits",
    "AdapterEdit": "edits",
    "WeightEdit": "edits",
    "load_edit": "edits",
    "EDITORS": "editors",
    "AlphaEdit": "editors",
    "CoachHook": "editors",
    "EMMET": "editors",
    "NSE": "editors",
    "prune": "editors",
    "FT": "editors",
    "FTL": "editors",
    "FTW": "editors",
    "MEMIT": "editors",
    "ROME": "editors",
    "Editor": "editors",
    "WorkbenchError": "errors",
    "Alarm": "experiment",
    "moments": "experiment",
    "open_stack": "experiment",
    "save_stack": "experiment",
    "StreamStep": "experiment",
    "stream": "experiment",
    "stream_rows": "experiment",
    "export_peft": "export",
    "EditCase": "facts",
    "EditRequest": "facts",
    "Probe": "facts",
    "check_facts": "inputs",
    "parse_facts": "inputs",
    "read_facts": "inputs",
    "alpha_history": "inspectors",
    "closures": "inspectors",
    "hook_gates": "inspectors",
    "key_conflicts": "inspectors",
    "key_table": "inspectors",
    "neuron_counts": "inspectors",
    "neuron_selections": "inspectors",
    "neuron_table": "inspectors",
    "side_effects": "inspectors",
    "subject_html": "inspectors",
    "subject_tokens": "inspectors",
    "causal_average": "inspectors",
    "causal_trace": "inspectors",
    "edit_site": "inspectors",
    "lens_difference": "inspectors",
    "logit_lens": "inspectors",
    "moved_neurons": "inspectors",
    "promoted_tokens": "inspectors",
    "residual_shift": "inspectors",
    "weight_drift": "inspectors",
    "weight_updates": "inspectors",
    "with_alpha": "inspectors",
    "downstream": "metrics",
    "next_tokens": "metrics",
    "score": "metrics",
    "summary": "metrics",
    "ModelView": "model",
    "plot_alpha": "plots",
    "plot_closures": "plots",
    "plot_conflicts": "plots",
    "plot_hooks": "plots",
    "plot_neurons": "plots",
    "plot_closure": "plots",
    "plot_drift": "plots",
    "plot_forgetting": "plots",
    "plot_layer_sweep": "plots",
    "plot_moments": "plots",
    "plot_comparison": "plots",
    "plot_comparison_grid": "plots",
    "plot_next_tokens": "plots",
    "plot_receipt": "plots",
    "plot_side_effects": "plots",
    "plot_summary": "plots",
    "plot_survival_map": "plots",
    "plot_target_trace": "plots",
    "plot_causal": "plots",
    "plot_causal_average": "plots",
    "plot_lens": "plots",
    "plot_promoted": "plots",
    "plot_residual_shift": "plots",
    "load": "pretrained",
    "progress_to": "progress",
    "Receipt": "receipts",
    "receipt": "receipts",
    "inflection": "forgetting",
    "retention": "forgetting",
    "survival": "forgetting",
    "survival_map": "forgetting",
    "SecondMoment": "stats",
    "second_moments": "stats",
}

__all__ = [
    "explain_options",
    "Session",
    "EditBench",
    "EDITORS",
    "AlphaEdit",
    "CoachHook",
    "EMMET",
    "NSE",
    "prune",
    "FT",
    "FTL",
    "FTW",
    "MEMIT",
    "ROME",
    "Alarm",
    "Delta",
    "Edit",
    "EditCase",
    "EditRequest",
    "Editor",
    "ModelView",
    "Probe",
    "SecondMoment",
    "AdapterEdit",
    "WeightEdit",
    "WorkbenchError",
    "datasets",
    "downstream",
    "errors",
    "export_peft",
    "inflection",
    "load",
    "load_edit",
    "metrics",
    "moments",
    "next_tokens",
    "plot_alpha",
    "plot_closures",
    "plot_conflicts",
    "plot_hooks",
    "plot_neurons",
    "open_stack",
    "save_stack",
    "plot_closure",
    "plot_drift",
    "plot_forgetting",
    "plot_layer_sweep",
    "plot_moments",
    "plot_next_tokens",
    "plot_summary",
    "plot_survival_map",
    "plot_target_trace",
    "plots",
    "progress_to",
    "retention",
    "score",
    "second_moments",
    "StreamStep",
    "stream",
    "stream_rows",
    "summary",
    "alpha_history",
    "closures",
    "hook_gates",
    "key_conflicts",
    "key_table",
    "neuron_counts",
    "neuron_selections",
    "neuron_table",
    "survival",
    "survival_map",
    "weight_drift",
    "Comparison",
    "Receipt",
    "check_facts",
    "compare",
    "compare_steps",
    "parse_facts",
    "plot_comparison",
    "plot_comparison_grid",
    "plot_receipt",
    "plot_side_effects",
    "read_facts",
    "receipt",
    "side_effects",
    "subject_html",
    "subject_tokens",
    "weight_updates",
    "with_alpha",
    "causal_average",
    "causal_trace",
    "edit_site",
    "lens_difference",
    "logit_lens",
    "moved_neurons",
    "promoted_tokens",
    "residual_shift",
    "plot_causal",
    "plot_causal_average",
    "plot_lens",
    "plot_promoted",
    "plot_residual_shift",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    room = _ROOMS[name]
    module = importlib.import_module(f"workbench.{room or name}")
    value = getattr(module, name) if room else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
