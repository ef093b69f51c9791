"""Names to models: ``tiny`` and its kin, ``smollm2-135m``, any local path or hub id.

``tiny``, ``tiny-bert`` and ``tiny-t5`` ship with the package. ``smollm2-135m`` and the optional
``minilm-l6`` are fetched once, see :mod:`workbench.fetch` and :mod:`workbench.minilm`. Everything
else goes to transformers unmodified; remote code is never run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from workbench import fetch, minilm
from workbench.errors import DataError, FetchError, OptionError, UnsupportedModelError, did_you_mean
from workbench.layouts import DECODER, ENCODER_CLASSIFIER, ENCODER_DECODER, find_layout
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.places import cache_dir, shipped

__all__ = ["MODELS", "folder_of", "load"]


def _tiny(name: str) -> Callable[[], Path]:
    return lambda: shipped("tiny") / name


#: Short names everyone has → function that returns a local folder.
MODELS: dict[str, Callable[[], Path]] = {
    "tiny": _tiny("model"),
    "tiny-bert": _tiny("bert"),
    "tiny-t5": _tiny("t5"),
    "smollm2-135m": lambda: fetch.smollm2_135m(cache_dir("models")),
    "minilm-l6": lambda: minilm.minilm_l6(cache_dir("models")),
}
#: Those that come without a head, which gets small random numbers: the same ones everywhere.
HEADLESS = ("minilm-l6",)

NO_SAFETENSORS = (
    "{name} has no weights as .safetensors. Workbench reads no pickled ones (.bin, .pt), which can "
    "run code: if you trust them, convert them once, "
    "AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder), and load the folder."
)

_AUTO_CLASSES = {
    DECODER: transformers.AutoModelForCausalLM,
    ENCODER_CLASSIFIER: transformers.AutoModelForSequenceClassification,
    ENCODER_DECODER: transformers.AutoModelForSeq2SeqLM,
}


def load(
    name: str | os.PathLike[str] | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    kind: str | None = None,
    labels: Sequence[str] = (),
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
) -> ModelView:
    """Load a model and open a view on it.

    Args:
        name: ``"tiny"``, ``"tiny-bert"``, ``"tiny-t5"``, ``"smollm2-135m"``, ``"minilm-l6"`` (an
            encoder: give its ``labels``; the head is untrained), a local folder, a hub id such as
            ``"gpt2-xl"``, or a transformers model that is loaded already (then give ``tokenizer``;
            it stays in its dtype and on its device).
        tokenizer: tokenizer or its name; by default the model's own.
        kind: ``decoder``, ``encoder_classifier`` or ``encoder_decoder``; inferred if None.
        labels: label names of a classifier; from the configuration if empty.
        dtype: None means float32 on a CPU and the checkpoint's own on an accelerator.
        device: None means an accelerator with float64 (CUDA), else the CPU; Apple's MPS has none.
        device_map: for models that span several devices, such as ``"auto"``.
        revision: of a hub id.

    Returns:
        A :class:`~workbench.model.ModelView` with an empty stack.

    Raises:
        FetchError: if the model is not here and cannot be fetched.
        DataError: if local files are damaged or incomplete.
        OptionError: for an unknown dtype, kind or device, or one of a model loaded already.
        UnsupportedModelError: if the family or the weights cannot be edited.

    Example:
        >>> view = wb.load("tiny")
    """
    if isinstance(name, PreTrainedModel):
        given = {"dtype": dtype, "device": device, "device_map": device_map, "revision": revision}
        _refuse_for_models(given)
        return _from_model(name, tokenizer, kind, labels)
    folder = folder_of(str(name))
    device = _device(device, device_map)
    dtype = _dtype(dtype, device)
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
        auto = _auto_class(config, kind)
        tok = tokenizer if tokenizer is not None else folder
        if isinstance(tok, str | Path):
            tok = _tokenizer(tok, revision=None if tokenizer else revision)
        with _no_report_of_heads(str(name)):
            model, info = auto.from_pretrained(
                folder,
                config=_with_labels(config, str(name), labels),
                revision=revision,
                trust_remote_code=False,  # left out, transformers would ask at the terminal
                use_safetensors=True,  # pickled weights can run code
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
            )
    except ImportError as err:  # device_map without accelerate, and the like
        raise OptionError(f"{_first_line(err)} Install what it names, then load again.") from err
    except (OSError, ValueError, KeyError, RuntimeError) as err:
        raise _explain(str(name), folder, err) from err
    except Exception as err:
        if type(err).__name__ != "SafetensorError":
            raise
        raise _explain(str(name), folder, err) from err
    absent = sorted(info["missing_keys"])
    if absent and str(name) in HEADLESS:
        _begin_head(model, absent)
    elif absent:  # transformers would go on with random numbers in their place
        raise DataError(
            f"the checkpoint of {str(name)!r} lacks {len(absent)} weights of a "
            f"{type(model).__name__} ({absent[0]}, ...): it is incomplete, or another class's."
        )
    if device is not None:
        model = model.to(device)
    found = getattr(config, "_commit_hash", None) or revision or fetch.origin(folder)
    return open_view(model, tok, name=str(name), kind=kind, labels=labels, revision=found)


def _with_labels(config: Any, name: str, labels: Sequence[str]) -> Any:
    """The configuration with as many classes as a model without a head shall have.

    Raises:
        OptionError: without labels.
    """
    if name not in HEADLESS:
        return config
    if not labels:
        raise OptionError(
            f"{name} has no head: say what it shall tell apart (labels=[...]), or train one with "
            "wb.finetune_classifier and load what it returns."
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    return config


@contextmanager
def _no_report_of_heads(name: str) -> Iterator[None]:
    """transformers warns of weights that a checkpoint lacks; where that is known, it need not."""
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level
    try:
        if name in HEADLESS:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(before)


@torch.no_grad()
def _begin_head(model: Any, names: Sequence[str]) -> None:
    """Small random numbers from a fixed seed in place of weights that a checkpoint lacks."""
    parameters = dict(model.named_parameters())
    for i, name in enumerate(names):
        shape = parameters[name].shape
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(i))
        parameters[name].copy_(drawn * 0.02 if len(shape) > 1 else torch.zeros(shape))


def _refuse_for_models(options: dict[str, Any]) -> None:
    """A model that is loaded already is edited as it is; nothing is ignored silently."""
    for option, value in options.items():
        if value is not None:
            raise OptionError(
                f"{option}={value!r}: the model is loaded already. Convert or move it first "
                "(model.to(...)), then load(model, tokenizer=...)."
            )


def _from_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | str | None,
    kind: str | None,
    labels: Sequence[str],
) -> ModelView:
    if isinstance(tokenizer, str):
        tokenizer = _tokenizer(tokenizer)
    if tokenizer is None:
        raise OptionError("a loaded model needs its tokenizer: load(model, tokenizer=...).")
    name = model.config.name_or_path or type(model).__name__
    return open_view(model, tokenizer, name=name, kind=kind, labels=labels)


def _tokenizer(name: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(  # type: ignore[no-any-return]
        name, revision=revision, trust_remote_code=False
    )


def folder_of(name: str) -> str:
    """The folder of a known name or a path; a hub id as it is.

    Raises:
        DataError: if there is no such folder, or it holds no model that can be read.
        FetchError: if a known model has to be fetched and cannot be.
    """
    if name in MODELS:
        return str(MODELS[name]())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{path} has no config.json: it is not a transformers model folder.")
        if not any(path.glob("*.safetensors")):
            raise DataError(NO_SAFETENSORS.format(name=path))
        return str(path)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path:
        raise DataError(f"there is no model folder at {path}: check the path.")
    return name


def _auto_class(config: Any, kind: str | None) -> Any:
    layout = find_layout(config.get_text_config(decoder=True).model_type)
    if kind is not None and kind not in _AUTO_CLASSES:
        raise OptionError(f"kind={kind!r} is unknown." + did_you_mean(kind, _AUTO_CLASSES))
    if kind is not None and kind != layout.kind:
        raise OptionError(f"kind={kind!r}: a {layout.family} model here is a {layout.kind}.")
    return _AUTO_CLASSES[layout.kind]


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device(device: torch.device | str | None, device_map: object) -> torch.device | None:
    """The device to load to; None leaves it to the device map."""
    if device_map is not None:
        if device is not None:
            raise OptionError("give either device or device_map, not both.")
        return None
    try:
        found = torch.device(device or _best_device())
        torch.empty(0, device=found, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as err:
        raise OptionError(
            f"device={str(device)!r} cannot be used here ({_first_line(err)}); solves need "
            "float64. Use 'cpu' or 'cuda'."
        ) from err
    return found


def _dtype(dtype: torch.dtype | str | None, device: torch.device | None) -> torch.dtype | str:
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            known = ("float32", "float16", "bfloat16", "float64", "auto")
            raise OptionError(f"dtype={dtype!r} is unknown." + did_you_mean(dtype, known))
        return found
    if dtype is not None:
        return dtype
    on_cpu = device.type == "cpu" if device else not torch.accelerator.is_available()
    return torch.float32 if on_cpu else "auto"


def _explain(name: str, folder: str, err: Exception) -> Exception:
    if isinstance(err, UnsupportedModelError | OptionError | DataError | FetchError):
        return err
    if "safetensors" in str(err) and "use_safetensors" in str(err):
        return DataError(NO_SAFETENSORS.format(name=name))
    if Path(folder).is_dir():
        return DataError(
            f"the files of {name!r} in {folder} are damaged or incomplete ({_first_line(err)}). "
            "Delete the folder and load again."
        )
    return FetchError(
        f"{name!r} is neither a known name ({', '.join(MODELS)}) nor a local folder, and could not "
        f"be had from the hub ({_first_line(err)})." + did_you_mean(name, MODELS) + " Without a "
        "network use wb.load('tiny') (`--model tiny`)."
    )


def _first_line(err: Exception) -> str:
    return str(err).strip().split("\n")[0][:200] or type(err).__name__
