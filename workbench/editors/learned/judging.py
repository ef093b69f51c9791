"""Edit success and drawdown: how well an editor writes, and what the rest of the model pays.

MEND's measures (arXiv 2110.11309, section 5; spec memory-and-meta 4.5), for any editor. Edit
success is the share of edits whose whole target is the arg-max in other words. Drawdown is what
is lost on unrelated questions (accuracy before minus after), or what text costs more (perplexity
after minus before, over all tokens of all texts).

Editors that change the base model before any edit (ENN) are measured against both: the model they
started from (``pristine``) and the one on the view's stack (``prepared``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from workbench.editors.base import Editor
from workbench.editors.learned.lessons import Lesson, Lessons
from workbench.errors import DataError
from workbench.facts import EditRequest
from workbench.metrics.answers import Answer, answer
from workbench.metrics.summaries import RESAMPLES, interval, weights_of
from workbench.model import ModelView
from workbench.progress import Bar

__all__ = ["lesson_summary", "score_lessons"]

PARTS = ("edits", "outer", "local")
STATES = ("pristine", "prepared", "edited")
COLUMNS = ("lesson", "part", "item", "state", "measure", "flip", "nll", "tokens", "exact")
#: A number for every resampling of the lessons, from ``[resamples, lessons]`` weights.
Statistic = Callable[[np.ndarray], np.ndarray]


def score_lessons(
    view: ModelView,
    editor: Editor,
    lessons: Lessons,
    *,
    n: int = 50,
    n_edits: int = 1,
    n_local: int = 4,
    batch_tokens: int | None = None,
) -> pd.DataFrame:
    """Edit the model with each held-out lesson, one after another, and ask what it knows then.

    Every lesson starts from the view as it is; nothing stays on its stack.

    Args:
        view: the model; what is on its stack belongs to the prepared model.
        editor: any editor.
        lessons: whose validation lessons are used.
        n: lessons.
        n_edits: edits that are written at once.
        n_local: unrelated texts of a lesson.
        batch_tokens: padded tokens in a batch; None suits the device.

    Returns:
        One row a lesson, request and state: ``lesson, part`` (``edits``, ``outer``, ``local``),
        ``item`` (position in the part), ``prompt, target, state`` (``pristine``, ``prepared``,
        ``edited``), ``measure`` (of locality), ``flip`` (the prepared model did not say the
        edit's target before; edits and outer alone), ``nll`` (mean nats a token), ``tokens,
        exact`` (all of them are the arg-max), ``token_accuracy, n_edits, seconds`` (of the edit).

    Raises:
        OptionError: for more lessons or edits than there are.
        UnsupportedEditorError, RequestError, NumericalError: as ``editor.edit``.

    Source: arXiv 2110.11309, section 5.

    Example:
        >>> rows = score_lessons(view, wb.FT.preset(view), lessons, n=20)
        >>> table = lesson_summary(rows)
    """
    chosen = lessons.validation(n, n_edits=n_edits, n_local=n_local)
    pairs = [_pair(r) for lesson in chosen for part in PARTS for r in getattr(lesson, part)]
    with view.writing("scoring lessons"), Bar("lessons", n) as bar:
        prepared = answer(view, pairs, batch_tokens=batch_tokens)
        with view.pristine():
            pristine = answer(view, pairs, batch_tokens=batch_tokens) if view.held else prepared
        tables = []
        for i, lesson in enumerate(chosen):
            edited, seconds = _edited(view, editor, lessons, lesson, i, batch_tokens)
            states = dict(zip(STATES, (pristine, prepared, edited), strict=True))
            rows = pd.DataFrame(_rows(i, lesson, states))
            tables.append(rows.assign(n_edits=n_edits, seconds=seconds))
            bar.step()
    table = pd.concat(tables, ignore_index=True)
    table.insert(list(table.columns).index("state") + 1, "measure", lessons.measure)
    return table


def lesson_summary(
    rows: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Edit success and drawdown with intervals from resampling the lessons.

    Args:
        rows: of :func:`score_lessons`; further columns such as ``editor`` are ignored.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One row a metric: ``metric, against`` (the state it is measured against, if any), ``value,
        low, high`` (95 %), ``n`` (requests), ``lessons, unit``. Metrics: ``edit_success`` (other
        words), ``success_flips`` and ``success_kept`` (edits whose target the model did not say
        before, and those it did), ``own_success`` (the edit's own prompt), ``token_accuracy``,
        ``drawdown`` of the edited and ``drawdown_prepared`` of the prepared model,
        ``token_drawdown`` (the share of the answers' tokens lost: to be read where the model has
        hardly a whole answer right), and ``seconds`` an edit.

    Raises:
        DataError: for a table without these columns, or with two measures.

    Example:
        >>> lesson_summary(rows).set_index("metric").value["edit_success"]  # doctest: +SKIP
    """
    missing = [name for name in COLUMNS if name not in rows]
    if missing or rows["measure"].nunique() != 1:
        why = f"lacks {', '.join(missing)}" if missing else "mixes two measures"
        raise DataError(f"the table of lessons {why}: give what score_lessons returned.")
    ids = pd.Index(rows["lesson"].unique())
    weights = weights_of(len(ids), resamples, seed)
    found = [
        {
            "metric": metric,
            "against": against,
            **_measured(statistic, weights),
            "n": n,
            "unit": unit,
        }
        for metric, against, statistic, n, unit in _statistics(rows, ids)
    ]
    table = pd.DataFrame(found)
    table.insert(table.columns.get_loc("n") + 1, "lessons", len(ids))  # type: ignore[arg-type]
    return table


# ------------------------------------------------------------------ rows


def _edited(
    view: ModelView,
    editor: Editor,
    lessons: Lessons,
    lesson: Lesson,
    index: int,
    batch_tokens: int | None,
) -> tuple[dict[tuple[str, str], Answer], float]:
    """Answers of the edited model, and how long the edit took."""
    edit = editor.edit(view, list(lesson.edits), **_fresh(editor, lessons, index))
    pairs = [_pair(r) for part in PARTS for r in getattr(lesson, part)]
    with view.applied(edit):
        return answer(view, pairs, batch_tokens=batch_tokens), float(edit.meta["seconds"])


def _fresh(editor: Editor, lessons: Lessons, index: int) -> dict[str, Any]:
    """Unrelated texts for editors that train on some: from the training side, never the lesson."""
    if "local" not in editor.accepts:
        return {}
    n = min(int(editor.config()["local_texts"]), lessons.n_training_local - 1)
    return {"local": list(lessons.draw(index, n_edits=1, n_local=n).local)}


def _rows(
    index: int, lesson: Lesson, states: dict[str, dict[tuple[str, str], Answer]]
) -> Iterator[dict[str, object]]:
    flips = [not states["prepared"][_pair(r)].exact for r in lesson.edits]
    for part in PARTS:
        for item, request in enumerate(getattr(lesson, part)):
            for state, answers in states.items():
                found = answers[_pair(request)]
                yield {
                    "lesson": index,
                    "part": part,
                    "item": item,
                    "prompt": request.text,
                    "target": request.target_new,
                    "state": state,
                    "flip": flips[item] if part != "local" else None,
                    "nll": found.nll,
                    "tokens": len(found.labels),
                    "exact": found.exact,
                    "token_accuracy": found.token_accuracy,
                }


def _pair(request: EditRequest) -> tuple[str, str]:
    return request.text, request.target_new


# ------------------------------------------------------------------ statistics


def _statistics(
    rows: pd.DataFrame, ids: pd.Index
) -> Iterator[tuple[str, str, Statistic, int, str]]:
    """(metric, against, statistic, requests, unit)."""
    edited = rows[rows["state"] == "edited"]
    outer, own = (edited[edited["part"] == part] for part in ("outer", "edits"))
    flips = outer["flip"].astype(bool)
    for metric, part, column in (
        ("edit_success", outer, "exact"),
        ("success_flips", outer[flips], "exact"),
        ("success_kept", outer[~flips], "exact"),
        ("own_success", own, "exact"),
        ("token_accuracy", outer, "token_accuracy"),
    ):
        yield metric, "", _mean(part, column, ids), len(part), "share"
    local = rows[rows["part"] == "local"]
    unit = str(rows["measure"].iloc[0])
    for metric, against, before, after in (
        ("drawdown", "pristine", "pristine", "edited"),
        ("drawdown", "prepared", "prepared", "edited"),
        ("drawdown_prepared", "pristine", "pristine", "prepared"),
    ):
        a, b = (local[local["state"] == state] for state in (before, after))
        yield metric, against, _drawdown(a, b, unit, ids), len(a), unit
        if metric == "drawdown":
            yield "token_drawdown", against, _lost(a, b, "token_accuracy", ids), len(a), "share"
    each = edited.drop_duplicates("lesson")
    yield "seconds", "", _mean(each, "seconds", ids), len(each), "seconds"


def _drawdown(before: pd.DataFrame, after: pd.DataFrame, unit: str, ids: pd.Index) -> Statistic:
    if unit == "accuracy":
        return _lost(before, after, "exact", ids)
    cheap, dear = (_perplexity(part, ids) for part in (before, after))
    return lambda w: dear(w) - cheap(w)


def _lost(before: pd.DataFrame, after: pd.DataFrame, column: str, ids: pd.Index) -> Statistic:
    held, left = (_mean(part, column, ids) for part in (before, after))
    return lambda w: held(w) - left(w)


def _mean(part: pd.DataFrame, column: str, ids: pd.Index) -> Statistic:
    """Mean over requests of the drawn lessons."""
    held = part[column].astype(float).groupby(part["lesson"])
    return _ratio(held.sum(), held.count(), ids)


def _perplexity(part: pd.DataFrame, ids: pd.Index) -> Statistic:
    """exp of the mean negative log-likelihood of all tokens of the drawn lessons."""
    tokens = part["tokens"].astype(float)
    nll = (part["nll"].astype(float) * tokens).groupby(part["lesson"]).sum()
    mean = _ratio(nll, tokens.groupby(part["lesson"]).sum(), ids)
    return lambda w: np.exp(mean(w))


def _ratio(above: pd.Series, below: pd.Series, ids: pd.Index) -> Statistic:
    a, b = (each.reindex(ids).fillna(0).to_numpy(dtype=float) for each in (above, below))

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = (weights @ a) / (weights @ b)
        return found

    return statistic


def _measured(statistic: Statistic, weights: np.ndarray) -> dict[str, float]:
    low, high = interval(statistic(weights))
    return {"value": float(statistic(np.ones((1, weights.shape[1])))[0]), "low": low, "high": high}
