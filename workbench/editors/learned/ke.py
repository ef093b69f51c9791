"""KE: a gradient, gated by a network that reads the edit (arXiv 2104.08164).

A bidirectional LSTM reads ``"{said} >> {target} || {prompt}"``; from its states a small network for
each matrix makes two rank-one gates and a scale: ``ΔW = σ(η) (A ∘ ∇L + B)``, ``A = softmax(r_a)
c_aᵀ`` and ``B`` likewise (spec memory-and-meta 5). A gate of rank one acts on the factors of the
gradient, so a change is never made whole.

Departures from the published code (De Cao's, and eric-mitchell/mend's ``efk``): matrices are taken
as (out, in) whatever their storage; the embeddings that the LSTM reads are the base model's, not
copies to train; every gate begins as a small step down the gradient; several edits of one lesson
are gated each by its own text, and added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

from workbench.editors.learned.base import LearnedEditor
from workbench.editors.learned.gradients import Factors, Pairs, capture, matrices
from workbench.editors.learned.learner import Learner, Rewrite, sizes
from workbench.editors.learned.texts import Texts
from workbench.errors import OptionError
from workbench.layouts import ENCODER_CLASSIFIER
from workbench.model import ModelView
from workbench.tokens import pad_right, pad_token

__all__ = ["KE", "Gates", "Head", "KeLearner", "KeSettings"]

PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "measured on the tiny models (LOG.md)"),
    "paper": (
        {"hidden": 128, "condition": 1024, "width": 128, "lr": 3e-4},
        "arXiv 2104.08164, appendix B",
    ),
    "repo": (
        {"hidden": 512, "condition": 768, "width": 512, "lr": 1e-5},
        "eric-mitchell/mend @e04fdb9, config/alg/efk.yaml",
    ),
}


@dataclass(frozen=True, kw_only=True)
class KeSettings:
    """What is trained.

    Args:
        matrices: names of the edited parameters.
        hidden: size of the LSTM in each direction.
        condition: size of what it says about an edit.
        width: hidden size of the network of each matrix.
        max_scale: the largest ``σ(η)``.
    """

    matrices: tuple[str, ...]
    hidden: int = 128
    condition: int = 128
    width: int = 64
    max_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("hidden", "condition", "width", "max_scale"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name)} must be above 0.")


@dataclass(frozen=True)
class Gates:
    """What is done to one matrix, a row an edit.

    Attributes:
        row, column: of the gate, which multiplies the gradient.
        row_added, column_added: of the matrix that is added.
        scale: of both.
    """

    row: Float[Tensor, "n d_out"]
    column: Float[Tensor, "n d_in"]
    row_added: Float[Tensor, "n d_out"]
    column_added: Float[Tensor, "n d_in"]
    scale: Float[Tensor, "n 1"]

    def gated(self, pairs: Pairs, edit: Tensor) -> Pairs:
        """The change in factors: gated rows of the gradient, and one more row for each edit.

        Args:
            pairs: of the gradient; ``lesson`` is kept for its rows.
            edit: which edit each row belongs to; edit ``i`` is of lesson ``owner[i]``.
        """
        x = self.column[edit] * pairs.x
        delta = (self.scale * self.row)[edit] * pairs.delta
        return Pairs(x, delta, pairs.lesson)

    def added(self, owner: Tensor) -> Pairs:
        """The rows that do not depend on the gradient."""
        return Pairs(self.column_added, self.scale * self.row_added, owner)


class Head(nn.Module):
    """From what was read to the gates of one matrix.

    Args:
        condition, width: sizes.
        d_out, d_in: of the matrix.
        max_scale: the largest scale.
    """

    def __init__(
        self, condition: int, width: int, d_out: int, d_in: int, max_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.parts = [d_in, d_out, d_in, d_out, 1]
        self.max_scale = max_scale
        self.first = weight_norm(nn.Linear(condition, width))
        self.last = weight_norm(nn.Linear(width, sum(self.parts)))
        column, _, added, _, _ = torch.arange(sum(self.parts)).split(self.parts)
        with torch.no_grad():  # begins as a step down: c_a = -1, c_b = 0
            self.last.parametrizations.weight.original0[torch.cat([column, added])] = 0  # type: ignore[index, union-attr, operator]
            self.last.bias[column] = -1
            self.last.bias[added] = 0

    def forward(self, h: Float[Tensor, "n condition"]) -> Gates:
        """Gates of each edit."""
        column, row, column_added, row_added, scale = self.last(torch.tanh(self.first(h))).split(
            self.parts, dim=1
        )
        return Gates(
            row.softmax(1),
            column,
            row_added.softmax(1),
            column_added,
            self.max_scale * scale.sigmoid(),
        )


class KeLearner(Learner):
    """The reader and the gates of KE for one model.

    Args:
        shapes: matrix → (d_in, d_out), in order.
        settings: what to build.
        d_embedding: width of the base model's embeddings.
        seed: of the networks' beginning.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        settings: KeSettings,
        d_embedding: int,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings, self.matrices = settings, tuple(shapes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            s = settings
            self.reader = nn.LSTM(d_embedding, s.hidden, batch_first=True, bidirectional=True)
            self.summary = nn.Linear(2 * s.hidden, s.condition)
            self.heads = nn.ModuleList(
                Head(s.condition, s.width, d_out, d_in, s.max_scale)
                for d_in, d_out in shapes.values()
            )

    def rates(self) -> list[Parameter]:
        return []

    def rewrite(
        self, view: ModelView, texts: Texts, *, n_lessons: int, edited: Tensor | None = None
    ) -> Rewrite:
        found = capture(view, texts, self.matrices, n_lessons=len(texts), edited=edited)
        flags = torch.ones(len(texts), dtype=torch.bool) if edited is None else edited.cpu()
        rows = flags.nonzero()[:, 0]
        number = flags.cumsum(0).sub(1).to(texts.row.device)  # of the edit in a row
        owner = (rows // (len(texts) // n_lessons)).to(texts.row.device)
        h = self._read(view, conditions(view, texts, found.logits.argmax(-1), rows.tolist()))
        factors = {}
        for name, head in zip(self.matrices, self.heads, strict=True):
            gates, pairs = head(h), found.pairs[name]
            pairs = Pairs(pairs.x.to(h), pairs.delta.to(h), pairs.lesson)
            edit = number[pairs.lesson]
            changed = gates.gated(Pairs(pairs.x, pairs.delta, owner[edit]), edit)
            factors[name] = Factors.of(changed, n_lessons).joined(
                Factors.of(gates.added(owner), n_lessons)
            )
        return Rewrite(factors, found)

    def _read(self, view: ModelView, texts: Sequence[str]) -> Float[Tensor, "n condition"]:
        """What the reader makes of each edit."""
        tokens = [view.tokenizer(t)["input_ids"] for t in texts]
        ids, mask = pad_right(tokens, pad_token(view), device=view.device)
        embeddings: Any = view.model.get_input_embeddings()
        seen = embeddings.weight.detach()[ids].to(self.summary.weight)
        packed = pack_padded_sequence(seen, mask.sum(1).cpu(), True, enforce_sorted=False)
        _, (state, _) = self.reader(packed)
        return torch.tanh(self.summary(torch.cat([state[0], state[1]], 1)))


@dataclass(frozen=True, kw_only=True)
class KE(LearnedEditor):
    """A trained editor: a network reads the edit and gates its gradient.

    Train one with :meth:`train` for a model, or with ``workbench train ke``.

    Example:
        >>> editor = wb.KE.preset(view)  # doctest: +SKIP
    """

    reference: ClassVar[str] = "KE"
    presets: ClassVar[Mapping[str, tuple[dict[str, Any], str]]] = PRESETS
    settings_class: ClassVar[type] = KeSettings

    @classmethod
    def learner(cls, view: ModelView, settings: Any, *, seed: int = 0) -> KeLearner:
        embeddings: Any = view.model.get_input_embeddings()
        width = embeddings.weight.shape[1]
        return KeLearner(sizes(view, settings.matrices), settings, width, seed=seed)

    @classmethod
    def usual(cls, view: ModelView) -> dict[str, Any]:
        return {"matrices": matrices(view)}


def conditions(view: ModelView, texts: Texts, said: Tensor, rows: Sequence[int]) -> list[str]:
    """What is read about each edit: what the model says, what it shall say, and to what.

    Args:
        said: arg-max at every spot.
        rows: the batch rows that are edits.
    """
    found = []
    for i in rows:
        own = said[(texts.row == i) & texts.answer].tolist()
        if view.kind == ENCODER_CLASSIFIER:
            answer = view.labels[own[0]]
        else:
            answer = str(view.tokenizer.decode(own, skip_special_tokens=True)).strip()
        request = texts.requests[i]
        found.append(f"{answer} >> {request.target_new} || {request.text}")
    return found
