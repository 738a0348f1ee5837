"""Data sets as arrays in memory; those with official files are read through TFDS without TensorFlow.

dataset        `Dataset`, `Split`, their hash, and the stratified validation split
load           `load_dataset`: every source in the right order; `load_datasets`: one for each of several seeds
raw_files      official files: found, verified, read
builders       one TFDS builder per data set: its files, its classes
prepared       the prepared copy: made, read, verified
unprepared     mnist_5k and cifar10_unverified, read directly
image_folder   a user's own images, one sub-folder per class
streamed       images that stay on disk, read ahead by Grain
batches        seeded epochs, padded batches, augmentation, mixup, bytes to [0, 1]
"""

from rap_jax.data.batches import augment as augment
from rap_jax.data.batches import epoch_order as epoch_order
from rap_jax.data.batches import padded_batches as padded_batches
from rap_jax.data.batches import to_unit as to_unit
from rap_jax.data.dataset import Dataset as Dataset
from rap_jax.data.dataset import Split as Split
from rap_jax.data.dataset import content_hash as content_hash
from rap_jax.data.dataset import hold_out as hold_out
from rap_jax.data.load import load_dataset as load_dataset
from rap_jax.data.load import load_datasets as load_datasets
