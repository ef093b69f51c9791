"""From readings to answers: how likely each completion is, and what the model would have said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.metrics.forward import Reading, States, run
from workbench.metrics.plan import Pair, Plan, make_plan
from workbench.model import ModelView

__all__ = ["Answer", "Tally", "answer", "answers_of", "kl_divergence", "tally"]

#: Called with each reading while its logits are there.
Watch = Callable[[Reading, Tensor], None]


@dataclass(frozen=True)
class Answer:
    """The model's view of one completion under teacher forcing.

    Attributes:
        nll: mean negative log-likelihood a token, nats.
        labels: the completion's token ids (a class index for a classifier).
        predicted: arg-max ids at the same positions.
    """

    nll: float
    labels: tuple[int, ...]
    predicted: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Every token is the arg-max."""
        return self.labels == self.predicted

    @property
    def token_accuracy(self) -> float:
        """Share of tokens that are the arg-max."""
        return agreement(self.labels, self.predicted)


@dataclass(frozen=True)
class Tally:
    """Numbers of a plan: ``[n_cells]`` log-probabilities and ``[n_spots]`` arg-max ids."""

    log_prob: Tensor
    argmax: Tensor


def answer(
    view: ModelView,
    pairs: Sequence[Pair],
    *,
    batch_tokens: int | None = None,
    watch: Callable[[Plan], Watch] | None = None,
) -> dict[Pair, Answer]:
    """Answers to unique pairs.

    Args:
        view: the model.
        pairs: (prompt, completion); repeated ones are run once.
        batch_tokens: see :func:`~workbench.metrics.forward.run`.
        watch: given the plan, returns a function that sees every reading and its log-normalizer.
    """
    pairs = list(dict.fromkeys(pairs))
    return answers_of(view, make_plan(view, pairs), pairs, batch_tokens=batch_tokens, watch=watch)


def answers_of(
    view: ModelView,
    plan: Plan,
    pairs: Sequence[Pair],
    *,
    batch_tokens: int | None = None,
    watch: Callable[[Plan], Watch] | None = None,
    states: States | None = None,
) -> dict[Pair, Answer]:
    """Answers to the unique pairs a plan was made for; ``states`` as in ``forward.run``."""
    found = tally(
        view,
        plan,
        batch_tokens=batch_tokens,
        watch=watch(plan) if watch else None,
        states=states,
    )
    predicted = found.argmax[plan.cell_spot].tolist()
    labels, log_prob = plan.cell_label.tolist(), found.log_prob
    answers = {}
    for i, pair in enumerate(pairs):
        part = slice(plan.starts[i], plan.starts[i + 1])
        nll = -float(log_prob[part].mean())
        answers[pair] = Answer(nll, tuple(labels[part]), tuple(predicted[part]))
    return answers


def tally(
    view: ModelView,
    plan: Plan,
    *,
    batch_tokens: int | None = None,
    watch: Watch | None = None,
    phase: str = "score",
    states: States | None = None,
) -> Tally:
    """Run a plan; keep the log-probability of every cell (float64) and the best of every spot."""
    log_prob = torch.empty(len(plan.cell_label), dtype=torch.float64)
    argmax = torch.empty(len(plan.spots), dtype=torch.long)
    order = torch.argsort(plan.cell_spot, stable=True)
    sorted_spot = plan.cell_spot[order]
    for reading in run(view, plan, batch_tokens=batch_tokens, phase=phase, states=states):
        end = reading.start + len(reading.logits)
        edges = torch.searchsorted(sorted_spot, torch.tensor([reading.start, end])).tolist()
        cells = order[edges[0] : edges[1]]
        norm = reading.logits.logsumexp(-1)
        log_prob[cells] = _cell_log_probs(reading, norm, plan, cells)
        argmax[reading.start : end] = reading.logits.argmax(-1).cpu()
        if watch is not None:
            watch(reading, norm)
    return Tally(log_prob, argmax)


def agreement(a: Sequence[int], b: Sequence[int]) -> float:
    """Share of positions at which two id sequences are equal."""
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def kl_divergence(reference: Tensor, log_probs: Tensor) -> Tensor:
    """KL(reference || other) of rows of log-probabilities ``[n, d_vocab]`` → ``[n]``, nats."""
    terms = reference.exp() * (reference - log_probs)
    return terms.where(reference.isfinite(), 0.0).sum(-1).clamp_min(0)


def _cell_log_probs(reading: Reading, norm: Tensor, plan: Plan, cells: Tensor) -> Tensor:
    device = reading.logits.device
    local = (plan.cell_spot[cells] - reading.start).to(device)
    label = plan.cell_label[cells].to(device)
    return (reading.logits[local, label] - norm[local]).double().cpu()
