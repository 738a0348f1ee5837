"""A whole run: its stages with their optimizers, pruning, and what is written."""

import dataclasses
import importlib.util
import math
from typing import Literal, get_args

from rap_jax.config.attack import AttackConfig
from rap_jax.config.checks import (
    require,
    require_at_least,
    require_choice,
    require_choices,
    require_positive,
    require_seed,
    setting,
)
from rap_jax.config.data import AugmentConfig, DataConfig, ModelConfig

Stage = Literal["pretrain", "admm", "retrain"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Structure = Literal["irregular", "filter", "column", "bn_filter"]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)
PruneMethod = Literal["admm", "hydra", "harp", "twinrep", "flyingbird", "magnitude", "random"]
_MOST_EPOCHS = 10**6


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """First-order optimizer of one stage with its learning-rate schedule."""

    name: Literal["adam", "sgd"] = setting("adam", "Optimizer of {stage}.", flag="{stage}_optimizer")
    learning_rate: float = setting(1e-3, "Peak learning rate of {stage}.", flag="{stage}_learning_rate")
    schedule: Literal["constant", "cosine", "step"] = setting("cosine", "Shape of the learning rate in {stage}.",
        flag="{stage}_schedule")  # fmt: skip
    num_cycles: int = setting(1, "How often the learning rate of {stage} goes through its shape, each time in an equal "
        "share of the steps.", flag="{stage}_num_cycles")  # fmt: skip
    warmup_epochs: float = setting(0.0, "Epochs of linear warm-up in {stage}, in each cycle.",
        flag="{stage}_warmup_epochs")  # fmt: skip
    step_epochs: tuple[float, ...] = setting((), "Epochs at which the step schedule of {stage} falls.",
        flag="{stage}_step_epochs", syntax="epochs")  # fmt: skip
    step_factor: float = setting(0.1, "Factor at each of these.", flag="{stage}_step_factor")
    momentum: float = setting(0.9, "Momentum of SGD in {stage}.", flag="{stage}_momentum")
    weight_decay: float = setting(0.0, "L2 weight decay in {stage}.", flag="{stage}_weight_decay")

    def __post_init__(self) -> None:
        require_choice("optimizer", self.name, ("adam", "sgd"))
        require_choices(self)
        require_positive("learning_rate", self.learning_rate)
        require(self.num_cycles >= 1, "num_cycles", self.num_cycles, "1 or more cycles")
        require_at_least("warmup_epochs", self.warmup_epochs, 0, " epochs")
        has_shape = self.schedule != "constant" or self.warmup_epochs > 0
        hint = "1 with a constant schedule, which has no shape to repeat, or another schedule such as cosine"
        require(self.num_cycles == 1 or has_shape, "num_cycles", self.num_cycles, hint)
        increasing = all(a < b for a, b in zip((0.0, *self.step_epochs), self.step_epochs, strict=False))
        increasing = increasing and all(map(math.isfinite, self.step_epochs))
        require(increasing, "step_epochs", self.step_epochs, "epochs above 0 in rising order, such as 80,150")
        counted = all(epoch <= _MOST_EPOCHS for epoch in self.step_epochs)
        require(counted, "step_epochs", self.step_epochs, f"epochs up to {_MOST_EPOCHS}, whose steps can be counted")
        stepped = self.schedule != "step" or bool(self.step_epochs)
        require(stepped, "step_epochs", self.step_epochs, "at least one epoch when schedule is step")
        require_positive("step_factor", self.step_factor)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        require_at_least("weight_decay", self.weight_decay, 0)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of a run."""

    num_epochs: int = setting(6, "Epochs of {stage}; 0 leaves it out.", flag="{stage}_epochs")
    optimizer: OptimizerConfig = OptimizerConfig()
    epsilon_ramp_epochs: float = setting(0.0, "Epochs over which the radius rises from 0 in {stage}.",
        flag="{stage}_epsilon_ramp_epochs")  # fmt: skip

    def __post_init__(self) -> None:
        require(self.num_epochs >= 0, "num_epochs", self.num_epochs, "1 or more epochs, or 0 to leave the stage out")
        require_at_least("epsilon_ramp_epochs", self.epsilon_ramp_epochs, 0, " epochs")


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Which weights are pruned, and how hard ADMM pulls them to zero."""

    structure: Structure = setting("filter", "What is pruned; bn_filter: filters, chosen by the scale of their "
        "BatchNorm.")  # fmt: skip
    # Pairs of a shell-style wildcard over layer names, such as `conv1`, and a share. Unmatched layers stay dense.
    sparsity: tuple[tuple[str, float], ...] = setting((("*", 0.5),), "Share to remove: one ratio for all layers, or "
        "pattern:ratio pairs; the first pattern that matches a layer counts. none for no pruning.",
        syntax="sparsity")  # fmt: skip
    # `global` lets the layers compete; of the others see `rap_jax.pruning.budgets`.
    budget: Literal["layer", "global", "erk", "lamp", "global_normalised"] = setting("layer", "layer: the ratio counts "
        "in each layer. global: over all of them together, by the squares of their weights. erk (Erdos-Renyi-Kernel), "
        "lamp (layer-adaptive magnitudes) and global_normalised (scores over the l2 norm of their layer's) keep in all "
        "what layer would keep, and share it by layer, once, at the start of ADMM or at the cut.")  # fmt: skip
    budget_of: Literal["parameters", "multiply_adds"] = setting("parameters", "What erk, lamp and global_normalised "
        "keep in all; of filters what is left after compaction.")  # fmt: skip
    # See docs/pruning.md.
    method: PruneMethod = setting("admm", "What decides which weights go, in the stage between pretrain and retrain, "
        "whose flags begin with admm_. admm: they are pulled to zero. hydra: learned scores (Sehwag et al., 2020). "
        "harp: and a learned share of each layer (Zhao and Wressnegger, 2023). twinrep: weights as products of two "
        "factors (Li et al., 2023). flyingbird: small weights are dropped and others grow (Chen et al., 2022). "
        "magnitude, random: the largest, or any, are kept from the start of the stage.",
        flag="prune_method")  # fmt: skip
    harp_growth: float = setting(0.01, "Growth per epoch of the weight of HARP's term for keeping too much; the "
        "authors take 0.01, and 0.1 for ImageNet.")  # fmt: skip
    twinrep_cut: float = setting(0.1, "Share of the stage after which TwinRep cuts its products; the authors' 10 of "
        "100 epochs.")  # fmt: skip
    flyingbird_interval: float = setting(0.5, "Epochs between two exchanges of weights by FlyingBird; the authors "
        "take 2.3 to 3 of 200.")  # fmt: skip
    flyingbird_share: float = setting(0.5, "Share of a layer's weights that its first exchange drops; it falls to 0 by "
        "half a cosine.")  # fmt: skip
    # See `rap_jax.compaction.merge`.
    merge_duplicates: bool = setting(False, "Merge filters that are multiples of each other into one, before ADMM and "
        "before the cut; as many others stay that would have been cut. For --structure=filter; layers with BatchNorm "
        "are left alone.")  # fmt: skip
    rho: float = setting(0.01, "ADMM penalty; what it means depends on --rho_rule.")
    rho_rule: Literal["uniform", "gradient"] = setting("gradient", "uniform: one rho for all layers, as in the paper. "
        "gradient: rho times each layer's gradient norm over its weight norm.")  # fmt: skip
    rho_growth: float = setting(1.3, "Factor on rho at each dual step.")
    rescale_dual: bool = setting(True, "Keep rho*u when rho grows (Boyd); off: keep u (paper).")
    # The growing penalty, see `rap_jax.pruning.admm`.
    dual_keeps_graph: bool = setting(False, "Multiply the penalty's gradient by 1 + the number of dual steps, as the "
        "authors' code does.")  # fmt: skip
    reset_learning_rate: bool = setting(False, "Begin the ADMM stage's schedule anew after each dual step; its lengths "
        "then count from there.")  # fmt: skip
    dual_interval: float = setting(0.5, "Time between dual steps.")
    dual_interval_unit: Literal["epochs", "steps"] = setting("epochs", "What --dual_interval counts.")

    def __post_init__(self) -> None:
        require_choices(self)
        patterns = [pattern for pattern, _ in self.sparsity]
        hint = "each pattern once: the first that matches a layer decides"
        require(len(set(patterns)) == len(patterns), "sparsity", self.sparsity, hint)
        for pattern, ratio in self.sparsity:
            require(bool(pattern), "sparsity", self.sparsity, "a layer pattern before each ratio, such as conv1:0.5")
            require(0 <= ratio < 1, f"sparsity of {pattern}", ratio, "a share of zeros in [0, 1)")
        if self.budget != "layer":
            ratios, hint = {ratio for _, ratio in self.sparsity if ratio > 0}, "one ratio above 0 for all layers"
            require(len(ratios) == 1, "sparsity", self.sparsity, f"{hint} under budget {self.budget}")
        counts = self.budget not in ("layer", "global") or self.budget_of == "parameters"
        hint = f"parameters with budget {self.budget}, whose ratio is one of weights or filters"
        require(counts, "budget_of", self.budget_of, hint)
        whole = self.structure == "filter" or not self.merge_duplicates
        hint = f"False with structure {self.structure}: only whole filters are merged"
        require(whole, "merge_duplicates", self.merge_duplicates, hint)
        self._check_method()
        require_positive("rho", self.rho)
        require_at_least("rho_growth", self.rho_growth, 1, " per dual step")
        require_positive("dual_interval", self.dual_interval)

    def _check_method(self) -> None:
        method = self.method
        hint = f"False with prune_method {method}, where no pruned filter is left to take the place of a merged one"
        require(method == "admm" or not self.merge_duplicates, "merge_duplicates", self.merge_duplicates, hint)
        hint = f"False with prune_method {method}, which takes no dual steps"
        require(method == "admm" or not self.reset_learning_rate, "reset_learning_rate", self.reset_learning_rate, hint)
        hint = "global with prune_method harp, which learns how one total is shared by the layers"
        require(method != "harp" or self.budget == "global", "budget", self.budget, hint)
        single = self.structure in ("irregular", "column")
        hint = "irregular or column with prune_method flyingbird: a filter of zeros gets no gradient and cannot grow"
        require(method != "flyingbird" or single, "structure", self.structure, hint)
        require_positive("harp_growth", self.harp_growth)
        require(0 < self.twinrep_cut < 1, "twinrep_cut", self.twinrep_cut, "a share of the stage in (0, 1)")
        require_positive("flyingbird_interval", self.flyingbird_interval)
        require(0 < self.flyingbird_share <= 1, "flyingbird_share", self.flyingbird_share, "a share in (0, 1]")

    @property
    def cuts_first(self) -> bool:
        """Whether the stage of pruning begins with the cut and its masks, as the retrain does."""
        return self.method in ("magnitude", "random")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a training step does with a batch."""

    attack: AttackConfig | None  # None is natural training
    # Without meaning in free training, whose one pass is the training pass.
    attack_batch_norm: Literal["running", "batch"] = setting("running", "Statistics by which BatchNorm normalises "
        "inside the training attack: running (evaluation mode) or the batch's (the authors' code).")  # fmt: skip
    # See `rap_jax.attacks.backward`.
    train_leaky_slope: float = setting(0.0, "Share of the gradient that passes a ReLU that is off, inside the training "
        "attack alone; 0 for none.")  # fmt: skip
    augment: AugmentConfig = AugmentConfig()
    label_smoothing: float = setting(0.0, "Share of the target spread over all classes.")
    mixup_alpha: float = setting(0.0, "Images and labels are mixed in pairs, by a share from Beta(alpha, alpha); 0 for "
        "no mixup.")  # fmt: skip
    # See `rap_jax.training.step.distillation_loss`.
    distillation: Literal["none", "rslad"] = setting("none", "rslad: the ADMM stage and the retrain learn from the "
        "dense network that they began with, in place of the labels (Zi et al., 2021).")  # fmt: skip
    # See `rap_jax.training.step.perturb_weights`.
    awp_gamma: float = setting(0.0, "Adversarial weight perturbation (Wu et al., 2020): each update takes its gradient "
        "where the weights of each layer are moved uphill by this share of their norm, such as 0.01 (the paper's 0.005 "
        "to 0.01). Two training passes in place of one. 0 for none.")  # fmt: skip
    # See `rap_jax.training.state.move_average`.
    ema_decay: float = setting(0.0, "Decay of the exponential mean of weights and BatchNorm statistics (Polyak "
        "averaging), such as 0.999: pretrain and retrain score and keep that mean. 0 for the weights themselves."
    )  # fmt: skip
    free_replays: int = 0  # updates on each batch in a row in free training, by `free_attack`; else 0
    compute_dtype: Literal["float32", "bfloat16"] = setting("float32", "What the network computes in while it is "
        "trained; weights, loss and evaluation stay float32. bfloat16 pays on GPU and TPU; a CPU is slower with it."
    )  # fmt: skip

    def __post_init__(self) -> None:
        require_choices(self)
        slope = self.train_leaky_slope
        require(0 <= slope <= 1, "train_leaky_slope", slope, "a share in [0, 1], such as 0.01")
        leaks = slope == 0 or (self.attack is not None and self.free_replays == 0)
        require(leaks, "train_leaky_slope", slope, "0 in natural and in free training, which have no attack to change")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share in [0, 1)")
        require_at_least("mixup_alpha", self.mixup_alpha, 0)
        require(
            0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 for no mean, or a number below 1 such as 0.999"
        )
        attacked = "none in natural and in free training, which have no attack on the student"
        require(self.distillation == "none" or self.attacks_first, "distillation", self.distillation, attacked)
        require_at_least("awp_gamma", self.awp_gamma, 0)
        one_pass = "0 in free training, whose one pass moves images and weights"
        require(self.awp_gamma == 0 or self.free_replays == 0, "awp_gamma", self.awp_gamma, one_pass)
        hint = "0, or 2 or more updates on each batch in free training"
        require(self.free_replays == 0 or self.free_replays >= 2, "free_replays", self.free_replays, hint)
        if not self.free_replays:
            return
        attack = self.attack
        one_step = attack is not None and attack.num_steps == attack.num_restarts == 1 and not attack.random_start
        require(one_step, "attack", attack, "one step, no restarts and no random start in free training: free_attack()")
        hint = "running in free training, which has no attack beside the training pass"
        require(self.attack_batch_norm == "running", "attack_batch_norm", self.attack_batch_norm, hint)

    @property
    def attacks_first(self) -> bool:
        """Whether a step attacks its batch before the training pass: not in natural training, nor in free training."""
        return self.attack is not None and not self.free_replays

    @property
    def updates_per_batch(self) -> int:
        """Updates on a batch before the next one comes."""
        return max(1, self.free_replays)


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Where a run's weights come from; without `run_dir` they are drawn at random.

    Weights that are zero at a start from another run stay zero in every stage (progressive pruning).
    """

    run_dir: str | None = setting(None, "Folder of a finished run of the same network, to begin with its weights, "
        "whose zeros stay zero in every stage; empty for random weights.", flag="start_run", syntax="path")  # fmt: skip
    weights: Literal["final", "initial"] = setting("final", "final: what that run ended with. initial: what it began "
        "with, where its final network is not zero (inherited initialisation, the paper's Table 5).",
        flag="start_weights")  # fmt: skip

    def __post_init__(self) -> None:
        require_choice("weights of the start", self.weights, ("final", "initial"))
        if self.weights == "initial":
            hint = "final, unless --start_run names a run"
            require(self.run_dir is not None, "weights of the start", self.weights, hint)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run: everything that decides its numbers, and nothing else."""

    name: str = setting("run", "Name of the run; part of the folder's name when --out_dir is not given.")
    seed: int = setting(0, "Seed of everything random: split, weights, order, attacks.")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig(AttackConfig())  # with the attack on the training batch
    select_attack: AttackConfig = AttackConfig()  # on the validation split after each epoch, to choose the kept model
    selection: Literal["pgd", "strong"] = setting("pgd", "What chooses the epoch of a stage on validation: PGD, or "
        "APGD-T on 3 targets and 200 queries of Square on its first 1,000 images, which misleading gradients do not "
        "stop.", flag="select_attack")  # fmt: skip
    report_attack: AttackConfig = AttackConfig()  # the one whose result is reported
    prune: PruneConfig = PruneConfig()
    pretrain: StageConfig = StageConfig()
    admm: StageConfig = StageConfig()
    retrain: StageConfig = StageConfig()
    batch_size: int = setting(128, "Images per training step, over all devices.")
    eval_batch_size: int = setting(500, "Images per evaluation step, over all devices; rounded up to a multiple of "
        "them (then PGD starts at other random points).")  # fmt: skip
    # A number makes every length in epochs a number of steps that does not depend on how many images there are.
    steps_per_epoch: int = setting(0, "Steps that count as one epoch; 0 is one pass over the data.")
    small_retrain: bool = setting(True, "Retrain the network without its removed filters: the same weights up to "
        "rounding, in less time. Off: the whole network under its masks.")  # fmt: skip
    start: StartConfig = StartConfig()

    def __post_init__(self) -> None:
        plain = bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] != "."
        require(plain, "name", self.name, "letters, digits, '-', '_' and '.' (it names a folder)")
        require_choice("select_attack", self.selection, ("pgd", "strong"))
        require_seed(self.seed)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more images")
        require(self.eval_batch_size >= 1, "eval_batch_size", self.eval_batch_size, "1 or more images")
        require(self.steps_per_epoch >= 0, "steps_per_epoch", self.steps_per_epoch, "0 (one pass) or more steps")
        ready = self.start.run_dir is not None or any(self.stage(stage).num_epochs for stage in STAGES)
        require(ready, "num_epochs", 0, "1 or more in some stage: without --start_run there is nothing else to report")
        method = self.prune.method
        prunes = method in ("admm", "random") or not self.prune.sparsity or self.admm.num_epochs > 0
        hint = f"1 or more (--admm_epochs) with prune_method {method}, which prunes in that stage"
        require(prunes, "num_epochs of admm", self.admm.num_epochs, hint)
        pulls = not self.prune.sparsity and self.admm.num_epochs > 0
        hint = "0 (--admm_epochs=0) when sparsity is none, since there is nothing to pull to zero"
        require(not pulls, "num_epochs of admm", self.admm.num_epochs, hint)

        has_teacher = self.pretrain.num_epochs > 0 or (self.start.run_dir is not None and self.start.weights == "final")
        hint = (
            "none, unless there is a pretrain stage or --start_run names a run to go on with: what it ends with teaches"
        )
        require(self.train.distillation == "none" or has_teacher, "distillation", self.train.distillation, hint)

    def stage(self, name: Stage) -> StageConfig:
        """The stage of that name."""
        return {"pretrain": self.pretrain, "admm": self.admm, "retrain": self.retrain}[name]


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """How often a run writes, and what; changes none of its other numbers."""

    log_every_steps: int = setting(20, "Steps between lines of metrics.jsonl.")
    checkpoint_every_seconds: float = setting(30.0, "Seconds between checkpoints.")
    # See `rap_jax.compaction`.
    measure_cost: bool = setting(True, "Count and measure at the end what the network costs, dense, pruned and "
        "compacted: a table in report.md.")  # fmt: skip

    tensorboard: bool = setting(False, "Write what metrics.jsonl has to event files of TensorBoard as well, in "
        "RUN/tensorboard. Needs the extra tensorboard.")  # fmt: skip

    def __post_init__(self) -> None:
        there = not self.tensorboard or importlib.util.find_spec("tensorboardX") is not None
        hint = "False, or the package tensorboardX: pip install -e '.[tensorboard]'"
        require(there, "tensorboard", self.tensorboard, hint)
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "1 or more steps")
        seconds = self.checkpoint_every_seconds
        require(seconds >= 0, "checkpoint_every_seconds", seconds, "0 (after every step) or more seconds")
