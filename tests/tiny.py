"""A run that takes seconds: its data, its settings, and itself as a program (`python tests/tiny.py OUT_DIR`)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rap_jax.config import (
    AttackConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    PruneConfig,
    RunConfig,
    StageConfig,
)
from rap_jax.data import Dataset, Split, content_hash

EVERY_STEP = OutputConfig(log_every_steps=1, checkpoint_every_seconds=0.0)


def tiny_dataset(seed: int = 0, num_classes: int = 10) -> Dataset:
    """240 + 40 + 60 images, 8x8x1: each class is a pattern of its own under noise, so it can be learnt in few steps."""
    generator = np.random.default_rng(seed)
    patterns = generator.integers(0, 2, (num_classes, 8, 8, 1))

    def split(num_examples: int) -> Split:
        labels = np.arange(num_examples, dtype=np.int32) % num_classes
        noise = generator.integers(0, 40, (num_examples, 8, 8, 1))
        return Split((patterns[labels] * 200 + noise).astype(np.uint8), labels)

    train, validation, test = split(240), split(40), split(60)
    return Dataset("tiny", train, validation, test, num_classes, content_hash(train, test))


def tiny_config(**changes: Any) -> RunConfig:
    """Three stages of 2 epochs of 3 steps; `changes` are fields of `RunConfig`."""
    attack = AttackConfig(epsilon=0.1, step_size=0.05, num_steps=2)
    stage = StageConfig(2, OptimizerConfig(learning_rate=3e-3))
    config = RunConfig(
        name="tiny",
        seed=1,
        data=DataConfig(dataset="mnist"),
        model=ModelConfig(width=1),
        train_attack=attack,
        select_attack=attack,
        report_attack=dataclasses.replace(attack, num_restarts=2),
        prune=PruneConfig(sparsity=(("conv*", 0.5), ("fc1", 0.75)), rho=0.1),
        pretrain=stage,
        admm=stage,
        retrain=stage,
        batch_size=16,
        eval_batch_size=40,
        steps_per_epoch=3,
    )
    return dataclasses.replace(config, **changes)


def main() -> None:
    import jax

    from rap_jax.pipeline import run

    jax.config.update("jax_compilation_cache_dir", sys.argv[2])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    run(tiny_config(), tiny_dataset(), Path(sys.argv[1]), output=EVERY_STEP)


if __name__ == "__main__":
    main()
