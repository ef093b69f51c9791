"""What a person does at the bench, as method calls; the widgets only call these.

session = Session(wb.load("tiny"))
session.take(wb.datasets.tiny(limit=1))
session.dry_run(); session.accept(); session.undo()
"""

from workbench.session.desk import Session
from workbench.session.reporting import write_report

__all__ = ["Session", "write_report"]
