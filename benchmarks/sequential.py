"""Editors in sequence on CounterFact: one table, each run resumable and recorded.

    python benchmarks/sequential.py PATH/counterfact_large.jsonl.gz --edits 300 --batch 50

Every editor writes the same facts, original records first, in the same order into a fresh model.
Beyond the originals paraphrases are not the benchmark's own. ``data/results/NAME/``
gets a folder a run (rows without texts, moments, run.json) and ``table.csv``. A run that is there
is not run again; one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import workbench as wb
from workbench.atomic import write_atomically
from workbench.places import cache_dir

KINDS = ("efficacy", "paraphrase", "neighborhood")
Make = Callable[[wb.ModelView, dict[str, Any]], wb.Editor]


def variants() -> dict[str, Make]:
    """Name → editor, in the order in which they are worth having."""

    def of(name: str, **options: Any) -> Make:
        return lambda view, common: wb.EDITORS[name].preset(view, **(common | options))

    def coach(n: int) -> Make:
        return lambda view, common: wb.CoachHook.preset(view, n_layers=n, **common)

    return {
        "MEMIT": of("MEMIT"),
        "MEMIT accumulated": of("MEMIT", accumulate=True),
        "NSE": of("NSE"),
        "NSE, all neurons": of("NSE", neuron_threshold=1.0),
        "NSE, one round": of("NSE", max_iterations=2),
        "AlphaEdit": of("AlphaEdit"),
        "CoachHook, 4 layers": coach(4),
        "EMMET": of("EMMET"),
        "FT": lambda view, common: wb.FT.preset(view),
        "NSE, no rewinding": of("NSE", rewind=False),
        "MEMIT, RECT": of("MEMIT", rect=0.4),
        "CoachHook, 1 layer": coach(1),
        "EMMET accumulated": of("EMMET", accumulate=True),
        "CoachHook, 2 layers": coach(2),
        "ROME": of("ROME"),
    }


def main() -> None:
    """Run what is missing, then write the table."""
    args = _arguments()
    view = wb.load(args.model, device=args.device)
    everyone = wb.datasets.counterfact(args.path)
    cases = sorted(everyone, key=lambda c: bool(c.tags.get("rebuilt")))[: args.edits]
    out = Path(args.out or f"data/results/sequential_{args.model}_{args.edits}")
    common: dict[str, Any] = {}
    if args.corpus:
        common = {"corpus": args.corpus, "corpus_tokens": args.tokens}
    _unedited(view, cases, out / "unedited.csv")
    for name, make in variants().items():
        if args.only and name not in args.only:
            continue
        target = out / _slug(name)
        if not (target / "run.json").exists():
            began = time.perf_counter()
            _run(view, make(view, common), cases, name, target, args)
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        table = summarize(out)
        write_atomically(out / "table.csv", table.round(4).to_csv(index=False).encode())
    print(table.to_string(index=False))


def _run(
    view: wb.ModelView,
    editor: wb.Editor,
    cases: list[wb.EditCase],
    name: str,
    target: Path,
    args: argparse.Namespace,
) -> None:
    work = cache_dir("runs") / f"sequential-{args.model}-{args.edits}-{_slug(name)}"
    down = {"tasks": ("sst2",), "tests": 100, "path": args.downstream} if args.downstream else None
    rows = wb.stream(
        work, view, editor, cases, batch_size=args.batch, kinds=KINDS, before=False,
        evaluate_at=(max(args.batch, args.edits // 3), args.edits), downstream=down,
        continue_on=False,
    )  # fmt: skip
    view.reset()
    moments = wb.moments(work)
    shown = rows.drop(columns=["run", "target", "foil"]).round(4)
    write_atomically(target / "rows.csv.gz", _gzip(shown))
    write_atomically(target / "moments.csv", moments.round(6).to_csv(index=False).encode())
    config = json.loads((work / "run.json").read_text())
    options = config["editor_config"]
    if "corpus" in options:
        options["corpus"] = Path(options["corpus"]).name  # a file, wherever it lay
    write_atomically(target / "run.json", json.dumps({"name": name} | config, indent=1).encode())
    if args.tidy:
        shutil.rmtree(work)


def _gzip(table: pd.DataFrame) -> bytes:
    import gzip

    return gzip.compress(table.to_csv(index=False).encode(), mtime=0)


def _unedited(view: wb.ModelView, cases: list[wb.EditCase], path: Path) -> None:
    if path.exists():
        return
    scores = wb.score(view, cases, kinds=KINDS)
    kept = scores[["case_id", "probe", "kind", "nll_target", "nll_foil", "exact", "success"]]
    write_atomically(path, kept.round(4).to_csv(index=False).encode())


def summarize(out: Path) -> pd.DataFrame:
    """One row a run, from the recorded tables."""
    rows = []
    unedited = pd.read_csv(out / "unedited.csv")
    rows.append({"run": "unedited", **_shares(unedited)})
    for name in variants():
        folder = out / _slug(name)
        if (folder / "run.json").exists():
            rows.append({"run": name, **_row(folder)})
    return pd.DataFrame(rows)


def _shares(table: pd.DataFrame) -> dict[str, float]:
    found = {}
    for kind in KINDS:
        part = table[table["kind"] == kind]
        for what in ("success", "exact"):
            found[f"{kind} {what}"] = 100 * part.groupby("case_id")[what].mean().mean()
    return found


def _row(folder: Path) -> dict[str, float]:
    rows = pd.read_csv(folder / "rows.csv.gz")
    last = rows["step"].max()
    final = rows[rows["step"] == last]
    own = rows[rows["kind"] == "efficacy"]
    learned = own[(own["step"] == own["edit_step"]) & own["exact"]]["case_id"]
    kept = own[(own["step"] == last) & own["case_id"].isin(learned)]["exact"].mean()
    moments = pd.read_csv(folder / "moments.csv")
    end = moments[moments["step"] == moments["step"].max()].set_index("metric")["value"]
    seconds = moments[moments["metric"] == "seconds_editing"]["value"].sum()
    peak = moments[moments["metric"] == "process_peak"]
    return _shares(final) | {
        "edit retention": 100 * kept,
        "upstream retention": 100 * _first(end, "upstream_agreement"),
        "perplexity ratio": _first(end, "perplexity_ratio"),
        "sst2 accuracy": 100 * _first(end, "downstream_accuracy"),
        "seconds an edit": seconds / last,
        "peak MiB": peak["value"].max() if len(peak) else float("nan"),
    }


def _first(series: pd.Series, name: str) -> float:
    return float(series[[name]].iloc[0]) if name in series.index else float("nan")


def _slug(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "_")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="counterfact_large.jsonl.gz, or counterfact.json")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--device", default=None)
    parser.add_argument("--corpus", help="for the key statistics; default: the presets'")
    parser.add_argument("--tokens", type=int, help="tokens of the corpus")
    parser.add_argument("--downstream", help="folder of the downstream sets")
    parser.add_argument("--only", nargs="+", help="names of runs")
    parser.add_argument("--tidy", action="store_true", help="delete the working folders")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
