"""Jobs of a plan: their order, what is not done again, what fails, what another process holds, and signals."""

import fcntl
import json
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from repository import SUPPORT

from rap_jax._runtime.integrity import write_checked
from rap_jax._runtime.interrupt import Interrupt, Interrupted
from rap_jax.reproduction import job as job_module
from rap_jax.reproduction import runner
from rap_jax.reproduction.job import Job, in_order, level_of
from rap_jax.reproduction.runner import FailedJobs, log_of, run_jobs

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def find_fake_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    monkeypatch.setitem(job_module._FOLDERS, "fake_job", "runs")  # type: ignore[arg-type]


def job(name: str, *flags: str, needs: Sequence[Job] = ()) -> Job:
    return Job(name, "fake_job", flags, (("start", tuple(needs)),) if needs else ())  # type: ignore[arg-type]


def run(jobs: Sequence[Job], out: Path, **options: Any) -> FailedJobs:
    return run_jobs(in_order(jobs), out, interrupt=options.pop("interrupt", Interrupt()), **options)


def calls(out: Path, name: str) -> list[dict[str, Any]]:
    path = out / "runs" / name / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_job_runs_after_what_it_needs_and_is_given_its_folder(tmp_path: Path) -> None:
    first, second = job("first"), job("second")
    third = job("third", "--x=1", needs=[first, second])
    assert run([third], tmp_path, extra=("--y=2",)) == FailedJobs({}, {})
    (call,) = calls(tmp_path, "third")
    assert call["start"] == f"{tmp_path}/runs/first,{tmp_path}/runs/second"
    assert (call["x"], call["y"]) == ("1", "2")
    ended = [one.results(tmp_path)["ended"] for one in (first, second)]  # type: ignore[index]
    assert max(ended) <= call["began"]
    assert [level_of(one) for one in (first, second, third)] == [0, 0, 1]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = job("first")
    run([first], tmp_path)
    run([first, job("second", needs=[first])], tmp_path)
    assert len(calls(tmp_path, "first")) == 1 and len(calls(tmp_path, "second")) == 1


def test_a_job_that_fails_takes_only_those_with_it_that_need_it(tmp_path: Path) -> None:
    wrong = job("wrong", "--fail=error: width is 0; expected 1 or more")
    child = job("child", needs=[wrong])
    jobs = [
        child,
        job("grandchild", needs=[child]),
        job("killed", "--kill=1"),
        job("silent", "--silent=1"),
        job("fine"),
    ]
    lines: list[str] = []
    not_done = run(jobs, tmp_path, say=lines.append)
    assert not_done.failed["wrong"] == "error: width is 0; expected 1 or more"
    assert not_done.failed["killed"] == "killed by signal 9"
    assert not_done.failed["silent"].startswith("it ended without results.json")
    assert not_done.skipped == {
        "child": "needs wrong, which failed",
        "grandchild": "needs child, which was skipped",
    }
    assert job("fine").results(tmp_path) is not None and not calls(tmp_path, "child")
    assert any("FAILED" in line and str(log_of(wrong, tmp_path)) in line for line in lines)
    # The next call tries it again.
    assert set(run([wrong], tmp_path).failed) == {"wrong"} and len(calls(tmp_path, "wrong")) == 2


def test_the_reason_is_that_of_this_call_and_whole(tmp_path: Path) -> None:
    many = job("many", "--fail=error: other settings:\n  seed: 1, 2 now\nmove it away")
    log_of(many, tmp_path).parent.mkdir(parents=True)
    log_of(many, tmp_path).write_text("error: Run folder x is in use by another process; wait.\n")
    assert run([many], tmp_path).failed == {"many": "error: other settings: seed: 1, 2 now move it away"}
    crashed = job("crashed", "--fail=Segmentation of the heap")
    log_of(crashed, tmp_path).write_text("error: Run folder x is in use by another process; wait.\n")
    assert run([crashed], tmp_path).failed == {"crashed": "Segmentation of the heap"}
    assert len(calls(tmp_path, "crashed")) == 1


def test_a_job_that_another_process_has_begun_first_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken between our look at its folder and our start: our process is refused, and that is no failure."""
    folder = tmp_path / "runs" / "late"
    folder.mkdir(parents=True)
    lock = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    looks: list[bool] = []

    def look(path: Path) -> bool:
        looks.append(len(looks) > 0)
        if len(looks) == 3:
            (folder / "results.json").write_text(write_checked({}))
            lock.close()
        return looks[-1]

    monkeypatch.setattr(runner, "is_in_use", look)
    assert run([job("late")], tmp_path) == FailedJobs({}, {})
    assert len(calls(tmp_path, "late")) == 1 and len(looks) == 3


def test_results_that_are_damaged_meanwhile_stop_nothing_else(tmp_path: Path) -> None:
    first, odd = job("first", "--seconds=0.5"), job("odd", "--damage=1")
    not_done = run([odd, first, job("last")], tmp_path)
    assert set(not_done.failed) == {"odd"} and "damaged" in not_done.failed["odd"]
    assert job("last").results(tmp_path) is not None and first.results(tmp_path) is not None


def test_jobs_side_by_side(tmp_path: Path) -> None:
    jobs = [job("job0", "--meets=job1"), job("job1", "--meets=job0"), job("job2")]  # the first two wait for each other
    run(jobs, tmp_path, num_at_once=2)
    began = [calls(tmp_path, one.name)[0]["began"] for one in jobs]
    ended = [one.results(tmp_path)["ended"] for one in jobs]  # type: ignore[index]
    assert began[2] >= min(ended[:2])
    # With room for both, a job waits for one that it needs.
    first = job("first", "--seconds=0.2")
    run([first, job("second", needs=[first])], tmp_path, num_at_once=2)
    assert calls(tmp_path, "second")[0]["began"] >= first.results(tmp_path)["ended"]  # type: ignore[index]


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    busy, lines = job("busy"), list[str]()
    folder = tmp_path / "runs" / "busy"
    folder.mkdir(parents=True)
    lock = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def finish_elsewhere() -> None:
        while not job("other").results(tmp_path):
            time.sleep(0.05)
        (folder / "results.json").write_text(write_checked({}))
        lock.close()

    other = threading.Thread(target=finish_elsewhere)
    other.start()
    not_done = run([busy, job("other")], tmp_path, say=lines.append)
    other.join()
    assert not_done == FailedJobs({}, {}) and not calls(tmp_path, "busy")
    assert sum("another process is at it" in line for line in lines) == 1


def test_a_signal_stops_the_jobs_and_the_same_plan_goes_on(tmp_path: Path) -> None:
    interrupt = Interrupt()
    slow = [job("slow", "--seconds=60"), job("later")]

    def ask() -> None:
        while not calls(tmp_path, "slow"):
            time.sleep(0.05)
        time.sleep(0.5)
        interrupt.requested = signal.SIGTERM

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Interrupted):
        run(slow, tmp_path, interrupt=interrupt)
    asking.join()
    assert (tmp_path / "runs" / "slow" / "stopped").exists() and not calls(tmp_path, "later")
    assert run([job("later")], tmp_path) == FailedJobs({}, {})


def test_damaged_results_are_named(tmp_path: Path) -> None:
    run([job("first")], tmp_path)
    path = tmp_path / "runs" / "first" / "results.json"
    for damaged in ("{", "[]"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="results.json .*delete it to have it made again"):
            run([job("first")], tmp_path)


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="Two jobs are named same; expected one"):
        in_order([job("same", "--x=1"), job("same", "--x=2")])
