"""What is said of an arm before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.arms.build import build_arms
from harness.arms.warnings import arm_warnings
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.models.loading import LoadedModel, ModelConfig, load_model
from tests.harness.settings import composed

Command = Callable[..., int]
SHORT = ("samples=1", "block_size=16", "report=false", "length=512")


@pytest.fixture(scope="module")
def loaded(toy_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name="toy", path=str(toy_folder), dtype=torch.float32, device="cpu"))


@pytest.fixture
def settings(toy_folder: Path) -> Settings:
    """Those of the toy model, sparsity 0.5 in blocks of 16."""
    model = {"name": "toy", "path": str(toy_folder), "chat_template": False}
    job = composed("device=cpu", "sparsity=0.5", "length=1024", "block_size=16", "method=block_topk")
    return replace(job, model=model)


def said(settings: Settings, loaded: LoadedModel) -> list[str]:
    """What is said of the sparse arm; nothing of the baseline."""
    baseline, arm = build_arms(settings, loaded)
    assert not arm_warnings(baseline, settings.model, loaded)
    return arm_warnings(arm, settings.model, loaded)


def test_the_command_says_what_is_missing_and_not_once_it_is_there(
    command: Command, toy: list[str], brief_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*toy, *SHORT, "method=minference"]
    assert command(*run, "job=kept_mass") == 0
    out = capsys.readouterr().out
    assert out.count("is not there, so toy's heads count as not searched") == 1 and str(brief_folder) in out
    assert f"job=search_heads method=minference model=hf model.path={brief_folder}`" in out
    assert command(*run, "job=search_heads", f"job.out={tmp_path / 'searched'}", "job.prompts=1") == 0
    capsys.readouterr()
    assert command(*run, f"model.gates={tmp_path / 'searched'}", "study=searched", "job=kept_mass") == 0
    assert "not there" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["minference", "kascade"])
def test_a_method_that_goes_without_its_search_says_so(
    name: str, settings: Settings, loaded: LoadedModel, toy_folder: Path
) -> None:
    (line,) = said(replace(settings, method=name, method_knobs={}), loaded)
    assert "is not there, so toy's heads count as not searched" in line and str(toy_folder) in line
    assert f"`python -m harness job=search_heads method={name} model=hf model.path={toy_folder}`" in line


def test_a_search_that_is_there_is_no_news(
    command: Command, toy: list[str], tmp_path: Path, settings: Settings, loaded: LoadedModel
) -> None:
    search = ("job=search_heads", "method=kascade", f"job.out={tmp_path}", "job.prompts=1")
    assert command(*toy, *SHORT, *search) == 0
    searched = replace(settings, method="kascade", method_knobs={}, model=settings.model | {"gates": str(tmp_path)})
    assert not said(searched, loaded)


def test_a_fallback_that_was_asked_for_is_no_news(settings: Settings, loaded: LoadedModel) -> None:
    assert not said(replace(settings, method="minference", method_knobs={"patterns": "fallback"}), loaded)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sparsity": 0.95, "block_size": 64}, "density 0.05 is out of reach at 1024 tokens in blocks of 64: every row"),
        ({"sparsity": 0.95, "block_size": 16}, None),
        ({"sparsity": 0.5, "block_size": 64}, None),
    ],
)
def test_a_sparsity_out_of_reach_is_told(
    change: dict[str, Any], text: str | None, settings: Settings, loaded: LoadedModel
) -> None:
    lines = said(replace(settings, **change), loaded)
    assert not lines if text is None else len(lines) == 1 and text in lines[0]


def test_a_missing_file_says_where_to_look(settings: Settings, loaded: LoadedModel) -> None:
    with pytest.raises(UserError) as caught:
        build_arms(replace(settings, method="seer", method_knobs={}, block_size=64), loaded)
    assert "gates-64.safetensors is missing; name the folder that has them (model.gates=FOLDER), or train" in str(caught.value)
    with pytest.raises(UserError) as caught:
        build_arms(replace(settings, method="duo_attention", method_knobs={}), loaded)
    assert "heads.json is missing; name the folder that has it (model.gates=FOLDER), or search" in str(caught.value)


def test_rope_in_another_dtype_than_the_model_is_in_the_identity(
    settings: Settings, loaded: LoadedModel, toy_folder: Path
) -> None:
    """Earlier versions rounded its frequencies to 16 bits: their rows and those of today are not of one arm."""
    model = load_model(ModelConfig(name="toy", path=str(toy_folder), dtype=torch.bfloat16, device="cpu"))
    assert [arm.identity.as_dict().get("rope_dtype") for arm in build_arms(settings, model)] == ["float32", "float32"]
    assert all("rope_dtype" not in arm.identity.as_dict() for arm in build_arms(settings, loaded))
