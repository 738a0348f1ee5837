"""A user's own images: a folder with one sub-folder per class.

Either PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*, of which a stratified fifth becomes the test split, by
a fixed seed. Labels follow the sorted names of the classes, examples the sorted names of the files.
"""

from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from rap_jax.config import require
from rap_jax.data.dataset import Split, TrainTest, hold_out, make_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")

_TEST_FRACTION = 0.2
_SPLIT_SEED = 2019  # Fixed: the same images are the test split in every run, whatever the run's seed.
_LAYOUT = "PATH/train/CLASS/* with PATH/test/CLASS/*, or PATH/CLASS/*, of 2 or more classes"


def folder_name(path: str) -> str:
    """Returns `folder_` and the last part of the path, with `_` for what has no place in a file name."""
    last = Path(path).expanduser().resolve().name
    return "folder_" + "".join(char if char.isalnum() or char in "-_." else "_" for char in last)


def load_image_folder(path: str, image_size: tuple[int, int] | None = None) -> TrainTest:
    """Reads the images of a folder.

    Files with an ending in `SUFFIXES` count, in any case; other and hidden files and folders inside a class do not.
    Of an animation the first frame is read. EXIF orientation is applied, transparency dropped. Without `train` and
    `test` folders 20% of the images, the same ones in every run, become the test split; a warning says so.

    Args:
      path: of the folder; `~` is expanded.
      image_size: height and width to which images are resized, bilinearly; None if they have one size already.

    Returns:
      Training and test data, uint8 [N, H, W, C]; C is 1 if all images of both are greyscale, otherwise 3.

    Raises:
      ValueError: the folder is not laid out like that, the classes of the two splits differ, a class has no image, an
        image cannot be decoded or has more than 8 bits per channel, or sizes differ. The message names what it is.
    """
    folder = Path(path).expanduser()
    require(bool(path) and folder.is_dir(), "dataset", f"folder:{path}", f"folder:PATH, laid out as {_LAYOUT}")
    parts = (folder / "train", folder / "test")
    is_split = all(part.is_dir() for part in parts)
    classes = [_find_classes(part) for part in (parts if is_split else (folder,))]
    names = tuple(classes[0])
    differing = sorted(set(names) ^ set(classes[-1]))
    require(not differing, f"classes in only one of {parts[0]} and {parts[1]}", differing, "the same classes in both")
    files = [file for part in classes for class_files in part.values() for file in class_files]
    images = _read_images(files, image_size)
    labels = np.array([names.index(file.parent.name) for file in files])
    if not is_split:
        return TrainTest(*_hold_out_test(folder, make_split(images, labels)), names)
    num_train = sum(map(len, classes[0].values()))
    train, test = make_split(images[:num_train], labels[:num_train]), make_split(images[num_train:], labels[num_train:])
    return TrainTest(train, test, names)


def _find_classes(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of each class, both in sorted order."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    require(len(folders) >= 2, f"classes in {folder}", [path.name for path in folders], f"sub-folders: {_LAYOUT}")
    classes = {path.name: sorted(filter(_is_image, path.iterdir())) for path in folders}
    empty = [name for name, files in classes.items() if not files]
    hint = f"an image in each sub-folder, ending in {' '.join(SUFFIXES)} ({_LAYOUT})"
    require(not empty, f"classes without an image in {folder}", empty, hint)
    return classes


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _read_images(files: list[Path], image_size: tuple[int, int] | None) -> np.ndarray:
    """Returns uint8 [N, H, W, 1 or 3]."""
    images = []
    for file in files:
        images.append(_read_image(file, image_size))
        _require_same_size(files[0], images[0], file, images[-1])
    if all(image.ndim == 2 for image in images):
        return np.stack(images)[..., None]
    return np.stack([image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images])


def _read_image(file: Path, image_size: tuple[int, int] | None) -> np.ndarray:
    """Returns uint8 [H, W] of a greyscale image, [H, W, 3] of any other."""
    try:
        with Image.open(file) as opened:
            image = to_bytes_per_channel(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError and more.
        raise ValueError(f"The image {file} cannot be read ({error}). Repair it or take it away.") from error
    if image_size is not None:
        image = image.resize((image_size[1], image_size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def to_bytes_per_channel(image: Image.Image) -> Image.Image:
    """The image in mode L, or RGB if it has colours; refuses what has more than 8 bits per channel."""
    require(not image.mode.startswith(("I", "F")), "its mode", image.mode, "8 bits per channel or fewer")
    if image.mode in ("1", "L"):
        return image.convert("L")
    # Pillow converts a palette with transparency without a warning only by way of RGBA.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _require_same_size(first: Path, first_image: np.ndarray, other: Path, image: np.ndarray) -> None:
    if image.shape[:2] != first_image.shape[:2]:
        sizes = " but ".join(f"{a.shape[0]}x{a.shape[1]} in {p}" for p, a in ((first, first_image), (other, image)))
        raise ValueError(f"Images differ in size: height x width is {sizes}. --image_size=H,W resizes them all")


def _hold_out_test(folder: Path, whole: Split) -> tuple[Split, Split]:
    train, test = hold_out(whole, _TEST_FRACTION, _SPLIT_SEED)
    message = "%s has no folders train and test: %d of its %d images, always the same ones, are the test split."
    logging.warning(message, folder, len(test.labels), len(whole.labels))
    return train, test
