"""Data sets as arrays in memory, read through TFDS without TensorFlow.

dataset.py         `Dataset`, `Split`, their hash, and the stratified validation split
raw_mnist.py       the official MNIST files: found, verified, parsed
array_builder.py   TFDS builder for arrays (imports TFDS)
mnist_builder.py   the one of MNIST
network.py         quick check whether a file can be downloaded
prepared.py        the prepared copy: made, read, verified
mnist_5k.py        5,000 real images for runs without a network
load.py            `load_dataset`: all of the above in the right order
order.py           seeded epochs, padded batches, bytes to [0, 1]
"""

from rap_jax.data.dataset import Dataset as Dataset
from rap_jax.data.dataset import Split as Split
from rap_jax.data.dataset import content_hash as content_hash
from rap_jax.data.dataset import hold_out as hold_out
from rap_jax.data.load import load_dataset as load_dataset
from rap_jax.data.order import epoch_order as epoch_order
from rap_jax.data.order import padded_batches as padded_batches
from rap_jax.data.order import to_unit as to_unit
