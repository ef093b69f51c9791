"""The fact to write: typed with its subject highlighted, or many loaded at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import ipywidgets as ipw
import pandas as pd

from workbench import datasets
from workbench.errors import DataError, OptionError, RequestError
from workbench.facts import EditCase, EditRequest
from workbench.inputs import parse_facts, propose_subject, read_facts
from workbench.inspectors import subject_html, subject_tokens
from workbench.widgets.jobs import Job
from workbench.widgets.panel import Panel
from workbench.widgets.parts import button, choice, column, field, number, row, table_html

__all__ = ["FactPanel"]

EXAMPLE = "The capital of {France} is -> Rome"
SOURCES = {"the shipped facts": "facts", "a file": "file"}


class FactPanel(Panel):
    """Prompt, subject, new and old answer; below, a place for many facts."""

    title: ClassVar[str] = "Fact"
    name: ClassVar[str] = "fact"

    def _build(self) -> Any:
        self.prompt = field("Prompt", name="wb-prompt", hint="The capital of France is")
        self.subject = field("Subject", name="wb-subject", hint="France: the entity, as it stands")
        self.target_new = field("New answer", name="wb-target-new", hint="Rome")
        self.target_true = field("Old answer", name="wb-target-true", hint="Paris (optional)")
        self.shown = ipw.HTML().add_class("wb-subject-shown")
        self.prompt.observe(self._propose, "value")
        for part in (self.prompt, self.subject, self.target_new, self.target_true):
            part.observe(self._typed, "value")
        self.preview = button(
            "Preview",
            self.dry_run,
            name="wb-preview",
            style="primary",
            hint="Compute the edit and look at it; nothing is changed yet",
        )
        self.accept = button(
            "Accept",
            self.keep,
            name="wb-accept",
            style="success",
            hint="Put the previewed edit into the model",
        )
        self.discard = button("Discard", self.forget, name="wb-discard", hint="Forget the preview")
        buttons = row(self.preview, self.accept, self.discard)
        return column(
            self.prompt,
            self.subject,
            self.shown,
            self.target_new,
            self.target_true,
            buttons,
            self.message,
            self._many(),
        )

    def _many(self) -> Any:
        """The fold-out for many facts."""
        self.text = field("Lines", name="wb-lines", hint=f"{EXAMPLE}\none fact a line", lines=5)
        self.source = choice("or from", list(SOURCES), name="wb-source")
        self.path = field("File", name="wb-path", hint=".csv, .json, .jsonl: CounterFact, zsRE …")
        self.limit = number("How many", 10, name="wb-limit")
        self.listed = ipw.HTML()
        take = button("Take the lines", self.take_lines, name="wb-take-lines")
        load = button("Load", self.take_source, name="wb-load-facts")
        inside = column(self.text, take, self.source, self.path, row(self.limit, load), self.listed)
        fold = ipw.Accordion(children=[inside], titles=["Many facts"], selected_index=None)
        return fold.add_class("wb-many")

    # ------------------------------------------------------------------ showing

    def load(self) -> Any:
        """The prompt's tokens."""
        request = self.session.request
        return None if request is None else subject_tokens(self.session.view, request)

    def draw(self, found: Any) -> None:
        """Highlight the subject; the buttons follow the preview."""
        self.shown.value = "" if found is None else subject_html(found)
        waiting = self.session.preview is not None
        self.accept.disabled = self.discard.disabled = not waiting
        cases = self.session.cases
        self.listed.value = "" if len(cases) < 2 else table_html(_table(cases), "On the desk")

    def fill(self, request: EditRequest) -> None:
        """Put a fact into the fields."""
        with self.bench.quiet():
            self.prompt.value = request.text
            self.subject.value = request.subject or ""
            self.target_new.value = request.target_new
            self.target_true.value = request.target_true or ""

    # ------------------------------------------------------------------ doing

    def dry_run(self) -> None:
        """Preview the fact in the fields, or the many that were loaded."""
        typed = self.bench.typed()

        def work(job: Job) -> Any:
            self.bench.take(typed)
            return self.session.dry_run()

        self.act("preview", work, lambda found: self.message.say(found.verdict))

    def keep(self) -> None:
        """Accept the preview."""
        self.act(
            "accept", lambda job: self.session.accept(), lambda edit: self.message.say(), light=True
        )

    def forget(self) -> None:
        """Discard the preview."""
        self.act(
            "discard", lambda job: self.session.discard(), lambda _: self.message.say(), light=True
        )

    def take_lines(self) -> None:
        """Take the facts in the text area."""
        self._take(lambda job: parse_facts(self.text.value))

    def take_source(self) -> None:
        """Load facts from a data set or a file."""
        kind, path, limit = SOURCES[self.source.value], self.path.value.strip(), self.limit.value
        self._take(lambda job: self.bench.cases(kind, path, limit))

    def _take(self, read: Any) -> None:
        def work(job: Job) -> int:
            return len(self.session.take(read(job)))

        def then(n: int) -> None:
            self.fill(self.session.request)
            self.message.say(f"{n} fact{'' if n == 1 else 's'} on the desk.")

        self.act("load facts", work, then, light=True)

    def _propose(self, change: Any) -> None:
        text = change["new"]
        fits = self.subject.value.strip() and self.subject.value in text
        if text.strip() and not self.bench.is_quiet and not fits:
            self.subject.value = propose_subject(text)

    def _typed(self, change: Any) -> None:
        """A field was changed by a person: the fact in the fields is the one on the desk."""
        typed = self.typed()
        if not self.bench.is_quiet and typed["text"] and typed["target_new"]:
            self.bench.later(self, "read the fact", lambda: self.put(typed))

    def typed(self) -> dict[str, str]:
        """What stands in the fields."""
        parts = {
            "text": self.prompt,
            "subject": self.subject,
            "target_new": self.target_new,
            "target_true": self.target_true,
        }
        return {name: part.value.strip() for name, part in parts.items()}

    def put(self, typed: Mapping[str, str]) -> None:
        """Put the typed fact on the desk unless it lies there already; in the worker thread.

        Raises:
            RequestError: saying what is missing.
        """
        request = request_from(**typed)
        if not self.session.cases or request != self.session.request:
            self.session.take(request)


def request_from(text: str, subject: str, target_new: str, target_true: str) -> EditRequest:
    """The fact in four fields, of which two may be empty.

    Raises:
        RequestError: saying what is missing.
    """
    true = target_true or None
    if not subject:
        return EditRequest(prompt=text, target_new=target_new, target_true=true)
    return EditRequest.from_text(text, subject=subject, target_new=target_new, target_true=true)


def _table(cases: list[EditCase]) -> pd.DataFrame:
    rows = [(c.request.text, c.request.target_new, c.request.target_true or "") for c in cases]
    return pd.DataFrame(rows, columns=["prompt", "new answer", "old answer"])


def read_cases(kind: str, path: str, limit: int, model: str) -> list[EditCase]:
    """Facts of a source: the shipped ones that suit the model, or a file.

    Raises:
        OptionError: if a file is wanted and none is named.
    """
    if kind == "file":
        if not path:
            raise OptionError("type the path of a file of facts first.")
        return _from_file(path, limit)
    found: list[EditCase] = (datasets.tiny if model.startswith("tiny") else datasets.facts)(
        limit=limit
    )
    return found


def _from_file(path: str, limit: int) -> list[EditCase]:
    """Cases of a known schema, or facts as people write them down."""
    try:
        return datasets.load_cases(path, limit=limit)
    except DataError as unknown:
        try:
            requests = read_facts(path)[:limit]
        except (DataError, RequestError):
            raise unknown from None
        return [EditCase(request=r, case_id=i) for i, r in enumerate(requests)]
