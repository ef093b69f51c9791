"""Key statistics: against plain sums over unpadded texts, interruption, cache, refusals."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench import corpora, keysums, linalg, stats
from workbench.edits import Delta, WeightEdit
from workbench.errors import (
    DataError,
    FetchError,
    NumericalError,
    OptionError,
    StatisticsError,
    StorageError,
)
from workbench.facts import EditRequest
from workbench.layouts import DECODER, LAYOUTS
from workbench.model import ModelView
from workbench.progress import progress_to
from workbench.secondmoments import SecondMoment
from workbench.stats import identity_moment, import_npz, require, second_moments
from workbench.trace import Site, trace

FAMILIES = sorted(name for name, row in LAYOUTS.items() if row.kind == DECODER)
WORDS = (
    *("France", "Paris", "Italy", "Rome", "Berlin", "Germany", "mother", "tongue", "French"),
    *("speaks", "English", "Spanish", "Anna", "Vienna", "painter", "Oslo", "violin", "Needle"),
    *("Seattle", "tower", "city", "sport", "soccer", "moon", "house", "café", "Zürich"),
)


def texts(n: int = 60, seed: int = 0) -> list[str]:
    """Sentences of 1 to 20 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=1 + i % 20)) for i in range(n)]


@torch.no_grad()
def all_keys(view: ModelView, layer: int, corpus: list[str], *, skipped: int = 0) -> torch.Tensor:
    """``[n, d_mlp]`` float64 keys of every text, one unpadded forward a text."""
    found = []
    for text in corpus:
        ids = view.tokenizer(text, return_tensors="pt")["input_ids"]
        with trace(view, [Site(layer, "key")]) as seen:
            view.model(input_ids=ids)
        found.append(seen[Site(layer, "key")][0, skipped:].double())
    return torch.cat(found)


def measure(view: ModelView, layers: list[int], **options: Any) -> dict[int, SecondMoment]:
    """All tokens of the usual texts, nothing cached."""
    corpus = options.pop("corpus", texts())
    rows = [view.tokenizer(t)["input_ids"] for t in corpus] if isinstance(corpus, list) else []
    skipped = int(options.get("skip_first_token", False))
    options = {"n_tokens": sum(len(r) - skipped for r in rows), "cache": None} | options
    return second_moments(view, layers, corpus=corpus, **options)


def same(a: SecondMoment, b: SecondMoment) -> bool:
    """Equal to the bit."""
    pairs = ((a.matrix, b.matrix), (a.mean, b.mean), (a.reservoir, b.reservoir))
    return all(torch.equal(x, y) for x, y in pairs) and a.sampling_error == b.sampling_error


# ------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("skipped", [0, 1])
def test_equals_plain_sums_over_unpadded_texts(make_view: Callable[..., Any], skipped: int) -> None:
    view = make_view("llama", torch.float64)
    found = measure(view, [0, 2], batch_tokens=100, skip_first_token=bool(skipped))
    for layer, moment in found.items():
        keys = all_keys(view, layer, texts(), skipped=skipped)
        assert moment.n_tokens == len(keys)
        torch.testing.assert_close(moment.matrix, keys.T @ keys / len(keys), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(moment.mean, keys.mean(0), rtol=1e-12, atol=1e-15)
        assert torch.equal(moment.matrix, moment.matrix.T)


@pytest.mark.parametrize("family", [*FAMILIES, "bert"])
def test_every_family(make_view: Callable[..., Any], family: str) -> None:
    view = make_view(family)
    moment = measure(view, [1], batch_tokens=200)[1]
    keys = all_keys(view, 1, texts())
    error = (moment.matrix - keys.T @ keys / len(keys)).norm() / moment.matrix.norm()
    assert moment.n_tokens == len(keys)
    assert error < 2e-6


def test_half_precision_keys_are_multiplied_in_float32(make_view: Callable[..., Any]) -> None:
    view = make_view("llama", torch.bfloat16)
    torch.set_float32_matmul_precision("medium")
    try:
        moment = measure(view, [1], batch_tokens=1)[1]  # a row a batch: no padding, equal keys
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    keys = all_keys(view, 1, texts())
    error = (moment.matrix - keys.T @ keys / len(keys)).norm() / moment.matrix.norm()
    assert error < 1e-6


def test_mean_leverage_of_the_defining_sample_is_d_mlp(make_view: Callable[..., Any]) -> None:
    view = make_view("gpt2", torch.float64)  # oracle O1
    moment = measure(view, [1])[1]
    keys = all_keys(view, 1, texts())
    assert moment.factor.jitter == 0
    assert float(moment.leverage(keys.T).mean()) == pytest.approx(view.d_mlp, rel=1e-9)


def test_mean_effect_of_an_update_is_its_trace(make_view: Callable[..., Any]) -> None:
    view = make_view("llama", torch.float64)  # oracle O24
    moment = measure(view, [3])[3]
    keys = all_keys(view, 3, texts())
    change = torch.randn(view.d_model, view.d_mlp, dtype=torch.float64)
    effect = (keys @ change.T).square().sum(1).mean()
    trace_form = torch.trace(change @ moment.matrix @ change.T)
    torch.testing.assert_close(effect, trace_form, rtol=1e-9, atol=0)


def test_reservoir_is_a_sample_of_the_keys_and_a_moment_of_its_own(
    make_view: Callable[..., Any],
) -> None:
    view = make_view("llama", torch.float64)
    moment = measure(view, [2], n_reservoir=50)[2]
    keys = all_keys(view, 2, texts())
    distance = torch.cdist(moment.reservoir.T.double(), keys)
    nearest = distance.argmin(1)
    assert moment.reservoir.shape == (view.d_mlp, 50)
    assert float(distance.min(1).values.max()) < 1e-6
    assert len(set(nearest.tolist())) > 45  # equal first tokens may coincide
    assert int(nearest.min()) < len(keys) / 4 and int(nearest.max()) > len(keys) * 3 / 4
    whole = measure(view, [2], n_reservoir=10**6, corpus=texts(12))[2]
    assert whole.reservoir.shape[1] == min(2 * view.d_mlp, whole.n_tokens)
    k = whole.reservoir.double()
    if k.shape[1] == whole.n_tokens:
        torch.testing.assert_close(whole.matrix, k @ k.T / k.shape[1], rtol=1e-5, atol=1e-9)


def test_one_pass_for_three_layers_is_three_passes(make_view: Callable[..., Any]) -> None:
    view = make_view("gpt2")
    together = measure(view, [3, 0, 2], batch_tokens=128)
    assert list(together) == [3, 0, 2]
    for layer in (0, 2, 3):
        assert same(together[layer], measure(view, [layer], batch_tokens=128)[layer])


def test_batch_size_and_padding_do_not_matter(make_view: Callable[..., Any]) -> None:
    view = make_view("opt", torch.float64)
    one = measure(view, [1], batch_tokens=1)[1]
    for batch_tokens in (64, 100_000):
        other = measure(view, [1], batch_tokens=batch_tokens)[1]
        torch.testing.assert_close(other.matrix, one.matrix, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(other.reservoir, one.reservoir, rtol=1e-5, atol=1e-7)
        assert other.sampling_error == pytest.approx(one.sampling_error, rel=1e-6)


def test_the_pass_ends_after_the_highest_layer(make_view: Callable[..., Any]) -> None:
    view = make_view("llama")
    touched: list[int] = []
    for layer in range(view.n_layers):
        view.block(layer).register_forward_hook(lambda *_, layer=layer: touched.append(layer))
    measure(view, [0, 2])
    assert set(touched) == {0, 1}  # block 2 is left at its key


def test_edits_on_the_stack_do_not_enter(make_view: Callable[..., Any]) -> None:
    view = make_view("llama")
    before = measure(view, [2])[2]
    change = torch.ones(view.d_model, view.d_mlp)
    request = EditRequest(prompt="{} is", subject="France", target_new="Rome")
    delta = Delta.dense(view.weight_name(0), change)
    view.push(WeightEdit((delta,), (request,), "test", {}, view.fingerprint))
    assert same(measure(view, [2])[2], before)
    assert len(view.stack) == 1


def test_sampling_error_predicts_the_error(make_view: Callable[..., Any]) -> None:
    view = make_view("llama", torch.float64)
    large = texts(3000, seed=1)
    truth = measure(view, [1], corpus=large)[1]
    for n in (100, 400):
        part = measure(view, [1], corpus=large[:n])[1]
        error = float((part.matrix - truth.matrix).norm() / truth.matrix.norm())
        assert part.sampling_error is not None
        assert 0.4 < part.sampling_error / error < 2.5
    alone = measure(view, [1], corpus=[" ".join(WORDS * 2)], n_tokens=80)[1]
    assert alone.sampling_error is None
    assert np.isnan(alone.check()["sampling_error"])


def test_check_tells_a_good_matrix_from_a_poor_one(
    make_view: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = make_view("llama")
    moment = measure(view, [1], corpus=texts(400))[1]
    report = moment.check()
    values = torch.linalg.eigvalsh(moment.matrix)
    assert report["leverage_ratio"] == pytest.approx(1, abs=0.2)
    assert report["condition"] == pytest.approx(float(values[-1] / values[0]), rel=1e-6)
    assert 1 <= report["effective_rank"] <= view.d_mlp
    assert report["jitter"] == 0
    monkeypatch.setattr("workbench.secondmoments.EXACT_SPECTRUM", 1)
    assert moment.check()["condition"] == pytest.approx(report["condition"], rel=0.05)
    assert isinstance(moment.factor, linalg.Factor) and moment.factor is moment.factor


def test_packing_loses_nothing() -> None:
    a = torch.randn(7, 7, dtype=torch.float64)
    a = a + a.T
    assert torch.equal(keysums.unpack(keysums.pack(a), 7), a)
    assert keysums.pack(a).numel() == 28


def test_no_batch_is_larger_than_asked() -> None:
    rows = [[0] * n for n in (5, 3, 9, 1, 30, 7, 7)]
    plan = keysums.plan_batches(rows, batch_tokens=20, skipped=1, n_picked=8, seed=0)
    assert [i for b in plan.batches for i in b] == list(range(7))
    for b in plan.batches:
        assert len(b) == 1 or len(b) * max(len(plan.rows[i]) for i in b) <= 20
    assert plan.n_tokens == sum(n - 1 for n in (5, 3, 9, 1, 30, 7, 7))
    assert len(set(plan.picked.tolist())) == 8


# ------------------------------------------------------------------ interruption


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running sums are saved after every batch."""
    monkeypatch.setattr(keysums, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(keysums, "CHECKPOINT_SHARE", 1e9)


class Cut(Exception):
    """What a sink raises to cancel."""


def cut_after(phase: str, n: int) -> Callable[[str, int, int | None], None]:
    """A sink that cancels at the n-th report of a phase."""
    calls = []

    def sink(name: str, done: int, total: int | None) -> None:
        calls.extend([1] * (name == phase))
        if len(calls) > n:
            raise Cut

    return sink


@pytest.mark.parametrize("often", [True, False])
def test_a_cancelled_run_continues_to_the_same_bits(
    make_view: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest, often: bool
) -> None:
    if often:
        request.getfixturevalue("eager")
    view = make_view("llama")
    options = {"batch_tokens": 64, "cache": tmp_path}
    whole = measure(view, [0, 2], batch_tokens=64)
    with progress_to(cut_after("key statistics", 5)), pytest.raises(Cut):
        measure(view, [0, 2], **options)
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    reports: list[int] = []
    with progress_to(lambda phase, done, total: reports.append(done)):
        resumed = measure(view, [0, 2], **options)
    assert reports[0] > 0 and reports[-1] == whole[0].n_tokens
    assert all(same(resumed[i], whole[i]) for i in (0, 2))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".safetensors"] * 2


def test_a_cut_inside_a_batch_never_saves_half_of_it(
    make_view: Callable[..., Any], tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = make_view("llama")
    whole = measure(view, [0, 2], batch_tokens=64)
    add, calls = keysums._add, []

    def failing(sums: Any, keys: Any, layer: int, *rest: Any) -> None:
        calls.append(layer)
        if len(calls) == 8:  # the second layer of the fourth batch
            raise Cut
        add(sums, keys, layer, *rest)

    monkeypatch.setattr(keysums, "_add", failing)
    with pytest.raises(Cut):
        measure(view, [0, 2], batch_tokens=64, cache=tmp_path)
    monkeypatch.setattr(keysums, "_add", add)
    resumed = measure(view, [0, 2], batch_tokens=64, cache=tmp_path)
    assert all(same(resumed[i], whole[i]) for i in (0, 2))


KILLED = """
import os, signal, sys
sys.path[:0] = [{repo!r}, {tests!r}]
import torch
torch.set_num_threads(2)
import families
from workbench import keysums
from workbench.opening import open_view
from workbench.progress import progress_to
from workbench.stats import second_moments
keysums.CHECKPOINT_SECONDS, keysums.CHECKPOINT_SHARE = 0.0, 1e9
tok = families.build_tokenizer()
view = open_view(families.build_model("gpt2", len(tok), dtype=torch.float32, seed=0), tok, name="x")
calls = []
def sink(phase, done, total):
    calls.append(phase)
    if calls.count({phase!r}) > {n}:
        os.kill(os.getpid(), signal.SIGKILL)
with progress_to(sink):
    second_moments(view, [0, 1, 3], n_tokens=2500, sequence_length=32, batch_tokens=128,
                   cache={cache!r})
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_process_continues_to_the_same_bits(
    make_view: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"n_tokens": 2500, "sequence_length": 32, "batch_tokens": 128}
    view = make_view("gpt2")
    whole = second_moments(view, [0, 1, 3], cache=None, **options)
    tests = Path(__file__).parent
    for phase, n in (("sampling text", 45), ("key statistics", 7)):
        script = KILLED.format(
            repo=str(tests.parent), tests=str(tests), cache=str(tmp_path), phase=phase, n=n
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".partial", ".safetensors"]
    seen: list[tuple[str, int]] = []
    with progress_to(lambda phase, done, total: seen.append((phase, done))):
        resumed = second_moments(view, [0, 1, 3], cache=tmp_path, **options)
    assert seen[0] == ("key statistics", 100 + 6 * 128)  # neither text nor finished batches again
    assert all(same(resumed[i], whole[i]) for i in (0, 1, 3))


def test_a_damaged_partial_file_is_reported_and_ignored(
    make_view: Callable[..., Any], tmp_path: Path, eager: None
) -> None:
    view = make_view("llama")
    with progress_to(cut_after("key statistics", 3)), pytest.raises(Cut):
        measure(view, [1], batch_tokens=64, cache=tmp_path)
    (partial,) = tmp_path.glob("*.partial")
    partial.write_bytes(partial.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="starts anew"):
        again = measure(view, [1], batch_tokens=64, cache=tmp_path)
    assert same(again[1], measure(view, [1], batch_tokens=64)[1])


# ------------------------------------------------------------------ cache


def forbid(monkeypatch: pytest.MonkeyPatch, view: ModelView) -> None:
    """Any forward pass fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(view.model, "forward", refuse)


def test_cached_layers_are_not_computed_again(
    make_view: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(make_view("llama"), [0, 2], cache=tmp_path)
    view = make_view("llama")  # nothing remembered
    reached: list[Site] = []

    def watch(view: ModelView, read: list[Site], **options: Any) -> Any:
        reached.extend(read)
        return trace(view, read, **options)

    monkeypatch.setattr(keysums, "trace", watch)
    second = measure(view, [2, 1, 0], cache=tmp_path)
    assert set(reached) == {Site(1, "key")}
    assert same(second[0], first[0]) and same(second[2], first[2])
    assert second[2].source == first[2].source
    again = make_view("llama")
    forbid(monkeypatch, again)
    assert same(measure(again, [1], cache=tmp_path)[1], second[1])
    assert measure(again, [1], cache=tmp_path)[1] is measure(again, [1], cache=tmp_path)[1]


def test_every_ingredient_changes_the_name(
    make_view: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: dict[str, Any] = {"n_tokens": 300, "sequence_length": 32, "cache": tmp_path}
    changes: list[dict[str, Any]] = [
        {"n_tokens": 301},
        {"sequence_length": 31},
        {"seed": 1},
        {"skip_first_token": True},
        {"n_reservoir": 7},
        {"corpus": texts(59)},
        {"corpus": [*texts()[:-1], texts()[-1] + "."]},
    ]
    measure(make_view("llama"), [1], **base)
    runs = [(make_view("llama"), 1, c) for c in changes]
    runs += [(make_view("llama"), 2, {}), (make_view("llama", torch.bfloat16), 1, {})]
    runs += [(make_view("llama", seed=1), 1, {}), (make_view("mistral"), 1, {})]
    other = make_view("llama")
    inner = other.tokenizer.backend_tokenizer
    lower = inner.to_str().replace('"normalizer":null', '"normalizer":{"type":"Lowercase"}')
    assert lower != inner.to_str()
    other.tokenizer = type(other.tokenizer)(tokenizer_object=type(inner).from_str(lower))
    runs += [(other, 1, {})]
    for n, (view, layer, change) in enumerate(runs, start=2):
        measure(view, [layer], **base | change)
        assert len(list(tmp_path.glob("*.safetensors"))) == n, change
    monkeypatch.setattr(stats, "FORMAT", "workbench-stats/99")
    measure(make_view("llama"), [1], **base)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(runs) + 2
    measure(make_view("llama"), [1], **base, batch_tokens=33)  # rounding only
    assert len(list(tmp_path.glob("*.safetensors"))) == len(runs) + 2


def test_the_file_says_what_it_holds(make_view: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors import safe_open

    view = make_view("llama")
    measure(view, [1], cache=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, framework="pt") as handle:
        manifest = json.loads(handle.metadata()["workbench"])
    assert manifest["recipe"]["layer"] == 1 and manifest["recipe"]["corpus"] == "60 texts"
    assert manifest["recipe"]["fingerprint"] == view.fingerprint
    assert manifest["model"] == view.name and len(manifest["source"]["ids_sha256"]) == 64
    guess = stats.estimate(view, [1])["disk_bytes"]
    assert 0.5 < guess / path.stat().st_size < 1.5


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("harm", [truncated, flipped, lambda d: b"", lambda d: b"{}" * 50])
def test_a_damaged_file_is_reported_and_computed_again(
    make_view: Callable[..., Any], tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    good = measure(make_view("llama"), [1], cache=tmp_path)[1]
    (path,) = tmp_path.glob("*.safetensors")
    sound = path.read_bytes()
    path.write_bytes(harm(sound))
    with pytest.warns(UserWarning, match=f"{path.name}.*delete it.*computed again"):
        again = measure(make_view("llama"), [1], cache=tmp_path)[1]
    assert same(again, good)
    assert path.read_bytes() == sound


def test_nothing_half_written_when_the_disk_is_full(
    make_view: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            measure(make_view("llama"), [1], cache=tmp_path)
        assert list(tmp_path.iterdir()) == []
    usage = type("usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr(stats.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(StorageError, match="GB in"):
            measure(make_view("llama"), [1], cache=tmp_path / "deep" / "folder")
        measure(make_view("llama"), [1], cache=None)
    measure(make_view("llama"), [1], cache=tmp_path)


def test_the_usual_folder(
    make_view: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    measure(make_view("llama"), [1], cache=True)
    assert len(list((tmp_path / "stats").glob("*.safetensors"))) == 1
    measure(make_view("gpt2"), [1], cache=False)
    assert len(list((tmp_path / "stats").glob("*"))) == 1


# ------------------------------------------------------------------ corpora


def test_own_text_is_kept_shared_and_extended(
    make_view: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"sequence_length": 16, "cache": tmp_path}
    view = make_view("llama")
    short = second_moments(view, [0], n_tokens=400, **options)[0]
    assert short.n_tokens == 400 and short.source["corpus"] == "self"
    (kept,) = tmp_path.glob("text-*")
    ids = corpora._kept_text(kept, 16)
    assert ids.shape == (corpora.CHUNK, 16)
    view.push(_large_edit(view))
    longer = make_view("llama")
    longer.push(_large_edit(longer))
    drawn: list[str] = []
    with progress_to(lambda phase, done, total: drawn.append(phase)):
        second_moments(longer, [0], n_tokens=900, **options)
    assert drawn.count("sampling text") == 1 + 15  # one more chunk, one column a step
    assert torch.equal(corpora._kept_text(kept, 16)[: corpora.CHUNK], ids)
    fresh = second_moments(make_view("llama"), [0], n_tokens=900, sequence_length=16, cache=None)
    assert same(fresh[0], second_moments(make_view("llama"), [0], n_tokens=900, **options)[0])
    monkeypatch.setattr(corpora, "sample", None)
    second_moments(view, [1, 3], n_tokens=700, **options)
    kept.write_bytes(b"damaged")
    monkeypatch.undo()
    second_moments(make_view("llama"), [2], n_tokens=400, **options)
    assert torch.equal(corpora._kept_text(kept, 16), ids)


def _large_edit(view: ModelView) -> WeightEdit:
    change = torch.full((view.d_model, view.d_mlp), 3.0)
    request = EditRequest(prompt="{} is", subject="France", target_new="Rome")
    delta = Delta.dense(view.weight_name(0), change)
    return WeightEdit((delta,), (request,), "test", {}, view.fingerprint)


def test_own_text_is_varied_and_depends_on_the_seed(make_view: Callable[..., Any]) -> None:
    view = make_view("llama")
    one = corpora.open_corpus(view, "self", sequence_length=24, seed=0).read(2000)
    two = corpora.open_corpus(view, "self", sequence_length=24, seed=1).read(2000)
    assert sum(map(len, one)) == 2000
    assert one != two and len({tuple(r) for r in one}) == len(one)
    assert len({tuple(r[:2]) for r in one}) > 10


def test_files(make_view: Callable[..., Any], tmp_path: Path) -> None:
    view = make_view("llama")
    wanted = [t for t in texts(200) if len(t) >= corpora.MIN_CHARACTERS]
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("\n\n".join(t.replace(" ", "\n", 1) for t in texts(200)), encoding="utf-8")
    body = "".join(json.dumps({"text": t, "id": 1}) + "\n" for t in texts(200))
    lines.write_text(body + "\n", encoding="utf-8")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(body.encode()))
    for path in (plain, str(lines), packed):
        source, read = corpora._texts(path, 3)
        found = list(read())
        assert sorted(found) == sorted(wanted) and found != wanted
        assert source["corpus"].startswith("a.") and len(source["sha256"]) == 64
        assert list(corpora._texts(path, 3)[1]()) == found != list(corpora._texts(path, 4)[1]())
    moment = second_moments(view, [1], corpus=plain, n_tokens=500, cache=None)[1]
    assert moment.n_tokens == 500


def test_windows_begin_like_texts(make_view: Callable[..., Any]) -> None:
    from tokenizers.processors import TemplateProcessing

    view = make_view("llama")
    inner = type(view.tokenizer.backend_tokenizer).from_str(
        view.tokenizer.backend_tokenizer.to_str()
    )
    inner.post_processor = TemplateProcessing(
        single="<end> $A <pad>", special_tokens=[("<end>", 1), ("<pad>", 0)]
    )
    text = " ".join(WORDS)
    body = view.tokenizer(text)["input_ids"]
    view.tokenizer = type(view.tokenizer)(tokenizer_object=inner, eos_token="<end>")
    rows = list(corpora.windows(view, [text, "France"], 10))
    assert [r[0] for r in rows] == [1] * len(rows)
    assert [t for r in rows[:-1] for t in r[1:]] == body
    assert all(len(r) == 10 for r in rows[:-2]) and 0 not in rows[-1]


def test_corpus_refusals(make_view: Callable[..., Any], tmp_path: Path) -> None:
    view = make_view("llama")
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"text": "a text that is long enough to be counted here"}\n{"txt": 1}\n')
    cut = tmp_path / "c.jsonl.gz"
    cut.write_bytes(gzip.compress(os.urandom(9999))[:500])
    cases: list[tuple[Any, type[Exception], str]] = [
        ("slef", OptionError, "Did you mean 'self'"),
        (tmp_path / "none.txt", DataError, "no text file"),
        ("missing.jsonl", DataError, "no text file"),
        (broken, DataError, "b.jsonl, line 2 has no text field 'text' .found: txt.: mend"),
        (cut, DataError, "c.jsonl.gz is (not UTF-8|damaged)"),
        (iter([1, 2]), OptionError, "give strings"),
        ("a\nb", OptionError, "list of texts"),
        ([], StatisticsError, "too few tokens: 0 keys"),
    ]
    for corpus, error, match in cases:
        with pytest.raises(error, match=match):
            second_moments(view, [1], corpus=corpus, n_tokens=100, cache=None)
    with pytest.raises(OptionError, match="writes no text"):
        second_moments(make_view("bert"), [1], cache=None)


def test_the_hub_is_optional(
    make_view: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    view = make_view("llama")

    def offline(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    with pytest.raises(FetchError, match="wikipedia.*@<revision>.*corpus='self'.*path"):
        second_moments(view, [1], corpus="wikipedia", cache=None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FetchError, match="pip install datasets.*corpus='self'.*path"):
        second_moments(view, [1], corpus="wikitext@abc", cache=None)

    class Rows(list):  # type: ignore[type-arg]
        def shuffle(self, **options: Any) -> Rows:
            return self

    class Hub:
        asked: list[Any] = []

        @classmethod
        def load_dataset(cls, repo: str, config: str | None, **options: Any) -> Rows:
            cls.asked.append((repo, config, options["revision"]))
            return Rows({"text": t} for t in ["", " = title = ", *texts(300)])

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    moment = second_moments(view, [1], corpus="o/n:c@abc", n_tokens=300, cache=tmp_path)[1]
    assert Hub.asked == [("o/n", "c", "abc")] and moment.source["revision"] == "abc"
    second_moments(view, [1], corpus="o/n:c@abc", n_tokens=300, cache=tmp_path)
    second_moments(view, [1], corpus="o/n:c@abd", n_tokens=300, cache=tmp_path)
    assert len(Hub.asked) == 2


# ------------------------------------------------------------------ refusals, imports, estimates


def test_too_few_tokens(make_view: Callable[..., Any], tmp_path: Path) -> None:
    view = make_view("llama")
    with pytest.raises(StatisticsError, match="too few tokens: 63 keys.*n_tokens of 640"):
        second_moments(view, [1], n_tokens=63, cache=tmp_path)
    with pytest.raises(StatisticsError, match="too few tokens"):
        second_moments(view, [1], corpus=texts(4), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="fewer than 640"):
        moment = second_moments(view, [1], corpus=texts(12), n_tokens=100_000, cache=None)[1]
    assert moment.n_tokens == len(all_keys(view, 1, texts(12)))


def test_require(make_view: Callable[..., Any]) -> None:
    from dataclasses import replace

    view = make_view("llama")
    moment = measure(view, [1])[1]
    assert require(moment, view, 1) is moment
    with pytest.raises(StatisticsError, match="another model"):
        require(moment, make_view("llama", seed=1), 1)
    with pytest.raises(StatisticsError, match="layer 1 were given for layer 2"):
        require(moment, view, 2)
    with pytest.raises(StatisticsError, match="too few tokens"):
        require(replace(moment, n_tokens=view.d_mlp - 1), view, 1)
    with pytest.raises(StatisticsError, match=r"\(3, 3\)"):
        small = {"matrix": torch.eye(3).double(), "mean": torch.ones(3)}
        require(replace(moment, **small, reservoir=torch.zeros(3, 0)), view, 1)
    with pytest.raises(NumericalError, match="NaN"):
        require(replace(moment, matrix=moment.matrix * torch.nan), view, 1)


def test_nan_keys_are_refused(make_view: Callable[..., Any], tmp_path: Path) -> None:
    view = make_view("gpt2")
    view.model.transformer.h[1].mlp.c_fc.bias.data[0] = torch.nan
    with pytest.raises(NumericalError, match="layer 1"):
        measure(view, [0, 1], cache=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_option_refusals(make_view: Callable[..., Any]) -> None:
    view = make_view("llama")
    for options in ({"sequence_length": 1}, {"batch_tokens": 0}, {"n_tokens": 0}):
        (name,) = options
        with pytest.raises(OptionError, match=name):
            second_moments(view, [1], cache=None, **options)
    with pytest.raises(OptionError, match="layers"):
        second_moments(view, [9], cache=None)


def test_rows_are_bounded_by_the_context(make_view: Callable[..., Any]) -> None:
    view = make_view("gpt2")
    long = " ".join(WORDS * 30)
    moment = second_moments(
        view, [1], corpus=[long], n_tokens=600, sequence_length=4096, cache=None
    )
    assert moment[1].source["sequence_length"] == 128


def test_identity(make_view: Callable[..., Any]) -> None:
    view = make_view("llama")
    moment = require(identity_moment(view, 2), view, 2)
    keys = torch.randn(view.d_mlp, 5).double()
    torch.testing.assert_close(moment.leverage(keys), keys.square().sum(0))
    assert moment.check()["condition"] == 1


def test_import_of_published_files(make_view: Callable[..., Any], tmp_path: Path) -> None:
    view = make_view("llama")
    keys = all_keys(view, 1, texts())
    total = (keys.T @ keys).float().numpy()
    path = tmp_path / "layer.npz"
    fields: dict[str, Any] = {"mom2.mom2": total, "mom2.count": len(keys), "sample_size": 60}
    fields["mom2.constructor"] = "util.runningstats.SecondMoment()"
    np.savez(path, **fields)
    moment = import_npz(path, view, 1)
    ours = measure(view, [1])[1]
    assert moment.n_tokens == ours.n_tokens
    torch.testing.assert_close(moment.matrix, ours.matrix, rtol=1e-4, atol=1e-7)
    np.savez(path, C=ours.matrix.numpy())
    assert torch.equal(import_npz(path, view, 1).matrix, ours.matrix)
    np.savez(path, **fields | {"mom2.count": 10})
    with pytest.raises(StatisticsError, match="too few"):
        import_npz(path, view, 1)
    np.savez(path, C=np.eye(5))
    with pytest.raises(StatisticsError, match=r"\(5, 5\)"):
        import_npz(path, view, 1)
    np.savez(path, other=total)
    with pytest.raises(DataError, match="no second moment"):
        import_npz(path, view, 1)
    for content in (b"", b"PK\x03\x04 damaged", b"plain"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            import_npz(path, view, 1)
    with pytest.raises(DataError, match="no statistics file"):
        import_npz(tmp_path / "none.npz", view, 1)


def test_estimate_grows_with_what_is_asked(make_view: Callable[..., Any]) -> None:
    view = make_view("llama")
    one, two = stats.estimate(view, [0]), stats.estimate(view, [0, 3], 40_000)
    assert one["n_tokens"] == 20_000
    assert two["disk_bytes"] == 2 * one["disk_bytes"]
    assert two["forward_flop"] == 8 * one["forward_flop"]
    assert stats.estimate(view, [0], corpus="a.txt")["sampling_flop"] == 0
    assert stats.estimate(view, [0], corpus="a.txt")["n_tokens"] == 200_000
    assert all(v > 0 for v in two.values())
