"""The flags of a training run, in groups.

Radii and steps are in [0, 1] and may be written as fractions: `--epsilon=8/255`. Bad values are refused where they are
parsed or where the configs are built (`launch.configs`), with the value and what was expected.
"""

import contextlib
from collections.abc import Iterator

from absl import flags

from launch.settings import define_flag, define_settings
from rap_jax.config import (
    STAGES,
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
    StageConfig,
    StartConfig,
    TrainConfig,
)

FLAGS = flags.FLAGS
COMPILATION_CACHE = "~/.cache/rap_jax/compiled"
PROCESSES = "Several processes that compute as one"
# Title of each group of flags -> their names, for --help and for run.flags.
GROUPS: dict[str, list[str]] = {}
# Attacks of a run, and when each is used.
_PHASES = {"train": "training", "select": "validation after each epoch", "report": "the report"}


@contextlib.contextmanager
def flag_group(title: str, groups: dict[str, list[str]], values: flags.FlagValues) -> Iterator[None]:
    """Notes in `groups` which flags are defined in `values` inside the block."""
    before = set(values)
    yield
    groups[title] = [name for name in values if name not in before]


def define_compute_flags(values: flags.FlagValues = FLAGS) -> None:
    """How a command computes, which changes its results by rounding alone."""
    define_flag("path", "compilation_cache_dir", COMPILATION_CACHE, "Where compiled programs are kept from one start "
                "to the next; empty for none.", values)  # fmt: skip
    define_settings(ComputeConfig, "num_cpu_devices", "implementation", values=values)
    flags.DEFINE_enum("progress", "auto", ["auto", "bar", "plain", "none"], "How progress is shown, on standard error: "
                      "a bar, a line every 10 seconds, or nothing; auto is a bar on a terminal and lines elsewhere.",
                      values)  # fmt: skip


with flag_group("Run", GROUPS, FLAGS):
    define_settings(RunConfig, "name")
    define_flag("path", "out_dir", None, "Folder of the run. Default: runs/NAME_DATASET_seedSEED. If it holds the same "
                "run, that run goes on; if it holds another, it is refused.")  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "Print steps, memory of a device and what the devices send each other, and "
                      "train nothing.")  # fmt: skip
    flags.DEFINE_string("target", "", "With --dry_run: compile the step of each stage for a TPU slice that is not "
                        "there, such as tpu:v5e:4x4, and print memory, collectives and estimated times. Needs the "
                        "extra tpu_aot. Empty for the devices that are there.")  # fmt: skip
    define_settings(RunConfig, "seed")
    flags.DEFINE_integer("num_seeds", 1, "Train so many seeds in this process, from --seed on, each as it would be "
                         "alone, in a folder of its own: OUT_DIR/seedSEED. {seed} in --name, --out_dir and "
                         "--start_run stands for the seed. Pays on accelerators, for small networks.",
                         lower_bound=1, upper_bound=1024)  # fmt: skip
    define_settings(RunConfig, "batch_size", "eval_batch_size", "steps_per_epoch")
    define_settings(OutputConfig)
    define_compute_flags()
    define_settings(ComputeConfig, "num_model_shards", "stream_data")
with flag_group(PROCESSES, GROUPS, FLAGS):
    define_settings(ProcessConfig)
with flag_group("Data", GROUPS, FLAGS):
    define_settings(DataConfig)
    define_settings(AugmentConfig)
with flag_group("Network and where its weights come from", GROUPS, FLAGS):
    define_settings(ModelConfig)
    define_settings(StartConfig)
with flag_group("Attacks: in training, to select the kept model, in the report", GROUPS, FLAGS):
    define_settings(AttackConfig, "norm", "epsilon")
    flags.DEFINE_enum("train_attack", "pgd", ["pgd", "fgsm", "free", "none"], "Attack in training. fgsm: one step of "
                      "1.25 epsilon from a random start (Wong et al., 2020); it may fail all at once (catastrophic "
                      "overfitting), which validation by PGD of several steps shows. free: the training pass moves "
                      "images and weights (Shafahi et al., 2019), see --free_replays. none: natural training. Only "
                      "pgd reads --train_step_size and --train_num_steps.")  # fmt: skip
    flags.DEFINE_integer("free_replays", 4, "Updates on each batch in a row with --train_attack=free, 2 or more. Each "
                         "counts as a step: E epochs go through the data E / free_replays times.")  # fmt: skip
    define_flag("fraction", "train_epsilon", None, "Radius in training, where it is another one than --epsilon.")
    for part, phase in _PHASES.items():
        words = {"part": part, "phase": phase}
        define_settings(AttackConfig, "step_size", "num_steps", "num_restarts", "step_schedule", words=words)
    define_settings(AttackConfig, "random_start")
    define_settings(RunConfig, "selection")
with flag_group("Training step", GROUPS, FLAGS):
    define_settings(TrainConfig)
with flag_group("Pruning", GROUPS, FLAGS):
    define_settings(PruneConfig)
    define_settings(RunConfig, "small_retrain")
for stage in STAGES:
    with flag_group(f"Stage {stage}", GROUPS, FLAGS):
        define_settings(StageConfig, "num_epochs", words={"stage": stage})
        define_settings(OptimizerConfig, words={"stage": stage})
        define_settings(StageConfig, "epsilon_ramp_epochs", words={"stage": stage})
