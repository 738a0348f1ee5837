"""How a number of a table is read from the results.json of a job.

natural, robust    a run: clean and PGD accuracy on the test set
auto_attack        an evaluation: what AutoAttack leaves, or the worst case where the scale has no AutoAttack
combined           an evaluation: what all of its attacks leave
transfer/N         an evaluation: what the images of its source N leave
"""

from typing import Any, NamedTuple

Reading = str


class Accuracy(NamedTuple):
    """Attributes: accuracy: in [0, 1]; num_images: it was measured on."""

    accuracy: float
    num_images: int


def read(results: dict[str, Any], reading: Reading) -> Accuracy:
    """The number that a table shows.

    Raises:
      ValueError: the results do not have it.
    """
    kind, _, number = reading.partition("/")
    try:
        if kind in ("natural", "robust"):
            found = results["test"]
            return Accuracy(found[f"{kind}_accuracy"], found["num_examples"])
        if kind == "transfer":
            found = results["transfer"][int(number)]
        else:
            found = results[kind] or results["combined"]
        return Accuracy(found["robust_accuracy"], found["num_examples"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"The results of {results.get('name')} have no {reading} ({error!r}); move results.json away and run the "
            f"job again."
        ) from error
