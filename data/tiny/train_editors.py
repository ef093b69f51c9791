"""Train the editors that ship with the tiny models.

``python data/tiny/train_editors.py`` writes ``editors/`` beside this file: MEND, KE and ENN for
``tiny``, MEND for ``tiny-bert`` and ``tiny-t5``. Names or a model choose some of them:
``python data/tiny/train_editors.py tiny:MEND``. Minutes of one core's time each; an interrupted
training goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from workbench.editors.learned.files import file_name, read_trained
from workbench.editors.learned.tasks import make_lessons

OUT = Path(__file__).resolve().parent / "editors"
MEND = {"rank": 32, "lr": 1e-3, "rate_lr": 1e-4, "validate_every": 30}
ENN = {"prepared": "matrices", "rank": 32, "lr": 1e-3, "rate_lr": 1e-3, "validate_every": 20}
KE = {"hidden": 56, "condition": 48, "width": 15, "lr": 3e-3, "validate_every": 50}
#: model:editor → steps and options; every file stays below 1 MB.
PLANS: dict[str, tuple[int, dict[str, Any]]] = {
    "tiny:MEND": (60, MEND),
    "tiny:ENN": (60, ENN),
    "tiny:KE": (300, KE),
    "tiny-bert:MEND": (240, MEND),
    "tiny-t5:MEND": (120, MEND | {"rank": 24}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plans", nargs="*", default=list(PLANS), metavar="MODEL:EDITOR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for plan in arguments.plans:
        model, _, name = plan.partition(":")
        steps, options = PLANS[plan]
        view = wb.load(model, device="cpu")
        out = OUT / file_name(name, view.fingerprint)
        lessons = make_lessons(view, "tiny", seed=arguments.seed)
        wb.EDITORS[name].train(  # type: ignore[attr-defined]
            view,
            lessons,
            out=out,
            steps=steps,
            seed=arguments.seed,
            fresh=arguments.fresh,
            **options,
        )
        found = read_trained(out)[0].training["evaluation"]
        print(
            f"{plan:16} {out.stat().st_size / 1e3:5.0f} kB  success {found['success']:.1%}  "
            f"drawdown {found['drawdown']:.1%}"
        )


if __name__ == "__main__":
    main()
