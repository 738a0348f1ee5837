"""Whether an accelerator computes what the CPU does: each value beside its tolerance, and a verdict."""

import dataclasses
import json

from benchmarks.accelerators.session import Bench, Row, Settings
from benchmarks.worker import Answer


@dataclasses.dataclass(frozen=True)
class EqualityCase:
    """What is compared."""

    network: str
    width: int
    num_images: int = 32
    num_attacked: int = 16  # images of AutoAttack
    products: tuple[str, ...] = ("default", "highest")  # of the accelerator; the CPU's are highest
    num_components: int = 4  # of AutoAttack's version `standard`, which has 4

    @property
    def name(self) -> str:
        """Of its rows."""
        return f"equality/{self.network}_w{self.width}"


# Each with the minutes of its functions and of AutoAttack.
_CASES = ((EqualityCase("lenet_mnist", 4), 0.6, 1.5), (EqualityCase("resnet18", 8), 1.5, 4.0))
_TINY_CASES = ((EqualityCase("lenet_mnist", 1, 8, 2, ("default",), num_components=1), 0.6, 1.5),)


def equality_rows(settings: Settings) -> list[Row]:
    """Rows of the part `equality`; AutoAttack, which takes longest, comes last."""
    cases = _TINY_CASES if settings.tiny else _CASES
    measure = lambda request, case: lambda bench: measure_equality(bench, request, case)
    functions = [Row(case.name, minutes, measure("functions", case)) for case, minutes, _ in cases]
    attacks = [Row(f"{case.name}_autoattack", minutes, measure("auto_attack", case)) for case, _, minutes in cases]
    return functions + attacks


def measure_equality(bench: Bench, request: str, case: EqualityCase) -> Answer:
    """Bars of one network, under `bars`, and whether all of them hold."""
    with bench.process("benchmarks.accelerators.equality_worker", json.dumps(dataclasses.asdict(case))) as process:
        found = process.ask(request)
    return found | {"holds": all(bar["holds"] for bar in found["bars"])}
