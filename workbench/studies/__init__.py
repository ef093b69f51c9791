"""The papers' experiments as data: studies, suites, their runs and records; published numbers."""

from workbench.studies.base import Study, Trial
from workbench.studies.comparing import recorded_comparison, run_comparison
from workbench.studies.papers import STUDIES, study
from workbench.studies.records import Record, recorded
from workbench.studies.reported import gaps, published
from workbench.studies.running import facts_of, run_study
from workbench.studies.suiterecords import SuiteRecord, recorded_suite
from workbench.studies.suiterunning import classifier_of, run_suite, task_of
from workbench.studies.suites import SUITES, Suite, suite

__all__ = [
    "STUDIES",
    "SUITES",
    "Record",
    "Study",
    "Suite",
    "SuiteRecord",
    "Trial",
    "classifier_of",
    "facts_of",
    "gaps",
    "published",
    "recorded",
    "recorded_suite",
    "recorded_comparison",
    "run_comparison",
    "run_study",
    "run_suite",
    "study",
    "suite",
    "task_of",
]
