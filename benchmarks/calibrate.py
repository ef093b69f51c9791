"""Calibrate an editor for a model and keep the run: tables, figure data, configuration.

    python benchmarks/calibrate.py --editor ROME --layers 3 5 6 8 12 --cases 16

Cases are facts of ``data/facts`` that the default model knows, every 40th of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import workbench as wb
from workbench.atomic import write_atomically
from workbench.editors import find_editor


def main() -> None:
    """Run the calibration and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--editor", default="ROME")
    parser.add_argument("--layers", type=int, nargs="+", default=None)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    view = wb.load(args.model)
    known = wb.datasets.facts(known_to="smollm2-135m")
    cases = [known[i] for i in range(0, len(known), 40)][: args.cases]
    began = time.perf_counter()
    found = find_editor(args.editor).calibrate(view, cases, layers=args.layers)
    out = Path(args.out or f"data/results/calibration_{args.model}_{args.editor}")
    run = {
        "question": f"which layer, and which λ, for {args.editor} on {args.model}",
        "data": {"name": "facts", "case_ids": [c.case_id for c in cases]},
        "model": {"name": view.name, "fingerprint": view.fingerprint},
        "start": dict(found.meta["base"]),
        "chosen": found.editor.config(),
        "seconds": round(time.perf_counter() - began),
        "versions": {"workbench": wb.__version__, "torch": torch.__version__},
        "device": str(view.device),
    }
    write_atomically(out / "layers.csv", found.table.round(5).to_csv(index=False).encode())
    write_atomically(out / "closure.csv", found.closure.round(5).to_csv(index=False).encode())
    write_atomically(out / "run.json", json.dumps(run, indent=1).encode())
    print(found)


if __name__ == "__main__":
    main()
