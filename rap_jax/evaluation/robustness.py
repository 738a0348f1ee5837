"""How robust a network is: clean accuracy, PGD, AutoAttack, transferred images, and whether to believe it.

    clean  ->  diagnostics  ->  certificates  ->  PGD  ->  transfer  ->  AutoAttack  ->  worst case, per example

An attack says which examples it has broken, and by which image. All these images are predicted once more, by one
program, and their distance and range are checked; what does not hold up is not counted. So the numbers in results.json
are those that anybody finds in examples.npz. Robust accuracy lies between the share of images that are certified and
the share that no attack broke; an image that is certified and broken stops the evaluation.

What is done lies in the folder of the evaluation, and the same call goes on from there:

config.json      what decides the numbers; another evaluation is refused
clean.npz        margins of the clean images, by which the network is recognised
parts/                what the attacks have done so far, each in its own file
results.json     all that was found, written once at the end
examples.npz     the same for each example
report.md, *.png"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rap_jax._runtime.environment import device_in_words, versions
from rap_jax._runtime.functions import fingerprint
from rap_jax._runtime.integrity import as_npz, open_npz, write_atomically
from rap_jax._runtime.interrupt import catch_signals
from rap_jax._runtime.mesh import make_mesh
from rap_jax.config import EvaluationConfig, require
from rap_jax.config.attack import check_radius
from rap_jax.data import Dataset
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.evaluation.certificates import check_unbroken
from rap_jax.evaluation.certified import certificates, check_certifiable
from rap_jax.evaluation.correctness import Correctness
from rap_jax.evaluation.diagnostics import Finding, check_confirmed, check_data, check_worst_case
from rap_jax.evaluation.network import AttackedNetwork, check_finite, check_fit
from rap_jax.evaluation.predictions import Predictor, Sample, take_sample
from rap_jax.evaluation.report import write_robustness_report
from rap_jax.evaluation.suite import (
    PARTS,
    Setup,
    WorstCase,
    accuracy_of,
    all_attacks,
    diagnostics,
    masking_of,
)
from rap_jax.runs.folder import open_run_folder

_RESULT_KEYS = ("name", "network", "data", "config", "clean", "pgd", "auto_attack", "transfer", "combined", "findings")
# Two devices differ by rounding; two networks differ by more.
_SAME_MARGIN = 1e-2


def evaluate_robustness(
    network: AttackedNetwork,
    dataset: Dataset,
    config: EvaluationConfig,
    out_dir: str | Path,
    *,
    sources: Sequence[AttackedNetwork] = (),
    batch_size: int = 0,
    command: str = "",
    devices: list[jax.Device] | None = None,
    components: Sequence[Component] | None = None,
) -> dict[str, Any]:
    """Runs, or goes on with, an evaluation in `out_dir` and returns what its results.json holds.

    Args:
      network: to be attacked.
      dataset: whose `config.split` is attacked.
      config: everything else that decides the numbers.
      out_dir: folder of the evaluation.
      sources: networks on which PGD makes images that are shown to `network`.
      batch_size: examples that are attacked at a time, over all devices; 0 chooses. Changes results by rounding alone.
      command: how to start this evaluation again, for the report.
      devices: those to run on, None for all.
      components: attacks that run in place of those of the version of AutoAttack that `config` names.

    Raises:
      ValueError: networks and data that do not fit, settings that cannot work, a folder with another evaluation or of
        another network, damaged files, or logits that are NaN.
      Interrupted: a signal came; the progress is saved.
    """
    require(batch_size >= 0, "attack_batch_size", batch_size, "0, which chooses, or 1 or more images")
    sample = take_sample(dataset, config.split, config.num_images)
    _check(network, sources, sample, config)
    identity = _identity(network, sources, sample, config, components)
    with open_run_folder(Path(out_dir), identity) as folder, catch_signals() as interrupt:
        (folder.path / PARTS).mkdir(exist_ok=True)
        mesh = make_mesh(devices)
        setup = Setup(network, tuple(sources), sample, config, mesh, folder, interrupt, batch_size, components)
        predictor = setup.predictor(network, randomized=config.is_randomized)
        clean = _clean(setup, predictor)
        results = folder.read_json("results.json", _RESULT_KEYS)
        if results is None:
            about = _about(setup) | {"command": command, "out_dir": str(out_dir)}
            results = about | _attack(setup, predictor, clean)
            folder.write_json("results.json", results)
        if not (folder.path / "report.md").exists():
            write_robustness_report(folder.path, sample)
    return results


def _check(
    network: AttackedNetwork, sources: Sequence[AttackedNetwork], sample: Sample, config: EvaluationConfig
) -> None:
    shape, classes = sample.images.shape[1:], sample.num_classes
    check_radius(config.norm, config.epsilon, sample.images[0].size)
    for one in (network, *sources):
        randomized = config.is_randomized and one is network
        check_fit(one, shape, classes, randomized=randomized)
        check_finite(one, sample.images, sample.labels, randomized=randomized)
    if config.certify != "none":
        check_certifiable(network, shape)
    hint = "1 or more steps: PGD makes the images that are transferred"
    require(not sources or config.pgd is not None, "pgd_num_steps", config.pgd_num_steps, hint)


def _identity(
    network: AttackedNetwork,
    sources: Sequence[AttackedNetwork],
    sample: Sample,
    config: EvaluationConfig,
    components: Sequence[Component] | None,
) -> dict[str, Any]:
    """What must be the same for an evaluation to be gone on with; by content, not by place."""
    return {
        "evaluation": dataclasses.asdict(config),
        "network": _network_identity(network, sample, randomized=config.is_randomized),
        "transfer_from": [_network_identity(source, sample, randomized=False) for source in sources],
        "images": sample.about["attacked_sha256"],
        "parts": [repr(component) for component in components or ()],
    }


def _network_identity(network: AttackedNetwork, sample: Sample, *, randomized: bool) -> dict[str, Any]:
    """By content; a function of the user's own has no file, so what it computes is its content."""
    if network.about["kind"] != "function":
        return network.identity
    draw = (jax.random.key(0),) if randomized else ()
    return network.identity | {"program and weights": fingerprint(network.logits_fn, sample.images.shape[1:], *draw)}


def _about(setup: Setup) -> dict[str, Any]:
    """The part of results.json that says what was evaluated, on what."""
    return {
        "name": setup.network.name,
        "images": setup.sample.words,
        "network": setup.network.about,
        "sources": [source.about for source in setup.sources],
        "data": setup.sample.about,
        "config": dataclasses.asdict(setup.config) | {"pgd_losses": list(setup.config.pgd_losses)},  # as JSON has it
        "versions": versions(),
        "device": device_in_words(setup.mesh),
    }


def _clean(setup: Setup, predictor: Predictor) -> Correctness:
    """The clean images, and whether the network is the one that this folder began with."""
    clean, path = predictor.predict(setup.sample.images), setup.folder.path / "clean.npz"
    if not path.exists():
        write_atomically(path, as_npz({"margin": clean.margin}))
    elif not setup.config.is_randomized:
        with open_npz(path, "delete it to have it made again") as found:
            before = found["margin"]
        if before.shape != clean.margin.shape or not np.allclose(before, clean.margin, _SAME_MARGIN, _SAME_MARGIN):
            raise ValueError(
                f"{setup.folder.path} holds an evaluation of another network: {setup.network.name} gives other "
                f"logits now than it did then. Choose another --out_dir, or compute as then: another "
                f"JAX_DEFAULT_MATMUL_PRECISION changes logits too."
            )
    return clean


def _attack(setup: Setup, predictor: Predictor, clean: Correctness) -> dict[str, Any]:
    """The part of results.json that says what was found; writes examples.npz."""
    randomized = setup.config.is_randomized
    findings = check_data(setup.network.run, setup.sample.about)
    diagnosis = None if randomized else diagnostics(setup)
    findings += [Finding(**finding) for finding in diagnosis["findings"]] if diagnosis else []
    worst, found = WorstCase.begin(setup.sample.images, clean), dict[str, list[dict[str, Any]]]()
    proofs = [] if setup.config.certify == "none" else [certificates(setup)]
    certified = proofs[0].certified if proofs else np.zeros(len(clean.correct), bool)
    of_bounds = [("certificates", proof.attack) for proof in proofs]
    for kind, attack in itertools.chain(all_attacks(setup, predictor), of_bounds):
        again = predictor.predict(attack.adversarial)
        claimed = attack.claimed(clean)
        # A randomised network may answer otherwise the next time; its images were predicted when they were found.
        broken = claimed if randomized else claimed & ~again.correct
        findings += [*attack.findings, *check_confirmed(attack.name, claimed, broken)]
        about = {"name": attack.name} | attack.about | accuracy_of(clean.correct & ~broken)
        if "standard" in about:
            of_standard = broken & np.isin(attack.broken_by, about["standard"]["parts"])
            about["standard"] |= accuracy_of(clean.correct & ~of_standard)
        found.setdefault(kind, []).append(about)
        worst = worst.with_attack(attack, broken, again)
        check_unbroken(certified, ~worst.robust, attack.name)
    first = {kind: attacks[0] for kind, attacks in found.items()}
    findings += check_worst_case(first.get("auto_attack"), worst.robust) if setup.components is None else []
    write_atomically(setup.folder.path / "examples.npz", worst.to_npz(setup.sample.labels, clean, certified))
    # Over all calls; the time of the predictions is not counted.
    seconds = {kind: sum(attack["seconds"] for attack in attacks) for kind, attacks in found.items()}
    seconds |= {"diagnostics": diagnosis["seconds"]} if diagnosis else {}
    return {
        "clean": accuracy_of(clean.correct, "natural"),
        "certificates": first.get("certificates"),
        "pgd": first.get("pgd"),
        "auto_attack": first.get("auto_attack"),
        "transfer": found.get("transfer", []),
        "combined": accuracy_of(worst.robust),
        "masking": masking_of(worst, first.get("auto_attack")),
        "perturbation_sizes": worst.sizes(),
        "diagnostics": diagnosis,
        "findings": [finding._asdict() for finding in findings],
        "seconds": seconds | {"total": sum(seconds.values())},
    }
