"""The attacks of an evaluation and its diagnostics, each of which keeps in its own file what it has done.

A call that was killed goes on from there: inside PGD and AutoAttack, between two networks that images come from.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.auto_attack import AutoAttackResult, Version, auto_attack
from rap_jax.auto_attack.versions import Part
from rap_jax.config import AttackConfig
from rap_jax.config.evaluation import EvaluationConfig
from rap_jax.diagnostics import MOST_IMAGES, diagnose
from rap_jax.folder import RunFolder
from rap_jax.interrupt import Interrupt
from rap_jax.progress import Progress
from rap_jax.robustness.network import AttackedNetwork
from rap_jax.robustness.predictor import Predictor
from rap_jax.robustness.sample import Sample
from rap_jax.robustness.transfer import load, save, transfer
from rap_jax.robustness.worst_case import Attack, accuracy_of
from rap_jax.wording import PGD_ANY_STEP

Kind = Literal["pgd", "transfer", "auto_attack"]
Stream = Literal["predictions", "diagnostics", "pgd", "auto_attack", "transfer"]
_STREAMS: tuple[Stream, ...] = ("predictions", "diagnostics", "pgd", "auto_attack", "transfer")
PARTS = "parts"


class Setup(NamedTuple):
    """What all of it needs.

    Attributes:
      network: to be attacked; sources: those that images are made on.
      batch_size: examples at a time; 0 chooses.
      parts: in place of those of AutoAttack, or None.
    """

    network: AttackedNetwork
    sources: tuple[AttackedNetwork, ...]
    sample: Sample
    config: EvaluationConfig
    mesh: Mesh
    folder: RunFolder
    interrupt: Interrupt
    batch_size: int
    parts: Sequence[Part] | None

    def key(self, stream: Stream) -> jax.Array:
        """The key of one stream of random numbers."""
        return jax.random.fold_in(jax.random.key(self.config.seed), _STREAMS.index(stream))

    def path(self, name: str) -> Path:
        """The file of a part."""
        return self.folder.path / PARTS / name

    def on_look(self, where: str) -> Callable[[], None]:
        """Stops if a signal has come, and says where."""
        return lambda: self.interrupt.stop_if_requested(where)

    def predictor(self, network: AttackedNetwork, *, randomized: bool = False) -> Predictor:
        """What `network` says of images of the sample."""
        return Predictor(
            network,
            self.sample,
            self.config,
            self.mesh,
            self.key("predictions"),
            randomized=randomized,
            batch_size=self.batch_size,
            on_batch=self.on_look("between two batches"),
        )


def all_attacks(setup: Setup, predictor: Predictor) -> Iterator[tuple[Kind, Attack]]:
    """Runs all attacks in turn; `predictor` is that of the network."""
    config = setup.config
    if config.pgd is not None and not config.is_randomized:
        yield "pgd", _pgd(setup, config.pgd)
    for number in range(len(setup.sources)):
        yield "transfer", _transfer(setup, number, predictor)
    if config.auto_attack != "none":
        yield "auto_attack", _auto_attack(setup, config.auto_attack)


def diagnostics(setup: Setup) -> dict[str, Any]:
    """What `rap_jax.diagnostics` says, as JSON."""
    name = f"{PARTS}/diagnostics.json"
    found = setup.folder.read_json(name, ("findings", "sweep", "num_images", "seconds"))
    if found is not None:
        return found
    began, look = time.monotonic(), setup.on_look("in the diagnostics")
    sample, config = setup.sample, setup.config
    num_images = min(MOST_IMAGES, len(sample.labels))
    with Progress(f"diagnostics on {num_images} images", 100, unit="percent") as progress:

        def on_radius(done: int, total: int) -> None:
            progress.update(100 * done // total)
            look()

        diagnosis = diagnose(
            setup.network.logits_fn,
            sample.images,
            sample.labels,
            epsilon=config.epsilon,
            norm=config.norm,
            key=setup.key("diagnostics"),
            on_radius=on_radius,
        )
    found = {
        "findings": [finding._asdict() for finding in diagnosis.findings],
        "sweep": [point._asdict() for point in diagnosis.sweep],
        "num_images": num_images,
        "zero_gradients": diagnosis.zero_gradients,
        "predicted": np.asarray(diagnosis.predicted).tolist(),
        "seconds": time.monotonic() - began,
    }
    setup.folder.write_json(name, found)
    return found


def _pgd(setup: Setup, pgd: AttackConfig) -> Attack:
    """PGD on each loss, as the parts of an ensemble."""
    losses = setup.config.pgd_losses
    attacks = [Pgd(pgd.epsilon, pgd.step_size, pgd.norm, loss, pgd.num_steps, pgd.num_restarts) for loss in losses]
    parts = [Part(f"pgd-{attack.loss}", attack) for attack in attacks]
    found = _ensemble(setup, "pgd", "standard", parts)
    return _as_attack(PGD_ANY_STEP, found, {"attack": dataclasses.asdict(pgd), "losses": list(losses)})


def _auto_attack(setup: Setup, version: Version) -> Attack:
    found = _ensemble(setup, "auto_attack", version, setup.parts)
    name = f"AutoAttack {version}" if setup.parts is None else "given attacks"
    return _as_attack(name, found, {"version": version})


def _ensemble(
    setup: Setup, name: Literal["pgd", "auto_attack"], version: Version, parts: Sequence[Part] | None
) -> AutoAttackResult:
    return auto_attack(
        setup.network.logits_fn,
        setup.sample.images,
        setup.sample.labels,
        epsilon=setup.config.epsilon,
        norm=setup.config.norm,
        version=version,
        key=setup.key(name),
        parts=parts,
        batch_size=setup.batch_size or setup.network.batch_size * setup.mesh.size,
        state_path=setup.path(f"{name}.npz"),
        devices=list(setup.mesh.devices.flat),
        diagnostics=False,
        on_look=setup.on_look("in PGD" if name == "pgd" else "in AutoAttack"),
    )


def _as_attack(name: str, found: AutoAttackResult, about: dict[str, Any]) -> Attack:
    parts = [part._asdict() for part in found.parts]
    about = about | {"parts": parts, "seconds": sum(part.seconds for part in found.parts)}
    return Attack(name, found.broken_by, found.adversarial, about, found.findings)


def _transfer(setup: Setup, number: int, predictor: Predictor) -> Attack:
    source, pgd, path = setup.sources[number], setup.config.pgd, setup.path(f"transfer_{number}.npz")
    assert pgd is not None  # `evaluate_robustness` has refused that
    name = f"transfer from {source.name}"
    if not path.exists():
        began, key = time.monotonic(), jax.random.fold_in(setup.key("transfer"), number)
        with Progress(name, pgd.num_restarts, unit="restart") as progress:
            made = transfer(setup.predictor(source), predictor, pgd, key, progress.update)
        save(path, made, time.monotonic() - began)
    found, seconds = load(path)
    of_source = accuracy_of(found.source_right, "natural") | accuracy_of(found.source_robust)
    about = {"checkpoint": source.about["checkpoint"], "source": of_source, "seconds": seconds}
    return Attack(name, np.where(found.broken, name, ""), found.adversarial, about)
