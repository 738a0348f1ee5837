"""Findings: reasons to doubt a robust accuracy.

    diagnosis = diagnose(logits_fn, images, labels, threat_model=ThreatModel("linf", 0.3), key=key)
    for finding in diagnosis.findings: print(finding.text)

They come from a network's answers to clean images, from its gradients (do they lead an attack anywhere?), from the
components of AutoAttack, and from a whole evaluation: its data, and attacks that contradict each other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax._runtime.functions import exact_products, trace
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import cross_entropy
from rap_jax.attacks.norms import NORMS, check_threat_model
from rap_jax.evaluation.sweep import NUM_STEPS, OnRadius, SweepPoint, epsilon_sweep, still_right


class Finding(NamedTuple):
    """Something that should make one doubt."""

    name: str  # in short
    text: str  # what it means and what to do


def _finding_if(holds: bool | np.bool, name: str, text: str) -> list[Finding]:
    return [Finding(name, text)] if holds else []


_NEARLY_ALL = 0.95
# Rounding changes logits by far less than this share of the largest.
_SAME_LOGITS = 1e-3
_FEW_IMAGES = 8


def check_images(images: np.ndarray) -> list[Finding]:
    """Pixels outside [0, 1], or that are no numbers."""
    least, most = float(images.min()), float(images.max())
    return _finding_if(
        not (least >= 0 and most <= 1),
        "range of the images",
        f"Pixels go from {least:.4g} to {most:.4g}; expected [0, 1], which every attack here stays inside. Scale "
        f"the images to [0, 1] and put any normalisation into the network.",
    )


def check_probabilities(logits: np.ndarray) -> list[Finding]:
    """Outputs that are probabilities: softmax rounds the gradient of a confident answer to zero."""
    are_probabilities = logits.min() > -1e-5 and logits.max() < 1 + 1e-5 and np.allclose(logits.sum(-1), 1, atol=1e-5)
    return _finding_if(
        are_probabilities,
        "probabilities",
        "The outputs lie in [0, 1] and sum to 1: they are probabilities, whose gradients vanish where the network "
        "is sure, so attacks look weaker than they are. Return the logits, before the softmax.",
    )


def check_randomized(logits_fn: LogitsFn, images: np.ndarray, logits: np.ndarray) -> list[Finding]:
    """Another answer to the same images."""
    change = _largest_change(np.asarray(logits_fn(images)), logits)
    return _finding_if(
        not change <= _SAME_LOGITS,
        "randomised",
        f"The same images get other logits the second time (by {change:.2g} of their size). An attack that works "
        f"once may fail at the next draw. Use version rand (--auto_attack=rand) with a function of images and key.",
    )


def check_neighbours(logits_fn: LogitsFn, images: np.ndarray, logits: np.ndarray) -> list[Finding]:
    """Another answer to an image among other images: BatchNorm in training mode."""
    others = images.copy()
    others[len(images) // 2 :] = 0
    half = slice(0, max(1, len(images) // 2))
    change = _largest_change(np.asarray(logits_fn(others))[half], logits[half])
    return _finding_if(
        len(images) > 1 and not change <= _SAME_LOGITS,
        "depends on the batch",
        f"An image gets other logits when its neighbours in the batch change (by {change:.2g} of their size): "
        f"BatchNorm is in training mode, or something else mixes the batch. Evaluate the network in evaluation "
        f"mode, apply(params, batch_stats, images, train=False).",
    )


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
    return _finding_if(
        predicted[largest] >= _NEARLY_ALL > true_share,
        "collapsed",
        f"{predicted[largest]:.1%} of the clean images are called class {largest}, which is the right answer to "
        f"{true_share:.1%}: the network has collapsed to one class. Its robust accuracy says nothing. Train with a "
        f"radius that rises slowly, a smaller learning rate or more width.",
    )


def _largest_change(now: np.ndarray, before: np.ndarray) -> float:
    return float(np.abs(now - before).max() / (np.abs(before).max() + 1e-12))


# Shares of examples; what is below them is chance or rounding.
_FEW, _ODD = 0.01, 0.02


def check_gradients(zero_gradients: float) -> list[Finding]:
    """Gradients that are zero: an attack cannot follow them."""
    return _finding_if(
        zero_gradients > _FEW,
        "zero gradients",
        f"At {zero_gradients:.1%} of the right images the gradient of the cross-entropy is exactly zero, so "
        f"attacks that follow it do not move. If outputs are saturated, APGD-DLR and FAB still find a way; if an "
        f"operation has no gradient (rounding, argmax, stop_gradient), only Square and transferred images do. "
        f"Take it out of the network, or replace its gradient, and evaluate again.",
    )


def without_gradient(reason: str) -> Finding:
    """A network that has no gradient, for this `reason`."""
    return Finding(
        "no gradient",
        f"The network has no gradient ({reason}), so nothing could be looked for that shows in gradients, and no "
        f"attack can follow them. Square and transferred images alone are a weak evaluation: the true robust "
        f"accuracy is likely lower. Write the network in JAX, or give it a gradient by `jax.custom_vjp`.",
    )


def check_one_step(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    sweep: list[SweepPoint],
    *,
    threat_model: ThreatModel,
    key: jax.Array,
) -> list[Finding]:
    """One large step that breaks more than many small ones."""
    step_size = jnp.float32(threat_model.epsilon)
    one_step = float(still_right(logits_fn, num_steps=1)(images, labels, threat_model, step_size, key).mean())
    many_steps = next(point.accuracy for point in sweep if point.epsilon == threat_model.epsilon)
    return _finding_if(
        one_step < many_steps - _ODD,
        "one step beats many",
        f"One step leaves {one_step:.1%} of the images right, {NUM_STEPS} steps leave {many_steps:.1%}: the "
        f"gradients are masked, and PGD is not to be trusted. Go by AutoAttack, and raise steps and restarts.",
    )


def check_sweep(sweep: list[SweepPoint]) -> list[Finding]:
    """An attack that may change everything and does not break everything."""
    last = sweep[-1]
    return _finding_if(
        last.accuracy > _FEW,
        "unbroken at any radius",
        f"With a radius of {last.epsilon:.3g}, at which every image can be turned into any other, PGD still leaves "
        f"{last.accuracy:.1%} of the images right; expected 0%. The attack cannot find its way: the gradients are "
        f"masked, or the network answers with one class.",
    )


def share_without_gradient(logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, right: np.ndarray) -> float:
    """Share of the images that are `right`, bool [N], at which the cross-entropy has a gradient of exactly zero."""
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(logits_fn(x), jnp.asarray(labels)).sum()))(images)
    zero = np.asarray(NORMS["linf"].size(gradient)) == 0
    return float(zero[right].mean()) if right.any() else 0.0


MOST_IMAGES = 200


class Diagnosis(NamedTuple):
    """What `diagnose` saw."""

    findings: list[Finding]  # what is wrong; empty where nothing was
    sweep: list[SweepPoint]  # robust accuracy by radius, from 0 up; at 0 alone for a network without any gradient
    zero_gradients: float  # share of right examples at which the cross-entropy has no gradient at all
    predicted: np.ndarray  # share of each class among the answers to clean images, [K]


def diagnose(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    on_radius: OnRadius = lambda done, total: None,
) -> Diagnosis:
    """Looks at the network on the first 200 images.

    Args:
      logits_fn: images [N, H, W, C] -> logits [N, K], in evaluation mode.
      images: float in [0, 1], [N, H, W, C].
      labels: int [N].
      threat_model: norm and radius, of the sweep.
      key: typed PRNG key, of the sweep's random starts.
      on_radius: see `epsilon_sweep`.

    Raises:
      ValueError: no threat model.
    """
    check_threat_model(threat_model)
    images, labels = np.asarray(images[:MOST_IMAGES], np.float32), np.asarray(labels[:MOST_IMAGES])
    logits_fn = jax.jit(exact_products(logits_fn))
    logits = np.asarray(logits_fn(images))
    right = logits.argmax(-1) == labels
    predicted = np.bincount(logits.argmax(-1), minlength=logits.shape[-1]) / len(images)
    findings = [
        *check_images(images),
        *check_probabilities(logits),
        # Of a network that answers otherwise each time nothing can be said about neighbours.
        *(check_randomized(logits_fn, images, logits) or check_neighbours(logits_fn, images, logits)),
        *check_collapse(predicted, labels),
    ]
    no_gradient = trace(logits_fn, images).no_gradient
    if no_gradient:
        findings.append(without_gradient(no_gradient))
        return Diagnosis(findings, [SweepPoint(0.0, float(right.mean()))], 1.0, predicted)
    zero = share_without_gradient(logits_fn, images, labels, right)
    sweep = epsilon_sweep(logits_fn, images, labels, threat_model=threat_model, key=key, on_radius=on_radius)
    findings += [
        *check_gradients(zero),
        *check_one_step(logits_fn, images, labels, sweep, threat_model=threat_model, key=key),
        *check_sweep(sweep),
    ]
    return Diagnosis(findings, sweep, zero, predicted)


# The share of images missed that the official implementation of AutoAttack warns at, for Square.
_MISSED_SHARE = 0.002


def check_square(robust_after: dict[str, float], num_images: int) -> list[Finding]:
    """An attack without gradients that finds what those with gradients did not.

    Args:
      robust_after: name of each component of AutoAttack, in their order -> robust accuracy after it.
      num_images: that were attacked.
    """
    names = list(robust_after)
    if "square" not in names[1:]:
        return []
    before = robust_after[names[names.index("square") - 1]]
    lost = before - robust_after["square"]
    return _finding_if(
        lost > _MISSED_SHARE,
        "Square beats the gradients",
        f"Square, which uses no gradients, broke {round(lost * num_images)} of the {round(before * num_images)} "
        f"images that the attacks before it, which do, had left ({lost:.2%} of all): the more there are, the more "
        f"the gradients mislead. The true robust accuracy is likely lower; try version strong, more queries and "
        f"restarts of Square, or an attack written for this network.",
    )


def check_quick(version: str, masked_share: float, num_images: int) -> list[Finding]:
    """Images that the few queries of version quick break after its gradients had failed.

    Args:
      version: of AutoAttack; there is nothing to find in another one.
      masked_share: of all images, see `AutoAttackResult`.
      num_images: that were attacked.
    """
    return _finding_if(
        version == "quick" and masked_share > _MISSED_SHARE,
        "quick is too high",
        f"Random search broke {round(masked_share * num_images)} images that the gradients had left "
        f"({masked_share:.2%} of all), with a tenth of the queries of version standard. The gradients may mislead, and "
        f"more queries will break more images: use version standard or strong.",
    )


def check_strong(standard: float | None, robust: float, num_images: int) -> list[Finding]:
    """What the attacks of version strong find after those of standard.

    Args:
      standard: robust accuracy after the components of standard; None if they did not come first.
      robust: after all.
      num_images: that were attacked.
    """
    lost = 0.0 if standard is None else standard - robust
    return _finding_if(
        lost > _MISSED_SHARE,
        "standard is too high",
        f"The attacks of version strong broke {round(lost * num_images)} images that those of AutoAttack standard had "
        f"left ({lost:.2%} of all). Give both numbers; the true robust accuracy may be lower still.",
    )


def check_left_out(version: str, num_classes: int) -> list[Finding]:
    """Components that cannot be run with so few classes, or aim at fewer than AutoAttack does."""
    if num_classes >= 10 or (version == "rand" and num_classes >= 3):
        return []
    lost = {2: "The losses dlr and targeted dlr need more", 3: "The targeted dlr loss needs more"}.get(num_classes)
    what = (
        f"{lost}, so components are left out" if lost else f"Targeted attacks aim at the {num_classes - 1} wrong ones"
    )
    text = f"There are {num_classes} classes. {what}; the result is not that of AutoAttack with 9 targets."
    return [Finding("few classes", text)]


def check_data(run: dict[str, Any] | None, about: dict[str, Any]) -> list[Finding]:
    """Other data than the network was trained on, or validation images that it may have been trained on.

    Args:
      run: results.json of the run that trained the network; None if it is not known.
      about: of the data that is attacked, `Dataset.describe()` and its `split`.
    """
    if run is None:
        return []
    trained = run["data"]
    if trained["sha256"] != about["sha256"]:
        was, now = (f"{data['name']} (sha256 {data['sha256'][:12]})" for data in (trained, about))
        text = (
            f"The network was trained on {was} and is attacked on {now}: the numbers are not those of that run, and it "
            f"may have been trained on some of these images, if one data set is made of the other."
        )
        return [Finding("other data", text)]
    split = ("validation_fraction", "validation_seed")
    return _finding_if(
        about["split"] == "validation" and any(trained[key] != about[key] for key in split),
        "seen in training",
        "Another part of the training images is held out here than when the network was trained, so it may have been "
        "trained on the images that it is attacked on. Give the run's --validation_fraction and --validation_seed, or "
        "leave them out.",
    )


def check_confirmed(name: str, claimed: np.ndarray, broken: np.ndarray) -> list[Finding]:
    """Images that an attack says the network gets wrong, and that it gets right when they are predicted once more.

    Args:
      name: of the attack.
      claimed, broken: before and after, bool [N].
    """
    lost = int((claimed & ~broken).sum())
    return _finding_if(
        lost > 0,
        "not confirmed",
        f"{lost} of the {int(claimed.sum())} images of {name} were misclassified when they were found and are not "
        f"when predicted once more; they are not counted. A few lie so near to the boundary that rounding decides; "
        f"many mean that the network does not give the same answer twice.",
    )


def check_worst_case(auto_attack: dict[str, Any] | None, robust: np.ndarray) -> list[Finding]:
    """Other attacks that break what AutoAttack has left.

    Args:
      auto_attack: what results.json says of it; None if it was not run.
      robust: what all attacks together have left, bool [N].
    """
    if auto_attack is None:
        return []
    missed = auto_attack["robust_accuracy"] - float(robust.mean())
    return _finding_if(
        missed > _MISSED_SHARE,
        "AutoAttack was not the strongest",
        f"Other attacks broke {round(missed * len(robust))} more images than {auto_attack['name']} "
        f"({missed:.2%} of all), which hardly happens unless gradients are masked. Go by the worst case of all, "
        f"try version strong, and write an attack for this network.",
    )
