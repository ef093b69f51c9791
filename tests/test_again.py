"""The comparison of a table that was made again with the recorded one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "again.py"


@pytest.fixture(scope="module")
def again() -> ModuleType:
    spec = importlib.util.spec_from_file_location("again", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recorded() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "editor": ["MEND", "MEND", "FT"],
            "edits at once": [1, 5, 1],
            "trained for": [1, 1, None],
            "edit success": [0.9, 0.4, 0.8],
            "seconds": [1.0, 2.0, 3.0],
            "unit": "accuracy",
        }
    )


def test_rows_are_matched_by_name_and_time_does_not_count(again, recorded, capsys):
    new = recorded.iloc[[2, 1]].assign(seconds=50.0)
    new["edit success"] += [0.01, -0.03]
    found = again.differences(new, recorded).set_index("measure")
    assert list(found.index) == ["edit success"]
    assert found.loc["edit success", ["rows", "where"]].tolist() == [2, "MEND / 5 / 1.0"]
    assert found.loc["edit success", "largest"] == pytest.approx(0.03)
    assert capsys.readouterr().out == "only recorded: 1 rows\n"


def test_tables_of_two_commands_are_not_compared(again, recorded):
    with pytest.raises(SystemExit, match="no row in common"):
        again.differences(recorded.assign(editor="KE"), recorded)
    with pytest.raises(SystemExit, match="names their rows"):
        again.differences(recorded[["seconds"]], recorded[["seconds"]])


@pytest.mark.parametrize(("shift", "code"), [(0.04, 0), (0.06, 1)])
def test_the_exit_code_says_whether_it_is_the_same(
    again, recorded, tmp_path, monkeypatch, capsys, shift, code
):
    recorded.to_csv(tmp_path / "old.csv", index=False)
    recorded["edit success"] += shift
    recorded.to_csv(tmp_path / "new.csv", index=False)
    monkeypatch.setattr(
        sys, "argv", ["again", *(str(tmp_path / n) for n in ("new.csv", "old.csv"))]
    )
    with pytest.raises(SystemExit) as ended:
        again.main()
    assert ended.value.code == code
    assert ("not within 0.05: edit success" in capsys.readouterr().out) == bool(code)
