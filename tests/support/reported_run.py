"""The files that a report reads, with numbers made by hand, and how to read a table and a picture of it."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from rap_jax._runtime.integrity import write_checked

LAYERS = {"conv1/kernel": (400, 16), "conv2/kernel": (12800, 32), "fc1/kernel": (401408, 256)}
Lines = list[dict[str, Any]]


def accuracy(natural: float, robust: float, examples: int = 6000, num_steps: int = 40) -> dict[str, Any]:
    attack = {"norm": "linf", "epsilon": 0.3, "step_size": 0.01, "num_steps": num_steps, "num_restarts": 1}
    return {
        "natural_accuracy": natural,
        "natural_interval": [natural - 0.0041, natural + 0.0032],
        "robust_accuracy": robust,
        "robust_interval": [robust - 0.0052, robust + 0.0043],
        "num_examples": examples,
        "attack": {**attack, "random_start": True},
    }


def sparsity(share: float) -> dict[str, Any]:
    layers: dict[str, dict[str, float]] = {}
    for name, (size, filters) in LAYERS.items():
        zeros, kept, columns = round(size * share), round(filters * (1 - share)), size // filters
        row = {"size": size, "zeros": zeros, "sparsity": zeros / size}
        layers[name] = {**row, "filters": filters, "filters_kept": kept, "columns": columns, "columns_kept": columns}
    total, pruned = (sum(layer[key] for layer in layers.values()) for key in ("size", "zeros"))
    return {"layers": layers, "overall": {"size": total, "zeros": pruned, "sparsity": pruned / total}}


def make_results() -> dict[str, Any]:
    stages = {
        "pretrain": {"validation": accuracy(0.9871, 0.9312), "seconds": 121.44, "sparsity": sparsity(0.0)},
        "admm": {"validation": accuracy(0.9833, 0.9201), "seconds": 1333.0, "sparsity": sparsity(0.0)},
        "retrain": {"validation": accuracy(0.9812, 0.9107), "seconds": 140.0, "sparsity": sparsity(0.5)},
    }
    stages["pretrain"]["cut"] = accuracy(0.4511, 0.1102)
    stages["admm"]["cut"] = accuracy(0.9702, 0.8803)
    return {
        "name": "lenet_mnist_filter",
        "dataset": "mnist_5k",
        "data": {"num_images": {"train": 54000, "validation": 6000, "test": 10000}, "sha256": "ab12" * 16},
        "seed": 3,
        "model": {"name": "lenet_mnist", "width": 4, "initializer": "default", "num_params": 414608},
        "stages": stages,
        "test": accuracy(0.9805, 0.9095, 10000),
        "sparsity": sparsity(0.5),
        "seconds": {"pretrain": 121.44, "admm": 1333.0, "retrain": 140.0, "test": 9.5, "total": 1603.9},
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "device": "cpu x 8",
        "command": "python -m launch.main --flagfile=launch/lenet_mnist.flags --seed=3",
        "run_dir": "/tmp/runs/lenet_mnist_filter",
    }


def make_metrics(layers: tuple[str, ...] = tuple(LAYERS)) -> Lines:
    rng, lines = np.random.default_rng(0), Lines()
    for place, (stage, epochs) in enumerate({"pretrain": 10, "admm": 8, "retrain": 6}.items()):
        for step in range(epochs * 20):
            done = 1 - np.exp(-step / 60 - place)
            line = {"kind": "train", "stage": stage, "step": step, "epoch": step / 20, "learning_rate": 1e-3}
            line |= {"loss": 2.3 - 2.0 * done + 0.1 * rng.random(), "accuracy": 0.1 + 0.8 * done - 0.05 * rng.random()}
            lines.append({**line, "epsilon": 0.3, "gradient_norm": 1.0, "examples_per_second": 5e3})
        for epoch in range(1, epochs + 1):
            done = 1 - np.exp(-epoch / 3 - place)
            line = {"kind": "validation", "stage": stage, "step": epoch * 20, "epoch": float(epoch)}
            scores = {"natural_accuracy": 0.3 + 0.68 * done, "robust_accuracy": 0.1 + 0.8 * done}
            lines.append({**line, **scores, "selected": epoch != epochs and stage != "admm"})
    for count in range(17):
        for depth, layer in enumerate(layers):
            line = {"kind": "admm", "stage": "admm", "step": count * 10, "epoch": count / 2, "layer": layer}
            left = {"distance": 0.6 * 0.7**count * (1 + depth), "primal_residual": 0.5 * 0.75**count * (1 + depth)}
            lines.append({**line, **left, "dual_residual": 0.1 * 0.8**count, "rho": 0.01 * 1.3**count / (1 + depth)})
    return lines


def make_run(folder: Path, results: dict[str, Any] | None = None, metrics: Lines | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = make_metrics() if metrics is None else metrics
    (folder / "results.json").write_text(write_checked(make_results() if results is None else results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and b"IEND" in data[-12:]
    return struct.unpack(">II", data[16:24])


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]
