"""The flags of an evaluation, and what they mean together with the run that is evaluated.

What the user does not give comes from the run: its data, its validation split, its threat model. A flagfile of a
training run is taken as well; of it count the flags that an evaluation has, but for --out_dir, which is the folder of
that run.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import flags as training
from launch.configs import check_numbers, getter
from launch.help import format_help
from launch.settings import define_flag, define_settings, from_flags
from rap_jax.config import DataConfig, EvaluationConfig, require

if TYPE_CHECKING:
    from rap_jax.data import Dataset

# Its own, so that both commands may live in one process.
FLAGS = flags.FlagValues()
# Title of each group of flags -> their names, for --help.
GROUPS: dict[str, list[str]] = {}
_OF_ONE_DATASET = ("dataset", "raw_data_dir", "fallback_dataset", "image_size")

with training.flag_group("Evaluation", GROUPS, FLAGS):
    define_flag("network", "checkpoint", None, "What is evaluated: the folder of a finished run; "
                 "module:function of your own, images [N, H, W, C] in [0, 1] -> logits [N, K]; or a file written by "
                 "jax.export, serialised with vjp_order=1.", FLAGS)  # fmt: skip
    define_flag("path", "out_dir", None, "Folder of the evaluation. Default: RUN/evaluation, or evaluations/NAME. If "
                 "it holds the same evaluation, that one goes on; if it holds another, it is refused.",
                 FLAGS)  # fmt: skip
    define_settings(EvaluationConfig, "split", "num_images", "seed", values=FLAGS)
with training.flag_group("Threat model and attacks", GROUPS, FLAGS):
    flags.DEFINE_enum("norm", None, ["linf", "l2"], "Norm of the threat model. Default: that of the run's report, or "
                      "linf.", FLAGS)  # fmt: skip
    define_flag("fraction", "epsilon", None, "Radius of the threat model, for images in [0, 1]. Default: that of the "
                "run's report; has to be given for a network from elsewhere.", FLAGS)  # fmt: skip
    attacks = ("pgd_num_steps", "pgd_step_size", "pgd_num_restarts", "pgd_losses", "auto_attack", "certify")
    define_settings(EvaluationConfig, *attacks, values=FLAGS)
    flags.DEFINE_list("transfer_from", [], "Other networks, named as in --checkpoint: PGD makes images on each, and "
                      "they are shown to the network that is evaluated.", FLAGS)  # fmt: skip
with training.flag_group("Data (default: that of the run)", GROUPS, FLAGS):
    define_settings(DataConfig, values=FLAGS)
with training.flag_group("Computing", GROUPS, FLAGS):
    flags.DEFINE_integer("attack_batch_size", 0, "Images attacked at a time, over all devices; 0 chooses.",
                         flag_values=FLAGS)  # fmt: skip
    training.define_compute_flags(FLAGS)


def evaluation_from_flags(run: dict[str, Any] | None, values: flags.FlagValues = FLAGS) -> EvaluationConfig:
    """The evaluation that the flags describe.

    Args:
      run: what results.json of the run holds that is evaluated; None for a network from elsewhere.

    Raises:
      ValueError: a value or a combination that cannot work, or no epsilon.
    """
    check_numbers(values)
    get = getter(values)
    attack: dict[str, Any] = run["config"]["report_attack"] if run else {"norm": "linf", "epsilon": None}
    epsilon = attack["epsilon"] if get("epsilon") is None else get("epsilon")
    hint = "the radius of the threat model, such as --epsilon=8/255, for a network that comes from no run"
    require(epsilon is not None, "epsilon", epsilon, hint)
    return from_flags(EvaluationConfig, get, epsilon=epsilon, norm=get("norm") or attack["norm"])


def data_for(run: dict[str, Any] | None, values: flags.FlagValues = FLAGS) -> DataConfig:
    """The data: that of the run, but for what the user gives."""
    of_run = _data_of(run) if run else {}
    if values["dataset"].present:  # then these belong to other data
        of_run = {name: value for name, value in of_run.items() if name not in _OF_ONE_DATASET}
    # In place of a data set that is not there, another one could show the network images that it was trained on.
    fallback = values["fallback_dataset"].value
    allowed = fallback if run is None or run["data"]["name"] == fallback else None
    chosen = lambda name: values[name].value if values[name].present else of_run.get(name, values[name].value)
    return from_flags(DataConfig, chosen, fallback_dataset=allowed or None)


def check_same_data(run: dict[str, Any] | None, dataset: "Dataset", values: flags.FlagValues = FLAGS) -> None:
    """Refuses data that are no longer those of the run, unless the user names a data set.

    The validation split might then hold images that the network learnt from.
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
    if found.get("validation_seed") is not None:
        config["validation_seed"] = found["validation_seed"]
    return config


def without_training(lines: list[str]) -> list[str]:
    """The lines of a flagfile that concern an evaluation."""
    foreign = {name for names in training.GROUPS.values() for name in names} - set(FLAGS)
    is_foreign = lambda name: name in foreign or name.removeprefix("no") in foreign
    names = [line.lstrip("-").partition("=")[0] for line in lines]
    of_training = any(map(is_foreign, names))
    pairs = zip(names, lines, strict=True)
    return [line for name, line in pairs if not (is_foreign(name) or (of_training and name == "out_dir"))]


_INTRODUCTION = [
    "Attacks a finished network and says how robust it is, and whether to believe it:",
    "    python -m launch.evaluate --checkpoint=RUN_FOLDER [--FLAG=VALUE ...]",
    "Also: --checkpoint=module:function or a file of jax.export, with --epsilon and --dataset. A flagfile of "
    "launch.main may be given. The same command again goes on where it stopped.",
]
help_text = functools.partial(format_help, _INTRODUCTION, GROUPS, FLAGS)
