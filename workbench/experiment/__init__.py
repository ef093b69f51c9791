"""Long runs: edits in sequence, every earlier one measured again, on disk and resumable.

rows = wb.stream("data/runs/memit", view, editor, cases, batch_size=100)
wb.retention(rows)
wb.moments("data/runs/memit")
"""

from workbench.experiment.alarm import Alarm
from workbench.experiment.apart import rounds
from workbench.experiment.kept import open_stack, save_stack
from workbench.experiment.lifetime import lifelong
from workbench.experiment.running import StreamStep
from workbench.experiment.streaming import moments, stream, stream_rows
from workbench.experiment.study import radius_study

__all__ = [
    "Alarm",
    "StreamStep",
    "moments",
    "open_stack",
    "rounds",
    "lifelong",
    "moments",
    "open_stack",
    "radius_study",
    "save_stack",
    "stream",
    "stream_rows",
]
