"""Kept and last epoch of finished runs under weak and strong attacks: `python -m benchmarks.last_epoch RUN...`.

A run keeps the epoch that was best on validation under the short PGD of the training, and the numbers of its report are
those of that epoch. Here both epochs meet the report's PGD and AutoAttack on the first validation images: if they lie
far apart under PGD and close together under AutoAttack, what chose between them was the attack, not the network.

RUN is the folder of a finished run of LeNet with its checkpoints. Killed, the same command goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import orbax.checkpoint as ocp

from benchmarks.records import Column, write_records
from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax.models.model import Weights
from rap_jax.runs.network import has_network, save_network

ABOUT = """\
Kept: the epoch of a run's last stage that was best on validation under PGD of 10 steps of 0.075. Last: the epoch it
ended with. Percent on the first 1,000 images of validation; PGD: 40 steps of 0.01, 1 restart, as in the paper. Only
Square broke: of those images, what AutoAttack's part without gradients broke and its three parts with them did not."""
COLUMNS = (
    Column("kept_pgd", "kept, PGD-40", ".1f"),
    Column("last_pgd", "last, PGD-40", ".1f"),
    Column("kept_auto_attack", "kept, AutoAttack", ".1f"),
    Column("last_auto_attack", "last, AutoAttack", ".1f"),
    Column("kept_square", "kept, only Square broke", ".1f"),
    Column("last_square", "last, only Square broke", ".1f"),
)


def last_epoch(run: Path, folder: Path) -> Path:
    """Lays the weights that `run` ended with into `folder`, as a finished run that can be evaluated."""
    done = folder / run.name
    if not has_network(done):
        done.mkdir(parents=True, exist_ok=True)
        stages = [run / "checkpoints" / stage for stage in ("retrain", "admm", "pretrain")]
        stage = next(folder for folder in stages if folder.is_dir())
        newest = max(stage.glob("[0-9]*"), key=lambda step: int(step.name))
        train = ocp.StandardCheckpointer().restore((newest / "state").resolve())["train"]
        weights = Weights(train["params"], train["batch_stats"] or {})
        results = read_checked((run / "results.json").read_text())
        # A retrain trains the network without what was pruned, so its width is what was left.
        results["model"]["width"] = len(weights.params["conv1"]["bias"]) // 2
        (done / "results.json").write_text(write_checked(results))
        save_network(done, weights, initial=weights)
    return done


def evaluate(run: Path, out_dir: Path) -> dict[str, float]:
    """Percent that withstand PGD and AutoAttack, and percent that only Square broke, on validation."""
    command = [sys.executable, "-m", "launch.evaluate", f"--checkpoint={run}", f"--out_dir={out_dir}"]
    command += ["--split=validation", "--num_images=1000", "--auto_attack=standard"]
    command += ["--pgd_num_steps=40", "--pgd_step_size=0.01", "--pgd_num_restarts=1", "--pgd_losses=ce"]
    subprocess.run(command, check=True)
    results = read_checked((out_dir / "results.json").read_text())
    square = next(part for part in results["auto_attack"]["parts"] if part["name"] == "square")
    return {
        "pgd": 100 * results["pgd"]["robust_accuracy"],
        "auto_attack": 100 * results["auto_attack"]["robust_accuracy"],
        "square": 100 * square["broken"] / results["clean"]["num_examples"],
    }


def main() -> None:
    """Evaluates both epochs of every run, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out_dir", type=Path, default=Path("runs/last_epoch"))
    arguments = parser.parse_args()
    for run in arguments.runs:
        kept = evaluate(run, arguments.out_dir / "kept" / run.name)
        ended = last_epoch(run, arguments.out_dir / "networks")
        last = evaluate(ended, arguments.out_dir / "last" / run.name)
        values = {f"kept_{key}": value for key, value in kept.items()}
        write_records(
            "last_epoch",
            {run.name: values | {f"last_{key}": value for key, value in last.items()}},
            about=ABOUT,
            columns=COLUMNS,
            order=(),
        )
    print((Path(__file__).parent / "results" / "last_epoch.md").read_text())


if __name__ == "__main__":
    main()
