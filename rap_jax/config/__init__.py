"""What a run is: frozen dataclasses, checked when they are built.

Everything that stays the same during a run is here, and each function of the package gets only the part it
needs. Images and radii are in [0, 1] (an `epsilon` of 8/255 is 0.0314, not 8). Lengths are in epochs or in steps,
as the name says. A bad value raises a `ValueError` that names the value, what was expected and what to do.

checks      how a bad value is refused
attack      AttackConfig, and those of the cheaper kinds of training
compute     ComputeConfig: how a run computes, not what it is
data        DataConfig, AugmentConfig
model       ModelConfig
optimizer   OptimizerConfig, StageConfig
processes   ProcessConfig: which processes compute as one
prune       PruneConfig
run         TrainConfig, StartConfig, RunConfig, OutputConfig
"""

from rap_jax.config.attack import AttackConfig as AttackConfig
from rap_jax.config.attack import Norm as Norm
from rap_jax.config.attack import fgsm_attack as fgsm_attack
from rap_jax.config.attack import free_attack as free_attack
from rap_jax.config.checks import require as require
from rap_jax.config.compute import ComputeConfig as ComputeConfig
from rap_jax.config.data import AugmentConfig as AugmentConfig
from rap_jax.config.data import DataConfig as DataConfig
from rap_jax.config.model import ModelConfig as ModelConfig
from rap_jax.config.optimizer import OptimizerConfig as OptimizerConfig
from rap_jax.config.optimizer import StageConfig as StageConfig
from rap_jax.config.processes import ProcessConfig as ProcessConfig
from rap_jax.config.prune import STRUCTURES as STRUCTURES
from rap_jax.config.prune import PruneConfig as PruneConfig
from rap_jax.config.run import STAGES as STAGES
from rap_jax.config.run import OutputConfig as OutputConfig
from rap_jax.config.run import RunConfig as RunConfig
from rap_jax.config.run import Stage as Stage
from rap_jax.config.run import StartConfig as StartConfig
from rap_jax.config.run import TrainConfig as TrainConfig
