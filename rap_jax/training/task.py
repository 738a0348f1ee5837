"""What the stages of a run have in common, and the training that a stage asks for.

A run is a generator (`Training`): it yields a `StageTask` where a stage has steps left, and is sent the `Reached` that
the training ends with. So the code of a run is the same whether it trains alone (`rap_jax.training.stage.run_alone`) or
together with the runs of other seeds (`rap_jax.training.seeds`).
"""

import dataclasses
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

import chex
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rap_jax._runtime.interrupt import Interrupt
from rap_jax._runtime.mesh import DeviceSplit
from rap_jax.config import AttackConfig, OutputConfig, RunConfig
from rap_jax.evaluation.accuracy import Evaluator
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.pruning.specs import Specs
from rap_jax.runs.folder import RunFolder
from rap_jax.training.input import TrainInput
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.state import StageState

T = TypeVar("T")


class Teacher(NamedTuple):
    """The dense network that a distillation learns from."""

    model: Model
    weights: Weights


@dataclasses.dataclass(frozen=True)
class StageContext:
    """The settings, the network, the data and the folder of a run, shared by its stages."""

    config: RunConfig
    output: OutputConfig
    model: Model
    mesh: Mesh
    train: TrainInput
    validation: DeviceSplit
    # Of a network and an attack. One function for equal arguments, so that seeds share what is compiled.
    evaluator: Callable[[Model, AttackConfig], Evaluator]
    selector: Callable[[Model], Evaluator]  # of the validation that chooses an epoch, likewise
    remake: Callable[..., Model]  # the network with other `features`, likewise
    specs: Specs
    folder: RunFolder
    interrupt: Interrupt
    teacher: Teacher | None = None  # in the stages that learn from one

    @property
    def teacher_model(self) -> Model | None:
        """The network of the teacher, if there is one."""
        return None if self.teacher is None else self.teacher.model

    @property
    def teacher_weights(self) -> chex.ArrayTree:
        """Its weights; () without."""
        return () if self.teacher is None else self.teacher.weights


class StageResult(NamedTuple):
    """The end of a stage."""

    weights: Weights  # for the next stage
    step: int  # updates after which they were reached
    seconds: float  # spent, over all calls


class Reached(NamedTuple):
    """A stage under way."""

    step: int  # updates done
    state: StageState
    seconds: float  # spent so far, over all calls


class StageTask(NamedTuple):
    """The training that is left of a stage, 1 step or more."""

    plan: StagePlan
    context: StageContext
    start: Weights
    masks: chex.ArrayTree | None
    reached: Reached | None  # the last checkpoint, if there is one
    manager: ocp.CheckpointManager


Training = Generator[StageTask, Reached, T]
