"""Targets of the unedited model: trained once, equal to those trained apart, never of another
state."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from workbench.editors.locate import sharing
from workbench.editors.locate.sharing import shared_targets
from workbench.editors.locate.targets import optimize_targets


@pytest.fixture(scope="module")
def cases():
    return wb.datasets.tiny(limit=4)


@pytest.fixture()
def trained(monkeypatch):
    """How many targets were trained, call by call."""
    counts: list[int] = []

    def counting(view, requests, *args, **options):
        counts.append(len(requests))
        return optimize_targets(view, requests, *args, **options)

    monkeypatch.setattr(sharing, "optimize_targets", counting)
    return counts


def test_editors_and_batches_share_only_what_is_new_to_them(cases, trained):
    view = wb.load("tiny")
    memit, emmet = wb.MEMIT.preset(view), wb.EMMET.preset(view)
    with shared_targets(view):
        memit.edit(view, cases[:1])
        emmet.edit(view, cases[:3])
        memit.edit(view, cases)
        wb.MEMIT.preset(view, steps=5).edit(view, cases[:1])  # other targets
    assert trained == [1, 2, 1, 1]
    memit.edit(view, cases[:1])  # outside nothing is shared
    assert trained[4:] == [1]


def test_a_shared_target_writes_what_an_own_one_does(cases):
    view, fresh = wb.load("tiny"), wb.load("tiny")
    with shared_targets(view):
        wb.MEMIT.preset(view).edit(view, cases)
        shared = wb.EMMET.preset(view).edit(view, cases[:2])
    own = wb.EMMET.preset(fresh).edit(fresh, cases[:2])
    for a, b in zip(shared.deltas, own.deltas, strict=True):
        torch.testing.assert_close(
            a.materialize(dtype=torch.float32),
            b.materialize(dtype=torch.float32),
            rtol=1e-4,
            atol=1e-5,
        )


def test_an_edited_view_trains_its_own(cases, trained):
    view = wb.load("tiny")
    editor = wb.MEMIT.preset(view)
    with shared_targets(view):
        view.push(editor.edit(view, cases[:1]))
        second = editor.edit(view, cases[1:2])
    assert trained == [1, 1]
    view.pop()
    with shared_targets(view):
        other = editor.edit(view, cases[1:2])
    assert trained == [1, 1, 1]  # that of the edited view was not kept for this one
    assert not torch.equal(
        second.deltas[0].materialize(dtype=torch.float32),
        other.deltas[0].materialize(dtype=torch.float32),
    )


def test_sharing_ends_with_an_error_too(cases, trained):
    view = wb.load("tiny")
    with pytest.raises(KeyError), shared_targets(view):
        raise KeyError
    editor = wb.MEMIT.preset(view)
    editor.edit(view, cases[:1])
    editor.edit(view, cases[:1])
    assert trained == [1, 1]
