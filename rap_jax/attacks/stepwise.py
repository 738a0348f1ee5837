"""Attacks in pieces, so that whoever runs one can drop what is broken and put other examples in its place.

    state = attack.start(logits_fn, keys, images, labels, starts)
    state = attack.advance(logits_fn, state, num_steps)     # again and again, `attack.num_steps` in all

Every leaf of a state has the examples on its first axis, and each example goes its own way: it depends on its key,
image, label and start alone, never on its neighbours. `run_attack` puts the pieces together for one batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

# images [N, ...] in [0, 1] -> logits [N, K]. A randomised network takes (images, key).
LogitsFn = Callable[..., jax.Array]


def in_float32(logits_fn: LogitsFn) -> LogitsFn:
    """The same function with logits in float32, in which attacks compare them, whatever the network computes in."""
    # Under `jax.jit` its arrays could not be found (`captured`); whoever calls this compiles it anyway.
    function = logits_fn.__wrapped__ if isinstance(logits_fn, jax.stages.Wrapped) else logits_fn  # type: ignore[attr-defined]

    def in_float32(*arguments: jax.Array) -> jax.Array:
        logits = function(*arguments)
        if not hasattr(logits, "dtype"):
            raise ValueError(f"logits_fn returns a {type(logits).__name__}; expected an array of logits [N, K] alone.")
        return logits.astype(jnp.float32)

    return in_float32


class AttackState(Protocol):
    """What every state holds, beside what its attack needs.

    Attributes:
      adversarial: the image to hand over, [N, ...]: misclassified where `broken`, inside the box always.
      broken: whether an image inside ball and box has been found that the network gets wrong, bool [N].
    """

    @property
    def adversarial(self) -> jax.Array: ...

    @property
    def broken(self) -> jax.Array: ...


class StepwiseAttack(Protocol):
    """An attack as a frozen dataclass of static settings.

    Attributes:
      num_starts: how often each example is attacked: random restarts, times targets.
      num_steps: steps from each start.
    """

    @property
    def num_starts(self) -> int: ...

    @property
    def num_steps(self) -> int: ...

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> Any:
        """The state before the first step.

        Args:
          logits_fn: images [N, ...] -> logits [N, K].
          keys: typed keys, one for each example and start [N].
          images: clean, float in [0, 1], [N, ...].
          labels: int32 [N].
          starts: which start this is, from 0 to `num_starts` - 1, int32 [N]; for each example its own.
        """
        ...

    def advance(self, logits_fn: LogitsFn, state: Any, num_steps: int) -> Any:
        """The state after `num_steps` further steps, which must not be more than are left."""
        ...


class Outcome(NamedTuple):
    """What an attack found. Attributes: adversarial: [N, ...], the clean image where nothing was; broken: bool [N]."""

    adversarial: jax.Array
    broken: jax.Array


def run_attack(
    attack: StepwiseAttack, logits_fn: LogitsFn, key: jax.Array, images: jax.Array, labels: jax.Array
) -> Outcome:
    """All starts of an attack, one after the other, on a whole batch; for `jax.jit` with `attack` static.

    Args:
      attack: what to run.
      logits_fn: images [N, ...] -> logits [N, K].
      key: typed PRNG key, or one for each example [N].
      images: float in [0, 1], [N, ...].
      labels: int [N].

    Returns:
      For each example the outcome of its first start that broke it.

    Raises:
      ValueError: images that are not floating point, labels or keys of another number, or what `attack` refuses.
    """
    check_batch(images, labels)
    keys = keys_of_examples(key, len(images))

    def one_start(start: jax.Array, found: Outcome) -> Outcome:
        starts = jnp.full(len(images), start, jnp.int32)
        state = attack.start(logits_fn, fold_in_each(keys, start), images, labels, starts)
        state = attack.advance(logits_fn, state, attack.num_steps)
        return keep_first(found, Outcome(state.adversarial, state.broken))

    nothing = Outcome(images, jnp.zeros(len(images), bool))
    found = lax.fori_loop(0, attack.num_starts, one_start, nothing)
    return jax.tree.map(lax.stop_gradient, found)


def keep_first(before: Outcome, now: Outcome) -> Outcome:
    """`before` where it is broken, else `now` if that is."""
    new = now.broken & ~before.broken
    return Outcome(where(new, now.adversarial, before.adversarial), before.broken | now.broken)


def where(condition: jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
    """`jnp.where` by example: condition [N], arrays [N, ...]."""
    return jnp.where(condition.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)


def keys_of_examples(key: jax.Array, num_examples: int) -> jax.Array:
    """One key for each example: `key` itself if it is that already, else folded from it by the example's number.

    Raises:
      ValueError: another number of keys, or no typed key.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key has dtype {key.dtype}; expected a typed key, jax.random.key(seed).")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_examples))
    if key.shape != (num_examples,):
        raise ValueError(
            f"There are keys of shape {key.shape}; expected one, or one for each of {num_examples} images."
        )
    return key


def fold_in_each(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Folds one number into each of the keys [N]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def check_batch(images: jax.Array, labels: jax.Array) -> None:
    """Refuses, with a `ValueError`, what cannot be a batch: images of whole numbers, another number of labels."""
    if not jnp.issubdtype(images.dtype, jnp.floating) or images.ndim < 2:
        raise ValueError(
            f"images are {images.dtype}{list(images.shape)}; expected float [N, ...] with pixels in [0, 1]."
        )
    if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are {labels.dtype}{list(labels.shape)}; expected whole numbers, [{len(images)}].")
