"""Joining prompt and completion, and finding the completion's tokens."""

from __future__ import annotations

from itertools import product

import pytest

from workbench.tokens import Item, encode, join


@pytest.mark.parametrize(("before", "after"), [*product(("", " "), repeat=2)])
def test_one_blank_stands_between_prompt_and_completion(tokenizer, before: str, after: str) -> None:
    prompt, completion = "The capital of France is" + before, after + "Rome"
    assert join(prompt, completion) == "The capital of France is Rome"
    row = encode(tokenizer, [Item(prompt, completion)])[0]
    assert row == encode(tokenizer, [Item("The capital of France is", "Rome")])[0]
    assert tokenizer.decode(row.target_ids) == " Rome"


def test_a_line_break_stands_for_the_blank() -> None:
    assert join("Question:\n", "Rome") == join("Question:\n", " Rome") == "Question:\nRome"
    assert join("Question:", "\nRome") == "Question:\nRome"
    assert join("", " Rome") == " Rome" and join("is ", "") == "is "
