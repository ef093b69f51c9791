"""The main job without a browser: one fact edited, measured, undone; a report of it written."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench import datasets
from workbench.editors import ROME
from workbench.editors.locate.base import statistics_for
from workbench.edits import Edit
from workbench.facts import EditCase
from workbench.metrics import next_tokens, score, summary
from workbench.model import ModelView
from workbench.plots import plot_next_tokens, plot_summary
from workbench.plots.theme import words
from workbench.pretrained import load
from workbench.report import Report

__all__ = ["DemoResult", "run_demo", "weights_digest"]

Say = Callable[[str], None]


@dataclass
class DemoResult:
    """What the demo found.

    Attributes:
        edit: the edit; it is no longer applied.
        tokens: columns ``token, before, after``: probability of the next token.
        scores: one row a probe: ``kind, prompt, target, foil, p_before, p_after`` (probability of
            the target, per token), ``success_before, success_after``.
        digests: state → SHA-256 over all weights, for ``before``, ``edited`` and ``undone``.
        seconds: phase → wall-clock seconds.
        report: the file that was written.
    """

    edit: Edit | None = None
    tokens: pd.DataFrame = field(default_factory=pd.DataFrame)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    digests: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    report: Path | None = None

    @property
    def restored(self) -> bool:
        """True if undoing the edit gave back every weight to the bit."""
        return self.digests["before"] == self.digests["undone"] != self.digests["edited"]


def run_demo(
    model: str = "smollm2-135m",
    out: str | os.PathLike[str] = "workbench-report.html",
    *,
    say: Say = print,
) -> DemoResult:
    """Edit one fact with ROME, measure it, undo it, and write a report.

    Args:
        model: any name that :func:`workbench.load` takes; ``tiny`` edits a fact of its own world,
            every other model the mother tongue of Danielle Darrieux.
        out: where the HTML report goes.
        say: takes the lines for the user.

    Raises:
        WorkbenchError: if the model cannot be had or edited, or the report cannot be written.

    Example:
        >>> run_demo("tiny").restored  # doctest: +SKIP
        True
    """
    result = DemoResult()
    with _phase(result, "load the model", say):
        view = load(model)
        case = (datasets.tiny if model == "tiny" else datasets.facts)(limit=1)[0]
    req = case.request
    say(f"{view.describe()}")
    say(f"fact: “{req.text}” {req.target_true} → {req.target_new}")
    editor = ROME.preset(view)
    with _phase(result, "key statistics", say):
        statistics = statistics_for(editor, view)
    with _phase(result, "compute the edit (ROME)", say):
        result.edit = editor.edit(view, [req], statistics=statistics)
    with _phase(result, "measure before and after", say):
        before, after = _measure(view, case, result)
    say(_tokens_text(result.tokens))
    say(_scores_text(result.scores))
    say("\n".join(f"SHA-256 of all weights, {k}: {v}" for k, v in result.digests.items()))
    say(_verdict(result))
    with _phase(result, "write the report", say):
        result.report = _report(view, case, result, before, after).save(out)
    say(f"report: {result.report}")
    return result


def weights_digest(view: ModelView) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter of the model as it is now."""
    digest = hashlib.sha256()
    for name, parameter in view.model.named_parameters():
        data = parameter.detach().contiguous().cpu()
        digest.update(f"{name}{data.dtype}{tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _phase(result: DemoResult, name: str, say: Say) -> Iterator[None]:
    began = time.perf_counter()
    yield
    result.seconds[name] = time.perf_counter() - began
    say(f"[{result.seconds[name]:6.1f} s] {name}")


def _measure(
    view: ModelView, case: EditCase, result: DemoResult
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fill in tokens, scores and digests; returns the score tables before and after."""
    assert result.edit is not None
    result.digests["before"] = weights_digest(view)
    tokens, before = _ask(view, case), score(view, [case])
    view.push(result.edit)
    result.digests["edited"] = weights_digest(view)
    edited, after = _ask(view, case), score(view, [case])
    view.pop()
    result.digests["undone"] = weights_digest(view)
    result.tokens = _side_by_side(tokens, edited)
    result.scores = pd.DataFrame(
        {
            **{c: before[c] for c in ("kind", "prompt", "target", "foil")},
            "p_before": before["p_target"],
            "p_after": after["p_target"],
            "success_before": before["success"],
            "success_after": after["success"],
        }
    )
    return before, after


def _ask(view: ModelView, case: EditCase) -> pd.DataFrame:
    """Probabilities of every token: the likeliest of both states are picked afterwards."""
    req = case.request
    pins = [t for t in (req.target_new, req.target_true) if t]
    return next_tokens(view, req.text, top_k=len(view.tokenizer), pin=pins)


def _side_by_side(before: pd.DataFrame, after: pd.DataFrame, top_k: int = 6) -> pd.DataFrame:
    """The union of both states' likeliest tokens and the pinned ones, with both probabilities."""
    joined = before.merge(after[["token_id", "prob", "rank"]], on="token_id", suffixes=("", "_new"))
    kept = joined[(joined["rank"] <= top_k) | (joined["rank_new"] <= top_k) | joined["pinned"]]
    kept = kept.assign(best=kept[["prob", "prob_new"]].max(axis=1))
    kept = kept.sort_values("best", ascending=False, kind="stable")
    names = {"prob": "before", "prob_new": "after"}
    return kept.rename(columns=names)[["token", "before", "after"]].reset_index(drop=True)


def _tokens_text(tokens: pd.DataFrame) -> str:
    rows = [f"{'next token':<20}{'before':>10}{'after':>10}"]
    for row in tokens.itertuples():
        rows.append(f"{row.token!r:<20}{row.before:>10.2%}{row.after:>10.2%}")
    return "\n" + "\n".join(rows) + "\n"


def _scores_text(scores: pd.DataFrame) -> str:
    rows = [f"{'kind':<14}{'p(target) before → after':<26}{'wins':<12}prompt → target"]
    for row in scores.itertuples():
        p = f"{row.p_before:.1%} → {row.p_after:.1%}"
        wins = f"{_yes(row.success_before)} → {_yes(row.success_after)}"
        rows.append(f"{row.kind:<14}{p:<26}{wins:<12}{row.prompt} → {row.target}")
    return "\n".join(rows) + "\n"


def _yes(success: Any) -> str:
    return "yes" if success else "no"


def _verdict(result: DemoResult) -> str:
    if result.restored:
        return "Undone: every weight is what it was, to the bit."
    return "Not undone: the weights differ from those before the edit; please report this."


def _report(
    view: ModelView, case: EditCase, result: DemoResult, before: pd.DataFrame, after: pd.DataFrame
) -> Report:
    req, tokens, edit = case.request, result.tokens, result.edit
    assert edit is not None
    figure = plot_next_tokens(
        tokens[["token", "before"]].rename(columns={"before": "prob"}),
        tokens[["token", "after"]].rename(columns={"after": "prob"}),
        target=req.target_new,
        old=req.target_true,
        subtitle=f"“{words(req.text)}”, ROME at layer {', '.join(map(str, edit.config['layers']))}",
    )
    sums = {"before": summary(before), "after": summary(after)}
    numbers = pd.concat([t.assign(state=k) for k, t in sums.items()])
    return (
        Report(f"One fact edited: {req.text} {req.target_new}")
        .text(
            f"{view.describe()}. Editor: ROME, one fact: “{req.text}” "
            f"{req.target_true} → {req.target_new}."
        )
        .heading("What the model says next")
        .figure(figure, numbers=tokens)
        .heading("What else moved")
        .figure(plot_summary(sums), numbers=numbers)
        .table(result.scores, caption="Every probe; p is the probability of the target per token")
        .heading("Undone")
        .text(_verdict(result))
        .table(_pairs(result.digests, "state", "sha256"), caption="SHA-256 over all weights")
        .heading("How it was made")
        .table(_pairs(result.seconds, "phase", "seconds"), caption="Wall-clock time")
        .table(_pairs(dict(edit.config), "option", "value"), caption="Configuration of ROME")
        .table(_pairs(dict(edit.meta), "what", "value"), caption="Versions")
        .text("Please cite the method:")
        .code(ROME.cite())
    )


def _pairs(values: dict[str, Any], key: str, value: str) -> pd.DataFrame:
    return pd.DataFrame({key: list(values), value: list(values.values())})
