"""zsRE questions as topics: MEND's schema, De Cao's, or a table of question and target.

Rewordings come from the record, from De Cao's file (arXiv 2104.08164), or from templates of our own
(:mod:`~workbench.editors.learned.rewording`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.datasets import fetch, zsre
from workbench.datasets.counterfacts import Pathlike
from workbench.datasets.reading import read_rows
from workbench.editors.learned.lessons import Topic
from workbench.editors.learned.rewording import reword
from workbench.errors import DataError
from workbench.facts import EditRequest
from workbench.textfiles import suffix_of, text_lines

__all__ = ["Questions", "question_topics"]


@dataclass(frozen=True)
class Questions:
    """Topics and where their other words come from.

    Attributes:
        topics: one a question.
        source: ``records``, ``De Cao``, ``templates`` or nothing.
        framed: questions that no template knew, so that they were put into a frame.
    """

    topics: Sequence[Topic]
    source: str
    framed: int = 0

    @property
    def said(self) -> str:
        """The rephrasing source in plain words."""
        if self.source == "templates":
            n = len(self.topics)
            return (
                f"written from relation templates of Workbench ({n - self.framed} of {n} "
                "questions; the others in a frame)"
            )
        known = {"records": "the file's own rephrasings", "De Cao": "De Cao's back-translations"}
        return known.get(self.source, "no paraphrases")


def question_topics(
    path: Pathlike | None, *, rewordings: Pathlike | None = None, limit: int | None = None
) -> Questions:
    """Questions as topics; the first record of a question counts.

    Args:
        path: ``.tsv`` (question TAB target, no header), ``.json`` in MEND's schema, ``.jsonl`` in
            De Cao's; None fetches the training half of zsRE once.
        rewordings: De Cao's file, for questions without other words.
        limit: only the first so many records.

    Raises:
        DataError: for a missing, damaged or unknown file, or one without a usable question.
    """
    file = fetch("zsre_train") if path is None else Path(path).expanduser()
    if suffix_of(file) == ".tsv":
        topics, source = _table(file, limit), ""
    elif _is_kilt(file):
        topics, source = [t for t in _kilt(file) if t.rewordings][:limit], "De Cao"
    else:
        topics, source = _mend(file, limit), "records"
    unique = list({t.prompt: t for t in reversed(topics)}.values())[::-1]
    if not unique:
        raise DataError(f"{file} holds no question with a target.")
    return _reworded(unique, source, rewordings)


def _reworded(topics: list[Topic], source: str, rewordings: Pathlike | None) -> Questions:
    """Fill in other words where there are none."""
    bare = [t for t in topics if not t.rewordings]
    if not bare:
        return Questions(topics, source)
    if rewordings is not None:
        known = {t.prompt: t.rewordings for t in _kilt(Path(rewordings).expanduser())}
        kept = [_with(t, known.get(t.prompt, ())) for t in topics]
        kept = [t for t in kept if t.rewordings]
        if not kept:
            raise DataError(f"{rewordings} rewords none of the {len(topics)} questions.")
        return Questions(kept, "De Cao")
    written = {t.prompt: reword(t.prompt) for t in bare}
    done = [_with(t, written[t.prompt].prompts) if t.prompt in written else t for t in topics]
    kept = list(distinct(done))
    framed = sum(t.prompt in written and written[t.prompt].framed for t in kept)
    return Questions(kept, source if len(bare) < len(topics) else "templates", framed)


def distinct(topics: Sequence[Topic], asked: frozenset[str] = frozenset()) -> Iterator[Topic]:
    """Topics that share no wording with an earlier one, nor with what is asked elsewhere."""
    seen = set(asked)
    for topic in topics:
        if not topic.prompts & seen:
            seen |= topic.prompts
            yield topic


def _with(topic: Topic, rewordings: Sequence[str]) -> Topic:
    if topic.rewordings:
        return topic
    return Topic(edits=topic.edits, rewordings=tuple(rewordings), local=topic.local)


def _table(file: Path, limit: int | None) -> list[Topic]:
    topics = []
    for number, line in islice(enumerate(text_lines(file), 1), limit):
        cells = [" ".join(cell.split()) for cell in line.rstrip("\r\n").split("\t")]
        if len(cells) != 2 or not cells[0]:
            raise DataError(f"{file}, line {number} is not 'question TAB target': mend the line.")
        if not cells[1]:
            continue  # some questions of the published file have no target
        request = EditRequest(prompt=cells[0], target_new=cells[1])
        # no true answer is known: locality is watched along the target
        topics.append(Topic(edits=(request,), local=(request,)))
    return topics


def _mend(file: Path, limit: int | None) -> list[Topic]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # questions without their subject are fine here
        cases = zsre(file, protocol="easyedit", limit=limit)
    topics = []
    for case in cases:
        other = tuple(p.prompt for p in case.probes if p.kind == "paraphrase")
        true, text = case.request.target_true, case.request.text
        local = (EditRequest(prompt=text, target_new=true),) if true else ()
        topics.append(Topic(edits=(case.request,), rewordings=other, local=local))
    return topics


def _is_kilt(file: Path) -> bool:
    first = next((row.data for row in read_rows(file) if isinstance(row.data, dict)), {})
    return {"input", "output"} <= set(first)


def _kilt(file: Path) -> Iterator[Topic]:
    """Records with an alternative answer; a rewording equal to the question does not count."""
    for row in read_rows(file):
        fields: Mapping[str, Any] = row.data if isinstance(row.data, dict) else {}
        try:
            question, gold = fields["input"], fields["output"][0]["answer"]
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(
                f"{file}, {row.place} has no 'input' and 'output' with an answer: it is not De "
                "Cao's file."
            ) from error
        alternatives = fields.get("alternatives") or ()
        if alternatives:
            yield Topic(
                edits=tuple(EditRequest(prompt=question, target_new=a) for a in alternatives),
                rewordings=tuple(
                    r for r in fields.get("filtered_rephrases") or () if r != question
                ),
                local=(EditRequest(prompt=question, target_new=gold),),
            )
