"""The engines that start workers, for real: their rows, what a worker is given, and workers that are lost.

python -m pytest -m slow -n0 -s tests/harness/jobs/test_engines.py    # prints the table of rows by engine
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from harness.study.store import Store
from tests.harness.jobs.test_launcher import dense_runs, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[3]
SWEEP = ("-m", "seed=0,1", "method=block_topk,streaming_llm", "progress=false")
TWO_ON_CPU = "devices=cpu:2"
ENGINES = {
    "processes": (TWO_ON_CPU,),
    "submitit_local": ("hydra/launcher=submitit_local",),
    "ray": ("hydra/launcher=ray",),
}
SLURM = {
    "sbatch": """#!/bin/sh
if grep -q 'partition=none' "$1"; then echo 'sbatch: error: invalid partition specified: none' >&2; exit 1; fi
echo >> SLURM/submitted
number=$(wc -l < SLURM/submitted)
cp "$1" SLURM/$number.sh
(SLURM_JOB_ID=$number SLURM_PROCID=0 setsid bash SLURM/$number.sh; touch SLURM/$number.done) > /dev/null 2>&1 &
echo "Submitted batch job $number"
""",
    "srun": """#!/bin/sh
while [ "${1#--}" != "$1" ]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
""",
    "sacct": """#!/bin/sh
echo 'JobID|State|NodeList'
for number in $(seq 1 $(wc -l < SLURM/submitted)); do
    state=RUNNING; [ -e SLURM/$number.done ] && state=COMPLETED
    echo "$number|$state|here"
done
""",
    "scancel": "#!/bin/sh\n",
}
"""Stand-ins for commands of Slurm, which run the jobs on this machine. SLURM: their folder."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('SEEN'):\n"
        "    open(os.path.join(os.path.dirname(__file__), f'seen-{os.getpid()}'), 'w').write(os.environ['SEEN'])\n"
    )
    return tmp_path


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a folder."""
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        env={**os.environ, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run the command in a folder, and return what it says on stderr."""
    process = start(folder, *arguments, **environment)
    out, errors = process.communicate()
    assert process.returncode == code, out + errors + logs_of(folder)
    return errors


def logs_of(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob(".cache/workers/*/worker-*.log")))


@contextmanager
def two_nodes(*, gpus: int = 0) -> Iterator[Any]:
    """A cluster of Ray of two nodes with one CPU each, the second of which can be killed."""
    pytest.importorskip("ray")
    cluster = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": gpus})
    try:
        cluster.second = cluster.add_node(num_cpus=1, num_gpus=gpus)
        yield cluster
    finally:
        cluster.shutdown()


def on_cluster(cluster: Any) -> tuple[str, ...]:
    return ("hydra/launcher=ray", f"+hydra.launcher.parameters.address='{cluster.address}'")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_has_the_environment_folder_and_log_that_it_is_to_have(engine: str, toy: list[str], folder: Path) -> None:
    skip_without(engine)
    env = (f"+hydra.launcher.env.PYTHONPATH={folder / 'extra'}", "+hydra.launcher.env.SEEN=by workers")
    launcher = ("hydra/launcher=processes", "hydra.launcher.devices=cpu:2") if engine == "processes" else ENGINES[engine]
    bad = "sparsity=0.5,2"  # half of the jobs: logs of a command that ended well are removed
    said = run(folder, *toy, *SWEEP, "samples=1", *launcher, *env, bad, code=2)
    assert f"8 jobs on 2 workers ({engine}); what they print is in .cache/workers/" in said
    logs = sorted(folder.glob(".cache/workers/*/worker-*.log"))
    assert [path.name for path in logs] == ["worker-0.log", "worker-1.log"]
    for path in logs:
        log = path.read_text()
        assert f"working folder: {folder}\n" in log and "CUDA_VISIBLE_DEVICES: none\n" in log
    assert logs_of(folder).count(" of 8: ") == 8
    assert {path.read_text() for path in (folder / "extra").glob("seen-*")} == {"by workers"}
    assert [len(runs) for runs in dense_runs(folder / "results/toy")] == [1, 1]


def skip_without(engine: str) -> None:
    if engine != "processes":
        pytest.importorskip(engine.partition("_")[0])


@pytest.mark.parametrize("engine", [*ENGINES, "two nodes of Ray"])
def test_a_worker_that_is_killed_is_one_line_and_the_others_do_the_rest(engine: str, toy: list[str], folder: Path) -> None:
    sweep = (*toy, *SWEEP, "samples=8")
    run(folder, *sweep, "study=one")
    if engine in ENGINES:
        skip_without(engine)
        check_kill(folder, sweep, ENGINES[engine], kill_worker)
    else:
        with two_nodes() as cluster:
            check_kill(folder, sweep, on_cluster(cluster), lambda _: kill_second(cluster), either=True)


def kill_worker(log: Path) -> None:
    (pid,) = re.findall(r"process (\d+)", log.read_text())
    os.kill(int(pid), signal.SIGKILL)


def kill_second(cluster: Any) -> None:
    cluster.remove_node(cluster.second, allow_graceful=False)


def check_kill(
    folder: Path, sweep: Sequence[str], launcher: Sequence[str], kill: Callable[[Path], None], *, either: bool = False
) -> None:
    """Kill worker 1 (where `either` says so, one of the two) in its first job; compare the rows of the same command, run again,
    with those of one process."""
    process = start(folder, *sweep, *launcher)
    logs = wait_for_jobs(folder, process, workers=2)
    kill(logs[1])
    out, said = process.communicate()
    errors = [line for line in said.splitlines() if line]
    assert process.returncode == 1, out + said
    assert len(errors) == 2, errors  # where it prints, and who was lost
    assert re.match(
        rf"error: worker {'[01]' if either else '1'} was lost at method=\w+ seed=\d \(.+\): what it printed is in ", errors[1]
    )
    assert re.search(r"\.cache/workers/\S+/worker-[01]\.log; what is finished is recorded", errors[1])
    assert "Raylet" not in out
    whole, part = rows(folder / "results/one"), rows(folder / "results/toy")
    assert 0 < len(part) < len(whole) and all(whole[key] == row for key, row in part.items())
    run(folder, *sweep, *launcher)
    assert rows(folder / "results/toy") == whole


def wait_for_jobs(folder: Path, process: subprocess.Popen[str], workers: int) -> list[Path]:
    """Wait until all workers have begun a job; returns their logs."""
    for _ in range(3000):
        logs = [path for path in sorted(folder.glob(".cache/workers/*/worker-*.log")) if "\njob " in path.read_text()]
        if len(logs) == workers:
            return logs
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(logs_of(folder))


def test_a_node_of_ray_has_a_worker_each(toy: list[str], folder: Path) -> None:
    with two_nodes(gpus=1) as cluster:
        ray = import_module("ray")
        said = run(folder, *toy, *SWEEP, *on_cluster(cluster), "hydra.launcher.gpus=2", code=2)
        assert "hydra.launcher.gpus=2 hydra.launcher.cpus=1: no node of Ray has so many for a worker; GPUs and CPUs" in said
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        try:
            from harness.jobs.engines import Workplace, run_ray
            from harness.jobs.launcher_settings import launcher_settings
            from harness.jobs.work import Work

            environment = launcher_settings("ray", {}).environment
            works = [Work(n, [["seed=0"]], [], [], str(folder), str(folder), environment, gpus=1) for n in (0, 1)]
            outcomes = run_ray(works, Workplace(folder, 1, {}))
        finally:
            ray.shutdown()
    assert [outcome.lost.partition(" (")[0] for outcome in outcomes] == ["it was to have 1 GPU, and torch finds 0"] * 2


@pytest.mark.parametrize(
    ("parent", "names"), [({}, {"0", "1"}), ({"CUDA_VISIBLE_DEVICES": "GPU-8f6c,GPU-11ab"}, {"GPU-8f6c", "GPU-11ab"})]
)
def test_no_two_workers_of_ray_see_one_gpu(parent: dict[str, str], names: set[str], toy: list[str], folder: Path) -> None:
    pytest.importorskip("ray")
    gpus = ("hydra/launcher=ray", "+hydra.launcher.parameters.num_gpus=2", "+hydra.launcher.parameters.num_cpus=2")
    said = run(folder, *toy, *SWEEP, *gpus, "hydra.launcher.gpus=1", code=1, **parent)
    assert set(re.findall(r"CUDA_VISIBLE_DEVICES: (\S+)", logs_of(folder))) == names
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert [line[:22] for line in errors] == ["error: worker 0 was lo", "error: worker 1 was lo", "error: 4 of 4 jobs wer"]
    assert "it was to have 1 GPU, and torch finds 0" in errors[0]


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of stand-ins for Slurm's commands, which is on the PATH."""
    pytest.importorskip("submitit")
    place = folder / "slurm"
    place.mkdir()
    for name, text in SLURM.items():
        (place / name).write_text(text.replace("SLURM/", f"{place}/"))
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return place


def test_what_slurm_is_asked_for(slurm: Path, toy: list[str], folder: Path) -> None:
    parameters = {"slurm_partition": "gpu", "slurm_account": "me", "mem_gb": "32", "slurm_setup": "['export SEEN=slurm']"}
    launcher = [f"+hydra.launcher.parameters.{name}={value}" for name, value in parameters.items()]
    slurm_launcher = (
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.workers=2",
        f"+hydra.launcher.env.PYTHONPATH={folder}/extra",
    )
    run(folder, *toy, *SWEEP, *slurm_launcher, *launcher, "hydra.launcher.gpus=0")
    run(folder, *toy, *SWEEP, "study=one")
    assert rows(folder / "results/toy") == rows(folder / "results/one")
    assert {path.read_text() for path in (folder / "extra").glob("seen-*")} == {"slurm"}
    (typed,) = {run["command"] for run in Store(folder / "results/toy").runs.read()}
    assert "hydra/launcher=submitit_slurm" in typed
    texts = [path.read_text() for path in slurm.glob("*.sh")]
    assert len(texts) == 2
    for line in ("partition=gpu", "account=me", "mem=32GB", "job-name=harness", "time=1440", "cpus-per-task=8"):
        assert all(f"#SBATCH --{line}\n" in text for text in texts)
    assert not any("gpus-per-node" in text for text in texts)


def test_slurm_refuses_and_gives_a_gpu_to_each_worker(slurm: Path, toy: list[str], folder: Path) -> None:
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.workers=2")
    said = run(folder, *toy, *SWEEP, *launcher, "+hydra.launcher.parameters.slurm_partition=none", code=2)
    assert said.splitlines()[-1].endswith("no job can be submitted (sbatch: error: invalid partition specified: none)")
    said = run(folder, *toy, *SWEEP, *launcher, code=1)
    assert "worker 0 was lost (it was to have 1 GPU, and torch finds 0" in said
    assert all("#SBATCH --gpus-per-node=1\n" in path.read_text() for path in slurm.glob("*.sh"))


def test_rows_by_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = (
        *SWEEP[:1],
        "task=niah_single_1,vt",
        *SWEEP[2:],
        "length=1024",
        "samples=8",
        "latency=false",
        "sparsity=0.5",
        "device=cpu",
    )
    halves = [[*sweep, f"method={method}", "study=split"] for method in ("block_topk", "streaming_llm")]
    lines = ["| workers | rows | samples | equal | seconds |", "| --- | --- | --- | --- | --- |"]
    seconds = timed(lambda: run(folder, *sweep, "study=one"))
    lines.append(line_of("one process", folder / "results/one", folder / "results/one", seconds))

    def both_halves() -> None:
        for process in [start(folder, *half) for half in halves]:
            out, errors = process.communicate()
            assert process.returncode == 0, out + errors

    seconds = timed(both_halves)
    lines.append(line_of("two commands on one study", folder / "results/split", folder / "results/one", seconds))
    names = {"processes": "`devices=cpu:2`", "submitit_local": "`submitit_local`", "ray": "`ray`"}
    for engine, launcher in ENGINES.items():
        skip_without(engine)
        seconds = timed(lambda engine=engine, launcher=launcher: run(folder, *sweep, f"study={engine}", *launcher))  # type: ignore[misc]
        lines.append(line_of(f"two by {names[engine]}", folder / "results" / engine, folder / "results/one", seconds))
    with two_nodes() as cluster:
        seconds = timed(lambda: run(folder, *sweep, "study=nodes", *on_cluster(cluster)))
    lines.append(line_of("one on each of two nodes of `ray`", folder / "results/nodes", folder / "results/one", seconds))
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert all("| all |" in line for line in lines[2:])


def timed(action: Callable[[], Any]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def line_of(name: str, study: Path, one: Path, seconds: float) -> str:
    """A line of the table: rows of the leaderboard, samples, those that equal the samples of one process, seconds."""
    count = len((study / "leaderboard.csv").read_text().splitlines()) - 1
    samples, expected = rows(study), rows(one)
    same = sum(samples.get(key) == row for key, row in expected.items())
    equal = "all" if samples == expected else f"{same} of {len(expected)}"
    return f"| {name} | {count} | {len(samples)} | {equal} | {seconds:.0f} |"
