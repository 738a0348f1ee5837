"""The certificates of an evaluation: the lower bound of robust accuracy, where attacks give the upper one.

They look at all images and not at those alone that attacks have left, and come before the attacks, so that each attack
puts them to the test: an image that is certified and broken stops the evaluation.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rap_jax._runtime.functions import exact_products
from rap_jax._runtime.integrity import as_npz, open_npz, write_atomically
from rap_jax._runtime.progress import Progress
from rap_jax.evaluation.certificates import METHODS, Certificates, certify, graph_of
from rap_jax.evaluation.network import AttackedNetwork
from rap_jax.evaluation.suite import AttackReport, Setup, accuracy_of

_SECONDS_BETWEEN_SAVES = 30.0


class Proofs(NamedTuple):
    """What certificates say of a sample."""

    certified: np.ndarray  # bool [N]: no image of the threat model is misclassified
    attack: AttackReport  # by the images where the linear bounds are least, a weak attack; with all for results.json


def check_certifiable(network: AttackedNetwork, image_shape: tuple[int, ...]) -> None:
    """Refuses a network that has no bounds, before anything is computed.

    Raises:
      ValueError: it does something with an image (H, W, C) that is neither affine nor a maximum.
    """
    if network.about["kind"] == "jax.export":
        raise ValueError(
            f"certify needs the operations of {network.name}, and a file of jax.export holds a compiled program; "
            f"expected a run or a JAX function. Give the folder of the run, or --certify=none."
        )
    try:
        graph_of(exact_products(network.plain_fn or network.logits_fn), image_shape)
    except Exception as error:  # a user's function may raise anything for one image
        reason = " ".join(f"{error}".split())[:300]
        raise ValueError(
            f"certify has no bounds of {network.name}: {reason} Or leave it out: --certify=none."
        ) from error


def certificates(setup: Setup) -> Proofs:
    """Certifies all images of the sample, or goes on with it."""
    method, path = setup.config.certify, setup.path("certificates.npz")
    assert method != "none"  # `evaluate_robustness` asks for none then
    sample, look = setup.sample, setup.on_look("in the certificates")
    known, before = _load(path, sample.images) if path.exists() else (None, 0.0)
    began = last_save = time.monotonic()
    latest = known

    def seconds() -> float:
        return before + time.monotonic() - began

    with Progress(f"certificates, up to {method}", len(sample.labels), unit="image") as progress:

        def on_batch(found: Certificates) -> None:
            nonlocal latest, last_save
            latest = found
            progress.update(_num_done(found, method), f"certified {found.certified.mean():.2%}")
            if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
                last_save = time.monotonic()
                _save(path, found, seconds())
            look()

        try:
            latest = certify(
                setup.network.plain_fn or setup.network.logits_fn,
                sample.images,
                sample.labels,
                threat_model=setup.threat_model,
                method=method,
                known=known,
                on_batch=on_batch,
            )
        finally:
            if latest is not None:
                _save(path, latest, seconds())
    return _report(latest, method, seconds())


def _num_done(found: Certificates, method: str) -> int:
    return int((found.certified | found.broken | (found.tried > METHODS.index(method))).sum())


def _report(found: Certificates, method: str, seconds: float) -> Proofs:
    methods = METHODS[: METHODS.index(method) + 1]
    parts = [
        {
            "name": name,
            "tried": int((found.tried >= number).sum()),
            "certified": int((found.certified & (found.tried == number)).sum()),
        }
        for number, name in enumerate(methods, start=1)
    ]
    about = {"method": method, "methods": parts, "seconds": seconds} | accuracy_of(found.certified, "certified")
    broken_by = np.where(found.broken, "bounds", "")
    return Proofs(found.certified, AttackReport("images of the bounds", broken_by, found.adversarial, about))


def _save(path: Path, found: Certificates, seconds: float) -> None:
    """Writes it, whole or not at all; images only where they are broken."""
    arrays = found._asdict() | {"adversarial": found.adversarial[found.broken], "seconds": seconds}
    write_atomically(path, as_npz(arrays, compressed=True))


def _load(path: Path, images: np.ndarray) -> tuple[Certificates, float]:
    """Reads what `_save` wrote.

    Raises:
      ValueError: the file is damaged.
    """
    with open_npz(path, "delete it to have it made again") as saved:
        found = Certificates(*(saved[name] for name in Certificates._fields))._replace(adversarial=images.copy())
        found.adversarial[found.broken] = saved["adversarial"]
        return found, float(saved["seconds"])
