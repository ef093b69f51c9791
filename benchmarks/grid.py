"""A grid of runs on a SLURM cluster or on this machine, with submitit: start, list, cancel.

    pip install 'workbench-editing[cluster]'
    python benchmarks/grid.py start data/runs/grid --model tiny --data tiny --limit 40 \
        --editors MEMIT FT --batch-sizes 5 20 --cluster local --jobs 2
    python benchmarks/grid.py list data/runs/grid
    python benchmarks/grid.py cancel data/runs/grid
    workbench summary data/runs/grid/*-b5

On a cluster: ``--cluster slurm --jobs 8 --hours 4 --slurm partition=gpu gres=gpu:1``. A run is a
folder that continues where it stopped, so a job that was preempted or ran out of time is queued
again by submitit, and ``start`` again takes up whatever is not complete.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit

import workbench as wb
from workbench.atomic import write_atomically
from workbench.editors import find_editor
from workbench.errors import BusyError
from workbench.runs import RunFolder


class Runs:
    """Some runs of the grid, one after the other; what a job executes."""

    def __call__(self, runs: list[dict[str, Any]]) -> list[str]:
        """Stream each; returns the folders."""
        for run in runs:
            with suppress(BusyError):  # another job has it
                self.stream(**run)
        return [run["out"] for run in runs]

    def stream(
        self, out: str, model: str, data: str, limit: int, editor: str, batch_size: int
    ) -> None:
        """One run; continues if the folder has one."""
        view = wb.load(model)
        named = {"tiny": wb.datasets.tiny, "facts": wb.datasets.facts}
        cases = (
            named[data](limit=limit) if data in named else wb.datasets.load_cases(data, limit=limit)
        )
        made = find_editor(editor).preset(view)
        wb.stream(
            out, view, made, cases, batch_size=batch_size, on_error="skip", stop_on=wb.Alarm()
        )

    def checkpoint(self, runs: list[dict[str, Any]]) -> submitit.helpers.DelayedSubmission:
        """Queued again when the job is preempted or runs out of time."""
        return submitit.helpers.DelayedSubmission(self, runs)


def main() -> None:
    """Start, list or cancel."""
    args = _arguments()
    {"start": _start, "list": _list, "cancel": _cancel}[args.verb](args)


def _start(args: argparse.Namespace) -> None:
    grid = itertools.product(args.editors, args.batch_sizes)
    runs = [
        {
            "out": str(Path(args.out, f"{editor}-b{size}").resolve()),
            "model": args.model,
            "data": args.data,
            "limit": args.limit,
            "editor": editor,
            "batch_size": size,
        }
        for editor, size in grid
    ]
    left = [run for run in runs if not RunFolder(run["out"]).complete]
    executor = submitit.AutoExecutor(folder=Path(args.out, "jobs"), cluster=args.cluster)
    executor.update_parameters(
        name="workbench", timeout_min=60 * args.hours, cpus_per_task=args.cpus, **_slurm(args.slurm)
    )
    shares = [left[i :: args.jobs] for i in range(args.jobs)]
    jobs = [(executor.submit(Runs(), share), share) for share in shares if share]
    earlier = json.loads(_file(args.out).read_text())["jobs"] if _file(args.out).exists() else []
    record = earlier + [{"id": j.job_id, "runs": [r["out"] for r in share]} for j, share in jobs]
    table = {"cluster": args.cluster, "runs": [r["out"] for r in runs], "jobs": record}
    write_atomically(_file(args.out), json.dumps(table, indent=1).encode())
    print(f"{len(left)} of {len(runs)} runs in {len(jobs)} jobs: {[j.job_id for j, _ in jobs]}")


def _list(args: argparse.Namespace) -> None:
    table = json.loads(_file(args.out).read_text())
    for job in table["jobs"]:
        state = _state(table["cluster"], args.out, job["id"])
        print(f"job {job['id']}: {state}, {len(job['runs'])} runs")
    for out in table["runs"]:
        status = RunFolder(out).status()
        rate = status.get("edits_per_second")
        print(
            f"{Path(out).name:<20}{status.get('state', 'waiting'):<14}"
            f"{status.get('step', 0)}/{status.get('cases', '?')} edits"
            + (f", {rate:.3g} edits/s" if rate else "")
        )


def _cancel(args: argparse.Namespace) -> None:
    table = json.loads(_file(args.out).read_text())
    for job in table["jobs"]:
        if table["cluster"] == "slurm":
            submitit.SlurmJob(Path(args.out, "jobs"), job["id"]).cancel()
        elif _alive(job["id"], args.out):
            os.kill(int(job["id"]), signal.SIGINT)  # as submitit does; it reaches the run
    print("cancelled; `start` again goes on from the last finished batch of every run")


def _state(cluster: str, out: str, job: str) -> str:
    if cluster == "slurm":
        return str(submitit.SlurmJob(Path(out, "jobs"), job).state)
    return "RUNNING" if _alive(job, out) else "ENDED"


def _alive(job: str, out: str) -> bool:
    """A local job's id is its process's; another program may have got the number since."""
    found = subprocess.run(["ps", "-p", job, "-o", "args="], capture_output=True, text=True)
    return "submitit" in found.stdout and str(Path(out).resolve()) in found.stdout


def _slurm(words: list[str]) -> dict[str, str]:
    pairs = dict(word.split("=", 1) for word in words)
    extra = {k: pairs.pop(k) for k in list(pairs) if k not in ("partition", "mem")}
    named = {f"slurm_{k}": v for k, v in pairs.items()}
    return named | ({"slurm_additional_parameters": extra} if extra else {})  # type: ignore[dict-item]


def _file(out: str) -> Path:
    return Path(out, "grid.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("start", "list", "cancel"))
    parser.add_argument("out", help="folder of the grid")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", default="tiny")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--editors", nargs="+", default=["MEMIT"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[10])
    parser.add_argument("--cluster", default="local", choices=("local", "slurm", "debug"))
    parser.add_argument("--jobs", type=int, default=1, help="the runs are dealt to so many jobs")
    parser.add_argument("--hours", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--slurm", nargs="*", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
