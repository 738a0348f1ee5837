"""What a whole evaluation gives away: its data, and attacks that contradict each other."""

from typing import Any

import numpy as np

from rap_jax.diagnostics.finding import Finding

# As for Square: the share that the official implementation of AutoAttack warns at.
_MISSED_SHARE = 0.002


def check_data(run: dict[str, Any] | None, about: dict[str, Any]) -> list[Finding]:
    """Other data than the network was trained on, or validation images that it may have been trained on.

    Args:
      run: results.json of the run that trained the network; None if it is not known.
      about: of the data that is attacked, `Dataset.describe()` and its `split`.
    """
    if run is None:
        return []
    trained = run["data"]
    if trained["sha256"] != about["sha256"]:
        return [
            Finding(
                "other data",
                f"The network was trained on {trained['name']} ({_short(trained)}) and is attacked on {about['name']} "
                f"({_short(about)}): the numbers are not those of that run, and it may have been trained on some of "
                f"these images, if one data set is made of the other.",
            )
        ]
    split = ("validation_fraction", "validation_seed")
    if about["split"] == "validation" and any(trained[key] != about[key] for key in split):
        return [
            Finding(
                "seen in training",
                "Another part of the training images is held out here than when the network was trained, so it may "
                "have been trained on the images that it is attacked on. Give the run's --validation_fraction and "
                "--validation_seed, or leave them out.",
            )
        ]
    return []


def check_confirmed(name: str, claimed: np.ndarray, broken: np.ndarray) -> list[Finding]:
    """Images that an attack says the network gets wrong, and that it gets right when they are predicted once more.

    Args:
      name: of the attack.
      claimed, broken: before and after, bool [N].
    """
    lost = int((claimed & ~broken).sum())
    if not lost:
        return []
    return [
        Finding(
            "not confirmed",
            f"{lost} of the {int(claimed.sum())} images of {name} were misclassified when they were found and are not "
            f"when predicted once more; they are not counted. A few lie so near to the boundary that rounding decides; "
            f"many mean that the network does not give the same answer twice.",
        )
    ]


def check_worst_case(auto_attack: dict[str, Any] | None, robust: np.ndarray) -> list[Finding]:
    """PGD or transferred images that break what AutoAttack has left.

    Args:
      auto_attack: what results.json says of it; None if it was not run.
      robust: what all attacks together have left, bool [N].
    """
    if auto_attack is None:
        return []
    missed = auto_attack["robust_accuracy"] - float(robust.mean())
    if missed <= _MISSED_SHARE:
        return []
    return [
        Finding(
            "AutoAttack was not the strongest",
            f"PGD and transferred images broke {round(missed * len(robust))} more images than {auto_attack['name']} "
            f"({missed:.2%} of all), which hardly happens unless gradients are masked. Go by the worst case of all, "
            f"try version plus, and write an attack for this network.",
        )
    ]


def _short(data: dict[str, Any]) -> str:
    return f"sha256 {data['sha256'][:12]}"
