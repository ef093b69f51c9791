"""The studies of the curated notebooks, each in our setting and in its paper's.

Numbers of the papers' settings: the papers themselves and their released commands.
"""

from __future__ import annotations

from dataclasses import replace

from workbench.errors import OptionError, did_you_mean
from workbench.studies.base import Study, Trial
from workbench.studies.batches import APART, IN_SEQUENCE

__all__ = ["SETTINGS", "STUDIES", "study"]

SETTINGS = ("default", "paper")
SMALL = "smollm2-135m"
_SEQUENCE = "sequential_smollm2-135m_300"


def study(
    name: str,
    setting: str = "default",
    *,
    model: str | None = None,
    edits: int | None = None,
    batch: int | None = None,
) -> Study:
    """A study by its notebook's name.

    Args:
        name: one of :data:`STUDIES`.
        setting: ``default`` (what is recorded in ``data/results``, for two CPU cores) or ``paper``
            (the paper's model, number of facts and batch; wants a GPU).
        model, edits, batch: instead of the setting's.

    Raises:
        OptionError: for an unknown name or setting, or numbers below 1.

    Example:
        >>> wb.study("nse_sequential").edits
        300
    """
    if name not in STUDIES:
        raise OptionError(f"no study is called {name!r}." + did_you_mean(name, list(STUDIES)))
    if setting not in SETTINGS:
        raise OptionError(f"setting={setting!r}: choose {' or '.join(map(repr, SETTINGS))}.")
    return STUDIES[name][setting].changed(model=model, edits=edits, batch=batch)


def _coach(layers: int, edits: int | None = None) -> Trial:
    name = "CoachHook, 1 layer" if layers == 1 else f"CoachHook, {layers} layers"
    return Trial(name=name, editor="CoachHook", options={"n_layers": layers}, edits=edits)


_MEMIT = Trial(name="MEMIT", editor="MEMIT")
_FT = Trial(name="FT", editor="FT", common=False)
_ROME = Trial(name="ROME", editor="ROME")
_SEQUENTIAL = (
    _MEMIT,
    Trial(name="MEMIT accumulated", editor="MEMIT", options={"accumulate": True}),
    Trial(name="NSE", editor="NSE"),
    Trial(name="NSE, all neurons", editor="NSE", options={"neuron_threshold": 1.0}),
    Trial(name="NSE, one round", editor="NSE", options={"max_iterations": 2}),
    Trial(name="AlphaEdit", editor="AlphaEdit"),
    _coach(4),
    Trial(name="EMMET", editor="EMMET"),
    _FT,
    Trial(name="NSE, no rewinding", editor="NSE", options={"rewind": False}),
    Trial(name="MEMIT, RECT", editor="MEMIT", options={"rect": 0.4}),
    _coach(1),
    Trial(name="EMMET accumulated", editor="EMMET", options={"accumulate": True}),
    _coach(2),
    _ROME,
)
_NSE = Study(
    name="nse_sequential",
    setting="default",
    papers=("NSE", "AlphaEdit", "MEMIT"),
    model=SMALL,
    dataset="counterfact",
    edits=300,
    batch=50,
    trials=_SEQUENTIAL,
    folder=_SEQUENCE,
)
_COACH = replace(
    _NSE,
    name="coachhook_consecutive",
    papers=("CoachHook",),
    trials=(_coach(4), _coach(2), _coach(1), _MEMIT, _ROME, _FT),
)
_FTL = Trial(name="FT within bounds", editor="FTL", common=False)
_ROMES = tuple(
    Trial(name=name, editor="ROME", options={"variant": variant})
    for name, variant in (("ROME as released", "rome"), ("r-ROME", "r-rome"), ("p-ROME", "p-rome"))
)


def _shorter(trial: Trial) -> Trial:
    """Ten updates a target instead of up to nineteen: the new answer has 97 % by then."""
    return replace(trial, options={**trial.options, "steps": 11})


#: ROME writes a batch's facts one after the other; what is recorded is r-ROME.
_FORGETTING = replace(
    _NSE,
    name="forgetting_curves",
    papers=("forgetting at scale", "ROME"),
    trials=(_ROME, _MEMIT, _FT),
)
_VARIANTS = replace(
    _NSE,
    name="rome_variants",
    papers=("ROME",),
    edits=40,
    batch=1,
    checkpoints=(0.5, 1.0),
    dense=10,
    trials=tuple(map(_shorter, _ROMES)),
    folder="rome_variants_smollm2-135m_40",
)


def _one(editor: str, name: str = "", **options: object) -> Trial:
    locate = editor in ("ROME", "MEMIT", "EMMET", "NSE", "AlphaEdit", "CoachHook")
    return Trial(name=name or editor, editor=editor, common=locate, options=options)


_COMPARED = Study(
    name="compare_editors",
    setting="default",
    papers=("ROME", "MEMIT", "EMMET", "NSE", "AlphaEdit", "CoachHook", "GRACE", "FTL"),
    model=SMALL,
    dataset="counterfact",
    edits=10,
    batch=10,
    trials=(
        *map(_one, ("FT", "FTL", "FTKL", "ROME", "MEMIT", "EMMET", "NSE", "AlphaEdit")),
        *map(_one, ("CoachHook", "GRACE", "Defer", "MemoryNetwork")),
    ),
    folder="compare_smollm2-135m_10",
)


def _in_paper(study: Study, **changes: object) -> Study:
    """A study with the papers' presets, and no record."""
    trials = tuple(
        replace(t, preset="paper" if t.common else "default", edits=None) for t in study.trials
    )
    return replace(study, setting="paper", trials=trials, folder="", **changes)  # type: ignore[arg-type]


#: name → setting → study.
STUDIES: dict[str, dict[str, Study]] = {
    "nse_sequential": {
        "default": _NSE,
        "paper": _in_paper(
            _NSE,
            model="meta-llama/Meta-Llama-3-8B-Instruct",
            dataset="multi_counterfact",
            edits=2000,
            batch=100,
        ),
    },
    "coachhook_consecutive": {
        "default": _COACH,
        "paper": _in_paper(_COACH, model="openai-community/gpt2-xl", edits=1000, batch=30),
    },
    "forgetting_curves": {
        "default": _FORGETTING,
        "paper": _in_paper(
            replace(_FORGETTING, trials=(*_ROMES, _MEMIT, _FTL), dense=10, checkpoints=(1.0,)),
            model="openai-community/gpt2-xl",
            edits=1000,
            batch=1,
        ),
    },
    "rome_variants": {
        "default": _VARIANTS,
        "paper": _in_paper(
            replace(_VARIANTS, trials=_ROMES, dense=None, checkpoints=(0.2, 1.0)),
            model="EleutherAI/gpt-j-6b",
            edits=5000,
        ),
    },
    "compare_editors": {
        "default": _COMPARED,
        # each method's own paper has another setting; this is the model that most of them share
        "paper": replace(
            _COMPARED,
            setting="paper",
            model="openai-community/gpt2-xl",
            dataset="multi_counterfact",
            edits=100,
            batch=100,
            folder="",
        ),
    },
    "emmet_batch_sizes": APART,
    "bigger_batches": IN_SEQUENCE,
}
