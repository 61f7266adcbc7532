"""The project beside Hugging Face's `kernels`, whose import name is that of the folder kernels/: with that package and
without it, from a checkout that is not installed, from an editable install and from a wheel, whichever comes first.

transformers imports that package where a distribution of the name is there in the range of versions that it takes. A stand-in
plays it, with the names that transformers imports, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

STAND_IN = '''
"""What transformers imports of the package; `layers` lists the layers that it offered to replace."""
layers = []

def use_kernel_forward_from_hub(name):
    layers.append(name)
    return lambda cls: cls

def use_kernelized_func(*functions):
    return lambda cls: cls

class _Unused:
    pass

CUDAProperties = Device = KernelizeFallback = LayerRepository = LocalLayerRepository = Mode = ROCMProperties = _Unused
FuncRepository = LocalFuncRepository = _Unused
get_kernel = kernelize = register_kernel_mapping = replace_kernel_forward_from_hub = use_kernel_mapping = _Unused
use_kernel_func_from_hub = use_kernel_forward_from_hub
'''

# Runs every case in a process of its own, forked from one that has imported torch, as importing it is most of the time; what
# must differ from case to case (transformers, the project and `kernels`) is imported after the fork. The cases that only move
# a folder on the path stop before transformers: it sees no more of them than what is imported and which version is there.
# Nobody looks for garbage among what is imported, which takes as long as a sixth of it.
PROBE = """
import gc
gc.disable()
import importlib.metadata, json, os, sys, traceback
import huggingface_hub.dataclasses, jinja2, safetensors.torch, tokenizers, torch, torch._dynamo, torch.distributed.tensor
import accelerate, huggingface_hub.file_download, regex, scipy.optimize, scipy.spatial, torch.distributed.checkpoint, yaml
import antlr4, huggingface_hub.hf_api, omegaconf, PIL.Image, torch.distributed.fsdp

def places():
    import harness, methods  # first: they put `attention_kernels` on the path in a checkout
    import attention_kernels, kernels

    files = {module.__name__: getattr(module, "__file__", None) for module in (harness, methods, attention_kernels, kernels)}
    return {**files, "versions": [release.version for release in importlib.metadata.distributions(name="kernels")]}

def run_model():
    import harness, methods
    from harness.models.bridge import Bridge
    from harness.models.loading import ModelConfig, load_model
    from transformers.utils.import_utils import is_kernels_available

    loaded = load_model(ModelConfig("bundled", "bundled", torch.float32, "cpu"))
    method = methods.build("streaming_llm", block_size=16, sparsity=0.5)
    with torch.no_grad(), Bridge(loaded, method) as bridge:
        logits = loaded.model(torch.arange(200)[None] % 100).logits
    import kernels

    return {
        "available": is_kernels_available(),
        "layers": getattr(kernels, "layers", []),
        "density": bridge.stats()[0]["density"],
        "finite": bool(torch.isfinite(logits).all()),
    }

third_party = [path for path in sys.path if path and path not in json.loads(sys.argv[1])]
late = {"transformers", "kernels", "attention_kernels", "harness", "methods"}
early = {name.partition(".")[0] for name in sys.modules} & late
assert not early, f"imported before the fork: {early}"
for case in json.loads(sys.argv[2]):
    if os.fork() == 0:
        try:
            os.chdir(case["cwd"])
            sys.path[:] = [*case["before"], *third_party, *case["behind"]]
            answer = {**(run_model() if case["runs"] else {}), **places()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with open(case["answer"], "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.wait()
"""


@dataclass(frozen=True)
class Case:
    """How the project is there and where the stand-in lies on the path: before it, behind it, or nowhere; runs: a model too."""

    project: str
    stand_in: str
    runs: bool = False


CASES = [
    Case("checkout", "nowhere", runs=True),
    Case("checkout", "behind", runs=True),  # as `python -m harness` in a checkout: the working directory comes first
    Case("checkout", "before"),
    Case("editable", "nowhere"),
    Case("editable", "before"),  # what an editable install puts on the path always comes last
    Case("wheel", "behind"),
    Case("wheel", "before", runs=True),
]


def hub_version() -> str:
    """The oldest release of Hugging Face's package that the installed transformers takes."""
    spec = find_spec("transformers")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "utils" / "import_utils.py").read_text()
    (version,) = re.findall(r'^KERNELS_MIN_VERSION = "(.+)"$', text, re.MULTILINE)
    return str(version)


@pytest.fixture(scope="module")
def folders(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stand-in, a checkout, the unpacked wheel and an empty folder."""
    work = tmp_path_factory.mktemp("hub_kernels")
    stand_in, checkout, site, empty = (work / name for name in ("stand_in", "checkout", "site", "empty"))
    information = stand_in / f"kernels-{hub_version()}.dist-info"
    for folder in (stand_in / "kernels", information, empty):
        folder.mkdir(parents=True)
    (stand_in / "kernels" / "__init__.py").write_text(STAND_IN)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {hub_version()}\n")
    for package in ("harness", "methods", "kernels", "conf"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    (checkout / "harness" / "bundled").symlink_to(ROOT / "harness" / "bundled")
    zipfile.ZipFile(wheel).extractall(site)
    return {"stand_in": stand_in, "checkout": checkout, "editable": checkout, "wheel": site, "empty": empty}


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Case, dict[str, Any]]:
    """What each case answers."""
    work = tmp_path_factory.mktemp("answers")
    told = []
    for i, case in enumerate(CASES):
        stand_in = {side: [str(folders["stand_in"])] if case.stand_in == side else [] for side in ("before", "behind")}
        project = str(folders[case.project])
        told.append({"cwd": project if case.project == "checkout" else str(folders["empty"]), "runs": case.runs})
        if case.project == "editable":  # the two folders that its .pth file names
            told[i] |= {"before": stand_in["before"], "behind": [project, str(folders["checkout"] / "kernels")]}
        else:
            told[i] |= {"before": [*stand_in["before"], project, *stand_in["behind"]], "behind": []}
        told[i]["answer"] = str(work / f"{i}.json")
    installed = [str(ROOT), str(ROOT / "kernels")]  # the project itself, where the tests run from an editable install
    command = [sys.executable, "-c", PROBE, json.dumps(installed), json.dumps(told)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    subprocess.run(command, cwd=folders["empty"], env=environment, check=True)
    return {case: json.loads((work / f"{i}.json").read_text()) for i, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_packages_are_found(answers: dict[Case, dict[str, Any]], folders: dict[str, Path], case: Case) -> None:
    """Each import name leads to its own package. Without the stand-in `kernels` is the folder, a package without a file."""
    answer, project = answers[case], folders[case.project]
    assert "error" not in answer, answer["error"]
    assert answer["harness"] == str(project / "harness" / "__init__.py")
    assert answer["methods"] == str(project / "methods" / "__init__.py")
    parent = project if case.project == "wheel" else project / "kernels"
    assert answer["attention_kernels"] == str(parent / "attention_kernels" / "__init__.py")
    is_there = case.stand_in != "nowhere"
    assert answer["kernels"] == (str(folders["stand_in"] / "kernels" / "__init__.py") if is_there else None)
    assert answer["versions"] == ([hub_version()] if is_there else [])


@pytest.mark.parametrize("case", [case for case in CASES if case.runs], ids=str)
def test_models_run(answers: dict[Case, dict[str, Any]], case: Case) -> None:
    """transformers takes the stand-in where it is there, takes the folder for nothing, and a sparse model runs in any case."""
    answer = answers[case]
    assert "error" not in answer, answer["error"]
    assert answer["available"] == (case.stand_in != "nowhere")
    assert bool(answer["layers"]) == answer["available"]
    assert answer["finite"] and answer["density"] == pytest.approx(0.5, abs=0.1)


def test_the_folder_is_no_package() -> None:
    """With an __init__.py it would be one, and hide Hugging Face's from transformers."""
    assert [path.name for path in (ROOT / "kernels").iterdir() if path.name != "__pycache__"] == ["attention_kernels"]
