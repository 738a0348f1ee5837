"""The benchmark of compaction: its networks have lost what they should have, and its rows say what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import compaction, compaction_cases
from benchmarks.compaction_cases import networks_of_run, random_networks
from benchmarks.flops import forward_flops
from rap_jax._runtime.integrity import write_checked
from rap_jax.config import ModelConfig
from rap_jax.models import create_model
from rap_jax.models.model import Weights
from rap_jax.runs.network import save_network

pytestmark = pytest.mark.e2e


def test_three_quarters_of_every_layer_are_gone() -> None:
    dense, small = random_networks("lenet_mnist")
    assert small.features == {"conv1": 4, "conv2": 8, "fc1": 128} and dense.features == {}
    model = create_model(ModelConfig("lenet_mnist", 2), input_shape=(28, 28, 1), num_classes=10, implementation="xla")
    assert compaction._multiply_adds(small) == compaction._multiply_adds(small._replace(model=model))
    assert compaction._multiply_adds(dense) == forward_flops("lenet_mnist", 8) // 2


def test_channels_of_a_stream_go_together_or_only_where_all_writers_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction_cases, "WIDTH", 2)
    together = random_networks("resnet18", "each stream").compacted.features
    alone = random_networks("resnet18").compacted.features
    assert together["conv1"] == together["group1_block0/conv2"] == 2 < alone["conv1"] <= 8
    assert together["group4_block1/conv1"] == alone["group4_block1/conv1"] == 16


def test_rows_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    for name, value in (("BATCH_SIZES", (3,)), ("_TURN", 1e-3), ("_PAUSE", 0.0)):
        monkeypatch.setattr(compaction, name, value)
    networks = random_networks("lenet_mnist")
    rows = compaction.measure("lenet", networks, rounds=1)
    assert rows == json.loads(json.dumps(rows))
    whats = ["npz", "onnx", "safetensors", *(f"{way}, batch 3" for way in compaction.RUNTIMES)]
    assert set(rows) == {f"lenet, {what}" for what in whats}
    row = rows["lenet, jax, batch 3"]
    assert row["ratio"] == row["multiply_adds_dense"] / row["multiply_adds_compacted"] > 10
    assert row["over_ratio"] * row["ratio"] == pytest.approx(row["milliseconds_dense"] / row["milliseconds_compacted"])
    for file_format in ("onnx", "safetensors"):
        assert 1 < rows[f"lenet, {file_format}"]["over_parameters"] < 1.05
        assert rows[f"lenet, {file_format}"]["bytes_dense"] > 4 * 821_706


def test_a_run_of_another_network_is_refused(tmp_path: Path) -> None:
    dense, _ = random_networks("lenet_mnist")
    weights = Weights(*dense.weights)
    results = {"dataset": "mnist", "config": {}, "data": {"image_shape": [28, 28, 1], "num_classes": 10},
               "model": {"name": "lenet_mnist", "width": 8, "initializer": "default"}}  # fmt: skip
    (tmp_path / "results.json").write_text(write_checked(results))
    weights.params["fc1"]["kernel"][:, :100] = 0
    weights.params["fc1"]["bias"][:100] = 0
    save_network(tmp_path, weights, initial=weights)
    with pytest.raises(
        ValueError, match=r"lenet_mnist of width 8 with .*'fc1': 104.* expected .*: --width=8 --sparsity=0.75"
    ):
        networks_of_run(str(tmp_path))
