"""The command line: ``workbench demo``, ``lab``, ``check``, ``edit``, ``score``, ``stats`` …

Imports are made inside the commands, so that ``--help`` answers at once. An error raised on purpose
becomes one sentence on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from workbench import places
from workbench.cli.arguments import EDITOR, LOADING, MODEL, SCORE, STREAM, SUMMARY, TRAIN, Argument
from workbench.cli.patch_arguments import PATCH_ARGUMENTS, PATCH_WORDS
from workbench.errors import OptionError, WorkbenchError, did_you_mean

__all__ = ["main"]

FIRST_NOTEBOOKS = ("notebooks/workbench.ipynb", "tutorials/01_your_first_edit.ipynb")
#: Folder that ``workbench lab`` makes outside a checkout.
COPIES = "workbench-notebooks"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: the words after ``workbench``; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    try:
        _require_command(parser, words[0])
        args, rest = parser.parse_known_args(words)
        if rest and not args.takes_more:
            raise OptionError(_unknown(args.parser, rest[0]))
        return int(args.run(args, rest))
    except WorkbenchError as err:
        print(f"workbench: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("workbench: stopped; nothing was left half-done.", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Reports mistakes as :class:`OptionError` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}. See `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="workbench",
        description="A workbench for model editing: ROME, MEMIT and their kin, with exact undo.",
        epilog="example: workbench demo --model tiny",
        allow_abbrev=False,
    )
    commands = _Commands(parser)
    demo = commands.add(
        "demo",
        _demo,
        "edit one fact, measure it, undo it, and write an HTML report",
        "workbench demo --model tiny --out report.html",
    )
    demo.add_argument(
        "--model",
        default="smollm2-135m",
        help="smollm2-135m (fetched once, 93 MB), tiny (offline), a folder or a hub id "
        "(default: %(default)s)",
    )
    demo.add_argument(
        "--out",
        default="workbench-report.html",
        metavar="FILE",
        help="the report (default: %(default)s)",
    )
    commands.add(
        "lab",
        _lab,
        "open JupyterLab on the workbench notebook; more options go to Jupyter",
        "workbench lab --port 8899 --no-browser",
        takes_more=True,
    )
    check = commands.add(
        "check",
        _check,
        "say what a model can do and which editors apply to it",
        "workbench check smollm2-135m",
    )
    check.add_argument("model", metavar="MODEL", help="a name, a folder or a hub id")
    run = commands.add(
        "run",
        _run,
        "run a notebook without a browser, with other parameters, and keep what it showed",
        "workbench run tutorials/01_your_first_edit.ipynb -p model=tiny --out first.ipynb",
    )
    run.add_argument("notebook", metavar="NOTEBOOK", help="a file that ends in .ipynb")
    run.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a new value for a name in the cell tagged parameters; may be repeated",
    )
    run.add_argument(
        "--out",
        metavar="FILE",
        help="the executed notebook (default: NAME.run.ipynb in the current folder)",
    )
    for name in THIN:
        _add_thin(commands, name)
    _add_patch(commands)
    return parser


#: command → (one line of help, example); what they do is in workbench.cli.commands
THIN = {
    "edit": (
        "compute one edit, show its effect, and save it",
        'workbench edit tiny --prompt "The profession of {} is" --subject "Klara Farnfeld" '
        "--target pilot --out edit.safetensors",
    ),
    "score": (
        "measure a model, with saved edits applied, on a data set",
        "workbench score tiny tiny --limit 20 --edit edit.safetensors",
    ),
    "stats": (
        "compute the key statistics of layers and keep them",
        "workbench stats smollm2-135m --layers 5 6 7 8 --corpus self",
    ),
    "stream": (
        "edit cases one batch after the other and measure on the way; start it again to continue",
        "workbench stream tiny tiny --limit 40 --batch-size 10 --out data/runs/memit",
    ),
    "train": (
        "train a learned editor (mend, ke, enn) for a model; start it again to continue",
        "workbench train mend --model tiny --data tiny --steps 150",
    ),
    "summary": (
        "summarize tables of scores: files or run folders",
        "workbench summary data/results/counterfact_smollm2-135m/ROME.csv",
    ),
}
ARGUMENTS: dict[str, tuple[Argument, ...]] = {
    "edit": (
        MODEL,
        ("--prompt", {"required": True, "help": "with one {} where the subject goes"}),
        ("--subject", {"help": "the entity; without it the prompt is literal"}),
        ("--target", {"required": True, "help": "what the model shall say"}),
        ("--true", {"help": "what it said before; shown beside the target"}),
        ("--editor", {"default": "ROME", "help": "an editor's name (default: %(default)s)"}),
        *EDITOR,
        *LOADING,
        ("--out", {"metavar": "FILE", "help": "save the edit here (.safetensors)"}),
    ),
    "score": SCORE,
    "stats": (
        MODEL,
        ("--layers", {"type": int, "nargs": "+", "required": True, "help": "such as 5 6 7"}),
        ("--corpus", {"default": "self", "help": "self, a path, or a hub id"}),
        ("--tokens", {"type": int, "help": "tokens to average"}),
        *LOADING,
    ),
    "stream": STREAM,
    "train": TRAIN,
    "summary": SUMMARY,
}


def _add_thin(commands: _Commands, name: str) -> None:
    text, example = THIN[name]
    parser = commands.add(name, _thin, text, example)
    for argument, options in ARGUMENTS[name]:
        parser.add_argument(argument, **options)  # type: ignore[arg-type]


def _add_patch(commands: _Commands) -> None:
    parser = commands.add(
        "patch",
        _patch,
        "edits as files: show, verify, apply, merge, export and compare them",
        "workbench patch show edit.safetensors",
    )
    words = _Commands(parser, dest="word")
    for name, (text, example) in PATCH_WORDS.items():
        made = words.add(name, _patch, text, example)
        for argument, options in PATCH_ARGUMENTS[name]:
            made.add_argument(argument, **options)  # type: ignore[arg-type]


class _Commands:
    """Adds commands that all look alike: one line of help and an example."""

    def __init__(self, parser: argparse.ArgumentParser, *, dest: str = "command") -> None:
        self.made = parser.add_subparsers(dest=dest, required=True, metavar=dest.upper())
        parser.set_defaults(takes_more=False)

    def add(
        self, name: str, run: object, text: str, example: str, *, takes_more: bool = False
    ) -> argparse.ArgumentParser:
        parser = self.made.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        parser.set_defaults(run=run, takes_more=takes_more, parser=parser)
        return parser


def _require_command(parser: argparse.ArgumentParser, word: str) -> None:
    known = _subparsers(parser)
    if not word.startswith("-") and word not in known:
        raise OptionError(f"there is no command {word!r}." + did_you_mean(word, known))


def _unknown(parser: argparse.ArgumentParser, word: str) -> str:
    known = [o for a in parser._actions for o in a.option_strings]
    return f"`{parser.prog}` has no option {word!r}." + did_you_mean(word, known)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


# -------------------------------------------------------------------- commands


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    _quiet()
    from workbench.demo import run_demo

    return 0 if run_demo(args.model, args.out).restored else 1


def _check(args: argparse.Namespace, rest: list[str]) -> int:
    _quiet()
    from workbench.editors import EDITORS
    from workbench.pretrained import load

    view = load(args.model)
    print(view.describe())
    for name in ("linear", "additive", "readout"):
        holds = getattr(view.capabilities, name)
        print(f"  {name:<14}{'yes' if holds else 'no: ' + view.capabilities.reasons[name]}")
    print("editors:")
    for name, editor in EDITORS.items():
        try:
            reason = editor.preset(view).unsupported(view)
        except WorkbenchError as err:
            reason = str(err)
        print(f"  {name:<14}{'yes' if reason is None else 'no: ' + reason}")
    return 0


def _thin(args: argparse.Namespace, rest: list[str]) -> int:
    _quiet()
    from workbench.cli.commands import run

    return run(args.command, args)


def _patch(args: argparse.Namespace, rest: list[str]) -> int:
    _quiet()
    from workbench.cli.patch_commands import run_patch

    return run_patch(args.word, args)


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from workbench.notebooks import parse_parameters, run_notebook

    parameters = parse_parameters(args.parameters)
    print(f"executed: {run_notebook(args.notebook, args.out, **parameters)}")
    return 0


def _lab(args: argparse.Namespace, rest: list[str]) -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        raise WorkbenchError(
            "JupyterLab is not installed: pip install 'workbench-editing[lab]', or use `./run lab` "
            "in a checkout."
        )
    top = _notebooks()
    first = next((top / n for n in FIRST_NOTEBOOKS if (top / n).is_file()), None)
    if first is None:
        raise WorkbenchError(f"there is no notebook under {top}: get the repository again.")
    where = f"/lab/tree/{first.relative_to(top).as_posix()}"  # the printed address opens it, too
    options = [f"--ServerApp.root_dir={top}", f"--LabApp.default_url={where}"]
    return _become([sys.executable, "-m", "jupyterlab", *options, *rest])


def _become(command: list[str]) -> int:
    """Run a command in place of this process, so that signals reach it and none is left behind."""
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(command[0], command)
    return subprocess.call(command)


def _notebooks() -> Path:
    """The folder that holds ``notebooks/`` and ``tutorials/``: the checkout, or fresh copies."""
    package = Path(places.__file__).parent
    if places.in_checkout():
        return package.parent
    copies = Path.cwd() / COPIES
    for name in ("notebooks", "tutorials"):
        for source in sorted((package / "data" / name).rglob("*.ipynb")):
            target = copies / name / source.relative_to(package / "data" / name)
            if not target.exists():  # a person's changes are never written over
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return copies


def _quiet() -> None:
    """No loading bars and no retry notes: the commands say what they do themselves."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
