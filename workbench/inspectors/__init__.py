"""Inspectors return tables: what moved, where, by how much."""

from workbench.inspectors.causal import causal_average, causal_trace, edit_site
from workbench.inspectors.codebook import (
    codebook_history,
    codebook_map,
    codebook_table,
    nearest_entries,
)
from workbench.inspectors.drift import weight_drift
from workbench.inspectors.effects import side_effects
from workbench.inspectors.forensics import compare_models
from workbench.inspectors.gradients import gradient_table, training_curve
from workbench.inspectors.hooks import (
    alpha_history,
    check_entries,
    hook_gates,
    rethreshold,
    with_alpha,
)
from workbench.inspectors.keys import closures, key_conflicts, key_table
from workbench.inspectors.lens import lens_difference, logit_lens
from workbench.inspectors.moved import moved_neurons, promoted_tokens, residual_shift
from workbench.inspectors.neurons import neuron_counts, neuron_selections, neuron_table
from workbench.inspectors.prompts import subject_html, subject_tokens
from workbench.inspectors.retention import answer_spans, retention_curves
from workbench.inspectors.updates import weight_updates

__all__ = [
    "answer_spans",
    "codebook_history",
    "codebook_map",
    "codebook_table",
    "nearest_entries",
    "retention_curves",
    "alpha_history",
    "causal_average",
    "causal_trace",
    "check_entries",
    "closures",
    "compare_models",
    "edit_site",
    "gradient_table",
    "hook_gates",
    "key_conflicts",
    "key_table",
    "lens_difference",
    "logit_lens",
    "moved_neurons",
    "neuron_counts",
    "neuron_selections",
    "neuron_table",
    "side_effects",
    "subject_html",
    "subject_tokens",
    "training_curve",
    "promoted_tokens",
    "residual_shift",
    "weight_drift",
    "weight_updates",
    "rethreshold",
    "with_alpha",
]
