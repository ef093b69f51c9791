"""Fine-tuning baselines: FT, FT-L (a box around the weights) and FT-W (weight decay).

The edited matrices are trained with Adam on the requests' own prompts (ROME, arXiv 2202.05262,
section 3.2 and appendix; spec locate-then-edit 2.1). The change ``dW`` is trained, not the weight:
the module's output plus ``dW · key`` is what the edited model would answer, so the model is only
read. Blocks below the lowest edited layer run once.

Departures from the published code: the loss is teacher forced over all target tokens
(``objective="target_new"``; the released bag-of-tokens loss is ``"prompt_last"``), biases stay as
they are (R8), and decay pulls toward the original weight unless ``decay_to="zero"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from workbench.capabilities import hooks, orient, readout
from workbench.editors.base import Editor, storage_dtype
from workbench.editors.presets import Preset, options_for
from workbench.edits import Delta
from workbench.errors import NumericalError, OptionError, UnsupportedEditorError, did_you_mean
from workbench.facts import EditRequest
from workbench.layouts import DECODER, ENCODER_CLASSIFIER
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.replay import capture_blocks
from workbench.tokens import context_length, encode_request, pad_right
from workbench.trace import frozen

__all__ = ["FT", "FTL", "FTW", "loss_function"]

#: Parameter → its change as (out, in).
Changes = dict[str, Tensor]
#: Runs a mini-batch: mean loss, and whether every answer is right.
LossFunction = Callable[[], tuple[Tensor, bool]]

OBJECTIVES = ("target_new", "prompt_last")
STOPS = ("loss", "correct")
MATRICES = ("down", "both")
OPTIMIZERS = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
DECAY_TO = ("original", "zero")


@dataclass
class Shift:
    """Changes that the model answers with, except while ``quiet``."""

    changes: Changes
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class FT(Editor):
    """Fine-tuning of one or a few down projections.

    Args:
        layers: layers whose MLP is trained.
        steps: epochs over the batch.
        lr: learning rate.
        objective: ``target_new`` (teacher forced) or ``prompt_last`` (as released; decoders).
        stop_loss: a mini-batch below is skipped; training ends when an epoch's mean is below.
        stop: ``loss``, or ``correct``: a mini-batch whose answers all are the arg-max is skipped.
        mini_batch: requests of one Adam step.
        matrices: ``down`` (the down projection) or ``both`` (also the MLP's first matrix).
        optimizer: ``adam`` or ``rmsprop``, each with PyTorch's own other numbers.
        seed: unused by the computation, which is deterministic; kept with the record.
    """

    layers: tuple[int, ...]
    steps: int = 25
    lr: float = 5e-4
    objective: str = "target_new"
    stop_loss: float = 1e-2
    stop: str = "loss"
    mini_batch: int = 64
    matrices: str = "down"
    optimizer: str = "adam"
    seed: int = 0

    needs_subject: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ("linear",)
    reference: ClassVar[str] = "ROME"

    def _check(self, view: ModelView) -> None:
        view.check_layers(self.layers)
        name = type(self).__name__
        if len(set(self.layers)) != len(self.layers):
            raise OptionError(f"{name}: layers={self.layers} names a layer twice.")
        for option, known in (
            ("objective", OBJECTIVES),
            ("stop", STOPS),
            ("matrices", MATRICES),
            ("optimizer", tuple(OPTIMIZERS)),
        ):
            value = getattr(self, option)
            if value not in known:
                raise OptionError(
                    f"{name}: {option}={value!r} is unknown." + did_you_mean(value, known)
                )
        if self.matrices == "both" and view.up_name(self.layers[0]) is None:
            raise OptionError(
                f"{name}: matrices='both', but {view.layout.family} models have no single first "
                "matrix in their MLP: use matrices='down'."
            )
        if view.kind != DECODER and self.objective != "target_new":
            raise OptionError(
                f"{name}: objective={self.objective!r} reads the last token of a decoder's prompt, "
                f"{view.name} is an {view.kind}: use objective='target_new'."
            )
        if view.kind == DECODER and not view.capabilities.readout:
            raise UnsupportedEditorError(
                f"{name} on {view.name}: it needs the capability 'readout', but "
                f"{view.capabilities.reasons['readout']}."
            )
        for option in ("steps", "lr", "mini_batch"):
            if not getattr(self, option) > 0:
                raise OptionError(f"{name}: {option}={getattr(self, option)} must be above 0.")

    def _compute(
        self, view: ModelView, requests: Sequence[EditRequest], **given: Any
    ) -> tuple[list[Delta], dict[str, Any]]:
        changes = self._unchanged(view)
        history = self._train(view, requests, changes, self._memory(view, requests, **given))
        return self._found(changes), {"report": {"training": history}}

    def _memory(self, view: ModelView, requests: Sequence[EditRequest], **given: Any) -> Any:
        """What the training must know besides the requests; nothing here."""
        return None

    def _parameters(self, view: ModelView) -> list[str]:
        """Names of the trained matrices, by layer, the first matrix before the second."""
        first = [view.up_name(layer) if self.matrices == "both" else None for layer in self.layers]
        second = [view.weight_name(layer) for layer in self.layers]
        return [name for pair in zip(first, second, strict=True) for name in pair if name]

    def _unchanged(self, view: ModelView) -> Changes:
        dtype = storage_dtype(view)
        shapes = {name: orient(view.module_of(name)) for name in self._parameters(view)}
        return {
            name: torch.zeros_like(weight, dtype=dtype).requires_grad_()
            for name, weight in shapes.items()
        }

    def _found(self, changes: Changes) -> list[Delta]:
        return [Delta.dense(name, change.detach()) for name, change in changes.items()]

    def _train(
        self,
        view: ModelView,
        requests: Sequence[EditRequest],
        changes: Changes,
        memory: Any = None,
        *,
        steps: int | None = None,
    ) -> list[dict[str, Any]]:
        """Train the changes in place with a fresh optimizer; returns the loss of every epoch."""
        size, steps = self.mini_batch, self.steps if steps is None else steps
        parts = [requests[i : i + size] for i in range(0, len(requests), size)]
        losses = [loss_function(view, p, self.layers, self.objective) for p in parts]
        optimizer = OPTIMIZERS[self.optimizer](changes.values(), lr=self.lr)
        rows: list[dict[str, Any]] = []
        shift = Shift(changes)
        shifted = hooks(_shifted(view, shift))
        with Bar("fine-tuning", steps) as bar, frozen(view.model), shifted:
            for step in range(steps):
                loss, done = self._epoch(view, losses, shift, optimizer, memory)
                rows.append({"step": step, "loss": loss})
                bar.step()
                if done:
                    break
        return rows

    def _epoch(
        self,
        view: ModelView,
        losses: Sequence[LossFunction],
        shift: Shift,
        optimizer: torch.optim.Optimizer,
        memory: Any,
    ) -> tuple[float, bool]:
        """The mean loss, and whether training is over."""
        values, waiting, changes = [], 0, shift.changes
        for loss_of in losses:
            loss, right = loss_of()
            values.append(float(loss.detach()))
            if not torch.isfinite(loss):
                raise NumericalError(
                    f"{type(self).__name__}: the loss became {values[-1]}; nothing was changed. "
                    "Try a smaller lr."
                )
            if right if self.stop == "correct" else values[-1] < self.stop_loss:
                continue
            waiting += 1
            loss = loss + self._beside(view, shift, memory)
            grads = torch.autograd.grad(loss, list(changes.values()))
            for (name, change), grad in zip(changes.items(), grads, strict=True):
                change.grad = grad + self._pull(view, name, change.detach(), memory)
            optimizer.step()
            with torch.no_grad():
                for change in changes.values():
                    self._project(change)
        mean = sum(values) / len(values)
        return mean, not waiting if self.stop == "correct" else mean < self.stop_loss

    def _beside(self, view: ModelView, shift: Shift, memory: Any) -> Tensor | float:
        """A loss on something else than the requests; none here."""
        return 0.0

    def _pull(self, view: ModelView, name: str, change: Tensor, memory: Any) -> Tensor | float:
        """Gradient of a penalty on the weights; none here."""
        return 0.0

    def _project(self, change: Tensor) -> None:
        """Bring the change back into the allowed set; everything is allowed here."""

    @classmethod
    def preset(cls, view: ModelView, name: str = "default", **overrides: Any) -> Self:
        """Options for a model: published ones, or a middle layer for unknown models."""
        table = PRESETS[cls.__name__]
        options = options_for(table, view, name, cls.__name__, 1)
        if name in ("paper", "repo"):
            options.setdefault("objective", "prompt_last")
        return cls(**(options | overrides))


@dataclass(frozen=True, kw_only=True)
class FTL(FT):
    """FT-L: after every step each weight stays within ``epsilon`` of its original.

    Args:
        epsilon: half width of the box (L∞ norm constraint).
    """

    epsilon: float = 5e-4

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        if self.epsilon < 0:
            raise OptionError(f"FTL: epsilon={self.epsilon} must not be negative.")

    def _project(self, change: Tensor) -> None:
        change.clamp_(-self.epsilon, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class FTW(FT):
    """FT-W: fine-tuning with weight decay.

    Args:
        decay: added to the gradient, times the distance from ``decay_to``.
        decay_to: ``original`` (L2-SP) or ``zero`` (Adam's own weight decay, as released).
    """

    decay: float = 5e-4
    decay_to: str = "original"

    reference: ClassVar[str] = "MEMIT"

    def _check(self, view: ModelView) -> None:
        super()._check(view)
        if self.decay < 0:
            raise OptionError(f"FTW: decay={self.decay} must not be negative.")
        if self.decay_to not in DECAY_TO:
            raise OptionError(
                f"FTW: decay_to={self.decay_to!r} is unknown."
                + did_you_mean(self.decay_to, DECAY_TO)
            )

    def _pull(self, view: ModelView, name: str, change: Tensor, memory: Any) -> Tensor | float:
        weight = orient(view.module_of(name)).detach()
        origin = weight.to(change.dtype) if self.decay_to == "zero" else 0.0
        return self.decay * (change + origin)


def _shifted(view: ModelView, shift: Shift) -> Iterator[Any]:
    """Hooks by which the model answers as if each weight were larger by its change."""

    def added(change: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if shift.quiet:
                return None
            return out + (args[0].to(change.dtype) @ change.T).to(out.dtype)

        return hook

    return (
        view.module_of(name).register_forward_hook(added(change))
        for name, change in shift.changes.items()
    )


def loss_function(
    view: ModelView, requests: Sequence[EditRequest], layers: Sequence[int], objective: str
) -> LossFunction:
    """A function that runs the mini-batch and returns its mean loss in nats per token, and whether
    every answer is the arg-max."""
    if view.kind == DECODER:
        return _decoder_loss(view, requests, min(layers), objective)
    if view.kind == ENCODER_CLASSIFIER:
        return _classifier_loss(view, requests)
    return _full_loss(view, requests)


def _decoder_loss(
    view: ModelView, requests: Sequence[EditRequest], start: int, objective: str
) -> LossFunction:
    limit = context_length(view.model.config)
    encoded = [encode_request(view.tokenizer, r, max_length=limit)[0] for r in requests]
    rows, columns, labels, weights = [], [], [], []
    for i, enc in enumerate(encoded):
        for k, token in enumerate(enc.target_ids):
            last = enc.target_start - 1
            rows.append(i)
            columns.append(last + (k if objective == "target_new" else 0))
            labels.append(token)
            weights.append(1 / (len(enc.target_ids) * len(encoded)))
    blocks = capture_blocks(view, [e.ids[:-1] for e in encoded], start, view.n_layers)
    label, weight = torch.tensor(labels), torch.tensor(weights)

    def loss() -> tuple[Tensor, bool]:
        hidden = blocks.hidden
        for layer in range(start, view.n_layers):
            hidden = blocks.run(layer, hidden)
        logits = readout(view.model, view.layout, hidden[rows, columns])
        logp = _widened(logits).log_softmax(-1)
        nll = -logp.gather(1, label.to(logp.device)[:, None])[:, 0]
        right = logits.argmax(-1) == label.to(logits.device)
        return (nll * weight.to(nll)).sum(), bool(right.all())

    return loss


def _classifier_loss(view: ModelView, requests: Sequence[EditRequest]) -> LossFunction:
    inputs = view.tokenizer(
        [r.text for r in requests], return_tensors="pt", padding=True, truncation=True
    ).to(view.device)
    label = torch.tensor([view.labels.index(r.target_new) for r in requests], device=view.device)

    def loss() -> tuple[Tensor, bool]:
        logits = _widened(view.model(**inputs).logits)
        return nn.functional.cross_entropy(logits, label), bool((logits.argmax(-1) == label).all())

    return loss


def _full_loss(view: ModelView, requests: Sequence[EditRequest]) -> LossFunction:
    """Encoder–decoders: mean over requests of the mean loss over target tokens."""
    tok = view.tokenizer
    ids, mask = pad_right([tok(r.text)["input_ids"] for r in requests], device=view.device)
    targets = [tok(text_target=r.target_new)["input_ids"] for r in requests]
    labels, real = pad_right(targets, device=view.device)
    weight = real / real.sum(1, keepdim=True) / len(requests)

    def loss() -> tuple[Tensor, bool]:
        out = view.model(input_ids=ids, attention_mask=mask.long(), labels=labels)
        logp = _widened(out.logits).log_softmax(-1)
        right = (logp.argmax(-1) == labels) | ~real
        return -(logp.gather(2, labels[..., None])[..., 0] * weight).sum(), bool(right.all())

    return loss


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _down(layer: int, **options: Any) -> dict[str, Any]:
    return {"layers": (layer,), "lr": 5e-4, "steps": 25, **options}


def mend_options(layers: tuple[int, ...], lr: float, **more: Any) -> dict[str, Any]:
    """MEND's baseline: both matrices of the last MLPs, until the edit is right."""
    training = {"steps": 100, "stop": "correct", "optimizer": "rmsprop", "lr": lr}
    return {"layers": layers, "matrices": "both", "objective": "target_new", **training, **more}


#: model → (layers, learning rate) of that baseline; arXiv 2110.11309, section 5 and appendix B.
MEND_BASELINE: dict[str, tuple[tuple[int, ...], float]] = {
    "distilgpt2": ((3, 4, 5), 1e-6),
    "gpt-neo-2.7b": ((29, 30, 31), 5e-6),
    "gpt-j-6b": ((25, 26, 27), 5e-6),
    "bert-base": ((9, 10, 11), 1e-6),
}
_MEND = "arXiv 2110.11309; eric-mitchell/mend config/alg/ft.yaml"
_ROME = "kmeng01/rome hparams"
_NSE = "jianghoucheng/NSE hparams"

PRESETS: dict[str, dict[str, dict[str, Preset]]] = {
    "FT": {
        "repo": {
            "gpt2-xl": Preset(_down(1), _ROME),
            "gpt-j-6b": Preset(_down(21), _ROME),
            "llama-3-8b": Preset(_down(21), _NSE),
            **{
                name: Preset(mend_options(*MEND_BASELINE[name]), _MEND)
                for name in ("distilgpt2", "gpt-neo-2.7b", "bert-base")
            },
        }
    },
    "FTL": {
        "repo": {
            "gpt2-xl": Preset(_down(0, epsilon=5e-4), _ROME),
            "gpt2-large": Preset(_down(0, epsilon=1e-3), _ROME),
            "gpt2-medium": Preset(_down(0, epsilon=2e-3), _ROME),
            "gpt-j-6b": Preset(_down(0, epsilon=5e-5), _ROME),
        }
    },
    "FTW": {"paper": {"gpt-j-6b": Preset(_down(21, decay=5e-4), "arXiv 2210.07229, appendix")}},
}
