"""The PyTorch side of `benchmarks.main_job`: pretrain, admm, cut, retrain, test.

    python -m benchmarks.pytorch.job SETTINGS.json DATA.npz

It evaluates what a run of `launch.main` evaluates: validation after each stage's epoch and the report's attack on
validation after each stage, after each cut and, on the test split, at the end. The last line is JSON.
"""

import copy
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.job_settings import JobSettings
from benchmarks.machine import num_cores
from benchmarks.pytorch.admm import Admm, cut
from benchmarks.pytorch.evaluate import evaluate
from benchmarks.pytorch.networks import create_network
from benchmarks.pytorch.step import train_step

_PRUNED = ("conv1.weight", "conv2.weight", "fc1.weight")
_SPLITS = ("train", "validation", "test")


class Job:
    """A network and the data that its three stages share."""

    def __init__(self, settings: JobSettings, data: Path):
        torch.manual_seed(0)
        self.settings = settings
        self.network = create_network("lenet_mnist", settings.width)
        self.sparsity = dict.fromkeys(_PRUNED, settings.sparsity)
        arrays = np.load(data, allow_pickle=False)
        # uint8 [N, H, W, C] -> float32 [N, C, H, W] in [0, 1]
        self.images = {s: torch.from_numpy(arrays[f"{s}_images"]).permute(0, 3, 1, 2) / 255 for s in _SPLITS}
        self.labels = {s: torch.from_numpy(arrays[f"{s}_labels"]).long() for s in _SPLITS}

    def run(self) -> dict[str, tuple[float, float]]:
        """(natural, robust) accuracy by what was evaluated."""
        found = {}
        for stage in ("pretrain", "admm", "retrain"):
            masks = cut(self.network, self.sparsity) if stage == "retrain" else None
            self.train(stage, masks)
            self.evaluate(self.network, "validation")  # chooses the kept model
            found[f"{stage} validation"] = self.evaluate(self.network, "validation")
            if stage != "retrain":
                small = copy.deepcopy(self.network)
                cut(small, self.sparsity)
                found[f"{stage} validation after a cut"] = self.evaluate(small, "validation")
        return found | {"test": self.evaluate(self.network, "test")}

    def train(self, stage: str, masks: dict[str, torch.Tensor] | None) -> None:
        """One epoch."""
        settings, labels = self.settings, self.labels["train"]
        steps = settings.steps_per_epoch or len(labels) // settings.batch_size
        optimizer = torch.optim.Adam(self.network.parameters(), settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        admm = Admm(self.network, self.sparsity, settings.rho, settings.rho_growth) if stage == "admm" else None
        order = torch.cat([torch.randperm(len(labels)) for _ in range(-(-steps * settings.batch_size // len(labels)))])
        for step in range(steps):
            if admm is not None and step == steps // 2:
                admm.dual_step()
            batch = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            scale = min(1.0, (step + 1) / (steps // 2)) if stage == "pretrain" else 1.0
            attack = settings.attack
            attack = dataclasses.replace(attack, epsilon=scale * attack.epsilon, step_size=scale * attack.step_size)
            penalty = admm.penalty if admm is not None else None
            train_step(
                self.network,
                optimizer,
                self.images["train"][batch],
                labels[batch],
                attack,
                penalty=penalty,
                masks=masks,
            )
            schedule.step()

    def evaluate(self, network: torch.nn.Module, split: str) -> tuple[float, float]:
        """(natural, robust) accuracy on a split."""
        size = self.settings.eval_batch_size
        return evaluate(network, self.images[split], self.labels[split], self.settings.attack, batch_size=size)


def main(settings: str, data: str) -> None:
    """Runs the job and prints its accuracies."""
    torch.set_num_threads(num_cores())
    print(json.dumps(Job(JobSettings(**json.loads(Path(settings).read_text())), Path(data)).run()))


if __name__ == "__main__":
    main(*sys.argv[1:])
