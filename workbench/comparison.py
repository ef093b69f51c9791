"""Several editors on the same facts, with one model in memory.

Each editor edits the view as it is now, is measured on the same probes, and is taken off again; an
editor that refuses is a row with its sentence. Two-way success saturates, so exact match and the
KL divergence on neighborhood prompts stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import pandas as pd

from workbench.editors.base import Editor
from workbench.editors.locate.base import LocateEditor, statistics_for
from workbench.edits import Edit
from workbench.errors import BusyError, OptionError, RequestError, WorkbenchError
from workbench.facts import EditCase, EditRequest
from workbench.inspectors import weight_updates
from workbench.looks import table_html
from workbench.metrics import Reference, median_kl, reference, score, summary
from workbench.metrics.scoring import probes_of
from workbench.model import ModelView
from workbench.progress import Bar

__all__ = ["Comparison", "compare", "compare_steps"]

ON_ERROR = ("record", "raise")
#: Rows of a summary that become columns.
MEASURES = ("efficacy", "paraphrase", "neighborhood", "score")
#: Names of the row that no editor made, on a model without edits and with some.
NO_EDIT, AS_IS = "no edit", "as it is"
SUMMARY = (
    "editor",
    *(f"{m}{end}" for m in (*MEASURES, "exact") for end in ("", "_low", "_high")),
    *("written", "gap", "kl", "seconds", "file_bytes", "update_norm", "facts", "problem"),
)
GRID = ("case_id", "prompt", "target_new", "editor", "kind", "probes", "success", "exact")


@dataclass(frozen=True, repr=False)
class Comparison:
    """Editors side by side; make one with :func:`compare`.

    Attributes:
        where: which model, and how many edits it held.
        summary: one row an editor: ``editor``; ``efficacy, paraphrase, neighborhood`` (two-way
            success; exact match for a kind of which a probe has no foil), ``score`` (harmonic mean
            of the three) and ``exact`` (efficacy probes whose target is the arg-max)
            with ``_low`` and ``_high`` (95 %, bootstrap over cases); ``written`` (share of
            efficacy probes that are answered freely with the target) and ``gap`` (efficacy minus
            ``written``), NaN unless generated; ``kl`` (median on neighborhood prompts against the
            unedited model, nats); ``seconds`` a fact (key statistics aside); ``file_bytes``;
            ``update_norm`` (Frobenius, over all parameters); ``facts``; ``problem`` (why an
            editor refused, None if it did not; the numbers are then NaN).
        before: one row of the same columns: the view with no further edit.
        grid: one row a case, editor and kind: ``case_id, prompt, target_new, editor, kind, probes,
            success, exact`` (means over probes; NaN for an editor that refused).
        edits: editor → edit, of those that did not refuse.
    """

    where: str
    summary: pd.DataFrame
    before: pd.DataFrame
    grid: pd.DataFrame
    edits: Mapping[str, Edit] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = self.summary.to_dict("records")
        said = [f"{r['editor']} {_said(r)}" for r in rows]
        return f"<Comparison on {self.where}: {'; '.join(said) or 'no editor yet'}>"

    def _repr_html_(self) -> str:
        shown = [*MEASURES, "exact", "written", "gap", "kl", "seconds", "problem"]
        table = pd.concat([self.before, self.summary], ignore_index=True)
        used = [c for c in shown if table[c].notna().any()]
        return f"<div>{escape(self.where)}</div>" + table_html(
            table, columns=["editor", *used], caption="Editors on the same facts", rows=50
        )


def compare(
    view: ModelView,
    editors: Mapping[str, Editor] | Sequence[Editor],
    cases: EditCase | EditRequest | Iterable[EditCase | EditRequest],
    *,
    kinds: Iterable[str] | None = None,
    generate: bool | int = False,
    on_error: str = "record",
) -> Comparison:
    """Let several editors write the same facts, each on the view as it is now.

    Args:
        view: the model; as before afterwards, whatever happens.
        editors: name → editor, or editors (named by their class, numbered where it repeats).
        cases: the facts, written as one batch, with the probes that judge them; ids must differ.
        kinds: only probes of these kinds.
        generate: also write freely, see :func:`workbench.score`.
        on_error: an editor that raises a WorkbenchError becomes a row with its sentence
            (``"record"``), or ends the comparison (``"raise"``).

    Raises:
        OptionError: for no editors, no cases, ids that repeat, or an unknown option or kind.

    Example:
        >>> found = wb.compare(view, [wb.ROME.preset(view), wb.FT.preset(view)], cases)
        ... # doctest: +SKIP
        >>> found.summary  # doctest: +SKIP
    """
    steps = compare_steps(view, editors, cases, kinds=kinds, generate=generate, on_error=on_error)
    found = None
    for found in steps:  # noqa: B007 - the last one has everything
        pass
    assert found is not None
    return found


def compare_steps(
    view: ModelView,
    editors: Mapping[str, Editor] | Sequence[Editor],
    cases: EditCase | EditRequest | Iterable[EditCase | EditRequest],
    *,
    kinds: Iterable[str] | None = None,
    generate: bool | int = False,
    on_error: str = "record",
) -> Iterator[Comparison]:
    """As :func:`compare`, giving what is known so far: before the first editor, and after each.

    Between two steps the view is as it was and free for others, and the generator may be left
    alone. A progress sink that raises cancels inside an editor; what was given stays good.

    Raises:
        BusyError: if the stack was changed between two steps.

    Example:
        >>> for found in wb.compare_steps(view, editors, cases):  # doctest: +SKIP
        ...     show(found.summary)
    """
    if on_error not in ON_ERROR:
        raise OptionError(f"on_error={on_error!r}: choose {' or '.join(map(repr, ON_ERROR))}.")
    task = _Task(view, _named(editors), _cases(cases), kinds, generate)
    return _steps(task, record=on_error == "record")


@dataclass(frozen=True)
class _Task:
    """What is compared."""

    view: ModelView
    editors: dict[str, Editor]
    cases: list[EditCase]
    kinds: Iterable[str] | None
    generate: bool | int

    def __post_init__(self) -> None:
        chosen = self.kinds
        kinds = None if chosen is None else [chosen] if isinstance(chosen, str) else list(chosen)
        object.__setattr__(self, "kinds", kinds)
        probes_of(self.cases, kinds)  # unknown kinds are refused before anything is computed


def _steps(task: _Task, *, record: bool) -> Iterator[Comparison]:
    view = task.view
    held = tuple(e.id for e in view.stack)
    n = len(held)
    with view.writing("comparison"):
        base = reference(view, task.cases, kinds=task.kinds)
        before, _ = _measured(task, base)
    found = Comparison(
        where=f"{view.name} + {n} edit{'' if n == 1 else 's'}",
        summary=pd.DataFrame(columns=list(SUMMARY)),
        before=_table(
            [
                {"editor": AS_IS if task.view.stack else NO_EDIT, "problem": None, "facts": 0}
                | before
            ]
        ),
        grid=pd.DataFrame(columns=list(GRID)),
    )
    yield found
    rows, grids, edits = [], [], dict[str, Edit]()
    for i, (name, editor) in enumerate(task.editors.items()):
        if tuple(e.id for e in view.stack) != held:
            raise BusyError("the stack was changed during a comparison: start it again.")
        with Bar("compare", len(task.editors), start=i) as bar:
            row, grid, edit = _one(task, name, editor, base, record)
            bar.step()
        rows.append(row)
        grids.append(grid)
        if edit is not None:
            edits[name] = edit
        found = Comparison(
            where=found.where,
            summary=_table(rows),
            before=found.before,
            grid=pd.concat(grids, ignore_index=True),
            edits=dict(edits),
        )
        yield found


def _one(
    task: _Task, name: str, editor: Editor, base: Reference, record: bool
) -> tuple[dict[str, Any], pd.DataFrame, Edit | None]:
    """Row, grid and edit of one editor."""
    view = task.view
    try:
        with view.writing(f"comparison: {name}"):
            edit = editor.edit(view, task.cases, **_given(view, editor, task.cases))
            with view.applied(edit):
                row, scores = _measured(task, base)
            norm = math.hypot(*weight_updates(view, edit)["update_norm"])
    except WorkbenchError as error:
        if not record:
            raise
        refused = {"editor": name, "facts": len(task.cases), "problem": _sentence(error)}
        return refused, _grid(task, name, None), None
    row |= {
        "editor": name,
        "seconds": float(edit.meta.get("seconds", math.nan)) / len(edit.requests),
        "file_bytes": len(edit.to_bytes()),
        "update_norm": norm,
        "facts": len(edit.requests),
        "problem": None,
    }
    return row, _grid(task, name, scores), edit


def _given(view: ModelView, editor: Editor, cases: Sequence[EditCase]) -> dict[str, Any]:
    """Key statistics: made before the clock runs, since whoever comes first would pay for all."""
    if not isinstance(editor, LocateEditor) or "statistics" not in editor.accepts:
        return {}
    editor._admit(view, cases)  # a refusal comes before minutes of work
    return {"statistics": statistics_for(editor, view)}


def _measured(task: _Task, base: Reference) -> tuple[dict[str, Any], pd.DataFrame]:
    """Numbers of a summary's row, and the scores behind them, of the view as it is."""
    scores = score(task.view, task.cases, reference=base, kinds=task.kinds, generate=task.generate)
    row: dict[str, Any] = {}
    scores = _uniform(scores)
    found = summary(scores, by=())
    for measure in MEASURES:
        if measure in found.index:
            row |= _interval(measure, found.loc[measure])
    own = scores[scores["kind"] == "efficacy"]
    if len(own):
        exact = own.assign(value=own["exact"].astype(float), measure="exact")
        row |= _interval("exact", summary(exact, by=()).loc["efficacy"])
        if "generated_match" in own:
            row["written"] = float(own.groupby("case_id")["generated_match"].mean().mean())
            row["gap"] = row["efficacy"] - row["written"]
    return row | {"kl": median_kl(scores)}, scores


def _uniform(scores: pd.DataFrame) -> pd.DataFrame:
    """A kind of which some probes lack a foil counts exact matches: the two are never averaged."""
    mixed = scores.groupby("kind")["measure"].transform("nunique") > 1
    exact = scores["exact"].astype(float)
    value = scores["value"].mask(mixed, exact)
    success = scores["success"].mask(mixed, scores["exact"])
    measure = scores["measure"].mask(mixed, "exact")
    return scores.assign(value=value, success=success, measure=measure)


def _interval(name: str, row: pd.Series) -> dict[str, float]:
    return {name: row["success"], f"{name}_low": row["low"], f"{name}_high": row["high"]}


def _grid(task: _Task, name: str, scores: pd.DataFrame | None) -> pd.DataFrame:
    """Means by case and kind."""
    about = {c.case_id: c.request for c in task.cases}
    if scores is None:
        asked = probes_of(task.cases, task.kinds)
        scores = pd.DataFrame([{"case_id": c, "kind": p.kind} for c, _, p in asked])
        scores = scores.assign(success=math.nan, exact=math.nan)
    means = scores.astype({"success": float, "exact": float}).groupby(
        ["case_id", "kind"], sort=False
    )
    table = means.agg(probes=("kind", "size"), success=("success", "mean"), exact=("exact", "mean"))
    table = table.reset_index().assign(editor=name)
    table["prompt"] = [about[c].text for c in table["case_id"]]
    table["target_new"] = [about[c].target_new for c in table["case_id"]]
    return table[list(GRID)]


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows)).reindex(columns=list(SUMMARY))
    problem = table["problem"].astype(object)
    return table.assign(problem=problem.where(problem.notna(), None))


# -------------------------------------------------------------------- what was given


def _named(editors: Mapping[str, Editor] | Sequence[Editor]) -> dict[str, Editor]:
    if isinstance(editors, Mapping):
        found = {str(name): editor for name, editor in editors.items()}
    else:
        items = [editors] if isinstance(editors, Editor) else list(editors)
        kinds = [type(e).__name__ for e in items]
        found = {}
        for i, (kind, editor) in enumerate(zip(kinds, items, strict=True)):
            again = kinds.count(kind) > 1
            found[f"{kind} {kinds[: i + 1].count(kind)}" if again else kind] = editor
    if not found:
        raise OptionError("editors is empty: give at least one, such as wb.ROME.preset(view).")
    for name, editor in found.items():
        if not isinstance(editor, Editor):
            raise OptionError(
                f"editors: {name!r} is a {type(editor).__name__}, not an editor: make one with "
                "wb.ROME.preset(view)."
            )
    return found


def _cases(items: Any) -> list[EditCase]:
    given = [items] if isinstance(items, EditCase | EditRequest) else list(items)
    found: list[EditCase] = []
    for i, item in enumerate(given):
        if not isinstance(item, EditCase | EditRequest):
            raise RequestError(f"cases[{i}] is a {type(item).__name__}, not an EditCase.")
        found.append(item if isinstance(item, EditCase) else EditCase(request=item, case_id=i))
    if not found:
        raise OptionError("cases is empty: give at least one.")
    ids = [c.case_id for c in found]
    twice = next((c for c in ids if ids.count(c) > 1), None)
    if twice is not None:
        raise OptionError(f"case id {twice!r} occurs twice: each case needs an id of its own.")
    return found


def _sentence(error: WorkbenchError) -> str:
    return str(error).strip() or type(error).__name__


def _said(row: Mapping[str, Any]) -> str:
    if row["problem"] is not None:
        return f"refused ({row['problem']})"
    parts = [f"{m} {100 * row[m]:.0f} %" for m in MEASURES if not math.isnan(row[m])]
    return ", ".join(parts) or "not measured"
