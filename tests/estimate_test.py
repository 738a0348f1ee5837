"""The time of a plan: counts of its work, each kind measured once, nothing for what is done, bad flags refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from absl import flags

from launch import reproduce
from launch.job_configs import config_of, settings_of
from rap_jax._runtime.integrity import write_checked
from rap_jax.config import DataConfig
from rap_jax.data import load_dataset
from rap_jax.reproduce import clock as clock_lib
from rap_jax.reproduce import networks
from rap_jax.reproduce.clock import Clock, Measured, Preparable
from rap_jax.reproduce.estimate import JobEstimate, PlanEstimate, estimate
from rap_jax.reproduce.job import Job, in_order
from rap_jax.reproduce.plan_table import as_duration, format_plan
from rap_jax.reproduce.portions import Counter, Portion
from rap_jax.reproduce.scale import MNIST, SCALES
from rap_jax.reproduce.sizes import sizes_of
from rap_jax.reproduce.tables import build_table
from rap_jax.reproduce.work import AttackSteps, TrainingStep, Verdicts
from rap_jax.training.optimizer import plan_stage

SMOKE, QUICK = SCALES["smoke"], SCALES["quick"]
DENSE = networks.dense(QUICK, MNIST, 2, 0)
SMALL = networks.dense(QUICK, MNIST, 1, 0)
PRUNED = networks.pruned(QUICK, MNIST, 2, 1, 0)
INHERITED = networks.inherited(QUICK, MNIST, 2, 1, 0)
ATTACKED = networks.auto_attacked(QUICK, PRUNED)
JOBS = in_order([SMALL, DENSE, PRUNED, ATTACKED, INHERITED])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Preparable]:
    """The kinds that were measured; each takes 2 seconds and 5 to compile."""
    kinds: list[Preparable] = []

    def measure(kind: Preparable) -> Measured:
        kinds.append(kind)
        return Measured(2.0, 5.0)

    monkeypatch.setattr(clock_lib, "_measure", measure)
    return kinds


@pytest.fixture(scope="module")
def counter() -> Counter:
    return Counter({job.name: settings_of(job) for job in JOBS})


def portions(counter: Counter, job: Job) -> dict[str, Portion]:
    return {portion.what: portion for portion in counter.portions(job)}


def plan_of(jobs: list[Job], out: Path) -> PlanEstimate:
    return estimate(jobs, {job.name: settings_of(job) for job in jobs}, out)


@pytest.mark.parametrize(
    "job", [DENSE, PRUNED, INHERITED, networks.dense(SMOKE, MNIST, 2, 0)], ids=lambda job: job.name
)
def test_steps_are_those_of_the_stages(job: Job) -> None:
    config = config_of(job)
    jobs = in_order([job])
    found = portions(Counter({each.name: settings_of(each) for each in jobs}), job)
    stages = [stage for stage in ("pretrain", "admm", "retrain") if config.stage(stage).num_epochs]
    assert {what for what in found if what in ("pretrain", "admm", "retrain")} == set(stages)
    for stage in stages:
        plan = plan_stage(config, stage, sizes_of(config.data).train)
        assert found[stage].units == plan.num_steps > 0
        kind = found[stage].kind
        assert isinstance(kind, TrainingStep) and kind.batch_size == config.batch_size
        # Ten steps are timed, and counted as what they are: images, epochs, and the passes of an attack.
        select = found[f"{stage}: validation"]
        assert isinstance(select.kind, Verdicts)
        images = select.units * select.kind.batch_size / config.stage(stage).num_epochs
        assert images == pytest.approx(6000 if job in JOBS else 400)


def test_the_report_is_counted_before_and_after_a_cut_and_on_the_test_set(counter: Counter) -> None:
    found = portions(counter, PRUNED)
    assert list(found) == [
        "start: report on validation",
        "admm", "admm: validation", "admm: report on validation",
        "retrain", "retrain: validation", "retrain: report on validation",
        "test",
    ]  # fmt: skip
    once = found["retrain: report on validation"].units
    assert found["start: report on validation"].units == found["admm: report on validation"].units == 2 * once
    assert found["test"].units == pytest.approx(once * 10 / 6)
    # PGD-40 is 41 passes, and is timed by 11 of them.
    assert once * found["test"].kind.batch_size == pytest.approx(6000 * 41 / 11)


def test_a_pruned_network_is_retrained_and_attacked_at_its_small_size(counter: Counter) -> None:
    small, pruned, inherited = (counter.networks(job) for job in (SMALL, PRUNED, INHERITED))
    assert pruned.of_stage("admm") == pruned.whole == counter.networks(DENSE).whole != small.whole
    assert pruned.of_stage("retrain") == inherited.of_stage("retrain") == pruned.attacked == small.whole
    assert portions(counter, INHERITED)["retrain"].kind == portions(counter, SMALL)["pretrain"].kind


def test_filters_that_add_up_go_only_where_all_of_them_go() -> None:
    job = networks.pruned(SCALES["paper"], "resnet18_cifar10", 2, 1, 0)
    found = Counter({each.name: settings_of(each) for each in in_order([job])}).networks(job)
    width = lambda layer: found.whole.weights.params["group2_block1"][layer]["kernel"].shape[3]
    features = found.of_stage("retrain").model.features
    assert features["group2_block1/conv1"] == width("conv1") // 2
    assert features.get("group2_block1/conv2", width("conv2")) > width("conv2") // 2


def test_irregular_pruning_leaves_the_network_whole() -> None:
    job = networks.pruned(QUICK, MNIST, 2, 1, 0, "irregular")
    found = Counter({each.name: settings_of(each) for each in in_order([job])}).networks(job)
    assert found.of_stage("retrain") == found.whole


def test_auto_attack_is_counted_to_the_end_of_every_part(counter: Counter) -> None:
    found = portions(counter, ATTACKED)
    steps = {}
    for what, portion in found.items():
        if isinstance(portion.kind, AttackSteps):
            steps[what] = portion.units * portion.kind.steps * portion.kind.batch_size
    expected = {"apgd-ce": 100, "apgd-t": 900, "fab-t": 900, "square": 5000}
    assert steps == pytest.approx({name: 1000 * number for name, number in expected.items()})
    assert "diagnostics" in found


def test_transferred_images_are_counted_on_the_network_that_they_are_made_on() -> None:
    job = networks.transferred(QUICK, MNIST, PRUNED, (DENSE,))
    found = Counter({each.name: settings_of(each) for each in in_order([job])})
    made = portions(found, job)[f"images of {DENSE.name}"]
    assert made.kind.subject == found.networks(DENSE).whole
    assert isinstance(made.kind, AttackSteps)
    assert made.units * made.kind.steps * made.kind.batch_size == pytest.approx(10_000 * 40)


def test_each_kind_is_measured_once_and_the_total_is_the_sum(measured: list[Preparable], tmp_path: Path) -> None:
    jobs = in_order(build_table("2", SMOKE).jobs)
    plan = plan_of(jobs, tmp_path)
    assert len(measured) == len(set(measured)) == plan.num_kinds < sum(len(job.items) for job in plan.jobs)
    assert plan.compile_seconds == 5 * len(measured)
    assert [found.job for found in plan.jobs] == jobs
    assert plan.seconds == pytest.approx(sum(2 * item.units for found in plan.jobs for item in found.items))
    assert [found.at_most for found in plan.jobs] == [job.module == "launch.evaluate" for job in jobs]


def test_what_is_done_is_free(measured: list[Preparable], tmp_path: Path) -> None:
    jobs = in_order([networks.pruned(SMOKE, MNIST, 2, 1, 0)])
    whole = plan_of(jobs, tmp_path).jobs
    dense, pruned = (tmp_path / job.place for job in jobs)
    dense.mkdir(parents=True)
    (dense / "results.json").write_text(write_checked({}))
    (pruned / "stages").mkdir(parents=True)
    for part in ("start", "admm"):
        (pruned / "stages" / f"{part}.json").write_text("{}")
    free, begun = plan_of(jobs, tmp_path).jobs
    assert free == JobEstimate(jobs[0], (), done=True) and free.seconds == 0
    assert not begun.done and 0 < begun.seconds < whole[1].seconds
    assert [item.what.partition(":")[0] for item in begun.items] == ["retrain"] * 3 + ["test"]


def test_the_table_shows_order_needs_and_times(measured: list[Preparable], tmp_path: Path) -> None:
    jobs = in_order([networks.auto_attacked(SMOKE, networks.pruned(SMOKE, MNIST, 2, 1, 0))])
    (tmp_path / jobs[0].place).mkdir(parents=True)
    (tmp_path / jobs[0].place / "results.json").write_text(write_checked({}))
    lines = format_plan(plan_of(jobs, tmp_path)).splitlines()
    assert lines[0].split() == ["#", "job", "needs", "time"]
    assert [line.split()[:2] for line in lines[1:4]] == [[str(n), job.name] for n, job in enumerate(jobs, start=1)]
    assert lines[1].endswith("  done") and lines[2].split()[2] == "1" and lines[3].split()[2:5] == ["2", "at", "most"]
    assert lines[5].startswith("3 jobs, 1 done; ") and "at most" in lines[5]


def test_the_table_fits_a_terminal(measured: list[Preparable]) -> None:
    long = Job("a" * 90, "launch.main", ())
    many = tuple(Job(f"{number}", "launch.main", ()) for number in range(30))
    last = Job("end", "launch.evaluate", (), (("transfer_from", (long, *many)),))
    plan = PlanEstimate(tuple(JobEstimate(job, (), at_most=True) for job in (long, *many, last)), 1e6, 3)
    lines = format_plan(plan).splitlines()
    assert max(map(len, lines)) <= 100 and "..." in lines[1] and "..." in lines[-4]


def test_durations() -> None:
    given = (0.0, 1.234, 45.6, 100, 3600, 360_000)
    assert [as_duration(seconds) for seconds in given] == ["0 s", "1.2 s", "46 s", "2 min", "60 min", "100.0 h"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--no_such_flag=1", "no_such_flag"),
        ("--width=wide", "width"),
        ("--width=0", "width is 0"),
        ("--flagfile=nothing", "nothing"),
        ("--pretrain_learning_rate=-1", "learning_rate is -1"),
        ("surplus", "surplus"),
    ],
)
def test_bad_flags_are_refused_by_job_and_name(flag: str, message: str) -> None:
    job = dataclasses.replace(DENSE, flags=(*DENSE.flags, flag))
    with pytest.raises(ValueError, match=message) as error:
        settings_of(job)
    assert str(error.value).count(job.name) == 1


def test_bad_flags_of_an_evaluation_are_refused_too() -> None:
    with pytest.raises(ValueError, match=f"{ATTACKED.name}: .*auto_attack"):
        settings_of(dataclasses.replace(ATTACKED, flags=("--auto_attack=mild",)))


def test_a_length_that_cannot_be_is_refused_by_job(measured: list[Preparable], tmp_path: Path) -> None:
    job = dataclasses.replace(DENSE, flags=(*DENSE.flags, "--pretrain_epsilon_ramp_epochs=1000"))
    with pytest.raises(ValueError, match=f"{job.name}: epsilon_ramp_epochs is 1000"):
        plan_of([job], tmp_path)


def test_more_flags_win_and_those_of_the_process_stay() -> None:
    before = flags.FLAGS["width"].value
    assert config_of(DENSE, ["--width=7"]).model.width == 7
    assert config_of(DENSE).model.width == 2 and flags.FLAGS["width"].value == before
    assert config_of(PRUNED).start.run_dir == str(Path(f"out/{DENSE.place}").absolute())
    with pytest.raises(ValueError, match=r"expected launch\.main"):
        config_of(ATTACKED)


def test_sizes_are_those_of_the_data() -> None:
    config = DataConfig("mnist_5k", validation_fraction=0.15)
    data, sizes = load_dataset(config, seed=0), sizes_of(config)
    assert sizes[:3] == tuple(len(split.labels) for split in (data.train, data.validation, data.test))
    assert (sizes.image_shape, sizes.num_classes) == (data.train.images.shape[1:], data.num_classes)
    assert sizes_of(DataConfig("mnist"))[:3] == (54_000, 6_000, 10_000)
    assert sizes_of(DataConfig("cifar10", validation_fraction=0.05))[:3] == (47_500, 2_500, 10_000)
    with pytest.raises(ValueError, match="folder:/images"):
        sizes_of(DataConfig("folder:/images"))
    with pytest.raises(ValueError, match="validation_fraction is 1e-06"):
        sizes_of(DataConfig("mnist", validation_fraction=1e-6))


def test_the_clock_leaves_out_the_first_unit_of_a_kind() -> None:
    told, calls = list[Preparable](), list[int]()

    class Kind:
        def prepared(self) -> Callable[[], object]:
            return lambda: clock_lib.time.sleep(0.3 if not calls else 0.01) or calls.append(1)

    kind, clock = Kind(), Clock(told.append)
    assert clock.seconds(kind) == clock.seconds(kind) == pytest.approx(0.01, abs=0.03)
    assert told == [kind] and len(calls) > 5 and clock.compile_seconds == pytest.approx(0.3, abs=0.1)


@pytest.mark.slow
def test_every_kind_of_work_can_be_done(tmp_path: Path) -> None:
    jobs = in_order(
        [networks.auto_attacked(dataclasses.replace(SMOKE, auto_attack="standard"), networks.dense(SMOKE, MNIST, 1, 0))]
    )
    plan = plan_of(jobs, tmp_path)
    assert all(item.unit_seconds > 0 for found in plan.jobs for item in found.items)
    assert plan.num_kinds == 7 and json.dumps(plan.jobs[1].items)


def test_the_command_prints_the_plan_and_runs_nothing(
    measured: list[Preparable], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "enable_compilation_cache", lambda folder: None)
    reproduce.FLAGS.unparse_flags()
    plan = ["reproduce", "--table=C1", "--scale=smoke", f"--out={tmp_path / 'out'}"]
    reproduce.main([*plan, "--dry_run"])
    assert "one after the other: " in capsys.readouterr().out and measured and not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match=r"error: lenet_mnist_dense_w2_seed0: .*no_such_flag"):
        reproduce.main([*plan, "--mnist_flags=--no_such_flag"])
    assert not (tmp_path / "out").exists()
    reproduce.FLAGS.unparse_flags()
