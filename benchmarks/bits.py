"""Whether a change leaves every bit of short runs as it was: this checkout against another revision, on the CPU.

    python -m benchmarks.bits main~20            exit status 1, and the differences by name, if there are any

Both revisions train a LeNet of width 2 on mnist_5k through the three stages, evaluate it (PGD and AutoAttack on 60
images), and train a ResNet-18 of width 1 through the three stages. Compared are the weights of every checkpoint (by the
digest that the checkpoint holds) and all numbers of results.json but times. About 6 minutes a revision on 2 cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app

_ROOT = Path(__file__).parent.parent
_LENET = """--flagfile=launch/lenet_mnist.flags --dataset=mnist_5k --width=2 --steps_per_epoch=8 --pretrain_epochs=3
    --admm_epochs=2 --retrain_epochs=2 --report_num_steps=5 --nomeasure_cost"""
_EVALUATION = "--num_images=60 --pgd_num_steps=10"
_RESNET = """--flagfile=launch/resnet18_cifar10_small.flags --dataset=mnist_5k --width=1 --batch_size=32
    --steps_per_epoch=2 --pretrain_epochs=1 --pretrain_epsilon_ramp_epochs=0 --admm_epochs=1 --retrain_epochs=1
    --report_num_steps=2 --train_num_steps=2 --select_num_steps=2 --nomeasure_cost"""
# Of results.json: what says where and when, and what a later revision may say in other words.
_NOT_NUMBERS = ("checksum", "command", "run_dir", "out_dir", "versions", "network", "fingerprint", "seconds", "config")


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts and lists by its name, but for times and places."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
        return
    for key, below in items:
        if key not in _NOT_NUMBERS and not str(key).endswith("seconds"):
            yield from numbers(below, f"{name}/{key}" if name else str(key))


def _call(root: Path, command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=root, env=environment, capture_output=True)
    if done.returncode:
        sys.exit(f"error: {command} ended with {done.returncode} in {root}:\n{done.stderr.decode()[-2000:]}")


def bits_of(root: Path, folder: Path) -> dict[str, Any]:
    """Digests and numbers, by name, of the short runs of the checkout `root`; they lie in `folder` afterwards."""
    data = f"--data_dir={folder / 'data'}"
    _call(root, f"launch.main {_LENET} {data} --out_dir={folder / 'lenet'}")
    _call(root, f"launch.evaluate --checkpoint={folder / 'lenet'} {_EVALUATION} {data}")
    _call(root, f"launch.main {_RESNET} {data} --out_dir={folder / 'resnet'}")
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*/**/meta/metadata")):
        found[str(path.parent.parent.relative_to(folder))] = json.loads(path.read_text())["sha256"]
    for path in sorted(folder.glob("*/**/results.json")):
        name = str(path.relative_to(folder))
        found |= {f"{name}: {key}": value for key, value in numbers(json.loads(path.read_text()))}
    return found


def main(arguments: list[str]) -> None:
    """Compares and prints."""
    if len(arguments) != 2:
        sys.exit("error: expected one argument, the revision to compare with, such as main~20.")
    with tempfile.TemporaryDirectory() as temporary:
        other = Path(temporary) / "revision"
        subprocess.run(["git", "worktree", "add", "--detach", str(other), arguments[1]], cwd=_ROOT, check=True)
        try:
            before = bits_of(other, Path(temporary) / "before")
            after = bits_of(_ROOT, Path(temporary) / "after")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=_ROOT, check=True)
    different = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in different:
        print(f"{name}: {before.get(name)} before, {after.get(name)} now")
    print(f"{len(before)} digests and numbers, {len(different)} different.")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    app.run(main)
