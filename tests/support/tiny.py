"""A run that takes seconds: its data, its settings, and itself as the real command (`python tiny.py FLAGS`)."""

import copy
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from absl import flags
from compiling import xla_flags
from normed_net import NormedNet

from launch import main as command
from launch.configs import config_from_flags
from launch.flagfiles import expand_flagfiles
from rap_jax import data
from rap_jax.config import STAGES, OutputConfig, RunConfig, Stage
from rap_jax.data import Dataset, Split, content_hash
from rap_jax.data.streamed import StreamedImages
from rap_jax.models import create
from rap_jax.models.model import Weights
from rap_jax.training import pipeline
from rap_jax.training import stage as stage_lib
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.task import Reached, StageContext, StageResult, Training

# Three stages of 3 epochs of 3 steps. In these few steps the network learns something, and the retrain's best model
# is not its last.
FLAGS = (
    *("--name=tiny", "--seed=1", "--width=1", "--initializer=kaiming_normal", "--sparsity=conv*:0.5,fc1:0.75"),
    *("--epsilon=0.1", "--train_num_steps=2", "--select_num_steps=2", "--report_num_steps=2"),
    *("--train_step_size=0.05", "--select_step_size=0.05", "--report_step_size=0.05", "--report_num_restarts=2"),
    *("--pretrain_epochs=3", "--admm_epochs=3", "--retrain_epochs=3", "--rho=0.1"),
    *("--pretrain_learning_rate=0.02", "--admm_learning_rate=0.02", "--retrain_learning_rate=0.02"),
    *("--batch_size=48", "--eval_batch_size=40", "--steps_per_epoch=3", "--nomeasure_cost"),
)
STEPS = 9
EVERY_STEP = OutputConfig(log_every_steps=1, checkpoint_every_seconds=0.0, measure_cost=False)
EVERY_LINE = OutputConfig(log_every_steps=1, measure_cost=False)
AS_USUAL = OutputConfig(measure_cost=False)


def parse_flags(*arguments: str) -> flags.FlagValues:
    """The flags of the command, parsed without touching the global ones."""
    values = copy.deepcopy(flags.FLAGS)
    values.unparse_flags()
    assert values(expand_flagfiles(["command", *arguments])) == ["command"]
    return values


def tiny_config(**changes: Any) -> RunConfig:
    return dataclasses.replace(config_from_flags(parse_flags(*FLAGS)), **changes)


def tiny_dataset() -> Dataset:
    """240 + 40 + 60 images, 8x8x1, of 10 classes: each class is a pattern of its own under noise."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2, (10, 8, 8, 1))

    def split(num_examples: int) -> Split:
        labels = np.arange(num_examples, dtype=np.int32) % 10
        noise = generator.integers(0, 40, (num_examples, 8, 8, 1))
        return Split((patterns[labels] * 200 + noise).astype(np.uint8), labels)

    train, validation, test = split(240), split(40), split(60)
    return Dataset("tiny", train, validation, test, 10, content_hash(train, test))


class Records:
    """Examples by number, as from a file; notes what is read."""

    def __init__(self, images: np.ndarray):
        self.images, self.was_read = images, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        self.was_read += numbers
        return [{"image": self.images[number]} for number in numbers]


def on_disk(dataset: Dataset) -> Dataset:
    """The same, whose training images are read one by one."""
    split = dataset.train
    images: Any = StreamedImages(Records(split.images), np.arange(len(split.labels)), split.images.shape[1:])
    return dataclasses.replace(dataset, train=Split(images, split.labels))


class Watched(NamedTuple):
    """A finished run: what it returned, and where each stage began, from which weights, and what it handed over."""

    folder: Path
    results: dict[str, Any]
    began: dict[Stage, int]
    starts: dict[Stage, Weights]
    outcomes: dict[Stage, StageResult]


def run_and_watch(folder: Path, config: RunConfig | None = None, **arguments: Any) -> Watched:
    """`pipeline.run` on the tiny data, with its arrays as numpy arrays."""
    began, starts, outcomes = {}, {}, {}
    restore = stage_lib.restore_stage

    def restore_and_note(manager: Any, template: Any) -> Reached | None:
        reached = restore(manager, template)
        stage: Any = manager.directory.name
        began[stage] = reached.step if reached else 0
        return reached

    def watched(run: Callable[..., Training[StageResult]]) -> Callable[..., Training[StageResult]]:
        def run_stage(plan: StagePlan, context: StageContext, start: Weights, masks: Any) -> Training[StageResult]:
            starts[plan.stage] = jax.device_get(start)
            result = yield from run(plan, context, start, masks)
            outcomes[plan.stage] = jax.device_get(result)
            return result

        return run_stage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_lib, "restore_stage", restore_and_note)
        patch.setattr(pipeline, "run_stage", watched(pipeline.run_stage))
        patch.setattr(pipeline, "run_compact_stage", watched(pipeline.run_compact_stage))
        given = {"output": EVERY_LINE} | arguments
        results = pipeline.run(config or tiny_config(), tiny_dataset(), folder, **given)
    return Watched(folder, results, began, starts, outcomes)


def one_step_back(whole: Path, folder: Path) -> Path:
    """A copy of a run written with `EVERY_STEP`, in which the last step of every stage and all after it is missing."""
    shutil.copytree(whole, folder)
    for name in ("results.json", "report.md", *(f"stages/{stage}.json" for stage in STAGES)):
        (folder / name).unlink()
    for stage in STAGES:
        shutil.rmtree(folder / "checkpoints" / stage / str(STEPS))
    return folder


def start_command(out_dir: Path, *arguments: str, num_devices: int = 8) -> subprocess.Popen[str]:
    """The real command on the tiny data in a process of its own, that logs and saves every step."""
    environment = os.environ | {"XLA_FLAGS": xla_flags(num_devices)}
    given = ["--log_every_steps=1", "--checkpoint_every_seconds=0", "--compilation_cache_dir=", *arguments]
    line = [sys.executable, __file__, f"--out_dir={out_dir}", *given]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_address() -> str:
    """HOST:PORT that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_processes(out_dir: Path, number: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """The same, computed by so many processes as one, each with one device."""
    given = (f"--coordinator_address={free_address()}", f"--num_processes={number}", *arguments)
    return [start_command(out_dir, *given, f"--process_id={n}", num_devices=1) for n in range(number)]


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def digests_of(folder: Path) -> dict[str, str]:
    """The sha256 of every bit of each stage's last state: weights, kept model, optimizer."""
    files = {stage: folder / "checkpoints" / stage / str(STEPS) / "meta" / "metadata" for stage in STAGES}
    return {stage: json.loads(path.read_text())["sha256"] for stage, path in files.items()}


def without_time_and_place(results: dict[str, Any]) -> dict[str, Any]:
    """What must be the same whenever, wherever and however often interrupted a run was."""
    stages = {name: {k: v for k, v in stage.items() if "seconds" not in k} for name, stage in results["stages"].items()}
    others = {"seconds", "command", "run_dir", "device", "cost", "checksum"}
    kept = {k: v for k, v in results.items() if k not in others}
    return kept | {"stages": stages}


def main() -> None:
    create._NETWORKS["normed_net"] = NormedNet
    flags.FLAGS["model"].parser.enum_values.append("normed_net")
    data.load_dataset = lambda config, seed, streamed: on_disk(tiny_dataset()) if streamed else tiny_dataset()
    data.load_datasets = lambda config, seeds: (tiny_dataset(),) * len(seeds)
    sys.argv[1:1] = FLAGS
    command.run()


if __name__ == "__main__":
    main()
