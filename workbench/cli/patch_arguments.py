"""What the words after ``workbench patch`` are; :mod:`workbench.cli.patch_commands` runs them.

Free of torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

__all__ = ["PATCH_ARGUMENTS", "PATCH_WORDS"]

#: word → (one line of help, example)
PATCH_WORDS = {
    "show": (
        "say what a patch is: read from its manifest, without a model",
        "workbench patch show capitals.safetensors",
    ),
    "verify": (
        "check a patch: whole, and, against a model, of this base and still effective",
        "workbench patch verify capitals.safetensors --model smollm2-135m",
    ),
    "apply": (
        "write the edited model as a folder that plain transformers loads",
        "workbench patch apply capitals.safetensors --model smollm2-135m --out edited/",
    ),
    "merge": (
        "make one patch of several, or of some of their edits",
        "workbench patch merge mine.safetensors yours.safetensors --out ours.safetensors",
    ),
    "export": (
        "write a patch as a LoRA adapter that plain PEFT loads",
        "workbench patch export capitals.safetensors --model smollm2-135m --out adapter/",
    ),
    "diff": (
        "compare two models: which layers, ranks and tokens differ",
        "workbench patch diff base/ edited/",
    ),
}

_FILE: tuple[str, dict[str, object]] = (
    "patch",
    {"metavar": "PATCH", "help": "a file, a saved folder or a run"},
)
_MODEL: tuple[str, dict[str, object]] = (
    "--model",
    {"required": True, "metavar": "MODEL", "help": "a name, a folder or a hub id"},
)

PATCH_ARGUMENTS: dict[str, tuple[tuple[str, dict[str, object]], ...]] = {
    "show": (_FILE, ("--json", {"action": "store_true", "help": "the whole manifest as JSON"})),
    "verify": (
        _FILE,
        ("--model", {"metavar": "MODEL", "help": "also try it on this model"}),
    ),
    "apply": (
        _FILE,
        _MODEL,
        ("--out", {"required": True, "metavar": "FOLDER", "help": "the edited model"}),
    ),
    "merge": (
        ("patches", {"nargs": "+", "metavar": "PATCH", "help": "files, lowest edits first"}),
        ("--out", {"required": True, "metavar": "FILE", "help": "the merged patch"}),
        (
            "--keep",
            {
                "type": int,
                "nargs": "+",
                "metavar": "N",
                "help": "only these entries of the merged stack, in this order",
            },
        ),
        (
            "--drop",
            {
                "type": int,
                "nargs": "+",
                "default": [],
                "metavar": "N",
                "help": "all but these entries of the merged stack",
            },
        ),
    ),
    "export": (
        _FILE,
        _MODEL,
        ("--out", {"required": True, "metavar": "FOLDER", "help": "the adapter"}),
        ("--rank", {"type": int, "help": "cut dense changes to this rank; the loss is stated"}),
    ),
    "diff": (
        ("a", {"metavar": "A", "help": "a model: a name, a folder or a hub id"}),
        ("b", {"metavar": "B", "help": "another one, or a patch of A"}),
        ("--top", {"type": int, "default": 5, "help": "tokens shown each (default: 5)"}),
        ("--out", {"metavar": "FILE", "help": "save the table here (.csv)"}),
    ),
}
