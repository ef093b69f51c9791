"""Lessons: functions of (seed, step), disjoint where they say so, refused where they do not fit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import workbench as wb
from workbench.editors.learned import continuations as sampled
from workbench.editors.learned.lessons import Lesson, Topic
from workbench.editors.learned.rewording import reword, subject_span
from workbench.editors.learned.tasks import TASKS, verdict_labels
from workbench.errors import DataError, OptionError
from workbench.opening import open_view


def request(i: int, target: str = "yes") -> wb.EditRequest:
    return wb.EditRequest(prompt=f"question {i}", target_new=target)


def topics(n: int, start: int = 0) -> tuple[Topic, ...]:
    return tuple(
        Topic(
            edits=(request(i, "yes"), request(i, "no")),
            rewordings=(f"{i} in other words", f"once more {i}"),
            local=(request(i, "true"),),
        )
        for i in range(start, start + n)
    )


@pytest.fixture(scope="module")
def lessons() -> wb.Lessons:
    return wb.Lessons(training=topics(30), held_out=topics(10, 30), seed=3)


def texts(requests: tuple[wb.EditRequest, ...]) -> list[str]:
    return [r.text for r in requests]


def test_a_lesson_is_a_function_of_seed_and_step(lessons: wb.Lessons) -> None:
    again = wb.Lessons(training=topics(30), held_out=topics(10, 30), seed=3)
    other = wb.Lessons(training=topics(30), held_out=topics(10, 30), seed=4)
    drawn = [lessons.draw(s, n_edits=2, n_local=3) for s in range(20)]
    assert [again.draw(s, n_edits=2, n_local=3) for s in reversed(range(20))] == drawn[::-1]
    assert [other.draw(s, n_edits=2, n_local=3) for s in range(20)] != drawn
    assert lessons.validation(5, n_edits=2, n_local=3) == again.validation(5, n_edits=2, n_local=3)
    assert lessons.digest == again.digest != other.digest


def test_the_digest_names_all_that_a_lesson_is_made_of(lessons: wb.Lessons) -> None:
    found = {lessons.digest}
    for change in (
        {"training": topics(29)},
        {"held_out": topics(9, 30)},
        {"local": (request(99),)},
        {"held_out_local": (request(99),)},
        {"note": {"task": "another"}},
        {"training": (*topics(29), Topic(edits=(request(29),), cuts=(0, 3)))},
    ):
        whole = {"training": topics(30), "held_out": topics(10, 30), "seed": 3} | change
        found.add(wb.Lessons(**whole).digest)
    assert len(found) == 7


def test_every_topic_comes_once_before_any_comes_again(lessons: wb.Lessons) -> None:
    seen = Counter(t for s in range(15) for t in texts(lessons.draw(s, n_edits=2, n_local=0).edits))
    assert len(seen) == 30 and set(seen.values()) == {1}
    second = [t for s in range(15, 30) for t in texts(lessons.draw(s, n_edits=2, n_local=0).edits)]
    assert sorted(second) == sorted(seen) and second != list(seen)


@pytest.mark.parametrize("n_edits", [1, 5, 25])
def test_edits_are_distinct_and_locality_is_none_of_them(lessons: wb.Lessons, n_edits: int) -> None:
    for step in range(25):
        lesson = lessons.draw(step, n_edits=n_edits, n_local=5)
        edits, local = texts(lesson.edits), texts(lesson.local)
        assert len(set(edits)) == len(edits) == len(lesson.outer) == n_edits
        assert len(set(local)) == 5 and not set(local) & set(edits)
        for edit, outer in zip(lesson.edits, lesson.outer, strict=True):
            number = edit.text.removeprefix("question ")
            assert outer.text in (f"{number} in other words", f"once more {number}")
            assert outer.target_new == edit.target_new


def test_validation_shares_nothing_with_training(lessons: wb.Lessons) -> None:
    def everything(lesson: Lesson) -> set[str]:
        return set(texts(lesson.edits)) | set(texts(lesson.outer)) | set(texts(lesson.local))

    trained = set().union(*(everything(lessons.draw(s, n_edits=5, n_local=5)) for s in range(40)))
    kept = set().union(*(everything(x) for x in lessons.validation(10, n_edits=5, n_local=5)))
    assert len(trained) > 80 and len(kept) > 20 and not trained & kept


def test_neither_pool_holds_the_other_sides_edits_or_texts() -> None:
    pool = tuple(request(i, "true") for i in (0, 30, 50, 51))
    found = wb.Lessons(
        training=topics(5),
        held_out=topics(5, 30),
        local=pool,
        held_out_local=(*pool, request(1), request(60)),
    )
    trained = {t for s in range(20) for t in texts(found.draw(s, n_edits=1, n_local=2).local)}
    assert trained == {"question 0", "question 50", "question 51"}
    kept = {t for x in found.validation(20, n_edits=1, n_local=1) for t in texts(x.local)}
    assert kept == {"question 30", "question 60"}


def test_both_targets_and_all_words_are_drawn(lessons: wb.Lessons) -> None:
    drawn = [lessons.draw(s, n_edits=1, n_local=0) for s in range(900)]
    yes = sum(x.edits[0].target_new == "yes" for x in drawn)
    first = sum(x.outer[0].text.endswith("in other words") for x in drawn)
    for n in (yes, first):  # 6 standard deviations around one half
        assert abs(n - 450) < 90


def test_a_text_that_an_edit_makes_wrong_is_not_locality() -> None:
    anna = wb.EditRequest(prompt="{} lives in", subject="Anna", target_new="A", target_true="B")
    known = (wb.EditRequest(prompt="The home of Anna is", target_new="B"), request(1), request(2))
    found = wb.Lessons(
        training=(Topic(edits=(anna,)),), held_out=topics(2, 5), local=known, held_out_local=known
    )
    for step in range(10):
        lesson = found.draw(step, n_edits=1, n_local=2)
        assert lesson.outer == lesson.edits and "The home of Anna is" not in texts(lesson.local)


def test_more_than_there_is_is_refused(lessons: wb.Lessons) -> None:
    for bad in ({"n_edits": 31}, {"n_edits": 0}, {"n_edits": 29, "n_local": 2}):
        with pytest.raises(OptionError, match="lessons: n_"):
            lessons.draw(0, **{"n_local": 0, **bad})
    with pytest.raises(OptionError, match="validation has 10 things"):
        lessons.validation(1, n_edits=11, n_local=0)
    with pytest.raises(OptionError, match="trained on and held out.*question 3"):
        wb.Lessons(training=topics(4), held_out=topics(1, 3))
    with pytest.raises(OptionError, match="training is empty"):
        wb.Lessons(training=(), held_out=topics(1))
    with pytest.raises(OptionError, match="accuracy, perplexity"):
        wb.Lessons(training=topics(2), held_out=topics(1, 3), measure="f1")


def test_cases_become_lessons() -> None:
    cases = wb.datasets.tiny(limit=50)
    found = wb.Lessons.from_cases(cases, seed=1, note={"locality": "mine"})
    assert len(found.training) == 40 and len(found.held_out) == 10
    assert found.note["locality"] == "mine" and "paraphrases" in found.note["rephrasing"]
    lesson = found.draw(0, n_edits=3, n_local=4)
    case = next(c for c in cases if c.request == lesson.edits[0])
    assert lesson.outer[0].text in [p.prompt for p in case.probes if p.kind == "paraphrase"]
    given = wb.Lessons.from_cases(
        cases[:20], validation=cases[20:30], local=[request(1), request(2)]
    )
    assert len(given.held_out) == 10 and given.draw(0, n_edits=1, n_local=1).local[0].text in (
        "question 1",
        "question 2",
    )
    with pytest.raises(OptionError, match="held_out=1.5"):
        wb.Lessons.from_cases(cases, held_out=1.5)


# ------------------------------------------------------------------ tasks


@pytest.mark.parametrize(
    ("task", "kind", "fits"),
    [
        (task, kind, kind in fit)
        for task, fit in {
            "gen": ("decoder",),
            "qa": ("decoder", "encoder_decoder"),
            "fc": ("encoder_classifier",),
            "tiny": ("decoder", "encoder_decoder", "encoder_classifier"),
        }.items()
        for kind in ("decoder", "encoder_decoder", "encoder_classifier")
    ],
)
def test_a_task_is_for_some_families(task: str, kind: str, fits: bool) -> None:
    if fits:
        assert wb.check_task(task, kind) is TASKS[task]
        return
    with pytest.raises(OptionError, match=f"task='{task}' .* is an? {kind}. Take one of its tasks"):
        wb.check_task(task, kind)


def test_nothing_is_read_for_a_task_that_does_not_fit(tiny) -> None:
    for options, message in (
        ({"task": "fc"}, "for encoder_classifiers; tiny is a decoder"),
        ({"task": "chat"}, "task='chat' is unknown"),
        ({"task": "gen", "locality": "nq"}, "locality='nq' does not fit task='gen'"),
        ({"task": "qa", "locality": "wikitext"}, "comes from same or nq"),
        ({"task": "qa", "locality": "squad"}, "locality='squad' is unknown"),
        ({"task": "qa", "limit": 1}, "limit=1"),
        ({"task": "gen", "rewordings": "x"}, "rewordings='x' is not used here"),
        ({"task": "tiny", "validation": "x"}, "validation='x' is not used here"),
    ):
        task = options.pop("task")
        with pytest.raises(OptionError, match=message):
            wb.make_lessons(tiny, task, **{"data": "/not/there.json", **options})


def test_the_tiny_world_is_trained_beside_its_cases(tiny) -> None:
    found = wb.make_lessons(tiny, "tiny", seed=1)
    cases = wb.datasets.tiny()
    assert [t.edits[0] for t in found.held_out] == [c.request for c in cases]
    facts = {(t.edits[0].subject, t.edits[0].target_true) for t in found.training}
    assert len(facts) == len(found.training) > 1500
    assert not facts & {(c.request.subject, c.request.target_true) for c in cases}
    for topic in found.training[:200]:
        edit = topic.edits[0]
        assert edit.target_new != edit.target_true and len(topic.rewordings) == 4
    true = [t.local[0] for t in found.training[::30]]
    assert wb.score(tiny, true)["exact"].mean() > 0.95  # what the wordings say is so


def test_the_tiny_world_needs_its_labels(make_view) -> None:
    with pytest.raises(OptionError, match="has no label .* use wb.load"):
        wb.make_lessons(make_view("bert"), "tiny")


TABLE = """What is the native language of Anna Bell?\tGerman
In what year did Oslo Bridge open?\t1931
What gender is Tanja Damaske of?\t
Who is the father of Ribero?\tBo
What is  the mother tongue of Cy?\tDanish
Which is the first language of Anna Bell?\tDutch
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "questions.tsv"
    path.write_text(TABLE)
    return path


def test_questions_get_words_of_our_own(tiny, table: Path) -> None:
    found = wb.make_lessons(tiny, "qa", data=table)
    assert len(found.training) + len(found.held_out) == 4  # one has no target, one asks again
    assert "relation templates of Workbench (" in found.note["rephrasing"]
    by_prompt = {t.prompt: t for t in (*found.training, *found.held_out)}
    anna = by_prompt["What is the native language of Anna Bell?"]
    assert "Which language did Anna Bell learn first?" in anna.rewordings
    assert by_prompt["What is the mother tongue of Cy?"].edits[0].target_new == "Danish"
    table.write_text("a question without a target\n")
    with pytest.raises(DataError, match="line 1 is not 'question TAB target'"):
        wb.make_lessons(tiny, "qa", data=table)


KILT = (
    '{{"id": "{i}", "input": "Who is the father of {n}?", "output": [{{"answer": "Bo"}}], '
    '"alternatives": ["Al", "Ed"], "filtered_rephrases": ["{n} is whose child?", '
    '"Who is the father of {n}?"]}}\n'
)


def test_what_validation_asks_in_any_words_is_not_trained_on(
    tiny, table: Path, tmp_path: Path
) -> None:
    other = tmp_path / "validation.tsv"
    other.write_text("Which native tongue does Anna Bell have?\tPolish\n")
    found = wb.make_lessons(tiny, "qa", data=table, validation=other)
    assert len(found.held_out) == 1
    assert sorted(t.prompt for t in found.training) == [
        "In what year did Oslo Bridge open?",
        "What is the mother tongue of Cy?",
        "Who is the father of Ribero?",
    ]


def test_de_caos_files_give_alternatives_and_words(tiny, tmp_path: Path, table: Path) -> None:
    path = tmp_path / "kilt.jsonl"
    path.write_text("".join(KILT.format(i=i, n=n) for i, n in enumerate(("Ribero", "Anna", "Cy"))))
    found = wb.make_lessons(tiny, "qa", data=path)
    topic = found.training[0]
    assert [e.target_new for e in topic.edits] == ["Al", "Ed"] and len(topic.rewordings) == 1
    assert topic.local[0].target_new == "Bo" and "De Cao" in found.note["rephrasing"]
    table.write_text(TABLE + "Who is the father of Anna?\tMo\n")
    borrowed = wb.make_lessons(tiny, "qa", data=table, rewordings=path)
    words = {t.prompt: t.rewordings for t in (*borrowed.training, *borrowed.held_out)}
    assert words == {
        "Who is the father of Ribero?": ("Ribero is whose child?",),
        "Who is the father of Anna?": ("Anna is whose child?",),
    }


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("What is the native language of Christiane Cohendy?", "Christiane Cohendy"),
        ("Who was Gunnar of Hlíðarendi's father?", "Gunnar of Hlíðarendi"),
        ("Which was the family of Cozumel fox?", "Cozumel fox"),
        ("In what constellation can 3 Cancri be found?", "3 Cancri"),
        ("Who wrote it?", None),
        ("Which star of Anna played Bo?", None),
    ],
)
def test_the_subject_of_a_question(question: str, subject: str | None) -> None:
    span = subject_span(question)
    assert (None if span is None else question[slice(*span)]) == subject


def test_questions_nobody_knows_get_a_frame() -> None:
    found = reword("Who wrote it?")
    assert found.framed and all("Who wrote it?" in p for p in found.prompts)
    known = reword("When was Anna Bell born?")
    assert not known.framed and all("Anna Bell" in p for p in known.prompts)
    assert "When was Anna Bell born?" not in known.prompts


# ------------------------------------------------------------------ claims


def verdict_view(make_model, tokenizer, labels: tuple[str, ...]) -> wb.ModelView:
    model = make_model("bert")
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: i for i, name in enumerate(labels)}
    model.classifier = type(model.classifier)(model.config.hidden_size, len(labels))
    model.config.num_labels = model.num_labels = len(labels)
    return open_view(model, tokenizer, name="claims", labels=labels)


CLAIM = '{{"id": {i}, "label": "{label}", "claim": "Claim {i} is so."}}\n'


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    path = tmp_path / "claims.jsonl"
    labels = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    path.write_text("".join(CLAIM.format(i=i, label=labels[i % 3]) for i in range(90)))
    return path


def test_claims_ask_for_either_verdict(make_model, tokenizer, claims: Path) -> None:
    view = verdict_view(make_model, tokenizer, ("REFUTES", "SUPPORTS"))
    found = wb.make_lessons(view, "fc", data=claims, seed=1)
    assert len(found.training) == 48 and found.note["rephrasing"] == "no paraphrases"
    drawn = [found.draw(s, n_edits=1, n_local=2) for s in range(960)]
    gold = {c.request.text: c.request.target_true for c in wb.datasets.fever(claims)}
    flips = sum(x.edits[0].target_new != gold[x.edits[0].text] for x in drawn)
    assert abs(flips - 480) < 93  # 6 standard deviations
    assert all(x.outer == x.edits for x in drawn)
    assert all(r.target_new == gold[r.text] for x in drawn for r in x.local)


def test_labels_count_by_name_then_by_position(make_model, tokenizer, make_view, claims) -> None:
    for labels, expected in (
        (("supports", "refutes"), {"REFUTES": "refutes", "SUPPORTS": "supports"}),
        (("LABEL_0", "LABEL_1"), {"REFUTES": "LABEL_0", "SUPPORTS": "LABEL_1"}),
    ):
        assert verdict_labels(verdict_view(make_model, tokenizer, labels)) == expected
    with pytest.raises(OptionError, match="has 3 labels, a claim needs two"):
        wb.make_lessons(make_view("bert"), "fc", data=claims)


# ------------------------------------------------------------------ text


@pytest.fixture
def long_texts(tmp_path: Path) -> Path:
    """Paragraphs in words the tiny model's tokenizer knows."""
    cases = wb.datasets.tiny()
    said = [f"{c.request.text} {c.request.target_true} ." for c in cases]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(said[i : i + 12]) for i in range(0, 300, 3)))
    return path


def test_a_decoder_is_taught_what_it_wrote_itself(tiny, long_texts, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    found = wb.make_lessons(tiny, "gen", data=long_texts, limit=12, seed=0)
    assert len(found.training) + len(found.held_out) == 12 and found.measure == "perplexity"
    lesson = found.draw(0, n_edits=4, n_local=3)
    for edit, outer in zip(lesson.edits, lesson.outer, strict=True):
        whole = tiny.tokenizer(f"{edit.prompt} {edit.target_new}")["input_ids"]
        prompt = tiny.tokenizer(edit.prompt)["input_ids"]
        assert len(whole) - len(prompt) == sampled.SAMPLED
        assert edit.prompt.endswith(outer.prompt) and outer.target_new == edit.target_new
        assert len(outer.prompt.split()) >= len(edit.prompt.split()) / 2
    cuts = {o.prompt == e.prompt for s in range(30) for e, o in _pairs(found, s)}
    assert cuts == {True, False}
    assert all(" " not in r.prompt and len(r.target_new) > 100 for r in lesson.local)
    # kept: nothing is sampled twice, and a longer list begins with the shorter one
    monkeypatch.setattr(sampled, "sample", lambda *a, **k: pytest.fail("sampled again"))
    assert wb.make_lessons(tiny, "gen", data=long_texts, limit=12, seed=0).digest == found.digest


def _pairs(found: wb.Lessons, step: int) -> list[tuple[wb.EditRequest, wb.EditRequest]]:
    lesson = found.draw(step, n_edits=2, n_local=0)
    return list(zip(lesson.edits, lesson.outer, strict=True))


def test_text_that_is_edited_is_not_kept_as_locality(tiny, long_texts, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    found = wb.make_lessons(tiny, "gen", data=long_texts, limit=8, seed=0)
    kept = {f"{r.prompt} {r.target_new}"[:80] for r in (*found.local, *found.held_out_local)}
    written = {t.prompt[:80] for t in (*found.training, *found.held_out)}
    assert len(kept) > 20 and not kept & written
    short = tmp_path / "short.txt"
    short.write_text("too short\n")
    with pytest.raises(DataError, match="50 or more words"):
        wb.make_lessons(tiny, "gen", data=short)


# ------------------------------------------------------------------ the real files


def test_the_real_files_make_lessons(make_model, tokenizer, tiny, data_dir: Path) -> None:
    found = wb.make_lessons(
        tiny, "qa", data=data_dir / "zsre_train_10000.tsv", validation=data_dir / "zsre.json"
    )
    trained = {p for t in found.training for p in t.prompts}
    assert len(found.training) > 8500 and len(found.held_out) > 1600
    assert not trained & {p for t in found.held_out for p in t.prompts}
    local = data_dir / "nq_open_dev.jsonl"
    nq = wb.make_lessons(tiny, "qa", data=data_dir / "zsre.json", locality="nq", local=local)
    asked = {c.request.text for c in wb.datasets.nq(local)}
    for lesson in (nq.draw(0, n_edits=1, n_local=4), *nq.validation(1, n_edits=1, n_local=4)):
        assert set(texts(lesson.local)) <= asked and all(t.endswith("?") for t in asked)
    view = verdict_view(make_model, tokenizer, ("REFUTES", "SUPPORTS"))
    claims = wb.make_lessons(view, "fc", data=data_dir / "fever_claims.jsonl")
    assert len(claims.training) + len(claims.held_out) > 4900
