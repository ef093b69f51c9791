"""What a suite left behind, and the paper's table beside ours; numbers and ids alone, no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import DataError
from workbench.places import shipped
from workbench.studies.records import Pathlike, require_recorded
from workbench.studies.reported import published
from workbench.studies.suites import Suite

__all__ = ["CLASSIFIER", "MAIN", "SuiteRecord", "recorded_suite"]

#: Accuracy of a classifier whose head was fine-tuned for the task, before any edit.
CLASSIFIER = "classifier.json"

#: Kind of task → the measure in which its results are stated.
MAIN = {"qa": "f1", "classification": "accuracy", "text": "perplexity"}
#: metric of a run → how tables call it.
NAMES = {"trr": "TRR", "err": "ERR", "arr": "ARR", "es": "ES", "holdout": "holdout"}
#: task → as the published table calls its data.
PUBLISHED = {"zsre": "zsRE", "topics": "SCOTUS", "hallucination": "hallucination"}


@dataclass(frozen=True)
class SuiteRecord:
    """The runs of a suite.

    Attributes:
        path: its folder.
        suite: what was run; None if only a folder was given.
        kind: of the task: ``qa, classification`` or ``text`` (perplexity: lower is better).
        moments: all moments of all runs, as ``wb.moments`` gives them, with ``run``.
        configs: run → its ``run.json``: configuration, edited cases, seconds.
        classifier: of the topics task: ``train_accuracy, accuracy`` (on held-out texts) and
            ``most_frequent`` (of the largest class) before any edit; empty elsewhere.
    """

    path: Path
    suite: Suite | None
    kind: str
    moments: pd.DataFrame
    configs: dict[str, dict[str, Any]]
    classifier: dict[str, Any] = field(default_factory=dict)

    def only(self, *names: str) -> SuiteRecord:
        """The same with some of the runs, in this order.

        Raises:
            DataError: for a run that is not recorded.
        """
        require_recorded(names, self.configs, self.path)
        parts = [self.moments[self.moments["run"] == n] for n in names]
        return replace(
            self,
            moments=pd.concat(parts, ignore_index=True),
            configs={n: self.configs[n] for n in names},
        )

    def curves(self) -> pd.DataFrame:
        """The measures in which results are stated, after every edit or wherever they were taken.

        Returns:
            One row a run, metric and step: ``run, metric, step, value, n``. Metrics are ``TRR`` (of
            the set beside the paper's, or the only one), ``TRR SET`` of other sets, ``ERR, ARR, ES,
            holdout, keys``.

        Example:
            >>> curves = wb.recorded_suite(wb.suite("tiny")).curves()
            >>> curves[curves["metric"] == "keys"]["value"].max()
            263.0
        """
        main = MAIN[self.kind]
        table = self.moments.copy()
        table["set"], table["measure"] = _sets_and_measures(table["task"])
        table = table[(table["measure"] == main) | (table["metric"] == "keys")]
        table = table[table["metric"].isin([*NAMES, "keys"])]
        kept = self._kept(table)
        names = table["metric"].map(lambda m: NAMES.get(m, m))
        others = (table["metric"] == "trr") & (table["set"] != kept)
        table["metric"] = names.where(~others, names + " " + table["set"])
        return table[["run", "metric", "step", "value", "n"]].reset_index(drop=True)

    def table(self, *, at: int | None = None) -> pd.DataFrame:
        """One row a run, measured at its end on everything it edited; the unedited model first.

        Args:
            at: after so many edits instead (or the last measurement before, on a sample of the
                edits); runs that are shorter are left out.

        Returns:
            ``run, model, edits, complete`` (False: interrupted, so short of its number), ``keys,
            edits a key``, then in the task's main measure ``ES`` (mean over all edits, each right
            after it was made), ``ERR, holdout, TRR``, ``TRR SET`` of other sets, ``ARR``; ``TRR
            over unedited``; ``slowdown`` (of reading), ``seconds an edit`` (median).
        """
        curves = self.curves()
        rows = [self._unedited(curves)]
        for name, config in self.configs.items():
            held = len(config["edited"])
            if at is None or held >= at:
                part = curves[curves["run"] == name]
                rows.append(self._row(name, part[part["step"] <= (held if at is None else at)]))
        return pd.DataFrame(rows)[list(rows[-1])].dropna(axis=1, how="all")

    def gaps(self) -> pd.DataFrame:
        """The paper's numbers and ours, a row an editor; empty where only one has them.

        Returns:
            ``run``, then for each of ``TRR, ERR, ARR`` that the paper states ``NAME paper, NAME
            ours, NAME gap`` (ours less the paper's).

        Raises:
            DataError: for a task of which the paper has no number.
        """
        task = "" if self.suite is None else self.suite.task
        if task not in PUBLISHED:
            raise DataError(f"the paper has no number of {self.path.name}: a model of our own.")
        paper = published("GRACE", data=PUBLISHED[task])
        shares = paper["unit"] != "perplexity"
        paper["value"] = paper["value"].where(~shares, paper["value"] / 100)
        paper = paper.pivot_table(index="editor", columns="metric", values="value", sort=False)
        ours = self.table().set_index("run")
        names = [*(n for n in ours.index if n in paper.index)]
        names += [n for n in paper.index if n not in names]
        found = pd.DataFrame({"run": names}).set_index("run")
        for metric in (m for m in ("TRR", "ERR", "ARR") if m in paper):
            theirs = paper[metric].reindex(names)
            mine = ours[metric].reindex(names) if metric in ours else theirs * float("nan")
            found[f"{metric} paper"], found[f"{metric} ours"] = theirs, mine
            found[f"{metric} gap"] = mine - theirs
        return found.reset_index()

    def written(self) -> pd.DataFrame:
        """What ``table.csv`` holds: the table, reasons for gaps, the paper's numbers."""
        table = self.table().assign(measure=MAIN[self.kind])
        if self.suite is None:
            return table
        table["reason"] = self.suite.reason
        if self.suite.task in PUBLISHED:
            gaps = self.gaps().set_index("run")
            theirs = gaps[[c for c in gaps if c.endswith(" paper")]]
            names = [*table["run"], *(n for n in theirs.index if n not in set(table["run"]))]
            table = table.set_index("run").reindex(names).join(theirs)
            table = table.fillna({"reason": "not run here"}).reset_index()
        return table

    # ---------------------------------------------------------------- inside

    def _kept(self, table: pd.DataFrame) -> str:
        """The set that is called TRR."""
        if self.suite is not None and self.suite.kept:
            return self.suite.kept
        sets = table[table["metric"] == "trr"]["set"]
        return str(sets.iloc[0]) if len(sets) else ""

    def _unedited(self, curves: pd.DataFrame) -> dict[str, Any]:
        start = curves[(curves["step"] == 0) & ~curves["metric"].isin(["keys", "ES", "ERR"])]
        first = start.drop_duplicates("metric").set_index("metric")["value"]
        config = next(iter(self.configs.values()))
        row = {"run": "unedited", "model": config["model"], "edits": 0, "complete": True}
        return row | {m: float(v) for m, v in first.items() if m != "holdout"}

    def _row(self, name: str, curves: pd.DataFrame) -> dict[str, Any]:
        config = self.configs[name]
        edits = int(curves["step"].max())
        row: dict[str, Any] = {"run": name, "model": config["model"], "edits": edits}
        row["complete"] = bool(config["complete"])
        last = curves.sort_values("step").drop_duplicates("metric", keep="last")
        ends = {m: float(v) for m, v in last.set_index("metric")["value"].items()}
        order = ["keys", "edits a key", "ES", "ERR", "holdout", "TRR"]
        if "keys" in ends:
            ends["edits a key"] = edits / ends["keys"]
        own = curves[curves["metric"] == "ES"]["value"]
        if len(own):
            ends["ES"] = float(own.mean())
        row |= {m: ends.get(m, float("nan")) for m in [*order, *sorted(set(ends) - set(order))]}
        begun = curves[(curves["metric"] == "TRR") & (curves["step"] == 0)]["value"]
        if len(begun) and begun.iloc[0]:
            row["TRR over unedited"] = ends["TRR"] / float(begun.iloc[0])
        slow = self.moments[
            (self.moments["run"] == name) & (self.moments["metric"] == "slowdown")
        ].sort_values("step")
        row["slowdown"] = float(slow["value"].iloc[-1]) if len(slow) else float("nan")
        row["seconds an edit"] = float(pd.Series(config["seconds"], dtype=float).median())
        return row


def recorded_suite(source: Suite | Pathlike) -> SuiteRecord:
    """Read a suite's record.

    Args:
        source: a suite, a folder, or the name of a folder in ``data/results``.

    Raises:
        DataError: if there is nothing, or a table is damaged.

    Example:
        >>> "GRACE" in wb.recorded_suite("grace_suite_tiny-t5").configs
        True
    """
    chosen = source if isinstance(source, Suite) else None
    path = source.path if isinstance(source, Suite) else Path(source)
    path = path if path.exists() else shipped("results") / path
    found = {p.parent.name: p.parent for p in sorted(path.glob("*/run.json"))}
    if chosen is not None:
        found = {t.slug: found[t.slug] for t in chosen.trials if t.slug in found}
    if not found:
        raise DataError(
            f"{path} holds no run: run the suite (live=True in its notebook, or wb.run_suite), or "
            "check the path."
        )
    configs, moments = {}, []
    for folder in found.values():
        try:
            config = json.loads((folder / "run.json").read_text())
            name = config["name"]
            moments.append(pd.read_csv(folder / "moments.csv.gz").assign(run=name))
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder} is damaged ({error}): delete it and run it again."
            ) from error
        configs[name] = config
    kind = str(next(iter(configs.values()))["kind"])
    head = path / CLASSIFIER
    told = json.loads(head.read_text()) if head.exists() else {}
    return SuiteRecord(path, chosen, kind, pd.concat(moments, ignore_index=True), configs, told)


def _sets_and_measures(tasks: pd.Series) -> tuple[pd.Series, pd.Series]:
    """``nq: f1`` → (nq, f1); ``f1`` → (, f1)."""
    parts = tasks.fillna("").astype(str).str.rsplit(": ", n=1)
    return parts.map(lambda p: p[0] if len(p) > 1 else ""), parts.map(lambda p: p[-1])
