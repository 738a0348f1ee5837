"""What a caller of AutoAttack may get wrong: refused at once, by what it is and what was expected."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from rap_jax._runtime.arrays import in_words
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import check_labels
from rap_jax.attacks.stepwise import StepwiseAttack
from rap_jax.config.checks import require
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.evaluation.diagnostics import check_images

_MOST_NAMED = 5


def check_arrays(images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 [N, H, W, C] in [0, 1] and labels as whole numbers [N].

    Raises:
      ValueError: they are something else, or pixels lie outside [0, 1].
    """
    images, labels = _as_array("images", images), _as_array("labels", labels)
    shaped = images.ndim == 4 and images.size > 0 and jnp.issubdtype(images.dtype, jnp.floating)
    hint = "float [N, H, W, C] with pixels in [0, 1] and at least one image: divide bytes by 255"
    require(shaped, "images", in_words(images), hint)
    images = images.astype(np.float32)
    outside = check_images(images)
    if outside:
        raise ValueError(outside[0].text)
    check_labels(labels, len(images))
    return images, labels


def check_outside_jit(**values: Any) -> None:
    """Refuses to run while JAX traces: the values are no numbers then."""
    traced = {name: value for name, value in values.items() if isinstance(value, jax.core.Tracer)}
    if traced or isinstance(jnp.zeros(()), jax.core.Tracer):
        found = "; ".join(f"{name}: traced {in_words(value)}" for name, value in traced.items())
        raise ValueError(
            f"auto_attack is called inside jax.jit, jax.vmap or jax.grad ({found or 'arrays are traced'}); expected a "
            f"call outside of them: it compiles its own programs."
        )


def refuse_logits(logits_fn: LogitsFn, images: np.ndarray, bad: np.ndarray, *draw: jax.Array) -> None:
    """Raises a `ValueError` that says which images have no finite logits, bool [N], and why; silent if none is bad."""
    numbers = np.flatnonzero(bad)
    if not len(numbers):
        return
    logits = np.asarray(jax.jit(logits_fn)(images[numbers[:_MOST_NAMED]], *draw))
    if np.isnan(logits).any():
        what, hint = "NaN", "Look for NaN among the weights, and for 0 / 0, sqrt or log in the network"
    elif np.isposinf(logits).any():
        what, hint = "infinite", "Numbers overflow: compute in float32, and look for infinite weights"
    else:
        what, hint = "-infinity", "Leave the columns of masked classes out, or give them a large negative logit, -1e4"
    named = ", ".join(map(str, numbers[:_MOST_NAMED])) + (", ..." if len(numbers) > _MOST_NAMED else "")
    raise ValueError(
        f"{len(numbers)} clean images get logits that are NaN or infinite ({what}, at images {named}); expected finite "
        f"ones. {hint}."
    )


@contextmanager
def for_this_platform() -> Iterator[None]:
    """Says what to do about a network that was exported for other platforms, which shows when it is compiled."""
    try:
        yield
    except ValueError as error:
        if "exported for platforms" not in str(error):
            raise
        hint = 'export.export(jax.jit(network), platforms=["cpu", "cuda", "tpu"])'
        raise ValueError(f"logits_fn cannot run here ({error}); expected one for this platform: {hint}.") from error


def _as_array(name: str, values: Any) -> np.ndarray:
    masked = isinstance(values, np.ma.MaskedArray)
    require(not masked, name, "a masked array", f"an array without a mask: leave the masked {name} out")
    try:
        array = np.asarray(values)
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # JAX takes no other order of bytes
    except (RuntimeError, ValueError, TypeError) as error:  # donated, ragged, on another kind of device
        raise ValueError(f"{name} cannot be read ({error}); expected an array.") from error


def check_key(key: jax.Array) -> None:
    """Refuses what is no single typed PRNG key."""
    typed = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    hint = "a single typed PRNG key, such as jax.random.key(0); jax.random.wrap_key_data makes one of uint32"
    require(typed and key.ndim == 0, "key", in_words(key) if isinstance(key, jax.Array) else key, hint)


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
    exported = isinstance(logits_fn, export.Exported)
    require(not exported, "logits_fn", "an Exported", "its function: pass exported.call")
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


def check_gradients(
    no_gradient: str, components: Sequence[Component], logits_fn: LogitsFn, batch: jax.ShapeDtypeStruct
) -> None:
    """Refuses attacks that need a gradient of a network that has none, for the reason `no_gradient`; empty if it has.

    `batch` is one of images that the network takes.
    """
    if not no_gradient:
        return
    need = [component.name for component in components if not _can_be_traced(component.attack, logits_fn, batch)]
    if need:
        way = "`exported.serialize(vjp_order=1)` keeps" if "No VJP" in no_gradient else "`jax.custom_vjp` gives"
        raise ValueError(
            f"The network has no gradient ({no_gradient}), which {', '.join(need)} need; expected one, such as "
            f"{way} it, or attacks that need none: "
            f'components=(Component("square", Square(threat_model)),) of rap_jax.evaluation.auto_attack.versions.'
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
