"""The frozen configs that parsed flags become; a bad combination is refused here."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from rap_jax.config import (
    AttackConfig,
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    ProcessConfig,
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
_LEAST, _LARGEST = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
Get = Callable[[str], Any]


def config_from_flags(values: flags.FlagValues = FLAGS) -> RunConfig:
    """The run that the flags describe.

    Raises:
      ValueError: a value or a combination that cannot work.
    """
    check_numbers(values)
    get: Get = lambda name: values[name].value
    return RunConfig(
        name=get("name"),
        seed=get("seed"),
        data=data_from_flags(get),
        model=ModelConfig(get("model"), get("width"), get("initializer")),
        train=_train(get),
        select_attack=_attack("select", get),
        report_attack=_attack("report", get),
        prune=PruneConfig(**{n: get(n) for n in PruneConfig.__dataclass_fields__}),
        pretrain=_stage("pretrain", get),
        admm=_stage("admm", get),
        retrain=_stage("retrain", get),
        batch_size=get("batch_size"),
        eval_batch_size=get("eval_batch_size"),
        steps_per_epoch=get("steps_per_epoch"),
        small_retrain=get("small_retrain"),
        start=StartConfig(get("start_run") or None, get("start_weights")),
    )


def check_numbers(values: flags.FlagValues) -> None:
    """Refuses numbers that 32 bits would make others: too large ones, and fractions that would be zero or infinite.

    Raises:
      ValueError: names the flag and its number.
    """
    for name in values:
        value = values[name].value
        if isinstance(value, int):
            require(abs(value) < 2**32, name, value, f"a whole number below {2**32}")
        elif isinstance(value, float) and math.isfinite(value) and value != 0:
            fits = _LEAST <= abs(value) <= _LARGEST
            require(fits, name, value, f"0, or a number from {_LEAST:.3g} to {_LARGEST:.3g}, as 32 bits hold it")


def data_from_flags(get: Get) -> DataConfig:
    """Which data, from the values of the flags that `define_data_flags` defines."""
    return DataConfig(
        dataset=get("dataset"),
        data_dir=get("data_dir"),
        raw_data_dir=get("raw_data_dir") or None,  # an empty string takes back what a flagfile says
        fallback_dataset=get("fallback_dataset") or None,
        validation_fraction=get("validation_fraction"),
        validation_seed=get("validation_seed"),
        image_size=_image_size(get("image_size")),
    )


def output_from_flags(values: flags.FlagValues = FLAGS) -> OutputConfig:
    """How often the run writes, and what."""
    given: dict[str, Any] = {name: values[name].value for name in OutputConfig.__dataclass_fields__}
    return OutputConfig(**given)


def compute_from_flags(values: flags.FlagValues = FLAGS) -> ComputeConfig:
    """How the run computes."""
    names = (name for name in ComputeConfig.__dataclass_fields__ if name in values)  # not all commands have all
    given: dict[str, Any] = {name: values[name].value for name in names}
    return ComputeConfig(**given)


def processes_from_flags(values: flags.FlagValues = FLAGS) -> ProcessConfig:
    """Which processes compute as one."""
    given: dict[str, Any] = {name: values[name].value for name in ProcessConfig.__dataclass_fields__}
    return ProcessConfig(**given)


def _train(get: Get) -> TrainConfig:
    return TrainConfig(
        attack=_train_attack(get),
        attack_batch_norm=get("attack_batch_norm"),
        augment=AugmentConfig(get("crop_padding"), get("horizontal_flip")),
        label_smoothing=get("label_smoothing"),
        mixup_alpha=get("mixup_alpha"),
        free_replays=_free_replays(get) if get("train_attack") == "free" else 0,
        compute_dtype=get("compute_dtype"),
    )


def _train_attack(get: Get) -> AttackConfig | None:
    """The attack by its kind. A flagfile may have set steps and step size for PGD: the other kinds do not read them."""
    kind, restarts = get("train_attack"), get("train_num_restarts")
    if kind == "none":
        return None
    if kind == "pgd":
        return _attack("train", get)
    require(restarts == 1, "train_num_restarts", restarts, f"1 with --train_attack={kind}, which is one step")
    starts = get("random_start") or kind != "fgsm"
    require(starts, "random_start", False, "True with --train_attack=fgsm, whose one step needs it")
    attack_of = {"fgsm": fgsm_attack, "free": free_attack}[kind]
    try:
        return attack_of(get("norm"), get("epsilon"))
    except ValueError as error:
        raise ValueError(f"train attack: {error}") from error


def _free_replays(get: Get) -> int:
    replays = get("free_replays")
    require(replays >= 2, "free_replays", replays, "2 or more updates on each batch with --train_attack=free")
    return replays


def _image_size(given: list[str]) -> tuple[int, int] | None:
    if not given:
        return None
    try:
        height, width = map(int, given)
    except ValueError as error:
        raise ValueError(f"--image_size is {','.join(given)!r}; expected height,width such as 32,32.") from error
    return height, width


def _attack(part: str, get: Get) -> AttackConfig:
    try:
        return AttackConfig(
            norm=get("norm"),
            epsilon=get("epsilon"),
            step_size=get(f"{part}_step_size"),
            num_steps=get(f"{part}_num_steps"),
            num_restarts=get(f"{part}_num_restarts"),
            random_start=get("random_start"),
        )
    except ValueError as error:
        raise ValueError(f"{part} attack: {error}") from error


def _stage(stage: Stage, get: Get) -> StageConfig:
    try:
        step_epochs = tuple(float(epoch) for epoch in get(f"{stage}_step_epochs"))
    except ValueError as error:
        given = get(f"{stage}_step_epochs")
        raise ValueError(f"--{stage}_step_epochs is {given!r}; expected epochs such as 80,150.") from error
    fields = ("learning_rate", "schedule", "warmup_epochs", "step_factor", "momentum", "weight_decay")
    try:
        optimizer = OptimizerConfig(
            name=get(f"{stage}_optimizer"), step_epochs=step_epochs, **{f: get(f"{stage}_{f}") for f in fields}
        )
        return StageConfig(get(f"{stage}_epochs"), optimizer, get(f"{stage}_epsilon_ramp_epochs"))
    except ValueError as error:
        raise ValueError(f"{stage}: {error}") from error
