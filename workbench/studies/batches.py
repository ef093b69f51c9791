"""Studies of batch sizes: how many facts at once, and whether bigger is better.

``emmet_batch_sizes``: each batch on the original model (Gupta et al., arXiv 2403.14236, figures 4
and 5); ``bigger_batches``: a fixed number of facts in sequential batches of each size (Yoon, Gupta,
Anumanchipalli, arXiv 2405.00664).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench.studies.base import Study, Trial

__all__ = ["APART", "IN_SEQUENCE"]

SMALL = "smollm2-135m"
EDITORS = ("MEMIT", "EMMET")
#: (facts at once, facts): small batches take long to measure, so fewer of them are made, as in
#: the paper.
SIZES = ((1, 8), (4, 16), (16, 32), (64, 64), (256, 256))
#: The paper's: 25 batches of 4, 10 of 16, 5 of 64, 5 of 256, 3 of 1,024, 2 of 4,096, 1 of 10,000.
PAPER_SIZES = (
    *((1, 1000), (4, 100), (16, 160), (64, 320), (256, 1280)),
    *((1024, 3072), (4096, 8192), (10_000, 10_000)),
)
#: GPT2-XL, distributed over layers as in table 3; EMMET's released options name one layer.
XL_LAYERS = {"layers": (13, 14, 15, 16, 17)}
#: Llama-3-8B is edited best at layer 1; the tuning tables for batches of 1,024.
LLAMA: dict[str, Mapping[str, Any]] = {
    "MEMIT": {"layers": (1,), "lam": 5e4},
    "EMMET": {"layers": (1,), "lr": 0.1, "steps": 25, "alpha": 0.0},
}


def _apart(
    sizes: Sequence[tuple[int, int]],
    *,
    one_layer: bool,
    preset: str = "default",
    options: Mapping[str, Any] | None = None,
) -> tuple[Trial, ...]:
    """MEMIT and EMMET at each size."""
    where = ", one layer" if one_layer else ""
    trials = [
        Trial(
            name=f"{editor}{where}, batches of {batch}",
            editor=editor,
            preset=preset,
            options=options or {},
            edits=facts,
            batch=batch,
            apart=True,
            one_layer=one_layer,
        )
        for batch, facts in sizes
        for editor in EDITORS
    ]
    return tuple(trials)


def _in_sequence(
    sizes: Sequence[int], options: Mapping[str, Mapping[str, Any]], presets: Mapping[str, str]
) -> tuple[Trial, ...]:
    return tuple(
        Trial(
            name=f"{editor}, {batch} at once",
            editor=editor,
            preset=presets.get(editor, "default"),
            options=options.get(editor, {}),
            batch=batch,
        )
        for batch in sizes
        for editor in EDITORS
    )


_APART = Study(
    name="emmet_batch_sizes",
    setting="default",
    papers=("EMMET", "MEMIT"),
    model=SMALL,
    dataset="counterfact",
    edits=256,
    batch=256,
    trials=(*_apart(SIZES, one_layer=False), *_apart(SIZES, one_layer=True)),
    folder="batches_apart_smollm2-135m_256",
)
_IN_SEQUENCE = replace(
    _APART,
    name="bigger_batches",
    papers=("Llama-3 batch sizes",),
    edits=64,
    batch=64,
    trials=_in_sequence((64, 16, 4, 1), {}, {}),
    checkpoints=(1.0,),
    folder="batches_in_sequence_smollm2-135m_64",
)
#: setting → study
APART = {
    "default": _APART,
    "paper": replace(
        _APART,
        setting="paper",
        model="openai-community/gpt2-xl",
        dataset="multi_counterfact",
        edits=10_000,
        batch=10_000,
        trials=(
            *_apart(PAPER_SIZES, one_layer=False, preset="paper", options=XL_LAYERS),
            *_apart(PAPER_SIZES, one_layer=True, preset="paper"),
        ),
        folder="",
    ),
}
IN_SEQUENCE = {
    "default": _IN_SEQUENCE,
    "paper": replace(
        _IN_SEQUENCE,
        setting="paper",
        model="meta-llama/Meta-Llama-3-8B",
        edits=4096,
        batch=4096,
        trials=_in_sequence((4096, 1024, 256, 64, 16, 1), LLAMA, {"MEMIT": "paper"}),
        folder="",
    ),
}
