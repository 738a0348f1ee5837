"""The frozen configs that parsed flags become; a bad combination is refused here."""

from collections.abc import Callable
from typing import Any

from absl import flags

from rap_jax.config import (
    AttackConfig,
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    PruneConfig,
    RunConfig,
    Stage,
    StageConfig,
    StartConfig,
    TrainConfig,
)

FLAGS = flags.FLAGS
Get = Callable[[str], Any]


def config_from_flags(values: flags.FlagValues = FLAGS) -> RunConfig:
    """The run that the flags describe.

    Raises:
      ValueError: a value or a combination that cannot work.
    """
    get: Get = lambda name: values[name].value
    return RunConfig(
        name=get("name"),
        seed=get("seed"),
        data=DataConfig(
            dataset=get("dataset"),
            data_dir=get("data_dir"),
            raw_data_dir=get("raw_data_dir") or None,  # an empty string takes back what a flagfile says
            fallback_dataset=get("fallback_dataset") or None,
            validation_fraction=get("validation_fraction"),
            validation_seed=get("validation_seed"),
            image_size=_image_size(get("image_size")),
        ),
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


def output_from_flags(values: flags.FlagValues = FLAGS) -> OutputConfig:
    """How often the run writes."""
    given: dict[str, Any] = {name: values[name].value for name in OutputConfig.__dataclass_fields__}
    return OutputConfig(**given)


def compute_from_flags(values: flags.FlagValues = FLAGS) -> ComputeConfig:
    """How the run computes."""
    given: dict[str, Any] = {name: values[name].value for name in ComputeConfig.__dataclass_fields__}
    return ComputeConfig(**given)


def _train(get: Get) -> TrainConfig:
    return TrainConfig(
        attack=None if get("train_attack") == "none" else _attack("train", get),
        attack_batch_norm=get("attack_batch_norm"),
        augment=AugmentConfig(get("crop_padding"), get("horizontal_flip")),
        label_smoothing=get("label_smoothing"),
        mixup_alpha=get("mixup_alpha"),
    )


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
