"""The frozen configs that parsed flags become; a bad combination is refused here."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from launch.settings import Get, from_flags
from rap_jax.config import (
    AttackConfig,
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PruneConfig,
    RunConfig,
    Stage,
    StageConfig,
    StartConfig,
    TrainConfig,
    fgsm_attack,
    free_attack,
    require,
)

FLAGS = flags.FLAGS
_LEAST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of float32, without subnormal numbers


def config_from_flags(values: flags.FlagValues = FLAGS) -> RunConfig:
    """The run that the flags describe; a ValueError for a value or a combination that cannot work."""
    check_numbers(values)
    get = getter(values)
    return from_flags(
        RunConfig,
        get,
        data=from_flags(DataConfig, get),
        model=from_flags(ModelConfig, get),
        train=_train(get),
        select_attack=_attack("select", get),
        report_attack=_attack("report", get),
        prune=from_flags(PruneConfig, get),
        pretrain=_stage("pretrain", get),
        admm=_stage("admm", get),
        retrain=_stage("retrain", get),
        start=from_flags(StartConfig, get),
    )


def folder_of(config: RunConfig, dataset: str, out_dir: str | None) -> Path:
    """The folder of a run on the data set of that name; a ValueError if it lies among the images."""
    default = Path("runs") / f"{config.name}_{dataset}_seed{config.seed}"
    folder = Path(out_dir).expanduser() if out_dir else default
    if config.data.dataset.startswith("folder:"):
        from rap_jax.data.image_folder import require_outside  # with what `--help` does not wait for

        require_outside(config.data.dataset.removeprefix("folder:"), folder)
    return folder


def getter(values: flags.FlagValues) -> Get:
    """The value of a flag by its name."""
    return lambda name: values[name].value


def check_numbers(values: flags.FlagValues) -> None:
    """Refuses numbers that 32 bits would make others: too large ones, and fractions that would be zero or infinite."""
    for name in values:
        value = values[name].value
        if isinstance(value, int):
            require(abs(value) < 2**32, name, value, f"a whole number below {2**32}")
        elif isinstance(value, float) and math.isfinite(value) and value != 0:
            fits = _LEAST <= abs(value) <= _LARGEST
            require(fits, name, value, f"0, or a number from {_LEAST:.3g} to {_LARGEST:.3g}, as 32 bits hold it")


def compute_from_flags(values: flags.FlagValues = FLAGS) -> ComputeConfig:
    """How the run computes; settings that the command has no flags for keep their defaults."""
    absent: Any = {field.name: field.default for field in dataclasses.fields(ComputeConfig) if field.name not in values}
    return from_flags(ComputeConfig, getter(values), **absent)


def _train(get: Get) -> TrainConfig:
    replays = get("free_replays") if get("train_attack") == "free" else 0
    if get("train_attack") == "free":
        require(replays >= 2, "free_replays", replays, "2 or more updates on each batch with --train_attack=free")
    fields: dict[str, Any] = {"attack": _train_attack(get), "augment": from_flags(AugmentConfig, get)}
    # As the settings of PGD, see below.
    slope = get("train_leaky_slope") if get("train_attack") in ("pgd", "fgsm") else 0.0
    return from_flags(TrainConfig, get, **fields, free_replays=replays, train_leaky_slope=slope)


def _train_attack(get: Get) -> AttackConfig | None:
    """The attack by its kind. A flagfile may have set steps and step size for PGD: the other kinds do not read them."""
    kind, restarts = get("train_attack"), get("train_num_restarts")
    if kind == "none":
        return None
    epsilon = get("epsilon") if get("train_epsilon") in (None, "") else get("train_epsilon")
    if kind == "pgd":
        return _attack("train", get, epsilon=epsilon)
    require(restarts == 1, "train_num_restarts", restarts, f"1 with --train_attack={kind}, which is one step")
    starts = get("random_start") or kind != "fgsm"
    require(starts, "random_start", False, "True with --train_attack=fgsm, whose one step needs it")
    with _named("train attack"):
        return {"fgsm": fgsm_attack, "free": free_attack}[kind](get("norm"), epsilon)


def _attack(part: str, get: Get, **fields: Any) -> AttackConfig:
    with _named(f"{part} attack"):
        return from_flags(AttackConfig, get, {"part": part}, **fields)


def _stage(stage: Stage, get: Get) -> StageConfig:
    words = {"stage": stage}
    with _named(stage):
        return from_flags(StageConfig, get, words, optimizer=from_flags(OptimizerConfig, get, words))


@contextlib.contextmanager
def _named(part: str) -> Iterator[None]:
    """Says of what refuses a setting which part of the run it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error
