"""The ledger of the reliability suite, and its counts at the end of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ledger import FULL, Ledger

KEPT = pytest.StashKey[Ledger]()


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """One for all tests of a run."""
    return request.config.stash.setdefault(KEPT, Ledger())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the counts, and write them where ``WORKBENCH_RELIABILITY_OUT`` says."""
    found = config.stash.get(KEPT, Ledger())
    if not found.kinds:
        return
    terminalreporter.section(f"reliability, {'full' if FULL else 'short'} form")
    for line in found.lines():
        terminalreporter.write_line(line)
    out = os.environ.get("WORKBENCH_RELIABILITY_OUT")
    if out:
        found.save(Path(out))
