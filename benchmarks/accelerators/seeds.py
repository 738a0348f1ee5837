"""N LeNets of different seeds by `vmap` in one program: images per second of all together."""

from benchmarks.accelerators.session import Bench, Row, Settings
from benchmarks.accelerators.steps import turn
from benchmarks.sweep_worker import BATCH_SIZE
from benchmarks.turns import in_turn
from benchmarks.worker import Answer

# Width -> numbers of networks.
_CASES = {1: (1, 16, 64), 4: (1, 16), 16: (1, 8)}
_TINY_CASES: dict[int, tuple[int, ...]] = {1: (1, 2)}
_MINUTES = 0.5


def seeds_rows(settings: Settings) -> list[Row]:
    """Rows of the part `seeds`."""
    cases = _TINY_CASES if settings.tiny else _CASES
    measure = lambda width, number: lambda bench: measure_seeds(bench, width, number)
    return [
        Row(f"seeds/lenet_w{width}_n{number}", _MINUTES, measure(width, number))
        for width, numbers in cases.items()
        for number in numbers
    ]


def measure_seeds(bench: Bench, width: int, num_networks: int) -> Answer:
    """Images per second of all networks, waited for at each step and pipelined."""
    settings = bench.settings
    with bench.process("benchmarks.accelerators.seeds_worker", str(width), str(num_networks)) as process:
        first = process.ask("steps", count=1, num_ahead=0)["seconds"]
        ways = {
            "waited": turn(process, settings.turn_seconds, num_ahead=0),
            "pipelined": turn(process, settings.turn_seconds, num_ahead=1),
        }
        times = in_turn(ways, rounds=settings.rounds, max_tries=1)
    num_images = num_networks * BATCH_SIZE
    return {
        "width": width,
        "num_networks": num_networks,
        "images_per_second": {way: num_images / found.median for way, found in times.items()},
        "spread": {way: found.spread for way, found in times.items()},
        "first_seconds": first,
    }
