"""Shared fixtures: tiny random models of every family, a small tokenizer, the named models.

Modules that write tensor shapes in their signatures (jaxtyping) have them checked at run time;
that is switched on here, under pytest alone (``shapes.py``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "workbench"


def _modules_with_shapes() -> list[str]:
    """Dotted names of the modules that import jaxtyping."""
    files = sorted(PACKAGE.rglob("*.py"))
    with_shapes = [f for f in files if "from jaxtyping import" in f.read_text(encoding="utf-8")]
    names = [f.relative_to(PACKAGE.parent).with_suffix("") for f in with_shapes]
    return [".".join(n.parts).removesuffix(".__init__") for n in names]


# before the first import of workbench: the hook works on imports
jaxtyping.install_import_hook(_modules_with_shapes(), "shapes.check")

import families  # noqa: E402
import torch  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402

from workbench.errors import FetchError  # noqa: E402
from workbench.model import ModelView  # noqa: E402
from workbench.opening import open_view  # noqa: E402
from workbench.places import shipped  # noqa: E402

if TYPE_CHECKING:
    ModelFactory = Callable[..., PreTrainedModel]
    ViewFactory = Callable[..., ModelView]


@pytest.fixture(scope="session", autouse=True)
def _threads() -> Iterator[None]:
    """Two threads, as in CI: sums, and with them the last bits, do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A fast byte-level BPE tokenizer of about 400 tokens; it adds no special tokens."""
    return families.build_tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> ModelFactory:
    """``make_model(family, dtype=torch.float32, seed=0)``: a fresh tiny random model."""

    def make(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        return families.build_model(family, len(tokenizer), dtype=dtype, seed=seed)

    return make


@pytest.fixture(scope="session")
def make_view(make_model: ModelFactory, tokenizer: PreTrainedTokenizerFast) -> ViewFactory:
    """``make_view(family, dtype=torch.float32, seed=0)``: a view on a fresh tiny random model."""

    def make(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> ModelView:
        model = make_model(family, dtype, seed)
        return open_view(model, tokenizer, name=f"random {family}")

    return make


@pytest.fixture
def tiny() -> ModelView:
    """A fresh view on the shipped ``tiny`` model."""
    from workbench.pretrained import load

    if not (shipped("tiny") / "model" / "config.json").is_file():
        pytest.skip("data/tiny/model is not in this checkout")
    return load("tiny", device="cpu")


@pytest.fixture(scope="session")
def _smollm2() -> ModelView:
    from workbench.pretrained import load

    try:
        return load("smollm2-135m", device="cpu")
    except FetchError as err:
        pytest.skip(f"smollm2-135m is not cached and cannot be fetched: {err}")


@pytest.fixture
def smollm2(_smollm2: ModelView) -> Iterator[ModelView]:
    """The default model, loaded once a session; its stack is emptied after every test."""
    yield _smollm2
    _smollm2.reset()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the public benchmark files; skips where there is none."""
    chosen = os.environ.get("WORKBENCH_TEST_DATA")
    folder = Path(chosen) if chosen else PACKAGE.parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no benchmark files at {folder}: set WORKBENCH_TEST_DATA")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """A test that uses the default model or benchmark files is ``real``, marked or not."""
    for item in items:
        if {"smollm2", "data_dir"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A click in the main thread waits for its job, as in a script: browser tests of the same
    process leave a loop running there, which would be taken for a page."""
    jobs = pytest.importorskip("workbench.widgets.jobs")
    plain = jobs._loop

    def loop() -> object:
        return None if threading.current_thread() is threading.main_thread() else plain()

    monkeypatch.setattr(jobs, "_loop", loop)


@pytest.fixture(autouse=True)
def _no_sessions_of_others(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session keeps goes to a folder of the test's own."""
    kept: list[Path] = []

    def folder(name: str) -> Path:
        if not kept:
            kept.append(tmp_path_factory.mktemp("kept"))
        return kept[0] / name

    monkeypatch.setattr("workbench.session.keeping.cache_dir", folder)
