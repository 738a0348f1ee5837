"""Configs refuse what cannot work, with the name, the value and what was expected."""

import dataclasses
import itertools
import json
import math

import pytest

from rap_jax._runtime.integrity import flatten
from rap_jax.config import (
    AttackConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    PruneConfig,
    RunConfig,
    StageConfig,
    StartConfig,
    TrainConfig,
    free_attack,
)
from rap_jax.config.checks import ADDED_SETTINGS, complete

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
        (OptimizerConfig, {"num_cycles": 0}, "num_cycles is 0; expected 1 or more cycles"),
        (
            OptimizerConfig,
            {"schedule": "constant", "num_cycles": 2},
            "num_cycles is 2; expected 1 with a constant schedule",
        ),
        (AttackConfig, {"step_schedule": "linear"}, "step_schedule is 'linear'; expected one of constant, geometric"),
        (
            TrainConfig,
            {"attack": AttackConfig(), "train_leaky_slope": 1.5},
            "train_leaky_slope is 1.5; expected a share",
        ),
        (TrainConfig, {"attack": None, "train_leaky_slope": 0.1}, "train_leaky_slope is 0.1; expected 0 in natural"),
        (
            TrainConfig,
            {"attack": None, "ema_decay": 1.0},
            "ema_decay is 1.0; expected 0 for no mean, or a number below 1",
        ),
        (TrainConfig, {"attack": None, "awp_gamma": -0.1}, "awp_gamma is -0.1; expected 0 or more"),
        (
            TrainConfig,
            {"attack": free_attack("linf", 0.1), "free_replays": 2, "awp_gamma": 0.1},
            "awp_gamma is 0.1; expected 0 in free training",
        ),
        (TrainConfig, {"attack": None, "distillation": "rslad"}, "distillation is 'rslad'; expected none in natural"),
        (
            TrainConfig,
            {"attack": free_attack("linf", 0.1), "free_replays": 2, "distillation": "rslad"},
            "distillation is 'rslad'; expected none in natural and in free training",
        ),
        (
            RunConfig,
            {"train": TrainConfig(AttackConfig(), distillation="rslad"), "pretrain": StageConfig(0)},
            "distillation is 'rslad'; expected none, unless there is a pretrain stage",
        ),
        (
            RunConfig,
            {
                "train": TrainConfig(AttackConfig(), distillation="rslad"),
                "pretrain": StageConfig(0),
                "start": StartConfig("/run", "initial"),
            },
            "distillation is 'rslad'; expected none, unless there is a pretrain stage",
        ),
        (OptimizerConfig, {"schedule": "step"}, "at least one epoch when schedule is step"),
        (OptimizerConfig, {"step_epochs": (5.0, 3.0)}, "rising order"),
        (OptimizerConfig, {"step_epochs": (5.0, math.inf)}, "rising order"),
        (PruneConfig, {"budget": "network"}, "budget is 'network'; expected one of layer, global"),
        (PruneConfig, {"budget": "global", "sparsity": (("conv1", 0.5), ("fc1", 0.7))}, "one ratio above 0"),
        (PruneConfig, {"budget": "global", "sparsity": ()}, "one ratio above 0"),
        (
            PruneConfig,
            {"budget": "lamp", "sparsity": (("conv1", 0.5), ("fc1", 0.7))},
            "above 0 for all layers under budget",
        ),
        (
            PruneConfig,
            {"budget_of": "multiply_adds"},
            "budget_of is 'multiply_adds'; expected parameters with budget layer",
        ),
        (PruneConfig, {"budget": "global", "budget_of": "multiply_adds"}, "expected parameters with budget global"),
        (
            PruneConfig,
            {"structure": "rows"},
            "structure is 'rows'; expected one of irregular, filter, column, bn_filter",
        ),
        (
            PruneConfig,
            {"structure": "column", "merge_duplicates": True},
            "merge_duplicates is True; expected False with",
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
        (PruneConfig, {"method": "harp"}, "budget is 'layer'; expected global with prune_method harp"),
        (PruneConfig, {"method": "flyingbird"}, "structure is 'filter'; expected irregular or column"),
        (PruneConfig, {"method": "hydra", "merge_duplicates": True}, "merge_duplicates is True; expected False"),
        (PruneConfig, {"method": "random", "reset_learning_rate": True}, "reset_learning_rate is True; expected False"),
        (PruneConfig, {"harp_growth": 0.0}, "harp_growth is 0.0; expected a number above 0"),
        (PruneConfig, {"twinrep_cut": 1.0}, "twinrep_cut is 1.0; expected a share"),
        (PruneConfig, {"flyingbird_interval": 0.0}, "flyingbird_interval is 0.0"),
        (PruneConfig, {"flyingbird_share": 0.0}, "flyingbird_share is 0.0; expected a share"),
        (
            RunConfig,
            {"prune": PruneConfig(method="hydra"), "admm": StageConfig(0)},
            "num_epochs of admm is 0; expected 1 or more .--admm_epochs. with prune_method hydra",
        ),
    ],
)
def test_a_choice_that_cannot_work_is_refused(config: type, given: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        config(**given)


def test_geometric_steps_fall_to_a_tenth_by_equal_factors() -> None:
    sizes = AttackConfig(step_size=0.3, num_steps=10, step_schedule="geometric").step_sizes
    assert isinstance(sizes, tuple) and sizes[0] == 0.3 and sizes[-1] == pytest.approx(0.03)
    assert [later / size for size, later in itertools.pairwise(sizes)] == pytest.approx([0.1 ** (1 / 9)] * 9)
    assert AttackConfig(step_size=0.3).step_sizes == 0.3
    assert AttackConfig(step_size=0.3, num_steps=1, step_schedule="geometric").step_sizes == 0.3


def test_settings_that_came_later_are_off_where_they_are_absent() -> None:
    evaluation = {"evaluation": dataclasses.asdict(EvaluationConfig(0.3))}
    now = json.loads(json.dumps(dataclasses.asdict(RunConfig()) | evaluation))
    names = dict(flatten(now))
    added = {name: value for name, value in names.items() if name.rpartition(".")[2] in ADDED_SETTINGS}
    assert {name.rpartition(".")[2] for name in added} == set(ADDED_SETTINGS)
    assert added == {name: ADDED_SETTINGS[name.rpartition(".")[2]] for name in added}, "the defaults"
    before = json.loads(json.dumps(now))
    del before["admm"]["optimizer"]["num_cycles"], before["train"]["attack"]["step_schedule"]
    del before["evaluation"]["certify"]
    assert complete(before, now) == now
    del before["admm"]["optimizer"]["momentum"]
    assert "momentum" not in complete(before, now)["admm"]["optimizer"]
    before["train"]["attack"] = None
    assert complete(before, now)["train"]["attack"] is None
