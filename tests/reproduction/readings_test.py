"""How numbers of a table are read from the results of jobs."""

import pytest

from rap_jax.reproduce.readings import Accuracy, read


def found(robust: float) -> dict[str, float]:
    return {"robust_accuracy": robust, "num_examples": 100}


RUN = {"name": "a", "test": {"natural_accuracy": 0.9, "robust_accuracy": 0.8, "num_examples": 1000}}
EVALUATION = {"name": "b", "auto_attack": found(0.5), "combined": found(0.4), "transfer": [found(0.7), found(0.6)]}


def test_each_reading_has_its_number() -> None:
    assert read(RUN, "natural") == Accuracy(0.9, 1000) and read(RUN, "robust") == Accuracy(0.8, 1000)
    given = {"auto_attack": 0.5, "combined": 0.4, "transfer/0": 0.7, "transfer/1": 0.6}
    assert {name: read(EVALUATION, name) for name in given} == {name: Accuracy(v, 100) for name, v in given.items()}
    # A scale without AutoAttack shows the worst case of what it has.
    assert read(EVALUATION | {"auto_attack": None}, "auto_attack") == Accuracy(0.4, 100)


@pytest.mark.parametrize("reading", ["natural", "combined", "transfer/0", "transfer/2"])
def test_what_is_not_there_is_named(reading: str) -> None:
    results = {"name": "c"} if reading != "transfer/2" else EVALUATION
    with pytest.raises(ValueError, match=f"have no {reading} .*move results.json away"):
        read(results, reading)
