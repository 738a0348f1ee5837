"""Tests of a user's own images."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rap_jax.config import DataConfig
from rap_jax.data import hold_out, load_dataset
from rap_jax.data.dataset import TrainTest, make_split
from rap_jax.data.image_folder import folder_name, load_image_folder


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


def test_other_modes_of_eight_bits_are_converted(tmp_path: Path) -> None:
    whole = Image.fromarray(pixels(0))
    palette = whole.quantize(256)
    write(tmp_path, {"a/1.png": pixels(0), "b/1.png": pixels(1), "b/2.png": pixels(2)})
    palette.save(tmp_path / "a" / "2.png", transparency=bytes(range(0, 96, 4)))
    whole.convert("RGBA").save(tmp_path / "a" / "3.png")
    Image.fromarray(pixels(3, grey=True) > 100).save(tmp_path / "a" / "4.png")
    train, test, _ = load(tmp_path)
    found = {image.tobytes() for split in (train, test) for image in split.images}
    bilevel = np.where(pixels(3, grey=True) > 100, 255, 0).astype(np.uint8)
    for expected in (pixels(0), np.asarray(palette.convert("RGB")), np.stack([bilevel] * 3, axis=-1)):
        assert expected.tobytes() in found


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": pixels(0), "b/1.png": np.full((4, 6), 40_000, np.uint16)})
    with pytest.raises(ValueError, match=f"{tmp_path / 'b' / '1.png'} .*'I;16'; expected 8 bits"):
        load(tmp_path)


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
