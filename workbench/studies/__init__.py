"""The papers' experiments as data: studies, their runs and records, and the published numbers."""

from workbench.studies.base import Study, Trial
from workbench.studies.comparing import recorded_comparison, run_comparison
from workbench.studies.papers import STUDIES, study
from workbench.studies.records import Record, recorded
from workbench.studies.reported import gaps, published
from workbench.studies.running import facts_of, run_study

__all__ = [
    "STUDIES",
    "Record",
    "Study",
    "Trial",
    "gaps",
    "facts_of",
    "published",
    "recorded",
    "recorded_comparison",
    "run_comparison",
    "run_study",
    "study",
]
