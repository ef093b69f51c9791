"""Inspectors return tables: what moved, where, by how much."""

from workbench.inspectors.drift import weight_drift
from workbench.inspectors.effects import side_effects
from workbench.inspectors.hooks import alpha_history, check_entries, hook_gates, with_alpha
from workbench.inspectors.keys import closures, key_conflicts, key_table
from workbench.inspectors.neurons import neuron_counts, neuron_selections, neuron_table
from workbench.inspectors.prompts import subject_html, subject_tokens
from workbench.inspectors.updates import weight_updates

__all__ = [
    "alpha_history",
    "check_entries",
    "closures",
    "hook_gates",
    "key_conflicts",
    "key_table",
    "neuron_counts",
    "neuron_selections",
    "neuron_table",
    "side_effects",
    "subject_html",
    "subject_tokens",
    "weight_drift",
    "weight_updates",
    "with_alpha",
]
