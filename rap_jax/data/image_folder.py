"""A user's own images: a folder with one sub-folder per class.

Either PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*, of which a stratified fifth becomes the test split, by
a fixed seed. Labels follow the sorted names of the classes, examples the sorted names of the files.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from rap_jax.config import require
from rap_jax.data.dataset import TrainTest, hold_out, make_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")

_TEST_FRACTION = 0.2
_SPLIT_SEED = 2019  # Fixed: the same images are the test split in every run, whatever the run's seed.
_LAYOUT = "PATH/train/CLASS/* with PATH/test/CLASS/*, or PATH/CLASS/*, of 2 or more classes"
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")


def folder_name(path: str) -> str:
    """Returns `folder_` and the last part of the path, with `_` for what has no place in a file name."""
    last = Path(path).expanduser().resolve().name
    return "folder_" + "".join(char if char.isalnum() or char in "-_." else "_" for char in last)


def load_image_folder(path: str, image_size: tuple[int, int] | None = None) -> TrainTest:
    """Reads the images of a folder; `~` is expanded.

    Files with an ending in `SUFFIXES` count, in any case; hidden files and folders inside a class do not, and a warning
    says how many other files do not. Of a file of several images the first is read. Images are converted as
    `to_bytes_per_channel` says. Without `train` and `test` folders 20% of the images, the same ones in every run,
    become the test split; a warning says so.

    Args:
      image_size: height and width to which images are resized, bilinearly; None if they have one size already.

    Returns:
      Training and test data, uint8 [N, H, W, C]; C is 1 if all images of both are greyscale, otherwise 3.

    Raises:
      ValueError: the folder is not laid out like that, the classes of the two splits differ, two of them are one
        folder, a class has no image, a link leads nowhere, an image cannot be read or converted, or sizes differ. The
        message names what it is.
    """
    folder = Path(path).expanduser()
    moved = f". There is no folder {folder.absolute()}: if it was moved, --dataset=folder:PATH says where it is now"
    expected = f"folder:PATH, laid out as {_LAYOUT}{'' if folder.is_dir() else moved}"
    require(bool(path) and folder.is_dir(), "dataset", f"folder:{path}", expected)
    parts = _parts(folder)
    classes = [_find_classes(part) for part in parts]
    _require_distinct([files[0].parent for part in classes for files in part.values()])
    names = tuple(classes[0])
    differing = sorted(set(names) ^ set(classes[-1]))
    require(not differing, f"classes in only one of {parts[0]} and {parts[-1]}", differing, "the same classes in both")
    images = _read_images([file for part in classes for files in part.values() for file in files], image_size)
    labels = np.concatenate([np.repeat(np.arange(len(names)), _sizes(part)) for part in classes])
    if len(parts) == 1:
        train, test = hold_out(make_split(images, labels), _TEST_FRACTION, _SPLIT_SEED)
        message = "%s has no folders train and test: %d of its %d images, always the same ones, are the test split."
        logging.warning(message, folder, len(test.labels), len(labels))
        return TrainTest(train, test, names)
    num_train = sum(_sizes(classes[0]))
    train, test = make_split(images[:num_train], labels[:num_train]), make_split(images[num_train:], labels[num_train:])
    return TrainTest(train, test, names)


def to_bytes_per_channel(opened: Image.Image) -> Image.Image:
    """The image upright, in mode L if it is grey, otherwise in mode RGB.

    What is transparent lies on white. Of 16 bits the upper 8 count, as Pillow has it for colours: 65535 becomes 255.

    Raises:
      ValueError: its numbers have no known range (32 bits, floating point), or Pillow cannot convert it.
    """
    # Pillow compares it with pixels that it has scaled meanwhile.
    plain_png = opened.mode in ("L", "RGB", "I;16") and opened.format == "PNG"
    scaled = plain_png and isinstance(opened, ImageFile.ImageFile) and opened.tile[0].args != opened.mode
    color = opened.info.get("transparency")
    require(color is None or not scaled, "its transparent color", color, "8 bits per channel where a color is")
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PPM"):
        return Image.fromarray((np.asarray(image, np.int64) >> _lower_bits(opened)).astype(np.uint8))
    hint = "8 bits per channel or fewer, or 16 bits; convert it, since its range is not known"
    require(not image.mode.startswith(("I", "F")), "its mode", image.mode, hint)
    wanted = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(wanted)


def _lower_bits(opened: Image.Image) -> int:
    """How many bits a number of more than 8 has below the upper 8; a TIFF says how many it has, and what they mean."""
    if not isinstance(opened, TiffImagePlugin.TiffImageFile):
        return 8
    meaning = {"PhotometricInterpretation": (262, 1), "SampleFormat": (339, 1)}
    for name, (tag, expected) in meaning.items():
        value = np.ravel(opened.tag_v2.get(tag, expected)).tolist()
        require(value == [expected], f"its {name}", value, f"[{expected}], whole numbers where 0 is black; convert it")
    return int(np.ravel(opened.tag_v2[258])[0]) - 8


def require_outside(path: str, out_dir: Path) -> None:
    """Refuses an output folder among the class folders of PATH, where it would be one of them at the next start.

    Raises:
      ValueError: so it is.
    """
    folder = Path(path).expanduser().resolve()
    inside = any(out_dir.expanduser().resolve().is_relative_to(part) for part in _parts(folder))
    require(not inside, "out_dir", str(out_dir), f"a folder outside of the images in {folder}: give --out_dir")


def _parts(folder: Path) -> tuple[Path, ...]:
    """The folders of class folders: `train` and `test`, or the folder itself."""
    parts = (folder / "train", folder / "test")
    return parts if all(part.is_dir() for part in parts) else (folder,)


def _find_classes(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of each class, both in sorted order."""
    folders = [path for path in _entries(folder) if path.is_dir()]
    require(len(folders) >= 2, f"classes in {folder}", [path.name for path in folders], f"sub-folders: {_LAYOUT}")
    classes = {_name(path): list(_find_images(path)) for path in folders}
    require(len(classes) == len(folders), f"classes in {folder}", [path.name for path in folders], "other names each")
    empty = [name for name, files in classes.items() if not files]
    hint = f"an image in each sub-folder, ending in {' '.join(SUFFIXES)} ({_LAYOUT})"
    require(not empty, f"classes without an image in {folder}", empty, hint)
    return classes


def _find_images(folder: Path) -> Iterator[Path]:
    """The image files of a class; a warning tells of other files."""
    files = [path for path in _entries(folder) if not path.is_dir() and path.name.lower() not in _OF_SYSTEMS]
    others = [path for path in files if path.suffix.lower() not in SUFFIXES]
    if others:
        message = "%d files in %s do not count, such as %s: they do not end in %s."
        logging.warning(message, len(others), folder, others[0].name, " ".join(SUFFIXES))
    return (path for path in files if path.suffix.lower() in SUFFIXES)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, sorted by name, whatever the file system says first."""
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be read ({error.strerror}). Make it readable.") from error
    for path in found:
        if not (path.is_dir() or path.is_file()):
            what = "a link that leads nowhere" if path.is_symlink() else "not readable, or a device"
            raise ValueError(f"{path} is {what}; expected a file or a folder. Repair it or take it away.")
    return sorted(found, key=_name)


def _name(path: Path) -> str:
    """The name in the form that it has on every system: some take accents apart."""
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"The name of {str(path)!r} is no UTF-8; rename it.") from error
    return unicodedata.normalize("NFC", path.name)


def _require_distinct(folders: list[Path]) -> None:
    """Refuses links by which the same images would have two labels, or be trained and tested on."""
    known = dict[Path, Path]()
    for folder in folders:
        other = known.setdefault(folder.resolve(), folder)
        require(other is folder, f"the class folder {folder}", f"the same as {other}", "images of its own. Unlink it")


def _sizes(classes: dict[str, list[Path]]) -> list[int]:
    return [len(files) for files in classes.values()]


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
            image = to_bytes_per_channel(opened)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError and more.
        raise ValueError(f"The image {file} cannot be read ({error}). Repair it or take it away.") from error
    if image_size is not None:
        image = image.resize((image_size[1], image_size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _require_same_size(first: Path, first_image: np.ndarray, other: Path, image: np.ndarray) -> None:
    if image.shape[:2] != first_image.shape[:2]:
        sizes = " but ".join(f"{a.shape[0]}x{a.shape[1]} in {p}" for p, a in ((first, first_image), (other, image)))
        raise ValueError(f"Images differ in size: height x width is {sizes}. --image_size=H,W resizes them all")
