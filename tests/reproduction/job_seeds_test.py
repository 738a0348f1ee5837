"""Which jobs are one command, and when it pays."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from repository import SUPPORT

from launch.job_configs import config_of
from rap_jax._runtime.interrupt import Interrupt
from rap_jax.config import ModelConfig, RunConfig
from rap_jax.reproduction import recipes, runner
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.recipes import SCALES
from rap_jax.reproduction.runner import log_of, run_jobs
from rap_jax.reproduction.seeds import command_job, joined, recipe_of, seeds_that_pay

QUICK = SCALES["quick"]


def dense(seed: int, width: int = 4) -> Job:
    return recipes.dense(QUICK, "lenet_mnist", width, seed)


def pruned(seed: int) -> Job:
    return recipes.pruned(QUICK, "lenet_mnist", 4, 2, seed)


@pytest.mark.parametrize(
    ("name", "width", "platform", "number"),
    [
        ("lenet_mnist", 1, "gpu", 64), ("lenet_cifar", 4, "tpu", 16), ("lenet_mnist", 16, "gpu", 8),
        ("resnet18", 1, "gpu", 1), ("vgg16", 1, "gpu", 1), ("lenet_mnist", 1, "cpu", 1), ("lenet_mnist", 2, "cpu", 1),
    ],
)  # fmt: skip
def test_several_seeds_pay_for_lenets_on_accelerators(name: str, width: int, platform: str, number: int) -> None:
    config = dataclasses.replace(RunConfig(), model=ModelConfig(name, width))  # type: ignore[arg-type]
    assert seeds_that_pay(config, platform) == number


def test_seeds_without_a_gap_are_one_command() -> None:
    ready = [dense(2), dense(4), dense(3, width=2), pruned(1), dense(0), dense(1)]
    assert joined(dense(0), ready, 9) == [dense(0), dense(1), dense(2)]
    assert joined(dense(0), ready, 2) == [dense(0), dense(1)]
    assert joined(dense(0), ready, 1) == [dense(0)]
    assert joined(dense(4), ready, 9) == [dense(4)]


@pytest.mark.parametrize("make", [dense, pruned])
def test_the_command_of_several_has_the_config_of_each(make: object) -> None:
    from tiny import parse_flags

    from launch.flagfiles import expand_flagfiles
    from launch.seeds import flags_of_seeds

    jobs: Sequence[Job] = [make(seed) for seed in (1, 2)]  # type: ignore[operator]
    line = command_job(jobs).command(Path("out"), ("--num_cpu_devices=1",))
    assert "--num_seeds=2" in line and "--seed=1" in line
    each = flags_of_seeds(parse_flags(*expand_flagfiles(line[2:])[1:]))
    for job, values in zip(jobs, each, strict=True):
        alone = parse_flags(*expand_flagfiles(job.command(Path("out"), ("--num_cpu_devices=1",))[2:])[1:])
        assert {name: values[name].value for name in values} == {name: alone[name].value for name in alone}
        assert isinstance(config_of(job), RunConfig)


def test_what_has_to_run_alone() -> None:
    assert recipe_of(recipes.auto_attacked(QUICK, dense(0))) is None
    assert recipe_of(dataclasses.replace(dense(0), flags=(*dense(0).flags, "--stream_data"))) is None
    assert recipe_of(Job("other", "launch.main", ("--seed=0",))) is None
    assert command_job([dense(0)]) == dense(0)


@pytest.mark.e2e
def test_the_runner_starts_them_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    commands = list[list[str]]()

    def fake(jobs: Sequence[Job]) -> Job:
        """A job of the fake command that ends the first two of three seeds."""
        commands.append([job.name for job in jobs])
        return Job(jobs[0].name, "fake_job", ("--fail=error: 1 of 3 seeds",) if len(jobs) == 3 else ())  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "command_job", fake)
    monkeypatch.setitem(runner.Job.folder.fget.__globals__["_FOLDERS"], "fake_job", "runs")  # type: ignore[attr-defined]
    jobs = [dense(0), pruned(0), dense(1), dense(2)]
    not_done = run_jobs(jobs, tmp_path, interrupt=Interrupt(), seeds_at_once=lambda job: 8)
    assert commands == [[dense(seed).name for seed in (0, 1, 2)]]
    assert set(not_done.failed) == {dense(seed).name for seed in (0, 1, 2)}
    assert set(not_done.failed.values()) == {"error: 1 of 3 seeds"}
    assert set(not_done.skipped) == {pruned(0).name} and log_of(dense(0), tmp_path).exists()
