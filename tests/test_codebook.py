"""The codebook without a model: published traces, its laws, exact search, shared storage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.adapters import Context
from workbench.editors.memory.codebook import Decision, Rules, decide, entries_of
from workbench.memories import Codebook, Settings, query_columns, written_columns
from workbench.networks import Deferral, SoftMemory
from workbench.shelves import Shelf, nearest

GOLDEN = Path(__file__).parent / "golden"
OURS = Settings()


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as g:
        return {k: torch.as_tensor(g[k]) for k in g.files if g[k].dtype.kind in "fib"}


def grown(
    steps: list[tuple[list[float], str]], rules: Rules, d_out: int = 3
) -> tuple[Codebook, list[Decision]]:
    """A codebook after (query, label) steps; the value of step t is t everywhere."""
    book = Codebook.empty(len(steps[0][0]), d_out, OURS)
    made = []
    for t, (query, label) in enumerate(steps):
        made.append(decide(book, torch.tensor(query), (ord(label),), rules))
        value = torch.full((d_out,), float(t))
        book = book.after(OURS, entries_of(made[-1:], {made[-1].entry: value}))
    return book, made


# ---------------------------------------------------------------------- published behavior


@pytest.mark.parametrize("name", ["eps0.4_coverage", "eps1_coverage", "eps1_moving_average"])
def test_golden_trace(name: str) -> None:
    """Keys, radii, values and chosen keys after each edit, and what twenty queries get."""
    g = load(f"grace_{name}")
    rules = Rules(float(g["init_epsilon"]), expand=name.split("_", 1)[1], released=True)
    book = Codebook.empty(8, 6, OURS)
    for t, query in enumerate(g["edit_queries"]):
        d = decide(book, query.float(), (int(g["edit_labels"][t]),), rules)
        book = book.after(OURS, entries_of([d], {d.entry: g["edit_values"][t].float()}))
        step = {k[7:]: v for k, v in g.items() if k.startswith(f"step{t:02d}_")}
        assert book.places[d.entry] == int(step["chosen_key"])
        assert torch.allclose(book.keys.data[: len(book)], step["keys"].float(), atol=1e-5)
        assert torch.allclose(book.radii, step["eps"].float(), atol=1e-5)
        values = book.values.data[book.value_rows]
        assert torch.allclose(values, step["values"].float(), atol=1e-5)
    x = g["query_inputs"].float()
    base = x @ g["W"].float().T + g["bias"].float()
    distance, index = book.search(x[:, -1], k=len(book))
    plain = torch.zeros_like(distance).scatter(1, index, distance)
    assert torch.allclose(plain, g["queries_dist"].float(), atol=1e-5)
    assert index[:, 0].tolist() == g["queries_nearest"].tolist()
    assert (book.fired(x[:, -1]) >= 0).tolist() == g["queries_fire"].tolist()
    released = {"last": "last", "all": "all", "prompt": "before"}
    for theirs, ours in released.items():
        context = Context(torch.ones(20, 4, dtype=torch.bool), torch.ones(20, 4, dtype=torch.bool))
        there = dataclasses.replace(book, settings=Settings(replacement=ours))
        found = there("m", x, base, context)
        assert torch.allclose(found, g[f"queries_replace_{theirs}"].float(), atol=1e-5)


def test_the_worked_example() -> None:
    """Seven steps in the plane, and the member that a split evicts."""
    steps = [
        ([0.0, 0.0], "A"), ([1.5, 0.0], "A"), ([2.0, 0.0], "B"), ([10.0, 0.0], "C"),
        ([0.2, 0.0], "A"), ([2.0, 1.2], "A"), ([2.05, 0.0], "A"),
    ]  # fmt: skip
    book, made = grown(steps, Rules(1.0))
    assert [d.op for d in made] == ["add", "expand", "split", "add", "refine", "split", "split"]
    assert torch.allclose(book.radii, torch.tensor([0.99999, 0.02499, 1.0, 0.6, 0.025]), atol=1e-6)
    asked = torch.tensor([[1.5, 0.0], [0.0, 0.0], [10.0, 0.9], [2.05, 0.0]])
    assert book.fired(asked).tolist() == [-1, 0, 2, 4]


# ---------------------------------------------------------------------- laws


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from("AB")),
                min_size=1, max_size=25))  # fmt: skip
def test_laws_of_growth(steps: list[tuple[int, int, str]]) -> None:
    """Each edit answers its own query; a split never widens and never overlaps; an expansion ends
    at the query; an identical query never makes a twin."""
    rules = Rules(1.0)
    book = Codebook.empty(2, 1, OURS)
    for t, (a, b, label) in enumerate(steps):
        query, before = torch.tensor([a / 4, b / 4]), book
        d = decide(book, query, (ord(label),), rules)
        book = book.after(OURS, entries_of([d], {d.entry: torch.tensor([float(t)])}))
        assert len(book) == len(before) + (d.op in ("add", "split"))
        fired = int(book.fired(query[None]))
        assert book.labels[fired] == (ord(label),) and float(book.value(fired)) == t
        for name, was, after in d.shrunk:
            assert after <= was == pytest.approx(float(before.radii[before.places[name]]))
            gap = float((book.key(book.places[name]) - query).norm())
            assert after + d.radius < gap
        if d.op == "expand":
            assert d.radius == pytest.approx(d.distance) and d.radius > d.radius_before
    keys = {tuple(k.tolist()) for k in book.keys.data[: len(book)]}
    assert len(keys) == len(book)


def test_the_released_code_makes_a_twin_that_never_answers() -> None:
    steps = [([1.0, 1.0], "A"), ([1.0, 1.0], "B")]
    book, made = grown(steps, Rules(1.0))
    assert [d.op for d in made] == ["add", "overwrite"] and len(book) == 1
    assert float(book.value(int(book.fired(torch.ones(1, 2))))[0]) == 1.0
    twin, made = grown(steps, Rules(1.0, released=True))
    assert made[1].op == "split" and not made[1].trained and len(twin) == 2
    assert int(twin.fired(torch.ones(1, 2))) == -1


def test_the_released_code_may_widen_a_ball() -> None:
    steps = [([0.0, 0.0], "A"), ([0.2, 0.0], "B"), ([-1.05, 0.0], "B")]
    ours, _ = grown(steps, Rules(1.0))
    theirs, _ = grown(steps, Rules(1.0, released=True))
    assert float(ours.radii[0]) == pytest.approx(0.09999, abs=1e-6)
    assert float(theirs.radii[0]) == pytest.approx(0.52499, abs=1e-6)


def test_strict_overlap_and_cap() -> None:
    steps = [([0.0, 0.0], "A"), ([1.1, 0.0], "A"), ([3.0, 0.0], "B"), ([1.7, 0.0], "C")]
    loose, _ = grown(steps, Rules(1.0))
    strict, made = grown(steps, Rules(1.0, strict_overlap=True))
    assert made[3].op == "split" and len(made[3].shrunk) == 2
    for book, clash in ((loose, True), (strict, False)):
        keys, radii = book.keys.data[: len(book)], book.radii
        pairs = [(i, j) for i in range(len(book)) for j in range(i)
                 if book.labels[i] != book.labels[j]]  # fmt: skip
        meets = any(float((keys[i] - keys[j]).norm()) < float(radii[i] + radii[j])
                    for i, j in pairs)  # fmt: skip
        assert meets is clash
    steps = [([0.0, 0.0], "A"), ([2.5, 0.0], "B"), ([3.7, 0.0], "B"), ([0.0, 1.8], "A")]
    free, made = grown(steps, Rules(1.0))
    assert [d.op for d in made] == ["add", "add", "expand", "expand"]
    capped, made = grown(steps, Rules(1.0, cap_expand=True))
    assert [d.op for d in made] == ["add", "add", "expand", "add"] and len(capped) == 3


def test_labels_are_whole_answers() -> None:
    """Token tuples with one mean are different answers."""
    book = Codebook.empty(2, 1, OURS)
    first = decide(book, torch.zeros(2), (3, 9), Rules(1.0))
    book = book.after(OURS, entries_of([first], {first.entry: torch.zeros(1)}))
    assert decide(book, torch.tensor([0.5, 0.0]), (5, 7), Rules(1.0)).op == "split"
    assert decide(book, torch.tensor([0.5, 0.0]), (3, 9), Rules(1.0)).op == "refine"


# ---------------------------------------------------------------------- search and storage


@pytest.mark.parametrize("outlier", [0.0, 500.0])
def test_search_is_exact(outlier: float) -> None:
    """Ten thousand keys: as a plain search finds them; a key lies at distance zero of itself."""
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(10_000, 64, generator=g)
    keys[:, 3] += outlier
    keys[5000] = keys[17]  # equal keys: the first one counts
    shelf = Shelf.empty(64, searched=True).extended(0, keys)
    near = keys[:100] + 1e-3 * torch.randn(100, 64, generator=g)
    far = torch.randn(100, 64, generator=g)
    for queries in (near, far):
        plain = torch.cdist(queries.double(), keys.double())
        distance, index = nearest(shelf, len(keys), queries, k=2)
        best = plain.gather(1, index)
        assert torch.allclose(best, plain.topk(2, largest=False).values, atol=1e-4)
        assert torch.allclose(distance.double(), best, rtol=1e-5, atol=1e-5)
    distance, index = nearest(shelf, len(keys), keys[:3000])
    assert not distance.any() and index[:, 0].tolist() == list(range(3000))
    distance, index = nearest(shelf, len(keys), keys[5000:5001])
    assert float(distance) == 0 and int(index) == 17


def test_states_share_rows_and_never_change_each_other() -> None:
    rules = Rules(1.0)
    base, _ = grown([([float(10 * i), 0.0], "A") for i in range(5)], rules)
    seen = base.keys.data[:5].clone(), base.values.data[base.value_rows].clone(), base.radii.clone()

    def follow(x: float, label: str) -> Codebook:
        d = decide(base, torch.tensor([x, 0.0]), (ord(label),), rules)
        return base.after(OURS, entries_of([d], {d.entry: torch.full((3,), x)}))

    one = follow(77.0, "B")
    assert one.keys.data.data_ptr() == base.keys.data.data_ptr()  # nothing was copied
    other = follow(99.0, "B")
    assert other.keys.data.data_ptr() != one.keys.data.data_ptr()
    assert float(one.key(5)[0]) == 77.0 and float(other.key(5)[0]) == 99.0
    split = follow(41.0, "B")
    assert float(split.radii[4]) < 1 and float(one.radii[4]) == 1
    again = follow(40.5, "A")
    assert len(again) == 5 and float(again.value(4)[0]) == 40.5
    assert torch.equal(base.keys.data[:5], seen[0]) and torch.equal(base.radii, seen[2])
    assert torch.equal(base.values.data[base.value_rows], seen[1])
    del one, other, split, again
    place = base.keys.data.data_ptr()
    assert follow(55.0, "B").keys.data.data_ptr() == place  # the row is free again


# ---------------------------------------------------------------------- positions


def context(mask: list[list[int]], prompt: list[list[int]], **fields: bool) -> Context:
    return Context(torch.tensor(mask).bool(), torch.tensor(prompt).bool(), **fields)


def test_which_columns_are_read_and_written() -> None:
    left, right = [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]
    told = context([left, right], [[0, 0, 1, 1, 0], [1, 1, 0, 0, 0]], whole=False)

    def columns(replacement: str, query: str = "last") -> list[list[int]]:
        where = written_columns(Settings(query, replacement), told)
        return [row.nonzero()[:, 0].tolist() for row in where]

    assert query_columns(Settings("last"), told).tolist() == [3, 1]
    assert query_columns(Settings("first"), told).tolist() == [2, 0]
    assert query_columns(Settings("released"), told).tolist() == [2, 2]
    assert columns("last") == [[3], [1]]
    assert columns("all") == [[2, 3, 4], [0, 1, 2, 3]]
    assert columns("prompt") == [[2, 3], [0, 1]]
    assert columns("before", "released") == [[0, 1], [0, 1]]
    alone = context([right], [right])
    assert query_columns(Settings("released"), alone).tolist() == [4]  # padding, as released


def test_networks() -> None:
    """The predictor answers exactly where its gate is at least a half; the soft memory always."""
    x, y = torch.randn(3, 2, 4), torch.randn(3, 2, 5)
    x[:, -1, 0] = torch.tensor([2.0, -2.0, 0.0])
    parts = {"gate": torch.tensor([1.0, 0, 0, 0]), "gate_bias": torch.zeros(1),
             "weight": torch.randn(5, 4), "bias": torch.randn(5)}  # fmt: skip
    everything = torch.ones(3, 2)
    seen = Context(everything.bool(), everything.bool())
    out = Deferral(Settings(), parts)("d", x, y, seen)
    answer = x[:, -1] @ parts["weight"].T + parts["bias"]
    for row, answers in enumerate([True, False, True]):
        expected = answer[row].expand(2, 5) if answers else y[row]
        assert torch.allclose(out[row], expected)
    soft = {"match": torch.randn(6, 4), "bias": torch.randn(6), "slots": torch.randn(6, 5)}
    out = SoftMemory(Settings(), soft)("s", x, y, seen)
    a = (x[:, -1] @ soft["match"].T + soft["bias"]).softmax(-1)
    assert torch.allclose(out, (a @ soft["slots"])[:, None].expand(3, 2, 5), atol=1e-6)
