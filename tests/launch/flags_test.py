"""Flags reach the config, a written flagfile gives the same run again, and bad values are refused in one line."""

import dataclasses
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import parse_flags as parse

import launch
from launch.configs import compute_from_flags, config_from_flags, getter
from launch.flagfiles import expand_flagfiles, recipes, serialize_flags
from launch.flags import GROUPS
from launch.help import help_text
from launch.settings import from_flags
from rap_jax.config import STAGES, ComputeConfig, OutputConfig, ProcessConfig, PruneConfig, RunConfig, StartConfig

RECIPES = [Path(launch.__file__).parent / f"{name}.flags" for name in recipes()]
# A value for every flag, and none of them is the default or that of another stage or attack.
CHANGED: dict[str, Any] = {
    "name": "other", "out_dir": "/tmp/some where", "seed": 7, "dataset": "folder:/images", "data_dir": "/data",
    "raw_data_dir": "/raw", "fallback_dataset": "mnist_5k", "validation_fraction": 0.2,
    "validation_seed": 12, "image_size": "20,30",
    "crop_padding": 3, "horizontal_flip": True, "model": "vgg16", "start_run": "/other",
    "attack_batch_norm": "batch", "label_smoothing": 0.15, "mixup_alpha": 0.35, "width": 16,
    "compute_dtype": "bfloat16", "ema_decay": 0.995, "distillation": "rslad", "awp_gamma": 0.02,
    "initializer": "uniform", "batch_size": 64, "eval_batch_size": 50, "steps_per_epoch": 11, "log_every_steps": 3,
    "checkpoint_every_seconds": 1.5, "measure_cost": False, "tensorboard": True,
    "num_cpu_devices": 3, "implementation": "xla",
    "num_model_shards": 2, "stream_data": True, "compilation_cache_dir": "", "norm": "l2", "epsilon": 1.25,
    "train_step_size": 0.5, "train_num_steps": 7, "train_num_restarts": 2, "select_step_size": 0.6,
    "train_step_schedule": "geometric", "select_step_schedule": "geometric", "report_step_schedule": "geometric",
    "select_attack": "strong", "train_epsilon": 1.5, "train_leaky_slope": 0.01,
    "select_num_steps": 8, "select_num_restarts": 3, "report_step_size": 0.7, "report_num_steps": 9,
    "report_num_restarts": 4, "structure": "column", "sparsity": "conv1:0.25,fc*:0.25", "rho": 3.0,
    "budget": "lamp", "budget_of": "multiply_adds",
    "harp_growth": 0.2, "twinrep_cut": 0.3, "flyingbird_interval": 0.75, "flyingbird_share": 0.4,
    "rho_rule": "uniform", "rho_growth": 1.9, "rescale_dual": False, "dual_keeps_graph": True,
    "small_retrain": False, "reset_learning_rate": True, "dual_interval": 0.25,
    "dual_interval_unit": "steps",
}  # fmt: skip
CHANGED |= {
    f"{stage}_{field}": value
    for number, stage in enumerate(STAGES)
    for field, value in {
        "epochs": 20 + number, "optimizer": "sgd", "num_cycles": 2 + number, "learning_rate": 0.1 + number,
        "schedule": "step",
        "warmup_epochs": 0.5 + number, "step_epochs": f"{5 + number},9.5", "step_factor": 0.3 + number / 10,
        "momentum": 0.5 + number / 10, "weight_decay": 0.25 + number, "epsilon_ramp_epochs": 1.5 + number,
    }.items()
}  # fmt: skip
# Not with the restarts, the attack settings, the start, the structure above; free_replays is read by
# --train_attack=free alone.
ALONE: dict[str, Any] = {"random_start": False, "train_attack": "none", "start_weights": "initial", "free_replays": 7}
ALONE |= {"merge_duplicates": True, "prune_method": "hydra"}
# No part of what a run is, nor of its flagfile.
ALONE |= {
    "distributed": True,
    "coordinator_address": "host:1",
    "num_processes": 2,
    "process_id": 1,
    "initialization_timeout": 9,
    "dry_run": True,
    "target": "tpu:v5e:2x2",
    "num_seeds": 3,
    "progress": "none",
}
PARSED: dict[str, Any] = {"sparsity": (("conv1", 0.25), ("fc*", 0.25)), "image_size": (20, 30)}
PARSED |= {f"{stage}_step_epochs": (5.0 + number, 9.5) for number, stage in enumerate(STAGES)}


def config_of(*arguments: str) -> RunConfig:
    return config_from_flags(parse(*arguments))


def as_arguments(given: dict[str, Any]) -> list[str]:
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()]


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def flag_of(setting: str) -> str:
    """The flag that a field of the config, such as `admm.optimizer.learning_rate`, comes from."""
    part, _, field = setting.rpartition(".")
    stage = part.removesuffix(".optimizer")
    if stage in STAGES:
        return f"{stage}_{ {'num_epochs': 'epochs', 'name': 'optimizer'}.get(field, field) }"
    if part.endswith("_attack"):
        shared = field in ("norm", "epsilon", "random_start")
        return field if shared else f"{part.removesuffix('_attack')}_{field}"
    if part == "train.attack":
        return field if field in ("norm", "random_start") else f"train_{field}"
    names = {"model.name": "model", "start.run_dir": "start_run", "start.weights": "start_weights"}
    names |= {"selection": "select_attack", "prune.method": "prune_method"}
    return names.get(setting, field)


def written(tmp_path: Path, values: flags.FlagValues) -> str:
    (tmp_path / "run.flags").write_text(serialize_flags(values))
    return f"--flagfile={tmp_path / 'run.flags'}"


def test_tables_cover_every_flag() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert set(CHANGED) | set(ALONE) == set(grouped) and len(grouped) == len(set(grouped))


def test_every_setting_comes_from_its_flag_and_no_other() -> None:
    assert getattr(config_of("--epsilon=0.2").train.attack, "epsilon", None) == 0.2, "as --epsilon if it is not given"
    before, after = (dict(leaves(dataclasses.asdict(config_of(*given)))) for given in ([], as_arguments(CHANGED)))
    for setting, value in after.items():
        name = flag_of(setting)
        if name in ALONE:
            continue
        assert value == PARSED.get(name, CHANGED[name]), setting
        assert value != before[setting], f"the table does not change {setting}"
    attack = config_of("--norandom_start").train.attack
    assert attack is not None and attack.random_start is False
    assert config_of("--train_attack=none").train.attack is None
    assert config_of("--start_run=/a", "--start_weights=initial").start == StartConfig("/a", "initial")
    assert config_of("--merge_duplicates").prune == PruneConfig(merge_duplicates=True)
    assert config_of("--random_start=false").report_attack.random_start is False
    output = from_flags(OutputConfig, getter(parse(*as_arguments(CHANGED))))
    assert output == OutputConfig(3, 1.5, measure_cost=False, tensorboard=True)
    assert compute_from_flags(parse(*as_arguments(CHANGED))) == ComputeConfig(3, 2, True, "xla")


@pytest.mark.parametrize(
    "given",
    [
        {},
        CHANGED,
        {"random_start": False, "train_attack": "none", "sparsity": "none", "admm_epochs": 0},
        {"train_attack": "free", "free_replays": 7},
        {"merge_duplicates": True},
    ],
    ids=["defaults", "changed", "alone", "free", "merged"],
)
def test_written_flagfile_gives_the_same_run(tmp_path: Path, given: dict[str, Any]) -> None:
    first = parse(*as_arguments(given))
    second = parse(written(tmp_path, first))
    assert config_from_flags(second) == config_from_flags(first)
    assert from_flags(OutputConfig, getter(second)) == from_flags(OutputConfig, getter(first))
    assert compute_from_flags(second) == compute_from_flags(first)
    assert [second[name].value for name in CHANGED] == [first[name].value for name in CHANGED]


POSITIVE = st.floats(1e-37, 1e38)
TEXT = st.text(f"{string.ascii_letters}0129 =#,'\"\\{{}}~é/-", max_size=12).map(lambda text: f"/{text}/")
ONE_FLAG = st.one_of(
    st.tuples(st.just("seed"), st.integers(0, 2**32 - 1)),
    st.tuples(st.sampled_from(["data_dir", "raw_data_dir", "out_dir"]), TEXT),
    st.tuples(st.sampled_from(["rho", "dual_interval", "admm_learning_rate", "select_step_size"]), POSITIVE),
    st.tuples(st.sampled_from(["epsilon", "validation_fraction"]), st.floats(0.001, 0.999)),
    st.tuples(st.just("epsilon"), st.builds(lambda n: f"{n}/255", st.integers(0, 255))),
    st.tuples(st.just("rescale_dual"), st.booleans()),
    st.tuples(
        st.just("sparsity"),
        st.lists(
            st.tuples(st.text("abfcn0129*?[]_/", min_size=1), st.floats(0, 1, exclude_max=True)),
            min_size=1,
            unique_by=lambda pair: pair[0],
        ).map(lambda pairs: ",".join(f"{pattern}:{ratio}" for pattern, ratio in pairs)),
    ),
)


@settings(max_examples=60, deadline=None)
@given(given=st.lists(ONE_FLAG, max_size=6))
def test_any_run_is_written_and_read_alike(tmp_path_factory: Any, given: list[tuple[str, Any]]) -> None:
    first = parse(*as_arguments(dict(given)))
    second = parse(written(tmp_path_factory.getbasetemp(), first))
    assert config_from_flags(second) == config_from_flags(first)
    assert second["out_dir"].value == first["out_dir"].value


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.3", 0.3), ("1", 1.0), ("3e-2", 0.03), (" 1/3 ", 1 / 3), ("0", 0.0)]
)
def test_radii_may_be_fractions(text: str, value: float) -> None:
    config = config_of(f"--epsilon={text}", f"--report_step_size={text if value else '1/4'}")
    assert config.train.attack is not None
    assert config.train.attack.epsilon == config.report_attack.epsilon == value
    assert config.report_attack.step_size == (value or 0.25)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", (("*", 0.5),)),
        ("conv*:0.5,fc1:0.75", (("conv*", 0.5), ("fc1", 0.75))),
        (" conv1 : 0.5 , fc1:0 ", (("conv1", 0.5), ("fc1", 0.0))),
        ("none", ()),
        ("", ()),
    ],
)
def test_sparsity_is_a_ratio_or_pairs(text: str, value: Any) -> None:
    assert config_of(f"--sparsity={text}", f"--admm_epochs={6 if value else 0}").prune.sparsity == value


@pytest.mark.parametrize("name", ["epsilon", "train_step_size"])
@pytest.mark.parametrize("text", ["8/0", "eight", "", "nan", "inf", "1e999", "1/2/3", "8/255.5"])
def test_bad_numbers_are_refused(name: str, text: str) -> None:
    with pytest.raises(flags.IllegalFlagValueError, match="a number or a fraction such as 8/255") as error:
        parse(f"--{name}={text}")
    assert f"--{name}={text}" in str(error.value) and repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["half", "conv1:", "conv1:x", "0.5,", "conv1=0.5", "0.5;0.6", "0.5,0.7"])
def test_bad_sparsity_is_refused(text: str) -> None:
    with pytest.raises(flags.IllegalFlagValueError, match=r"pairs such as conv\*:0\.5,fc1:0\.75") as error:
        parse(f"--sparsity={text}")
    assert f"--sparsity={text}" in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--image_size=32", "--image_size=32: expected height,width such as 32,32, got '32'"),
        ("--image_size=a,b", "--image_size=a,b: expected height,width such as 32,32, got 'a,b'"),
        ("--admm_step_epochs=80,x", "--admm_step_epochs=80,x: expected epochs such as 80,150, got '80,x'"),
    ],
)
def test_bad_lists_of_numbers_are_refused(given: str, message: str) -> None:
    with pytest.raises(flags.IllegalFlagValueError, match=re.escape(message)):
        parse(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--sparsity=fc1:1.0", r"sparsity of fc1 is 1\.0; expected a share of zeros in \[0, 1\)"),
        ("--sparsity=nan", r"sparsity of \* is nan; expected a share"),
        ("--name=a/b", "name is 'a/b'; expected letters"),
        ("--seed=-1", "seed is -1; expected a whole number"),
        ("--validation_fraction=1", "validation_fraction is 1.0; expected"),
        ("--batch_size=0", "batch_size is 0; expected 1 or more"),
        ("--pretrain_epochs=-1", "pretrain: num_epochs is -1; expected 1 or more epochs, or 0 to leave the stage out"),
        ("--sparsity=none", r"num_epochs of admm is 6; expected 0 \(--admm_epochs=0\) when sparsity is none"),
        ("--image_size=32,32", r"image_size is \(32, 32\); expected None, except for --dataset=folder:PATH"),
        ("--label_smoothing=1", r"label_smoothing is 1\.0; expected a share in \[0, 1\)"),
        ("--mixup_alpha=-1", r"mixup_alpha is -1\.0; expected 0 or more"),
        ("--crop_padding=-4", "crop_padding is -4; expected 0 or more pixels"),
        (
            "--start_weights=initial",
            "weights of the start is 'initial'; expected final, unless --start_run names a run",
        ),
        ("--retrain_learning_rate=nan", "retrain: learning_rate is nan; expected a number above 0"),
        ("--admm_step_epochs=9,8", r"admm: step_epochs is \(9\.0, 8\.0\); expected epochs above 0 in rising order"),
        ("--report_step_size=-1/4", r"report attack: step_size is -0\.25; expected a number above 0"),
        ("--select_num_restarts=0", "select attack: num_restarts is 0; expected 1 or more"),
        ("--rho=0", r"rho is 0\.0; expected a number above 0"),
        ("--rho=1e-60", r"rho is 1e-60; expected 0, or a number from 1\.18e-38 to 3\.4e\+38"),
        ("--rho=1e300", r"rho is 1e\+300; expected 0, or a number from"),
        ("--train_num_steps=99999999999", "train_num_steps is 99999999999; expected a whole number below 4294967296"),
        ("--pretrain_step_epochs=1e9", r"pretrain: step_epochs is .*; expected epochs up to 1000000"),
        ("--sparsity=conv1:0.5,conv1:0.7", r"sparsity is .*; expected each pattern once"),
    ],
)
def test_impossible_settings_are_refused(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(given)


NUMBERS = [
    name
    for names in GROUPS.values()
    for name in names
    if flags.FLAGS[name].flag_type() in ("int", "float") or "step_size" in name or name == "epsilon"
]


@pytest.mark.parametrize("value", ["nan", "-inf", "-1", "1e999", "", "9" * 60, "half", "½"])
def test_no_number_out_of_its_range_reaches_a_run(value: str) -> None:
    """But for what has no upper end: an infinite time between checkpoints."""
    assert len(NUMBERS) > 50
    for name in set(NUMBERS) - {"free_replays", "checkpoint_every_seconds"}:
        with pytest.raises((ValueError, flags.Error)) as error:
            values = parse(f"--{name}={value}")
            config_from_flags(values), compute_from_flags(values)
            for part in (OutputConfig, ProcessConfig):
                from_flags(part, getter(values))
            raise AssertionError(f"--{name}={value} is taken")
        assert name.partition("_")[2].removesuffix("epochs") in str(error.value) or name in str(error.value)


@pytest.mark.parametrize(
    "given", ["--norm=l1", "--width=four", "--admm_optimizer=lamb", "--no_such_flag=1", "--model=lenet"]
)
def test_absl_refuses_the_rest(given: str) -> None:
    with pytest.raises(flags.Error, match=given.removeprefix("--").partition("=")[0]):
        parse(given)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["{stem}", "{stem}.flags", "launch/{stem}.flags", "{path}"])
def test_every_recipe_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(f"--flagfile={form.format(stem=recipe.stem, path=recipe)}", "--seed=5")
    assert config.name == recipe.stem and config.seed == 5
    assert config != config_of("--seed=5", f"--name={recipe.stem}")


def test_a_flagfile_that_is_there_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet_mnist").write_text("--seed=77\n")
    assert config_of("--flagfile=lenet_mnist") == config_of("--seed=77")


def test_only_a_name_means_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet_mnist").mkdir()
    assert "--name=lenet_mnist" in expand_flagfiles(["command", "--flagfile=lenet_mnist"])
    wrong = ("/nowhere/lenet_mnist.flags", "sub/lenet_mnist.flags", "nosuch", "", str(tmp_path))
    for arguments in (*([f"--flagfile={value}"] for value in wrong), ["--flagfile", "--seed=3"], ["--flagfile"]):
        with pytest.raises(ValueError, match="--flagfile is '.*'; expected a file of flags, or a recipe: lenet"):
            expand_flagfiles(["command", *arguments])


def test_flagfiles_nest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.flags").write_text("# of mine\n\n--seed=5\n--flagfile=resnet18_cifar10\n  --width=2\n// end\n")
    config = config_of("--width=7", "--flagfile=mine.flags", "--batch_size=3")
    assert (config.seed, config.model.name, config.model.width, config.batch_size) == (5, "resnet18", 2, 3)
    assert config.report_attack.epsilon == 8 / 255  # from the base of the recipe
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.flags").write_text("--flagfile=../mine.flags\n--flagfile=two.flags\n")
    (tmp_path / "deep" / "two.flags").write_text("--batch_size=9\n")
    monkeypatch.chdir("/")
    config = config_of(f"--flagfile={tmp_path / 'deep' / 'one.flags'}")
    assert (config.seed, config.batch_size) == (5, 9)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.flags").write_text("--flagfile=b.flags\n")
    (tmp_path / "b.flags").write_text("--flagfile=a.flags\n")
    with pytest.raises(ValueError, match=r"a\.flags contains itself"):
        expand_flagfiles(["command", "--flagfile=a.flags"])


def test_an_empty_string_takes_back_a_flagfile() -> None:
    config = config_of("--flagfile=lenet_mnist", "--fallback_dataset=", "--raw_data_dir=")
    assert config.data.fallback_dataset is None and config.data.raw_data_dir is None


@pytest.mark.e2e
def test_help_lists_the_flags() -> None:
    for command in ([sys.executable, "-m", "launch.main"], [str(Path(sys.executable).parent / "rap-jax")]):
        if not Path(command[0]).exists():
            pytest.skip("the console script is not installed")
        shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=180)
        assert shown.stdout == help_text(80) and shown.returncode == 0


def test_help_explains_every_flag_once() -> None:
    text = help_text(100)
    assert max(map(len, text.splitlines())) <= 100
    for names in GROUPS.values():
        for name in names:
            shown = "STAGE_" + name.partition("_")[2] if name.split("_")[0] in STAGES else name
            found = re.findall(rf"^  --(?:\[no\])?{shown}(?![a-z_])", text, re.MULTILINE)
            assert len(found) == 1, name
    assert (
        "--attack_batch_norm (default running)" in text
        and "One of: running, batch." in text
        and "--[no]horizontal_flip" in text
    )
    assert "base_" not in text and all(name in text for name in recipes())


def test_a_flagfile_in_two_words() -> None:
    found = expand_flagfiles(["command", "--flagfile", "lenet_mnist", "--seed=3", "--flagfile", "lenet_mnist_paper"])
    expected = ["--name=lenet_mnist", "--seed=3", "--name=lenet_mnist_paper"]
    assert [argument for argument in found if argument in expected] == expected


def test_other_arguments_are_left_alone() -> None:
    given = ["command", "--name=lenet_mnist", "-h", "x=y"]
    assert expand_flagfiles(given) == given


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--nonsense=3", "Unknown command line flag 'nonsense'"),
        ("--width=0", "width is 0; expected a whole number of 1 or more"),
        ("--sparsity=1.0", "sparsity of * is 1.0; expected a share of zeros in [0, 1)"),
        ("--epsilon=8", "epsilon is 8.0; expected at most 1, since pixels are in [0, 1] (write 8/255, not 8)"),
        ("surplus", "Unexpected argument 'surplus'; flags are written --name=value"),
        ("--sparsity=cnv*:0.5", "pattern 'cnv*' matches no layer; the layers are conv1, conv2, fc1, fc2"),
    ],
)
def test_command_ends_with_one_message(tmp_path: Path, given: str, message: str) -> None:
    settings = ["--dataset=mnist_5k", "--compilation_cache_dir=", f"--out_dir={tmp_path / 'run'}"]
    environment = os.environ | {"XLA_FLAGS": ""}
    result = subprocess.run(
        [sys.executable, "-m", "launch.main", *settings, given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    assert result.returncode not in (0, -2)
    assert message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2 and result.stdout == ""
    assert list(tmp_path.iterdir()) == []  # refused before anything was made
