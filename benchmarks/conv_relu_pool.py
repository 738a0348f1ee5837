"""How fast the implementations of ConvReluPool are inside an attack: `python -m benchmarks.conv_relu_pool`.

For LeNet of several widths it times, for each implementation, a PGD attack (one jitted `fori_loop` of input
gradients) and one gradient with respect to the parameters. The implementations run in turn, and the best of several
repeats counts, because other work on the machine can only slow a run down.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import Timed, print_table
from rap_jax.config import ModelConfig
from rap_jax.models import Implementation, Model, create_model
from rap_jax.models.model import Params

WIDTHS = (1, 4, 16)
BATCH_SIZE = 128
NUM_STEPS = 10


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


def main() -> None:
    """Prints the table."""
    work = {f"attack of {NUM_STEPS} steps": attack, "parameter gradient": jax.grad(loss, argnums=1)}
    print_table(f"LeNet, batch {BATCH_SIZE}, {jax.default_backend()}", WIDTHS, work, compiled)


if __name__ == "__main__":
    main()
