"""Second moments of keys, E[k kᵀ]: all layers in one pass, streaming, resumable, cached.

What the field calls the covariance is the uncentred mean over the tokens of a corpus (ROME,
2202.05262, section 3.1; MEMIT, 2210.07229, eq. 15; spec locate-then-edit 1.5). Departures from
the published code: one pass for all layers, which ends after the highest; products in float32
(never lower, no TF32) summed in float64; the model's own text by default, so that nothing has to be
downloaded; a cache name made of everything the numbers depend on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from workbench import places
from workbench.atomic import sweep, write_atomically
from workbench.corpora import Corpus, open_corpus
from workbench.errors import DataError, OptionError, StatisticsError, StorageError
from workbench.fingerprint import checksum_of, fingerprint_of, seal, unseal
from workbench.keysums import KeySums, Plan, collect, pack, plan_batches, unpack
from workbench.model import ModelView
from workbench.secondmoments import SecondMoment, identity_moment, import_npz, require, too_few
from workbench.tokens import context_length

__all__ = [
    "SecondMoment",
    "default_tokens",
    "estimate",
    "identity_moment",
    "import_npz",
    "require",
    "second_moments",
]

FORMAT = "workbench-stats/1"
#: Raw keys kept of each layer.
N_RESERVOIR = 512
#: What reading a damaged file raises.
_DAMAGE = (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError)
#: Bytes of moments that a view remembers, so that repeated edits neither load nor factor again.
REMEMBERED_BYTES = 8 * 2**30


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
    if folder is not None:
        sweep(folder)
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
        for moment in _compute(view, text, recipe, missing, batch_tokens, folder):
            found[moment.layer] = moment
    return {layer: require(found[layer], view, layer) for layer in layers}  # type: ignore[arg-type]


def default_tokens(view: ModelView, corpus: Any = "self") -> int:
    """Tokens that are enough (2506.04226: 10 · d_mlp reproduce the full score; spec 1.5)."""
    own = isinstance(corpus, str) and corpus == "self"
    return max(16 * view.d_mlp, 20_000) if own else max(32 * view.d_mlp, 200_000)


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


# ------------------------------------------------------------------ computing


def _compute(
    view: ModelView,
    text: Corpus,
    recipe: dict[str, Any],
    layers: list[int],
    batch_tokens: int,
    folder: Path | None,
) -> Iterator[SecondMoment]:
    """One pass for the layers; each moment is kept before the next one is made."""
    partial = None
    if folder is not None:
        run = recipe | {"batch_tokens": batch_tokens}
        partial = folder / f"run-{fingerprint_of(run)}.partial"
        _require_room(folder, estimate(view, layers, recipe["n_tokens"])["disk_bytes"])
    with view.pristine(), torch.no_grad(), torch.autocast(view.device.type, enabled=False):
        plan = _plan(view, text, recipe, batch_tokens)
        sums = collect(view, layers, plan, seed=recipe["seed"], partial=partial)
    source = recipe | {"ids_sha256": plan.digest, "n_rows": len(plan.rows)}
    for layer in layers:
        moment = _moment(layer, sums.pop(layer), plan, source, view.fingerprint)
        _remember(view, folder, recipe, moment)
        yield moment
    if partial is not None:
        partial.unlink(missing_ok=True)


def _plan(view: ModelView, text: Corpus, recipe: dict[str, Any], batch_tokens: int) -> Plan:
    wanted = recipe["n_tokens"]
    if wanted < view.d_mlp:
        raise StatisticsError(too_few(wanted, view.d_mlp))
    plan = plan_batches(
        text.read(wanted),
        batch_tokens=batch_tokens,
        skipped=int(recipe["skip_first_token"]),
        n_picked=recipe["n_reservoir"],
        seed=recipe["seed"],
    )
    if plan.n_tokens < view.d_mlp:
        raise StatisticsError(too_few(plan.n_tokens, view.d_mlp))
    advised = min(wanted, 10 * view.d_mlp)
    if plan.n_tokens < advised:
        warnings.warn(
            f"corpus {recipe['corpus']!r} has {plan.n_tokens:,} tokens, fewer than {advised:,}: "
            "the statistics are rough (see SecondMoment.check).",
            stacklevel=4,
        )
    return plan


def _moment(
    layer: int, sums: KeySums, plan: Plan, source: dict[str, Any], fingerprint: str
) -> SecondMoment:
    n, n_even = plan.n_tokens, plan.n_even
    return SecondMoment(
        layer=layer,
        matrix=unpack(pack(sums.second).div_(n), len(sums.first)),
        mean=sums.first / n,
        n_tokens=n,
        fingerprint=fingerprint,
        source=source,
        reservoir=sums.kept.T,
        sampling_error=sums.split_half_error(n, n_even, source["seed"]),
    )


def _check_options(length: int, n_tokens: int, batch_tokens: int, n_reservoir: int) -> None:
    for name, value, low in (
        ("sequence_length", length, 2),
        ("n_tokens", n_tokens, 1),
        ("batch_tokens", batch_tokens, 1),
        ("n_reservoir", n_reservoir, 0),
    ):
        if value < low:
            raise OptionError(f"{name}={value}: it must be {low} or more.")


def _config(view: ModelView) -> Any:
    return view.model.config.get_text_config(decoder=True)


def _flop_per_second(view: ModelView) -> float:
    a = torch.ones(1024, 1024, device=view.device)
    float((a @ a)[0, 0])  # warm
    start = time.perf_counter()
    float((a @ a)[0, 0])
    return float(2 * 1024**3 / (time.perf_counter() - start))


# ------------------------------------------------------------------ keeping


def _folder(cache: bool | str | os.PathLike[str] | None) -> Path | None:
    if cache is None or cache is False:
        return None
    return places.cache_dir("stats") if cache is True else Path(cache)


def _require_room(folder: Path, need: float) -> None:
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < 2 * need:  # the running sums lie beside the results for a while
        raise StorageError(
            f"key statistics need {2 * need / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f}: "
            "free some space, choose another folder (cache=...), or keep nothing (cache=None)."
        )


def _name(recipe: dict[str, Any], layer: int) -> str:
    return fingerprint_of(recipe | {"layer": layer})


def _remember(
    view: ModelView, folder: Path | None, recipe: dict[str, Any], moment: SecondMoment
) -> None:
    if folder is None:
        return
    name = _name(recipe, moment.layer)
    tensors = {
        "upper": pack(moment.matrix),
        "mean": moment.mean,
        "reservoir": moment.reservoir.contiguous(),
    }
    manifest = {
        "recipe": recipe | {"layer": moment.layer},
        "source": moment.source,
        "n_tokens": moment.n_tokens,
        "sampling_error": moment.sampling_error,
        "model": view.name,
        "sha256": checksum_of(tensors),
    }
    note = {"workbench": json.dumps(seal(manifest), sort_keys=True)}
    write_atomically(folder / f"{name}.safetensors", safetensors_bytes(tensors, metadata=note))
    _hold(view, (str(folder), name), moment)


def _recall(
    view: ModelView, folder: Path | None, recipe: dict[str, Any], layer: int
) -> SecondMoment | None:
    """The moment from memory or disk; a damaged file is reported and computed again."""
    if folder is None:
        return None
    name = _name(recipe, layer)
    held = view.cache.get("stats", {}).get((str(folder), name))
    path = folder / f"{name}.safetensors"
    if held is not None or not path.is_file():
        return held  # type: ignore[no-any-return]
    try:
        moment = _load(path, recipe | {"layer": layer})
    except DataError as err:
        warnings.warn(f"{err} It is computed again.", stacklevel=4)
        return None
    _hold(view, (str(folder), name), moment)
    return moment


def _load(path: Path, recipe: dict[str, Any]) -> SecondMoment:
    try:
        with safe_open(path, framework="pt") as handle:
            manifest = unseal(json.loads((handle.metadata() or {})["workbench"]))
            tensors = {k: handle.get_tensor(k) for k in ("upper", "mean", "reservoir")}
        if manifest["recipe"] != recipe or manifest["sha256"] != checksum_of(tensors):
            raise ValueError("its content does not match its manifest")
        return SecondMoment(
            layer=recipe["layer"],
            matrix=unpack(tensors["upper"], len(tensors["mean"])),
            mean=tensors["mean"],
            n_tokens=manifest["n_tokens"],
            fingerprint=recipe["fingerprint"],
            source=manifest["source"],
            reservoir=tensors["reservoir"],
            sampling_error=manifest["sampling_error"],
        )
    except _DAMAGE as err:
        raise DataError(
            f"the statistics file {path} is damaged ({err}): delete it if this comes back."
        ) from err


def _hold(view: ModelView, key: tuple[str, str], moment: SecondMoment) -> None:
    """Remember in memory; the oldest go when the budget (matrix and factor) is spent."""
    held = view.cache.setdefault("stats", {})
    held[key] = moment
    while len(held) > 1 and len(held) * 16 * moment.d_mlp**2 > REMEMBERED_BYTES:
        del held[next(iter(held))]
