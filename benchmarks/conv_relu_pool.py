"""How fast the implementations of ConvReluPool are inside an attack: `python -m benchmarks.conv_relu_pool`.

For LeNet of several widths it times, for each implementation, a PGD attack (one jitted `fori_loop` of input
gradients) and one gradient with respect to the parameters. The implementations run in turn, and the best of several
repeats counts, because other work on the machine can only slow a run down.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.config import ModelConfig
from rap_jax.models import Implementation, Model, create_model
from rap_jax.models.model import Params

WIDTHS = (1, 4, 16)
BATCH_SIZE = 128
NUM_STEPS = 10
NUM_REPEATS = 5
IMPLEMENTATIONS: tuple[Implementation, ...] = ("xla", "cells")

Timed = Callable[[], jax.Array | Params]


def loss(model: Model, params: Params, images: jax.Array) -> jax.Array:
    """Any loss will do for timing: cross-entropy against the first class."""
    logits, _ = model.apply(params, {}, images, train=False)
    return -jnp.sum(jax.nn.log_softmax(logits)[:, 0])


def attack(model: Model, params: Params, images: jax.Array) -> jax.Array:
    """PGD with radius 0.3 and step 0.01 on images in [0, 1]."""
    low, high = jnp.maximum(images - 0.3, 0), jnp.minimum(images + 0.3, 1)
    gradient = jax.grad(loss, argnums=2)

    def step(_: int, adversarial: jax.Array) -> jax.Array:
        return jnp.clip(adversarial + 0.01 * jnp.sign(gradient(model, params, adversarial)), low, high)

    return lax.fori_loop(0, NUM_STEPS, step, images)


def compiled(function: Callable[..., jax.Array | Params], width: int, implementation: Implementation) -> Timed:
    """The jitted function of (model, params, images), with all arguments bound and already run once."""
    config = ModelConfig("lenet_mnist", width=width)
    model = create_model(config, input_shape=(28, 28, 1), num_classes=10, implementation=implementation)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (BATCH_SIZE, 28, 28, 1))
    run = functools.partial(jax.jit(functools.partial(function, model)), params, images)
    jax.block_until_ready(run())
    return run


def best_times(runs: list[Timed]) -> list[float]:
    """Milliseconds of each, the best of `NUM_REPEATS` rounds in which all take their turn."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(NUM_REPEATS):
        for run, measured in zip(runs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            measured.append(1e3 * (time.perf_counter() - start))
    return [min(measured) for measured in times]


def main() -> None:
    """Prints the table."""
    print(f"LeNet, batch {BATCH_SIZE}, {jax.default_backend()}; times in ms, ratios to {IMPLEMENTATIONS[0]}")
    print(f"{'width':>5}  {'work':<20}" + "".join(f"{name:>10}{'ratio':>7}" for name in IMPLEMENTATIONS))
    work = {f"attack of {NUM_STEPS} steps": attack, "parameter gradient": jax.grad(loss, argnums=1)}
    for width in WIDTHS:
        for name, function in work.items():
            times = best_times([compiled(function, width, implementation) for implementation in IMPLEMENTATIONS])
            cells = "".join(f"{milliseconds:>10.1f}{times[0] / milliseconds:>7.2f}" for milliseconds in times)
            print(f"{width:>5}  {name:<20}{cells}", flush=True)


if __name__ == "__main__":
    main()
