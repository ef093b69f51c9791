"""Retention after every single edit of a codebook, from one batched pass over the questions.

What a prompt asks the codebook never depends on the codebook, so which entry answers it after each
edit is found without the model. A prompt's answer changes only when another entry, or another value
of it, answers; these few (prompt, value) pairs are all that is run, together (spec memory-and-meta
1.11 and 12). The result is what scoring everything after every edit gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.adapters import Context
from workbench.editors.memory.examples import Examples, Place, queries
from workbench.edits import Adapter, AdapterEdit
from workbench.errors import OptionError
from workbench.facts import EditCase, EditRequest
from workbench.inspectors.codebook import codebook_on
from workbench.memories import Codebook, Settings, written_columns
from workbench.metrics.scoring import probes_of
from workbench.model import ModelView
from workbench.progress import Bar

__all__ = ["adapters_of", "answer_spans", "keys_of", "retention_curves", "value_spans"]

#: Examples in one pass.
BATCH = 64

#: Prompt, answer, and the number of the value that is written (-1: the model's own output).
Asked = tuple[str, str, int]


@dataclass(frozen=True)
class _Answer:
    nll: float
    exact: bool
    token_accuracy: float


def answer_spans(
    view: ModelView, cases: EditCase | EditRequest | Iterable[EditCase | EditRequest]
) -> pd.DataFrame:
    """Every answer that probes get while the codebook on the stack grew, and how long it held.

    Args:
        view: a model whose stack holds GRACE edits on one module, and nothing else.
        cases: cases or requests; edited ones and any others.

    Returns:
        One row a probe and span: ``case_id, probe, kind, prompt, target, foil, since, until``
        (it held from ``since`` up to before ``until`` edits), ``fires`` (whether an entry
        answered), ``nll_target, nll_foil, exact, token_accuracy, success``, as
        :func:`workbench.score` gives them at each of these moments.

    Raises:
        OptionError: if the stack holds anything else.

    Example:
        >>> spans = wb.answer_spans(view, cases)
        >>> wb.retention_curves(spans)
    """
    place, final = codebook_on(view)
    steps = adapters_of(view)
    asked = probes_of(cases)
    prompts = list(dict.fromkeys(p.prompt for _, _, p in asked))
    with view.writing("retention"), view.pristine():
        spans = value_spans(view, prompts, place, steps)
        wanted = {
            (p.prompt, text, value)
            for _, _, p in asked
            for _, _, value in spans[p.prompt]
            for text in (p.target, p.foil)
            if text
        }
        found = _answers(view, sorted(wanted), place, final)
    rows = []
    for case_id, index, p in asked:
        for since, until, value in spans[p.prompt]:
            target = found[p.prompt, p.target, value]
            foil = float("nan") if p.foil is None else found[p.prompt, p.foil, value].nll
            rows.append(
                {
                    "case_id": case_id,
                    "probe": index,
                    "kind": p.kind,
                    "prompt": p.prompt,
                    "target": p.target,
                    "foil": p.foil,
                    "since": since,
                    "until": until,
                    "fires": value >= 0,
                    "nll_target": target.nll,
                    "nll_foil": foil,
                    "exact": target.exact,
                    "token_accuracy": target.token_accuracy,
                    "success": target.exact if p.foil is None else target.nll < foil,
                }
            )
    return pd.DataFrame(rows)


def retention_curves(
    spans: pd.DataFrame,
    *,
    value: str = "exact",
    since: pd.Series | dict[Any, int] | None = None,
) -> pd.DataFrame:
    """Mean of a measure after every edit.

    Args:
        spans: from :func:`answer_spans`.
        value: one of its columns of numbers.
        since: case id → number of edits from which a case counts, as in ERR (a case is asked once
            it was edited); cases that are not named always count.

    Returns:
        One row a kind and step: ``step`` (edits on the stack, from 0), ``kind, n`` (probes),
        ``value``.

    Raises:
        OptionError: for an unknown column.

    Example:
        >>> wb.retention_curves(spans, since={c.case_id: i + 1 for i, c in enumerate(cases)})
    """
    if value not in spans.columns:
        raise OptionError(f"value={value!r}: the spans have {', '.join(map(str, spans.columns))}.")
    begins = spans["case_id"].map(dict(since)) if since is not None else pd.Series(0, spans.index)
    first = np.maximum(spans["since"], begins.fillna(0)).astype(int)
    steps = int(spans["until"].max())
    tables = []
    for kind, part in spans.groupby("kind", sort=False):
        start, stop = first[part.index].to_numpy(), part["until"].to_numpy()
        holds = start < stop
        weight = part[value].astype(float).to_numpy()
        n = _running(start[holds], stop[holds], np.ones(int(holds.sum())), steps)
        total = _running(start[holds], stop[holds], weight[holds], steps)
        mean = np.divide(total, n, out=np.full(steps, np.nan), where=n > 0)
        tables.append(
            pd.DataFrame(
                {"step": range(steps), "kind": kind, "n": n.round().astype(int), "value": mean}
            )
        )
    return pd.concat(tables, ignore_index=True)


def _running(start: Any, stop: Any, weight: Any, steps: int) -> Any:
    """Sum of the weights of the spans that hold at each step."""
    change = np.zeros(steps + 1)
    np.add.at(change, start, weight)
    np.add.at(change, stop, -weight)
    return np.cumsum(change)[:-1]


def adapters_of(view: ModelView) -> list[Adapter]:
    """What each edit on the stack adds to the codebook.

    Raises:
        OptionError: if there are other edits.
    """
    found = []
    for i, edit in enumerate(view.stack):
        if not isinstance(edit, AdapterEdit) or [a.kind for a in edit.adapters] != ["codebook"]:
            raise OptionError(
                f"entry {i} of the stack is a {edit.editor} edit: retention after every edit is "
                "known for codebooks alone. Use wb.stream, which measures at checkpoints."
            )
        found.append(edit.adapters[0])
    return found


def keys_of(view: ModelView, prompts: Sequence[str], place: Place, settings: Settings) -> Tensor:
    """``[n, d_in]`` what prompts ask a codebook, batch by batch."""
    parts = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
    return torch.cat([queries(view, part, place, settings)[0] for part in parts])


def value_spans(
    view: ModelView,
    prompts: Sequence[str],
    place: Place,
    adapters: Sequence[Adapter],
    *,
    keys: Tensor | None = None,
) -> dict[str, list[tuple[int, int, int]]]:
    """Which value answered each prompt while a codebook grew; no value is used for it.

    Args:
        view: the unedited model.
        prompts: whole prompts.
        place: the module.
        adapters: what each edit added, from :func:`adapters_of`.
        keys: of the prompts, from :func:`keys_of`; None computes them.

    Returns:
        Prompt → (since, until, row of the value; -1: none) in edits, one after another.
    """
    book = Codebook.load(adapters[0], device=view.device)
    asked = keys_of(view, prompts, place, book.settings) if keys is None else keys
    near = _Nearest(asked)
    rows = [torch.full((len(prompts),), -1), near.value_rows(book, range(len(book)))]
    for adapter in adapters[1:]:
        before, book = book, book.joined(Codebook.load(adapter, device=view.device))
        moved = _moved(before, adapter)
        new = range(len(book)) if moved else range(len(before), len(book))
        near = _Nearest(asked) if moved else near
        rows.append(near.value_rows(book, new))
    answered = torch.stack(rows, dim=1).tolist()
    return {prompt: list(_runs(answered[i])) for i, prompt in enumerate(prompts)}


class _Nearest:
    """The nearest key of each query, as keys come."""

    def __init__(self, asked: Tensor) -> None:
        self.asked = asked
        self.distance = torch.full((len(asked),), float("inf"), device=asked.device)
        self.entry = torch.zeros(len(asked), dtype=torch.long, device=asked.device)

    def value_rows(self, book: Codebook, new: range) -> Tensor:
        """Row of the value that answers each query, -1 for none, once entries ``new`` are there."""
        for i in new:
            distance = (book.key(i) - self.asked).square().sum(1).sqrt()
            closer = distance < self.distance
            self.distance = torch.where(closer, distance, self.distance)
            self.entry = torch.where(closer, i, self.entry)
        inside = self.distance <= book.radii[self.entry] + book.settings.tolerance
        return torch.where(inside, book.value_rows[self.entry], -1).cpu()


def _moved(before: Codebook, adapter: Adapter) -> bool:
    """Whether an edit moves a key that was there."""
    names = zip(adapter.tensors["ids"].tolist(), adapter.tensors["keys"], strict=True)
    known = before.places
    return any(
        name in known and not torch.equal(before.key(known[name]).cpu(), key) for name, key in names
    )


def _runs(values: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    since = 0
    for step in range(1, len(values) + 1):
        if step == len(values) or values[step] != values[since]:
            yield since, step, values[since]
            since = step


def _answers(
    view: ModelView, wanted: Sequence[Asked], place: Place, book: Codebook
) -> dict[Asked, _Answer]:
    """Answers under given values, in batches of texts of similar length."""
    ordered = sorted(wanted, key=lambda a: len(a[0]) + len(a[1]))
    found: dict[Asked, _Answer] = {}
    with Bar("retention", len(ordered)) as bar:
        for begin in range(0, len(ordered), BATCH):
            part = ordered[begin : begin + BATCH]
            examples = Examples(
                view, [EditRequest(prompt=p, target_new=t) for p, t, _ in part], place
            )
            rows = torch.tensor([value for _, _, value in part], device=view.device)
            answers = examples.answers(_writer(book, rows))
            for key, (nll, right) in zip(part, answers, strict=True):
                found[key] = _Answer(nll, all(right), sum(right) / len(right))
            bar.step(len(part))
    return found


def _writer(book: Codebook, rows: Tensor) -> Any:
    settings: Settings = book.settings
    values = book.values.data[rows.clamp_min(0)]

    def write(x: Tensor, y: Tensor, context: Context) -> Tensor:
        where = written_columns(settings, context).to(y.device) & (rows >= 0)[:, None]
        return torch.where(where[..., None], values[:, None].to(y.dtype), y)

    return write
