"""The papers' experiments as data: studies, their runs and records, and the published numbers."""

from workbench.studies.base import Study, Trial
from workbench.studies.learned import (
    LearnedRecord,
    LearnedStudy,
    LearnedTrial,
    learned_record,
    learned_study,
)
from workbench.studies.papers import STUDIES, study
from workbench.studies.records import Record, recorded
from workbench.studies.reported import gaps, learned_gaps, published
from workbench.studies.running import facts_of, run_study
from workbench.studies.teaching import run_learned

__all__ = [
    "STUDIES",
    "LearnedRecord",
    "LearnedStudy",
    "LearnedTrial",
    "Record",
    "Study",
    "Trial",
    "gaps",
    "facts_of",
    "learned_gaps",
    "learned_record",
    "learned_study",
    "published",
    "recorded",
    "run_learned",
    "run_study",
    "study",
]
