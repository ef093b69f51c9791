"""How good an edit is, and what it did to everything else.

before = wb.metrics.reference(view, cases)
view.push(edit)
scores = wb.score(view, cases, reference=before)
wb.summary(scores)
"""

from workbench.metrics.downstream import downstream, downstream_items, downstream_summary
from workbench.metrics.generation import generate_text, next_tokens
from workbench.metrics.judging import MEASURES, judge
from workbench.metrics.language import (
    consistency,
    fluency,
    ngram_entropy,
    perplexity,
    text_likelihoods,
)
from workbench.metrics.references import Reference
from workbench.metrics.scoring import PROTOCOLS, reference, score
from workbench.metrics.summaries import harmonic_mean, median_kl, summary
from workbench.metrics.writing import free_writing

__all__ = [
    "MEASURES",
    "PROTOCOLS",
    "Reference",
    "consistency",
    "downstream",
    "downstream_items",
    "downstream_summary",
    "fluency",
    "free_writing",
    "generate_text",
    "harmonic_mean",
    "judge",
    "median_kl",
    "next_tokens",
    "ngram_entropy",
    "perplexity",
    "reference",
    "score",
    "summary",
    "text_likelihoods",
]
