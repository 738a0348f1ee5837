"""Projected gradient descent on the images: with random restarts, with momentum, and in one step.

`pgd`. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
https://arxiv.org/abs/1706.06083; used by Ye et al., 2019 (eq. 2) inside training and for evaluation.

Differs from the code of Ye et al.: (1) the random start is put inside [0, 1] before the first gradient, so that
every gradient is taken at an image; (2) the logits are a function of the images alone, so an attack cannot move
BatchNorm statistics; (3) where an entry of a gradient is NaN the pixel stays for this step, and an infinite one counts
as the largest of its sign, so that images are never NaN. Examples do not couple as long as the loss normalises none by
its neighbours.

Images of 16 bits are moved in float32, or small steps would be lost; the loss sees them rounded, each pixel towards the
clean one, as they are handed over: so they are inside the ball.

`momentum_pgd` (MI-FGSM): steps follow what the gradients of all steps so far have in common. Dong et al., "Boosting
Adversarial Attacks with Momentum", 2018, https://arxiv.org/abs/1710.06081, section 3 and algorithm 1. Its images fool
other networks more often than those of PGD. Differs from the paper: (1) step size and radius are two arguments; the
paper's step is epsilon / num_steps; (2) every step ends inside [0, 1]; (3) the start may be random, and more than one.

`fgsm`: one step to the border of the ball. Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015,
https://arxiv.org/abs/1412.6572, section 4. It finds the worst image of a loss that is linear inside the ball and is
weak against any other. The one step from a random start that cheap training takes (Wong et al., 2020) is
`pgd(..., num_steps=1, step_size=1.25 * epsilon)`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rap_jax._runtime.arrays import at_least_float32, is_array
from rap_jax.attacks.checks import (
    LogitsFn,
    LossFn,
    check_count,
    check_function,
    check_images,
    check_step_size,
    checked_loss,
    warn_of_nan,
)
from rap_jax.attacks.losses import check_labels, cross_entropy
from rap_jax.attacks.norms import ThreatModel, check_threat_model, finite, has_key_for_each, has_nan
from rap_jax.attacks.stepwise import AttackResult, misclassified

# (logits [N, K], labels [N]) -> one loss for each image, [N].
Loss = Callable[[jax.Array, jax.Array], jax.Array]
# Images, the state of the transform, and whether no gradient was NaN so far, bool [N].
_State = tuple[jax.Array, optax.OptState, jax.Array]

# The gradient as it is: what makes it plain PGD.
PLAIN_GRADIENT = optax.identity()


class Restarts(NamedTuple):
    """Where the restarts of PGD ended."""

    # Images inside the threat model, [R, N, ...], shape and dtype of the clean ones for each restart.
    adversarial: jax.Array
    # Whether no gradient on the way was NaN, bool [R, N]. Where one was, PGD may be weaker than it should be.
    valid: jax.Array


def pgd(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array | None,
    step_size: jax.Array | Sequence[float] | float,
    num_steps: int,
    num_restarts: int = 1,
    random_start: bool = True,
    loss: Loss = cross_entropy,
    transform: optax.GradientTransformation = PLAIN_GRADIENT,
) -> AttackResult:
    """PGD: raises the loss of each image inside the threat model; keeps its restart of highest loss.

    Meant to be called under `jax.jit`, where everything but the arrays is static. The forward pass that decides
    `broken` is dropped by the compiler where nothing reads it.

    Args:
      logits_fn: images [N, ...] -> logits [N, K], in evaluation mode.
      images: clean inputs in [0, 1], [N, ...]; the centre of each ball.
      labels: whole numbers [N].
      threat_model: norm and radius; the radius may be traced.
      key: typed PRNG key of the random start; or one for each example [N], and then an example's start depends on its
        own key alone, not on the batch that it is in. Not read if `random_start` is False.
      step_size: length of a step in the norm and units of the radius, or of each step, [num_steps]; may be traced.
      num_steps: gradient steps.
      num_restarts: independent starts, run side by side by `vmap`.
      random_start: begin at a uniform point of the ball instead of at the image.
      loss: of logits and labels, one for each image; `losses.margin` gives the C&W attack of the paper's Table C1.
      transform: what the gradient goes through before its steepest direction is taken, such as `optax.trace(0.9)`. Each
        start has a state of its own. It must not couple examples: a clip by the norm of the whole batch would.

    Returns:
      Adversarial images, shape and dtype of `images`, never NaN; and which of them are misclassified. No gradient flows
      through them.

    Raises:
      ValueError: an impossible number of steps, restarts or keys, restarts that are all the same, a step that is no
        number of 0 or more, no threat model, images that are not float [N, ...] in [0, 1], labels that are not whole
        numbers [N], or losses that are not float [N].

    Warns:
      RuntimeWarning: logits or a gradient were NaN; outside `jax.jit` only, where that is known.
    """
    images = check_images(images)
    labels = check_labels(labels, len(images))
    check_function("logits_fn", logits_fn, "images that returns logits")
    check_function("loss", loss, "logits and labels, such as `losses.cross_entropy` or `losses.margin`")
    loss_fn = lambda x: loss(logits_fn(x), labels)
    restarts = pgd_restarts(
        loss_fn,
        images,
        threat_model=threat_model,
        key=key,
        step_size=step_size,
        num_steps=num_steps,
        num_restarts=num_restarts,
        random_start=random_start,
        transform=transform,
    )
    if not len(images):  # which many a network cannot reshape
        return AttackResult(images, jnp.zeros(0, bool))
    adversarial = strongest(loss_fn, restarts.adversarial)
    logits = logits_fn(adversarial)
    warn_of_nan(~(has_nan(logits) & restarts.valid.all(0)), "logits_fn")  # of the others `pgd_restarts` has warned
    return AttackResult(adversarial, misclassified(logits, labels))


def fgsm(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array | None = None,
    loss: Loss = cross_entropy,
) -> AttackResult:
    """FGSM: moves every image by the radius along the direction in which its loss rises most, then into [0, 1].

    That is the sign of the gradient under `linf`, and the gradient under `l2`. It draws nothing: `key` is not read.
    Arguments, result and errors are those of `pgd`.
    """
    return pgd(
        logits_fn,
        images,
        labels,
        threat_model=threat_model,
        key=key,
        step_size=check_threat_model(threat_model).epsilon,
        num_steps=1,
        random_start=False,
        loss=loss,
    )


def momentum_pgd(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array | None,
    step_size: jax.Array | Sequence[float] | float,
    num_steps: int,
    decay: float = 1.0,
    num_restarts: int = 1,
    random_start: bool = False,
    loss: Loss = cross_entropy,
) -> AttackResult:
    """MI-FGSM: PGD along an accumulated gradient. Arguments, result and errors are those of `pgd`, and:

    Args:
      decay: share of the accumulated gradient that a step keeps, the paper's mu, 0 or more. With 0 this is `pgd`; with
        1 all gradients count alike.

    Raises:
      ValueError: a negative decay.
    """
    return pgd(
        logits_fn,
        images,
        labels,
        threat_model=threat_model,
        key=key,
        step_size=step_size,
        num_steps=num_steps,
        num_restarts=num_restarts,
        random_start=random_start,
        loss=loss,
        transform=momentum(decay),
    )


def pgd_restarts(
    loss_fn: LossFn,
    images: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array | None,
    step_size: jax.Array | Sequence[float] | float,
    num_steps: int,
    num_restarts: int = 1,
    random_start: bool = True,
    transform: optax.GradientTransformation = PLAIN_GRADIENT,
) -> Restarts:
    """What `pgd` is made of: raises any per-example loss of the images, and returns what every restart found.

    An evaluation wants all of them: the restart of highest loss need not be one that is misclassified.

    Args:
      loss_fn: images [N, ...] -> one loss for each of them, float [N].
      images, threat_model, key, ...: as in `pgd`, which raises and warns as this does.
    """
    images = check_images(images)
    clean = at_least_float32(images)
    num_steps = check_count("num_steps", num_steps, 0, "0 steps")
    step_size = check_step_size(step_size, num_steps, clean.dtype)
    num_restarts = check_count("num_restarts", num_restarts, 1, "1 restart")
    check_threat_model(threat_model)
    if num_restarts > 1 and not random_start:  # all would be the same
        raise ValueError(f"num_restarts is {num_restarts!r} without random_start; expected 1, or random_start=True.")
    if random_start:
        _check_key(key, len(images))
    if not len(images):
        shape = (num_restarts, 0)
        return Restarts(jnp.zeros(shape + images.shape[1:], images.dtype), jnp.ones(shape, bool))
    gradient_fn = jax.grad(lambda x: jnp.sum(checked_loss(loss_fn)(x)))
    gradient_at = lambda x: gradient_fn(_rounded(x, images)).astype(clean.dtype)

    def one_start(key: jax.Array) -> Restarts:
        perturbation = threat_model.random_start(key, clean) if random_start else jnp.zeros_like(clean)
        first = threat_model.perturb(clean, perturbation)
        end, valid = _ascend(threat_model, gradient_at, clean, first, step_size, num_steps, transform)
        return Restarts(_rounded(end, images), valid)

    found = _each_restart(one_start, key, num_restarts)
    warn_of_nan(found.valid.all(0), "The loss")
    return found


def strongest(loss_fn: LossFn, restarts: jax.Array) -> jax.Array:
    """For each image the restart of highest loss, [N, ...] of [R, N, ...]; one of loss NaN comes after all others."""
    if len(restarts) == 1:
        return restarts[0]
    losses = jax.vmap(loss_fn)(restarts)
    worst = jnp.argmax(jnp.where(jnp.isnan(losses), -jnp.inf, losses), axis=0)
    return jax.vmap(lambda i, starts: starts[i], in_axes=(0, 1))(worst, restarts)


def _each_restart(one_start: Callable[[Any], Restarts], key: Any, num_restarts: int) -> Restarts:
    """All restarts, each with a key of its own, or with one for each example."""
    if num_restarts == 1:  # vmap over an axis of one would only get in the compiler's way
        return jax.tree.map(lambda x: x[None], one_start(key))
    split = lambda key: jax.random.split(key, num_restarts)
    return jax.vmap(one_start)(jax.vmap(split, out_axes=1)(key) if has_key_for_each(key) else split(key))


def _check_key(key: Any, num_examples: int) -> None:
    if not is_array(key):
        raise ValueError(f"key is {key!r}; expected a typed key, jax.random.key(seed).")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim > 1:
        raise ValueError(f"There are keys {list(key.shape)}; expected one, or one for each image [{num_examples}].")
    if has_key_for_each(key) and len(key) != num_examples:
        raise ValueError(f"There are {len(key)} keys; expected one, or one for each of the {num_examples} images.")


def _rounded(x: jax.Array, images: jax.Array) -> jax.Array:
    """`x` in the dtype of `images`, each pixel rounded towards theirs, so that no perturbation grows."""
    if x.dtype == images.dtype:
        return x
    info, clean = jnp.finfo(images.dtype), images.astype(x.dtype)
    nearest = lax.reduce_precision(x, info.nexp, info.nmant)  # XLA may leave out a cast there and back
    farther = jnp.abs(nearest - clean) > jnp.abs(x - clean)
    nearest = nearest.astype(images.dtype)
    return jnp.where(farther, jnp.nextafter(nearest, images), nearest)


def _ascend(
    threat_model: ThreatModel,
    gradient_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    first: jax.Array,
    step_size: Any,
    num_steps: int,
    transform: optax.GradientTransformation,
) -> tuple[jax.Array, jax.Array]:
    """The last images [N, ...], and where no gradient was NaN [N], which costs nothing where it is not read."""

    def step(number: Any, state: _State) -> _State:
        adversarial, transform_state, valid = state
        gradient = gradient_fn(adversarial)
        direction, transform_state = transform.update(finite(gradient), transform_state)
        size = step_size[number] if is_array(step_size) and step_size.ndim else step_size
        moved = adversarial + size * threat_model.steepest(finite(direction))
        inside = threat_model.perturb(images, moved - images)
        return inside, transform_state, valid & ~has_nan(gradient)

    begin = (first, transform.init(first), jnp.ones(len(images), bool))
    adversarial, _, valid = lax.fori_loop(0, num_steps, step, begin)
    return lax.stop_gradient(adversarial), valid


def momentum(decay: float) -> optax.GradientTransformation:
    """The sum of all gradients so far, each over its L1 norm, the older ones shrunk by `decay` at every step.

    For `pgd_restarts(..., transform=momentum(1.0))`, which returns what every restart found.

    Raises:
      ValueError: a negative decay.
    """
    if not decay >= 0:
        raise ValueError(f"decay is {decay!r}; expected 0 (no momentum) or more, such as the paper's 1.0.")
    return optax.chain(optax.stateless(_over_l1_norm), optax.trace(decay))


def _over_l1_norm(gradient: jax.Array, params: optax.Params | None) -> jax.Array:
    """Gradients [N, ...] of L1 norm 1, where they are not zero.

    The norm is the sum, as in the paper; the authors' code takes the mean, which the direction of a step does not see.
    """
    del params
    norm = jnp.sum(jnp.abs(gradient), range(1, gradient.ndim), keepdims=True)
    return gradient / jnp.where(norm > 0, norm, 1.0)
