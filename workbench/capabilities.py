"""What a loaded model can do, proved by running it once on a few tokens.

Three capabilities (design 1.3), each a statement about every block:

- ``linear``: value = W · key + b, where key and value are input and output of the edited matrix;
- ``additive``: what is added to the value reaches the block's output unscaled;
- ``readout``: logits = readout(output of the last block).

One forward of ``n_layers + 1`` short rows proves all three: row 0 is left alone, row ``l + 1`` is
disturbed at block ``l`` only, so its block output can be compared with row 0's at that block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.errors import NumericalError, UnsupportedModelError
from workbench.layouts import DECODER, ENCODER_DECODER, Layout

__all__ = [
    "Capabilities",
    "decoder_config",
    "get_module",
    "hooks",
    "prove",
    "readout",
    "refuse_unusable",
    "tensor_of",
]

N_TOKENS = 4
#: Relative error allowed in the proofs, by the size of a float's mantissa step.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


@dataclass(frozen=True)
class Capabilities:
    """Outcome of :func:`prove`; ``reasons`` has a sentence for each capability that is missing."""

    linear: bool
    additive: bool
    readout: bool
    reasons: dict[str, str] = field(default_factory=dict)


def get_module(model: nn.Module, path: str | None) -> nn.Module | None:
    """The submodule at ``path``, None where the path is None or leads to nothing."""
    node: Any = model
    for part in (path or "").split("."):
        node = getattr(node, part, None) if path else None
    return node if isinstance(node, nn.Module) else None


def decoder_config(model: nn.Module) -> Any:
    """The configuration of the part that writes text."""
    config: Any = model.config
    return config.get_text_config(decoder=True)


def tensor_of(output: Any) -> Tensor:
    """The hidden state of a block's output, which is a tensor or a tuple by family."""
    return output if isinstance(output, Tensor) else output[0]


def with_tensor(output: Any, hidden: Tensor) -> Any:
    """The same container with another hidden state."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


@contextmanager
def hooks(registering: Iterable[Any]) -> Iterator[None]:
    """Hooks for the length of the block; an interruption between two of them leaves none behind.

    Args:
        registering: registers one hook after another as it is iterated, and yields the handles.
    """
    handles = []
    try:
        for handle in registering:
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def refuse_unusable(model: nn.Module) -> None:
    """Refuse what no editor can work with: quantised, meta or integer weights.

    Raises:
        UnsupportedModelError: with the way out.
    """
    config = model.config
    if getattr(model, "is_quantized", False) or getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            "the model's weights are quantised and cannot be edited exactly: load it without "
            "quantisation (for GGUF files with GgufConfig(dequantize=True))."
        )
    for name, p in model.named_parameters():
        if p.device.type == "meta":
            raise UnsupportedModelError(
                f"parameter {name!r} is on the meta device (offloaded to disk?): load the model "
                "into memory, with device_map='auto' over several GPUs or a smaller dtype."
            )
        if not p.is_floating_point():
            raise UnsupportedModelError(
                f"parameter {name!r} has dtype {p.dtype}: weights must be floating point."
            )


def readout(model: nn.Module, layout: Layout, residual: Tensor) -> Tensor:
    """Logits from the last residual, through norm, projection, head and the family's scalings.

    Args:
        residual: ``[..., d_model]``, output of the last block.
    """
    config = decoder_config(model)
    for path in (layout.final_norm, layout.project_out):
        module = get_module(model, path)
        residual = residual if module is None else module(residual)
    logits = get_module(model, layout.head)(residual)  # type: ignore[misc]
    if layout.logit_divisor:
        logits = logits / getattr(config, layout.logit_divisor)
    if layout.logit_factor:
        logits = logits * getattr(config, layout.logit_factor)
    cap = getattr(config, layout.softcap, None) if layout.softcap else None
    return logits if cap is None else torch.tanh(logits / cap) * cap


def orient(module: nn.Module) -> Tensor:
    """The weight as (out, in), whatever the storage: Conv1D keeps its transpose."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight  # type: ignore[union-attr, return-value]


@dataclass
class _Seen:
    key: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)
    out: dict[int, Tensor] = field(default_factory=dict)
    noise: dict[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def prove(model: nn.Module, layout: Layout, n_layers: int) -> Capabilities:
    """Run the model once on a few tokens and check the three capabilities at every block.

    Raises:
        NumericalError: if the model answers with NaN or Inf.
        UnsupportedModelError: if the layout's modules are not where the row says.
    """
    _require_modules(model, layout)
    seen = _Seen()
    with hooks(_watch(model, layout, n_layers, seen)):
        logits = _forward(model, layout, n_layers + 1)
    if not bool(logits.isfinite().all()):
        raise NumericalError(
            "the model answers with NaN or Inf on plain tokens: its weights are damaged or do not "
            "fit the dtype; try dtype=torch.float32 or load the checkpoint again."
        )
    tol = TOLERANCE.get(logits.dtype, 2e-3)
    reasons = {
        "linear": _first_failure(_linear_errors(model, layout, seen), tol),
        "additive": _first_failure(_additive_errors(seen), tol),
        "readout": _readout_failure(model, layout, seen, logits, tol),
    }
    missing = {k: v for k, v in reasons.items() if v}
    if "additive" in missing and layout.note:
        missing["additive"] = layout.note
    return Capabilities(
        linear="linear" not in missing,
        additive="additive" not in missing,
        readout="readout" not in missing,
        reasons=missing,
    )


def _require_modules(model: nn.Module, layout: Layout) -> None:
    paths = (layout.base, layout.blocks, layout.value_path(0), layout.head)
    absent = [p for p in paths if get_module(model, p) is None]
    if absent:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {absent[0]!r}, which the row for family "
            f"{layout.family!r} names. Load the language-model class of the family, or mend the "
            "row in workbench/layouts.py."
        )


def _watch(model: nn.Module, layout: Layout, n_layers: int, seen: _Seen) -> Iterator[Any]:
    for layer in range(n_layers):
        value = get_module(model, layout.value_path(layer))
        block = get_module(model, layout.block(layer))
        assert value is not None and block is not None
        yield value.register_forward_hook(_disturb(layer, seen))
        yield block.register_forward_hook(_record(layer, seen))


def _disturb(layer: int, seen: _Seen) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        rows = out.view(-1, N_TOKENS, out.shape[-1])  # OPT flattens batch and position
        seen.key[layer] = args[0].reshape(rows.shape[0], N_TOKENS, -1)[0].double()
        seen.value[layer] = rows[0].double().clone()
        generator = torch.Generator().manual_seed(layer)
        noise = torch.randn(out.shape[-1], generator=generator).to(out.device, out.dtype)
        noise = noise * rows[0, -1].double().square().mean().sqrt().clamp_min(1e-3).to(out.dtype)
        seen.noise[layer] = noise.double()
        rows = rows.clone()
        rows[layer + 1, -1] += noise
        return rows.view(out.shape)

    return hook


def _record(layer: int, seen: _Seen) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        hidden = tensor_of(out)
        seen.out[layer] = torch.stack([hidden[0], hidden[layer + 1]]).detach()

    return hook


def _forward(model: nn.Module, layout: Layout, rows: int) -> Tensor:
    vocab = decoder_config(model).vocab_size
    ids = torch.arange(5, 5 + N_TOKENS) % vocab
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    batch = ids.to(device).expand(rows, -1).contiguous()
    kwargs = {"decoder_input_ids": batch} if layout.kind == ENCODER_DECODER else {}
    if layout.kind == DECODER:
        kwargs["use_cache"] = False  # type: ignore[assignment]
    return model(input_ids=batch, attention_mask=torch.ones_like(batch), **kwargs).logits


def _relative(error: Tensor, scale: Tensor) -> float:
    return float(error.norm() / scale.norm().clamp_min(1e-30))


def _linear_errors(model: nn.Module, layout: Layout, seen: _Seen) -> Iterator[tuple[int, float]]:
    for layer, key in seen.key.items():
        module = get_module(model, layout.value_path(layer))
        assert module is not None
        predicted = key.to(torch.float64) @ orient(module).T.to(key.device, torch.float64)
        if module.bias is not None:
            predicted = predicted + module.bias.to(key.device, torch.float64)  # type: ignore[operator]
        yield layer, _relative(predicted - seen.value[layer], predicted)


def _additive_errors(seen: _Seen) -> Iterator[tuple[int, float]]:
    for layer, noise in seen.noise.items():
        clean, disturbed = seen.out[layer][:, -1].double()
        # a half-precision residual rounds the noise away: measure against what could be kept
        step = torch.finfo(seen.out[layer].dtype).eps * clean.norm()
        error = (disturbed - clean - noise.to(clean.device)).norm()
        yield layer, float((error - 2 * step).clamp_min(0) / noise.norm())


def _readout_failure(
    model: nn.Module, layout: Layout, seen: _Seen, logits: Tensor, tol: float
) -> str:
    if layout.kind != DECODER:
        return layout.note
    last = seen.out[max(seen.out)][0]
    found = readout(model, layout, last).to(logits.device).double()
    error = _relative(found - logits[0].double(), logits[0].double())
    return "" if error <= tol else f"norm and head give other logits (relative error {error:.1e})"


def _first_failure(errors: Iterator[tuple[int, float]], tol: float) -> str:
    for layer, error in errors:
        if not error <= tol:
            return f"does not hold at layer {layer} (relative error {error:.1e})"
    return ""
