"""Which job a worker takes next, and what is known of jobs when a worker is lost."""

from __future__ import annotations

from pathlib import Path

from harness.jobs.handout import Handout, describe


def take_all(handout: Handout, *workers: int) -> list[tuple[int, int]]:
    """Have workers take jobs in turn, each done when its next turn comes; returns who took which."""
    held: dict[int, tuple[str, ...]] = {}
    at: dict[int, int] = {}
    taken: list[tuple[int, int]] = []
    while True:
        for worker in workers:
            if worker in at:
                handout.end(at.pop(worker))
            number = handout.take(worker, held.get(worker))
            if number is None:
                return taken
            held[worker], at[worker] = handout.jobs[number].model, number
            taken.append((worker, number))


def test_a_worker_stays_with_its_model(tmp_path: Path) -> None:
    jobs = [[f"model={m}", f"method={a}"] for a in "abc" for m in ("one", "two")]
    handout = Handout(tmp_path, jobs)
    taken = take_all(handout, 0, 1)
    assert sorted(number for _, number in taken) == list(range(6))
    models = [{jobs[number][0] for worker, number in taken if worker == w} for w in (0, 1)]
    assert models == [{"model=one"}, {"model=two"}]
    assert handout.take(0, None) is None and handout.left() == []


def test_the_longest_prompts_come_first_and_share_no_work_between_workers(tmp_path: Path) -> None:
    jobs = [[f"length={length}", f"method={a}"] for a in "ab" for length in (4096, 131072, 65536)]
    handout = Handout(tmp_path, jobs)
    first, second = handout.take(0, None), handout.take(1, None)
    assert (first, second) == (1, 2)  # not both of one length: the second worker would wait for its dense rows
    handout.end(1)
    assert handout.take(0, handout.jobs[1].model) == 4


def test_a_worker_that_is_lost_costs_the_job_that_it_had(tmp_path: Path) -> None:
    handout = Handout(tmp_path, [[f"seed={seed}"] for seed in range(4)])
    assert handout.take(0, None) == 0 and handout.take(1, None) == 1
    handout.end(1)
    assert [number for _, number in take_all(handout, 1)] == [2, 3]
    assert handout.in_hand(0) == [0] and handout.in_hand(1) == [] and handout.left() == []


def test_two_workers_never_take_one_job(tmp_path: Path) -> None:
    jobs = [["seed=0"], ["seed=1"]]
    one, two = Handout(tmp_path, jobs), Handout(tmp_path, jobs)
    two._all = lambda _: set()  # type: ignore[method-assign]  # a listing of a network's folder that is old
    assert one.take(0, None) == 0 and two.take(1, None) == 1 and two.take(1, None) is None


def test_what_jobs_have_in_common() -> None:
    job = describe(["model=m", "+model.path=x", "length=8192", "samples=4", "method=a", "method.k=1", "task=vt"])
    assert job.model == ("+model.path=x", "model=m") and job.size == 8192 * 4
    assert job.prompts == ("+model.path=x", "length=8192", "model=m", "samples=4", "task=vt")
    assert describe(["length=null", "samples=1.5"]).size == 1
