"""Which images, and what is done with them before a training step."""

import dataclasses

from rap_jax.config.checks import require


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how many of the training images are held out for validation.

    `validation_seed` chooses the images that are held out; None takes the run's seed.
    `dataset` is a name, or `folder:PATH` for a folder of images with one sub-folder per class; `image_size`, (height,
    width), resizes the images of such a folder.
    """

    dataset: str = "mnist"
    data_dir: str = "~/tensorflow_datasets"
    raw_data_dir: str | None = None
    fallback_dataset: str | None = None
    validation_fraction: float = 0.1
    validation_seed: int | None = None
    image_size: tuple[int, int] | None = None

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
    """Random changes of training images: a crop out of `crop_padding` black pixels on each side, a mirror image."""

    crop_padding: int = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        require(self.crop_padding >= 0, "crop_padding", self.crop_padding, "0 or more pixels (the paper uses 4)")
