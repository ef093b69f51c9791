"""One pass over token rows that sums k kᵀ of every wanted layer, saved as it goes.

Padding never counts, products are float32 or wider, sums are float64. Everything that depends on
chance or order (batches, reservoir, halves) is fixed before the first batch, so a run that was
killed continues from its last saved batch to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from workbench.atomic import write_atomically
from workbench.errors import NumericalError
from workbench.fingerprint import checksum_of, seal, unseal
from workbench.layouts import DECODER
from workbench.model import ModelView
from workbench.progress import Bar
from workbench.tokens import pad_right
from workbench.trace import Site, trace

__all__ = ["KeySums", "Plan", "collect", "pack", "plan_batches", "unpack"]

#: Running sums are saved after this many seconds, and never for more than a tenth of the time.
CHECKPOINT_SECONDS = 20.0
CHECKPOINT_SHARE = 0.1
#: Random directions along which the two halves of the corpus are compared.
N_DIRECTIONS = 16


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rows run together and which keys are kept.

    Attributes:
        rows: token ids, shortest first.
        batches: consecutive ranges of rows.
        skipped: leading tokens of a row that do not count.
        picked: ascending numbers of the keys of the reservoir, over all that count.
    """

    rows: list[list[int]]
    batches: list[range]
    skipped: int
    picked: Int[Tensor, " n"]

    @cached_property
    def n_tokens(self) -> int:
        """Keys that count."""
        return sum(self.counted(i) for i in range(len(self.rows)))

    @property
    def n_even(self) -> int:
        """Keys that count in rows of even number, the first half."""
        return sum(self.counted(i) for i in range(0, len(self.rows), 2))

    @cached_property
    def digest(self) -> str:
        """Hash of the token ids in their batches."""
        content = [self.rows, [[b.start, b.stop] for b in self.batches], self.skipped]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def counted(self, row: int) -> int:
        """Keys of one row that count."""
        return max(len(self.rows[row]) - self.skipped, 0)


@dataclass
class KeySums:
    """Running sums of one layer.

    Attributes:
        second: ``[m, m]`` sum of k kᵀ, float64; only its upper triangle is meant.
        first: ``[m]`` sum of k, float64.
        even: ``[m, N_DIRECTIONS]`` sum of k kᵀ over the first half, times random directions.
        kept: ``[n, m]`` the keys that were picked so far, float32, the rest zero.
    """

    second: Float[Tensor, "m m"]
    first: Float[Tensor, " m"]
    even: Float[Tensor, "m s"]
    kept: Float[Tensor, "n m"]

    def split_half_error(self, n: int, n_even: int, seed: int) -> float | None:
        """Relative error of the mean of k kᵀ, from the difference between the two halves.

        Along random directions g, ‖A g‖² is an unbiased estimate of ‖A‖²; half the difference of
        two independent half-means estimates the error of the whole mean.
        """
        if not 0 < n_even < n:
            return None
        whole = (self.second.triu() + self.second.triu(1).T) @ directions(len(self.first), seed)
        difference = self.even / n_even - (whole - self.even) / (n - n_even)
        return float(difference.norm() / (2 * whole.norm() / n))


def directions(m: int, seed: int) -> Float[Tensor, "m s"]:
    """The random directions of the split-half comparison, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, N_DIRECTIONS, generator=generator).double()


def plan_batches(
    rows: Sequence[Sequence[int]], *, batch_tokens: int, skipped: int, n_picked: int, seed: int
) -> Plan:
    """Sort rows by length and cut them into batches of at most ``batch_tokens``, padding included.

    The order of keys, and with it the reservoir, does not depend on ``batch_tokens``.
    """
    ordered = [list(r) for r in sorted(rows, key=len)]
    batches, start = [], 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or len(ordered[i]) * (i + 1 - start) > batch_tokens:
            batches.append(range(start, i))
            start = i
    total = sum(max(len(r) - skipped, 0) for r in ordered)
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(total, generator=generator)[:n_picked].sort().values
    return Plan(ordered, batches, skipped, picked)


def collect(
    view: ModelView, layers: Sequence[int], plan: Plan, *, seed: int, partial: Path | None = None
) -> dict[int, KeySums]:
    """Run the plan through the model, in the state it is in, up to the highest layer.

    Args:
        view: the model.
        layers: blocks wanted.
        plan: from :func:`plan_batches`.
        seed: of the random directions.
        partial: file for running sums; read if it is there, left behind, for the
            caller to remove.

    Raises:
        NumericalError: if a key is NaN or Inf. StorageError: if ``partial`` cannot be written.
    """
    along = directions(view.d_mlp, seed)
    sums, done = _resume(partial, plan, layers)
    homes = _homes(view, layers)
    sums = {i: sums[i] if done else _zeros(view.d_mlp, len(plan.picked)) for i in layers}
    sums = {i: _moved(s, homes[i]) for i, s in sums.items()}
    saver = _Saver(partial, plan, done)
    seen = sum(plan.counted(i) for b in plan.batches[:done] for i in b)
    with saver.saving(sums), Bar("key statistics", plan.n_tokens, start=seen) as bar:
        for batch in plan.batches[done:]:
            keys, mask = _keys(view, layers, [plan.rows[i] for i in batch], plan.skipped)
            n = sum(plan.counted(i) for i in batch)
            with saver.busy():
                for layer in layers:
                    _add(sums[layer], keys[layer], layer, along, _Share(plan, batch, mask, seen))
            seen += n
            saver.step(sums)
            bar.step(n)
    return {layer: _moved(s, torch.device("cpu")) for layer, s in sums.items()}


def pack(matrix: Float[Tensor, "m m"]) -> Float[Tensor, " p"]:
    """The upper triangle, row by row: half the bytes, nothing lost."""
    return matrix[torch.ones_like(matrix, dtype=torch.bool).triu()]


def unpack(packed: Float[Tensor, " p"], m: int) -> Float[Tensor, "m m"]:
    """The symmetric matrix of an upper triangle."""
    matrix = packed.new_zeros(m, m)
    matrix[torch.ones(m, m, dtype=torch.bool).triu()] = packed
    return matrix + matrix.triu(1).T


# ------------------------------------------------------------------ one batch


@dataclass(frozen=True)
class _Share:
    """What one batch contributes: its rows, its mask of counting keys, the keys before it."""

    plan: Plan
    batch: range
    mask: Bool[Tensor, "rows pos"]
    before: int

    def even(self) -> Bool[Tensor, " n"]:
        """Keys of rows of even number, among those that count."""
        number = torch.arange(self.batch.start, self.batch.stop, device=self.mask.device)
        return (number % 2 == 0)[:, None].expand_as(self.mask)[self.mask]

    def picks(self, n: int) -> tuple[slice, Int[Tensor, " k"]]:
        """Rows of the reservoir to fill, and the keys of this batch to fill them with."""
        low, high = torch.searchsorted(
            self.plan.picked, torch.tensor([self.before, self.before + n])
        )
        return slice(int(low), int(high)), self.plan.picked[low:high] - self.before


def _keys(
    view: ModelView, layers: Sequence[int], rows: list[list[int]], skipped: int
) -> tuple[dict[int, Float[Tensor, "rows pos m"]], Bool[Tensor, "rows pos"]]:
    ids, mask = pad_right(rows, device=view.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
    if view.kind == DECODER:
        inputs["use_cache"] = False
    with trace(view, [Site(i, "key") for i in layers], stop=True) as seen:
        view.model(**inputs)
    mask[:, :skipped] = False
    return {i: seen[Site(i, "key")] for i in layers}, mask


def _add(sums: KeySums, keys: Tensor, layer: int, along: Tensor, share: _Share) -> None:
    x = keys[share.mask.to(keys.device)]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    first = x[share.even().to(x.device)]
    with _full_precision():
        product = x.T @ x
        even = first.T @ (first @ along.to(x))
    if not bool(product.diagonal().isfinite().all()):
        raise NumericalError(
            f"the keys of layer {layer} hold NaN or Inf: load the model in a wider dtype "
            "(dtype='float32') and compute the statistics again."
        )
    home = sums.second.device
    sums.second += product.to(home)
    sums.even += even.to(home)
    sums.first += x.sum(0, dtype=None if x.device.type == "mps" else torch.float64).to(home)
    slots, picked = share.picks(x.shape[0])
    sums.kept[slots] = x[picked.to(x.device)].to(sums.kept)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 products are float32 inside: no TF32, no bfloat16."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _zeros(m: int, n_picked: int) -> KeySums:
    second = torch.zeros(m, m, dtype=torch.float64)
    first = torch.zeros(m, dtype=torch.float64)
    even = torch.zeros(m, N_DIRECTIONS, dtype=torch.float64)
    return KeySums(second, first, even, torch.zeros(n_picked, m))


def _moved(sums: KeySums, device: torch.device) -> KeySums:
    return KeySums(*(getattr(sums, f).to(device) for f in KeySums.__dataclass_fields__))


def _homes(view: ModelView, layers: Sequence[int]) -> dict[int, torch.device]:
    """Where the sums of each layer live: with its weights if there is room and float64."""
    cpu = torch.device("cpu")
    homes = {i: view.weight(i).device for i in layers}
    for device in set(homes.values()):
        need = sum(8 * view.d_mlp**2 for d in homes.values() if d == device)
        room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
        if need > room:
            homes = {i: cpu if d == device else d for i, d in homes.items()}
    return homes


# ------------------------------------------------------------------ saving on the way


class _Saver:
    """Writes running sums now and then, and when a run ends early between two batches."""

    def __init__(self, path: Path | None, plan: Plan, done: int) -> None:
        self.path, self.plan, self.done = path, plan, done
        self.saved = done
        self.whole = True
        self.due = time.monotonic() + CHECKPOINT_SECONDS

    @contextmanager
    def saving(self, sums: dict[int, KeySums]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self.whole:
                self.save(sums)
            raise
        if time.monotonic() >= self.due:
            self.save(sums)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Inside, some layers have the batch and others do not: nothing may be saved."""
        self.whole = False
        yield
        self.done += 1
        self.whole = True

    def step(self, sums: dict[int, KeySums]) -> None:
        if time.monotonic() >= self.due:
            start = time.monotonic()
            self.save(sums)
            cost = time.monotonic() - start
            self.due = time.monotonic() + max(CHECKPOINT_SECONDS, cost / CHECKPOINT_SHARE)

    def save(self, sums: dict[int, KeySums]) -> None:
        if self.path is None or self.saved == self.done:
            return
        tensors = {}
        for layer, s in sums.items():
            tensors[f"{layer}.second"] = pack(s.second).cpu()
            tensors |= {f"{layer}.{f}": getattr(s, f).cpu() for f in ("first", "even", "kept")}
        note = {"digest": self.plan.digest, "done": str(self.done)}
        note = seal(note | {"sha256": checksum_of(tensors)})
        write_atomically(self.path, safetensors_bytes(tensors, metadata=note))
        self.saved = self.done


def _resume(path: Path | None, plan: Plan, layers: Sequence[int]) -> tuple[dict[int, KeySums], int]:
    """Sums and number of finished batches of an earlier run of the same plan."""
    if path is None or not path.is_file():
        return {}, 0
    try:
        with safe_open(path, framework="pt") as handle:
            note = unseal(handle.metadata() or {})
            if note.get("digest") != plan.digest:
                return {}, 0
            everything = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            names = [f"{i}.{f}" for i in layers for f in KeySums.__dataclass_fields__]
            if note.get("sha256", "") not in ("", checksum_of(everything)):
                raise ValueError("its sums do not match their checksum")
            if not set(names) <= set(everything):
                return {}, 0
            tensors = {name: everything[name] for name in names}
        m = next(t.shape[0] for name, t in tensors.items() if name.endswith(".first"))
        sums = {}
        for i in layers:
            second = unpack(tensors[f"{i}.second"], m)
            sums[i] = KeySums(second, *(tensors[f"{i}.{f}"] for f in ("first", "even", "kept")))
        return sums, int(note["done"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as err:
        warnings.warn(f"{path} is damaged ({err}); the run starts anew.", stacklevel=4)
        return {}, 0
