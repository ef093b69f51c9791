"""What a learned editor makes of a gradient, and how its training went.

All norms and angles come from the factors (``⟨Σ a bᵀ, Σ c dᵀ⟩ = Σ (A Cᵀ) ∘ (B Dᵀ)``, spec
memory-and-meta 4.7 and 13); no gradient and no change is made whole.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.capabilities import orient
from workbench.editors.learned.base import LearnedEditor, gram
from workbench.editors.learned.learner import Rewrite
from workbench.editors.learned.texts import read
from workbench.errors import OptionError
from workbench.model import ModelView
from workbench.trace import frozen

__all__ = ["gradient_table", "training_curve"]


def gradient_table(view: ModelView, editor: Any, requests: Any) -> pd.DataFrame:
    """The raw gradient of an edit against the change that an editor makes of it.

    Args:
        view: the model in the state the edit would build on.
        editor: MEND, KE or ENN.
        requests: as for ``editor.edit``.

    Returns:
        One row a matrix: ``matrix, layer`` (None outside the table's blocks), ``rows`` (tokens that
        take part), ``gradient_norm, change_norm, ratio, cosine`` (of gradient and change; −1 is a
        plain step down), ``relative`` (change by the norm of the weight), ``rank`` (singular values
        above 1 % of the largest).

    Raises:
        OptionError: for another kind of editor.
        UnsupportedEditorError: if the editor was trained for another model.

    Example:
        >>> gradient_table(view, wb.MEND.preset(view), request)  # doctest: +SKIP
    """
    made = _rewritten(view, editor, requests)
    rows = []
    for name, change in made.factors.items():
        pairs = made.gradients.pairs[name]
        left, right = change.left[0] * editor.scale, change.right[0]
        raw, new = gram(pairs.delta, pairs.x), gram(left, right)
        weight = float(orient(view.module_of(name)).detach().float().norm())
        rows.append(
            {
                "matrix": name,
                "layer": _layer(view, name),
                "rows": len(pairs.x),
                "gradient_norm": raw**0.5,
                "change_norm": new**0.5,
                "ratio": (new / max(raw, 1e-30)) ** 0.5,
                "cosine": gram(left, right, pairs.delta, pairs.x) / max((raw * new) ** 0.5, 1e-30),
                "relative": new**0.5 / weight,
                "rank": _rank(left, right),
            }
        )
    return pd.DataFrame(rows)


def training_curve(editor: Any) -> pd.DataFrame:
    """How the training of an editor went.

    Args:
        editor: MEND, KE or ENN, with its trained file.

    Returns:
        One row a validation: ``step``; ``train_edit, train_local, train_base, train_norm`` (means
        since the last one: losses in nats, norm of the gradient); of held-out lessons ``total,
        edit, local, base, success, token_accuracy, accuracy_pristine, accuracy_before,
        accuracy_after, drawdown, drawdown_pristine, perplexity_before, perplexity_after,
        perplexity_drawdown, n``;
        ``best`` (whether this state was kept).

    Raises:
        OptionError: for another kind of editor.
        DataError: if the file is missing or damaged.

    Example:
        >>> plot_training(training_curve(wb.MEND.preset(view)))  # doctest: +SKIP
    """
    training = _learned(editor).trained().training
    table = pd.DataFrame(training.get("history", []))
    if table.empty:
        raise OptionError("the editor was not trained a single step: there is no curve.")
    table["best"] = table["step"] == training["best_step"]
    return table


def _learned(editor: Any) -> LearnedEditor:
    if not isinstance(editor, LearnedEditor):
        raise OptionError(
            f"editor={editor!r} is no learned editor: give MEND, KE or ENN, such as "
            "wb.MEND.preset(view)."
        )
    return editor


def _rewritten(view: ModelView, editor: Any, requests: Any) -> Rewrite:
    learned = _learned(editor)
    batch = learned._admit(view, requests)
    with view.writing("inspecting gradients"), frozen(view.model), learned.base(view):
        return learned.network(view).rewrite(view, read(view, batch), n_lessons=1)


def _layer(view: ModelView, name: str) -> int | None:
    found = [x for x in range(view.n_layers) if name.startswith(f"{view.layout.block(x)}.")]
    return found[0] if found else None


def _rank(left: Tensor, right: Tensor) -> int:
    """Singular values above 1 % of the largest, from the triangles of both sides."""
    a, b = (torch.linalg.qr(t.T.double())[1] for t in (left, right))
    values = torch.linalg.svdvals(a @ b.T)
    return int((values > 0.01 * values.max()).sum()) if len(values) else 0
