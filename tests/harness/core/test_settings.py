"""Settings from a composed config: checked at once, with device and dtype as torch's own only where they are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from harness.core import conf_files
from harness.core.conf_files import conf_dir, conf_lines
from harness.core.errors import UserError
from harness.core.hydra_text import known_settings, unknown_setting
from harness.core.settings import Settings, read_settings


def settings_of(*arguments: str) -> Settings:
    """The settings of a command line."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return read_settings(compose("config", list(arguments)))


def test_device_and_dtype_are_resolved_late(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("device=cpu")
    assert (settings.device, settings.dtype) == (torch.device("cpu"), torch.float32)
    assert replace(settings, dtype_choice="bfloat16").dtype is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settings_of().device == torch.device("cpu")
    absent = settings_of("device=cuda:1")
    with pytest.raises(UserError, match=r"^device=cuda:1: torch finds no CUDA device here; use device=cpu or device=auto$"):
        _ = absent.device


def test_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = settings_of()
    assert (settings.device, settings.dtype) == (torch.device("cuda"), torch.bfloat16)
    assert settings_of("device=cuda:1", "dtype=float16").dtype is torch.float16
    with pytest.raises(UserError, match=r"^device=cuda:2: torch finds no such CUDA device here; it has cuda:0, cuda:1$"):
        _ = settings_of("device=cuda:2").device


def test_knobs_and_options_are_those_of_their_groups() -> None:
    settings = settings_of("job=kernel_speed", "decode=quest", "study=mine", "results=there", "batch_tokens=auto")
    assert (settings.job, settings.options["indices"]) == ("kernel_speed", ["uniform", "uniform_shared", "seer"])
    assert "name" not in settings.options | settings.method_knobs | settings.decode_knobs
    assert settings.decode_knobs["budget"] is None and settings.batch_tokens is None
    assert settings.folder == Path("there/mine")


def test_unknown_settings_name_those_of_their_level() -> None:
    assert known_settings("data.x") == ["data.dir", "data.haystack", "data.text_dir", "data.words"]
    assert {"model", "task", "length"} <= set(known_settings("x")) and "data.dir" not in known_settings("x")
    assert "model.released_gates.prefill" in known_settings("model.x")
    assert unknown_setting("job.probe_rows") == "unknown setting 'job.probe_rows' for this job; it belongs to pretrain"


def test_lines_of_a_file_are_its_settings_and_their_comments(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "# What it is.\nname: x\ndefaults:\n  - a: b\n\n"
        "a: [1, 2]  # one\n           # two\nb:\n  c: null # three\nhydra: {d: 1}\n"
    )
    lines = conf_lines(path)
    assert [(line.name, line.value, line.comment) for line in lines if line.name] == [
        ("name", "x", ""),
        ("a", "[1, 2]", "  # one"),
        ("b", "", ""),
        ("b.c", "null", " # three"),
    ]
    assert [line.text for line in lines if not line.name] == ["# What it is.", "", "           # two"]


def test_an_incomplete_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf_files, "PACKAGE", tmp_path / "harness")
    with pytest.raises(UserError, match=r"no conf/config\.yaml in .*: this installation is incomplete, reinstall"):
        conf_dir()
