"""Published and measured hyper-parameters, by the shape of the model.

A model is recognized by family and sizes, not by its name, so that a local copy finds its preset.
Every number names its source; see spec locate-then-edit 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.editors.base import check_preset_name
from workbench.errors import OptionError
from workbench.model import ModelView

__all__ = ["SHAPES", "TINY_TEXT", "Preset", "find", "identify", "middle_layers", "options_for"]

#: model → (family, d_model, d_mlp, n_layers)
SHAPES: dict[str, tuple[str, int, int, int]] = {
    "distilgpt2": ("gpt2", 768, 3072, 6),
    "gpt2": ("gpt2", 768, 3072, 12),
    "gpt2-medium": ("gpt2", 1024, 4096, 24),
    "gpt2-large": ("gpt2", 1280, 5120, 36),
    "gpt2-xl": ("gpt2", 1600, 6400, 48),
    "gpt-neo-2.7b": ("gpt_neo", 2560, 10240, 32),
    "gpt-j-6b": ("gptj", 4096, 16384, 28),
    "gpt-neox-20b": ("gpt_neox", 6144, 24576, 44),
    "llama-2-7b": ("llama", 4096, 11008, 32),
    "llama-3-8b": ("llama", 4096, 14336, 32),
    "llama-3.2-3b": ("llama", 3072, 8192, 28),
    "mistral-7b": ("mistral", 4096, 14336, 32),
    "qwen2.5-7b": ("qwen2", 3584, 18944, 28),
    "smollm2-135m": ("llama", 576, 1536, 30),
    "t5-small-ssm-nq": ("t5", 512, 1024, 8),
    "bert-base": ("bert", 768, 3072, 12),
    "minilm-l6": ("bert", 384, 1536, 6),
}

#: The shipped tiny models go by their names.
TINY = ("tiny", "tiny-bert", "tiny-t5")
#: Key statistics of the tiny model come from the sample of its world that ships with it.
TINY_TEXT = {"corpus": "tiny", "corpus_tokens": 30_000}


@dataclass(frozen=True)
class Preset:
    """Options for one model with their source."""

    options: Mapping[str, Any]
    source: str


#: preset name → model → :class:`Preset`
Table = Mapping[str, Mapping[str, Preset]]


def identify(view: ModelView) -> str | None:
    """The model's short name by its shape, None if it is not in :data:`SHAPES`."""
    if view.name in TINY:
        return view.name
    shape = (view.layout.family, view.d_model, view.d_mlp, view.n_layers)
    return next((name for name, known in SHAPES.items() if known == shape), None)


def find(table: Table, view: ModelView, name: str, editor: str) -> Preset | None:
    """The preset of a name for this model.

    ``default`` falls back on ``repo``, then on None (a rule of thumb applies). ``repo`` must
    exist; ``paper`` takes the released options where the paper states no others.

    Raises:
        OptionError: for an unknown preset name, or where nothing is published for the model.
    """
    check_preset_name(name)
    model = identify(view)
    order = {"default": ("default", "repo", "paper"), "repo": ("repo",), "paper": ("paper", "repo")}
    for table_name in order[name]:
        found = table.get(table_name, {}).get(model or "")
        if found is not None:
            return found
    if name == "default":
        return None
    published = sorted({m for t in order[name] for m in table.get(t, {})})
    raise OptionError(
        f"{editor} has no {name!r} preset for {view.name}: published ones exist for "
        f"{', '.join(published) or 'no model'}. Use preset(view), or calibrate(view, cases)."
    )


def options_for(
    table: Table, view: ModelView, name: str, editor: str, n_layers: int
) -> dict[str, Any]:
    """Options of the preset :func:`find` returns, else ``n_layers`` middle layers."""
    row = find(table, view, name, editor)
    return dict(row.options) if row else {"layers": middle_layers(view, n_layers)}


def middle_layers(view: ModelView, n: int) -> tuple[int, ...]:
    """Rule of thumb for unknown models: ``n`` layers around a quarter of the depth (spec 3.2)."""
    n = min(n, view.n_layers)
    last = min(max(n - 1, round(0.25 * view.n_layers) + n // 2), view.n_layers - 1)
    return tuple(range(last - n + 1, last + 1))
