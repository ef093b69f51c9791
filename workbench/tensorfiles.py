"""Safetensors files of unknown origin: nothing is believed, or made room for, unchecked.

The format (a length of eight bytes, a JSON header, the numbers) is that of
https://huggingface.co/docs/safetensors. It holds no code, unlike pickle. What remains is a header
that lies: about sizes, places, or the memory that it takes to read it. All of that is compared with
the length of the file first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.errors import DataError

__all__ = ["Header", "Place", "checksum", "header_of", "opened", "steadily", "tensors_of"]

T = TypeVar("T")

#: Names of dtypes in a header; files with others are refused.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
#: How often a file may be replaced while it is read.
REPLACED = 50
#: Longest header that is parsed; safetensors' own limit.
LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file.

    Attributes:
        dtype: a key of :data:`DTYPES`.
        shape: of the tensor.
        start, stop: bytes, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself, found to agree with its length.

    Attributes:
        path: the file.
        places: name → :class:`Place` of every tensor.
        metadata: the texts beside them.
    """

    path: Path
    places: Mapping[str, Place]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(p.stop - p.start for p in self.places.values())


def header_of(path: str | os.PathLike[str]) -> Header:
    """Read and check a header; no tensor is read.

    Raises:
        DataError: if there is no such file, or its header does not describe just what is in it.

    Example:
        >>> header_of("model.safetensors").places  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}: check the path.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise ValueError(f"it claims a header of {length:,} bytes in a file of {size:,}")
            content = json.loads(file.read(length).decode("utf-8"))
        return _checked(path, content, size - 8 - length)
    except (OSError, ValueError, RecursionError) as err:
        raise damaged(path, err) from err


def steadily(path: Path, read: Callable[[], T]) -> T:
    """Read a file that others may replace meanwhile; again, if it was replaced on the way.

    A file is replaced whole (:mod:`workbench.atomic`) but read in several steps, which can then be
    those of two files.

    Raises:
        DataError: from ``read``, if the file stayed what it was.
    """
    for _ in range(REPLACED):
        before = _identity(path)
        try:
            return read()
        except DataError:
            if _identity(path) == before:
                raise
    return read()


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def damaged(path: Path, err: object) -> DataError:
    """The sentence for a file that is not whole, or not what it says."""
    why = "its header is nested too deep" if isinstance(err, RecursionError) else err
    return DataError(f"{path} is truncated or damaged ({why}): get the file again.")


def tensors_of(header: Header, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a file, by default all of them, in memory of their own.

    Raises:
        DataError: if they are larger than this machine's memory, or the file changed meanwhile.
    """
    wanted = list(header.places) if names is None else list(names)
    need = sum(header.places[n].stop - header.places[n].start for n in wanted)
    memory = _memory()
    if memory is not None and need > memory:
        raise DataError(
            f"{header.path} holds {need:,} bytes of tensors and this machine has {memory:,} bytes "
            "of memory: nothing was read. No edit is that large; ask where the file comes from."
        )
    with opened(header) as handle:
        return {name: handle.get_tensor(name) for name in wanted}


@contextmanager
def opened(header: Header) -> Iterator[Any]:
    """The file, for reading one tensor after the other (``handle.get_tensor(name)``).

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with safe_open(header.path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError) as err:
        raise damaged(header.path, err) from err


def checksum(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


# ---------------------------------------------------------------------- a header that may lie


def _checked(path: Path, content: Any, room: int) -> Header:
    if not isinstance(content, dict):
        raise ValueError("its header is no table")
    metadata = content.pop("__metadata__", {})
    texts = metadata.items() if isinstance(metadata, dict) else [(0, 0)]
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in texts):
        raise ValueError("what stands beside its tensors is not text")
    places = {name: _place(name, entry, room) for name, entry in content.items()}
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            raise ValueError(f"tensor {name!r} begins at byte {place.start}, not at {end}")
        end = place.stop
    if end != room:
        raise ValueError(f"its header explains {end:,} of the {room:,} bytes that follow it")
    return Header(path, places, metadata)


def _place(name: str, entry: Any, room: int) -> Place:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        fits = dtype in DTYPES and all(_is_count(n) for n in (*shape, start, stop))
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"the entry of tensor {name!r} is no description of one") from err
    if not fits:
        raise ValueError(f"tensor {name!r} is {dtype!r} of shape {shape!r} at {start!r}")
    need = math.prod(shape) * DTYPES[dtype].itemsize
    if stop - start != need or stop > room:
        raise ValueError(
            f"tensor {name!r} of shape {tuple(shape)} needs {need:,} bytes at {start:,} to "
            f"{stop:,}, the file has {room:,}"
        )
    return Place(dtype, tuple(shape), start, stop)


def _is_count(n: object) -> bool:
    return type(n) is int and n >= 0


def _memory() -> int | None:
    """Bytes of this machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
