"""A network from a file of any format, and image files as it takes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rap_jax.config import require
from rap_jax.data.image_folder import to_bytes_per_channel


class ReadImage(NamedTuple):
    """An image of the size and channels of the network."""

    pixels: np.ndarray  # float32 [H, W, C] in [0, 1]
    changes: str  # conversions, in words; empty if there were none


def read_image(path: Path, shape: tuple[int, int, int]) -> ReadImage:
    """Reads an image with Pillow, upright, and converts it to the shape [H, W, 1 or 3].

    Raises:
      ValueError: it cannot be read, has numbers without a known range, or no image has so many channels.
    """
    height, width, channels = shape
    require(channels in (1, 3), "channels of the network", channels, "1 (grey) or 3 (colour) to show it image files")
    try:
        with Image.open(path) as opened:
            has_alpha = opened.has_transparency_data
            mode, image = opened.mode, to_bytes_per_channel(opened)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError and more
        reason = str(error).rstrip(".")
        raise ValueError(f"The image {path} cannot be read ({reason}); expected a file that Pillow opens.") from error
    wanted, changes = "L" if channels == 1 else "RGB", ["transparency laid on white"] if has_alpha else []
    if image.mode != wanted:
        changes.append(f"converted from {mode} to {'grey' if channels == 1 else 'colour'}")
        image = image.convert(wanted)
    if image.size != (width, height):
        changes.append(f"resized from {image.height}x{image.width} to {height}x{width}")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).reshape(shape) / np.float32(255)
    return ReadImage(pixels, ", ".join(changes))


class OpenFile(NamedTuple):
    """A network from a file."""

    logits_fn: Callable[[np.ndarray], np.ndarray]  # images float32 [N, H, W, C] in [0, 1] -> logits [N, K]
    input_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int  # K
    metadata: dict[str, Any]  # see `exported_network.describe`; {} in a file from elsewhere
