"""Facts nobody thought of, through tokenizers of every kind: written or refused, never lost."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import alphabets
import families
import pytest
import torch
from faults import intact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger import SEED, Ledger, times
from test_bad_input import make

import workbench as wb
from workbench.errors import RequestError, WorkbenchError
from workbench.inputs import parse_facts
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.tokens import encode_request


def examples(n: int) -> settings:
    """So many of them, the same in every run of one seed, and no clock."""
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=n,
        deadline=None,
        derandomize=SEED == 7,
        database=None,
        suppress_health_check=slow,
    )


EDITORS = ("ROME", "FT", "GRACE", "MEMIT", "CoachHook")


@pytest.fixture(scope="module", params=alphabets.TOKENIZERS)
def view(request: pytest.FixtureRequest) -> ModelView:
    """A small model with one of the tokenizers."""
    tokenizer = alphabets.fast(request.param)
    model = families.build_model("llama", len(tokenizer), dtype=torch.float32, seed=0)
    return open_view(model, tokenizer, name=request.param)


def request_of(fields: dict[str, str]) -> wb.EditRequest | None:
    """The request, None where its fields are refused: an empty text, or braces too many."""
    try:
        return wb.EditRequest(**fields)
    except RequestError as err:
        assert not all(v.strip() for v in fields.values()) or fields["prompt"].count("{}") != 1
        assert repr(fields["subject"]) in str(err) or "prompt=" in str(err) or "target" in str(err)
        return None


def test_where_the_subject_is(view: ModelView, ledger: Ledger) -> None:
    """Its tokens are those that hold a letter of it, and no others; the completion comes after."""

    @examples(times(60, 3000))
    @given(alphabets.facts(), st.sampled_from(("{}", "I saw it. {}", "{}.", "ß\u200b {}")))
    def law(fields: dict[str, str], template: str) -> None:
        with ledger.tried("facts in many scripts, found"):
            request = request_of(fields)
            if request is None:
                return
            try:
                (found,) = encode_request(view.tokenizer, request, (template,), max_length=120)
            except RequestError as err:
                assert len(str(err)) > 20
                return
            check(view.tokenizer, request, template, found)

    law()


def check(tokenizer: Any, request: wb.EditRequest, template: str, found: Any) -> None:
    """An independent reading of the offsets."""
    prompt = template.replace("{}", request.text, 1)
    assert request.subject is not None and request.subject_start is not None
    start = template.index("{}") + request.subject_start
    end = start + len(request.subject)
    assert prompt[start:end] == request.subject
    assert 0 < found.target_start < len(found.ids)
    assert 0 <= found.first <= found.pivot < found.target_start
    whole = tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    offsets = tokenizer(text_of(prompt, request), return_offsets_mapping=True, verbose=False)
    spans = offsets["offset_mapping"][: len(found.ids)]
    assert list(found.ids) == offsets["input_ids"][: len(found.ids)]
    for i, (a, b) in enumerate(spans[: found.target_start]):
        overlaps = a < b and a < end and b > start
        assert overlaps <= (found.first <= i <= found.pivot)
    assert spans[found.pivot][0] < end and spans[found.first][1] > start
    assert len(whole) > 0


def text_of(prompt: str, request: wb.EditRequest) -> str:
    """Prompt and target with one blank between them."""
    target = request.target_new
    if prompt[-1:].isspace():
        return prompt + target.lstrip(" ")
    return prompt + ("" if target[:1].isspace() else " ") + target


def test_facts_are_written_or_refused(view: ModelView, ledger: Ledger, tmp_path: Path) -> None:
    """Edit, save, load, push, ask, take back: bit for bit the model of before."""

    @examples(times(6, 150))
    @given(alphabets.facts(), st.sampled_from(EDITORS))
    def law(fields: dict[str, str], name: str) -> None:
        request = request_of(fields)
        if request is None:
            return
        with ledger.tried("facts in many scripts, written"), intact(view):
            try:
                edit = make(name, steps=2).edit(view, request)
            except WorkbenchError as err:
                assert len(str(err)) > 20
                return
            loaded = wb.load_edit(edit.save(tmp_path / "edit.safetensors"))
            assert loaded.id == edit.id and loaded.requests == (request,)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                view.push(loaded)
            try:
                scores = wb.score(view, [wb.EditCase(request=request)])
                assert scores["nll_target"].notna().all()
            finally:
                view.pop()

    law()


def test_facts_as_people_paste_them(ledger: Ledger) -> None:
    """Any text at all is read as facts, or refused with a sentence."""

    @examples(times(150, 5000))
    @given(st.text(max_size=80) | alphabets.facts().map(lambda f: " -> ".join(f.values())))
    def law(text: str) -> None:
        with ledger.tried("pasted texts"):
            try:
                found = parse_facts(text)
            except WorkbenchError as err:
                assert len(str(err)) > 10
                return
            assert all(f.target_new.strip() for f in found)

    law()
