"""How fast the implementations of conv2d are inside an attack: `python -m benchmarks.conv`.

For ResNet-18 of several widths it times, for each implementation, a PGD attack in evaluation mode (one jitted
`fori_loop` of input gradients) and one training-mode gradient with respect to the parameters. As in training the batch
is split over two devices, which on the CPU are its cores. The implementations run in turn, and the best of several
repeats counts, because other work on the machine can only slow a run down.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

# Before JAX starts; it has no effect where there is an accelerator.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import Timed, print_table
from rap_jax._runtime.mesh import make_mesh, replicated, split_over_data
from rap_jax.config import ModelConfig
from rap_jax.models import Implementation, Model, create_model
from rap_jax.models.model import BatchStats, Params

WIDTHS = (1, 2, 4)
BATCH_SIZE = 128
NUM_STEPS = 5
INPUT_SHAPE = (32, 32, 3)


def loss(model: Model, train: bool, params: Params, batch_stats: BatchStats, images: jax.Array) -> jax.Array:
    """Any loss will do for timing: cross-entropy against the first class."""
    logits, _ = model.apply(params, batch_stats, images, train=train)
    return -jnp.sum(jax.nn.log_softmax(logits)[:, 0])


def attack(model: Model, params: Params, batch_stats: BatchStats, images: jax.Array) -> jax.Array:
    """PGD with radius 8/255 and step 2/255 on images in [0, 1]."""
    low, high = jnp.maximum(images - 8 / 255, 0), jnp.minimum(images + 8 / 255, 1)
    gradient = jax.grad(loss, argnums=4)

    def step(_: int, adversarial: jax.Array) -> jax.Array:
        direction = jnp.sign(gradient(model, False, params, batch_stats, adversarial))
        return jnp.clip(adversarial + 2 / 255 * direction, low, high)

    return lax.fori_loop(0, NUM_STEPS, step, images)


def parameter_gradient(model: Model, params: Params, batch_stats: BatchStats, images: jax.Array) -> Params:
    """What the training step does with the attacked batch."""
    return jax.grad(loss, argnums=2)(model, True, params, batch_stats, images)


def compiled(function: Callable[..., Any], width: int, implementation: Implementation) -> Timed:
    """The jitted function with all arguments bound and already run once."""
    config = ModelConfig("resnet18", width=width)
    model = create_model(config, input_shape=INPUT_SHAPE, num_classes=10, implementation=implementation)
    mesh = make_mesh()
    weights = jax.jit(model.init, out_shardings=replicated(mesh))(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (BATCH_SIZE, *INPUT_SHAPE))
    images = jax.device_put(images, split_over_data(mesh))
    run = functools.partial(jax.jit(functools.partial(function, model)), *weights, images)
    jax.block_until_ready(run())
    return run


def main() -> None:
    """Prints the table."""
    work = {f"attack of {NUM_STEPS} steps": attack, "parameter gradient": parameter_gradient}
    devices = f"{jax.device_count()} x {jax.default_backend()}"
    print_table(f"ResNet-18, batch {BATCH_SIZE}, {devices}", WIDTHS, work, compiled)


if __name__ == "__main__":
    main()
