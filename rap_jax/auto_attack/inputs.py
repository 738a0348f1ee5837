"""What a caller of AutoAttack may get wrong: refused at once, by what it is and what was expected."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.attacks.stepwise import LogitsFn, StepwiseAttack
from rap_jax.auto_attack.versions import Part
from rap_jax.config.checks import require
from rap_jax.diagnostics import check_images
from rap_jax.losses import check_labels, describe


def check_arrays(images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 [N, H, W, C] in [0, 1] and labels as whole numbers [N].

    Raises:
      ValueError: they are something else, or pixels lie outside [0, 1].
    """
    images, labels = _as_array("images", images), _as_array("labels", labels)
    shaped = images.ndim == 4 and images.size > 0 and jnp.issubdtype(images.dtype, jnp.floating)
    hint = "float [N, H, W, C] with pixels in [0, 1] and at least one image: divide bytes by 255"
    require(shaped, "images", describe(images), hint)
    images = images.astype(np.float32)
    outside = check_images(images)
    if outside:
        raise ValueError(outside[0].text)
    check_labels(labels, len(images))
    return images, labels


def _as_array(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # JAX takes no other order of bytes
    except (RuntimeError, ValueError, TypeError) as error:  # donated, ragged, on another kind of device
        raise ValueError(f"{name} cannot be read ({error}); expected an array.") from error


def check_key(key: jax.Array) -> None:
    """Refuses what is no single typed PRNG key."""
    typed = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    hint = "a single typed PRNG key, such as jax.random.key(0); jax.random.wrap_key_data makes one of uint32"
    require(typed and key.ndim == 0, "key", describe(key) if isinstance(key, jax.Array) else key, hint)


def check_state_path(state_path: str | Path | None) -> Path | None:
    """The file of the progress, whose folder is made; a `ValueError` for a folder."""
    if state_path is None:
        return None
    path = Path(state_path).expanduser()
    require(not path.is_dir(), "state_path", str(state_path), "a file, and this is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check_network(logits_fn: LogitsFn) -> None:
    """Refuses what cannot be traced: no function, or one that has been compiled already."""
    require(callable(logits_fn), "logits_fn", logits_fn, "a function of images that returns logits")
    compiled = isinstance(logits_fn, jax.stages.Compiled)
    require(not compiled, "logits_fn", logits_fn, "the function before lower(...).compile(), so that it has a gradient")


def check_devices(devices: Sequence[jax.Device] | None) -> list[jax.Device]:
    """The devices to run on, all for None; a `ValueError` for none, for one twice, or for anything else."""
    if devices is None:
        return jax.devices()
    is_sequence = isinstance(devices, Iterable) and not isinstance(devices, str)
    chosen = list(devices) if is_sequence else []
    right = chosen != [] and all(isinstance(device, jax.Device) for device in chosen)
    require(right and len(set(chosen)) == len(chosen), "devices", devices, "some of jax.devices(), each once, or None")
    return chosen


def check_gradients(no_gradient: str, parts: Sequence[Part], logits_fn: LogitsFn, batch: jax.ShapeDtypeStruct) -> None:
    """Refuses attacks that need a gradient of a network that has none.

    Args:
      no_gradient: why there is none; empty if there is one.
      parts: of the evaluation.
      logits_fn: the network; batch: of images that it takes.

    Raises:
      ValueError: names them.
    """
    need = [part.name for part in parts if no_gradient and not _can_be_traced(part.attack, logits_fn, batch)]
    if need:
        raise ValueError(
            f"The network has no gradient ({no_gradient}), which {', '.join(need)} need; expected one, such as "
            f"`jax.custom_vjp` gives it, or attacks that need none: "
            f'parts=(Part("square", Square(epsilon, norm)),) of rap_jax.auto_attack.versions.'
        )


def _can_be_traced(attack: StepwiseAttack, logits_fn: LogitsFn, batch: jax.ShapeDtypeStruct) -> bool:
    numbers = jnp.zeros(batch.shape[0], jnp.int32)
    keys = jax.random.split(jax.random.key(0), len(numbers))

    def attacked(images: jax.Array) -> Any:
        return attack.advance(logits_fn, attack.start(logits_fn, keys, images, numbers, numbers), 1)

    try:
        jax.eval_shape(attacked, batch)
    except Exception:  # as many kinds as there are functions without a gradient
        return False
    return True
