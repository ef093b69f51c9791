"""Where a fact passes: ROME's causal trace (arXiv 2202.05262, section 2 and appendix B).

Noise on the subject's embeddings makes the model forget the answer; what brings it back when one
state is restored mediates it. Departures from the published code: the window of ``mlp`` and
``attention`` is at most a third of the layers, the noise is drawn from a seed, and its size is
measured on the subjects at hand (the code also has constants for its models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.errors import OptionError, RequestError, did_you_mean
from workbench.facts import EditRequest, as_requests
from workbench.inspectors.tracing import (
    MODULES,
    Cell,
    Runs,
    cells_of,
    embedding_std,
    encode_fact,
    require,
    run,
    trace_token,
)
from workbench.model import ModelView
from workbench.progress import track

__all__ = ["ROLES", "causal_average", "causal_trace", "edit_site"]

KINDS = ("residual", *MODULES)
#: What a token is to the fact, in the order of the text.
ROLES = (
    "before subject",
    "first subject token",
    "middle subject token",
    "last subject token",
    "first after",
    "further",
    "last",
)
#: Layers restored together for ``mlp`` and ``attention``: the paper's, of 48.
WINDOW = 10


@dataclass(frozen=True)
class _Options:
    kinds: tuple[str, ...]
    noise_sigmas: float
    samples: int
    window: int
    severed: str | None
    seed: int

    def cells(self, n_layers: int) -> list[Cell]:
        return [
            cell
            for kind in self.kinds
            for cell in cells_of(kind, n_layers, window=self.window, severed=self.severed)
        ]


def causal_trace(
    view: ModelView,
    request: Any,
    *,
    kinds: Sequence[str] | None = None,
    noise_sigmas: float = 3.0,
    samples: int = 10,
    window: int | None = None,
    severed: str | None = None,
    positions: Sequence[int] | None = None,
    std: float | None = None,
    seed: int = 0,
    must_know: bool = True,
) -> pd.DataFrame:
    """Probability of a fact's answer with the subject corrupted and one state restored.

    Args:
        view: the model as it is, edits included; no hook layers.
        request: one request or case, with a subject. Its ``target_true`` is traced (the first
            token), without one what the model says by itself.
        kinds: of ``residual``, ``mlp``, ``attention``; None takes all (``residual`` if severed).
        noise_sigmas: noise on the subject's embeddings, in standard deviations of ``std``.
        samples: draws of the noise; the same for every cell.
        window: blocks around a layer whose ``mlp`` or ``attention`` is restored together; None is
            10, as in the paper, but at most a third of the layers.
        severed: ``mlp`` or ``attention``: at the restored token this module's outputs stay
            corrupted in all blocks above the restored residual (the paper's modified graph).
        positions: tokens to trace, counted from 0; None is all. Those before the subject are listed
            with no effect, as nothing there is corrupted.
        std: standard deviation of embeddings; None measures that of the subject's tokens.
        seed: of the noise.
        must_know: raise if the model's likeliest token is not the answer.

    Returns:
        One row a kind, layer and token: ``kind, layer, position, token, role`` (:data:`ROLES`),
        ``prob`` (mean over the noise), ``low, high`` (5th and 95th percentile of the noise),
        ``effect`` (``prob − prob_corrupted``), ``prob_clean, prob_corrupted, answer``. ``attrs``:
        the options, ``prompt, subject`` (first and last token), ``noise, model, edits``.

    Raises:
        RequestError: without a subject, or if the model does not know the answer.
        OptionError: for an option out of range.
        UnsupportedEditorError: for models that are no decoders, and for hook layers.

    Example:
        >>> table = wb.causal_trace(view, wb.datasets.tiny(limit=1)[0], samples=3)
        >>> wb.plot_causal(table); wb.edit_site(table)
    """
    fact = _single(request)
    options = _options(view, kinds, noise_sigmas, samples, window, severed, seed)
    with view.writing("causal trace"):
        std = embedding_std(view, [fact]) if std is None else _positive("std", std)
        runs, answer, known = _run(view, fact, options, std)
        if must_know and not known:
            raise RequestError(_unknown(view, fact, runs, answer))
        wanted = _positions(positions, len(runs.ids))
        cells = options.cells(view.n_layers)
        tables = [
            _token(runs, cells, answer, position) for position in track(wanted, "causal trace")
        ]
    table = pd.concat(tables, ignore_index=True)
    order = {kind: i for i, kind in enumerate(options.kinds)}
    table = table.sort_values(
        ["kind", "layer", "position"],
        key=lambda c: c.map(order) if c.name == "kind" else c,
        ignore_index=True,
    )
    table.attrs = _about(view, options, std, severed) | {
        "prompt": fact.text,
        "subject": runs.subject,
        "predicted": view.tokenizer.decode([int(runs.logits[0].argmax())]),
    }
    return table


def causal_average(
    view: ModelView,
    requests: Any,
    *,
    kinds: Sequence[str] | None = None,
    noise_sigmas: float = 3.0,
    samples: int = 10,
    window: int | None = None,
    severed: str | None = None,
    std: float | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> pd.DataFrame:
    """The causal trace averaged over facts, by what a token is to its fact.

    Facts whose answer is not the model's likeliest next token are skipped.

    Args:
        view, kinds, noise_sigmas, samples, window, severed, seed: as in :func:`causal_trace`.
        requests: requests or cases with subjects.
        std: standard deviation of embeddings; None measures it over all subjects.
        limit: stop after so many facts that the model knows.

    Returns:
        One row a kind, role and layer: ``kind, role, layer, prob, effect`` (means over facts of the
        mean over the role's tokens), ``low, high`` (95 % interval of the effect over facts,
        ``± 1.96 s/√n``; NaN for one fact), ``n`` (facts that have such a token). ``attrs``: the
        options, ``facts, skipped`` (how many), ``traced`` (their places in ``requests``),
        ``prob_clean, prob_corrupted, total_effect`` (means), ``model, edits``.

    Raises:
        RequestError: if the model knows none of the facts; else as :func:`causal_trace`.

    Example:
        >>> wb.causal_average(view, wb.datasets.known_facts("known_facts.json"), limit=30)
    """
    facts = as_requests(requests)
    options = _options(view, kinds, noise_sigmas, samples, window, severed, seed)
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit}: it must be at least 1, or None for every fact.")
    tables: dict[int, pd.DataFrame] = {}
    skipped = 0
    with view.writing("causal trace"):
        std = embedding_std(view, facts) if std is None else _positive("std", std)
        cells = options.cells(view.n_layers)
        for i, fact in enumerate(track(facts, "causal trace")):
            runs, answer, known = _run(view, fact, options, std)
            if not known:
                skipped += 1
                continue
            tables[i] = pd.concat([_token(runs, cells, answer, p) for p in range(len(runs.ids))])
            if len(tables) == limit:
                break
    if not tables:
        raise RequestError(
            f"{view.name} answers none of the {skipped} facts: give facts that it knows, such as "
            "wb.datasets.facts(known_to=...)."
        )
    table = _averaged(tables, options.kinds)
    ends = pd.concat([t.iloc[:1] for t in tables.values()])[["prob_clean", "prob_corrupted"]].mean()
    table.attrs = _about(view, options, std, severed) | {
        "facts": len(tables),
        "skipped": skipped,
        "traced": list(tables),
        **ends.to_dict(),
        "total_effect": float(ends["prob_clean"] - ends["prob_corrupted"]),
    }
    return table


def edit_site(table: pd.DataFrame) -> int:
    """The layer to edit: where restoring the MLP at the subject's last token helps most.

    Without rows of kind ``mlp`` the residual decides. A trace says where a fact passes; whether it
    is best written there is another question (``calibrate`` answers it by editing).

    Args:
        table: of :func:`causal_trace` or :func:`causal_average`.

    Raises:
        OptionError: if the table has no row at the subject's last token.

    Example:
        >>> wb.ROME.preset(view, layers=(wb.edit_site(table),))
    """
    last = table[table["role"] == "last subject token"]
    for kind in ("mlp", "residual"):
        part = last[last["kind"] == kind]
        if len(part):
            return int(part.loc[part["effect"].idxmax(), "layer"])
    raise OptionError(
        "edit_site: the table has no row of kind 'mlp' or 'residual' at the last subject token: "
        "trace that token."
    )


# ------------------------------------------------------------------ one fact


def _run(
    view: ModelView, fact: EditRequest, options: _Options, std: float
) -> tuple[Runs, int, bool]:
    """The runs of a fact, the token that is traced, and whether the model would say it."""
    require(view)
    row = encode_fact(view, fact, fact.target_true or "")
    noise = options.noise_sigmas * std
    runs = run(view, row, noise=noise, samples=options.samples, seed=options.seed)
    says = int(runs.logits[0].argmax())
    answer = row.target_ids[0] if fact.target_true else says
    return runs, answer, answer == says


def _token(runs: Runs, cells: list[Cell], answer: int, position: int) -> pd.DataFrame:
    """Rows of one token."""
    base = runs.probs(answer)
    clean, corrupted = float(base[0]), base[1:]
    probs = corrupted.expand(len(cells), -1)
    if position >= runs.subject[0]:
        probs = trace_token(runs, position, cells, answer)
    decode = runs.view.tokenizer.decode
    return pd.DataFrame(
        {
            "kind": [c.kind for c in cells],
            "layer": [c.layer for c in cells],
            "position": position,
            "token": decode([runs.ids[position]]),
            "role": _role(position, runs.subject, len(runs.ids)),
            "prob": probs.mean(1).tolist(),
            "low": probs.quantile(0.05, dim=1).tolist(),
            "high": probs.quantile(0.95, dim=1).tolist(),
            "effect": (probs.mean(1) - corrupted.mean()).tolist(),
            "prob_clean": clean,
            "prob_corrupted": float(corrupted.mean()),
            "answer": decode([answer]),
        }
    )


def _role(position: int, subject: tuple[int, int], n: int) -> str:
    first, last = subject
    if position < first:
        return "before subject"
    if position <= last:
        inside = "first subject token" if position == first else "middle subject token"
        return "last subject token" if position == last else inside
    if position == n - 1:
        return "last"
    return "first after" if position == last + 1 else "further"


# ------------------------------------------------------------------ many facts


def _averaged(tables: dict[int, pd.DataFrame], kinds: Sequence[str]) -> pd.DataFrame:
    everything = pd.concat(tables, names=["fact"]).reset_index(level="fact")
    keys = ["kind", "role", "layer"]
    each = everything.groupby([*keys, "fact"], as_index=False)[["prob", "effect"]].mean()
    grouped = each.groupby(keys)
    table = grouped[["prob", "effect"]].mean()
    half = 1.96 * grouped["effect"].std() / grouped["effect"].count().map(math.sqrt)
    table["low"], table["high"] = table["effect"] - half, table["effect"] + half
    table["n"] = grouped["effect"].count()
    table = table.reset_index()
    for name, order in (("kind", kinds), ("role", ROLES)):
        table[name] = pd.Categorical(table[name], order)
    table = table.sort_values(keys, ignore_index=True)
    return table.astype({"kind": str, "role": str})


# ------------------------------------------------------------------ options


def _options(
    view: ModelView,
    kinds: Sequence[str] | None,
    noise_sigmas: float,
    samples: int,
    window: int | None,
    severed: str | None,
    seed: int,
) -> _Options:
    require(view)
    if severed is not None and severed not in MODULES:
        raise OptionError(f"severed={severed!r} is unknown." + did_you_mean(severed, MODULES))
    if kinds is None:
        kinds = KINDS if severed is None else ("residual",)
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise OptionError(f"kinds={kinds!r}: {kind!r} is unknown." + did_you_mean(kind, KINDS))
    if not kinds or len(set(kinds)) < len(kinds):
        raise OptionError(f"kinds={kinds!r}: name one or more of {', '.join(KINDS)}, each once.")
    if severed and kinds != ("residual",):
        raise OptionError(
            f"severed={severed!r} cuts a path above a restored residual: kinds must be "
            f"('residual',), not {kinds!r}."
        )
    if samples < 1:
        raise OptionError(f"samples={samples}: it must be at least 1.")
    if window is not None and window < 1:
        raise OptionError(f"window={window}: it must be at least 1, or None.")
    if window is None:
        window = min(WINDOW, max(1, view.n_layers // 3))
    return _Options(kinds, _positive("noise_sigmas", noise_sigmas), samples, window, severed, seed)


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise OptionError(f"{name}={value}: it must be positive.")
    return float(value)


def _positions(positions: Sequence[int] | None, n: int) -> list[int]:
    if positions is None:
        return list(range(n))
    wanted = list(dict.fromkeys(positions))
    bad = [p for p in wanted if not (type(p) is int and 0 <= p < n)]
    if bad or not wanted:
        raise OptionError(f"positions={positions!r}: the prompt has tokens 0 to {n - 1}.")
    return wanted


def _single(request: Any) -> EditRequest:
    facts = as_requests(request)
    if len(facts) > 1:
        raise RequestError(
            f"causal_trace takes one fact, not {len(facts)}: use causal_average for several."
        )
    return facts[0]


def _unknown(view: ModelView, fact: EditRequest, runs: Runs, answer: int) -> str:
    decode = view.tokenizer.decode
    said, prob = int(runs.logits[0].argmax()), float(runs.probs(answer)[0])
    return (
        f"{view.name} does not answer {fact.text!r} with {fact.target_true!r}: it says "
        f"{decode([said])!r} ({decode([answer])!r} has {100 * prob:.2g} %), so there is no recall "
        "to trace. Trace what it says by leaving target_true out, or pass must_know=False."
    )


def _about(view: ModelView, options: _Options, std: float, severed: str | None) -> dict[str, Any]:
    return {
        "model": view.name,
        "edits": len(view.stack),
        "noise": options.noise_sigmas * std,
        "noise_sigmas": options.noise_sigmas,
        "samples": options.samples,
        "window": options.window,
        "severed": severed,
        "seed": options.seed,
    }
