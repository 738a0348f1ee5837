"""What a run is: frozen dataclasses, checked when they are built.

Everything that stays the same during a run is here, and each function of the package gets only the part it
needs. Images and radii are in [0, 1] (an `epsilon` of 8/255 is 0.0314, not 8). Lengths are in epochs or in steps,
as the name says. A bad value raises a `ValueError` that names the value, what was expected and what to do.
Fields written by `setting` are flags of the commands; its text is the help of the flag.

run      RunConfig and its parts: StageConfig, OptimizerConfig, TrainConfig, PruneConfig, StartConfig; OutputConfig
attack   AttackConfig, also for the cheaper kinds of training; EvaluationConfig
data     DataConfig, AugmentConfig, ModelConfig
compute  ComputeConfig, ProcessConfig: how a run computes, not what it is
export   Int8Config, and the formats of files
checks   how a setting is described, and how a bad one is refused
"""

from rap_jax.config.attack import AttackConfig as AttackConfig
from rap_jax.config.attack import EvaluationConfig as EvaluationConfig
from rap_jax.config.attack import Norm as Norm
from rap_jax.config.attack import fgsm_attack as fgsm_attack
from rap_jax.config.attack import free_attack as free_attack
from rap_jax.config.checks import require as require
from rap_jax.config.compute import ComputeConfig as ComputeConfig
from rap_jax.config.compute import ProcessConfig as ProcessConfig
from rap_jax.config.data import AugmentConfig as AugmentConfig
from rap_jax.config.data import DataConfig as DataConfig
from rap_jax.config.data import ModelConfig as ModelConfig
from rap_jax.config.export import FORMATS as FORMATS
from rap_jax.config.export import SUFFIXES as SUFFIXES
from rap_jax.config.export import Int8Config as Int8Config
from rap_jax.config.run import STAGES as STAGES
from rap_jax.config.run import STRUCTURES as STRUCTURES
from rap_jax.config.run import OptimizerConfig as OptimizerConfig
from rap_jax.config.run import OutputConfig as OutputConfig
from rap_jax.config.run import PruneConfig as PruneConfig
from rap_jax.config.run import PruneMethod as PruneMethod
from rap_jax.config.run import RunConfig as RunConfig
from rap_jax.config.run import Stage as Stage
from rap_jax.config.run import StageConfig as StageConfig
from rap_jax.config.run import StartConfig as StartConfig
from rap_jax.config.run import TrainConfig as TrainConfig
