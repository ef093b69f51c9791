"""What every learned editor is to its trainer: a network that rewrites gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Parameter

from workbench.capabilities import orient
from workbench.editors.learned.gradients import Factors, Gradients
from workbench.editors.learned.texts import Texts
from workbench.model import ModelView

__all__ = ["Learner", "Rewrite", "sizes"]


@dataclass(frozen=True)
class Rewrite:
    """What a learner made of a batch of lessons.

    Attributes:
        factors: matrix → the change of each lesson, in float32 or wider.
        gradients: what it was made of, and the logits of the unedited model.
    """

    factors: Mapping[str, Factors]
    gradients: Gradients


class Learner(nn.Module, ABC):
    """Computes changes of matrices; all that is trained are its own parameters.

    Attributes:
        matrices: names of the edited parameters; their order is that of :attr:`rates`.
    """

    matrices: tuple[str, ...]

    @abstractmethod
    def rewrite(
        self, view: ModelView, texts: Texts, *, n_lessons: int, edited: Tensor | None = None
    ) -> Rewrite:
        """The change that each lesson's edits make; differentiable while training.

        Args:
            view: the model; it is only read.
            texts: rows of ``n_lessons`` lessons, as many for each.
            n_lessons: how many lessons.
            edited: ``[rows]`` which of them are written; None means all.
        """

    @abstractmethod
    def rates(self) -> list[Parameter]:
        """Learned step sizes, which have a learning rate of their own."""

    def values(self, view: ModelView) -> dict[str, Tensor]:
        """Parameters of the base model that this learner changes; none for most."""
        return {}

    def weights(self) -> list[Parameter]:
        """All trained parameters that are no step sizes."""
        own = {id(p) for p in self.rates()}
        return [p for p in self.parameters() if id(p) not in own]


def sizes(view: ModelView, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Matrix → (d_in, d_out)."""
    return {n: (s[1], s[0]) for n in names for s in [tuple(orient(view.module_of(n)).shape)]}
