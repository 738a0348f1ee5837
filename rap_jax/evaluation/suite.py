"""The attacks of an evaluation and its diagnostics, each with a file of its progress.

A call that was killed goes on from there: inside PGD and AutoAttack, between two networks that images come from.

Transferred images are made by PGD on one network and predicted by another (Ye et al., 2019, Table 6). Where they break
examples that withstood attacks on the network itself, its gradients are masked. What counts in the end is the worst
case over all attacks, for each example.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.integrity import as_npz, open_npz, write_atomically
from rap_jax._runtime.interrupt import Interrupt
from rap_jax._runtime.progress import Progress
from rap_jax._runtime.text import PGD_ANY_STEP
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.config import AttackConfig, EvaluationConfig
from rap_jax.data import padded_batches
from rap_jax.evaluation.accuracy import wilson_interval
from rap_jax.evaluation.auto_attack import AutoAttackResult, Version, auto_attack
from rap_jax.evaluation.auto_attack.programs import AttackPrograms, form_for_attacks
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.evaluation.correctness import Correctness, Examples
from rap_jax.evaluation.diagnostics import MOST_IMAGES, Finding, diagnose
from rap_jax.evaluation.network import AttackedNetwork
from rap_jax.evaluation.predictions import Predictor, Sample
from rap_jax.runs.folder import RunFolder


class Transferred(NamedTuple):
    """What the images of one source did."""

    broken: np.ndarray  # the other network misclassifies the image of some restart, bool [N]
    # That image, of the first such restart; the clean one where there is none, float32 [N, H, W, C].
    adversarial: np.ndarray
    source_right: np.ndarray  # whether the source is correct on the clean image, bool [N]
    # Whether it is on the images of all restarts as well: what PGD leaves of the network that it attacks, bool [N].
    source_robust: np.ndarray


def transfer(
    source: Predictor,
    target: Predictor,
    attack: AttackConfig,
    key: jax.Array,
    on_restart: Callable[[int], None] = lambda done: None,
) -> Transferred:
    """Attacks every image of the sample on `source` by PGD on the cross-entropy and shows the ends to `target`.

    The last step of each restart is shown, whether or not it breaks the source. `on_restart` is called with the number
    of restarts done after each of them.
    """
    one_start = Pgd(source.threat_model, attack.step_size, num_steps=attack.num_steps)
    programs = source.programs.of_attack(one_start, key)
    images = target.sample.images
    source_correct = source.predict(images).correct
    found = Transferred(np.zeros(len(images), bool), images.copy(), source_correct, source_correct.copy())
    for restart in range(attack.num_restarts):
        perturbed = _perturb(source, programs, attack.num_steps, restart)
        new = ~target.predict(perturbed).correct & ~found.broken
        found.adversarial[new] = perturbed[new]
        found.broken[new] = True
        found.source_robust[~source.predict(perturbed).correct] = False
        on_restart(restart + 1)
    return found


def _perturb(source: Predictor, programs: AttackPrograms, num_steps: int, restart: int) -> np.ndarray:
    """Where PGD on the source ends, for all images."""
    sample, ends = source.sample, []
    for numbers, valid in padded_batches(len(sample.labels), source.batch_size):
        restarts = np.full_like(numbers, restart)
        examples = Examples(sample.images[numbers], sample.labels[numbers], numbers, restarts)
        state = programs.fill(None, examples, np.ones(len(numbers), bool))
        for _ in range(num_steps // programs.steps):
            state, _ = programs.advance(state, numbers)
            source.on_batch()
        ends.append(np.asarray(state.current)[valid])
    return np.concatenate(ends)


def save(path: Path, found: Transferred, seconds: float) -> None:
    """Writes it, whole or not at all."""
    write_atomically(path, as_npz({"seconds": seconds} | found._asdict(), compressed=True))


def load(path: Path) -> tuple[Transferred, float]:
    """Reads what `save` wrote, with the seconds.

    Raises:
      ValueError: the file is damaged.
    """
    with open_npz(path, "delete it to have it made again") as found:
        loaded = Transferred(*(found[name] for name in Transferred._fields)), float(found["seconds"])
    return loaded


CLEAN = "clean"


class AttackReport(NamedTuple):
    """What one attack has left."""

    name: str  # `PGD, any step`, `AutoAttack standard`, `transfer from NAME`
    broken_by: np.ndarray  # name of the component that broke the example; empty where none did, str [N]
    adversarial: np.ndarray  # the image by which it did, float32 [N, H, W, C]
    about: dict[str, Any]  # settings, components and time, for results.json
    findings: tuple[Finding, ...] = ()  # reasons to doubt it

    def claimed(self, clean: Correctness) -> np.ndarray:
        """Which examples it says that it broke, bool [N]."""
        return ~np.isin(self.broken_by, ("", CLEAN)) & clean.correct


class WorstCase(NamedTuple):
    """Arrays [N], of all attacks together."""

    # Name of the first component that broke the example; `clean` where no attack was needed; empty where it is robust.
    broken_by: np.ndarray
    adversarial: np.ndarray  # the image by which it did; the clean one where no attack broke it
    predictions: Correctness  # of the adversarial images

    @classmethod
    def begin(cls, images: np.ndarray, clean: Correctness) -> Self:
        """Before any attack."""
        return cls(np.where(clean.correct, "", CLEAN), images, clean)

    @property
    def robust(self) -> np.ndarray:
        """Whether nothing broke the example, bool [N]."""
        return self.broken_by == ""

    def with_attack(self, attack: AttackReport, broken: np.ndarray, again: Correctness) -> Self:
        """Takes in the examples that an attack broke and those before it did not; `again` are its predictions."""
        new = broken & self.robust
        pairs = zip(again, self.predictions, strict=True)
        return self._replace(
            broken_by=np.where(new, attack.broken_by, self.broken_by),
            adversarial=np.where(new[:, None, None, None], attack.adversarial, self.adversarial),
            predictions=Correctness(*(np.where(new, now, before) for now, before in pairs)),
        )

    def to_npz(self, labels: np.ndarray, clean: Correctness, certified: np.ndarray) -> bytes:
        """All that is known of each example, as the bytes of a .npz file; `certified` is bool [N]."""
        arrays = {
            "index": np.arange(len(labels), dtype=np.int32),
            "label": labels,
            "clean_prediction": clean.predicted,
            "clean_margin": clean.margin,
            "broken_by": self.broken_by,
            "certified": certified,
            "prediction": self.predictions.predicted,
            "margin": self.predictions.margin,
            "size": self.predictions.size,
            "adversarial": self.adversarial.astype(np.float32),
        }
        return as_npz(arrays, compressed=True)

    def sizes(self) -> dict[str, float] | None:
        """Norms of the perturbations that broke an example: least, median, largest; None if there is none."""
        found = self.predictions.size[~np.isin(self.broken_by, ("", CLEAN))]
        if not found.size:
            return None
        return {"least": float(found.min()), "median": float(np.median(found)), "largest": float(found.max())}


def accuracy_of(correct: np.ndarray, kind: str = "robust") -> dict[str, Any]:
    """Share, 95% Wilson interval and counts of what is `correct`, bool [N]; keys as in results.json of a run."""
    count, total = int(correct.sum()), len(correct)
    return {
        f"{kind}_accuracy": count / total,
        f"{kind}_interval": list(wilson_interval(count, total)),
        f"{kind}_correct": count,
        "num_examples": total,
    }


def masking_of(worst: WorstCase, attack: dict[str, Any] | None) -> dict[str, Any] | None:
    """How many images random search broke that all other attacks had left; None if there was no search.

    Args:
      attack: what results.json says of AutoAttack; None if it was not run.
    """
    searches = [part["name"] for part in attack["parts"] if part["random_search"]] if attack else []
    if not searches:
        return None
    broken = int(np.isin(worst.broken_by, searches).sum())
    total = len(worst.broken_by)
    return {
        "attacks": searches,
        "broken": broken,
        "left_by_others": broken + int(worst.robust.sum()),
        "share": broken / total,
        "num_examples": total,
    }


Kind = Literal["pgd", "transfer", "auto_attack", "certificates"]
Stream = Literal["predictions", "diagnostics", "pgd", "auto_attack", "transfer"]
_STREAMS: tuple[Stream, ...] = ("predictions", "diagnostics", "pgd", "auto_attack", "transfer")
PARTS = "parts"


class Setup(NamedTuple):
    """What every attack of an evaluation needs."""

    # The one that is attacked, and those that images are made on.
    network: AttackedNetwork
    sources: tuple[AttackedNetwork, ...]
    sample: Sample
    config: EvaluationConfig
    mesh: Mesh
    folder: RunFolder
    interrupt: Interrupt
    batch_size: int  # examples at a time; 0 chooses
    components: Sequence[Component] | None  # attacks in place of those of AutoAttack, or None

    @property
    def threat_model(self) -> ThreatModel:
        """Of all attacks."""
        return ThreatModel(self.config.norm, self.config.epsilon)

    def key(self, stream: Stream) -> jax.Array:
        """The key of one stream of random numbers."""
        return jax.random.fold_in(jax.random.key(self.config.seed), _STREAMS.index(stream))

    def path(self, name: str) -> Path:
        """The file of an attack's progress."""
        return self.folder.path / PARTS / name

    def on_look(self, where: str) -> Callable[[], None]:
        """Stops if a signal has come, and says where."""
        return lambda: self.interrupt.stop_if_requested(where)

    def predictor(self, network: AttackedNetwork, *, randomized: bool = False) -> Predictor:
        """What `network` says of images of the sample."""
        return Predictor(
            network,
            self.sample,
            self.threat_model,
            self.mesh,
            self.key("predictions"),
            randomized=randomized,
            batch_size=self.batch_size,
            on_batch=self.on_look("between two batches"),
        )


def all_attacks(setup: Setup, predictor: Predictor) -> Iterator[tuple[Kind, AttackReport]]:
    """Runs all attacks in turn; `predictor` is that of the network."""
    config = setup.config
    if config.pgd is not None and not config.is_randomized:
        yield "pgd", _pgd(setup, config.pgd)
    for number in range(len(setup.sources)):
        yield "transfer", _transfer(setup, number, predictor)
    if config.auto_attack != "none":
        yield "auto_attack", _auto_attack(setup, config.auto_attack)


def diagnostics(setup: Setup) -> dict[str, Any]:
    """What `rap_jax.evaluation.diagnostics` says, as JSON."""
    name = f"{PARTS}/diagnostics.json"
    found = setup.folder.read_json(name, ("findings", "sweep", "num_images", "seconds"))
    if found is not None:
        return found
    began, look = time.monotonic(), setup.on_look("in the diagnostics")
    network, sample = setup.network, setup.sample
    num_images = min(MOST_IMAGES, len(sample.labels))
    with Progress(f"diagnostics on {num_images} images", 100, unit="percent") as progress:

        def on_radius(done: int, total: int) -> None:
            progress.update(100 * done // total)
            look()

        diagnosis = diagnose(
            form_for_attacks(network.logits_fn, setup.mesh, network.fast_on_cpu),
            sample.images,
            sample.labels,
            threat_model=setup.threat_model,
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


def _pgd(setup: Setup, pgd: AttackConfig) -> AttackReport:
    """PGD on each loss, as the components of an ensemble."""
    losses = setup.config.pgd_losses
    attacks = [Pgd(setup.threat_model, pgd.step_size, loss, pgd.num_steps, pgd.num_restarts) for loss in losses]
    components = [Component(f"pgd-{attack.loss}", attack) for attack in attacks]
    found = _ensemble(setup, "pgd", "standard", components)
    return _as_attack(PGD_ANY_STEP, found, {"attack": dataclasses.asdict(pgd), "losses": list(losses)})


def _auto_attack(setup: Setup, version: Version) -> AttackReport:
    found = _ensemble(setup, "auto_attack", version, setup.components)
    name = f"AutoAttack {version}" if setup.components is None else "given attacks"
    about: dict[str, Any] = {"version": version}
    # Versions that begin with the attacks of `standard` give its accuracy on the way.
    if 0 < found.num_standard < len(found.components):
        first = found.components[: found.num_standard]
        about["standard"] = {"parts": [one.name for one in first], "seconds": sum(one.seconds for one in first)}
    return _as_attack(name, found, about)


def _ensemble(
    setup: Setup, name: Literal["pgd", "auto_attack"], version: Version, components: Sequence[Component] | None
) -> AutoAttackResult:
    return auto_attack(
        setup.network.logits_fn,
        setup.sample.images,
        setup.sample.labels,
        threat_model=setup.threat_model,
        key=setup.key(name),
        version=version,
        components=components,
        batch_size=setup.batch_size or setup.network.batch_size * setup.mesh.size,
        state_path=setup.path(f"{name}.npz"),
        devices=list(setup.mesh.devices.flat),
        diagnostics=False,
        fast_on_cpu=setup.network.fast_on_cpu,
        on_look=setup.on_look("in PGD" if name == "pgd" else "in AutoAttack"),
    )


def _as_attack(name: str, found: AutoAttackResult, about: dict[str, Any]) -> AttackReport:
    components = [component._asdict() for component in found.components]
    about = about | {"parts": components, "seconds": sum(component.seconds for component in found.components)}
    return AttackReport(name, found.broken_by, found.adversarial, about, found.findings)


def _transfer(setup: Setup, number: int, predictor: Predictor) -> AttackReport:
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
    return AttackReport(name, np.where(found.broken, name, ""), found.adversarial, about)
