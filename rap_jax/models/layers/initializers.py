"""How weights start: the initialisations of the paper's Table B1, by name, with PyTorch's definitions.

    kernel_init = kernel_initializer("kaiming_normal")
    kernel = kernel_init(key, (5, 5, 1, 8))             # HWIO; dense kernels are [in, out]

In the authors' code a name sets the kernels of the CONVOLUTIONS only. Dense kernels and all biases keep PyTorch's own
start, uniform(+-1/sqrt(fan_in)): the name `pytorch`, and `bias_initializer`.

fan_in = k k C_in, fan_out = k k C_out; bounds and standard deviations are those of `torch.nn.init` called with its
defaults, which is how the authors call it:

  name             distribution
  default          the network's own choice, `DEFAULT_INITIALIZER` of its class
  pytorch          U(-a, a), a = 1 / sqrt(fan_in): how PyTorch's layers start when nobody says anything
  uniform          U(0, 1): torch.nn.init.uniform_, all weights positive. Not PyTorch's own start
  normal           N(0, 1)
  xavier_uniform   U(-a, a), a = sqrt(6 / (fan_in + fan_out))
  xavier_normal    N(0, 2 / (fan_in + fan_out))
  kaiming_uniform  U(-a, a), a = sqrt(6 / fan_in)
  kaiming_normal   N(0, 2 / fan_in), not truncated (JAX's own `he_normal` is truncated)
  hinge            the first convolution by `hinge_filters`, the others as `default`
  orthogonal       the kernel as a [fan_in, C_out] matrix has orthonormal columns (rows, if C_out > fan_in)

The authors start the convolutions of their MNIST LeNet by xavier_uniform and leave their CIFAR networks to PyTorch.

Table B1 is the reason to keep U(0, 1) and N(0, 1) as they are: of all these only `uniform` trains the LeNet of width 1
against PGD, and another bound would be another experiment."""

from typing import Any, Protocol

import jax
import numpy as np
from jax.nn import initializers

from rap_jax.config import require


class Initializer(Protocol):
    """Draws an array of the given shape; the signature of `jax.nn.initializers`."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = ..., /) -> jax.Array: ...


_KERNEL_INITIALIZERS: dict[str, Initializer] = {
    # A uniform variable of variance 1 / (3 fan_in) has the bound 1 / sqrt(fan_in).
    "pytorch": initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "uniform": initializers.uniform(scale=1.0),
    "normal": initializers.normal(stddev=1.0),
    "xavier_uniform": initializers.variance_scaling(1.0, "fan_avg", "uniform"),
    "xavier_normal": initializers.variance_scaling(1.0, "fan_avg", "normal"),
    "kaiming_uniform": initializers.variance_scaling(2.0, "fan_in", "uniform"),
    "kaiming_normal": initializers.variance_scaling(2.0, "fan_in", "normal"),
    "orthogonal": initializers.orthogonal(scale=1.0),
}
HINGE = "hinge"
INITIALIZERS: tuple[str, ...] = ("default", *_KERNEL_INITIALIZERS, HINGE)
# Pixels at which a filter bends.
_THRESHOLDS = (1 / 3, 2 / 3)


def kernel_initializer(name: str, *, default: str = "pytorch") -> Initializer:
    """The start of convolution kernels by its name in Table B1.

    Args:
        name: one of `INITIALIZERS`.
        default: what the name `default` stands for, and `hinge` for convolutions after the first.

    Returns:
        A function of (key, shape) for kernels whose last two axes are [in, out].

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    Reference: Ye et al., 2019, Table B1, https://arxiv.org/abs/1903.12561.
    """
    require(name in INITIALIZERS, "initializer", name, f"one of {', '.join(INITIALIZERS)}")
    return _KERNEL_INITIALIZERS[default if name in ("default", HINGE) else name]


def hinge_filters(shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Filters that look at one pixel x each and bend at a third or two thirds of its range: relu(1.5 (x - t)).

    Two filters at a pixel, t = 1/3 and t = 2/3, make clip(3 x - 1, 0, 1): of a dark pixel, or a bright one, a change of
    1/3 changes nothing. Adversarial training on MNIST turns the first filters of a LeNet into such ones by itself.
    Which pixels and thresholds they take is up to chance, and decides much of what a small network can reach.

    Pairs of filters go through the channels of the image, and, pair by pair, through the places of the kernel: the four
    in its middle, which 2x2 pooling tells apart, then those around them.

    Args:
        shape: [k, k, inputs, outputs].

    Returns:
        Kernel float32 [k, k, inputs, outputs] and bias [outputs].
    """
    height, width, inputs, outputs = shape
    kernel, bias = np.zeros(shape, np.float32), np.zeros(outputs, np.float32)
    places = _from_the_middle(height, width)
    for number in range(outputs):
        pair, threshold = number // 2, _THRESHOLDS[number % 2]
        row, column = places[pair // inputs % len(places)]
        kernel[row, column, pair % inputs, number], bias[number] = 1.5, -1.5 * threshold
    return kernel, bias


def _from_the_middle(height: int, width: int) -> list[tuple[int, int]]:
    """The places of a kernel, (row, column): the middle, the three before it, diagonal first, then by distance."""
    row, column = height // 2, width // 2
    first = [(row, column), (row - 1, column - 1), (row - 1, column), (row, column - 1)]
    others = [(i, j) for i in range(height) for j in range(width) if (i, j) not in first]
    inside = [place for place in first if min(place) >= 0]
    return inside + sorted(others, key=lambda place: (place[0] - row) ** 2 + (place[1] - column) ** 2)


def bias_initializer(fan_in: int) -> Initializer:
    """PyTorch's start of a layer's biases, U(-a, a) with a = 1/sqrt(fan_in), where `fan_in` is that of its kernel."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = float, /) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init
