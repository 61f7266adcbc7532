"""What the tests of measuring share: a toy model that answers in few tokens, loaded once, its samples made once, and one
finished run that tests begin from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from transformers import AutoTokenizer

from harness.__main__ import main
from harness.measure import sweep
from harness.report import figures

Command = Callable[..., int]
STOPS = 8
"""One token in so many ends an answer: random models would otherwise go on to the limit of their task."""


@pytest.fixture(scope="session")
def toy_folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model, with more tokens that end an answer."""
    folder = tmp_path_factory.mktemp("brief") / "toy"
    shutil.copytree(toy_folder, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    config["eos_token_id"] = list(range(1, len(AutoTokenizer.from_pretrained(folder)), STOPS))
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session", autouse=True)
def loaded_once() -> Iterator[None]:
    """One load of each model serves all tests of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "load_quietly", lru_cache(maxsize=2)(sweep.load_quietly))
        yield


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `.cache` of all commands: samples are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(command: Command, cache_folder: Path, tmp_path: Path) -> Command:
    """The command in this process, in a folder that is empty but for the samples that others have made. Where nothing is swept
    over, Hydra composes the settings once: the first time it would only look for a mode, and conf/ sets none."""
    (tmp_path / ".cache").symlink_to(cache_folder)

    def run(*arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            if "-m" not in arguments:
                patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
            return command(*arguments)

    return run


@pytest.fixture
def pictures() -> None:
    """Asked for by the tests that look at pictures: see `no_pictures`."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the leaderboard's pictures for tests alone that look at them; the others have no use for them."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(figures, "write_figures", lambda rows, folder: [])


@pytest.fixture(scope="session")
def finished_study(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study in which `toy` ran once: records, leaderboard, and pictures."""
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(toy_arguments(toy_folder)) == 0
    finally:
        os.chdir(before)
    return folder / "results" / "toy"


@pytest.fixture
def finished(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study where the next command finds it."""
    return Path(shutil.copytree(finished_study, tmp_path / "results" / "toy"))


@pytest.fixture
def toy(toy_folder: Path) -> list[str]:
    """The arguments of a short run on the toy model."""
    return toy_arguments(toy_folder)


def toy_arguments(folder: Path) -> list[str]:
    """The arguments of a short run on the toy model in a folder: dense and block_topk, two samples."""
    return [
        "model=hf",
        f"model.path={folder}",
        "model.name=toy",
        "model.chat_template=false",
        "device=cpu",
        "length=1024",
        "samples=2",
        "task=niah_single_1",
        "method=block_topk",
        "sparsity=0.5",
        "latency=false",
        "batch_tokens=1",
        "study=toy",
    ]
