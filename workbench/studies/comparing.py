"""Editors side by side as a recorded study: ``wb.compare``, and what it does not measure itself.

Beside the scores of the facts: what became of facts nobody edited and of the model's language, what
it writes freely about the edited subjects, and how much memory an editor took.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.atomic import write_atomically
from workbench.comparison import Comparison, compare_steps
from workbench.errors import DataError
from workbench.experiment.environment import environment
from workbench.experiment.watch import Moment, Watcher, material_for
from workbench.facts import EditCase
from workbench.layouts import DECODER
from workbench.metrics.writing import Snippets, free_writing
from workbench.model import ModelView
from workbench.places import shipped
from workbench.pretrained import load
from workbench.runs import csv_gz
from workbench.studies.base import Study
from workbench.studies.running import KINDS, editor_of, facts_of, named

__all__ = ["EXTRA", "peak_memory", "recorded_comparison", "run_comparison"]

Pathlike = str | os.PathLike[str]
#: Columns beside those of ``wb.compare``.
EXTRA = ("upstream", "perplexity_ratio", "fluency", "consistency", "peak_mib")
#: Facts nobody edits that are asked, and sentences whose perplexity is taken.
OTHERS = 100
#: Columns with texts of the benchmark, which a record does not hold.
TEXTS = ["prompt", "target_new"]
#: Where a process on Linux forgets the most memory it ever held, and where it says it.
FORGET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def run_comparison(
    study: Study,
    *,
    out: Pathlike | None = None,
    data: Pathlike | None = None,
    view: ModelView | None = None,
    device: str | None = None,
    common: Mapping[str, Any] | None = None,
    snippets: Snippets | None = None,
    texts: int = 1,
    max_new_tokens: int = 60,
    only: Sequence[str] | None = None,
) -> Comparison:
    """Let every editor of a study write its facts in one batch into the original model.

    An editor whose record is there is not run again.

    Args:
        study: such as ``wb.study("compare_editors")``; a trial names an editor.
        out, data, view, device, common: as in :func:`workbench.run_study`.
        snippets: references of the consistency score (:func:`workbench.datasets.snippets`).
        texts: written freely about each subject; 0 leaves fluency and consistency out.
        max_new_tokens: of a text.
        only: names of trials; None runs all.

    Returns:
        A comparison whose ``summary`` and ``before`` also hold ``upstream`` (share of facts nobody
        edited that are answered as before), ``perplexity_ratio`` (to the unedited model),
        ``fluency`` (bits), ``consistency`` (0 to 1) and ``peak_mib`` (the most memory the process,
        or the GPU, held while the editor worked and was measured; NaN where it cannot be read).
        The grid names facts by their ids; the edits are not kept.

    Raises:
        OptionError: for unknown trials.
        DataError: if there are fewer facts than the study wants.

    Example:
        >>> wb.run_comparison(wb.study("compare_editors", model="tiny", edits=4)).summary
        ... # doctest: +SKIP
    """
    chosen = study if only is None else study.only(only)
    out = Path(out) if out is not None else study.path
    missing = [t for t in chosen.trials if not (out / t.slug / "run.json").exists()]
    if missing:
        view = view if view is not None else load(study.model, device=device)
        cases = facts_of(study, data)[: study.edits]
        shared = {} if study.is_tiny else dict(common or {})
        editors = {t.name: editor_of(view, t, shared) for t in missing}
        beside = _Beside(view, cases, snippets or {}, texts, max_new_tokens)
        steps = compare_steps(view, editors, cases, kinds=KINDS, generate=True)
        found = next(steps)
        if not (out / "before" / "run.json").exists():
            _write(out / "before", found.before.assign(**beside.measure()), found.grid, beside, {})
        for trial in missing:
            with peak_memory(view) as peak:
                found = next(steps)
            row = found.summary.iloc[[-1]].assign(**peak)
            if trial.name in found.edits:
                with view.applied(found.edits[trial.name]):
                    row = row.assign(**beside.measure())
            about = {"editor": trial.editor, "editor_config": editors[trial.name].config()}
            grid = found.grid[found.grid["editor"] == trial.name]
            _write(out / trial.slug, row, grid, beside, {"name": trial.name} | about)
    return recorded_comparison(study if out == study.path else out, study=study)


def recorded_comparison(source: Study | Pathlike, *, study: Study | None = None) -> Comparison:
    """Read what :func:`run_comparison` recorded.

    Args:
        source: a study, a folder, or the name of one in ``data/results``.
        study: orders the editors, if ``source`` is a folder.

    Raises:
        DataError: if there is nothing.

    Example:
        >>> wb.recorded_comparison("compare_smollm2-135m_10").summary["editor"].tolist()
        ... # doctest: +SKIP
    """
    study = source if isinstance(source, Study) else study
    path = source.path if isinstance(source, Study) else Path(source)
    path = path if path.exists() else shipped("results") / path
    names = {p.parent.name for p in path.glob("*/run.json")} - {"before"}
    ordered = [t.slug for t in study.trials] if study is not None else sorted(names)
    folders = [path / n for n in ordered if n in names]
    if not folders or not (path / "before" / "summary.csv").exists():
        raise DataError(
            f"{path} holds no comparison: run it (live=True in the notebook, or "
            "wb.run_comparison), or check the path."
        )
    grid = pd.concat([pd.read_csv(f / "grid.csv.gz") for f in folders], ignore_index=True)
    cases = "case " + grid["case_id"].astype(str)  # the texts are the benchmark's
    config = json.loads((folders[0] / "run.json").read_text())
    return Comparison(
        where=f"{config['model']} + 0 edits",
        summary=_tables(folders),
        before=_tables([path / "before"]),
        grid=grid.assign(prompt=cases, target_new=""),
    )


@contextmanager
def peak_memory(view: ModelView) -> Iterator[dict[str, float]]:
    """Fill ``peak_mib``: the most memory in MiB held within, of the GPU if the model is on one.

    On a CPU only Linux can forget an earlier peak; elsewhere the value is NaN.

    Example:
        >>> with peak_memory(view) as peak:  # doctest: +SKIP
        ...     edit = editor.edit(view, cases)
    """
    found = {"peak_mib": math.nan}
    on_gpu = view.device.type == "cuda"
    forgotten = False
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(view.device)
    else:
        forgotten = _forget()
    yield found
    if on_gpu:
        found["peak_mib"] = torch.cuda.max_memory_allocated(view.device) / 2**20
    elif forgotten:
        held = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
        found["peak_mib"] = int(held[1]) / 2**10 if held else math.nan


def _forget() -> bool:
    try:
        FORGET.write_text("5")
    except OSError:
        return False
    return True


@dataclass
class _Beside:
    """What is measured beside the facts, on the view as it is."""

    view: ModelView
    cases: list[EditCase]
    snippets: Snippets
    texts: int
    max_new_tokens: int

    def __post_init__(self) -> None:
        found = material_for(self.view, self.cases, None, None, None)
        material = replace(found, texts=found.texts[:OTHERS], upstream=found.upstream[:OTHERS])
        self.watcher = Watcher(self.view, range(self.view.n_layers), material)
        self.watcher.measure(self._metrics, Moment(step=0))  # what it is compared with

    @property
    def _metrics(self) -> list[str]:
        return ["upstream", "perplexity"] if self.view.kind == DECODER else []

    def measure(self) -> dict[str, float]:
        table = self.watcher.measure(self._metrics, Moment(step=1))
        values = {} if table is None else table.set_index("metric")["value"].to_dict()
        found = {
            "upstream": values.get("upstream_agreement", math.nan),
            "perplexity_ratio": values.get("perplexity_ratio", math.nan),
        }
        if not self.texts or self.view.kind != DECODER:
            return found | {"fluency": math.nan, "consistency": math.nan}
        written = free_writing(
            self.view,
            [_briefly(c, self.texts) for c in self.cases],
            snippets=self.snippets,
            max_new_tokens=self.max_new_tokens,
        )
        means = written[["fluency", "consistency"]].mean()
        return found | {str(k): float(v) for k, v in means.items()}


def _briefly(case: EditCase, texts: int) -> EditCase:
    """A case with the first of its prompts for free writing."""
    tags = dict(case.tags or {})
    if prompts := tags.get("generation_prompts"):
        tags["generation_prompts"] = list(dict.fromkeys(prompts))[:texts]
    return replace(case, tags=tags)


def _write(
    folder: Path, row: pd.DataFrame, grid: pd.DataFrame, beside: _Beside, about: dict[str, Any]
) -> None:
    """Numbers and ids, without texts; ``run.json`` last."""
    if "editor_config" in about:
        about = about | {"editor_config": named(about["editor_config"])}
    config = about | {
        "regime": "one batch, apart",
        "model": beside.view.name,
        "fingerprint": beside.view.fingerprint,
        "dtype": str(beside.view.dtype),
        "case_ids": [c.case_id for c in beside.cases],
        "texts": beside.texts,
        "max_new_tokens": beside.max_new_tokens,
        "environment": environment(beside.view),
    }
    write_atomically(folder / "summary.csv", row.to_csv(index=False).encode())
    write_atomically(folder / "grid.csv.gz", csv_gz(grid.drop(columns=TEXTS).round(4)))
    write_atomically(folder / "run.json", json.dumps(config, indent=1).encode())


def _tables(folders: Sequence[Path]) -> pd.DataFrame:
    parts = [pd.read_csv(f / "summary.csv") for f in folders]
    table = pd.concat([p.dropna(axis=1, how="all") for p in parts], ignore_index=True)
    table = table.reindex(columns=_columns(parts))
    problem = table["problem"].astype(object)
    return table.assign(problem=problem.where(problem.notna(), None))


def _columns(parts: Sequence[pd.DataFrame]) -> list[str]:
    return list(dict.fromkeys(c for p in parts for c in p.columns))
