"""Tests of the parsers, on small files in the official layouts; the real MNIST is used where it is at hand."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import scipy.io
from raw_data import cifar10_records, idx_bytes, random_images, svhn_mat
from repository import OFFICIAL_MNIST

from rap_jax.data.builders import RapMnist, parse_mat
from rap_jax.data.raw_files import (
    CIFAR10_FILES,
    parse_cifar10_files,
    parse_cifar10_records,
    parse_idx,
    parse_idx_files,
    read_verified,
)


def test_parse_idx_reads_the_header() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(idx_bytes(array), "x"), array)
    np.testing.assert_array_equal(parse_idx(idx_bytes(array[:, 0, 0]), "x"), [0, 12])


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d + b"0", lambda d: d[:9], lambda d: d[:3], lambda d: b""]
)
def test_parse_idx_refuses_a_wrong_length(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"of x is|in x is"):
        parse_idx(change(idx_bytes(np.zeros((2, 3, 4)))), "x")


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_parse_idx_refuses_another_type_or_rank(position: int) -> None:
    data = bytearray(idx_bytes(np.zeros((2, 3, 4))))
    data[position] ^= 7
    with pytest.raises(ValueError, match="expected"):
        parse_idx(bytes(data), "x")


def test_idx_images_and_labels_must_be_as_many() -> None:
    files = {f"{s}-images-idx3-ubyte.gz": idx_bytes(np.zeros((3, 2, 2))) for s in ("train", "t10k")}
    labels = {f"{s}-labels-idx1-ubyte.gz": idx_bytes(np.zeros(n)) for s, n in (("train", 3), ("t10k", 2))}
    with pytest.raises(ValueError, match=r"shape of labels is \(2,\)"):
        parse_idx_files(files | labels)


def test_a_cifar10_record_is_a_label_and_three_planes_row_by_row() -> None:
    record = np.zeros(3073, np.uint8)
    record[0] = 7
    red, green, blue = (1 + plane * 1024 + 5 * 32 + 9 for plane in range(3))  # row 5, column 9
    record[[red, green, blue]] = [11, 22, 33]
    images, labels = parse_cifar10_records(record.tobytes() * 2, "x")
    assert labels.tolist() == [7, 7]
    assert images.shape == (2, 32, 32, 3)
    assert images[1, 5, 9].tolist() == [11, 22, 33]
    assert np.count_nonzero(images) == 6


def test_cifar10_batches_come_in_turn_and_the_test_batch_apart() -> None:
    batches = {name: random_images(count, (32, 32, 3), seed=count) for count, name in enumerate(CIFAR10_FILES, start=1)}
    # Given in another order, since a folder or an archive has its own.
    train, test = parse_cifar10_files({name: cifar10_records(*batches[name]) for name in reversed(CIFAR10_FILES)})
    np.testing.assert_array_equal(train.images, np.concatenate([batches[name][0] for name in CIFAR10_FILES[:5]]))
    np.testing.assert_array_equal(train.labels, np.concatenate([batches[name][1] for name in CIFAR10_FILES[:5]]))
    np.testing.assert_array_equal(test.images, batches["test_batch.bin"][0])
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("num_bytes", [0, 3072, 3074, 3072 * 2])
def test_cifar10_refuses_what_are_no_whole_records(num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"bytes in x is {num_bytes}; expected a multiple of 3073"):
        parse_cifar10_records(bytes(num_bytes), "x")


def test_cifar10_refuses_a_label_above_9() -> None:
    images, labels = random_images(3, (32, 32, 3))
    assert parse_cifar10_records(cifar10_records(images, labels * 0 + 9), "x").labels.tolist() == [9, 9, 9]
    labels[1] = 10
    with pytest.raises(ValueError, match="label in x is 10; expected labels from 0 to 9"):
        parse_cifar10_records(cifar10_records(images, labels), "x")


def test_svhn_has_its_examples_last_and_writes_0_as_10() -> None:
    images, labels = random_images(12, (32, 32, 3))
    labels[:3] = [0, 1, 9]
    parsed = parse_mat(svhn_mat(images, labels), "x")
    assert set(scipy.io.loadmat(io.BytesIO(svhn_mat(images, labels)))["y"][:3, 0]) == {10, 1, 9}
    np.testing.assert_array_equal(parsed.images, images)
    np.testing.assert_array_equal(parsed.labels, labels)


@pytest.mark.parametrize("label", [0, 11])
def test_svhn_refuses_other_labels(label: int) -> None:
    file = io.BytesIO()
    scipy.io.savemat(file, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [label]], np.uint8)})
    with pytest.raises(ValueError, match=rf"labels in x is \[{label}\]; expected .* 1 to 10"):
        parse_mat(file.getvalue(), "x")


def test_the_official_mnist_is_accepted_and_told_from_others() -> None:
    if not OFFICIAL_MNIST.is_dir():
        pytest.skip(f"no official files in {OFFICIAL_MNIST}")
    paths = RapMnist.find_raw(OFFICIAL_MNIST)
    train, test = RapMnist.parse({file.name: read_verified(paths[file.name], file) for file in RapMnist.FILES})
    assert (train.images.shape, test.images.shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    # Published facts: the first digits are 5, 0, 4 and 7, 2, 1; the mean pixel of the training set is 0.1307 of 255.
    assert (train.labels[:3].tolist(), test.labels[:3].tolist()) == ([5, 0, 4], [7, 2, 1])
    assert np.isclose(train.images.mean() / 255, 0.1307, atol=1e-4)
    with pytest.raises(ValueError, match="is damaged"):
        read_verified(paths["t10k-labels-idx1-ubyte.gz"], RapMnist.FILES[1])
