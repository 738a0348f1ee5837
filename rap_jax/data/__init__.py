"""Data sets as arrays in memory; those that have official files are read through TFDS without TensorFlow.

dataset.py             `Dataset`, `Split`, their hash, and the stratified validation split
raw_files.py           official files: found, verified
raw_idx.py             the file format of MNIST and Fashion-MNIST
raw_cifar10.py         the file format of CIFAR-10
array_builder.py       TFDS builder for arrays (imports TFDS)
*_builder.py           one per data set: its files, its classes
network.py             quick check whether a file can be downloaded
prepared.py            the prepared copy: made, read, verified
mnist_5k.py            5,000 real images for runs without a network
cifar10_unverified.py  files in the layout of CIFAR-10 that are not the official ones
image_folder.py        a user's own images, one sub-folder per class
streamed.py            images that stay on disk, read ahead by Grain
load.py                `load_dataset`: all of the above in the right order
order.py               seeded epochs, padded batches, bytes to [0, 1]
augment.py             random crops and mirror images
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
