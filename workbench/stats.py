"""Second moments of keys, E[k kᵀ]: all layers in one pass, streaming, resumable, cached.

What the field calls the covariance is the uncentred mean over the tokens of a corpus (ROME,
2202.05262, section 3.1; MEMIT, 2210.07229, eq. 15; spec locate-then-edit 1.5). Departures from
the published code: one pass for all layers, which ends after the highest; products in float32
(never lower, no TF32) summed in float64; the model's own text by default, so that nothing has to be
downloaded; a cache name made of everything the numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from workbench import places
from workbench.corpora import Corpus, open_corpus
from workbench.edits import write_atomically
from workbench.errors import DataError, NumericalError, OptionError, StatisticsError, StorageError
from workbench.layouts import DECODER
from workbench.linalg import Factor, cholesky
from workbench.model import ModelView, fingerprint_of
from workbench.progress import Bar
from workbench.tokens import context_length, pad_right
from workbench.trace import Site, trace

__all__ = [
    "SecondMoment",
    "estimate",
    "identity_moment",
    "import_npz",
    "require",
    "second_moments",
]

FORMAT = "workbench-stats/1"
#: Running sums are saved after this many seconds, and never for more than a tenth of the time.
CHECKPOINT_SECONDS = 20.0
CHECKPOINT_SHARE = 0.1
#: Raw keys kept of each layer.
N_RESERVOIR = 512
#: Random directions along which the two halves of the corpus are compared.
N_DIRECTIONS = 16
#: Up to this size the condition number comes from all eigenvalues, beyond from power iterations.
EXACT_SPECTRUM = 4096
#: Bytes of moments that a view remembers, so that repeated edits neither load nor factor again.
REMEMBERED_BYTES = 8 * 2**30


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """E[k kᵀ] of the keys of one layer.

    Attributes:
        layer: the block.
        matrix: ``[d_mlp, d_mlp]`` float64, symmetric, on the CPU; saved without loss.
        mean: ``[d_mlp]`` mean key, float64; NaN where an imported file has none.
        n_tokens: keys that were averaged.
        fingerprint: of the pristine model.
        source: corpus, seed, lengths and everything else the numbers depend on.
        reservoir: ``[d_mlp, n]`` float32, a uniform sample of raw keys without replacement.
        sampling_error: relative Frobenius error of the matrix from the difference between two
            halves of the corpus, None if unknown.
    """

    layer: int
    matrix: Float[Tensor, "d_mlp d_mlp"]
    mean: Float[Tensor, " d_mlp"]
    n_tokens: int
    fingerprint: str
    source: dict[str, Any] = field(repr=False)
    reservoir: Float[Tensor, "d_mlp n"] = field(repr=False)
    sampling_error: float | None = None

    @property
    def d_mlp(self) -> int:
        """Size of a key."""
        return self.matrix.shape[0]

    @cached_property
    def factor(self) -> Factor:
        """Cholesky factor of the matrix, made once."""
        return cholesky(self.matrix)

    def leverage(self, keys: Float[Tensor, "d_mlp n"]) -> Float[Tensor, " n"]:
        """``kᵀ C⁻¹ k`` of each key; the mean over all tokens behind C is exactly ``d_mlp``."""
        return self.factor.leverage(keys)

    def check(self) -> dict[str, float]:
        """How good the estimate is.

        Returns:
            ``mean_leverage`` of the reservoir and its ratio to ``d_mlp`` (near 1 for a healthy
            matrix; exactly 1 over all tokens), ``condition`` number, ``effective_rank``
            (tr(C)² / ‖C‖²), ``jitter`` that factoring needed, ``tokens_per_dimension``,
            ``sampling_error``. NaN where unknown.
        """
        n = self.reservoir.shape[1]
        mean = float(self.leverage(self.reservoir).mean()) if n else math.nan
        error = self.sampling_error
        return {
            "d_mlp": float(self.d_mlp),
            "mean_leverage": mean,
            "leverage_ratio": mean / self.d_mlp,
            "condition": _condition(self),
            "effective_rank": float(self.matrix.trace() ** 2 / self.matrix.square().sum()),
            "jitter": self.factor.jitter,
            "tokens_per_dimension": self.n_tokens / self.d_mlp,
            "sampling_error": math.nan if error is None else error,
        }

    def __repr__(self) -> str:
        return (
            f"<SecondMoment of layer {self.layer}: {self.d_mlp} × {self.d_mlp}, "
            f"{self.n_tokens:,} tokens of {self.source.get('corpus')}>"
        )


def second_moments(
    view: ModelView,
    layers: Sequence[int],
    *,
    corpus: str | os.PathLike[str] | Iterable[str] = "self",
    n_tokens: int | None = None,
    sequence_length: int = 256,
    seed: int = 0,
    batch_tokens: int = 4096,
    skip_first_token: bool = False,
    n_reservoir: int = N_RESERVOIR,
    cache: bool | str | os.PathLike[str] | None = True,
) -> dict[int, SecondMoment]:
    """Second moments of the pristine model's keys, from the cache or from one pass over a corpus.

    Args:
        view: the model; its edits are set aside while the pass runs.
        layers: blocks wanted; those that are cached are not computed again.
        corpus: see :func:`workbench.corpora.open_corpus`.
        n_tokens: keys to average; by default 16 · d_mlp (20,000 at least) for ``"self"``, whose
            tokens have to be generated, and 32 · d_mlp (200,000 at least) otherwise.
        sequence_length: tokens a row, bounded by the model's context.
        seed: of the corpus and of the reservoir.
        batch_tokens: tokens that run together, padding included; changes rounding only.
        skip_first_token: leave the first token of every row out (massive activations of
            Llama-like models); the references do not.
        n_reservoir: raw keys to keep, at most 2 · d_mlp.
        cache: True for the usual folder, a folder, or None (or False) to keep nothing.

    Returns:
        layer → :class:`SecondMoment`, in the order of ``layers``.

    Raises:
        OptionError: for values out of range. StatisticsError: if the corpus has fewer tokens than
            d_mlp. DataError, FetchError: for the corpus. StorageError: if the cache cannot be
            written. NumericalError: if keys are NaN or Inf.

    A run that was interrupted, even killed, continues where it was last saved when it is called
    again, and gives the same bits (for the same number of threads).

    Example:
        >>> moment = second_moments(view, [3, 4])[3]
        >>> moment.check()["leverage_ratio"]
    """
    layers = list(layers)
    view.check_layers(layers)
    length = min(sequence_length, context_length(_config(view)) or sequence_length)
    n_tokens = default_tokens(view, corpus) if n_tokens is None else n_tokens
    n_reservoir = min(n_reservoir, 2 * view.d_mlp)
    _check_options(length, n_tokens, batch_tokens, n_reservoir)
    folder = _folder(cache)
    text = open_corpus(
        view, corpus, sequence_length=length, seed=seed, skip_first_token=skip_first_token,
        folder=folder,
    )  # fmt: skip
    recipe = {
        "format": FORMAT,
        "fingerprint": view.fingerprint,
        "site": "key",
        "dtype": str(view.dtype),
        "n_tokens": n_tokens,
        "sequence_length": length,
        "seed": seed,
        "skip_first_token": skip_first_token,
        "n_reservoir": n_reservoir,
        **text.source,
    }
    found = {layer: _recall(view, folder, recipe, layer) for layer in layers}
    missing = sorted({layer for layer, moment in found.items() if moment is None})
    if missing:
        with view.pristine(), torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            run = _Pass(view, text, recipe, missing, batch_tokens, folder, layers)
            for layer in missing:
                found[layer] = run.moment(layer)
                _remember(view, folder, recipe, run.moment(layer))
            run.forget()
    return {layer: require(found[layer], view, layer) for layer in layers}  # type: ignore[arg-type]


def default_tokens(view: ModelView, corpus: Any = "self") -> int:
    """Tokens that are enough (2506.04226: 10 · d_mlp reproduce the full score; spec 1.5)."""
    own = isinstance(corpus, str) and corpus == "self"
    return max(16 * view.d_mlp, 20_000) if own else max(32 * view.d_mlp, 200_000)


def require(moment: SecondMoment, view: ModelView, layer: int) -> SecondMoment:
    """Return the moment if it fits the model and the layer.

    Raises:
        StatisticsError: if it is of another model, layer or size, or from too few tokens.
        NumericalError: if it holds NaN or Inf.
    """
    if moment.fingerprint != view.fingerprint:
        raise StatisticsError(
            f"statistics of another model: these were computed on {moment.fingerprint}, "
            f"{view.name} is {view.fingerprint}. Compute them with second_moments(view, [{layer}])."
        )
    if moment.layer != layer:
        raise StatisticsError(f"statistics of layer {moment.layer} were given for layer {layer}.")
    if tuple(moment.matrix.shape) != (view.d_mlp, view.d_mlp):
        raise StatisticsError(
            f"the matrix of layer {layer} is {tuple(moment.matrix.shape)}, the keys of {view.name} "
            f"have {view.d_mlp} entries: these are statistics of another site or model."
        )
    if moment.n_tokens < view.d_mlp and moment.source.get("corpus") != "identity":
        raise StatisticsError(_too_few(moment.n_tokens, view.d_mlp))
    if not bool(moment.matrix.isfinite().all()):
        raise NumericalError(
            f"the statistics of layer {layer} hold NaN or Inf: load the model in a wider dtype "
            "(dtype='float32') and compute them again."
        )
    return moment


def identity_moment(view: ModelView, layer: int) -> SecondMoment:
    """C = I: every direction of key space counts alike; needs no corpus."""
    view.check_layers([layer])
    m = view.d_mlp
    return SecondMoment(
        layer=layer,
        matrix=torch.eye(m, dtype=torch.float64),
        mean=torch.zeros(m, dtype=torch.float64),
        n_tokens=0,
        fingerprint=view.fingerprint,
        source={"corpus": "identity"},
        reservoir=torch.zeros(m, 0),
    )


def import_npz(path: str | os.PathLike[str], view: ModelView, layer: int) -> SecondMoment:
    """Read statistics that ROME or MEMIT published or computed.

    Args:
        path: a .npz with ``mom2.mom2`` (the *sum* of k kᵀ) and ``mom2.count``, as their running
            statistics save it, or with the mean as ``C`` (and its ``count`` if known).
        view: the model; that the file belongs to it cannot be checked beyond its size.
        layer: the block.

    Raises:
        DataError: if the file is missing, damaged or has other fields.
        StatisticsError: if its size does not fit or its tokens are too few.
    """
    path = Path(path)
    view.check_layers([layer])
    matrix, count = _read_npz(path)
    moment = SecondMoment(
        layer=layer,
        matrix=(matrix + matrix.T) / 2 if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        else matrix,
        mean=torch.full((matrix.shape[0],), math.nan, dtype=torch.float64),
        n_tokens=view.d_mlp if count is None else count,
        fingerprint=view.fingerprint,
        source={"corpus": f"imported from {path.name}", "count": count},
        reservoir=torch.zeros(matrix.shape[0], 0),
    )  # fmt: skip
    return require(moment, view, layer)


def estimate(
    view: ModelView, layers: Sequence[int], n_tokens: int | None = None, *, corpus: Any = "self"
) -> dict[str, float]:
    """What :func:`second_moments` would cost, before it runs.

    Returns:
        ``n_tokens``; ``disk_bytes`` and ``memory_bytes`` of the statistics; ``sampling_flop``,
        ``forward_flop`` and ``product_flop``; ``seconds``, rough, from the speed of one matrix
        product measured now (sampling token by token runs at a fraction of it).
    """
    view.check_layers(list(layers))
    n = default_tokens(view, corpus) if n_tokens is None else n_tokens
    m, count = view.d_mlp, len(set(layers))
    block = sum(p.numel() for p in view.block(0).parameters())
    everything = sum(p.numel() for p in view.model.parameters())
    own = isinstance(corpus, str) and corpus == "self"
    kept = 4 * m * min(N_RESERVOIR, 2 * m)
    cost = {
        "n_tokens": float(n),
        "disk_bytes": float(count * (4 * m * (m + 1) + 8 * m + kept)),
        "memory_bytes": float(count * (8 * m * m + kept) + 4 * m * m),
        "sampling_flop": 2.0 * n * everything if own else 0.0,
        "forward_flop": 2.0 * n * (max(layers) + 1) * block,
        "product_flop": 2.0 * n * m * m * count,
    }
    busy = 3 * cost["sampling_flop"] + cost["forward_flop"] + cost["product_flop"]
    return cost | {"seconds": busy / _flop_per_second(view)}


# ------------------------------------------------------------------ the pass
