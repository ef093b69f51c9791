"""A prompt as the model reads it: its tokens, with those of the subject marked."""

from __future__ import annotations

from html import escape

import pandas as pd

from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.tokens import Item, context_length, encode

__all__ = ["subject_html", "subject_tokens"]


def subject_tokens(view: ModelView, request: EditRequest) -> pd.DataFrame:
    """The tokens of a request's prompt, with the subject's marked.

    Args:
        view: gives tokenizer and context length.
        request: with or without a subject.

    Returns:
        One row a token: ``position, token, in_subject, is_last_subject`` (where locate-then-edit
        editors read the key; nowhere without a subject). ``attrs["subject"]`` names the subject.

    Raises:
        RequestError: if the prompt is longer than the model's context, or the subject has no
            token.

    Example:
        >>> table = wb.subject_tokens(view, req)  # doctest: +SKIP
        >>> table[table.in_subject].token.tolist()  # doctest: +SKIP
    """
    start = request.subject_start
    span = None if start is None else (start, start + len(request.subject or ""))
    item = Item(request.text, subject=span)
    limit = context_length(view.model.config)
    (row,) = encode(view.tokenizer, [item], max_length=limit)
    batch = view.tokenizer(request.text, return_offsets_mapping=True, verbose=False)
    spans = batch["offset_mapping"][: len(row.ids)]
    inside = [span is not None and a < span[1] and b > span[0] and b > a for a, b in spans]
    table = pd.DataFrame(
        {
            "position": range(len(row.ids)),
            "token": [view.tokenizer.decode([i]) for i in row.ids],
            "in_subject": inside,
            "is_last_subject": [span is not None and i == row.pivot for i in range(len(row.ids))],
        }
    )
    table.attrs["subject"] = request.subject
    return table


def subject_html(table: pd.DataFrame) -> str:
    """The tokens in a row, the subject's as underlined marks, and the same in words; escaped.

    Args:
        table: as from :func:`subject_tokens`.

    Example:
        >>> subject_html(wb.subject_tokens(view, req))  # doctest: +SKIP
    """
    line = "".join(_span(*row) for row in table.itertuples(index=False, name=None))
    return (
        '<div style="line-height:2.2"><div style="font-family:monospace">'
        f"{line}</div><div>{escape(_in_words(table))}</div></div>"
    )


def _span(position: int, token: str, in_subject: bool, is_last: bool) -> str:
    shown = escape(token.replace("\n", "⏎").replace(" ", "·") or "∅")
    box = "border:1px solid #767c85;border-radius:3px;padding:1px 3px;margin:0 1px"
    if not in_subject:
        return f'<span style="{box}" title="token {position}">{shown}</span>'
    line = "double 4px" if is_last else "solid 2px"
    what = "last token of the subject" if is_last else "subject"
    look = f"{box};background:none;color:inherit;font-weight:bold;border-bottom:{line} #D55E00"
    return f'<mark style="{look}" title="token {position}, {what}">{shown}</mark>'


def _in_words(table: pd.DataFrame) -> str:
    inside = table[table["in_subject"]]
    n = f"{len(table)} token{'' if len(table) == 1 else 's'}"
    if inside.empty:
        return f"{n}, no subject: editors that need one (ROME, MEMIT and their kin) refuse it."
    first, last = int(inside["position"].iloc[0]), int(inside["position"].iloc[-1])
    which = f"token {first}" if first == last else f"tokens {first} to {last}"
    name = table.attrs.get("subject")
    said = f" “{name}”" if name else ""
    return f"{n}, counted from 0; the subject{said} is {which}, the edit reads token {last}."
