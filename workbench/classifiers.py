"""A head for an encoder: fine-tuned once on labeled texts, kept in the cache, stated with accuracy.

Editing a classifier presupposes one. The highest blocks and the head are trained with AdamW on
cross-entropy; what the blocks below make of a text never changes, so it is computed once. Batches,
their order and the beginning of the head follow from the seed, and nothing is dropped out, so the
same data give the same weights on one machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.capabilities import hooks
from workbench.errors import DataError, NumericalError, OptionError, StorageError, did_you_mean
from workbench.layouts import ENCODER_CLASSIFIER
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.pretrained import load
from workbench.progress import Bar

__all__ = ["Classifier", "finetune_classifier"]

RECORD = "training.json"
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Classifier:
    """A fine-tuned classifier in the cache.

    Attributes:
        path: its folder, for :func:`workbench.load`.
        labels: its classes.
        train_accuracy: on the texts it was trained on.
        accuracy: on the texts held out, None without any.
        most_frequent: share of the most frequent class among the texts held out.
    """

    path: Path
    labels: tuple[str, ...]
    train_accuracy: float
    accuracy: float | None
    most_frequent: float | None


@dataclass
class _Batch:
    """Some texts: what the model is given, what the lowest blocks made of it, right classes."""

    inputs: dict[str, Tensor]
    below: Any
    classes: Tensor


class _Stop(Exception):
    """Ends a forward pass once the highest fixed block was run."""


def finetune_classifier(
    texts: Sequence[str],
    targets: Sequence[str],
    *,
    model: str | os.PathLike[str] = "minilm-l6",
    tests: tuple[Sequence[str], Sequence[str]] | None = None,
    blocks: int = 2,
    epochs: int = 4,
    lr: float = 1e-4,
    head_lr: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Classifier:
    """Fine-tune an encoder's head and highest blocks, or find what was fine-tuned before.

    Args:
        texts: to train on.
        targets: the class of each; the classes are their names in alphabetical order.
        model: ``"minilm-l6"``, or the folder of an encoder classifier that has these classes.
        tests: texts and classes held out, on which accuracy is stated.
        blocks: so many of the highest blocks are trained with the head; 0 trains the head alone.
        epochs: passes over the texts.
        lr, head_lr: of the blocks and of the head; they fall linearly to nothing.
        batch_size: texts a step.
        seed: of the order.
        device: as :func:`workbench.load` takes it.

    Returns:
        A :class:`Classifier`; ``wb.load(found.path)`` opens it. The folder's name is made of the
        model, all texts and classes and all options.

    Raises:
        OptionError: for texts and classes that do not go together, or options out of range.
        NumericalError: if the loss becomes NaN.
        StorageError: if the cache cannot be written.

    Example:
        >>> cases = wb.datasets.topics("scotus_justice.jsonl", part="train")  # doctest: +SKIP
        >>> texts, areas = zip(*((c.request.text, c.request.target_new) for c in cases))
        ... # doctest: +SKIP
        >>> view = wb.load(wb.finetune_classifier(texts, areas).path)  # doctest: +SKIP
    """
    _check(texts, targets, tests, blocks=blocks, epochs=epochs, batch_size=batch_size)
    labels = tuple(sorted(set(targets)))
    options = {"blocks": blocks, "epochs": epochs, "lr": lr, "head_lr": head_lr}
    options |= {"batch_size": batch_size, "seed": seed}
    view = load(model, labels=labels, kind=ENCODER_CLASSIFIER, device=device)
    _require_classes(view, [*labels, *(tests[1] if tests else ())])
    recipe = {"model": view.fingerprint, "options": options, "labels": list(labels)}
    data = [list(texts), list(targets), [list(part) for part in tests] if tests else None]
    digest = hashlib.sha256(json.dumps([recipe, data]).encode()).hexdigest()[:16]
    folder = cache_dir("models") / f"classifier-{digest}"
    if not (folder / RECORD).is_file():
        _make(view, folder, recipe, texts, targets, tests, options)
    return _read(folder)


def _make(
    view: ModelView,
    folder: Path,
    recipe: dict[str, Any],
    texts: Sequence[str],
    targets: Sequence[str],
    tests: tuple[Sequence[str], Sequence[str]] | None,
    options: dict[str, Any],
) -> None:
    """Train, measure and write; the folder appears in one rename."""
    size = options["batch_size"]
    start = view.n_layers - options["blocks"]
    batches = _batches(view, texts, targets, start, size)
    losses = _train(view, batches, start, **options)
    record = recipe | {"losses": losses, "train_accuracy": _accuracy(view, batches, start)}
    record |= {"accuracy": None, "most_frequent": None, "n": [len(texts), 0]}
    if tests:
        held = _batches(view, *tests, start, size)
        counts = [list(tests[1]).count(label) for label in view.labels]
        record["accuracy"] = _accuracy(view, held, start)
        record |= {"most_frequent": max(counts) / len(tests[1]), "n": [len(texts), len(tests[0])]}
    try:
        _write(view, folder, record)
    except OSError as error:
        raise StorageError(f"cannot write the classifier to {folder}: {error}") from error


def _write(view: ModelView, folder: Path, record: dict[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        built = Path(work) / "built"
        view.model.save_pretrained(built)
        view.tokenizer.save_pretrained(built)
        (built / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        with suppress(OSError):  # another process finished first
            os.replace(built, folder)


def _read(folder: Path) -> Classifier:
    try:
        held = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Classifier(
            folder,
            tuple(held["labels"]),
            held["train_accuracy"],
            held["accuracy"],
            held["most_frequent"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} is damaged ({error!r}): delete it; it is made again.") from error


# ---------------------------------------------------------------------- training


def _batches(
    view: ModelView, texts: Sequence[str], targets: Sequence[str], start: int, size: int
) -> list[_Batch]:
    """Texts of similar length together, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = []
    with Bar("read texts", len(order)) as bar:
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            given = view.tokenizer(
                [texts[i] for i in chosen], return_tensors="pt", padding=True, truncation=True
            )
            inputs = {k: v.to(view.device) for k, v in given.items()}
            classes = torch.tensor([view.labels.index(targets[i]) for i in chosen])
            found.append(_Batch(inputs, _below(view, inputs, start), classes.to(view.device)))
            bar.step(len(chosen))
    return found


@torch.no_grad()
def _below(view: ModelView, inputs: dict[str, Tensor], start: int) -> Any:
    """What the highest fixed block gives; None if there is none."""
    if start == 0:
        return None
    kept: list[Any] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        kept.append(out)
        raise _Stop

    watching = iter([view.block(start - 1).register_forward_hook(keep)])
    with hooks(watching), suppress(_Stop):
        view.model(**inputs)
    return kept[0]


def _logits(view: ModelView, batch: _Batch, start: int) -> Tensor:
    with _standing_in(view, batch.below, start):
        return view.model(**batch.inputs).logits.float()


@contextmanager
def _standing_in(view: ModelView, below: Any, start: int) -> Iterator[None]:
    """The fixed blocks hand back what they gave."""
    fixed: list[Any] = [view.block(i) for i in range(start)]
    try:
        for block in fixed:
            block.forward = lambda *args, **kwargs: below
        yield
    finally:
        for block in fixed:
            block.__dict__.pop("forward", None)


def _train(
    view: ModelView,
    batches: Sequence[_Batch],
    start: int,
    *,
    blocks: int,
    epochs: int,
    lr: float,
    head_lr: float,
    batch_size: int,
    seed: int,
) -> list[float]:
    """Train in place; returns the mean loss of each epoch."""
    for parameter in view.model.parameters():
        parameter.requires_grad_(False)
    upper = [p for i in range(start, view.n_layers) for p in view.block(i).parameters()]
    head = _head_parameters(view)
    groups = [{"params": head, "lr": head_lr}]
    groups += [{"params": upper, "lr": lr}] if upper else []
    for parameter in (*upper, *head):
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    steps = epochs * len(batches)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    chance, means = random.Random(seed), []
    with Bar("fine-tune the classifier", steps) as bar, torch.enable_grad():
        for _ in range(epochs):
            total = 0.0
            for batch in chance.sample(batches, len(batches)):
                loss = torch.nn.functional.cross_entropy(_logits(view, batch, start), batch.classes)
                if not bool(torch.isfinite(loss)):
                    raise NumericalError("the classifier's loss became NaN: try a smaller lr.")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                falling.step()
                total += float(loss.detach()) / len(batches)
                bar.step()
            means.append(total)
    for parameter in (*upper, *head):
        parameter.requires_grad_(False)
        parameter.grad = None
    return means


def _head_parameters(view: ModelView) -> list[torch.nn.Parameter]:
    """Everything above the blocks: what is neither in a block nor below the first one."""
    names = [name for name, _ in view.model.named_parameters()]
    blocks = view.layout.block(0).rsplit(".", 1)[0]
    last = max(i for i, name in enumerate(names) if name.startswith(f"{blocks}."))
    return [view.model.get_parameter(name) for name in names[last + 1 :]]


@torch.no_grad()
def _accuracy(view: ModelView, batches: Sequence[_Batch], start: int) -> float:
    right = n = 0
    for batch in batches:
        right += int((_logits(view, batch, start).argmax(-1) == batch.classes).sum())
        n += len(batch.classes)
    return right / n


# ---------------------------------------------------------------------- checks


def _check(
    texts: Sequence[str],
    targets: Sequence[str],
    tests: tuple[Sequence[str], Sequence[str]] | None,
    **numbers: int,
) -> None:
    if len(texts) != len(targets) or not texts:
        raise OptionError(f"{len(texts)} texts and {len(targets)} targets: give one for each.")
    if tests is not None and (len(tests[0]) != len(tests[1]) or not tests[0]):
        raise OptionError(f"tests: {len(tests[0])} texts and {len(tests[1])} targets.")
    if len(set(targets)) < 2:
        raise OptionError(f"targets has the one class {targets[0]!r}: there is nothing to tell.")
    for name, value in numbers.items():
        if type(value) is not int or value < (0 if name == "blocks" else 1):
            raise OptionError(f"{name}={value!r}: it must be a whole number from 1 on.")


def _require_classes(view: ModelView, names: Sequence[str]) -> None:
    for name in names:
        if name not in view.labels:
            raise OptionError(
                f"target {name!r} is no class of {view.name}." + did_you_mean(name, view.labels)
            )
