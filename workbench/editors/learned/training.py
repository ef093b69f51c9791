"""Meta-training: one loop for MEND, KE and ENN.

Each step writes some lessons, each into a model of its own, asks for what was written in other
words and for what is unrelated, and improves the learner (arXiv 2110.11309, section 3.2; spec
memory-and-meta 4.4). Training is a function of its options, the lessons and the seed: stopped at
any moment and called again, it goes on from its last checkpoint and ends in the same file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.editors.learned.checkpoints import Progress, read_checkpoint, write_checkpoint
from workbench.editors.learned.files import Trained, file_name, read_trained, write_trained
from workbench.editors.learned.gradients import check_matrices
from workbench.editors.learned.learner import Learner
from workbench.editors.learned.lessons import Lesson, Lessons
from workbench.editors.learned.outcome import evaluate, outcome
from workbench.editors.learned.recipe import Recipe
from workbench.errors import DataError, NumericalError, OptionError, did_you_mean
from workbench.fingerprint import fingerprint_of
from workbench.model import ModelView
from workbench.places import cache_dir
from workbench.progress import Bar
from workbench.trace import frozen

if TYPE_CHECKING:
    from workbench.editors.learned.base import LearnedEditor

__all__ = ["train"]


@dataclass(frozen=True)
class Plan:
    """Everything that a training depends on."""

    view: ModelView
    editor: type[LearnedEditor]
    lessons: Lessons
    settings: Any
    recipe: Recipe
    steps: int
    seed: int
    preset: str

    @property
    def identity(self) -> str:
        """Hash of all of it but the number of steps."""
        return fingerprint_of(
            {
                "editor": self.editor.__name__,
                "base": self.view.fingerprint,
                "settings": asdict(self.settings),
                "recipe": asdict(self.recipe),
                "seed": self.seed,
                "lessons": self.lessons.digest,
            }
        )

    def batches(self, step: int) -> list[list[Lesson]]:
        """The lessons of a step, in parts that are run together."""
        r = self.recipe
        drawn = [
            self.lessons.draw(step * r.batch + i, n_edits=r.n_edits, n_local=r.n_local)
            for i in range(r.batch)
        ]
        return [drawn[i : i + r.together] for i in range(0, r.batch, r.together)]

    def held_out(self, n: int) -> list[Lesson]:
        """The first fixed lessons that training never sees."""
        r = self.recipe
        return self.lessons.validation(n, n_edits=r.n_edits, n_local=r.validation_local)


def train(
    editor: type[LearnedEditor],
    view: ModelView,
    lessons: Any,
    *,
    steps: int,
    out: str | Path | None = None,
    seed: int = 0,
    preset: str = "default",
    fresh: bool = False,
    **options: Any,
) -> Path:
    """Train an editor and write its file; goes on where an earlier call was stopped.

    Args:
        editor: the class.
        view: the model, without edits.
        lessons: what to learn from; cases become lessons with their paraphrases as other words.
        steps: optimizer steps at most.
        out: the file; None puts it where ``preset`` finds it.
        seed: of the learner's beginning (and of lessons made from cases).
        preset: ``default``, ``paper`` or ``repo``: options to start from.
        fresh: begin anew, and replace an older file.
        options: single fields of :class:`~workbench.editors.learned.recipe.Recipe` and of the
            editor's settings.

    Returns:
        The path of the file.

    Raises:
        OptionError: for an unknown option, a view with edits, or a file in the way.
        NumericalError: if every step of an interval was left out because it was not finite.
    """
    plan = _plan(editor, view, lessons, steps=steps, seed=seed, preset=preset, options=options)
    path = (
        Path(out)
        if out
        else cache_dir("editors") / file_name(editor.__name__, view.fingerprint, preset)
    )
    path, mark = path.expanduser(), path.expanduser().with_suffix(".checkpoint")
    if fresh:
        path.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
    if path.is_file():
        return _finished(plan, path, mark)
    with view.writing(f"training {editor.__name__}"), frozen(view.model):
        learner = _run(plan, mark)
    write_trained(path, learner)
    mark.unlink(missing_ok=True)
    return path


def _plan(
    editor: type[LearnedEditor],
    view: ModelView,
    lessons: Any,
    *,
    steps: int,
    seed: int,
    preset: str,
    options: Mapping[str, Any],
) -> Plan:
    name = editor.__name__
    if view.stack:
        raise OptionError(
            f"{name}.train: the view holds {len(view.stack)} edits; an editor is trained for a "
            "model as it came. Call view.reset() first."
        )
    if not isinstance(steps, int) or steps < 0:
        raise OptionError(f"{name}.train: steps={steps!r} must be a whole number, 0 or more.")
    if preset not in editor.presets:
        raise OptionError(
            f"{name}.train: preset {preset!r} is unknown." + did_you_mean(preset, editor.presets)
        )
    given = editor.usual(view) | editor.presets[preset][0] | dict(options)
    settings, recipe = _divided(editor, given)
    check_matrices(view, settings.matrices)
    if not isinstance(lessons, Lessons):
        lessons = Lessons.from_cases(list(lessons), seed=seed)
    return Plan(view, editor, lessons, settings, recipe, steps, seed, preset)


def _divided(editor: type[LearnedEditor], given: Mapping[str, Any]) -> tuple[Any, Recipe]:
    """Options of the recipe and of the settings apart."""
    of_recipe = {f.name for f in dataclasses.fields(Recipe)}
    of_settings = {f.name for f in dataclasses.fields(editor.settings_class)}
    for name in given:
        if name not in of_recipe | of_settings:
            raise OptionError(
                f"{editor.__name__}.train has no option {name!r}."
                + did_you_mean(name, of_recipe | of_settings)
            )
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return (
        editor.settings_class(**{k: v for k, v in settings.items() if k in of_settings}),
        Recipe(**{k: v for k, v in given.items() if k in of_recipe}),
    )


def _finished(plan: Plan, path: Path, mark: Path) -> Path:
    """The file of the same training that was completed before.

    Raises:
        OptionError: if the file is anything else.
    """
    try:
        done = read_trained(path)[0].training
    except DataError:
        done = {}
    if (done.get("identity"), done.get("steps")) == (plan.identity, plan.steps):
        mark.unlink(missing_ok=True)
        return path
    raise OptionError(
        f"out={str(path)!r} holds something else (another training, or other steps): choose "
        "another file, or replace it with fresh=True (--fresh)."
    )


def _run(plan: Plan, mark: Path) -> Trained:
    """Train, and evaluate the best state."""
    view, recipe = plan.view, plan.recipe
    dtype = torch.promote_types(view.dtype, torch.float32)
    learner = plan.editor.learner(view, plan.settings, seed=plan.seed).to(view.device)
    learner = learner.double() if dtype == torch.float64 else learner
    groups = [(learner.weights(), recipe.lr), (learner.rates(), recipe.rate_lr)]
    optimizer = torch.optim.Adam([{"params": p, "lr": lr} for p, lr in groups if p])
    kept = read_checkpoint(mark, plan.identity, learner, optimizer) if mark.is_file() else None
    progress = kept or Progress()
    with Bar(f"training {plan.editor.__name__}", plan.steps, start=progress.step) as bar:
        _steps(plan, learner, optimizer, progress, mark, bar)
    if progress.best_state:
        learner.load_state_dict(progress.best_state)
    learner.eval()
    numbers = _evaluation(plan, learner)
    return Trained(
        editor=plan.editor.__name__,
        base=view.fingerprint,
        model=view.name,
        settings=json.loads(json.dumps(asdict(plan.settings))),
        training=_record(plan, progress, numbers),
        tensors=learner.state_dict(),
    )


def _steps(
    plan: Plan,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    mark: Path,
    bar: Bar,
) -> None:
    """Optimizer steps until all are done, or validation has not been better for long."""
    sums: list[dict[str, float]] = []
    learner.train()
    while progress.step < plan.steps:
        sums.append(_step(plan, learner, optimizer, progress))
        progress.step += 1
        due = progress.step % plan.recipe.validate_every == 0
        if due or progress.step == plan.steps:
            _validate(plan, learner, progress, sums)
            sums = []
            write_checkpoint(mark, plan.identity, progress, learner.state_dict(), optimizer)
            latest = progress.history[-1]
            bar.note(f"success {latest['success']:.0%}, drawdown {latest['drawdown']:.1%}")
        bar.step()
        if progress.step - progress.best_step > plan.recipe.patience and progress.best_step >= 0:
            return


def _step(
    plan: Plan, learner: Learner, optimizer: torch.optim.Optimizer, progress: Progress
) -> dict[str, float]:
    """One optimizer step; the losses before it."""
    optimizer.zero_grad(set_to_none=True)
    batches = plan.batches(progress.step)
    losses = {"edit": 0.0, "local": 0.0, "base": 0.0}
    for batch in batches:
        found = outcome(plan.view, learner, batch, plan.recipe)
        (found.total(plan.recipe) / len(batches)).backward()
        for name in losses:
            losses[name] += float(getattr(found, name).detach()) / len(batches)
    norm = torch.nn.utils.clip_grad_norm_(list(learner.parameters()), plan.recipe.clip)
    if bool(torch.isfinite(norm)):
        optimizer.step()
    else:
        progress.skipped += 1
    return losses | {"norm": float(norm)}


def _validate(
    plan: Plan, learner: Learner, progress: Progress, sums: Sequence[Mapping[str, float]]
) -> None:
    """Add a row to the history; keep the state if it is the best."""
    finite = [s for s in sums if s["norm"] < float("inf")]
    if not finite:
        raise NumericalError(
            f"{plan.editor.__name__}.train: no step since the last validation was finite. Try a "
            "smaller lr or edit_lr."
        )
    means = {f"train_{k}": sum(s[k] for s in finite) / len(finite) for k in finite[0]}
    found = evaluate(plan.view, learner, plan.held_out(plan.recipe.validation), plan.recipe)
    progress.history.append({"step": progress.step} | means | found)
    if found["total"] < progress.best:
        progress.best, progress.best_step = found["total"], progress.step
        progress.best_state = {k: t.detach().clone() for k, t in learner.state_dict().items()}


def _evaluation(plan: Plan, learner: Learner) -> dict[str, float]:
    if not plan.steps:
        return {}  # nothing is known yet to standardize by
    return evaluate(plan.view, learner, plan.held_out(plan.recipe.evaluation), plan.recipe)


def _record(plan: Plan, progress: Progress, numbers: Mapping[str, float]) -> dict[str, Any]:
    """What the file says about its training."""
    return {
        "identity": plan.identity,
        "preset": plan.preset,
        "steps": plan.steps,
        "stopped_at": progress.step,
        "best_step": progress.best_step,
        "skipped": progress.skipped,
        "seed": plan.seed,
        "recipe": asdict(plan.recipe),
        "lessons": plan.lessons.digest,
        "note": dict(plan.lessons.note),
        "history": progress.history,
        "evaluation": dict(numbers),
    }
