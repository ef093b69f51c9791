"""What a study left behind: tidy tables of ids and numbers, one folder a trial; no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import DataError
from workbench.places import shipped
from workbench.studies.base import Study

__all__ = ["Record", "recorded"]

Pathlike = str | os.PathLike[str]
KINDS = ("efficacy", "paraphrase", "neighborhood")
#: The regime of ``wb.rounds``.
APART = "single-round"
#: metric at the end → (column, factor)
LAST = {
    "upstream_agreement": ("upstream retention", 100.0),
    "perplexity_ratio": ("perplexity ratio", 1.0),
    "downstream_accuracy": ("sst2 accuracy", 100.0),
}


@dataclass(frozen=True)
class Record:
    """A study's tables.

    Attributes:
        path: its folder.
        runs: one row a trial: ``run, editor, model, facts, at once, layers`` (how many are
            edited), ``regime, device``.
        rows: all rows of all trials, as :func:`workbench.stream` gives them, without texts.
        moments: all their moments.
        unedited: scores of the model as it was; empty if they were not kept.
        configs: trial → its ``run.json``.
    """

    path: Path
    runs: pd.DataFrame
    rows: pd.DataFrame
    moments: pd.DataFrame
    unedited: pd.DataFrame
    configs: dict[str, dict[str, Any]]

    def only(self, *names: str) -> Record:
        """The same with some of the trials, in this order.

        Raises:
            DataError: for a trial that is not recorded.
        """
        require_recorded(names, self.configs, self.path)
        return replace(
            self,
            runs=_pick(self.runs, names),
            rows=_pick(self.rows, names),
            moments=_pick(self.moments, names),
            configs={n: self.configs[n] for n in names},
        )

    def table(self, *, at: int | None = None) -> pd.DataFrame:
        """One row a trial, measured on everything it edited at its end.

        A trial whose batches stood apart is measured on each batch's own facts right after it; it
        has no retention, no costs beside its facts, and only a row of its end.

        Args:
            at: measured after so many facts instead; trials that were not measured then are left
                out, and so is the unedited model, which was measured on all facts.

        Returns:
            ``run, facts``; for each kind ``KIND success`` (target beats foil) and ``KIND exact``
            (target is arg-max), % over facts; ``edit retention`` (% of the facts right just
            after their edit that are right now), ``upstream retention`` (% of answers to facts
            nobody edited that are as before), ``perplexity ratio`` (to the unedited model),
            ``sst2 accuracy``, ``seconds an edit``, ``peak MiB``. The unedited model comes first.
        """
        rows: list[dict[str, Any]] = []
        if len(self.unedited) and at is None:
            facts = self.unedited["case_id"].nunique()
            rows.append({"run": "unedited", "facts": facts, **_shares(self.unedited)})
        for name in self.configs:
            mine, watched = (_pick(t, (name,)) for t in (self.rows, self.moments))
            step = int(mine["step"].max()) if at is None else at
            if self.configs[name]["regime"] == APART:
                if at is None:
                    facts = mine["case_id"].nunique()
                    rows.append({"run": name, "facts": facts, **_apart(mine)})
            elif _measured_everything(mine, step):
                rows.append({"run": name, "facts": step, **_measures(mine, watched, step)})
        return pd.DataFrame(rows)


def recorded(source: Study | Pathlike, *, study: Study | None = None) -> Record:
    """Read a study's record.

    Args:
        source: a study, a folder, or the name of a folder in ``data/results``.
        study: orders the trials, if ``source`` is a folder.

    Raises:
        DataError: if there is nothing, or a table is damaged.

    Example:
        >>> wb.recorded("sequential_smollm2-135m_300").table()["run"][0]
        'unedited'
    """
    if isinstance(source, Study):
        study = source
    path = source.path if isinstance(source, Study) else Path(source)
    path = path if path.exists() else shipped("results") / path
    found = {p.parent.name: p.parent for p in sorted(path.glob("*/run.json"))}
    if study is not None:
        known = [t.slug for t in study.trials if t.slug in found]
        found = {name: found[name] for name in known}
    if not found:
        raise DataError(
            f"{path} holds no finished trial: run the study (live=True in its notebook, or "
            "wb.run_study), or check the path."
        )
    return _read(path, list(found.values()))


def _read(path: Path, folders: list[Path]) -> Record:
    configs, rows, moments = {}, [], []
    for folder in folders:
        try:
            config = json.loads((folder / "run.json").read_text())
            name = config.get("name", folder.name)
            rows.append(pd.read_csv(folder / "rows.csv.gz").assign(run=name))
            moments.append(pd.read_csv(folder / "moments.csv").assign(run=name))
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{folder} is damaged ({error}): delete it and run it again."
            ) from error
        configs[name] = config
    unedited = path / "unedited.csv"
    scores = pd.read_csv(unedited) if unedited.exists() else pd.DataFrame()
    runs = pd.DataFrame([_run(name, config) for name, config in configs.items()])
    watched = [m for m in moments if len(m)]
    return Record(
        path,
        runs,
        pd.concat(rows, ignore_index=True),
        pd.concat(watched, ignore_index=True) if watched else pd.DataFrame(),
        scores,
        configs,
    )


def _run(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": name,
        "editor": config["editor"],
        "model": config["model"],
        "facts": len(config["case_ids"]),
        "at once": config["batch_size"],
        "layers": len(config["editor_config"].get("layers", ())),
        "regime": config["regime"],
        "device": config.get("environment", {}).get("device", ""),
    }


def _pick(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Rows of some runs, in the order of the names."""
    if table.empty:
        return table
    return pd.concat([table[table["run"] == n] for n in names], ignore_index=True)


def _shares(table: pd.DataFrame) -> dict[str, float]:
    found = {}
    for kind in KINDS:
        part = table[table["kind"] == kind]
        for what in ("success", "exact"):
            found[f"{kind} {what}"] = 100 * part.groupby("case_id")[what].mean().mean()
    return found


def _apart(rows: pd.DataFrame) -> dict[str, float]:
    """Batches that never met: shares over all facts, each as it was right after its batch."""
    nothing = ("edit retention", *(column for column, _ in LAST.values()))
    seconds = float(rows.groupby("case_id")["seconds"].first().mean())
    return (
        _shares(rows[rows["step"] > 0])
        | dict.fromkeys(nothing, float("nan"))
        | {"seconds an edit": seconds, "peak MiB": float("nan")}
    )


def _measured_everything(rows: pd.DataFrame, step: int) -> bool:
    """Whether every fact held at a step was asked then."""
    asked = rows[(rows["step"] == step) & (rows["edit_step"] <= step)]["case_id"].nunique()
    return asked == rows[rows["edit_step"] <= step]["case_id"].nunique() > 0


def _measures(rows: pd.DataFrame, moments: pd.DataFrame, step: int) -> dict[str, float]:
    own = rows[rows["kind"] == "efficacy"]
    learned = own[(own["step"] == own["edit_step"]) & own["exact"]]["case_id"]
    held = rows[(rows["step"] == step) & (rows["edit_step"] <= step)]
    kept = held[(held["kind"] == "efficacy") & held["case_id"].isin(learned)]["exact"].mean()
    moments = moments[moments["step"] <= step]
    end = moments[moments["step"] == step].set_index("metric")["value"]
    seconds = moments[moments["metric"] == "seconds_editing"]["value"].sum()
    peak = moments[moments["metric"] == "process_peak"]["value"]
    found = _shares(held) | {"edit retention": 100 * float(kept)}
    for metric, (column, factor) in LAST.items():
        value = end[[metric]].iloc[0] if metric in end.index else float("nan")
        found[column] = factor * float(value)
    return found | {
        "seconds an edit": float(seconds / step),
        "peak MiB": float(peak.max()) if len(peak) else float("nan"),
    }


def require_recorded(names: Sequence[str], there: Collection[str], path: Path) -> None:
    """Refuse the name of a trial that a record does not hold.

    Raises:
        DataError: naming it, and those that are there.
    """
    missing = [n for n in names if n not in there]
    if missing:
        raise DataError(
            f"{', '.join(missing)} is not recorded in {path.name}; there are {', '.join(there)}."
        )
