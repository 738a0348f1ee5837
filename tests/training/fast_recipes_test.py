"""The cheaper kinds of training, from their flags to what a step does."""

import re

import jax
import numpy as np
import pytest
from tiny import parse_flags

from launch.configs import config_from_flags
from rap_jax.attacks import ThreatModel, pgd_restarts
from rap_jax.config import AttackConfig, TrainConfig, fgsm_attack, free_attack

pytestmark = pytest.mark.usefixtures("optimised")


def train_of(*arguments: str) -> TrainConfig:
    return config_from_flags(parse_flags(*arguments)).train


def test_fgsm_is_pgd_of_one_step() -> None:
    given = train_of("--train_attack=fgsm", "--epsilon=0.25")
    assert given == train_of("--epsilon=0.25", "--train_num_steps=1", "--train_step_size=0.3125")
    assert given.attacks_first and given.updates_per_batch == 1
    assert train_of("--train_attack=fgsm", "--epsilon=0.25", "--norm=l2").attack == AttackConfig("l2", 0.25, 0.3125, 1)


def test_free_moves_by_epsilon_from_zero() -> None:
    attack = AttackConfig("l2", 8 / 255, step_size=8 / 255, num_steps=1, random_start=False)
    given = train_of("--train_attack=free", "--epsilon=8/255", "--norm=l2", "--free_replays=8", "--mixup_alpha=0.5")
    assert given == TrainConfig(attack, free_replays=8, mixup_alpha=0.5)
    assert not given.attacks_first and given.updates_per_batch == 8
    assert train_of("--train_attack=free").free_replays == 4
    assert train_of("--free_replays=8") == train_of()


def test_a_recipe_for_pgd_takes_them() -> None:
    recipe = "--flagfile=lenet_mnist"
    before = train_of(recipe).attack
    assert before is not None and before.num_steps == 10
    assert train_of(recipe, "--train_attack=fgsm").attack == fgsm_attack("linf", 0.33)
    assert train_of(recipe, "--train_attack=free").attack == free_attack("linf", 0.33)
    assert train_of(recipe, "--train_attack=free", "--train_attack=pgd") == train_of(recipe)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "fgsm --epsilon=8",
            "train attack: epsilon is 8.0; expected at most 1, since pixels are in [0, 1] (write 8/255",
        ),
        ("free --epsilon=8", "train attack: epsilon is 8.0; expected at most 1"),
        ("fgsm --epsilon=0", "train attack: epsilon is 0.0; expected a number above 0"),
        ("fgsm --train_num_restarts=2", "train_num_restarts is 2; expected 1 with --train_attack=fgsm"),
        ("free --train_num_restarts=2", "train_num_restarts is 2; expected 1 with --train_attack=free"),
        ("fgsm --norandom_start", "random_start is False; expected True with --train_attack=fgsm"),
        ("free --free_replays=0", "free_replays is 0; expected 2 or more updates on each batch"),
        ("free --free_replays=1", "free_replays is 1; expected 2 or more updates on each batch"),
        ("free --attack_batch_norm=batch", "attack_batch_norm is 'batch'; expected running in free training"),
    ],
)
def test_what_cannot_work_is_refused(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train_of(*f"--train_attack={given}".split())


def test_fgsm_takes_its_step_from_anywhere_in_the_ball() -> None:
    """Against algorithm 3 in NumPy, on a loss whose gradient is known."""
    generator = np.random.default_rng(0)
    images, slope = generator.uniform(size=(64, 3, 3, 1)), generator.normal(size=(1, 3, 3, 1))
    images = images.astype(np.float32)
    config = fgsm_attack("linf", 0.2)
    attack = lambda num_steps: pgd_restarts(
        lambda x: (x * slope).sum((1, 2, 3)),
        images,
        threat_model=ThreatModel(config.norm, config.epsilon),
        key=jax.random.key(0),
        step_size=config.step_size,
        num_steps=num_steps,
        random_start=config.random_start,
    ).adversarial[0]
    start, found = np.asarray(attack(0)), np.asarray(attack(config.num_steps))
    inside = (images > 0.2) & (images < 0.8)
    moved = (start - images)[inside]
    assert np.abs(moved).max() <= 0.2 + 1e-6 and abs(moved.mean()) < 0.02 and abs(moved.var() - 0.2**2 / 3) < 2e-3
    step = np.clip(start - images + 0.25 * np.sign(slope), -0.2, 0.2)
    np.testing.assert_allclose(found, np.clip(images + step, 0, 1), atol=1e-6)
    assert (np.abs(step) < 0.199).any()  # 1.25 epsilon does not reach the other side from everywhere
