"""What the answers of a network to clean images give away."""

import jax
import numpy as np

from rap_jax.attacks.checks import LogitsFn
from rap_jax.diagnostics.finding import Finding

_NEARLY_ALL = 0.95
# Rounding changes logits by far less than this share of the largest.
_SAME_LOGITS = 1e-3
_FEW_IMAGES = 8


def check_images(images: np.ndarray) -> list[Finding]:
    """Pixels outside [0, 1], or that are no numbers."""
    least, most = float(images.min()), float(images.max())
    if least >= 0 and most <= 1:
        return []
    return [
        Finding(
            "range of the images",
            f"Pixels go from {least:.4g} to {most:.4g}; expected [0, 1], which every attack here stays inside. Scale "
            f"the images to [0, 1] and put any normalisation into the network.",
        )
    ]


def check_probabilities(logits: np.ndarray) -> list[Finding]:
    """Outputs that are probabilities: softmax rounds the gradient of a confident answer to zero."""
    if not (logits.min() > -1e-5 and logits.max() < 1 + 1e-5 and np.allclose(logits.sum(-1), 1, atol=1e-5)):
        return []
    return [
        Finding(
            "probabilities",
            "The outputs lie in [0, 1] and sum to 1: they are probabilities, whose gradients vanish where the network "
            "is sure, so attacks look weaker than they are. Return the logits, before the softmax.",
        )
    ]


def check_randomized(logits_fn: LogitsFn, images: np.ndarray, logits: np.ndarray) -> list[Finding]:
    """Another answer to the same images."""
    change = _largest_change(np.asarray(logits_fn(images)), logits)
    if change <= _SAME_LOGITS:
        return []
    return [
        Finding(
            "randomised",
            f"The same images get other logits the second time (by {change:.2g} of their size). An attack that works "
            f"once may fail at the next draw. Use version rand (--auto_attack=rand) with a function of images and key.",
        )
    ]


def check_neighbours(logits_fn: LogitsFn, images: np.ndarray, logits: np.ndarray) -> list[Finding]:
    """Another answer to an image among other images: BatchNorm in training mode."""
    others = images.copy()
    others[len(images) // 2 :] = 0
    half = slice(0, max(1, len(images) // 2))
    change = _largest_change(np.asarray(logits_fn(others))[half], logits[half])
    if len(images) == 1 or change <= _SAME_LOGITS:
        return []
    return [
        Finding(
            "depends on the batch",
            f"An image gets other logits when its neighbours in the batch change (by {change:.2g} of their size): "
            f"BatchNorm is in training mode, or something else mixes the batch. Evaluate the network in evaluation "
            f"mode, apply(params, batch_stats, images, train=False).",
        )
    ]


def check_alone(logits_fn: LogitsFn, images: np.ndarray) -> list[Finding]:
    """A randomised network, (images, key) -> logits, whose answer to an image depends on the others under one key."""
    key, few = jax.random.key(0), images[:_FEW_IMAGES]
    drawn, pairs = jax.jit(lambda batch: logits_fn(batch, key)), np.concatenate([few, 1 - few])
    alone = "A randomised network is attacked one image at a time, so this result is that of another network."
    found = check_neighbours(drawn, pairs, np.asarray(drawn(pairs)))
    return [finding._replace(text=f"{finding.text} {alone}") for finding in found]


def check_collapse(predicted: np.ndarray, labels: np.ndarray) -> list[Finding]:
    """One class for everything, which is robust and worthless."""
    largest = int(predicted.argmax())
    true_share = float((labels == largest).mean())
    if predicted[largest] < _NEARLY_ALL or true_share >= _NEARLY_ALL:
        return []
    return [
        Finding(
            "collapsed",
            f"{predicted[largest]:.1%} of the clean images are called class {largest}, which is the right answer to "
            f"{true_share:.1%}: the network has collapsed to one class. Its robust accuracy says nothing. Train with a "
            f"radius that rises slowly, a smaller learning rate or more width.",
        )
    ]


def _largest_change(now: np.ndarray, before: np.ndarray) -> float:
    return float(np.abs(now - before).max() / (np.abs(before).max() + 1e-12))
