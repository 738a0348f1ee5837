"""What a caller of AutoAttack may get wrong: refused at once, by what it is and what was expected."""

from pathlib import Path

import jax
import numpy as np

from rap_jax.attacks.stepwise import LogitsFn
from rap_jax.config.checks import require
from rap_jax.diagnostics import check_images


def check_arrays(images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 [N, H, W, C] in [0, 1] and labels as int32 [N].

    Raises:
      ValueError: they are something else, or pixels lie outside [0, 1].
    """
    images, labels = np.asarray(images), np.asarray(labels)
    shaped = images.ndim == 4 and len(images) > 0 and np.issubdtype(images.dtype, np.floating)
    found = f"{images.dtype}{list(images.shape)}"
    require(shaped, "images", found, "float [N, H, W, C] with pixels in [0, 1] and at least one image")
    outside = check_images(images)
    if outside:
        raise ValueError(outside[0].text)
    whole = labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer)
    require(whole, "labels", f"{labels.dtype}{list(labels.shape)}", f"whole numbers, [{len(images)}]")
    return images.astype(np.float32), labels.astype(np.int32)


def check_key(key: jax.Array) -> None:
    """Refuses what is no single typed PRNG key."""
    typed = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    require(typed and key.ndim == 0, "key", key, "a typed PRNG key, such as jax.random.key(0)")


def check_state_path(state_path: str | Path | None) -> Path | None:
    """The file of the progress, whose folder is made; a `ValueError` for a folder."""
    if state_path is None:
        return None
    path = Path(state_path).expanduser()
    require(not path.is_dir(), "state_path", str(state_path), "a file, and this is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check_logits(logits_fn: LogitsFn, batch: jax.ShapeDtypeStruct, labels: np.ndarray, *draw: jax.Array) -> int:
    """The number of classes.

    Args:
      logits_fn: images, and `draw` -> logits.
      batch: of images [B, H, W, C].
      labels: int32 [N].

    Raises:
      ValueError: what comes out are no logits [B, K], or a label is none of 0 to K - 1.
    """
    shape = jax.eval_shape(logits_fn, batch, *draw).shape  # `in_float32` has refused what is no array
    require(len(shape) == 2 and shape[0] == batch.shape[0], "shape of the logits", shape, f"[{batch.shape[0]}, K]")
    within = 0 <= labels.min() and labels.max() < shape[1]
    require(within, "labels", f"{labels.min()} to {labels.max()}", f"0 to {shape[1] - 1}: there are {shape[1]} logits")
    return shape[1]
