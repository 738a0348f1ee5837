"""Convolution of stride 1 with a 3x3 or 5x5 kernel, in less than half of the multiplications.

    outputs = winograd_conv(images, kernel, sides)      # [N, H, W, C] -> [N, H', W', F] with H' and W' even

In one dimension, for a kernel of 3: two neighbouring outputs y0, y1 see four pixels d0 to d3, and take 6
multiplications. Written as below they take 4, since what stands before each bracket depends on the kernel alone:

    m0 = k0 (d0 - d2)                       m1 = (k0 + k1 + k2)/2 (d1 + d2)
    m3 = k2 (d3 - d1)                       m2 = (k0 - k1 + k2)/2 (d2 - d1)
    y0 = m0 + m1 + m2                       y1 = m1 - m2 + m3

The rows of the tables below are these sums. Rows and columns each have theirs, so the 2x2 outputs of a tile of 4x4
pixels take 16 multiplications instead of 36, and with a kernel of 5 a tile of 6x6 takes 36 instead of 100. Between a
pixel and an output stands a sum over channels, so "multiplication" is a matrix product here, one for each of the 16 or
36 places of a tile, over all tiles of the images: the pixels of place (i, j), [N H'/2 W'/2, C], times what place (i, j)
is for the kernel, [C, F]. With 32 channels or more the products saved are worth the sums (measured on a CPU, 3x3: half
the time for 256 channels, three quarters for 32). The rounding error is 1.5 times that of the plain form.

Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308,
section 4; the 5x5 table is from the same construction (Cook and Toom) with the points 0, 1, -1, 1/2, -2 and infinity,
of which -1/2 in place of -2 gives three times the rounding error."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rap_jax._runtime.arrays import at_least_float32

# Matrix products of fewer rows are slow.
_MIN_ROWS = 256


class _Table(NamedTuple):
    """Sums for kernels of size k; a tile has t = k + 1 pixels each way."""

    pixels: np.ndarray  # [t, t], from the pixels of a tile to the factors of the products
    kernel: np.ndarray  # [t, k], from the kernel to the other factors
    outputs: np.ndarray  # [2, t], from the products to two outputs
    # Numbers between pixels and outputs, from which on dividing the batch was quicker: they have to fit into the
    # caches, and products of very few rows keep only one core busy.
    part_size: int


_TABLES = {
    3: _Table(
        pixels=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]),
        kernel=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
        outputs=np.array([[1, 1, 1, 0], [0, 1, -1, 1]]),
        part_size=2**22,
    ),
    5: _Table(
        pixels=np.array(
            [
                [2, -3, -4, 3, 2, 0],
                [0, -2, 1, 5, 2, 0],
                [0, 2, -5, 1, 2, 0],
                [0, -4, -2, 4, 2, 0],
                [0, 1, -2, -1, 2, 0],
                [0, 2, -3, -4, 3, 2],
            ]
        )
        / 2,
        kernel=np.array(
            [
                [15, 0, 0, 0, 0],
                [5, 5, 5, 5, 5],
                [-5, 5, -5, 5, -5],
                [-16, -8, -4, -2, -1],
                [1, -2, 4, -8, 16],
                [0, 0, 0, 0, 15],
            ]
        )
        / 15,
        outputs=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 0.5, -2, 1]]),
        part_size=2**21,
    ),
}

Sides = tuple[tuple[int, int], tuple[int, int]]  # zeros before and after rows and columns; fewer than none cut off


def has_winograd_form(kernel_size: int, height: int, width: int) -> bool:
    """Whether there is a table for the kernel, and outputs of that size are whole tiles."""
    return kernel_size in _TABLES and height % 2 == 0 and width % 2 == 0


def winograd_conv(images: jax.Array, kernel: jax.Array, sides: Sides) -> jax.Array:
    """Cross-correlation of stride 1 of images [N, H, W, C] with a kernel [k, k, C, F], k 3 or 5, outputs even."""
    table = _TABLES[len(kernel)]
    factors = _of_kernel(table, kernel)
    rows, columns = (images.shape[axis] + sum(sides[axis - 1]) + 1 - len(kernel) for axis in (1, 2))
    num_parts = _num_parts(len(images), rows * columns // 4, factors.shape, table.part_size)
    if num_parts == 1:
        return _convolve(table, images, factors, sides)
    parts = images.reshape(num_parts, -1, *images.shape[1:])
    outputs = lax.map(lambda part: _convolve(table, part, factors, sides), parts)
    return outputs.reshape(-1, *outputs.shape[2:])


def _num_parts(num_images: int, tiles_per_image: int, factors: tuple[int, ...], part_size: int) -> int:
    """Into how many parts the batch is divided: a power of two."""
    num_tiles = num_images * tiles_per_image
    size = num_tiles * factors[0] * factors[1] * (factors[2] + factors[3])
    splits = lambda parts: num_images % parts == 0 and num_tiles >= parts * _MIN_ROWS
    num_parts = 1
    while size > num_parts * part_size and splits(2 * num_parts):
        num_parts *= 2
    return num_parts


def _of_kernel(table: _Table, kernel: jax.Array) -> jax.Array:
    """[k, k, C, F] -> [t, t, C, F]."""
    # As sums of slices: as a product of matrices it took 20 times as long, which for one image was nearly all of the
    # time of a network.
    wide = at_least_float32(kernel)
    rows = [jnp.stack(_weighted_sums(table.kernel, row)) for row in _weighted_sums(table.kernel, wide)]
    return lax.optimization_barrier(jnp.stack(rows).astype(kernel.dtype))


def _convolve(table: _Table, images: jax.Array, factors: jax.Array, sides: Sides) -> jax.Array:
    """Images [N, H, W, C] and factors [t, t, C, F] -> [N, H', W', F]."""
    size, _, channels, features = factors.shape
    images = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (*sides[0], 0), (*sides[1], 0), (0, 0, 0)))
    tiles = (len(images), (images.shape[1] + 2 - size) // 2, (images.shape[2] + 2 - size) // 2)
    rows = [_of_pixels(table, row, axis=2) for row in _of_pixels(table, images, axis=1)]
    # The barriers keep XLA from computing the sums anew for each of the products that they go into.
    place = lambda i, j: lax.optimization_barrier(rows[i][j].reshape(-1, channels))
    products = [[place(i, j) @ factors[i, j] for j in range(size)] for i in range(size)]
    products = lax.optimization_barrier(products)
    columns = [_weighted_sums(table.outputs, row) for row in products]
    outputs = [_weighted_sums(table.outputs, [row[j] for row in columns]) for j in range(2)]
    grid = [[outputs[j][i].reshape(*tiles, features) for j in range(2)] for i in range(2)]
    joined = jnp.stack([jnp.stack(row, axis=3) for row in grid], axis=2)
    return joined.reshape(tiles[0], 2 * tiles[1], 2 * tiles[2], features)


def _of_pixels(table: _Table, images: jax.Array, axis: int) -> list[jax.Array]:
    """The factors of the products along one axis: for each of t places an array with one entry for each tile."""
    size = len(table.pixels)
    last = images.shape[axis] - size
    pixels = [lax.slice_in_dim(images, i, i + last + 1, 2, axis) for i in range(size)]
    return _weighted_sums(table.pixels, pixels)


def _weighted_sums(weights: np.ndarray, arrays: Iterable[jax.Array]) -> list[jax.Array]:
    """One sum of the arrays for each row of weights; nothing is computed for weights of 0 and 1."""
    arrays = list(arrays)
    sums = []
    for row in weights:
        terms = [
            array if weight == 1 else float(weight) * array for weight, array in zip(row, arrays, strict=True) if weight
        ]
        sums.append(reduce(jnp.add, terms))
    return sums
