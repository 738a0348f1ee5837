"""Clean and robust accuracy of an ONNX file, measured on the file itself.

A file of onnxruntime has no gradient, so two attacks are made, and an image is robust if the file is right under both:

    transfer    PGD makes an image on the float network that the file comes from, broken there or not
    square      random search that asks the file itself (`attacks.square`)

Both together are weaker than a gradient attack on the file would be: the number is an upper bound of its robustness. It
stands beside that of the float network, which has seen the same PGD images and a search of its own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.attacks import ThreatModel, pgd
from rap_jax.attacks.losses import margin
from rap_jax.attacks.square import Square, SquareState, accept
from rap_jax.attacks.square_candidates import CANDIDATES, draw, draw_first
from rap_jax.config import AttackConfig
from rap_jax.evaluation.accuracy import wilson_interval
from rap_jax.models import use_cpu_form
from rap_jax.models.cpu_forms import fast_on_cpu

Logits = Callable[[np.ndarray], Any]
NOTE = (
    "PGD images were made on the float network, Square asked the file itself; no gradient of the file was taken, so "
    "its robust accuracy is an upper bound"
)


def measure(
    file_logits: Logits,
    float_logits: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
    labels: np.ndarray,
    attack: AttackConfig,
    *,
    num_queries: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracies of a file and of the float network that it comes from, ready for JSON.

    Args:
      file_logits, float_logits: images float32 [N, H, W, C] in [0, 1] -> logits [N, K]; the latter a JAX function.
      images, labels: clean, [N, H, W, C]; whole numbers [N].
      attack: threat model and steps of PGD.
      num_queries: of Square for each image; 0 leaves it out.

    Raises:
      ValueError: logits are NaN or infinite.
    """
    file_logits, known = _finite("the file", file_logits), _finite("the float network", jax.jit(float_logits))
    keys = jax.random.split(jax.random.key(seed), 2)
    threat_model = ThreatModel(attack.norm, attack.epsilon)
    attack_float = functools.partial(
        pgd,
        fast_on_cpu(float_logits) if use_cpu_form("auto") else float_logits,
        threat_model=threat_model,
        step_size=attack.step_size,
        num_steps=attack.num_steps,
        num_restarts=attack.num_restarts,
        random_start=attack.random_start,
    )
    adversarial = np.asarray(jax.jit(attack_float)(images, labels, key=keys[0]).adversarial)
    right = lambda logits_fn, batch: np.asarray(logits_fn(batch)).argmax(-1) == labels
    of_file = {"clean": right(file_logits, images), "transfer": right(file_logits, adversarial)}
    of_float = {"clean": right(known, images), "transfer": right(known, adversarial)}
    if num_queries:
        square = Square(threat_model, num_queries)
        for right_under, logits_fn in ((of_file, file_logits), (of_float, known)):
            right_under["square"] = ~square_on_host(square, logits_fn, keys[1], images, labels)
    return {
        "note": NOTE,
        "norm": attack.norm,
        "epsilon": attack.epsilon,
        "pgd_num_steps": attack.num_steps,
        "pgd_step_size": attack.step_size,
        "pgd_num_restarts": attack.num_restarts,
        "square_queries": num_queries,
        "num_images": len(labels),
        "file": _accuracies(of_file),
        "float": _accuracies(of_float),
    }


def _finite(name: str, logits_fn: Logits) -> Logits:
    """The same function, which refuses logits that are no numbers: argmax would make a class of them."""

    def finite(images: np.ndarray) -> np.ndarray:
        logits = np.asarray(logits_fn(images))
        bad = ~np.isfinite(logits).all(-1)
        if bad.any():
            raise ValueError(
                f"{bad.sum()} of {len(bad)} images get logits of {name} that are NaN or infinite; expected finite "
                f"ones. Look at the weights, and at the images that calibrated an int8 file."
            )
        return logits

    return finite


def square_on_host(
    attack: Square, logits_fn: Logits, key: jax.Array, images: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Square against a function outside JAX: which images [N] it breaks, bool [N]; clean errors count as broken."""
    _, height, width, channels = images.shape
    candidates, correct = CANDIDATES[attack.threat_model.norm], jnp.asarray(labels, jnp.int32)

    @jax.jit
    def start(keys: jax.Array, images: jax.Array) -> jax.Array:
        draws = draw_first(keys, candidates.grid(height, width), channels)
        return candidates.first(images, draws, attack.threat_model.epsilon)

    @jax.jit
    def propose(state: SquareState) -> jax.Array:
        draws, sides = draw(state.keys, state.iteration + 1, channels), attack.sides(state.iteration, height, width)
        return candidates.next(state.images, state.adversarial, draws, sides, attack.threat_model.epsilon)

    @jax.jit
    def accept_if_better(state: SquareState, candidate: jax.Array, logits: jax.Array) -> SquareState:
        return accept(state, candidate, margin(logits, correct), logits.argmax(-1).astype(jnp.int32) != correct)

    ask = lambda candidate: jnp.asarray(logits_fn(np.asarray(candidate)))
    keys, clean = jax.random.split(key, len(images)), jnp.asarray(images)
    nothing, asked = jnp.full(len(images), -jnp.inf, jnp.float32), jnp.full(len(images), -1, jnp.int32)
    wrong = ask(clean).argmax(-1).astype(jnp.int32) != correct
    state = SquareState(keys, clean, correct, asked, clean, nothing, wrong, jnp.ones(len(images), bool), asked)
    first = start(keys, clean)
    state = accept_if_better(state, first, ask(first))
    for _ in range(attack.num_steps):
        if bool(state.broken.all()):
            break
        candidate = propose(state)
        state = accept_if_better(state, candidate, ask(candidate))
    return np.asarray(state.broken)


def _accuracies(right: dict[str, np.ndarray]) -> dict[str, Any]:
    """Share that is right on the clean images, under each attack, and under all together."""
    robust = np.logical_and.reduce(list(right.values()))
    shares = {"clean": float(right["clean"].mean())}
    shares |= {name: float((right["clean"] & found).mean()) for name, found in right.items() if name != "clean"}
    interval = list(wilson_interval(int(robust.sum()), len(robust)))
    return shares | {"robust": float(robust.mean()), "robust_interval": interval}
