"""How a learned editor is trained, as data; the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import OptionError

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of training (MEND, arXiv 2110.11309, section 3.2 and appendix C).

    Args:
        lr: Adam's learning rate.
        rate_lr: the same for the learned step sizes.
        c_edit: weight of the edit's likelihood, asked in other words.
        c_local: weight of the divergence on unrelated texts.
        c_base: weight of the divergence of a changed base model from the original (ENN).
        batch: independent lessons of one optimizer step.
        together: of these, in one forward pass; less memory for a smaller number.
        n_edits: edits written at once in a lesson; an editor is for as many as it was trained with.
        n_local: unrelated texts of a lesson.
        clip: largest norm of a step's gradient; a step that is not finite is left out.
        whole_texts: a decoder's divergence counts at every token of an unrelated text, as
            published; else only in its answer, which is cheaper.
        validate_every: steps between validations; a checkpoint is written at each.
        validation: held-out lessons of a validation.
        validation_local: unrelated texts of each of them.
        patience: steps without a better validation after which training ends.
        evaluation: held-out lessons of the evaluation at the end.
    """

    lr: float = 3e-4
    rate_lr: float = 1e-3
    c_edit: float = 0.1
    c_local: float = 1.0
    c_base: float = 1.0
    batch: int = 10
    together: int = 10
    n_edits: int = 1
    n_local: int = 1
    clip: float = 100.0
    whole_texts: bool = True
    validate_every: int = 100
    validation: int = 40
    validation_local: int = 4
    patience: int = 20_000
    evaluation: int = 60

    def __post_init__(self) -> None:
        for name in ("lr", "clip", "batch", "together", "n_edits", "n_local", "validate_every"):
            if not getattr(self, name) > 0:
                raise OptionError(f"training: {name}={getattr(self, name)} must be above 0.")
        for name in ("validation", "validation_local", "patience", "evaluation"):
            if not getattr(self, name) > 0:
                raise OptionError(f"training: {name}={getattr(self, name)} must be above 0.")
        for name in ("rate_lr", "c_edit", "c_local", "c_base"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"training: {name}={getattr(self, name)} must not be negative.")
        if self.batch % self.together:
            raise OptionError(
                f"training: batch={self.batch} must be a multiple of together={self.together}."
            )
