"""Small files in the layouts of the official data sets, written independently of the parsers."""

import gzip
import io
import struct
import tarfile

import numpy as np
import scipy.io

Example = tuple[np.ndarray, np.ndarray]


def random_images(num_examples: int, shape: tuple[int, int, int], seed: int = 0) -> Example:
    """Images, uint8, and labels in 0..9."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (num_examples, *shape), np.uint8), generator.integers(0, 10, num_examples)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_files(train: Example, test: Example) -> dict[str, bytes]:
    files = {}
    for prefix, (images, labels) in (("train", train), ("t10k", test)):
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx_bytes(images[..., 0]))
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx_bytes(labels))
    return files


def cifar10_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    planes = [b"".join(image[:, :, channel].tobytes() for channel in range(3)) for image in images]
    return b"".join(bytes([label]) + plane for label, plane in zip(labels, planes, strict=True))


def cifar10_batches(train: Example, test: Example) -> dict[str, bytes]:
    """The six files; the training examples are spread evenly over the first five."""
    images, labels = (np.array_split(array, 5) for array in train)
    batches = {f"data_batch_{i + 1}.bin": cifar10_records(images[i], labels[i]) for i in range(5)}
    return batches | {"test_batch.bin": cifar10_records(*test)}


def cifar10_archive(members: dict[str, bytes]) -> dict[str, bytes]:
    """The archive, with its folder, a file of no use first, and the batches in another order than their names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("batches.meta.txt", *reversed(members)):
            data = members.get(name, b"airplane\n")
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {"cifar-10-binary.tar.gz": file.getvalue()}


def svhn_mat(images: np.ndarray, labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    ten_for_zero = np.where(labels == 0, 10, labels).astype(np.uint8)
    examples_last = np.stack(list(images), axis=-1)
    scipy.io.savemat(file, {"X": examples_last, "y": ten_for_zero[:, None]}, do_compression=True)
    return file.getvalue()
