"""AutoAttack, version `standard`, on test images of MNIST, against the official code on the same card.

Each side has a process of its own and two rows: with default products, which are TF32 on such cards, and with products
in float32. Rows hold which images were left, so any two rows of one network can be compared.
"""

import tempfile

from benchmarks.accelerators.process import RowError
from benchmarks.accelerators.session import Bench, Row, Settings
from benchmarks.accelerators.steps import PYTORCH_MISSING, has_pytorch
from benchmarks.worker import Answer

PRODUCTS = ("default", "highest")
SIDES = ("rap_jax", "official")

_JAX_WORKER = "benchmarks.accelerators.autoattack_worker"
_OFFICIAL_WORKER = "benchmarks.pytorch.accelerator_autoattack_worker"
# For 1,000 images.
_MINUTES = {
    ("rap_jax", "default"): 1.0,
    ("rap_jax", "highest"): 1.8,
    ("official", "default"): 0.9,
    ("official", "highest"): 1.0,
}


def autoattack_rows(settings: Settings) -> list[Row]:
    """Rows of the part `autoattack`; their names tell the network and the number of images."""
    network = "trades" if settings.trades is not None else "lenet"
    measure = lambda side, products: lambda bench: measure_autoattack(bench, side, products)
    return [
        Row(
            f"autoattack/{network}_{settings.num_images}/{side}_{products}",
            _MINUTES[side, products] * max(0.5, settings.num_images / 1000),
            measure(side, products),
        )
        for products in PRODUCTS
        for side in SIDES
    ]


def measure_autoattack(bench: Bench, side: str, products: str) -> Answer:
    """Seconds, examples per second and what was left; of rap_jax in the second call, since the first one compiles."""
    settings = bench.settings
    numbers = (str(settings.num_images), "1" if settings.tiny else "4")  # images, components of the version
    arguments = (_network(settings), _raw_data_dir(settings), products, *numbers)
    found: Answer = {"num_images": settings.num_images, "side": side, "products": products}
    if side == "rap_jax":
        with tempfile.TemporaryDirectory() as cache, bench.process(_JAX_WORKER, *arguments, cache) as process:
            found["first_seconds"] = process.ask("attack")["seconds"]
            found |= process.ask("attack")
    else:
        if not has_pytorch():
            raise RowError(f"{PYTORCH_MISSING}; expected it and pyautoattack, the extra `bench`.")
        # The weights of a run are read by JAX, which leaves the card to PyTorch.
        with bench.process(_OFFICIAL_WORKER, *arguments, environment={"JAX_PLATFORMS": "cpu"}) as process:
            found |= process.ask("attack")
    return found | {"examples_per_second": settings.num_images / found["seconds"]}


def _network(settings: Settings) -> str:
    if settings.trades is not None:
        return str(settings.trades)
    if not (settings.run_dir / "results.json").exists():
        expected = "--trades=PATH, or the network of the row job/main, which --only=job/main trains"
        raise RowError(f"There is no network to attack: {settings.run_dir} holds no finished run; expected {expected}.")
    return str(settings.run_dir)


def _raw_data_dir(settings: Settings) -> str:
    if settings.raw_data_dir is None:
        raise RowError("raw_data_dir is None; expected a folder with the official files of MNIST.")
    return str(settings.raw_data_dir)
