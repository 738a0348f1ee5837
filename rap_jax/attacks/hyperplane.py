"""The least perturbation that puts a point on a hyperplane and keeps it inside the box [0, 1].

Reference: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", 2020,
https://arxiv.org/abs/1907.02044, which projects on the linearised boundary between two classes.

What it does. Let `height` be w.x - b, the distance of x from the hyperplane times the length of w. Every coordinate
moves the way that brings `height` to 0, for a time t, at a speed: 1 for L-infinity, |w_i| for L2. One that meets the
border of the box stays there; `room` is how far that is. So after the time t

    |perturbation_i| = min(t * speed_i, room_i)   and   |height| has fallen by f(t) = sum_i |w_i| |perturbation_i|.

No perturbation of the same norm takes it further down. For L-infinity, where no coordinate moves by more than t, this
is plain; for L2 it is the condition of Karush, Kuhn and Tucker. So what is looked for is the t with f(t) = |height|.

How it finds t. The slope of f is the sum of |w_i| * speed_i over the coordinates still on their way, and falls whenever
one meets its border. So f is concave, piecewise linear, and below each of its tangents. Newton's method goes along the
tangent at t until that reaches |height|: never too far, and all the way if no other coordinate stops before. Nothing
has to be sorted, which is slow in XLA on CPUs.

How many steps that takes. Let h be what is left of |height| and g the slope. Concavity gives h'/h + g'/g <= 1 from one
step to the next, so h * g falls to a quarter or less, in k steps to 4^-k of its first value. Also, h is at most what
the coordinates still on their way have to give: at most g for L-infinity. The lesser of the two bounds is never above
2^-k |w|_1, which is rounding in float32 after 24 steps. (For L2, likewise: 4^(-k/3) |w|_2 sqrt(D).) Seen were 3 to 9,
for L2 up to 19 where the box hardly reaches the hyperplane. The loop ends when no point of the batch moves on.
"""

import jax
import jax.numpy as jnp
from jax import lax

# More than float32 can tell apart in either norm; see above. The loop hardly ever gets there.
_MAX_STEPS = 40
# An L2 perturbation does not touch coordinates of smaller weight, as in the authors' code.
_SMALLEST_L2_WEIGHT = 1e-8


def onto_hyperplane_linf(points: jax.Array, weights: jax.Array, height: jax.Array) -> jax.Array:
    """The perturbation of least L-infinity norm after which w.x = b, within the box.

    Where several are least, all coordinates move as far as the norm and the box let them. Where the box does not
    reach the hyperplane, it goes as near as the box lets it. Coordinates of weight 0 never move.

    Args:
      points: x in [0, 1], float [N, D].
      weights: w, the normal of each point's hyperplane, any length, [N, D].
      height: w.x - b of each point, [N]. Not b itself: near the hyperplane the difference is small, and who knows it
        exactly need not lose it in the rounding of w.x.

    Returns:
      Perturbations, [N, D].
    """
    return _move(points, weights, height, jnp.where(weights != 0, 1, 0).astype(points.dtype))


def onto_hyperplane_l2(points: jax.Array, weights: jax.Array, height: jax.Array) -> jax.Array:
    """The perturbation of least L2 norm after which w.x = b, within the box.

    Arguments and result as in `onto_hyperplane_linf`. Coordinates of a weight below 1e-8 never move.
    """
    size = jnp.abs(weights)
    return _move(points, weights, height, jnp.where(size > _SMALLEST_L2_WEIGHT, size, 0))


ONTO_HYPERPLANE = {"linf": onto_hyperplane_linf, "l2": onto_hyperplane_l2}


def _move(points: jax.Array, weights: jax.Array, height: jax.Array, speed: jax.Array) -> jax.Array:
    """Moves each coordinate at its `speed` [N, D] until the point is on the hyperplane or can go no further."""
    direction = jnp.where(height >= 0, -1, 1)[:, None] * jnp.sign(weights)
    room = jnp.maximum(jnp.where(direction > 0, 1 - points, points), 0)
    time = _travel_time(jnp.abs(height), jnp.abs(weights), speed, room)
    return direction * jnp.minimum(time[:, None] * speed, room)


def _travel_time(height: jax.Array, weights: jax.Array, speed: jax.Array, room: jax.Array) -> jax.Array:
    """The t with f(t) = height [N], by Newton's method; the largest number where f stays below.

    Args:
      height: 0 or more, [N].
      weights, speed, room: 0 or more, [N, D]; what does not move has speed 0.
    """
    moves = speed > 0
    slopes = weights * speed
    at_border = jnp.where(moves, room / jnp.where(moves, speed, 1), jnp.inf)  # when it gets there
    descents = jnp.where(moves, weights * room, 0)  # what it has done for f by then
    reachable = jnp.sum(descents, axis=1) > height
    height = jnp.where(reachable, height, 0)  # the others would hold up the loop

    def newton(time: jax.Array) -> jax.Array:
        stopped = at_border <= time[:, None]
        left = height - jnp.sum(jnp.where(stopped, descents, 0), axis=1)
        slope = jnp.sum(jnp.where(stopped, 0, slopes), axis=1)
        # Rounding could lead back: then it is at the end. So the stopped ones only grow in number, and the loop ends.
        return jnp.maximum(time, left / jnp.where(slope > 0, slope, jnp.inf))

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        count, _, time = carry
        further = newton(time)
        return count + 1, further > time, further

    unfinished = lambda carry: (carry[0] < _MAX_STEPS) & jnp.any(carry[1])
    _, _, time = lax.while_loop(unfinished, step, (jnp.int32(0), height > 0, jnp.zeros_like(height)))
    return jnp.where(reachable, time, jnp.finfo(time.dtype).max)  # finite: times speed 0 it is 0
