"""The optimizer of a stage: its length in steps, its learning rate and its chain of optax transformations.

The order of the chain, and why:

    1. add_admm_penalty   the penalty is part of the objective, so it comes before anything that rescales gradients
    2. add_decayed_weights   likewise: L2 decay as in PyTorch's Adam and SGD, part of the gradient
    3. Adam or momentum
    4. minus the learning rate
    5. keep_masked        last, so that no momentum, decay or step can move a pruned weight off zero
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import optax
from jax.sharding import Mesh

from rap_jax._runtime.mesh import gather
from rap_jax.config import OptimizerConfig, PruneConfig, RunConfig, Stage, require
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.admm import add_admm_penalty
from rap_jax.pruning.masks import keep_masked
from rap_jax.pruning.projections import Spec
from rap_jax.pruning.specs import Specs

_MANY_STEPS = 2**40  # beyond any run, and below what rounding a float can break


class Length(NamedTuple):
    """A stage's lengths in steps. Attributes: epoch; stage; dual: steps between dual steps, 0 for none; ramp."""

    epoch: int
    stage: int
    dual: int
    ramp: int


def stage_length(config: RunConfig, stage: Stage, num_examples: int) -> Length:
    """Turns epochs into steps.

    Raises:
      ValueError: a batch is larger than the training split, a stage has more steps than 32 bits count, or the dual
        interval or the epsilon ramp is not shorter than the stage.
    """
    require(config.batch_size <= num_examples, "batch_size", config.batch_size, f"at most the {num_examples} images")
    epoch = config.steps_per_epoch or num_examples // config.batch_size
    settings = config.stage(stage)
    num_steps = settings.num_epochs * epoch
    counted = f"fewer than {2**31} steps, as 32 bits count them; an epoch has {epoch}"
    require(num_steps < 2**31, f"{stage}_epochs", settings.num_epochs, counted)
    in_steps = lambda time, unit=epoch: round(min(time * unit, _MANY_STEPS))
    unit = epoch if config.prune.dual_interval_unit == "epochs" else 1
    dual = max(1, in_steps(config.prune.dual_interval, unit)) if stage == "admm" else 0
    shorter = f"less than the ADMM stage's {settings.num_epochs} epochs of {epoch} steps, so that there is a dual step"
    require(dual < num_steps or num_steps == 0, "dual_interval", config.prune.dual_interval, shorter)
    ramp = in_steps(settings.epsilon_ramp_epochs)
    shorter = f"less than the {settings.num_epochs} epochs of {stage}, or its radius is never the full one"
    require(ramp < num_steps or num_steps == 0, "epsilon_ramp_epochs", settings.epsilon_ramp_epochs, shorter)
    return Length(epoch, num_steps, dual, ramp)


def learning_rate_schedule(
    config: OptimizerConfig, *, steps_per_epoch: int, num_steps: int, reset_every: int = 0
) -> optax.Schedule:
    """Learning rate over the steps of a stage; a linear warm-up from 0 comes before any of the shapes.

    `cosine` ends at 0 after `num_steps`; `step` multiplies by `step_factor` at each of `step_epochs`, counted from
    the start of the stage.

    Args:
      reset_every: if not 0, the schedule, warm-up included, is one of so many steps and begins anew after them: with
        the steps between dual steps it is the authors' reset of the learning rate at each dual step.

    Raises:
      ValueError: the warm-up is as long as the stage or longer, or a fall of `step` is not after it.
    """
    if reset_every:
        cycle = learning_rate_schedule(config, steps_per_epoch=steps_per_epoch, num_steps=reset_every)
        return lambda step: cycle(step % reset_every)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup >= num_steps:
        raise ValueError(f"warmup_epochs is {config.warmup_epochs!r}, {warmup} steps; the stage has {num_steps} steps.")
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
    """The sparsity set of every layer that the config prunes; raises as `specs_from_patterns` does."""
    return specs_lib.specs_from_patterns(
        config.sparsity, params, structure=config.structure, output_layer=output_layer, budget=config.budget
    )


def make_penalty(
    params: chex.ArrayTree,
    config: PruneConfig,
    specs: Specs,
    gather: Callable[[chex.ArrayTree], chex.ArrayTree] = lambda tree: tree,
) -> optax.GradientTransformationExtraArgs:
    """`add_admm_penalty` with the config's rho, for the weights that have a spec and no others.

    Args:
      gather: makes weights whole that lie in pieces: a projection compares all of a layer.
    """
    rho: optax.Schedule = lambda count: config.rho * config.rho_growth**count
    penalty = add_admm_penalty(
        rho,
        lambda weights: specs_lib.project_tree(specs, gather(weights)),
        rho_rule=config.rho_rule,
        rescale_dual=config.rescale_dual,
        dual_keeps_graph=config.dual_keeps_graph,
    )
    return optax.masked(penalty, specs_lib.selected(specs, params))


def stage_learning_rate(config: RunConfig, stage: Stage, length: Length) -> optax.Schedule:
    """The learning rate over the steps of a stage."""
    reset_every = length.dual if config.prune.reset_learning_rate else 0
    settings = config.stage(stage).optimizer
    return learning_rate_schedule(
        settings, steps_per_epoch=length.epoch, num_steps=length.stage, reset_every=reset_every
    )


def stage_optimizer(
    stage: Stage, config: RunConfig, length: Length, params: chex.ArrayTree, specs: Specs, mesh: Mesh
) -> Callable[[chex.ArrayTree | None], optax.GradientTransformationExtraArgs]:
    """Masks, or None -> the optimizer chain of a stage. Of the params the names and shapes count."""
    settings, learning_rate = config.stage(stage).optimizer, stage_learning_rate(config, stage, length)
    whole = functools.partial(gather, mesh=mesh)
    penalty = make_penalty(params, config.prune, specs, whole) if stage == "admm" else None
    return lambda masks: make_optimizer(settings, learning_rate, penalty=penalty, masks=masks)
