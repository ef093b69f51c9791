"""The papers' experiments as data: studies, suites, their runs and records; published numbers."""

from workbench.studies.base import Study, Trial
from workbench.studies.comparing import recorded_comparison, run_comparison
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
from workbench.studies.suiterecords import SuiteRecord, recorded_suite
from workbench.studies.suiterunning import classifier_of, run_suite, task_of
from workbench.studies.suites import SUITES, Suite, suite
from workbench.studies.teaching import run_learned

__all__ = [
    "LearnedRecord",
    "LearnedStudy",
    "LearnedTrial",
    "Record",
    "STUDIES",
    "SUITES",
    "Study",
    "Suite",
    "SuiteRecord",
    "Trial",
    "classifier_of",
    "facts_of",
    "gaps",
    "learned_gaps",
    "learned_record",
    "learned_study",
    "published",
    "recorded",
    "recorded_comparison",
    "recorded_suite",
    "run_comparison",
    "run_learned",
    "run_study",
    "run_suite",
    "study",
    "suite",
    "task_of",
]
