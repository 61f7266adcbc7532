"""The Python front door: docs/python.md runs as it stands, and what a notebook does shows in records and in the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import harness
from harness.models.loading import LoadedModel

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """Run the page's code in an empty folder. Return its names, what it printed, and the folder."""
    folder, names, printed = tmp_path_factory.mktemp("notebook"), {"__name__": "page"}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *values: printed.append(" ".join(map(str, values))))
        for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
            exec(compile(code, "docs/python.md", "exec"), names)
    return names, "\n".join(printed), folder


def test_the_page_runs_and_prints_what_it_shows(page: tuple[dict[str, Any], str, Path]) -> None:
    names, printed, _ = page
    assert "sparsity=1.5: must be at least 0 (keep every block) and below 1" in printed
    assert list(names["frame"].task) == ["niah_single_1", "vt", "avg"] * 2
    assert set(names["rows"].columns) >= {"method", "density", "accuracy", "accuracy_low", "accuracy_high"}
    assert all(abs(density - 0.2) < 0.01 for density in names["frame"].density[3:])
    assert printed.startswith("8 new tokens")


def test_records_name_the_command_that_measures_the_same(page: tuple[dict[str, Any], str, Path]) -> None:
    *_, folder = page
    (run,) = [
        json.loads(line) for line in (folder / "results" / "notebook" / "records" / "runs.jsonl").read_text().splitlines()
    ]
    assert run["command"] == (
        "python -m harness model=bundled model.path=bundled model.name=bundled model.chat_template=false device=cpu "
        "dtype=float32 method=block_topk 'task=[vt,niah_single_1]' study=notebook "
        "length=1024 samples=2 sparsity=0.8 latency=false"
    )


def test_what_is_recorded_is_not_measured_again(
    page: tuple[dict[str, Any], str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, _, folder = page
    monkeypatch.chdir(folder)
    loaded: LoadedModel = names["loaded"]
    monkeypatch.setattr(loaded.model, "forward", lambda *_, **__: pytest.fail("measured again"))
    frame = harness.evaluate(
        loaded, "block_topk", task=["vt", "niah_single_1"], length=1024, samples=2, sparsity=0.8, latency=False, checks=False
    )
    assert frame.equals(names["frame"])


def test_the_model_is_as_it_was_after_the_block(page: tuple[dict[str, Any], str, Path]) -> None:
    names, *_ = page
    loaded, ids = names["loaded"], names["ids"][:, :300]
    with torch.inference_mode():
        before = loaded.model(ids).logits
        with harness.attach(loaded, "streaming_llm", sparsity=0.5) as attached:
            inside = loaded.model(ids).logits
        after = loaded.model(ids).logits
    assert not torch.equal(before, inside) and torch.equal(before, after)
    assert len(attached.densities) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "xattention", "sparsity": 0.5}, "has no formula for sparsity=0.5: give calibration_prompts="),
        ({"method": "block_topk", "sparsity": 1.5}, "sparsity=1.5: must be at least 0"),
        ({"method": "block_topk", "knobs": {"lasst": 2}}, "unknown setting 'method.lasst'"),
        ({"method": "block_topk", "knobs": {"a.b": 2}}, "unknown setting 'method.a.b'"),
        ({"method": "block_topk", "knobs": {"name": "oracle"}}, "name is no knob of a method"),
        ({"method": "block_topk", "knobs": [2]}, "must be a dict of a knob's name and its value"),
        ({"method": 3}, "method=3: not known"),
        ({"method": "xattention", "sparsity": 0.5, "calibration_prompts": [[]]}, "at least two token ids each"),
        ({"method": "xattention", "sparsity": 0.5, "calibration_prompts": "text"}, "at least two token ids each"),
        ({"method": "dense", "decode": "quest", "decode_knobs": {"bugdet": 2}}, "unknown setting 'decode.bugdet'"),
    ],
)
def test_bad_input_is_one_line(page: tuple[dict[str, Any], str, Path], arguments: dict[str, Any], says: str) -> None:
    names, *_ = page
    with pytest.raises(harness.UserError) as caught, harness.attach(names["loaded"], **arguments):
        pass
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["device", "dtype", "model.name", "job.name", "experiment"])
def test_what_the_model_or_the_command_decides_is_refused(page: tuple[dict[str, Any], str, Path], setting: str) -> None:
    names, *_ = page
    with pytest.raises(harness.UserError, match=f"{setting}= can't be set here"):
        harness.evaluate(names["loaded"], "seer", **{setting: "x"})


def test_a_transformers_model_is_no_loaded_model(page: tuple[dict[str, Any], str, Path]) -> None:
    names, *_ = page
    with (
        pytest.raises(harness.UserError, match=r"give what harness\.load_model"),
        harness.attach(names["loaded"].model, "seer"),
    ):
        pass


def test_numbers_of_numpy_and_prompts_in_a_tensor_do(page: tuple[dict[str, Any], str, Path]) -> None:
    names, *_ = page
    arguments: dict[str, Any] = {"sparsity": np.float64(0.5), "block_size": np.int64(64)}
    with harness.attach(names["loaded"], "xattention", calibration_prompts=names["ids"][:, :600], **arguments) as attached:
        names["loaded"].model(names["ids"][:, :600])
    assert abs(attached.densities[0] - 0.5) < 0.1


def test_a_density_out_of_reach_is_warned_of(page: tuple[dict[str, Any], str, Path]) -> None:
    names, *_ = page
    prompt = [names["ids"][0, :200].tolist()]  # four blocks, of which a row's own is always kept
    with (
        pytest.warns(UserWarning, match=r"xattention: density 0\.05 is not reached, the nearest is 0\.\d+ at threshold="),
        harness.attach(names["loaded"], "xattention", sparsity=0.95, calibration_prompts=prompt),
    ):
        pass


def test_sparse_decoding_goes_through_generate(page: tuple[dict[str, Any], str, Path]) -> None:
    names, *_ = page
    with harness.attach(names["loaded"], "dense", decode="quest", decode_knobs={"budget": 64}) as attached:
        names["loaded"].model.generate(names["ids"], max_new_tokens=3, do_sample=False)
    assert any(kernel.startswith("sparse ") for kernel in attached.bridge.decode_kernels)


def test_a_study_without_records_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(harness.UserError, match="no records in"):
        harness.read_rows("nothing", tmp_path)


def test_importing_takes_no_torch() -> None:
    code = "import sys, harness; print([m for m in ('torch', 'transformers', 'pandas', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_lists_the_right_ones() -> None:
    with pytest.raises(AttributeError, match="it gives Attached, UserError, attach, evaluate, load_model, read_rows"):
        harness.atach  # noqa: B018
