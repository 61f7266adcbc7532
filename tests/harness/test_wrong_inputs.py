"""A hundred wrong inputs, one a row: each ends in one line and exit code 2 before a model is loaded, and leaves nothing behind.

The configs of conf/ are composed once for each choice of groups, and the rows set their values as Hydra would: what composing
itself refuses has its tests in jobs/test_cli.py.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.__main__ import main
from harness.core.conf_files import conf_dir, groups
from harness.measure import sweep

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "n" * 300
FILES: dict[str, str | bytes] = {
    "words.txt": b"\xff\xfe\x00",
    "words.json": '{"a": 5}',
    "deep.json": DEEP,
    "list.json": "[1, 2]",
    "text.json": '{"text": 5}',
    "prose.txt": "three words only",
    "texts/a.txt": "a book",
    "folders/b.txt/c.txt": "a folder with a file's name",
    "squad/squad.json": DEEP,
    "squad2/squad.json": '{"data": [1]}',
    "squad3/squad.json/x": "",
    "longbench/qasper.jsonl": "[" * 50_000 + "\n",
    "longbench2/qasper.jsonl": '{"input": 1}\n',
    "zip.zip": "no archive",
    "list/config.json": "[]",
    "deep/config.json": DEEP,
    "word/config.json": "word",
    "folder/config.json/x": "",
    "results/taken/leaderboard.csv/x": "",
    "results/taken2/records": "a file",
    "results/taken3/records/samples.jsonl/x": "",
}
"""Files of the user's; what they hold is wrong in one way each."""
MODELS = ("list", "deep", "word", "folder")
"""Folders of FILES that have weights too."""

# arguments, and the words that the line must hold
ROWS: list[tuple[str, str]] = [
    # values of the wrong type or out of range
    ("length=null", "length=None: must be a whole number"),
    ("length=1.5", "length=1.5: must be a whole number"),
    ("length=-1", "length=-1: must be a whole number of at least 1"),
    ("length=100000000000000000000", "at most 1000000000"),
    ("length=[4096]", "length=[4096]: must be a whole number"),
    ("samples=0", "samples=0: must be a whole number of at least 1"),
    ("samples=100000000000000000000", "at most 1000000"),
    ("samples=true", "samples=True: must be a whole number"),
    ("seed=-1", "seed=-1: must be a whole number of at least 0"),
    ("seed=99999999999", "at most 4294967295"),
    ("sparsity=nan", "sparsity=nan: must be at least 0"),
    ("sparsity=inf", "sparsity=inf: must be at least 0"),
    ("sparsity=[0.5]", "sparsity=[0.5]: must be at least 0"),
    ("margin=nan", "margin=nan: must be a share of the accuracy"),
    ("latency_seconds=inf", "latency_seconds=inf: must be a number of seconds"),
    ("latency_repeats=x", "latency_repeats=x: must be a whole number"),
    ("batch_tokens=null", "batch_tokens=None: must be a whole number"),
    ("block_size=null", "block_size=None: must be a whole number"),
    ("block_size=24 method=block_topk", "block_size=24: must be a multiple of 16"),
    ("latency=5", "latency=5: must be true or false"),
    ("progress=null", "progress=None: must be true or false"),
    ("checks=[]", "checks=[]: must be true or false"),
    ("device=meta", "device=meta: must be auto, cpu, cuda"),
    ("device=null", "device=None: must be auto, cpu, cuda"),
    ("device={a: 1}", "must be auto, cpu, cuda"),
    ("dtype=null", "dtype=None: must be one of auto, float32"),
    ("dtype=[auto]", "must be one of auto, float32"),
    ("kernel=null", "kernel=null: must be a name"),
    ("kernel=fast", "kernel=fast is not known; choose one of: auto, reference"),
    ("dense_kernel=[]", "dense_kernel=[]: must be a name"),
    ("decode_kernel=fast", "decode_kernel=fast is not known; choose one of: auto, "),
    ("question=null", "question=None: must be seen"),
    ("prefill.chunk=0", "prefill.chunk=0: must be null or a whole number of at least 1"),
    (
        "prefill.chunk=96 method=block_topk",
        "prefill.chunk=96: must be a multiple of the blocks of 64 tokens that block_topk has",
    ),
    ("prefill=8192", "prefill=8192: it has settings below it: chunk"),
    ("prefill.chunk=64 job=maps", "job=maps prefills in one piece"),
    ("task=5", "task=5: tasks are values"),
    ("task=[]", "task=[]: tasks are values"),
    ("task={a: 1}", "tasks are values"),
    # names and paths
    ("study=null", "study=null: must be a name"),
    ("study=.", "study=.: must be the name of a folder"),
    (f"study={LONG}", "must be the name of a folder below results="),
    ("results=null", "results=null: must be a name or a path"),
    ("results=[a]", "results=['a']: must be a name or a path"),
    ("results=/dev/null", "results=/dev/null study=demo: /dev/null/demo can't be written to (/dev/null is no folder)"),
    (f"results={LONG}", "a name of 300 bytes"),
    ("results=prose.txt", "prose.txt is no folder"),
    ("results='~nobody-of-that-name/x'", "there is no user nobody-of-that-name"),
    ("study=taken", "leaderboard.csv in it is a folder"),
    ("study=taken2", "results/taken2/records can't be written to (it is no folder)"),
    ("study=taken3", "samples.jsonl in it is a folder"),
    ("model.name=[a]", "model.name=['a']: must be a name"),
    ("model.gates=true", "model.gates=True: must be a name or a path"),
    ("model.chat_template=5", "model.chat_template=5: must be true or false"),
    ("model.released_gates=null", "model.released_gates=None: it has settings below it"),
    # models
    ("model=hf model.path=null", "model.path=null: must be a name or a path"),
    ("model=hf model.path=nowhere/at/all", "model folder nowhere/at/all does not exist"),
    ("model=hf model.path=prose.txt", "model.path=prose.txt is a file; give the folder"),
    ("model=hf model.path=texts", "texts is no model folder: config.json and model*.safetensors missing"),
    ("model=hf model.path=list", "list/config.json holds no JSON object"),
    ("model=hf model.path=deep", "deep/config.json: JSON that is nested too deeply"),
    ("model=hf model.path=word", "word/config.json: no JSON"),
    ("model=hf model.path=folder", "folder/config.json can't be read: Is a directory"),
    ("model=hf model.path=foo/bar", "can't load foo/bar: there is no such folder, and as a model of the hub: it is not in the"),
    ("model=hf model.path=foo--bar..x", "can't load foo--bar..x: there is no such folder, and as a model of the hub"),
    (f"model=hf model.path={LONG}", "a name of 300 bytes"),
    # data
    ("data.words=nowhere/at/all", "data.words=nowhere/at/all: no such file"),
    ("data.words=texts", "data.words=texts: a folder, no file"),
    ("data.words=words.txt", "words.txt: not UTF-8"),
    ("data.words=words.json", "words.json: holds no words"),
    ("data.words=deep.json", "deep.json: JSON that is nested too deeply"),
    ("data.haystack=/dev/zero", "data.haystack=/dev/zero: no file to read"),
    ("data.haystack=texts", "data.haystack=texts: a folder, no file"),
    ("data.haystack=deep.json", "data.haystack=deep.json: JSON that is nested too deeply"),
    ("data.haystack=list.json", "data.haystack=list.json: no text in it"),
    ("data.haystack=text.json", "data.haystack=text.json: no text in it"),
    ("data.haystack=prose.txt", "3 words; give at least 100"),
    ("data.haystack=hub", "can't load baber/paul_graham_essays: it is not in the cache"),
    ("task=qa_1 data.dir=nowhere/at/all", "data.dir=nowhere/at/all: no such folder"),
    ("task=qa_1 data.dir=prose.txt", "data.dir=prose.txt: a file, no folder"),
    ("task=qa_1 data.dir=texts", "has no squad.json or dev-v2.0.json"),
    ("task=qa_1 data.dir=squad", "squad.json: JSON that is nested too deeply"),
    ("task=qa_1 data.dir=squad2", "squad.json: neither SQuAD 2.0's JSON nor HotpotQA's"),
    ("task=qa_1 data.dir=squad3", "squad.json: a folder, no file"),
    ("task=longbench_qasper data.dir=zip.zip", "data.dir=zip.zip: no such folder"),
    ("task=[vt,longbench_qasper] task.sizing=release", "task.sizing=release: the prompts of longbench_qasper have lengths"),
    ("task=longbench_qasper data.dir=texts", "holds none of the files of this benchmark"),
    ("task=longbench_qasper", "can't load LongBench: it is not in the cache"),
    ("job=perplexity data.text_dir=nowhere/at/all", "data.text_dir=nowhere/at/all: no such folder"),
    ("job=perplexity data.text_dir=prose.txt", "data.text_dir=prose.txt: a file, no folder"),
    ("job=perplexity data.text_dir=folders", "folders/b.txt: a folder, no file"),
    ("job=perplexity data.text_dir=links", "links/a.txt: a link to nothing"),
    ("job=perplexity", "can't load the data set emozilla/pg19-test: it is not in the cache"),
    ("job=perplexity job.text=pydoc job.stride=word", "job.stride=word: must be null or a whole number"),
    # knobs of methods, and settings of jobs
    ("method=seer method.last=x", "method seer, last=x: must be a whole number"),
    ("method=seer method.threshold=nan sparsity=null", "threshold=nan: must be a finite number or null"),
    ("method=block_topk method.shared=5", "shared=5: must be true or false"),
    ("method=xattention method.stride=null", "stride=null: must be a whole number"),
    ("decode=quest decode.budget=[1]", "budget=[1]: must be a whole number or null"),
    ("job=maps method=random job.heads=word", "job.heads=word: must be null, a whole number of at least 0"),
    ("job=distill method=seer job.steps=word", "job.steps=word: must be a whole number"),
    ("job=distill method=seer job.lr=inf", "job.lr=inf: must be a finite number"),
    ("job=distill method=seer job.rows=null", "job.rows=null: must be one of auto, mixture"),
    ("job=distill method=seer job.out=prose.txt", "job.out=prose.txt: prose.txt can't be written to (it is no folder)"),
    ("job=search_heads method=minference job.overwrite=5", "job.overwrite=5: must be true or false"),
    ("job=pretrain data.text_dir=texts job.layers=0", "job.layers=0: must be at least 1"),
    ("job=pretrain data.text_dir=texts job.compile=word", "job.compile=word: must be true or false"),
    ("job=power job.alpha=word", "job.alpha=word: must be a finite number"),
]


@lru_cache
def composed(choices: tuple[str, ...]) -> tuple[bytes, DictConfig]:
    """The settings of these choices of groups, as plain values to be loaded anew, and with what Hydra has beside them."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("config", list(choices), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    del plain["hydra"]
    return pickle.dumps(plain), cfg


def composing_once(**_: Any) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """What stands for hydra.main."""

    def decorate(run_one: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run() -> None:
            choices = tuple(argument for argument in sys.argv[1:] if argument.partition("=")[0] in groups())
            plain, of_hydra = composed(choices)
            HydraConfig.instance().set_config(of_hydra)
            cfg = OmegaConf.create(pickle.loads(plain))
            with open_dict(cfg):
                for override in OverridesParser.create().parse_overrides([a for a in sys.argv[1:] if a not in choices]):
                    OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)
            run_one(cfg)

        return run

    return decorate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with FILES."""
    root = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in MODELS:
        (root / name / "model.safetensors").touch()
    (root / "links").mkdir()
    (root / "links" / "a.txt").symlink_to(root / "nothing")
    return root


@pytest.fixture(scope="module", autouse=True)
def quick(folder: Path) -> Iterator[None]:
    """Rows compose nothing anew, and load no model."""

    def load(*_: Any) -> None:
        pytest.fail("a model is loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "main", composing_once)
        patch.setattr(sweep, "load_quietly", load)
        patch.chdir(folder)
        yield


def everything(folder: Path) -> list[str]:
    """All files and folders below a folder."""
    return sorted(os.path.join(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files))


@pytest.mark.parametrize(("arguments", "says"), ROWS, ids=[arguments[:60] for arguments, _ in ROWS])
def test_a_wrong_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, says: str) -> None:
    before = everything(folder)
    assert main(arguments.replace(": ", ":").split(" ")) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("error: ") and len(err.splitlines()) == 1 and out == ""
    assert everything(folder) == before


def test_there_are_a_hundred() -> None:
    assert len(ROWS) >= 100
