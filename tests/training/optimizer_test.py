"""Learning-rate schedules and the order of the chain."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.config import OptimizerConfig, PruneConfig, RunConfig, StageConfig
from rap_jax.pruning.admm import add_admm_penalty, find_admm_state
from rap_jax.pruning.projections import Irregular
from rap_jax.training.optimizer import StagePlan, learning_rate_schedule, make_optimizer, make_penalty, plan_stage

pytestmark = pytest.mark.usefixtures("optimised")


def rates(config: OptimizerConfig, steps: list[int], num_steps: int = 100, reset_every: int = 0) -> list[float]:
    schedule = learning_rate_schedule(config, steps_per_epoch=10, num_steps=num_steps, reset_every=reset_every)
    return [float(schedule(step)) for step in steps]


def test_dual_steps_come_after_each_interval_and_never_first() -> None:
    plan = StagePlan("admm", 9, 3, lambda step: 0.1, dual_interval=2)
    assert [step for step in range(9) if plan.is_dual_step(step)] == [2, 4, 6, 8]
    assert not any(StagePlan("pretrain", 9, 3, lambda step: 0.1).is_dual_step(step) for step in range(9))


def test_an_exchange_that_never_comes_is_refused() -> None:
    prune = PruneConfig("irregular", method="flyingbird", flyingbird_interval=1.0)
    config = RunConfig(prune=prune, admm=StageConfig(1), batch_size=10)
    with pytest.raises(ValueError, match="flyingbird_interval is 1.0; expected at most half of the 1 epochs"):
        plan_stage(config, "admm", 100)
    assert plan_stage(dataclasses.replace(config, admm=StageConfig(2)), "admm", 100).dual_interval == 0


def test_schedules() -> None:
    assert rates(OptimizerConfig(schedule="constant", learning_rate=0.5), [0, 99]) == [0.5, 0.5]
    cosine = rates(OptimizerConfig(schedule="cosine", learning_rate=0.5), [0, 50, 100])
    assert cosine == pytest.approx([0.5, 0.25, 0.0], abs=1e-7)
    config = OptimizerConfig(schedule="step", learning_rate=1.0, step_epochs=(3, 6), step_factor=0.1)
    assert rates(config, [29, 30, 59, 60]) == pytest.approx([1.0, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_comes_first_and_keeps_the_rest_in_place(schedule: str) -> None:
    config = OptimizerConfig(schedule=schedule, learning_rate=1.0, warmup_epochs=2, step_epochs=(5,))
    found = rates(config, [0, 10, 20, 49, 50, 100])
    assert found[:3] == pytest.approx([0.0, 0.5, 1.0])
    if schedule == "step":
        assert found[3:5] == pytest.approx([1.0, 0.1])
    if schedule == "cosine":
        assert found[-1] == pytest.approx(0.0, abs=1e-7)


def test_a_reset_begins_the_schedule_anew() -> None:
    # The authors' ADMM stage: back to the base rate at each dual step, divided by 10 after each third between two.
    thirds = OptimizerConfig(schedule="step", learning_rate=1.0, step_epochs=(1, 2))
    found = rates(thirds, [0, 9, 10, 20, 29, 30, 40, 99], reset_every=30)
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.01, 1.0, 0.1, 1.0])
    cosine = OptimizerConfig(schedule="cosine", learning_rate=1.0, warmup_epochs=1)
    assert rates(cosine, [0, 10, 20, 30, 35, 60], reset_every=30) == pytest.approx([0, 1, 0.5, 0, 0.5, 0], abs=1e-6)
    with pytest.raises(ValueError, match=r"warmup_epochs is 3.*has 30 steps"):
        rates(OptimizerConfig(warmup_epochs=3), [0], reset_every=30)


def test_cycles_share_the_steps_of_a_stage() -> None:
    stage = StageConfig(num_epochs=5, optimizer=OptimizerConfig(learning_rate=1.0, num_cycles=2))
    plan = plan_stage(RunConfig(pretrain=stage, batch_size=10), "pretrain", 100)
    found = [float(plan.learning_rate(jnp.int32(step))) for step in (0, 24, 25, 49)]
    assert found == pytest.approx([1.0, 0.0039, 1.0, 0.0039], abs=1e-4)
    many = dataclasses.replace(stage, optimizer=OptimizerConfig(num_cycles=51))
    with pytest.raises(ValueError, match="num_cycles is 51; expected at most the 50 steps of pretrain"):
        plan_stage(RunConfig(pretrain=many, batch_size=10), "pretrain", 100)
    with pytest.raises(ValueError, match="num_cycles is 2; expected 1 with --reset_learning_rate"):
        plan_stage(RunConfig(admm=stage, batch_size=10, prune=PruneConfig(reset_learning_rate=True)), "admm", 100)


def test_a_warm_up_longer_than_the_stage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs is 10.*100 steps"):
        rates(OptimizerConfig(warmup_epochs=10), [0])


@pytest.mark.parametrize("step_epochs", [(2.0, 5.0), (3.0, 3.01)])
def test_falls_that_would_be_lost_are_refused(step_epochs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="step_epochs is"):
        rates(OptimizerConfig(schedule="step", warmup_epochs=2, step_epochs=step_epochs), [0])


def test_sgd_with_momentum_and_decay_equals_its_definition() -> None:
    config = OptimizerConfig("sgd", momentum=0.9, weight_decay=0.1)
    tx = make_optimizer(config, optax.constant_schedule(0.5))
    w, velocity, params = 2.0, 0.0, jnp.array(2.0)
    state = tx.init(params)
    for gradient in (1.0, -3.0, 0.5):
        updates, state = tx.update(jnp.array(gradient), state, params, dual_step=False)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + gradient + 0.1 * w
        w -= 0.5 * velocity
    np.testing.assert_allclose(params, w, rtol=1e-6)


def test_the_penalty_is_part_of_what_adam_sees() -> None:
    """Adam's first step has length 1 per weight: a penalty added after it would show as a longer one."""
    params = jnp.array([[0.1, 3.0]])
    penalty = add_admm_penalty(100.0, lambda w: jnp.where(w > 1, w, 0.0))
    tx = make_optimizer(OptimizerConfig("adam"), optax.constant_schedule(0.01), penalty=penalty)
    updates, _ = tx.update(jnp.zeros((1, 2)), tx.init(params), params, dual_step=False)
    np.testing.assert_allclose(updates, [[-0.01, 0.0]], atol=1e-6)


def test_make_penalty_follows_the_config() -> None:
    params = {"fc1": {"kernel": jnp.arange(1.0, 7.0).reshape(3, 2), "bias": jnp.ones(2)}}
    config = PruneConfig(rho=0.2, rho_growth=2.0, rho_rule="uniform", rescale_dual=False)
    tx = make_penalty(params, config, {"fc1/kernel": Irregular(0.5)})
    zeros = optax.tree.zeros_like(params)
    updates, state = tx.update(zeros, tx.init(params), params, dual_step=False)
    np.testing.assert_allclose(updates["fc1"]["kernel"], [[0.2, 0.4], [0.6, 0.0], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(updates["fc1"]["bias"], 0)
    _, state = tx.update(zeros, state, params, dual_step=True)
    assert float(find_admm_state(state).rho["fc1"]["kernel"]) == pytest.approx(0.4)
    np.testing.assert_allclose(find_admm_state(state).u["fc1"]["kernel"], [[1, 2], [3, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(("keeps_graph", "factor"), [(False, 1), (True, 3)])
def test_make_penalty_passes_the_growing_penalty_on(keeps_graph: bool, factor: int) -> None:
    params = {"fc1": {"kernel": jnp.arange(1.0, 7.0).reshape(3, 2)}}
    settings = PruneConfig(rho=0.5, rho_growth=1.0, rho_rule="uniform", dual_keeps_graph=keeps_graph)
    tx = make_penalty(params, settings, {"fc1/kernel": Irregular(0.5)})
    zeros = optax.tree.zeros_like(params)
    state = tx.init(params)
    for _ in range(2):  # w + u - z adds up the three smallest weights, once per dual step
        updates, state = tx.update(zeros, state, params, dual_step=True)
    expected = factor * 0.5 * (params["fc1"]["kernel"] - find_admm_state(state).z["fc1"]["kernel"])
    expected = expected + factor * 0.5 * find_admm_state(state).u["fc1"]["kernel"]
    np.testing.assert_allclose(updates["fc1"]["kernel"], expected, rtol=1e-6)
    assert float(jnp.abs(updates["fc1"]["kernel"]).max()) > 0
