"""Configs refuse what cannot work, with the name, the value and what was expected."""

import math

import pytest

from rap_jax.config import (
    AttackConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    PruneConfig,
    StageConfig,
    StartConfig,
    TrainConfig,
)

NUMBERS = {
    AttackConfig: {"epsilon": -0.1, "step_size": 0.0, "num_steps": -1, "num_restarts": 0},
    DataConfig: {"validation_fraction": 1.0},
    ModelConfig: {"width": 0},
    OptimizerConfig: {
        "learning_rate": 0.0,
        "warmup_epochs": -1.0,
        "step_factor": 0.0,
        "momentum": 1.0,
        "weight_decay": -1.0,
    },
    OutputConfig: {"log_every_steps": 0, "checkpoint_every_seconds": -1.0},
    PruneConfig: {"rho": 0.0, "rho_growth": 0.9, "dual_interval": 0.0},
}
INFINITE_IS_FINE = {"checkpoint_every_seconds"}
CASES = [(config, name, value) for config, fields in NUMBERS.items() for name, value in fields.items()]


@pytest.mark.parametrize("config,name,value", CASES, ids=lambda case: getattr(case, "__name__", str(case)))
def test_a_number_outside_its_range_is_refused(config: type, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
        config(**{name: value})
    if isinstance(value, float):
        with pytest.raises(ValueError, match=f"{name} is nan; expected"):
            config(**{name: math.nan})
        if name not in INFINITE_IS_FINE:
            with pytest.raises(ValueError, match=f"{name} is inf; expected"):
                config(**{name: math.inf})


@pytest.mark.parametrize(
    "config,given,expected",
    [
        (AttackConfig, {"norm": "l1"}, "norm is 'l1'; expected one of linf, l2"),
        (AttackConfig, {"epsilon": 8.0}, "write 8/255, not 8"),
        (AttackConfig, {"num_restarts": 2, "random_start": False}, "all would be equal"),
        (OptimizerConfig, {"name": "lion"}, "optimizer is 'lion'; expected one of adam, sgd"),
        (OptimizerConfig, {"schedule": "step"}, "at least one epoch when schedule is step"),
        (OptimizerConfig, {"step_epochs": (5.0, 3.0)}, "rising order"),
        (OptimizerConfig, {"step_epochs": (5.0, math.inf)}, "rising order"),
        (PruneConfig, {"budget": "network"}, "budget is 'network'; expected one of layer, global"),
        (PruneConfig, {"budget": "global", "sparsity": (("conv1", 0.5), ("fc1", 0.7))}, "one ratio above 0"),
        (PruneConfig, {"budget": "global", "sparsity": ()}, "one ratio above 0"),
        (
            PruneConfig,
            {"structure": "rows"},
            "structure is 'rows'; expected one of irregular, filter, column, bn_filter",
        ),
        (PruneConfig, {"sparsity": (("conv1", 1.0),)}, "sparsity of conv1 is 1.0"),
        (PruneConfig, {"sparsity": (("", 0.5),)}, "a layer pattern before each ratio"),
        (PruneConfig, {"dual_interval_unit": "days"}, "dual_interval_unit is 'days'"),
        (StageConfig, {"num_epochs": -1}, "num_epochs is -1; expected 1 or more epochs, or 0"),
        (TrainConfig, {"attack": None, "attack_batch_norm": "eval"}, "expected one of running, batch"),
        (TrainConfig, {"attack": None, "mixup_alpha": math.nan}, "mixup_alpha is nan"),
        (StartConfig, {"weights": "initial"}, "weights of the start is 'initial'; expected final"),
        (StartConfig, {"weights": "best"}, "weights of the start is 'best'; expected one of final, initial"),
        (DataConfig, {"dataset": "folder:/a", "image_size": (0, 3)}, r"image_size is \(0, 3\)"),
        (StageConfig, {"num_epochs": 1, "epsilon_ramp_epochs": math.inf}, "epsilon_ramp_epochs is inf"),
    ],
)
def test_a_choice_that_cannot_work_is_refused(config: type, given: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        config(**given)
