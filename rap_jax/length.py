"""How long a stage is: lengths in epochs, turned into steps."""

from typing import NamedTuple

from rap_jax.config import RunConfig, Stage, require

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
