"""What an exported file says of itself: what goes in and comes out, how robust it is, how it was made.

The same nested dict in every format, ready for JSON; all of it from what the run has written, or counted.
"""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from rap_jax.checked_json import read_checked
from rap_jax.digest import digest
from rap_jax.environment import versions
from rap_jax.export.subject import Subject
from rap_jax.models import num_params
from rap_jax.sparsity import count_sparsity

SCHEMA = 1
_MEASURED_ON = (
    "the network of the run, before outputs that count for nothing were removed and BatchNorm was folded; that "
    "changes logits by rounding alone"
)
_ATTACKS = ("pgd", "auto_attack", "transfer", "combined")


def describe(subject: Subject, file_format: str, command: str = "") -> dict[str, Any]:
    """The metadata of a file.

    Args:
      subject: the network in it.
      file_format: one of `files.FORMATS`.
      command: that wrote it.
    """
    return {
        "schema": SCHEMA,
        "format": file_format,
        "name": subject.name,
        "network": network_of(subject),
        "input": {
            "name": "images",
            "dtype": "float32",
            "layout": "NHWC",
            "shape": ["batch", *subject.model.input_shape],
            "range": [0.0, 1.0],
            "normalisation": "none before the network: pixel / 255",
        },
        "output": {"name": "logits", "shape": ["batch", subject.model.num_classes], "classes": class_names(subject)},
        "sparsity": {
            "of_the_run": count_sparsity(subject.whole.params)["overall"],
            "of_this_file": count_sparsity(subject.weights.params)["overall"],
        },
        "accuracy": _accuracy(subject),
        "training": {
            key: subject.results.get(key)
            for key in ("config", "command", "versions", "device", "data", "seed", "start", "seconds")
        },
        "exported": {"rap_jax": metadata_version(), "versions": versions(), "command": command},
    }


def network_of(subject: Subject) -> dict[str, Any]:
    """What `create_model` has to know to make it again, its size, and the digest of its weights."""
    return {
        "name": subject.config.name,
        "width": subject.config.width,
        "initializer": subject.config.initializer,
        "input_shape": list(subject.model.input_shape),
        "num_classes": subject.model.num_classes,
        "features": dict(subject.features),
        "folded": subject.folded,
        "num_params": num_params(subject.weights.params),
        "num_params_of_the_run": num_params(subject.whole.params),
        "sha256": digest(subject.weights),
    }


def class_names(subject: Subject) -> list[str]:
    """One for each logit; their numbers where the data have no names."""
    names = subject.results["data"].get("class_names") or range(subject.model.num_classes)
    return [str(name) for name in names]


def metadata_version() -> str:
    """The version of rap_jax."""
    try:
        return metadata.version("rap-jax")
    except metadata.PackageNotFoundError:  # run from its sources without being installed
        return "not installed"


def _accuracy(subject: Subject) -> dict[str, Any]:
    """The test of the run, and what launch.evaluate has found of it since."""
    test: Mapping[str, Any] = subject.results.get("test") or {}
    return {
        "measured_on": _MEASURED_ON,
        "clean": test.get("natural_accuracy"),
        "clean_interval": test.get("natural_interval"),
        "robust": test.get("robust_accuracy"),
        "robust_interval": test.get("robust_interval"),
        "attack": test.get("attack"),
        "split": "test" if test else None,
        "num_images": test.get("num_examples"),
        "evaluation": _evaluation(subject),
    }


def _evaluation(subject: Subject) -> dict[str, Any] | None:
    """In short what RUN/evaluation/results.json holds, if it is there and of this network."""
    try:
        found = read_checked((subject.folder / "evaluation" / "results.json").read_text())
        same = found["network"].get("sha256") in (None, digest(subject.whole))
        kept = {key: found.get(key) for key in ("clean", *_ATTACKS)}
        about = {"attack": found["config"], "findings": found["findings"], "versions": found.get("versions")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # half written or of another version
        return None
    return kept | about if same else None
