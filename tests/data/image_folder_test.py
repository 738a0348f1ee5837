"""Tests of a user's own images."""

import errno
import logging
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from rap_jax.config import DataConfig
from rap_jax.data import hold_out, load_dataset
from rap_jax.data.dataset import TrainTest, make_split
from rap_jax.data.image_folder import folder_name, load_image_folder, require_outside


def pixels(index: int, height: int = 4, width: int = 6, *, grey: bool = False) -> np.ndarray:
    """An image of its own for each index."""
    shape = (height, width) if grey else (height, width, 3)
    return np.random.default_rng(index).integers(0, 256, shape, np.uint8)


def write(folder: Path, images: Mapping[str, np.ndarray]) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return folder


def write_numbered(folder: Path, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Writes so many PNG images per class; returns their indices."""
    numbered: dict[str, list[int]] = {}
    for name, size in sizes.items():
        numbered[name] = [sum(map(len, numbered.values())) + number for number in range(size)]
        write(folder, {f"{name}/{index:03}.png": pixels(index) for index in numbered[name]})
    return numbered


def load(folder: Path, image_size: tuple[int, int] | None = None) -> TrainTest:
    return load_image_folder(str(folder), image_size)


def test_two_folders_are_the_two_splits_in_sorted_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train", {"b/2.png": pixels(0), "b/1.png": pixels(1), "a/9.bmp": pixels(2)})
    write(tmp_path / "test", {"b/0.PNG": pixels(3), "a/1.ppm": pixels(4), "a/0.tif": pixels(5)})
    train, test, class_names = load(tmp_path)
    np.testing.assert_array_equal(train.images, [pixels(2), pixels(1), pixels(0)])
    np.testing.assert_array_equal(test.images, [pixels(5), pixels(4), pixels(3)])
    assert (train.labels.tolist(), test.labels.tolist(), class_names) == ([0, 1, 1], [0, 0, 1], ("a", "b"))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert not caplog.records


def test_one_folder_gives_a_fifth_of_each_class_to_the_test_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbered = write_numbered(tmp_path, {"x": 10, "a": 20})
    train, test, class_names = load(tmp_path)
    assert class_names == ("a", "x")
    assert np.bincount(train.labels).tolist() == [16, 8]
    assert np.bincount(test.labels).tolist() == [4, 2]
    order = numbered["a"] + numbered["x"]
    whole = make_split(np.stack([pixels(index) for index in order]), np.repeat([0, 1], [20, 10]))
    for actual, expected in zip((train, test), hold_out(whole, 0.2, 2019), strict=True):
        np.testing.assert_array_equal(actual.images, expected.images)
        np.testing.assert_array_equal(actual.labels, expected.labels)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{tmp_path} has no folders train and test: 6 of its 30 images" in record.getMessage()


def test_only_images_count(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": pixels(0), "a/2.png": pixels(1), "b/1.png": pixels(2), ".c/1.png": pixels(3)})
    write(tmp_path, {"top.png": pixels(4), "a/.hidden.png": pixels(5), "b/below/1.png": pixels(6)})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "b" / "folder.png").mkdir()
    train, test, class_names = load(tmp_path)
    assert class_names == ("a", "b")
    assert len(train.labels) + len(test.labels) == 3


def test_grey_images_have_one_channel_unless_one_image_anywhere_has_colour(tmp_path: Path) -> None:
    grey = [pixels(index, grey=True) for index in range(4)]
    write(tmp_path / "train", {"a/1.png": grey[0], "b/1.png": grey[1]})
    write(tmp_path / "test", {"a/1.png": grey[2], "b/1.png": grey[3]})
    train, test, _ = load(tmp_path)
    np.testing.assert_array_equal(train.images[..., 0], grey[:2])
    assert train.images.shape == test.images.shape == (2, 4, 6, 1)
    write(tmp_path / "test", {"a/1.png": pixels(7)})
    train, test, _ = load(tmp_path)
    np.testing.assert_array_equal(train.images, np.repeat(np.stack(grey[:2])[..., None], 3, axis=-1))
    np.testing.assert_array_equal(test.images[0], pixels(7))


def read_one(folder: Path, write_image: Callable[[Path], None], name: str = "1.png") -> np.ndarray:
    """One image beside black ones of 4x6 pixels: as it is read, [4, 6, 1 or 3]."""
    black = np.zeros((4, 6), np.uint8)
    write(folder / "test", {"a/1.png": black, "b/1.png": black})
    write(folder / "train", {"b/1.png": black})
    (folder / "train" / "a").mkdir()
    write_image(folder / "train" / "a" / name)
    return load(folder).train.images[0]


def on_white(alpha: np.ndarray, colors: np.ndarray) -> np.ndarray:
    shown = 255 + (colors.astype(float) - 255) * alpha[..., None] / 255
    return shown.round().astype(int)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_opaque_images_are_as_pillow_shows_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pixels(0)).convert("RGB")
    image = image.quantize(24) if mode == "P" else image.convert(mode) if mode != "LAB" else in_lab(image)
    found = read_one(tmp_path, lambda path: image.save(path), "1.png" if mode in ("1", "L", "P", "RGB") else "1.tif")
    grey = mode in ("1", "L")
    expected = np.asarray(image.convert("L" if grey else "RGB")).reshape(4, 6, 1 if grey else 3)
    np.testing.assert_array_equal(found, expected)


def in_lab(image: Image.Image) -> Image.Image:
    return ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )


@pytest.mark.parametrize(
    ("mode", "suffix"), [(mode, ".png") for mode in ("RGBA", "LA", "P", "RGB", "L", "1")] + [("RGBA", ".webp")]
)
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str, suffix: str) -> None:
    """Whether by an alpha channel, in a palette, or by one value that stands for it."""
    alpha = pixels(1, grey=True)
    alpha[0] = (0, 255, 0, 255, 0, 255)
    colors = pixels(0) if mode in ("RGBA", "P", "RGB") else np.repeat(pixels(0, grey=True)[..., None], 3, -1)
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(np.concatenate([colors, alpha[..., None]], -1)).convert(mode)
    elif mode == "P":
        image = Image.fromarray(colors).quantize(24)
        alpha = np.asarray(image) * np.uint8(10)
        options["transparency"] = bytes(range(0, 240, 10))
    else:
        colors = np.where(colors > 100, 255, 0).astype(np.uint8) if mode == "1" else colors
        image = Image.fromarray(colors).convert(mode)
        options["transparency"] = {"RGB": tuple(map(int, colors[0, 0])), "L": int(colors[0, 0, 0]), "1": 0}[mode]
        key = 0 if mode == "1" else colors[0, 0]
        alpha = np.where((colors == key).all(-1), 0, 255).astype(np.uint8)
    found = read_one(tmp_path, lambda path: image.save(path, **options), f"1{suffix}")
    expected = on_white(alpha, colors)
    assert (found.shape[-1] == 1) == (mode in ("LA", "L", "1"))
    np.testing.assert_allclose(np.broadcast_to(found, expected.shape).astype(int), expected, atol=1)


@given(arrays(np.uint16, (4, 6)), st.sampled_from([".png", ".tif", ".pgm"]))
@hypothesis.settings(max_examples=20, deadline=None)
def test_of_sixteen_bits_the_upper_eight_count(values: np.ndarray, suffix: str) -> None:
    """As Pillow has it for colours; whether white was 255 times 256 or 65535, white stays white."""

    def save(path: Path) -> None:
        if suffix == ".pgm":
            path.write_bytes(b"P5 6 4 65535\n" + values.astype(">u2").tobytes())
        else:
            Image.fromarray(values).save(path)

    with tempfile.TemporaryDirectory() as folder:
        found = read_one(Path(folder), save, f"1{suffix}")
    np.testing.assert_array_equal(found[..., 0], values // 256)


def png(values: bytes, side: int, bits: int, transparent: int | None = None) -> bytes:
    """A square grey PNG, which Pillow itself would not write."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    found = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0))
    found += b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return found + chunk(b"IDAT", zlib.compress(values)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [2, 4, 16])
def test_a_transparent_grey_of_other_than_eight_bits_is_refused_by_name(tmp_path: Path, bits: int) -> None:
    """Pillow compares it with pixels that it has scaled, and shows it."""
    with pytest.raises(ValueError, match=r"1\.png cannot be read .*its transparent color"):
        read_one(tmp_path, lambda path: path.write_bytes(png(b"\0\1\2\3\0\1\2\3\4\5", 2, bits, 1)))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_range_are_refused_by_name(tmp_path: Path, dtype: type) -> None:
    image = Image.fromarray(pixels(0, grey=True).astype(dtype))
    with pytest.raises(ValueError, match=r"train/a/1\.tif cannot be read .*'[IF]'; expected 8 bits"):
        read_one(tmp_path, lambda path: image.save(path), "1.tif")


def test_progressive_and_animated_files_and_endings_in_capitals(tmp_path: Path) -> None:
    smooth = np.full((4, 6, 3), 90, np.uint8)
    jpeg = read_one(tmp_path / "jpeg", lambda path: Image.fromarray(smooth).save(path, progressive=True), "1.JPG")
    np.testing.assert_allclose(jpeg, smooth, atol=3)
    frames = [Image.fromarray(pixels(index, grey=True)) for index in range(3)]
    for suffix in (".gif", ".tif", ".png"):
        save = lambda path: frames[0].save(path, save_all=True, append_images=frames[1:])
        found = read_one(tmp_path / suffix, save, f"1{suffix}")
        np.testing.assert_array_equal(np.broadcast_to(found, (4, 6, 3)), np.stack([pixels(0, grey=True)] * 3, -1))


def dangling(folder: Path) -> str:
    (folder / "a" / "2.png").symlink_to(folder / "gone.png")
    return f"{folder / 'a' / '2.png'} is a link that leads nowhere"


def dangling_class(folder: Path) -> str:
    (folder / "c").symlink_to(folder / "gone")
    return f"{folder / 'c'} is a link that leads nowhere"


def loop(folder: Path) -> str:
    (folder / "a" / "2.png").symlink_to(folder / "a" / "2.png")
    return f"{folder / 'a' / '2.png'} is a link that leads nowhere"


def one_folder_twice(folder: Path) -> str:
    (folder / "c").symlink_to(folder / "a")
    return f"class folder {folder / 'c'} is 'the same as {folder / 'a'}'"


def no_utf8(folder: Path) -> str:
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    return "caf\\udce9' is no UTF-8; rename it"


def one_name_twice(folder: Path) -> str:
    for name in ("caf\u00e9", "cafe\u0301"):
        write(folder, {f"{name}/1.png": pixels(0)})
    return "expected other names each"


def device(folder: Path) -> str:
    os.mkfifo(folder / "a" / "2.png")
    return f"{folder / 'a' / '2.png'} is not readable, or a device"


def bomb(folder: Path) -> str:
    (folder / "a" / "2.png").write_bytes(png(b"", 200_000, 8))
    return f"{folder / 'a' / '2.png'} cannot be read (Image size (40000000000 pixels) exceeds"


@pytest.mark.parametrize(
    "spoil", [dangling, dangling_class, loop, one_folder_twice, no_utf8, one_name_twice, device, bomb]
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    write(tmp_path, {f"{name}/1.png": pixels(0) for name in "ab"})
    message = spoil(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path)


def test_links_that_lead_somewhere_count(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"x/1.png": pixels(0), "2.png": pixels(1)})
    write(tmp_path / "own", {"b/1.png": pixels(2)})
    (tmp_path / "own" / "a").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "own" / "b" / "0.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    train, test, names = load(tmp_path / "own")
    assert names == ("a", "b") and len(train.labels) + len(test.labels) == 3


def test_the_test_split_cannot_be_the_training_split(tmp_path: Path) -> None:
    write(tmp_path / "train", {f"{name}/1.png": pixels(0) for name in "ab"})
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(ValueError, match=r"class folder .*test/a is 'the same as .*train/a'"):
        load(tmp_path)


def test_names_with_spaces_and_accents_have_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems take accents apart, and folders are listed in any order."""
    write(tmp_path / "train", {"caf\u00e9/1.png": pixels(0), "cafz/1.png": pixels(1), "a b/1.png": pixels(2)})
    write(tmp_path / "test", {"cafe\u0301/1.png": pixels(0), "cafz/1.png": pixels(1), "a b/1.png": pixels(2)})
    listed = Path.iterdir
    found = []
    for order in (sorted, lambda paths: sorted(paths, reverse=True)):
        monkeypatch.setattr(Path, "iterdir", lambda path, order=order: iter(order(listed(path))))
        found.append(load(tmp_path))
    for train, test, names in found:
        assert names == ("a b", "cafz", "caf\u00e9")
        np.testing.assert_array_equal(train.images, test.images)
        np.testing.assert_array_equal(train.images, found[0].train.images)


def test_files_that_do_not_count_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {f"{part}/{name}/1.png": pixels(0) for part in ("train", "test") for name in "ab"})
    for name in ("Thumbs.db", ".DS_Store", "._1.png", "desktop.ini"):
        (tmp_path / "train" / "a" / name).write_bytes(b"of a system")
    load(tmp_path)
    assert not caplog.records
    for name in ("2.avif", "1.jfif"):
        (tmp_path / "train" / "a" / name).write_bytes(b"lost")
    load(tmp_path)
    assert f"2 files in {tmp_path / 'train' / 'a'} do not count, such as 1.jfif" in caplog.text


def test_a_folder_that_nobody_may_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {f"{name}/1.png": pixels(0) for name in "ab"})
    listed = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ValueError, match=f"The folder {tmp_path / 'b'} cannot be read .Permission denied"):
        load(tmp_path)


def test_every_class_has_something_to_learn_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_numbered(tmp_path / "one", {"a": 20, "b": 1})
    data = load_dataset(DataConfig(dataset=f"folder:{tmp_path / 'one'}"), seed=0)
    assert set(data.train.labels) == {0, 1}
    assert "The test split has no image of ['b'], so its numbers do not tell of them." in caplog.text
    write_numbered(tmp_path / "two" / "train", {"a": 1, "b": 1})
    write_numbered(tmp_path / "two" / "test", {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"classes without an image to learn from is \['[ab]'\]"):
        load_dataset(DataConfig(dataset=f"folder:{tmp_path / 'two'}", validation_fraction=0.5), seed=0)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    write(tmp_path, {f"{name}/1.png": pixels(0, 6, 4) for name in "ab"})
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown a quarter turned clockwise
    for name in "ab":
        Image.fromarray(pixels(1, 4, 6)).save(tmp_path / name / "2.png", exif=exif)
    train, test, _ = load(tmp_path)
    found = [image for split in (train, test) for image in split.images]
    assert sum(np.array_equal(image, np.rot90(pixels(1, 4, 6), k=-1)) for image in found) == 2


def test_different_sizes_are_refused_by_name_and_resized_on_demand(tmp_path: Path) -> None:
    write(
        tmp_path, {"a/1.png": pixels(0), "a/2.png": pixels(1), "b/1.png": pixels(2, 6, 4), "b/2.png": pixels(3, 5, 5)}
    )
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    sizes = f"4x6 in {tmp_path / 'a' / '1.png'} but 6x4 in {tmp_path / 'b' / '1.png'}"
    assert sizes in str(error.value) and "--image_size=H,W" in str(error.value)
    train, test, _ = load(tmp_path, (3, 8))
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 8, 3)


def test_resizing_is_bilinear(tmp_path: Path) -> None:
    ramp = np.tile(np.array([0, 80, 160, 240], np.uint8), (2, 1))
    write(tmp_path / "train", {"a/1.png": ramp, "b/1.png": ramp})
    write(tmp_path / "test", {"a/1.png": ramp, "b/1.png": ramp})
    twice = load(tmp_path, (2, 8)).train.images[0, :, :, 0]
    np.testing.assert_array_equal(twice, np.tile([0, 20, 60, 100, 140, 180, 220, 240], (2, 1)))
    np.testing.assert_array_equal(load(tmp_path, (2, 4)).test.images[0, :, :, 0], ramp)


@pytest.mark.parametrize("data", [b"", b"no image", "cut"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, data: bytes | str) -> None:
    write(tmp_path, {"a/1.png": pixels(0, 64, 64), "b/1.png": pixels(1, 64, 64)})
    broken = tmp_path / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:5000] if isinstance(data, str) else data)
    with pytest.raises(ValueError, match=f"image {broken} cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "folder:PATH"),
        ({"a/1.png": 0}, r"classes in .* is \['a'\]; expected .*PATH/CLASS"),
        ({"train/a/1.png": 0, "train/b/1.png": 0}, r"is \['train'\]; expected .*PATH/test/CLASS"),
        ({"train/a/1.png": 0, "train/b/1.png": 0, "val/a/1.png": 0}, r"without an image in .* is \['train', 'val'\]"),
        ({"train/a/1.png": 0, "train/b/1.png": 0, "test/a/1.png": 0, "test/c/1.png": 0}, r"is \['b', 'c'\]; expected"),
        ({"train/a/1.png": 0, "train/b/1.png": 0, "test/a/1.png": 0, "test/b/x/1.png": 0}, r"in .*test is \['b'\]"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, images: dict[str, int], message: str) -> None:
    write(tmp_path / "own", {name: pixels(index) for name, index in images.items()})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "own")


def test_the_data_set_bears_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "my pets", {"cat": 25, "dog": 25})
    config = DataConfig(dataset=f"folder:{tmp_path}/my pets/", data_dir="/dev/null")
    first, again = (load_dataset(config, seed=seed) for seed in (0, 1))
    assert (first.name, first.num_classes, first.class_names) == ("folder_my_pets", 2, ("cat", "dog"))
    assert (len(first.train.labels), len(first.validation.labels), len(first.test.labels)) == (36, 4, 10)
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.validation.images, again.validation.images)
    monkeypatch.chdir(tmp_path / "my pets")
    assert load_dataset(DataConfig(dataset="folder:."), seed=0).sha256 == first.sha256
    assert folder_name(".") == "folder_my_pets"


def test_load_dataset_passes_the_size_on_and_refuses_raw_data_dir(tmp_path: Path) -> None:
    write_numbered(tmp_path, {"cat": 25, "dog": 25})
    config = DataConfig(dataset=f"folder:{tmp_path}", image_size=(8, 9))
    assert load_dataset(config, seed=0).train.images.shape[1:] == (8, 9, 3)
    with pytest.raises(ValueError, match="raw_data_dir is '/raw'; expected no such folder with dataset folder:"):
        load_dataset(DataConfig(dataset=f"folder:{tmp_path}", raw_data_dir="/raw"), seed=0)


@pytest.mark.parametrize("path", ["", "/no/such/folder", __file__])
def test_what_is_no_folder_is_refused_with_the_layout(path: str) -> None:
    with pytest.raises(ValueError, match=f"dataset is 'folder:{path}'; expected folder:PATH, .*PATH/train/CLASS"):
        load_dataset(DataConfig(dataset=f"folder:{path}"), seed=0)


def grey_tiff(data: bytes, *, bits: int, photometric: int) -> bytes:
    """A TIFF of 4x6 pixels."""
    tags = {256: 6, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 4, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_tiff_says_how_many_bits_it_has_and_what_black_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (4, 6))
    first, second = values.reshape(-1, 2).T
    in_three_bytes = np.stack([first >> 4, ((first & 15) << 4) | (second >> 8), second & 255], axis=-1)
    twelve = grey_tiff(in_three_bytes.astype(np.uint8).tobytes(), bits=12, photometric=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.tif").write_bytes(twelve)
    np.testing.assert_array_equal(load_image_folder(str(tmp_path)).train.images[0, :, :, 0], values >> 4)
    white_is_zero = grey_tiff(values.astype("<u2").tobytes(), bits=16, photometric=0)
    (tmp_path / "a/0.tif").write_bytes(white_is_zero)
    with pytest.raises(ValueError, match=r"a/0.tif cannot be read \(its PhotometricInterpretation is \[0\]"):
        load_image_folder(str(tmp_path))


def test_an_output_folder_that_would_be_a_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "whole", {"a/0.png": pixels(0), "b/0.png": pixels(1)})
    write(tmp_path / "split", {"train/a/0.png": pixels(0), "test/a/0.png": pixels(1)})
    for folder, out_dir in (("whole", "whole/runs/first"), ("split", "split/train/run")):
        with pytest.raises(ValueError, match="out_dir is .*; expected a folder outside of the images in"):
            require_outside(str(tmp_path / folder), tmp_path / out_dir)
    for folder, out_dir in (("whole", "wholesale"), ("split", "split/runs/first")):
        require_outside(str(tmp_path / folder), tmp_path / out_dir)
