"""The kinds of work that jobs consist of, each as a function that does a unit of it on random images.

    TrainingStep    a step of a stage, with its attack
    Verdicts        PGD on a batch, and the verdict on it, as validation and test take them
    AttackSteps     some steps of a part of AutoAttack, or of PGD, on a batch, as an evaluation takes them

Kinds are hashable: two that are equal take the same time. `training`, `verdicts` and `attack_steps` make them without
what hardly counts: radius and step size; in training also the optimizer, the penalty and the masks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.mesh import DeviceSplit, home, make_mesh, put_split
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.stepwise import StepwiseAttack
from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.config import AttackConfig, OptimizerConfig, TrainConfig
from rap_jax.evaluation.auto_attack.programs import Programs, steps_between_checks
from rap_jax.evaluation.correctness import Examples, SplitPredictor
from rap_jax.models.model import Weights
from rap_jax.reproduce.subject import Subject
from rap_jax.training.optimizer import learning_rate_schedule, make_optimizer
from rap_jax.training.sharded_step import StepKeys, make_train_step
from rap_jax.training.state import init_stage_state
from rap_jax.training.step import first_perturbation

Unit = Callable[[], Any]
# So small that no example is broken, which would end an attack before its time.
_TINY = 1e-6
# Any radius and step size would do: an attack takes the same time with all.
_SOME = 0.1
# Longer attacks are timed on so many of their steps.
_STEPS_OF_VERDICTS, _STEPS_OF_ATTACK = 10, 100


class TrainingStep(NamedTuple):
    """A unit is one step. Attributes: subject; train: how; batch_size: images; num_devices: that share them."""

    subject: Subject
    train: TrainConfig
    batch_size: int
    num_devices: int

    def prepared(self) -> Unit:
        """Ready to be called; the first call compiles."""
        mesh, settings = _mesh(self.num_devices), OptimizerConfig()
        learning_rate = learning_rate_schedule(settings, steps_per_epoch=100, num_steps=100)
        tx, shape = make_optimizer(settings, learning_rate), (self.batch_size, *self.subject.model.input_shape)
        perturbation = first_perturbation(self.train, shape)
        init = jax.jit(lambda start: init_stage_state(start, tx, perturbation), out_shardings=home(mesh))
        state = init(self.subject.weights).train
        step = make_train_step(self.subject.model, tx, self.train, learning_rate, mesh)
        split, indices = _noise(self.subject, self.batch_size, mesh), np.arange(self.batch_size, dtype=np.int32)
        keys = StepKeys(jax.random.key(1), jax.random.key(2))

        def unit() -> None:
            nonlocal state
            state, metrics = step(state, split, indices, keys, False)
            jax.device_get(metrics)

        return unit


class Verdicts(NamedTuple):
    """A unit is a batch, clean and under one restart. Attributes: subject; attack; batch_size: images; num_devices."""

    subject: Subject
    attack: AttackConfig
    batch_size: int
    num_devices: int

    def prepared(self) -> Unit:
        """Ready to be called; the first call compiles."""
        mesh = _mesh(self.num_devices)
        predictor = SplitPredictor(self.subject.model, self.attack, mesh)
        inputs = predictor.open(self.subject.weights, _noise(self.subject, self.batch_size, mesh), jax.random.key(0))
        numbers = np.arange(self.batch_size, dtype=np.int32)
        return lambda: (predictor.clean(inputs, numbers), predictor.attacked(inputs, numbers, np.zeros_like(numbers)))


class AttackSteps(NamedTuple):
    """A unit is `steps` steps of a batch. Attributes: subject; attack; batch_size: images; num_devices."""

    subject: Subject
    attack: StepwiseAttack
    batch_size: int
    num_devices: int

    @property
    def steps(self) -> int:
        """Of a unit."""
        return steps_between_checks(self.attack.num_steps)

    def prepared(self) -> Unit:
        """Ready to be called; the first call compiles."""
        model, mesh = self.subject.model, _mesh(self.num_devices)
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, self.subject.weights))
        weights_of = lambda captured: Weights(*jax.tree.unflatten(tree, captured))
        logits_fn = lambda captured, images: model.apply(*weights_of(captured), images, False)[0]
        programs = Programs(logits_fn, leaves, mesh, threat_model=ThreatModel("linf", _TINY), randomized=False)
        images = np.asarray(_noise(self.subject, self.batch_size, mesh).images, np.float32) / 255
        labels = np.asarray(jax.jit(logits_fn)(leaves, images).argmax(-1), np.int32)
        numbers = np.arange(self.batch_size, dtype=np.int32)
        of_attack = programs.of_attack(self.attack, jax.random.key(0))
        examples = Examples(images, labels, numbers, np.zeros_like(numbers))
        state = of_attack.fill(None, examples, np.ones(self.batch_size, bool))
        return lambda: of_attack.advance(state, numbers)


Kind = TrainingStep | Verdicts | AttackSteps


def training(subject: Subject, train: TrainConfig, batch_size: int, num_devices: int) -> TrainingStep:
    """The kind of a stage's steps."""
    attack = train.attack and dataclasses.replace(train.attack, epsilon=_SOME, step_size=_SOME)
    return TrainingStep(subject, dataclasses.replace(train, attack=attack), batch_size, num_devices)


def verdicts(subject: Subject, attack: AttackConfig, batch_size: int, num_devices: int) -> tuple[Verdicts, float]:
    """The kind of a restart of an attack, and how many units it is: one of few steps is timed, with as many passes."""
    num_steps = min(attack.num_steps, _STEPS_OF_VERDICTS)
    short = AttackConfig(attack.norm, _SOME, _SOME, num_steps, 1, attack.random_start)
    return Verdicts(subject, short, batch_size, num_devices), (attack.num_steps + 1) / (num_steps + 1)


def attack_steps(subject: Subject, attack: Any, batch_size: int, num_devices: int) -> tuple[AttackSteps, float]:
    """The kind of an attack's steps, and how many units one start is."""
    num_steps = min(attack.num_steps, _STEPS_OF_ATTACK)
    tiny = ThreatModel(attack.threat_model.norm, _TINY)
    short = dataclasses.replace(attack, threat_model=tiny, num_steps=num_steps, num_restarts=1)
    if isinstance(short, Pgd):  # its losses take the same time
        short = dataclasses.replace(short, step_size=_TINY, loss="ce")
    kind = AttackSteps(subject, short, batch_size, num_devices)
    return kind, attack.num_steps / kind.steps


def _mesh(num_devices: int) -> Mesh:
    return make_mesh(jax.devices()[:num_devices])


def _noise(subject: Subject, num_images: int, mesh: Mesh) -> DeviceSplit:
    generator, model = np.random.default_rng(0), subject.model
    images = generator.integers(0, 256, (num_images, *model.input_shape), np.uint8)
    return put_split(images, generator.integers(0, model.num_classes, num_images, np.int32), mesh)
