"""The gradient of an edit, as pairs of what went into a matrix and what should come out.

The gradient of ``W`` in ``y = W x + b`` is a sum over tokens of ``delta xᵀ`` with ``delta`` the
gradient of the loss by ``y`` (MEND, arXiv 2110.11309, section 3.1; spec memory-and-meta 0.2 and
4.2). One forward and one backward pass give the pairs of every matrix at once: no gradient of a
weight is computed, and nothing is differentiated below the lowest matrix.

The same pairs, changed by a learned editor, are the factors of its edit. :func:`writing` lets the
model answer as if they had been written, for many lessons in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

from workbench.capabilities import get_module, hooks
from workbench.editors.learned.texts import Texts, logits_of
from workbench.errors import OptionError, did_you_mean
from workbench.model import ModelView

__all__ = ["Factors", "Gradients", "Pairs", "capture", "check_matrices", "matrices", "writing"]

#: Blocks of a decoder or an encoder that are edited, counted from the top (paper, appendix C).
TOP = 3
#: Rows of one pass where a batch may be taken in parts.
ROWS = 64
#: Blocks at the top of the encoder and of the decoder of an encoder-decoder.
TOP_OF_TWO = 2


@dataclass(frozen=True)
class Pairs:
    """Gradient of one matrix in factors: the sum over rows of ``delta xᵀ``.

    Attributes:
        x: what went into the matrix.
        delta: gradient of the loss by what came out.
        lesson: which lesson a row belongs to.
    """

    x: Float[Tensor, "n d_in"]
    delta: Float[Tensor, "n d_out"]
    lesson: Int[Tensor, " n"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The gradient of all lessons together."""
        return self.delta.T @ self.x


@dataclass(frozen=True)
class Factors:
    """A change of one matrix for each lesson, ``left[l].T @ right[l]``; unused rows are zero."""

    left: Float[Tensor, "lessons n d_out"]
    right: Float[Tensor, "lessons n d_in"]

    @classmethod
    def of(cls, pairs: Pairs, n_lessons: int) -> Factors:
        """Rows sorted into their lessons; ``delta`` to the left, ``x`` to the right."""
        counts = torch.bincount(pairs.lesson, minlength=n_lessons)
        order = pairs.lesson.argsort(stable=True)
        start = counts.cumsum(0) - counts
        lesson = pairs.lesson[order]
        place = torch.arange(len(order), device=order.device) - start[lesson]
        width = int(counts.max()) if len(order) else 0

        def sorted_in(rows: Tensor) -> Tensor:
            empty = rows.new_zeros(n_lessons, width, rows.shape[1])
            return empty.index_put((lesson, place), rows[order])

        return cls(sorted_in(pairs.delta), sorted_in(pairs.x))

    def joined(self, other: Factors) -> Factors:
        """Both changes, one after the other."""
        return Factors(
            torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1)
        )

    def detached(self) -> Factors:
        """The same numbers without their history."""
        return Factors(self.left.detach(), self.right.detach())


@dataclass(frozen=True)
class Gradients:
    """What one pass over the edits gave.

    Attributes:
        pairs: matrix → its gradient.
        logits: of the model as it was, at all spots; with their history only where parameters of
            the base model are trained.
        loss: mean over lessons of the negative log-likelihood a token, nats.
    """

    pairs: Mapping[str, Pairs]
    logits: Float[Tensor, "n classes"]
    loss: float


def matrices(view: ModelView) -> tuple[str, ...]:
    """The matrices the paper edits: both of the MLP, in the top blocks, lowest first."""
    if view.layout.answering is None:
        return _pairs_of(view, view.layout.blocks, _ups(view), view.layout.value, TOP)
    layout = view.layout
    assert layout.answering is not None and layout.answering_value is not None
    return (
        *_pairs_of(view, layout.blocks, _ups(view), layout.value, TOP_OF_TWO),
        *_pairs_of(view, layout.answering, layout.answering_up, layout.answering_value, TOP_OF_TWO),
    )


def check_matrices(view: ModelView, names: Sequence[str]) -> None:
    """Refuse names that are no weights of linear modules.

    Raises:
        OptionError: naming the first one.
    """
    known = [n for n, p in view.model.named_parameters() if p.ndim == 2 and n.endswith(".weight")]
    for name in names:
        module = get_module(view.model, name.removesuffix(".weight"))
        if name not in known or not isinstance(module, nn.Linear | Conv1D):
            raise OptionError(
                f"matrices: {name!r} is no weight of a linear module of {view.name}."
                + did_you_mean(name, known)
            )
    if not names or len(set(names)) != len(names):
        raise OptionError(f"matrices={tuple(names)!r}: name each matrix once, and at least one.")


def capture(
    view: ModelView,
    texts: Texts,
    names: Sequence[str],
    *,
    n_lessons: int,
    edited: Bool[Tensor, " rows"] | None = None,
    values: Mapping[str, Tensor] | None = None,
    written: Mapping[str, Factors] | None = None,
    create_graph: bool = False,
) -> Gradients:
    """Gradients of the answers' likelihood, each lesson by its own loss.

    The loss of a lesson is the mean over all tokens of its answers, so that several edits of one
    lesson are written together as in the paper.

    Args:
        view: the model; it is only read.
        texts: rows of ``n_lessons`` lessons, as many for each.
        names: the matrices.
        n_lessons: how many lessons.
        edited: rows whose answers enter the loss; None takes all.
        values: parameters to use instead of the model's own.
        written: changes that are already made.
        create_graph: keep what is needed to differentiate the gradients themselves; else they are
            constants.

    Returns:
        Pairs in float32 or wider, without the rows where either side is zero.
    """
    if len(texts) > ROWS and n_lessons in (1, len(texts)) and not (values or written):
        return _in_parts(view, texts, names, n_lessons, edited)
    return _captured(
        view, texts, names, n_lessons, edited, values or {}, written or {}, create_graph
    )


def _in_parts(
    view: ModelView, texts: Texts, names: Sequence[str], n_lessons: int, edited: Tensor | None
) -> Gradients:
    """A large batch, a few rows at a time: one lesson, or a lesson a row.

    The gradient of one lesson's mean over all tokens is the sum of those of its parts, each by its
    share of the tokens.
    """
    counts = texts.answer if edited is None else texts.answer & edited[texts.row]
    found, shares, starts = [], [], range(0, len(texts), ROWS)
    for begin in starts:
        end = min(begin + ROWS, len(texts))
        part = texts.part(begin, end)
        own = None if edited is None else edited[begin:end]
        lessons = 1 if n_lessons == 1 else len(part)
        found.append(_captured(view, part, names, lessons, own, {}, {}, False))
        inside = (texts.row >= begin) & (texts.row < end)
        shares.append(int(counts[inside].sum()) / max(int(counts.sum()), 1))
    scales = shares if n_lessons == 1 else [1.0] * len(found)
    offsets = [0] * len(found) if n_lessons == 1 else list(starts)
    pairs = {
        name: Pairs(
            torch.cat([f.pairs[name].x for f in found]),
            torch.cat([f.pairs[name].delta * s for f, s in zip(found, scales, strict=True)]),
            torch.cat([f.pairs[name].lesson + o for f, o in zip(found, offsets, strict=True)]),
        )
        for name in names
    }
    loss = sum(f.loss * s for f, s in zip(found, shares, strict=True))
    return Gradients(pairs, torch.cat([f.logits for f in found]), loss)


def _captured(
    view: ModelView,
    texts: Texts,
    names: Sequence[str],
    n_lessons: int,
    edited: Tensor | None,
    values: Mapping[str, Tensor],
    written: Mapping[str, Factors],
    create_graph: bool,
) -> Gradients:
    """One pass; see :func:`capture`."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with _freed(view, names, seen), writing(view, written), double_backward(create_graph):
        logits = logits_of(view, texts, values)
        counts = texts.answer if edited is None else texts.answer & edited[texts.row]
        loss = answer_loss(logits, texts, n_lessons, counts)
        grads = torch.autograd.grad(
            loss.sum(),
            [z for _, z in seen.values()],
            create_graph=create_graph,
            retain_graph=create_graph or bool(values),
        )
    pairs = {
        name: _pairs(x if create_graph else x.detach(), grad, len(texts), n_lessons)
        for (name, (x, _)), grad in zip(seen.items(), grads, strict=True)
    }
    kept = logits if values else logits.detach()
    return Gradients({n: pairs[n] for n in names}, kept, float(loss.detach().mean()))


@contextmanager
def writing(view: ModelView, factors: Mapping[str, Factors]) -> Iterator[None]:
    """The model answers as if the changes were written, each lesson's rows with its own.

    The rows of a batch inside must be those of the lessons, in order and as many for each.
    """

    def write(change: Factors) -> Any:
        right, left = change.right, change.left

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            x = args[0].to(right.dtype).reshape(len(right), -1, right.shape[-1])
            return out + ((x @ right.mT) @ left).reshape(out.shape).to(out.dtype)

        return hook

    with hooks(
        view.module_of(name).register_forward_hook(write(change))
        for name, change in factors.items()
    ):
        yield


def nll(logits: Float[Tensor, "n classes"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Negative log-likelihood of each label, nats."""
    return nn.functional.cross_entropy(logits, label, reduction="none")


def lesson_means(values: Tensor, lesson: Tensor, n_lessons: int) -> Float[Tensor, " lessons"]:
    """Mean of each lesson's values."""
    zeros = values.new_zeros(n_lessons)
    total = zeros.index_add(0, lesson, values)
    return total / zeros.index_add(0, lesson, torch.ones_like(values)).clamp_min(1)


def double_backward(wanted: bool) -> AbstractContextManager[Any]:
    """Attention that can be differentiated twice, which the fused kernels cannot."""
    return sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext()


def answer_loss(
    logits: Tensor, texts: Texts, n_lessons: int, counts: Bool[Tensor, " n"]
) -> Float[Tensor, " lessons"]:
    """Mean negative log-likelihood a token of each lesson, over the spots that count."""
    lesson = texts.row[counts] // (len(texts) // n_lessons)
    return lesson_means(nll(logits[counts], texts.label[counts]), lesson, n_lessons)


def _freed(
    view: ModelView, names: Sequence[str], seen: dict[str, tuple[Tensor, Tensor]]
) -> AbstractContextManager[None]:
    """Hooks that add a zero to each module's output: its gradient is that of the output."""

    def free(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            zero = torch.zeros_like(out, requires_grad=True)
            seen[name] = (args[0], zero)
            return out + zero

        return hook

    return hooks(view.module_of(n).register_forward_hook(free(n)) for n in names)


def _pairs(x: Tensor, delta: Tensor, rows: int, n_lessons: int) -> Pairs:
    """Rows of one matrix where both sides say something."""
    dtype = torch.promote_types(delta.dtype, torch.float32)
    # some families flatten batch and position
    x, delta = (t.reshape(rows, -1, t.shape[-1]).to(dtype) for t in (x, delta))
    kept = (x != 0).any(-1) & (delta != 0).any(-1)
    row = kept.nonzero()[:, 0]
    return Pairs(x[kept], delta[kept], row // (rows // n_lessons))


def _ups(view: ModelView) -> tuple[str, ...]:
    return view.layout.up_choices if view.layout.up is None else (view.layout.up,)


def _pairs_of(
    view: ModelView, blocks: str, ups: Sequence[str], value: str, top: int
) -> tuple[str, ...]:
    """Parameter names of both matrices in the last blocks of a list."""
    n = len(get_module(view.model, blocks))  # type: ignore[arg-type]
    names = []
    for i in range(max(0, n - top), n):
        first = (u for u in ups if get_module(view.model, f"{blocks}.{i}.{u}") is not None)
        names += [f"{blocks}.{i}.{u}.weight" for u in (*list(first)[:1], value)]
    return tuple(names)
