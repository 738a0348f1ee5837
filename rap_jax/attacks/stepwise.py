"""Attacks in pieces: whoever runs one can drop broken examples and put others in their place.

    state = attack.start(logits_fn, keys, images, labels, starts)
    state = attack.advance(logits_fn, state, num_steps)     # again and again, `attack.num_steps` in all

Every leaf of a state has the examples on its first axis. An example depends on its key, image, label and start alone,
never on its neighbours. `run_attack` puts the pieces together for one batch; `rank_targets` chooses the wrong class
that a targeted attack aims at.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax._runtime.arrays import is_array
from rap_jax.attacks.checks import LogitsFn, check_batch, check_count, in_dtype, warn_of_nan
from rap_jax.attacks.losses import check_labels
from rap_jax.attacks.norms import check_threat_model, has_nan


class AttackState(Protocol):
    """What every state holds, beside what its attack needs."""

    @property
    def adversarial(self) -> jax.Array:
        """The images to hand over, [N, ...]: misclassified where `broken`, in [0, 1] always."""

    @property
    def broken(self) -> jax.Array:
        """Whether a misclassified image inside the threat model has been found, bool [N]; never by logits of NaN."""

    @property
    def valid(self) -> jax.Array | bool:
        """That no logits and no gradient on the way were NaN, bool [N].

        Where they were, NaN in a gradient counted as 0, and an image that is not broken is not known to be robust.
        """


class StepwiseAttack(Protocol):
    """An attack as a frozen dataclass of static settings."""

    @property
    def num_starts(self) -> int:
        """How often each example is attacked: random restarts, times targets."""

    @property
    def num_steps(self) -> int:
        """Steps from each start."""

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

    def advance(self, logits_fn: LogitsFn, state: Any, num_steps: int) -> Any:
        """The state after `num_steps` further steps, which must not be more than are left."""


class AttackResult(NamedTuple):
    """What every attack returns."""

    adversarial: jax.Array  # images in [0, 1], [N, ...]. A stepwise attack gives the clean one where it found none.
    broken: jax.Array  # which of them are inside the threat model and misclassified, bool [N]


def run_attack(
    attack: StepwiseAttack, logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, *, key: jax.Array
) -> AttackResult:
    """All starts of an attack, one after the other, on a whole batch; for `jax.jit` with `attack` static.

    Args:
      attack: settings of the attack.
      logits_fn: images [N, ...] -> logits [N, K], in evaluation mode.
      images: clean, float32 or float64 in [0, 1], [N, ...].
      labels: whole numbers [N].
      key: typed PRNG key, or one for each example [N].

    Returns:
      For each example the outcome of its first start that broke it.

    Raises:
      ValueError: images that are not float32 or float64 in [0, 1], labels that are not whole numbers [N], another
        number of keys, logits that are not float [N, K], or what `attack` refuses.

    Warns:
      RuntimeWarning: logits or gradients were NaN; outside `jax.jit` only, where that is known.
    """
    images, labels = check_batch(images, labels)
    keys, logits_fn = keys_of_examples(key, len(images)), in_dtype(logits_fn, images.dtype)

    def one_start(start: jax.Array, carry: tuple[AttackResult, jax.Array]) -> tuple[AttackResult, jax.Array]:
        found, valid = carry
        starts = jnp.full(len(images), start, jnp.int32)
        state = attack.start(logits_fn, fold_in_each(keys, start), images, labels, starts)
        state = attack.advance(logits_fn, state, attack.num_steps)
        return keep_first(found, AttackResult(state.adversarial, state.broken)), valid & (state.valid | found.broken)

    nothing = AttackResult(images, jnp.zeros(len(images), bool))
    if not len(images):  # which many a network cannot reshape
        return nothing
    found, valid = lax.fori_loop(0, attack.num_starts, one_start, (nothing, ~nothing.broken))
    warn_of_nan(valid, "logits_fn")
    return jax.tree.map(lax.stop_gradient, found)


def check_settings(attack: Any, **others: Any) -> None:
    """Refuses what no attack can have; numbers of NumPy become Python's, and `others` take the place of what there is.

    Raises:
      ValueError: no threat model, fewer than 0 steps, or fewer than 1 restart.
    """
    checked = {
        "threat_model": check_threat_model(attack.threat_model),
        "num_steps": check_count("num_steps", attack.num_steps, 0, "0 steps"),
        "num_restarts": check_count("num_restarts", attack.num_restarts, 1, "1 restart"),
    }
    for name, value in (checked | others).items():
        object.__setattr__(attack, name, value)


def misclassified(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Which images have another class than their label, bool [N]; none whose logits are NaN, of which argmax is 0."""
    labels = check_labels(labels, len(logits), logits.shape[-1])
    return (jnp.argmax(logits, axis=-1).astype(labels.dtype) != labels) & ~has_nan(logits)


def with_own_keys(logits_fn: LogitsFn) -> LogitsFn:
    """(images [N, ...], keys [N]) -> logits [N, K] of a randomised network that takes (images, key).

    Each image has the noise of its own key, whatever is beside it in the batch. The network sees batches of one image,
    which `jax.vmap` puts together again.
    """
    return jax.vmap(lambda image, key: logits_fn(image[None], key)[0])


def keep_first(before: AttackResult, now: AttackResult) -> AttackResult:
    """`before` where it is broken, else `now` if that is."""
    new = now.broken & ~before.broken
    return AttackResult(where(new, now.adversarial, before.adversarial), before.broken | now.broken)


def where(condition: jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
    """`jnp.where` by example: condition [N], arrays [N, ...]."""
    return jnp.where(condition.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)


def keys_of_examples(key: jax.Array, num_examples: int) -> jax.Array:
    """One key for each example: `key` itself if it is that already, else folded from it by the example's number.

    Raises:
      ValueError: another number of keys, or no typed key.
    """
    if not is_array(key) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        found = f"has dtype {key.dtype}" if is_array(key) else f"is {key!r}"
        raise ValueError(f"key {found}; expected a typed key, jax.random.key(seed).")
    if key.ndim == 0:
        return keys_of(key, jnp.arange(num_examples))
    if key.shape != (num_examples,):
        raise ValueError(
            f"There are keys of shape {key.shape}; expected one, or one for each of {num_examples} images."
        )
    return key


def keys_of(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """One key for each example, by its number: int [N] -> [N]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def fold_in_each(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Folds one number into each of the keys [N]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def rank_targets(logits: jax.Array, numbers: jax.Array, num_targets: int) -> jax.Array:
    """The class of rank 2 + `numbers` for each example, int [N]: number 0 is the runner-up.

    Args:
      logits: at the clean images, [N, K].
      numbers: from 0 to `num_targets` - 1, int [N].

    Raises:
      ValueError: more targets than wrong classes.
    """
    num_classes = logits.shape[-1]
    if num_targets > num_classes - 1:
        raise ValueError(
            f"num_targets is {num_targets}; expected at most {num_classes - 1} with {num_classes} classes."
        )
    falling = jnp.argsort(logits, axis=-1, descending=True)
    return jnp.take_along_axis(falling, 1 + numbers[:, None], axis=-1)[:, 0]
