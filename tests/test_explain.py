"""Every option of every editor is explained where it is chosen."""

from __future__ import annotations

import dataclasses

import pytest

import workbench as wb
from workbench.editors.explain import describe_editor


@pytest.mark.parametrize("name", wb.EDITORS)
def test_every_option_has_a_meaning(name: str) -> None:
    cls = wb.EDITORS[name]
    table = wb.explain_options(cls)
    assert table["option"].tolist() == [f.name for f in dataclasses.fields(cls)]
    silent = table[table["meaning"].str.len() < 5]["option"].tolist()
    assert not silent, f"{name}: {silent}"
    assert describe_editor(cls).endswith((".", ")"))


def test_values_are_those_of_the_editor() -> None:
    editor = wb.ROME(layers=(2,), lr=0.25)
    table = wb.explain_options(editor).set_index("option")
    assert table.loc["layers", "value"] == (2,) and table.loc["lr", "value"] == 0.25
    assert "Adam" in table.loc["lr", "meaning"]
    assert "several" in table.loc["layers", "meaning"], "the most derived class explains"
