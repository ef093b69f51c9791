"""Tables in, plotly figures out.

No function here computes with a model or shows anything; figures carry their finding in words in
``fig.layout.meta["alt"]``. Needs the extra ``lab`` (plotly), imported on first use.
"""

from __future__ import annotations

from workbench.plots.batches import plot_batch_sizes
from workbench.plots.causal import plot_causal, plot_causal_average
from workbench.plots.comparison import plot_comparison, plot_comparison_grid
from workbench.plots.effects import plot_receipt, plot_side_effects
from workbench.plots.fates import plot_survival_map
from workbench.plots.forensics import plot_model_comparison
from workbench.plots.forgetting import plot_forgetting, plot_moments
from workbench.plots.inside import (
    plot_alpha,
    plot_closures,
    plot_conflicts,
    plot_hooks,
    plot_neurons,
)
from workbench.plots.layers import plot_drift, plot_layer_sweep
from workbench.plots.lens import plot_lens
from workbench.plots.memory import plot_codebook, plot_codebook_map, plot_radii, plot_retention
from workbench.plots.moved import plot_promoted, plot_residual_shift
from workbench.plots.optimization import plot_closure, plot_target_trace
from workbench.plots.scores import plot_summary
from workbench.plots.shown import Shown, alt_text, bundle, show, still
from workbench.plots.theme import SIZES, template
from workbench.plots.tokens import plot_next_tokens
from workbench.plots.training import plot_gradients, plot_tradeoff, plot_training

__all__ = [
    "SIZES",
    "Shown",
    "alt_text",
    "bundle",
    "plot_alpha",
    "plot_batch_sizes",
    "plot_causal",
    "plot_causal_average",
    "plot_closures",
    "plot_codebook",
    "plot_codebook_map",
    "plot_conflicts",
    "plot_gradients",
    "plot_hooks",
    "plot_neurons",
    "plot_radii",
    "plot_retention",
    "plot_closure",
    "plot_comparison",
    "plot_comparison_grid",
    "plot_drift",
    "plot_forgetting",
    "plot_layer_sweep",
    "plot_lens",
    "plot_model_comparison",
    "plot_moments",
    "plot_next_tokens",
    "plot_receipt",
    "plot_side_effects",
    "plot_promoted",
    "plot_residual_shift",
    "plot_summary",
    "plot_survival_map",
    "plot_target_trace",
    "plot_tradeoff",
    "plot_training",
    "show",
    "still",
    "template",
]
