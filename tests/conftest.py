"""Set before anything else is imported: offline, few threads, no display, caches in the checkout, and Triton's
interpreter without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

CACHE = Path(__file__).resolve().parents[1] / ".cache"
for _variable, _folder in (("MPLCONFIGDIR", "matplotlib"), ("HF_HOME", "huggingface"), ("TRITON_CACHE_DIR", "triton")):
    os.environ.setdefault(_variable, str(CACHE / _folder))

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[_switch] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

CUDA = torch.cuda.is_available()


def _keep_the_language_patched() -> None:
    """Make Triton's interpreter patch `triton.language` once, for good.

    It patches the language anew at every launch and at every call of one @triton.jit function by another, by looking
    through all its members, which is a third of the time that these tests take. Nothing needs the unpatched language here.
    A release whose interpreter works otherwise is left as it is, and is slower.
    """
    try:
        from triton.runtime import interpreter

        patch, scope = interpreter._patch_lang, interpreter._LangPatchScope
        patch(SimpleNamespace(__globals__={"tl": interpreter.tl, "core": interpreter.tl.core}))
    except (ImportError, AttributeError):
        return
    interpreter._patch_lang = lambda function: scope()  # has nothing to restore


if not CUDA:
    # Triton reads it when a kernel is defined, so it must stand before the first kernel module is imported.
    assert not [name for name in sys.modules if name.startswith("attention_kernels.")], "a kernel was imported before conftest"
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(min(int(os.environ["OMP_NUM_THREADS"]), os.cpu_count() or 1))
    _keep_the_language_patched()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the project, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=Path(__file__).resolve().parents[1], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    if CUDA:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
