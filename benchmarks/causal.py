"""The causal trace against one full forward a cell, and the average over known facts.

    python benchmarks/causal.py PATH/known_facts.json --facts 30

Part one averages over the first facts of the file that the model knows. Part two times
``wb.causal_trace`` and :mod:`plain_trace` on a few facts, with the same noise, each cell of the
plain trace one forward pass of all noise samples. As every such pass costs the same, only some
cells are run that way, drawn by seed, and their time is scaled to all; their numbers must agree.
Tables lie in ``data/results/causal_MODEL/`` with ``run.json``: ``averages.csv``, ``severed.csv``
(residuals with MLPs or attention severed) and ``speed.csv`` (a row a fact; ``ratio`` counts all
cells, ``ratio_from_subject`` leaves out those before the subject, which are known without a pass).
A part that is there is not run again. Texts of the records are not written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from plain_trace import PlainTrace

import workbench as wb
from workbench.atomic import write_atomically
from workbench.experiment.environment import environment
from workbench.inspectors.tracing import encode_fact

#: A subject in the middle of its prompt; most known facts begin with theirs.
DARRIEUX = wb.EditRequest(
    prompt="The mother tongue of {} is",
    subject="Danielle Darrieux",
    target_new="English",
    target_true="French",
)


def main() -> None:
    """Run what is missing, write it, print what it says."""
    args = _arguments()
    view = wb.load(args.model, device=args.device)
    cases = wb.datasets.known_facts(args.path)
    out = Path(args.out or f"data/results/causal_{args.model.replace('/', '_')}")
    out.mkdir(parents=True, exist_ok=True)
    options = {"samples": args.samples, "seed": 0}
    average = _part(out / "averages.csv", lambda: _average(view, cases, args.facts, options, out))
    speed = _part(out / "speed.csv", lambda: _speed(view, cases, args, out))
    severed = _part(out / "severed.csv", lambda: _severed(view, cases, options, out))
    print(
        f"{len(speed)} facts: {speed.seconds_plain.sum() / speed.seconds.sum():.1f} times as fast"
    )
    print(speed.round(3).to_string(index=False))
    for name, table in (("average", average), ("severed", severed)):
        print(name)
        print(_peaks(table).to_string(index=False))


def _average(view: wb.ModelView, cases: list, facts: int, options: dict, out: Path) -> pd.DataFrame:
    began = time.perf_counter()
    table = wb.causal_average(view, cases, limit=facts, **options)
    seconds = time.perf_counter() - began
    ids = [cases[i].case_id for i in table.attrs["traced"]]
    about = {k: v for k, v in table.attrs.items() if k != "traced"}
    run = {
        "question": "where do facts pass: early at the subject's last token, late at the last?",
        "data": {"name": "known_facts", "case_ids": ids},
        "model": {"name": view.name, "fingerprint": view.fingerprint, "dtype": str(view.dtype)},
        "trace": about,
        "seconds": round(seconds, 1),
        "environment": environment(view),
    }
    write_atomically(out / "run.json", json.dumps(run, indent=1).encode())
    return table


def _severed(view: wb.ModelView, cases: list, options: dict, out: Path) -> pd.DataFrame:
    """The same facts and noise with a path cut."""
    run = json.loads((out / "run.json").read_text())
    by_id = {c.case_id: c for c in cases}
    chosen = [by_id[i] for i in run["data"]["case_ids"]]
    std = run["trace"]["noise"] / run["trace"]["noise_sigmas"]
    return pd.concat(
        [
            wb.causal_average(view, chosen, severed=module, std=std, **options).assign(
                severed=module
            )
            for module in ("mlp", "attention")
        ],
        ignore_index=True,
    )


def _speed(view: wb.ModelView, cases: list, args: argparse.Namespace, out: Path) -> pd.DataFrame:
    run = json.loads((out / "run.json").read_text())
    by_id = {c.case_id: c.request for c in cases}
    known = {i: by_id[i] for i in run["data"]["case_ids"][: args.timed]}
    facts = {"Darrieux": DARRIEUX, **known}
    return pd.DataFrame([_timed(view, f, name, args.plain_cells) for name, f in facts.items()])


def _timed(view: wb.ModelView, fact: wb.EditRequest, name: str | int, plain_cells: int) -> dict:
    """Seconds of both, ten samples a cell as in the paper; the numbers must agree.

    On a CPU these are seconds of the process, which other work on the machine leaves alone.
    """
    clock = time.process_time if view.device.type == "cpu" else time.perf_counter
    began = clock()
    table = wb.causal_trace(view, fact, seed=0)
    seconds = clock() - began
    first, last = table.attrs["subject"]
    row = encode_fact(view, fact, fact.target_true or "")
    width = view.model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(table.attrs["samples"], last + 1 - first, width, generator=generator)
    noise = table.attrs["noise"] * draw
    slow = PlainTrace(view, list(row.prompt_ids), (first, last), noise, row.target_ids[0])
    some = table.sample(min(plain_cells, len(table)), random_state=0)
    window = table.attrs["window"]
    began = clock()
    found = [slow.cell(r.kind, r.layer, r.position, window=window) for r in some.itertuples()]
    seconds_plain = (clock() - began) / len(some) * len(table)
    prob = torch.tensor(some["prob"].to_numpy())
    worst = float((torch.stack(found).mean(1).double().cpu() - prob).abs().max())
    assert worst < 1e-4, f"{name}: the traces differ by {worst}"
    return {
        "fact": name,
        "tokens": len(row.prompt_ids),
        "before_subject": first,
        "cells": len(table),
        "compared": len(some),
        "seconds": seconds,
        "seconds_plain": seconds_plain,
        "ratio": seconds_plain / seconds,
        "ratio_from_subject": seconds_plain / seconds * (1 - first / len(row.prompt_ids)),
        "largest_difference": worst,
    }


def _part(path: Path, run: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    if not path.is_file():
        table = run()
        write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())
    return pd.read_csv(path)


def _peaks(table: pd.DataFrame) -> pd.DataFrame:
    """The strongest layer of every kind and role."""
    keys = [k for k in ("severed", "kind", "role") if k in table]
    return table.loc[table.groupby(keys, sort=False)["effect"].idxmax()].round(4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="known_facts.json (ROME's known_1000.json)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=30, help="known facts in the average")
    parser.add_argument("--samples", type=int, default=2, help="draws of the noise in the average")
    parser.add_argument("--timed", type=int, default=3, help="known facts in the comparison")
    parser.add_argument("--plain-cells", type=int, default=40, help="cells run the plain way")
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
