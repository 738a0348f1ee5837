"""The flags of an evaluation, and what they mean together with the run that is evaluated.

What the user does not give comes from the run: its data, its validation split, its threat model. A flagfile of a
training run is taken as well; of it count the flags that an evaluation has, but for --out_dir, which is the folder of
that run.
"""

from pathlib import Path
from typing import Any

from absl import flags

from launch import flags as training
from launch.configs import Get, check_numbers, data_from_flags
from launch.help import format_help
from launch.parsers import NetworkParser
from rap_jax.config import DataConfig, require
from rap_jax.config.evaluation import AUTO_ATTACKS, SPLITS, EvaluationConfig
from rap_jax.data import Dataset

# Its own, so that both commands may live in one process.
FLAGS = flags.FlagValues()
# Title of each group of flags -> their names, for --help; filled by `define_flags`.
GROUPS: dict[str, list[str]] = {}
_OF_ONE_DATASET = ("dataset", "raw_data_dir", "fallback_dataset", "image_size")


def define_flags() -> None:
    """Defines all flags of an evaluation; called again it does nothing."""
    if GROUPS:
        return
    with training.flag_group("Evaluation", GROUPS, FLAGS):
        _define_evaluation_flags()
    with training.flag_group("Threat model and attacks", GROUPS, FLAGS):
        _define_attack_flags()
    with training.flag_group("Data (default: that of the run)", GROUPS, FLAGS):
        training.define_data_flags(FLAGS)
    with training.flag_group("Computing", GROUPS, FLAGS):
        flags.DEFINE_integer("attack_batch_size", 0, "Images attacked at a time, over all devices; 0 chooses.",
                             flag_values=FLAGS)  # fmt: skip
        training.define_compute_flags(FLAGS)


def _define_evaluation_flags() -> None:
    default = EvaluationConfig(epsilon=1.0)
    flags.DEFINE(NetworkParser(), "checkpoint", None, "What is evaluated: the folder of a finished run; "
                 "module:function of your own, images [N, H, W, C] in [0, 1] -> logits [N, K]; or a file written by "
                 "jax.export, serialised with vjp_order=1.", FLAGS)  # fmt: skip
    training.define_path("out_dir", None, "Folder of the evaluation. Default: RUN/evaluation, or evaluations/NAME. If "
                         "it holds the same evaluation, that one goes on; if it holds another, it is refused.",
                         FLAGS)  # fmt: skip
    flags.DEFINE_enum("split", default.split, SPLITS, "Whose images are attacked.", FLAGS)
    flags.DEFINE_integer("num_images", default.num_images, "The first so many of them; 0 for all.", flag_values=FLAGS)
    flags.DEFINE_integer("seed", default.seed, "Seed of everything random in the attacks.", flag_values=FLAGS)


def _define_attack_flags() -> None:
    default = EvaluationConfig(epsilon=1.0)
    flags.DEFINE_enum("norm", None, ["linf", "l2"], "Norm of the threat model. Default: that of the run's report, or "
                      "linf.", FLAGS)  # fmt: skip
    training.define_fraction("epsilon", None, "Radius of the threat model, for images in [0, 1]. Default: that of the "
                             "run's report; has to be given for a network from elsewhere.", FLAGS)  # fmt: skip
    flags.DEFINE_integer("pgd_num_steps", default.pgd_num_steps, "Steps of PGD; 0 leaves it out. An image of any step "
                         "breaks an example here; in launch.main the last one alone.", flag_values=FLAGS)  # fmt: skip
    training.define_fraction("pgd_step_size", None, "Step size of PGD. Default: 2.5 epsilon / steps.", FLAGS)
    flags.DEFINE_integer("pgd_num_restarts", default.pgd_num_restarts, "Random starts of PGD on each loss, worst case "
                         "per example.", flag_values=FLAGS)  # fmt: skip
    flags.DEFINE_list("pgd_losses", list(default.pgd_losses), "What PGD raises, one after the other: cross-entropy "
                      "(ce), margin (C&W).", FLAGS)  # fmt: skip
    flags.DEFINE_enum("auto_attack", default.auto_attack, AUTO_ATTACKS, "Version of AutoAttack. rand is for "
                      "networks that draw random numbers, (images, key) -> logits; there is no PGD then.",
                      FLAGS)  # fmt: skip
    flags.DEFINE_list("transfer_from", [], "Other networks, named as in --checkpoint: PGD makes images on each, and "
                      "they are shown to the network that is evaluated.", FLAGS)  # fmt: skip


def evaluation_from_flags(run: dict[str, Any] | None, values: flags.FlagValues = FLAGS) -> EvaluationConfig:
    """The evaluation that the flags describe.

    Args:
      run: what results.json of the run holds that is evaluated; None for a network from elsewhere.

    Raises:
      ValueError: a value or a combination that cannot work, or no epsilon.
    """
    check_numbers(values)
    get: Get = lambda name: values[name].value
    attack: dict[str, Any] = run["config"]["report_attack"] if run else {"norm": "linf", "epsilon": None}
    epsilon = attack["epsilon"] if get("epsilon") is None else get("epsilon")
    hint = "the radius of the threat model, such as --epsilon=8/255, for a network that comes from no run"
    require(epsilon is not None, "epsilon", epsilon, hint)
    same = ("split", "num_images", "seed", "pgd_num_steps", "pgd_step_size", "pgd_num_restarts", "auto_attack")
    return EvaluationConfig(
        epsilon=epsilon,
        norm=get("norm") or attack["norm"],
        pgd_losses=tuple(get("pgd_losses")),
        **{name: get(name) for name in same},
    )


def data_for(run: dict[str, Any] | None, values: flags.FlagValues = FLAGS) -> DataConfig:
    """The data: that of the run, but for what the user gives.

    Raises:
      ValueError: a value or a combination that cannot work.
    """
    of_run = _data_of(run) if run else {}
    if values["dataset"].present:  # then these belong to other data
        of_run = {name: value for name, value in of_run.items() if name not in _OF_ONE_DATASET}
    # In place of a data set that is not there, another one could show the network images that it was trained on.
    fallback = values["fallback_dataset"].value
    allowed = fallback if run is None or run["data"]["name"] == fallback else None
    chosen = lambda name: values[name].value if values[name].present else of_run.get(name, values[name].value)
    return data_from_flags(lambda name: allowed if name == "fallback_dataset" else chosen(name))


def check_same_data(run: dict[str, Any] | None, dataset: Dataset, values: flags.FlagValues = FLAGS) -> None:
    """Refuses data that are no longer those of the run, unless the user names a data set.

    Raises:
      ValueError: so it is; the validation split might then hold images that the network learnt from.
    """
    if run is None or values["dataset"].present or dataset.sha256 == run["data"]["sha256"]:
        return
    raise ValueError(
        f"The data {run['config']['data']['dataset']} have changed since the run: SHA-256 {dataset.sha256}; expected "
        f"{run['data']['sha256']}. Restore them, or name with --dataset the data that shall be attacked."
    )


def _data_of(run: dict[str, Any]) -> dict[str, Any]:
    """The data flags of a run, with what it found in the end: the data set after a fallback, the seed of its split."""
    config, found = dict(run["config"]["data"]), run["data"]
    if found["name"] == config["fallback_dataset"]:
        config["dataset"] = found["name"]
    raw = config["raw_data_dir"]
    # What was prepared from it is enough.
    config["raw_data_dir"] = raw if raw and Path(raw).expanduser().is_dir() else None
    config["image_size"] = [str(side) for side in config["image_size"] or ()]
    if found.get("validation_seed") is not None:
        config["validation_seed"] = found["validation_seed"]
    return config


def without_training(lines: list[str]) -> list[str]:
    """The lines of a flagfile that concern an evaluation."""
    training.define_flags()
    foreign = {name for names in training.GROUPS.values() for name in names} - set(FLAGS)
    is_foreign = lambda name: name in foreign or name.removeprefix("no") in foreign
    names = [line.lstrip("-").partition("=")[0] for line in lines]
    of_training = any(map(is_foreign, names))
    pairs = zip(names, lines, strict=True)
    return [line for name, line in pairs if not (is_foreign(name) or (of_training and name == "out_dir"))]


def help_text(width: int | None = None) -> str:
    """All that a user needs to start an evaluation, wrapped to the terminal, or to `width` columns."""
    introduction = [
        "Attacks a finished network and says how robust it is, and whether to believe it:",
        "    python -m launch.evaluate --checkpoint=RUN_FOLDER [--FLAG=VALUE ...]",
        "Also: --checkpoint=module:function or a file of jax.export, with --epsilon and --dataset. A flagfile of "
        "launch.main may be given. The same command again goes on where it stopped.",
    ]
    return format_help(introduction, GROUPS, FLAGS, width)
