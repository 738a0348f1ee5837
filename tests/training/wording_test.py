"""How a report says what a training step did."""

import dataclasses

import pytest

from rap_jax._runtime.text import as_training
from rap_jax.config import AttackConfig, TrainConfig, fgsm_attack, free_attack


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (TrainConfig(None), "natural images, no attack"),
        (
            TrainConfig(AttackConfig(epsilon=0.3, step_size=0.01, num_steps=40, num_restarts=2)),
            "PGD, linf, epsilon 0.3, step 0.01, 40 steps, 2 restarts, random start",
        ),
        (
            TrainConfig(AttackConfig(step_size=0.3, step_schedule="geometric"), train_leaky_slope=0.01),
            "PGD, linf, epsilon 0.3, step 0.3 falling to a tenth, 40 steps, 1 restart, random start; leaky backward "
            "pass of 0.01 inside the attack",
        ),
        (
            TrainConfig(fgsm_attack("linf", 8 / 255)),
            "PGD, linf, epsilon 8/255, step 10/255, 1 step, 1 restart, random start",
        ),
        (
            TrainConfig(free_attack("l2", 0.5), free_replays=4, compute_dtype="bfloat16"),
            "free adversarial training, l2, epsilon 0.5, 4 updates on each batch in a row; passes in bfloat16",
        ),
    ],
)
def test_training_in_words(train: TrainConfig, expected: str) -> None:
    assert as_training(dataclasses.asdict(train)) == expected
