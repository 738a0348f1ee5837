"""What an exported network says of image files: `python -m launch.predict --model=network.onnx IMAGE...`."""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from launch import flags as training
from launch.command import in_words, start
from launch.flagfiles import expand_flagfiles
from launch.help import format_help
from launch.settings import define_flag
from rap_jax.config import require

if TYPE_CHECKING:
    from rap_jax.export.open_file import OpenFile, ReadImage

# Its own, so that the commands may live in one process.
FLAGS = flags.FlagValues()
GROUPS: dict[str, list[str]] = {}

with training.flag_group("Prediction", GROUPS, FLAGS):
    define_flag("path", "model", None, "A file that launch.export has written: .jax, .onnx or .npz.", FLAGS)
    flags.DEFINE_integer("top", 3, "Classes that are shown of each image.", flag_values=FLAGS)


def main(arguments: list[str]) -> None:
    """Prints the top classes of each image with their probabilities."""
    with in_words("prediction", stopped="Stopped."):
        refused = _predict(arguments)
    if refused:
        sys.exit("\n".join(f"error: {reason}" for reason in refused))


def _predict(arguments: list[str]) -> list[str]:
    """Prints what the network says, and returns why some of the images cannot be read."""
    from rap_jax.export.files import open_file

    images = FLAGS(expand_flagfiles(arguments))[1:]
    require(bool(FLAGS.model), "model", FLAGS.model, "a file that launch.export has written")
    require(FLAGS.top >= 1, "top", FLAGS.top, "1 or more classes")
    require(bool(images), "images", images, "one or more image files after the flags")
    found, refused = readable([Path(name).expanduser() for name in images], network := open_file(FLAGS.model))
    try:
        for line in predictions(network, found, FLAGS.top):
            print(line)
    except RuntimeError as error:
        raise ValueError(f"{FLAGS.model} cannot be run ({error}); export it again.") from error
    return refused


def readable(paths: Sequence[Path], network: "OpenFile") -> tuple[dict[Path, "ReadImage"], list[str]]:
    """The images that can be read, and why the others cannot."""
    from rap_jax.export.open_file import read_image

    found, refused = dict[Path, "ReadImage"](), list[str]()
    for path in paths:
        try:
            found[path] = read_image(path, network.input_shape)
        except ValueError as error:
            refused.append(str(error))
    return found, refused


def predictions(network: "OpenFile", images: Mapping[Path, "ReadImage"], top: int) -> Iterator[str]:
    """A line for each image: `digit.png: 7 99.1%, 9 0.6%, 3 0.2%`, and what was done to the image.

    Raises:
      RuntimeError: the network cannot be run.
    """
    if not images:
        return
    try:
        logits = network.logits_fn(np.stack([image.pixels for image in images.values()])).astype(np.float64)
    except Exception as error:  # a damaged program may fail in any way
        raise RuntimeError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    unsound = [str(path) for path, row in zip(images, logits, strict=True) if not np.isfinite(row).all()]
    if unsound:
        raise RuntimeError(f"its logits of {', '.join(unsound[:3])} are NaN or infinite")
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    names = network.metadata.get("output", {}).get("classes") or [str(label) for label in range(network.num_classes)]
    for (path, image), shares in zip(images.items(), probabilities, strict=True):
        best = [f"{names[label]} {shares[label]:.1%}" for label in np.argsort(-shares, kind="stable")[:top]]
        yield f"{path}: {', '.join(best)}{f'  ({image.changes})' if image.changes else ''}"


_INTRODUCTION = [
    "Shows what an exported network says of image files:",
    "    python -m launch.predict --model=FILE IMAGE...",
    "Images are read by Pillow and converted to the network's size and channels, which is said where it is done.",
]
help_text = functools.partial(format_help, _INTRODUCTION, GROUPS, FLAGS)


run = functools.partial(start, main, help_text)  # entry point of the console script


if __name__ == "__main__":
    run()
