"""What became of a batch of lessons: losses to train on, and numbers to judge by.

Two passes of the model serve any number of independent lessons: one over what is written and what
is unrelated, unedited; one over the same in other words and what is unrelated, each lesson with its
own change; in a decoder they share what lies below the edits (spec memory-and-meta 4.4 and 4.7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.editors.learned.gradients import (
    answer_loss,
    double_backward,
    lesson_means,
    writing,
)
from workbench.editors.learned.learner import Learner
from workbench.editors.learned.lessons import Lesson
from workbench.editors.learned.prefixes import share_prefixes
from workbench.editors.learned.recipe import Recipe
from workbench.editors.learned.texts import Texts, logits_of, read
from workbench.facts import EditRequest
from workbench.model import ModelView
from workbench.trace import frozen

__all__ = ["Losses", "divergence", "evaluate", "outcome"]


@dataclass(frozen=True)
class Losses:
    """Means over the lessons of a batch, differentiable.

    Attributes:
        edit: negative log-likelihood a token of the targets in other words, nats.
        local: divergence of the edited from the unedited model on unrelated texts, nats a token.
        base: divergence of a changed base model from the original on them.
        judged: sums of counts and numbers for :func:`evaluate`.
    """

    edit: Float[Tensor, ""]
    local: Float[Tensor, ""]
    base: Float[Tensor, ""]
    judged: Mapping[str, float]

    def total(self, recipe: Recipe) -> Float[Tensor, ""]:
        """What is trained on."""
        return recipe.c_edit * self.edit + recipe.c_local * self.local + recipe.c_base * self.base


def outcome(
    view: ModelView,
    learner: Learner,
    lessons: Sequence[Lesson],
    recipe: Recipe,
    *,
    judge: bool = False,
) -> Losses:
    """Write every lesson's edits, each into a model of its own, and look at what happened.

    Args:
        view: the model; only read. Its parameters must not ask for gradients.
        learner: makes the changes.
        lessons: with equal numbers of edits and of unrelated texts.
        recipe: the weights of the losses are not used here.
        judge: count right answers as well.
    """
    n, values = len(lessons), learner.values(view)
    inner = _texts(view, [(x.edits, x.local) for x in lessons], recipe)
    outer = _texts(view, [(x.outer, x.local) for x in lessons], recipe)
    edited = _edited(view, lessons)
    if not values:
        inner, outer = share_prefixes(view, learner.matrices, (inner, outer))
    made = learner.rewrite(view, inner, n_lessons=n, edited=edited)
    with writing(view, made.factors), double_backward(bool(values)):
        after = logits_of(view, outer, values)
    asked, far = edited[outer.row], ~edited[outer.row]
    before = made.gradients.logits[~edited[inner.row]]  # the unrelated spots, in the same order
    lesson = outer.row[far] // (len(outer) // n)
    local = lesson_means(divergence(before.detach(), after[far]), lesson, n)
    original, base = before.detach(), local.new_zeros(())
    if values:
        original = _original(view, inner)[~edited[inner.row]]
        base = lesson_means(divergence(original, before), lesson, n).mean()
    edit = answer_loss(after, outer, n, asked & outer.answer)
    judged = _judged(outer, before.detach(), after, original, asked) if judge else {}
    return Losses(edit.mean(), local.mean(), base, judged)


@torch.no_grad()
def _original(view: ModelView, texts: Texts) -> Tensor:
    """What the base model says as it came."""
    return logits_of(view, texts)


def divergence(
    before: Float[Tensor, "n classes"], after: Float[Tensor, "n classes"]
) -> Float[Tensor, " n"]:
    """KL(before ‖ after) of each row of logits, nats."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def evaluate(
    view: ModelView, learner: Learner, lessons: Sequence[Lesson], recipe: Recipe
) -> dict[str, float]:
    """Numbers over lessons, each on a model of its own; changes nothing.

    Returns:
        ``total, edit, local, base``: the losses; ``success``: share of targets that are the arg-max
        at every token, in other words; ``token_accuracy``; ``accuracy_before``, ``accuracy_after``
        and ``drawdown`` (their difference) of the answers to unrelated prompts;
        ``perplexity_before``, ``perplexity_after``, ``perplexity_drawdown``;
        ``accuracy_pristine`` and ``drawdown_pristine``, against a base model that training did
        not change; ``n``.
    """
    was = learner.training
    chunks = [lessons[i : i + recipe.together] for i in range(0, len(lessons), recipe.together)]
    try:
        learner.eval()
        with frozen(learner):
            parts = [
                _weighted(outcome(view, learner, chunk, recipe, judge=True), len(chunk))
                for chunk in chunks
            ]
    finally:
        learner.train(was)
    n = len(lessons)
    sums = {k: sum(p.judged[k] for p in parts) for k in parts[0].judged}
    losses = {k: float(sum(getattr(p, k) for p in parts)) / n for k in ("edit", "local", "base")}
    weights = {"edit": recipe.c_edit, "local": recipe.c_local, "base": recipe.c_base}
    total = sum(weights[k] * v for k, v in losses.items())
    return {"total": total, **losses, **_numbers(sums), "n": float(n)}


def _weighted(losses: Losses, n: int) -> Losses:
    """Sums instead of means, without history."""
    return Losses(
        losses.edit.detach() * n, losses.local.detach() * n, losses.base.detach() * n, losses.judged
    )


def _numbers(sums: Mapping[str, float]) -> dict[str, float]:
    before = sums["right_before"] / max(sums["local_texts"], 1)
    pristine = sums["right_pristine"] / max(sums["local_texts"], 1)
    after = sums["right_after"] / max(sums["local_texts"], 1)
    plain, moved = (
        math.exp(min(700.0, sums[k] / max(sums["local_tokens"], 1)))
        for k in ("nll_before", "nll_after")
    )
    return {
        "success": sums["success"] / sums["edits"],
        "token_accuracy": sums["right_tokens"] / sums["tokens"],
        "accuracy_pristine": pristine,
        "accuracy_before": before,
        "accuracy_after": after,
        "drawdown": before - after,
        "drawdown_pristine": pristine - after,
        "perplexity_before": plain,
        "perplexity_after": moved,
        "perplexity_drawdown": moved - plain,
    }


@torch.no_grad()
def _judged(
    outer: Texts, before: Tensor, after: Tensor, original: Tensor, asked: Tensor
) -> dict[str, float]:
    """Counts over the answers of a batch."""
    edits = asked & outer.answer
    far = ~asked
    said = far & outer.answer
    inside = outer.answer[far]  # ``before`` has the unrelated spots alone
    right = after.argmax(-1) == outer.label
    label = outer.label[said]
    cross = torch.nn.functional.cross_entropy
    return {
        "success": _whole(right[edits], outer.row[edits]),
        "edits": float(outer.row[edits].unique().numel()),
        "right_tokens": float(right[edits].sum()),
        "tokens": float(edits.sum()),
        "right_before": _whole(before[inside].argmax(-1) == label, outer.row[said]),
        "right_pristine": _whole(original[inside].argmax(-1) == label, outer.row[said]),
        "right_after": _whole(right[said], outer.row[said]),
        "local_texts": float(outer.row[said].unique().numel()),
        "local_tokens": float(said.sum()),
        "nll_before": float(cross(before[inside], label, reduction="sum")),
        "nll_after": float(cross(after[said], label, reduction="sum")),
    }


def _whole(right: Tensor, row: Tensor) -> float:
    """Rows of which every spot is right."""
    return float(row.unique().numel() - row[~right].unique().numel())


def _texts(
    view: ModelView,
    parts: Sequence[tuple[Sequence[EditRequest], Sequence[EditRequest]]],
    recipe: Recipe,
) -> Texts:
    rows = [r for asked, local in parts for r in (*asked, *local)]
    whole = [recipe.whole_texts and k for a, b in parts for k in [False] * len(a) + [True] * len(b)]
    return read(view, rows, everywhere=whole)


def _edited(view: ModelView, lessons: Sequence[Lesson]) -> Bool[Tensor, " rows"]:
    flags = [k for x in lessons for k in [True] * len(x.edits) + [False] * len(x.local)]
    return torch.tensor(flags, device=view.device)
