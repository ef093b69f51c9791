"""Data sets as lists of :class:`~workbench.EditCase`, and plain texts.

Every loader takes a path; None stands for the canonical source, which is fetched once. Records are
validated one by one, and the returned list carries a ``.report`` of what was left out.

    cases = wb.datasets.counterfact("counterfact.json", limit=100)
    cases.report.counts
"""

from workbench.datasets.claims import fever
from workbench.datasets.corpora import snippets, texts
from workbench.datasets.counterfacts import counterfact, multi_counterfact
from workbench.datasets.downstream import TASKS, TaskItem, task_items
from workbench.datasets.generic import SCHEMAS, load_cases
from workbench.datasets.known import known_facts
from workbench.datasets.lifelong import hallucination, nq, topics, zsre_stream
from workbench.datasets.own import facts, tiny
from workbench.datasets.questions import easyedit, zsre
from workbench.datasets.selection import Cases, LoadReport
from workbench.datasets.sources import SOURCES, fetch, where

__all__ = [
    "SCHEMAS",
    "SOURCES",
    "TASKS",
    "Cases",
    "LoadReport",
    "TaskItem",
    "counterfact",
    "easyedit",
    "facts",
    "fetch",
    "fever",
    "hallucination",
    "known_facts",
    "load_cases",
    "multi_counterfact",
    "nq",
    "snippets",
    "task_items",
    "texts",
    "tiny",
    "topics",
    "where",
    "zsre",
    "zsre_stream",
]
