"""Set before anything else is imported: offline, few threads, no display, caches in the checkout, and Triton's
interpreter without a GPU."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

gc.disable()  # torch, transformers and all tests are imported: there is no garbage yet, and looking for it takes seconds

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
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser that tests look with, where there is one."""


if not CUDA:
    # Triton reads it when a kernel is defined, so it must stand before the first kernel module is imported.
    assert not [name for name in sys.modules if name.startswith("attention_kernels.")], "a kernel was imported before conftest"
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(min(int(os.environ["OMP_NUM_THREADS"]), os.cpu_count() or 1))
    from tests.kernels.interpreter import make_cheap

    make_cheap()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the project, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=Path(__file__).resolve().parents[1], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def pytest_collection_finish() -> None:
    """Look for garbage from here on, and never among what was imported: a million objects that live as long as the process."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 10, 10)  # instead of 700: half of the time that it takes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` without a CUDA device, `browser` without a browser, and `slow` where -m doesn't name it."""
    skips = {
        "gpu": None if CUDA else pytest.mark.skip(reason="needs a CUDA device"),
        "browser": None if CHROMIUM and find_spec("playwright") else pytest.mark.skip(reason="needs Chromium and playwright"),
        "slow": None if "slow" in config.option.markexpr else pytest.mark.skip(reason="takes minutes: -m slow"),
    }
    for item in items:
        for name, skip in skips.items():
            if skip is not None and name in item.keywords:
                item.add_marker(skip)
