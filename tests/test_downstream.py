"""Downstream tasks: templates, choice of items, likelihood and generation scores, refusals."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from test_metrics import change

import workbench as wb
from workbench import datasets, metrics
from workbench.datasets import TASKS, TaskItem
from workbench.errors import DataError, OptionError
from workbench.metrics.downstream import cheapest, label_in, weighted_f1, wilson
from workbench.metrics.generation import generate_text
from workbench.metrics.prepared import RESERVED, prepare, split
from workbench.model import ModelView

#: The modules: the package's attribute of the first name is the function.
MODULE = sys.modules["workbench.metrics.downstream"]
PREPARED = sys.modules["workbench.metrics.prepared"]
N = 30


def records(i: int) -> dict[str, dict[str, Any]]:
    """Record ``i`` of every task, in the published schemas."""
    pair = {"sentence1": f"Bo has {i} cats .", "sentence2": f"Bo has {i + 1} pets ."}
    words = [f"b {i}", f"a c {i} d", f"{i}", f"e {i} f"]
    return {
        "sst2": {"sentence": f"a film {i} ", "label": i % 2, "idx": i},
        "mrpc": {**pair, "label": i % 2, "idx": i},
        "cola": {"sentence": f"Bo {i} is .", "label": i % 2, "idx": i},
        "rte": {**pair, "label": i % 2, "idx": i},
        "nli": {**pair, "label": ["entailment", "not_entailment"][i % 2], "index": str(i)},
        "mmlu": {"question": f"{i} ?", "choices": words, "answer": i % 4, "subject": "law"},
        "sentiment_analysis": {"sentence": f"film {i} ", "label": str(i % 2)},
        "dialogue": {"article": f"m : {i}", "options": words, "answers": "ABCD"[i % 4], "id": "d"},
        "hellaswag": {"ctx": f"A man {i}", "endings": words, "label": i % 4, "ind": i},
    }


def write(folder: Path, n: int = N) -> Path:
    folder.mkdir(exist_ok=True)
    for task in TASKS:
        (folder / f"{task}.json").write_text(json.dumps([records(i)[task] for i in range(n)]))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "tasks")


@pytest.fixture
def roomy(make_view: Any) -> ModelView:
    """A random model that takes few-shot prompts."""
    view = make_view("llama")
    view.model.config.max_position_embeddings = 4096
    return view


@torch.no_grad()
def plain_nll(view: ModelView, prompt: str, label: str) -> float:
    """One label at a time, no padding, all logits."""
    start = len(view.tokenizer(prompt)["input_ids"])
    ids = view.tokenizer(f"{prompt} {label}")["input_ids"]
    log_probs = view.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -float(np.mean([float(log_probs[i - 1, ids[i]]) for i in range(start, len(ids))]))


# ---------------------------------------------------------------- reading

EXPECTED = {
    "sst2": ("Review :a film 1\nSentiment :", ("negative", "positive")),
    "mrpc": (
        "Are the sentences paraphrases of each other.\nSentence 1: Bo has 1 cats .\n"
        "Sentence 2: Bo has 2 pets .\nAnswer:",
        ("No", "Yes"),
    ),
    "cola": (
        "Is this sentence linguistically acceptable?\nSentence: Bo 1 is .\nAnswer:",
        ("No", "Yes"),
    ),
    "rte": (
        "Bo has 1 cats .\nquestion: Bo has 2 pets . True or False?\nanswer:",
        ("True", "False"),
    ),
    "nli": (
        "Bo has 1 cats . entails the Bo has 2 pets . True or False? Answer:",
        ("True", "False"),
    ),
    "mmlu": ("Question: 1 ?\n(A) b 1\n(B) a c 1 d\n(C) 1\n(D) e 1 f\nAnswer:", tuple("ABCD")),
    "sentiment_analysis": (
        "Text: film 1\nIs the sentiment of the text positive or negative?\nAnswer:",
        ("negative", "positive"),
    ),
    "dialogue": (
        "Dialogue: m : 1\nWhich of these is said next?\n"
        "(A) b 1\n(B) a c 1 d\n(C) 1\n(D) e 1 f\nAnswer:",
        tuple("ABCD"),
    ),
    "hellaswag": ("A man 1", ("b 1", "a c 1 d", "1", "e 1 f")),
}


@pytest.mark.parametrize("task", TASKS)
def test_templates(task: str, folder: Path) -> None:
    items = datasets.task_items(task, folder)
    assert len(items) == N and [item.item for item in items] == list(range(N))
    prompt, labels = EXPECTED[task]
    assert items[1] == TaskItem(task=task, item=1, prompt=prompt, labels=labels, answer=1)
    assert [item.answer for item in items[:5]] == [i % len(labels) for i in range(5)]
    assert items[1].solved == f"{prompt} {labels[1]}"
    # the published cola template put a second blank there
    assert all(item.prompt == item.prompt.rstrip() for item in items)


def test_every_task_has_an_expected_template() -> None:
    assert set(EXPECTED) == set(TASKS)


def test_compressed_files_and_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    folder = tmp_path / "datasets" / "downstream"
    folder.mkdir(parents=True)
    (folder / "sst2.jsonl").write_text("\n".join(json.dumps(records(i)["sst2"]) for i in range(3)))
    assert [item.answer for item in datasets.task_items("sst2")] == [0, 1, 0]


def test_missing_files_say_what_is_expected(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"no mmlu\.json in .*sst2\.json.*fields question, choices"
    ) as e:
        datasets.task_items("mmlu", tmp_path)
    assert "unified-model-editing" in str(e.value)
    with pytest.raises(DataError, match="is a file"):
        datasets.task_items("mmlu", folder / "mmlu.json")
    with pytest.raises(OptionError, match="Did you mean 'mmlu'"):
        datasets.task_items("mmul", folder)


@pytest.mark.parametrize(
    ("task", "change_", "said"),
    [
        ("sst2", {"label": 2}, "'label' is 2.*one of 0, 1"),
        ("sst2", {"sentence": " "}, "'sentence'"),
        ("nli", {"label": "neutral"}, "'neutral'.*entailment"),
        ("mmlu", {"choices": ["a", "b", "c"]}, "4 non-empty texts"),
        ("dialogue", {"options": ["a", "b", "c", ""]}, "4 non-empty texts"),
        ("hellaswag", {"endings": None}, "'endings' is None"),
        ("mmlu", {"answer": True}, "'answer' is True"),
    ],
)
def test_bad_records_are_pointed_at(
    task: str, change_: dict[str, Any], said: str, folder: Path
) -> None:
    rows = [records(i)[task] for i in range(3)]
    rows[1] |= change_
    (folder / f"{task}.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=rf"{task}\.json, record 2: .*{said}"):
        datasets.task_items(task, folder)
    (folder / f"{task}.json").write_text(json.dumps([rows[0], "text"]))
    with pytest.raises(DataError, match="record 2: is a str, not a record"):
        datasets.task_items(task, folder)


# ---------------------------------------------------------------- choice of items


def items_of(answers: list[int]) -> list[TaskItem]:
    return [
        TaskItem(task="mmlu", item=i, prompt=f"q{i}", labels=tuple("ABCD"), answer=a)
        for i, a in enumerate(answers)
    ]


def numbers(items: list[TaskItem]) -> list[int]:
    return [item.item for item in items]


def test_examples_are_never_tested() -> None:
    items = items_of([i % 4 for i in range(60)])
    tested = {n: numbers(split(items, n, None, 0)[1]) for n in (0, 1, 4, 10, 13)}
    assert tested[0] == tested[1] == tested[4] == tested[10] == list(range(RESERVED, 60))
    assert tested[13] == list(range(13, 60))
    for n in (0, 1, 4, 10, 13):
        for tests in (None, 20):
            shots, chosen = split(items, n, tests, 0)
            assert len(shots) == n and not set(numbers(shots)) & set(numbers(chosen))
    assert split(items, 0, 20, 3)[1] == split(items, 10, 20, 3)[1]


def test_examples_are_balanced_where_the_head_allows_it() -> None:
    items = items_of([3, 3, 3, 1, 3, 0, 3, 3, 2, 3] + [0, 1, 2, 3] * 5)
    assert numbers(split(items, 4, None, 0)[0]) == [0, 3, 5, 8]
    assert numbers(split(items, 6, None, 0)[0]) == [0, 1, 2, 3, 5, 8]
    assert numbers(split(items, 10, None, 0)[0]) == list(range(10))


def test_tests_are_balanced_seeded_and_nested() -> None:
    items = items_of([0] * 40 + [1] * 30 + [2] * 20 + [3] * 5)
    chosen = split(items, 0, 40, 0)[1]
    assert numbers(chosen) == sorted(numbers(chosen))
    # class 3 has only 5: the others share what is left
    assert sorted(Counter(item.answer for item in chosen).values()) == [5, 11, 12, 12]
    assert split(items, 0, 40, 0)[1] == chosen != split(items, 0, 40, 1)[1]
    assert set(numbers(split(items, 0, 12, 0)[1])) < set(numbers(chosen))


def test_more_tests_than_items_are_refused(tiny: ModelView, folder: Path) -> None:
    assert len(metrics.downstream_items(tiny, "sst2", tests=N - 10, path=folder)) == N - 10
    with pytest.raises(OptionError, match=r"tests=21: sst2 has 20 items to test"):
        wb.downstream(tiny, "sst2", tests=21, path=folder)
    write(folder, 10)
    with pytest.raises(OptionError, match="sst2 has 10 items.*none is left"):
        wb.downstream(tiny, "sst2", path=folder)


# ---------------------------------------------------------------- likelihood


def test_every_task_equals_one_forward_a_label(tiny: ModelView, folder: Path) -> None:
    found = metrics.downstream_items(tiny, list(TASKS), tests=4, path=folder)
    assert list(found["task"].unique()) == list(TASKS) and len(found) == 36
    seen = set()
    for row in found.to_dict("records"):
        item = datasets.task_items(row["task"], folder)[row["item"]]
        plain = [plain_nll(tiny, item.prompt, label) for label in item.labels]
        own = [row[f"nll_{i}"] for i in range(4)]
        np.testing.assert_allclose(own[: len(plain)], plain, atol=2e-5)
        assert all(map(math.isnan, own[len(plain) :]))
        assert row["label"] == item.answer and row["predicted"] == int(np.argmin(plain))
        assert row["correct"] == (row["label"] == row["predicted"])
        seen.add(row["correct"])
    assert seen == {True, False}
    table = wb.downstream(tiny, list(TASKS), tests=4, path=folder)
    by_task = found.groupby("task")["correct"].mean()
    assert dict(zip(table["task"], table["accuracy"], strict=True)) == dict(by_task)
    assert set(table["n"]) == {4} and not table.isna().any(axis=None)


def test_few_shot_prompts(roomy: ModelView, folder: Path) -> None:
    """Solved examples, a line each, then the question; scored as any other prompt."""
    found = metrics.downstream_items(
        roomy, ("sst2", "mmlu"), few_shots=(2, 3), tests=4, path=folder, batch_tokens=300
    )
    assert dict(found.groupby("task")["few_shots"].first()) == {"sst2": 2, "mmlu": 3}
    head = "Review :a film 0\nSentiment : negative\nReview :a film 1\nSentiment : positive\n"
    for row in found.to_dict("records"):
        items = datasets.task_items(row["task"], folder)
        item, n = items[row["item"]], row["few_shots"]
        shots = "".join(f"{shot.solved}\n" for shot in items[:n])
        assert row["task"] != "sst2" or shots == head
        plain = [plain_nll(roomy, shots + item.prompt, label) for label in item.labels]
        np.testing.assert_allclose([row[f"nll_{i}"] for i in range(len(plain))], plain, atol=2e-5)


def test_order_of_the_labels_does_not_matter(tiny: ModelView, folder: Path) -> None:
    before = metrics.downstream_items(tiny, "hellaswag", path=folder)
    rows = [records(i)["hellaswag"] for i in range(N)]
    for row in rows:
        row["endings"], row["label"] = row["endings"][::-1], 3 - row["label"]
    (folder / "hellaswag.json").write_text(json.dumps(rows))
    after = metrics.downstream_items(tiny, "hellaswag", path=folder)
    assert list(after["predicted"]) == list(3 - before["predicted"])
    assert list(after["correct"]) == list(before["correct"])
    np.testing.assert_allclose(after["nll_0"], before["nll_3"], atol=2e-5)


def test_ties_and_nan_are_no_answer() -> None:
    nan, inf = math.nan, math.inf
    rows = [[1, 2], [2, 1], [1, 1], [nan, nan], [nan, 3], [inf, inf]]
    assert cheapest(np.array(rows)).tolist() == [0, 1, -1, -1, 1, -1]
    assert cheapest(np.array([[3.0, 2, 2, 4], [3, 3, 3, 1]])).tolist() == [-1, 3]


def test_a_model_without_opinion_answers_nothing(make_view: Any, folder: Path) -> None:
    view = make_view("gpt2")
    with torch.no_grad():
        view.model.get_output_embeddings().weight.zero_()
    table = wb.downstream(view, ("sst2", "rte"), path=folder)
    assert table["accuracy"].tolist() == [0, 0] and table["chance"].tolist() == [0.5, 0.5]


def test_labels_of_one_token_share_a_row(tiny: ModelView, folder: Path) -> None:
    part = prepare(tiny, "mmlu", 0, None, folder, 0)
    assert len(part.plan.rows) == len(part.items) == 20
    assert len(part.plan.spots) == 20 and len(part.plan.cell_label) == 80


# ---------------------------------------------------------------- generation


def test_label_words() -> None:
    labels = ("No", "Yes")
    assert label_in(" Yes, no doubt", labels) == 1
    assert label_in("\nno. Yes", labels) == 0
    assert label_in(" Nothing is known", labels) == -1
    assert label_in("", labels) == -1
    letters = tuple("ABCD")
    assert label_in(" (B) because A", letters) == 1
    assert label_in(" a dog", letters) == -1
    assert label_in(" Dogs", letters) == -1


def test_generation_scores(tiny: ModelView, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some texts are right, some wrong and some name no label: class -1, and the F1 has it."""
    says = [" positive", " NEGATIVE one", " a film", "positively", " not negative, positive"]
    wrote: list[tuple[list[str], int]] = []

    def write_texts(view: Any, prompts: Any, *, max_new_tokens: int) -> list[str]:
        wrote.append((list(prompts), max_new_tokens))
        return [says[i % 5] for i in range(len(prompts))]

    monkeypatch.setattr(MODULE, "generate_text", write_texts)
    found = metrics.downstream_items(tiny, ("sst2", "hellaswag"), path=folder, generate=3)
    items = datasets.task_items("sst2", folder)
    assert wrote == [([item.prompt for item in items[10:]], 3)]  # never for whole sentences
    sst2 = found[found["task"] == "sst2"]
    assert sst2["generated_label"].tolist() == [1, 0, -1, -1, 0] * 4
    assert (
        found[found["task"] == "hellaswag"][["generated", "generated_label"]].isna().all(axis=None)
    )
    table = metrics.downstream_summary(found).set_index("task")
    labels, said = [i % 2 for i in range(20)], [1, 0, -1, -1, 0] * 4
    assert table.loc["sst2", "generated_f1"] == f1_score(labels, said, average="weighted")
    kept = [(a, b) for a, b in zip(labels, said, strict=True) if b >= 0]
    without = f1_score(*zip(*kept, strict=True), average="weighted")
    assert table.loc["sst2", "generated_f1"] < without - 0.05
    assert table.loc["sst2", "unanswered"] == 0.4
    right = sum(a == b for a, b in zip(labels, said, strict=True)) / 20
    assert table.loc["sst2", "generated_accuracy"] == right > 0
    names = ["generated_f1", "generated_accuracy", "unanswered"]
    assert table.loc["hellaswag", names].isna().all()
    assert "generated_f1" not in wb.downstream(tiny, "sst2", path=folder)


def test_generation_is_the_greedy_continuation(tiny: ModelView, folder: Path) -> None:
    found = metrics.downstream_items(tiny, "cola", tests=4, path=folder, generate=True)
    items = datasets.task_items("cola", folder)
    prompts = [items[i].prompt for i in found["item"]]
    assert found["generated"].tolist() == generate_text(tiny, prompts, max_new_tokens=5)


# ---------------------------------------------------------------- summary


def test_summary_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    label, predicted = generator.integers(0, 3, 50), generator.integers(-1, 3, 50)
    items = pd.DataFrame({"task": "mmlu", "few_shots": 2, "label": label, "predicted": predicted})
    row = metrics.downstream_summary(items).iloc[0]
    assert row["f1"] == pytest.approx(f1_score(label, predicted, average="weighted"), abs=1e-12)
    assert row["accuracy"] == (label == predicted).mean()
    assert row["chance"] == np.bincount(label).max() / 50
    assert (row["n"], row["few_shots"]) == (50, 2)
    assert row["low"] < row["accuracy"] < row["high"]
    with pytest.raises(DataError, match="no column predicted"):
        metrics.downstream_summary(items.drop(columns="predicted"))


def test_f1_by_hand() -> None:
    """Class 0: 2 of 2 found among 3 said; class 1: 1 of 2 found, 1 said; -1 has no weight."""
    label, predicted = np.array([0, 0, 1, 1, 0]), np.array([0, 0, 0, 1, -1])
    by_hand = (3 * (2 * (2 / 3) * (2 / 3) / (4 / 3)) + 2 * (2 * 1 * 0.5 / 1.5)) / 5
    assert weighted_f1(label, predicted) == pytest.approx(by_hand)


def test_wilson_interval() -> None:
    """It solves (p - x)² = z² x (1 - x) / n."""
    for share, n in [(0.5, 100), (0.9, 20), (0.0, 10), (1.0, 10)]:
        for x in wilson(share, n):
            assert (share - x) ** 2 == pytest.approx(1.959964**2 * x * (1 - x) / n, abs=1e-6)
        low, high = wilson(share, n)
        assert 0 <= low <= share <= high <= 1 and high - low > 0.1


# ---------------------------------------------------------------- options


def test_one_number_of_examples_a_task(
    tiny: ModelView, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr(MODULE, "tally", never)
    monkeypatch.setattr(MODULE, "prepare", never)
    tasks = ("sst2", "cola")
    for few_shots in [(4,), (4, 6, 6), ()]:
        with pytest.raises(OptionError, match=rf"has {len(few_shots)} numbers for 2 tasks"):
            wb.downstream(tiny, tasks, few_shots=few_shots, path=folder)
    for few_shots in [(4, -1), {"cola": 1.5}, -1, 2.5, True]:
        with pytest.raises(OptionError, match="whole number"):
            wb.downstream(tiny, tasks, few_shots=few_shots, path=folder)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="'mmlu', which is not among"):
        wb.downstream(tiny, tasks, few_shots={"mmlu": 1}, path=folder)
    with pytest.raises(OptionError, match="Did you mean 'cola'"):
        wb.downstream(tiny, ("sst2", "coola"), path=folder)
    for bad in [(), ("sst2", "sst2")]:
        with pytest.raises(OptionError, match="each once"):
            wb.downstream(tiny, bad, path=folder)
    for option in [{"tests": 0}, {"tests": 1.5}, {"generate": 0}, {"generate": -1}, {"seed": -1}]:
        with pytest.raises(OptionError, match=next(iter(option))):
            wb.downstream(tiny, tasks, path=folder, **option)  # type: ignore[arg-type]


def test_forms_of_few_shots_agree(roomy: ModelView, folder: Path) -> None:
    tasks = ("sst2", "cola")
    pairs = [((3, 0), {"sst2": 3}), ((2, 2), 2), ((0, 0), 0)]
    for a, b in pairs:
        one = wb.downstream(roomy, tasks, few_shots=a, tests=4, path=folder)
        pd.testing.assert_frame_equal(
            one, wb.downstream(roomy, tasks, few_shots=b, tests=4, path=folder)
        )
        assert tuple(one["few_shots"]) == a


def test_the_number_of_examples_that_fits_is_named(make_view: Any, folder: Path) -> None:
    view = make_view("gpt2")  # 128 positions
    with pytest.raises(
        OptionError, match=r"few_shots=10: .* of cola .* is 128\. .*few_shots=(\d)"
    ) as e:
        wb.downstream(view, "cola", few_shots=10, path=folder)
    fits = int(str(e.value).partition("give few_shots=")[2][0])
    wb.downstream(view, "cola", few_shots=fits, path=folder)
    with pytest.raises(OptionError, match=f"give few_shots={fits}"):
        wb.downstream(view, "cola", few_shots=fits + 1, path=folder)
    with pytest.raises(OptionError, match=r"100 written tokens .*few_shots=0: |leave cola out"):
        wb.downstream(view, "cola", few_shots=fits, path=folder, generate=100)
    rows = [records(i)["cola"] | {"sentence": "Bo is old " * 50} for i in range(12)]
    (folder / "cola.json").write_text(json.dumps(rows))
    with pytest.raises(OptionError, match="even without examples they do not: leave cola out"):
        wb.downstream(view, "cola", path=folder)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_kinds_are_refused(make_view: Any, family: str, folder: Path) -> None:
    with pytest.raises(OptionError, match="is an encoder_.* a decoder to go on"):
        wb.downstream(make_view(family), "sst2", path=folder)


# ---------------------------------------------------------------- again and again


def test_a_repeated_call_only_runs_the_model(
    roomy: ModelView, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"few_shots": (2, 0), "tests": 6, "path": folder, "seed": 1}
    first = wb.downstream(roomy, ("sst2", "mmlu"), **options)
    before = metrics.downstream_items(roomy, ("sst2", "mmlu"), **options)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("planned again")

    with monkeypatch.context() as patched:
        patched.setattr(PREPARED, "task_items", never)
        patched.setattr(PREPARED, "make_plan", never)
        pd.testing.assert_frame_equal(wb.downstream(roomy, ("sst2", "mmlu"), **options), first)
        roomy.push(change(roomy))  # another state of the weights, the same plan
        after = metrics.downstream_items(roomy, ("sst2", "mmlu"), **options)
        assert list(after["item"]) == list(before["item"])
        assert not np.allclose(after["nll_0"], before["nll_0"], atol=1e-4)
        for other in [{"seed": 2}, {"tests": 5}, {"few_shots": (3, 0)}]:
            with pytest.raises(AssertionError, match="planned again"):
                wb.downstream(roomy, ("sst2", "mmlu"), **(options | other))
    roomy.pop()
    pd.testing.assert_frame_equal(wb.downstream(roomy, ("sst2", "mmlu"), **options), first)


def test_a_changed_file_is_read_again(tiny: ModelView, folder: Path) -> None:
    assert wb.downstream(tiny, "sst2", path=folder)["n"].tolist() == [20]
    write(folder, 24)
    os.utime(folder / "sst2.json", ns=(1, 1))
    assert wb.downstream(tiny, "sst2", path=folder)["n"].tolist() == [14]


# ---------------------------------------------------------------- real files

COUNTS = {
    "sst2": 856,
    "mrpc": 258,
    "cola": 644,
    "rte": 262,
    "nli": 2489,
    "mmlu": 1516,
    "sentiment_analysis": 872,
    "dialogue": 886,
    "hellaswag": 1000,
}


def test_the_nine_published_files(data_dir: Path) -> None:
    assert set(COUNTS) == set(TASKS)
    for task, count in COUNTS.items():
        items = datasets.task_items(task, data_dir / "downstream")
        assert len(items) == count
        shares = np.bincount([item.answer for item in items]) / count
        # as many classes as labels, about equally frequent
        assert len(shares) == len(items[0].labels) and shares.max() < 1.2 / len(shares)
        examples, tested = split(items, 4, 40, 0)
        assert len({item.answer for item in examples}) >= 2 and len(tested) == 40


def test_entailment_is_true_in_both_entailment_tasks(data_dir: Path) -> None:
    """rte carries GLUE's numbers: 0 is entailment."""
    rte = datasets.task_items("rte", data_dir / "downstream")
    found = next(item for item in rte if "Prayong is a member of Theravada" in item.prompt)
    assert found.labels[found.answer] == "True"


@pytest.mark.slow
def test_the_default_model_has_some_ability(smollm2: ModelView, data_dir: Path) -> None:
    row = wb.downstream(smollm2, "sst2", tests=100, path=data_dir / "downstream").iloc[0]
    assert row["low"] > row["chance"] == 0.5
