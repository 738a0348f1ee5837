"""The plan of a stage in steps, and its optimizer as a chain of optax transformations.

    plan = plan_stage(config, "admm", num_examples=54_000)
    make_tx = stage_optimizer(plan, config, params, specs, mesh)
    tx = make_tx(None)

The order of the chain, and why:

    1. add_admm_penalty   the penalty is part of the objective, so it comes before anything that rescales gradients
    2. add_decayed_weights   likewise: L2 decay as in PyTorch's Adam and SGD, part of the gradient
    3. Adam or momentum
    4. minus the learning rate
    5. keep_masked        last, so that no momentum, decay or step can move a pruned weight off zero

Methods that prune while they train, such as learned scores, go around the links 2 to 4 (`make_pruner`).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rap_jax._runtime.mesh import gather, shard
from rap_jax.compaction.cut import count_left
from rap_jax.config import STAGES, OptimizerConfig, PruneConfig, RunConfig, Stage, require
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.admm import add_admm_penalty
from rap_jax.pruning.budgets import layer_budgets
from rap_jax.pruning.factors import factorise
from rap_jax.pruning.learned_scores import LearnedRates, learn_scores
from rap_jax.pruning.masks import keep_masked
from rap_jax.pruning.projections import Spec
from rap_jax.pruning.regrowth import drop_and_regrow
from rap_jax.pruning.specs import Specs

_MANY_STEPS = 2**40  # beyond any run, and below what rounding a float can break


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage in steps, built once by `plan_stage`."""

    stage: Stage
    num_steps: int
    steps_per_epoch: int
    learning_rate: optax.Schedule  # over the steps of the stage
    dual_interval: int = 0  # steps between dual steps; 0 for none
    ramp_steps: int = 0  # over which the attack's radius and step size grow linearly to their full size

    def __post_init__(self) -> None:
        within = f"fewer than the {self.num_steps} steps of the stage"
        require(self.dual_interval < self.num_steps, "dual_interval in steps", self.dual_interval, within)
        require(self.ramp_steps < self.num_steps, "epsilon ramp in steps", self.ramp_steps, within)

    def is_dual_step(self, step: int) -> bool:
        """Whether z and u move in the step after `step` updates."""
        return self.dual_interval > 0 and step > 0 and step % self.dual_interval == 0

    def epsilon_scale(self, step: jax.Array) -> jax.Array:
        """Share of the attack's radius and step size after `step` updates: float32 in (0, 1]."""
        if self.ramp_steps == 0:
            return jnp.ones((), jnp.float32)
        return jnp.minimum(1.0, (step + 1).astype(jnp.float32) / self.ramp_steps)


def plan_stage(config: RunConfig, stage: Stage, num_examples: int) -> StagePlan:
    """The plan of a stage of 1 epoch or more; `num_examples` is the size of the training split.

    Raises:
      ValueError: a batch is larger than the training split, a stage has more steps than 32 bits count, or the dual
        interval, the epsilon ramp or the warm-up is not shorter than the stage.
    """
    require(config.batch_size <= num_examples, "batch_size", config.batch_size, f"at most the {num_examples} images")
    epoch = config.steps_per_epoch or num_examples // config.batch_size
    settings = config.stage(stage)
    num_steps = settings.num_epochs * epoch
    counted = f"fewer than {2**31} steps, as 32 bits count them; an epoch has {epoch}"
    require(num_steps < 2**31, f"{stage}_epochs", settings.num_epochs, counted)
    unit = epoch if config.prune.dual_interval_unit == "epochs" else 1
    pulls = stage == "admm" and config.prune.method == "admm"
    dual = max(1, _in_steps(config.prune.dual_interval, unit)) if pulls else 0
    shorter = f"less than the ADMM stage's {settings.num_epochs} epochs of {epoch} steps, so that there is a dual step"
    require(dual < num_steps, "dual_interval", config.prune.dual_interval, shorter)
    if stage == "admm" and config.prune.method == "flyingbird":
        shorter = f"at most half of the {settings.num_epochs} epochs of the stage, so that there is an exchange"
        exchange = _exchange_interval(config.prune, epoch)
        require(2 * exchange <= num_steps, "flyingbird_interval", config.prune.flyingbird_interval, shorter)
    ramp = _in_steps(settings.epsilon_ramp_epochs, epoch)
    shorter = f"less than the {settings.num_epochs} epochs of {stage}, or its radius is never the full one"
    require(ramp < num_steps, "epsilon_ramp_epochs", settings.epsilon_ramp_epochs, shorter)
    cycles, resets = settings.optimizer.num_cycles, bool(dual) and config.prune.reset_learning_rate
    shorter = f"at most the {num_steps} steps of {stage}"
    require(cycles <= num_steps, "num_cycles", cycles, shorter)
    require(cycles == 1 or not resets, "num_cycles", cycles, "1 with --reset_learning_rate, which makes cycles too")
    learning_rate = learning_rate_schedule(
        settings.optimizer,
        steps_per_epoch=epoch,
        num_steps=num_steps,
        reset_every=dual if resets else math.ceil(num_steps / cycles) if cycles > 1 else 0,
    )
    return StagePlan(stage, num_steps, epoch, learning_rate, dual, ramp)


def plan_stages(config: RunConfig, num_examples: int) -> tuple[StagePlan, ...]:
    """The plans of the stages that the run has, in their order; see `plan_stage`."""
    return tuple(plan_stage(config, stage, num_examples) for stage in STAGES if config.stage(stage).num_epochs > 0)


def _in_steps(time: float, steps_per_unit: int) -> int:
    return round(min(time * steps_per_unit, _MANY_STEPS))


def learning_rate_schedule(
    config: OptimizerConfig, *, steps_per_epoch: int, num_steps: int, reset_every: int = 0
) -> optax.Schedule:
    """Learning rate over the steps of a stage; a linear warm-up from 0 comes before any of the shapes.

    `cosine` ends at 0 after `num_steps`; `step` multiplies by `step_factor` at each of `step_epochs`, counted from
    the start of the stage.

    Args:
      reset_every: if not 0, the schedule, warm-up included, is one of so many steps and begins anew after them: warm
        restarts (Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983), or, with the steps between dual
        steps, the authors' reset of the learning rate at each dual step.

    Raises:
      ValueError: the warm-up is as long as the stage or longer, or a fall of `step` is not after it.
    """
    if reset_every:
        cycle = learning_rate_schedule(config, steps_per_epoch=steps_per_epoch, num_steps=reset_every)
        return lambda step: cycle(step % reset_every)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup >= num_steps:
        raise ValueError(
            f"warmup_epochs is {config.warmup_epochs!r}, {warmup} steps; the stage, or each of its cycles, has "
            f"{num_steps} steps; expected fewer of warm-up."
        )
    peak = config.learning_rate
    after: optax.Schedule
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, num_steps - warmup)
    elif config.schedule == "step":
        falls = [round(epoch * steps_per_epoch) - warmup for epoch in config.step_epochs]
        if falls[0] <= 0 or len(set(falls)) < len(falls):
            raise ValueError(
                f"step_epochs is {config.step_epochs!r}; expected epochs after the warm-up of {config.warmup_epochs!r} "
                f"epochs, at least one step of 1/{steps_per_epoch} epoch apart."
            )
        after = optax.piecewise_constant_schedule(peak, dict.fromkeys(falls, config.step_factor))
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    config: OptimizerConfig,
    learning_rate: optax.Schedule,
    *,
    penalty: optax.GradientTransformationExtraArgs | None = None,
    masks: chex.ArrayTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The chain above, without the links that a stage does not need.

    Args:
      penalty: the ADMM stage's penalty, from `make_penalty`.
      masks: False where a weight has to stay zero, bool tree like the params.
    """
    links: list[optax.GradientTransformation] = []
    if penalty is not None:
        links.append(penalty)
    if config.weight_decay > 0:
        links.append(optax.add_decayed_weights(config.weight_decay))
    if config.name == "adam":
        links.append(optax.scale_by_adam())
    elif config.momentum > 0:
        links.append(optax.trace(config.momentum))
    links.append(optax.scale_by_learning_rate(learning_rate))
    if masks is not None:
        links.append(keep_masked(masks))
    return optax.with_extra_args_support(optax.chain(*links))


def specs_from_config(config: PruneConfig, params: chex.ArrayTree, *, output_layer: str) -> dict[str, Spec]:
    """The sparsity set of every layer that the config prunes; raises as `specs_from_patterns` does.

    Under a budget that follows from the weights each has the ratio of the config: see `specs_of_weights`.
    """
    budget: Literal["layer", "global"] = "global" if config.budget == "global" else "layer"
    return specs_lib.specs_from_patterns(
        config.sparsity, params, structure=config.structure, output_layer=output_layer, budget=budget
    )


def specs_of_weights(config: PruneConfig, model: Model, weights: Weights) -> dict[str, Spec]:
    """`specs_from_config`, with the sparsities that the config's budget gives to these weights.

    Raises:
      ValueError: see `specs_from_config` and `layer_budgets`; no layer would lose anything.
    """
    specs = specs_from_config(config, weights.params, output_layer=model.output_layer)
    if config.budget == "layer" or config.budget == "global":
        return specs
    weights = jax.device_get(weights)
    count = count_left(specs, model, weights, of=config.budget_of)
    found = layer_budgets(specs, weights.params, rule=config.budget, count=count)
    require(bool(found), "sparsity", config.sparsity, "a ratio by which at least one structure is removed")
    return found


def make_penalty(
    params: chex.ArrayTree,
    config: PruneConfig,
    specs: Specs,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`add_admm_penalty` with the config's rho, for the weights that have a spec and no others.

    Args:
      mesh: the devices, where they share weights; a projection compares all of a layer.
    """

    def project(weights: chex.ArrayTree) -> chex.ArrayTree:
        if mesh is None:
            return specs_lib.project_tree(specs, weights)
        # Left to itself XLA shards the vectors of a layer as well, and gathers each of them in every step.
        return shard(specs_lib.project_tree(specs, gather(weights, mesh)), mesh)

    rho: optax.Schedule = lambda count: config.rho * config.rho_growth**count
    penalty = add_admm_penalty(
        rho,
        project,
        rho_rule=config.rho_rule,
        rescale_dual=config.rescale_dual,
        dual_keeps_graph=config.dual_keeps_graph,
    )
    return optax.masked(penalty, specs_lib.selected(specs, params))


def make_pruner(
    inner: optax.GradientTransformation,
    plan: StagePlan,
    config: PruneConfig,
    specs: Specs,
    masks: chex.ArrayTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A method that prunes while it trains, around the optimizer of the stage.

    Args:
      inner: from `make_optimizer`.
      config: its method is one that prunes so.
      masks: False where a weight has to stay zero, bool tree like the params.
    """
    if config.method == "twinrep":
        prune_step = max(1, round(config.twinrep_cut * plan.num_steps))
        return factorise(inner, specs, prune_step=prune_step, held=masks)
    if config.method == "flyingbird":
        interval = _exchange_interval(config, plan.steps_per_epoch)
        share = config.flyingbird_share
        return drop_and_regrow(inner, specs, interval=interval, num_steps=plan.num_steps, share=share, held=masks)
    rates = LearnedRates(max(1, plan.num_steps // 2), plan.steps_per_epoch, config.harp_growth)
    return learn_scores(inner, specs, rates=rates if config.method == "harp" else None, held=masks)


def _exchange_interval(config: PruneConfig, steps_per_epoch: int) -> int:
    return max(1, _in_steps(config.flyingbird_interval, steps_per_epoch))


def stage_optimizer(
    plan: StagePlan, config: RunConfig, params: chex.ArrayTree, specs: Specs, mesh: Mesh
) -> Callable[[chex.ArrayTree | None], optax.GradientTransformationExtraArgs]:
    """Masks, or None -> the optimizer chain of a stage. Only the names and shapes of the params are used."""
    settings, prune = config.stage(plan.stage).optimizer, config.prune
    if plan.stage == "admm" and prune.method != "admm" and not prune.cuts_first:
        inner = make_optimizer(settings, plan.learning_rate)
        return lambda masks: make_pruner(inner, plan, prune, specs, masks)
    pulls = plan.stage == "admm" and prune.method == "admm"
    penalty = make_penalty(params, prune, specs, mesh) if pulls else None
    return lambda masks: make_optimizer(settings, plan.learning_rate, penalty=penalty, masks=masks)
