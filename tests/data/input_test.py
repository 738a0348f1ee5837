"""Batches from disk are those of a split on the devices, whatever the step that a run goes on from."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from rap_jax._runtime.mesh import make_mesh, take_images
from rap_jax.config import ComputeConfig
from rap_jax.data import Split, content_hash, hold_out
from rap_jax.data.batches import BatchInputs
from rap_jax.data.streamed import StreamedImages
from rap_jax.training.input import Order, ResidentInput, StreamedInput, _Rows, make_input

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8)
LABELS = np.arange(50, dtype=np.int32) % 10


def streamed(images: np.ndarray = IMAGES) -> StreamedImages:
    return StreamedImages(tiny.Records(images), np.arange(len(images)), images.shape[1:])


def on_disk(split: Split) -> Split:
    images: Any = streamed(split.images)
    return Split(images, split.labels)


def bytes_of(inputs: BatchInputs) -> tuple[np.ndarray, np.ndarray]:
    images, labels, indices = jax.device_get(inputs)
    if indices is None:
        return images, labels
    return take_images(images, indices, IMAGES.shape[1:]), labels[indices]


@pytest.mark.parametrize("num_model_shards", [1, 2])
@pytest.mark.parametrize("steps", [range(9), range(5, 9)])
@pytest.mark.parametrize("updates", [1, 2])
def test_batches_from_disk_are_those_on_the_devices(num_model_shards: int, steps: range, updates: int) -> None:
    mesh = make_mesh(jax.devices()[:4], num_model_shards=num_model_shards)
    order = Order(jax.random.key(3), 50, 16, updates)  # three batches in a pass, two images left over
    both = ResidentInput(Split(IMAGES, LABELS), mesh), StreamedInput(streamed(), LABELS, mesh)
    batches = [[bytes_of(inputs) for inputs in each.batches(order, steps)] for each in both]
    assert len(batches[0]) == len(batches[1]) == len(steps)
    for ours, theirs in zip(*batches, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_every_pass_has_its_own_order_and_every_image_once() -> None:
    order = Order(jax.random.key(0), 50, 10)
    first, second = (np.concatenate([order.batch(step) for step in range(start, start + 5)]) for start in (0, 5))
    assert sorted(first) == sorted(second) == list(range(50)) and list(first) != list(second)
    again = Order(jax.random.key(0), 50, 10, updates_per_batch=3)
    np.testing.assert_array_equal(again.batch(17), order.batch(5))


def test_a_streamed_split_is_chosen_from_without_reading() -> None:
    records = tiny.Records(IMAGES)
    images: Any = StreamedImages(records, np.arange(50), (4, 4, 1))
    train, validation = hold_out(Split(images, LABELS), 0.2, 0)
    assert records.was_read == [] and train.images.shape == (40, 4, 4, 1)
    whole = hold_out(Split(IMAGES, LABELS), 0.2, 0)
    for part, expected in zip((train, validation), whole, strict=True):
        np.testing.assert_array_equal(part.images.read_all(), expected.images)  # type: ignore[attr-defined]


def test_its_hash_is_that_of_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rap_jax.data.streamed.CHUNK", 7)
    split = Split(IMAGES, LABELS)
    assert content_hash(on_disk(split), split) == content_hash(split, split)


def test_the_input_fits_where_the_images_are() -> None:
    split = Split(IMAGES, LABELS)
    assert isinstance(make_input(split, make_mesh()), ResidentInput)
    assert isinstance(make_input(on_disk(split), make_mesh()), StreamedInput)


def test_without_grain_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match=r"pip install 'rap-jax\[stream\]'"):
        next(streamed().batches(range(8), 4))


@pytest.mark.nightly
def test_a_run_that_streams_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny.tiny_dataset()
    resident = tiny.run_and_watch(tmp_path / "resident")
    monkeypatch.setattr(tiny, "tiny_dataset", lambda: tiny.on_disk(dataset))
    stream = tiny.run_and_watch(tmp_path / "stream", compute=ComputeConfig(stream_data=True))
    for stage, outcome in resident.outcomes.items():
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        jax.tree.map(compare, outcome.weights, stream.outcomes[stage].weights)


def test_a_process_reads_the_rows_of_its_own_devices_and_no_others() -> None:
    order, steps = Order(jax.random.key(3), 50, 16), range(2, 6)
    rows = _Rows(order, steps, 4, 8)
    assert len(rows) == 16
    assert [rows[place] for place in range(16)] == [n for step in steps for n in order.batch(step)[4:8]]
