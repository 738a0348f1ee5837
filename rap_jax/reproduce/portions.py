"""What a job consists of, counted: how many units of which kind of work.

A training job: the steps of its stages, validation after each epoch, the report's attack on validation after each stage
and on the test set. An evaluation: every attack on every image to its end, as if nothing were ever broken.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

from rap_jax._runtime.devices import choose_num_cpu_devices, usable_cores
from rap_jax._runtime.mesh import MOST_IMAGES
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.stepwise import StepwiseAttack
from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.config import STAGES, AttackConfig, ComputeConfig, DataConfig, RunConfig, require
from rap_jax.config.evaluation import EvaluationConfig
from rap_jax.evaluation.auto_attack.versions import components_of
from rap_jax.evaluation.diagnostics import MOST_IMAGES as DIAGNOSED_IMAGES
from rap_jax.evaluation.sweep import NUM_STEPS
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.sizes import sizes_of
from rap_jax.reproduce.subject import Networks, Subject
from rap_jax.reproduce.work import Kind, attack_steps, training, verdicts
from rap_jax.training.optimizer import stage_length

_MOST_RADII = 9  # of the sweep of the diagnostics


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the flags of a job say, as far as its time depends on it.

    Attributes:
      data: which images.
      compute: how it computes.
      run: of a training job; None for an evaluation.
      evaluation: of an evaluation; None for a training job.
    """

    data: DataConfig
    compute: ComputeConfig
    run: RunConfig | None = None
    evaluation: EvaluationConfig | None = None


class Portion(NamedTuple):
    """A part of a job. Attributes: what: in words; kind: of work; units: of it, also a share of one."""

    what: str
    kind: Kind
    units: float


class Counter:
    """Counts the jobs of a plan.

    Args:
      settings: job name -> what its flags say, of all jobs, those too that are done.
    """

    def __init__(self, settings: Mapping[str, Settings]):
        self._settings = settings
        self._networks: dict[str, Networks] = {}

    def portions(self, job: Job, is_done: Callable[[str], bool] = lambda part: False) -> list[Portion]:
        """What is left of a job.

        Args:
          job: to be counted.
          is_done: of a part of a training job, `start`, a stage or `test`. An evaluation is always counted whole.

        Raises:
          ValueError: a length that cannot be, data of unknown size, or layers that are not there.
        """
        return list(self._of_training(job, is_done) if self._settings[job.name].run else self._of_evaluation(job))

    def networks(self, job: Job) -> Networks:
        """Of a training job."""
        if job.name not in self._networks:
            settings, start = self._settings[job.name], dict(job.inputs).get("start_run")
            before = self.networks(start[0]) if start else None
            made = Networks(_run_of(settings), sizes_of(settings.data), settings.compute.implementation, before)
            self._networks[job.name] = made
        return self._networks[job.name]

    def _of_training(self, job: Job, is_done: Callable[[str], bool]) -> Iterator[Portion]:
        settings, networks = self._settings[job.name], self.networks(job)
        config, sizes = _run_of(settings), sizes_of(settings.data)
        num_devices = _num_devices(settings.compute.num_cpu_devices, config.batch_size)
        judged = functools.partial(_judged, config=config, num_devices=num_devices)
        report = functools.partial(judged, subject=networks.whole, attack=config.report_attack)
        stages = [stage for stage in STAGES if config.stage(stage).num_epochs]
        for part in [*(["start"] if config.start.run_dir else []), *stages]:
            if is_done(part):
                continue
            if part in stages:
                subject, length = networks.of_stage(part), stage_length(config, part, sizes.train)
                step = training(subject, config.train, config.batch_size, num_devices)
                yield Portion(part, step, length.stage)
                epochs = config.stage(part).num_epochs
                yield judged(f"{part}: validation", sizes.validation, epochs, subject, config.select_attack)
            times = 2 if networks.is_cut and part != "retrain" else 1  # before and after a cut
            yield report(f"{part}: report on validation", sizes.validation, times)
        if not is_done("test"):
            yield report("test", sizes.test, 1)

    def _of_evaluation(self, job: Job) -> Iterator[Portion]:
        settings, inputs = self._settings[job.name], dict(job.inputs)
        config, sizes = settings.evaluation, sizes_of(settings.data)
        assert config is not None
        require(not config.is_randomized, "auto_attack", config.auto_attack, "standard, plus or none for a run")
        subject = self.networks(inputs["checkpoint"][0]).attacked
        split = {"test": sizes.test, "validation": sizes.validation}[config.split]
        num_images = min(config.num_images or split, split)
        num_devices = _num_devices(settings.compute.num_cpu_devices, 64 * usable_cores())
        attacked = functools.partial(_attacked, num_images=num_images, num_devices=num_devices)
        yield _diagnosed(subject, min(num_images, DIAGNOSED_IMAGES), num_devices)
        pgd = config.pgd
        if pgd is not None:
            make = functools.partial(Pgd, ThreatModel(pgd.norm, pgd.epsilon), pgd.step_size, num_steps=pgd.num_steps)
            for loss in config.pgd_losses:
                yield attacked(f"pgd-{loss}", subject, make(loss=loss, num_restarts=pgd.num_restarts))
            for source in inputs.get("transfer_from", ()):
                made = make(num_restarts=pgd.num_restarts)
                yield attacked(f"images of {source.name}", self.networks(source).attacked, made)
        if config.auto_attack != "none":
            version, classes = config.auto_attack, sizes.num_classes
            threat_model = ThreatModel(config.norm, config.epsilon)
            for component in components_of(version, threat_model=threat_model, num_classes=classes):
                yield attacked(component.name, subject, component.attack)


def _run_of(settings: Settings) -> RunConfig:
    assert settings.run is not None
    return settings.run


def _judged(
    what: str,
    num_images: int,
    times: int,
    subject: Subject,
    attack: AttackConfig,
    *,
    config: RunConfig,
    num_devices: int,
) -> Portion:
    """An attack on images, `times` times, to the end of all restarts."""
    size = _rounded(min(config.eval_batch_size, num_images), num_devices)
    batch_size = _timed_batch(size, num_devices)
    kind, units = verdicts(subject, attack, batch_size, num_devices)
    images = math.ceil(num_images / size) * size
    return Portion(what, kind, units * times * attack.num_restarts * images / batch_size)


def _attacked(what: str, subject: Subject, attack: StepwiseAttack, *, num_images: int, num_devices: int) -> Portion:
    """All starts of an attack on images."""
    batch_size = _timed_batch(_rounded(num_images, num_devices), num_devices)
    kind, units = attack_steps(subject, attack, batch_size, num_devices)
    return Portion(what, kind, units * attack.num_starts * num_images / batch_size)


def _diagnosed(subject: Subject, num_images: int, num_devices: int) -> Portion:
    """PGD at each radius of a sweep, which one device does alone."""
    batch_size = _timed_batch(_rounded(num_images, num_devices), num_devices)
    kind, units = verdicts(subject, AttackConfig(num_steps=NUM_STEPS), batch_size, num_devices)
    return Portion("diagnostics", kind, units * _MOST_RADII * num_devices * num_images / batch_size)


def _timed_batch(size: int, num_devices: int) -> int:
    """Images that stand for a batch of a size: on a CPU those that are computed at a time."""
    most = num_devices * (MOST_IMAGES if jax.default_backend() == "cpu" else 512)
    return min(size, most)


def _rounded(size: int, num_devices: int) -> int:
    return math.ceil(size / num_devices) * num_devices


def _num_devices(wanted: int, batch_size: int) -> int:
    """Those that the job will have, but no more than this process has."""
    if jax.default_backend() != "cpu":
        return jax.device_count()
    return min(wanted or choose_num_cpu_devices(batch_size, usable_cores()), jax.device_count())
