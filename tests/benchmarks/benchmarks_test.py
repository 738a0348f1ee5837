"""What the benchmarks count, keep and take in turn, and that their PyTorch side is the same algorithm."""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import parse_flags

from benchmarks import records, turns
from benchmarks.flops import forward_flops
from benchmarks.job_settings import JobSettings
from benchmarks.records import Column, Plot, write_records
from benchmarks.rows import ROWS
from benchmarks.worker import Worker, clocked, memory
from launch.configs import config_from_flags
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model
from rap_jax.models.model import num_params
from rap_jax.pruning.projections import Filter, mask

NETWORKS = [("lenet_mnist", 2), ("resnet18", 1)]


def model_of(name: str, width: int) -> Model:
    shape = (28, 28, 1) if name == "lenet_mnist" else (32, 32, 3)
    return create_model(ModelConfig(name, width), input_shape=shape, num_classes=10, implementation="xla")


@pytest.mark.parametrize(("name", "width"), NETWORKS)
def test_flops_are_those_of_the_compiled_network_without_its_padding(name: str, width: int) -> None:
    model = model_of(name, width)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    lowered = jax.jit(model.apply, static_argnums=3).lower(params, batch_stats, images, False)
    counted: Any = lowered.cost_analysis()
    # XLA leaves out the taps in the padding (a quarter of those of a 3x3 kernel on 4x4), and counts bias and ReLU.
    assert 0.85 < counted["flops"] / forward_flops(name, width) < 1.1


def test_flops_of_a_lenet_by_hand() -> None:
    assert forward_flops("lenet_mnist", 1) == 2 * (784 * 25 * 2 + 196 * 25 * 2 * 4 + 196 * 64 + 64 * 10)
    assert ROWS["lenet_w1"].flops == 84 * 64 * forward_flops("lenet_mnist", 1)


@pytest.fixture
def folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def write(rows: records.Rows) -> records.Rows:
    columns, plot = (Column("ratio", "ratio", ".2f"), Column("note", "note")), Plot("ratio", "ratio", 1.0)
    return write_records("x", rows, about="What it is.", columns=columns, order=("a", "b", "c"), plot=plot)


def test_records_of_one_row_leave_the_others(folder: Any) -> None:
    write({"c": {"ratio": 3.0}, "a": {"ratio": 1.0, "note": "old"}})
    rows = write({"a": {"ratio": 2.0}})
    assert list(rows) == ["a", "c"]
    assert rows["a"]["ratio"] == 2.0 and "note" not in rows["a"] and rows["c"]["ratio"] == 3.0
    assert json.loads((folder / "x.json").read_text())["rows"] == rows
    assert {"python", "jax", "numpy"} <= set(rows["a"]["measured"]["versions"])


def test_records_as_table_and_picture(folder: Any) -> None:
    write({"a": {"ratio": 2.0}, "b": {"ratio": None, "note": "n"}})
    lines = (folder / "x.md").read_text().splitlines()
    assert "| a | 2.00 |  |" in lines and "| b |  | n |" in lines
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")


def test_ways_take_turns_and_the_median_counts() -> None:
    called: list[str] = []

    def way(name: str, seconds: list[float]) -> dict[str, float]:
        called.append(name)
        # All of the machine's time is this way's own, so that no turn is taken again.
        return {"seconds": seconds.pop(0), "processor_seconds": 1e9}

    first, second = [3.0, 1.0, 2.0], [5.0, 5.0, 5.0]
    times = turns.in_turn({"a": lambda: way("a", first), "b": lambda: way("b", second)}, rounds=3)
    assert called == ["a", "b"] * 3
    assert times["a"].median == 2.0 and times["a"].spread == 1.0 and times["b"].spread == 0.0


def test_a_turn_beside_other_programs_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.0, 1e6, 2e6, 2e6])
    monkeypatch.setattr(turns, "_busy_seconds", lambda: next(busy))
    seconds = iter([9.0, 1.0])
    times = turns.in_turn({"a": lambda: {"seconds": next(seconds), "processor_seconds": 0.0}}, rounds=1)
    assert times["a"].seconds == [1.0] and times["a"].other_cores == [0.0]


def test_a_worker_answers_and_its_end_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    (tmp_path / "doubler.py").write_text("""
from benchmarks.worker import serve

def double(x):
    print("what the work prints is no answer")
    return {"is": 2 * x}

serve({"double": double})
""")
    worker = Worker("doubler")
    assert worker.ask("double", x=4) == {"is": 8}
    with pytest.raises(RuntimeError, match="doubler ended with 1"):
        worker.ask("triple", x=4)
    worker.close()


def test_the_clock_and_the_memory() -> None:
    calls: list[int] = []
    answer = clocked(lambda: calls.append(1), 5)
    assert len(calls) == 5 and answer["total_seconds"] == pytest.approx(5 * answer["seconds"])
    assert 10 < memory()["megabytes"] < 1e6


def test_the_main_job_is_a_valid_command() -> None:
    settings = JobSettings(width=8, num_steps=7, steps_per_epoch=30)
    config = config_from_flags(parse_flags(*settings.flags))
    assert config.train.attack == config.select_attack == config.report_attack == settings.attack
    assert (config.model.width, config.steps_per_epoch, config.batch_size) == (8, 30, 64)
    assert dict(config.prune.sparsity) == {"conv1": 0.5, "conv2": 0.5, "fc1": 0.5}
    assert {config.stage(stage).num_epochs for stage in ("pretrain", "admm", "retrain")} == {1}


class TestPyTorch:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        pytest.importorskip("torch")

    @pytest.mark.parametrize(("name", "width"), NETWORKS)
    def test_the_networks_are_the_same(self, name: str, width: int) -> None:
        import torch

        from benchmarks.pytorch.networks import create_network

        model = model_of(name, width)
        params, batch_stats = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
        network = create_network(name, width).eval()
        assert sum(p.numel() for p in network.parameters()) == num_params(params)
        with torch.no_grad():
            copy_weights(params, network, last_channels=4 * width if name == "lenet_mnist" else 0)
        images = np.random.default_rng(0).random((4, *model.input_shape), np.float32)
        logits = jax.jit(model.apply, static_argnums=3)(params, batch_stats, images, False)[0]
        with torch.no_grad():
            theirs = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        np.testing.assert_allclose(logits, theirs.numpy(), atol=1e-4)

    def test_the_attack_stays_in_the_ball_and_raises_the_loss(self) -> None:
        import torch
        from torch.nn import functional as F  # noqa: N812

        from benchmarks.pytorch.attack import pgd
        from benchmarks.pytorch.networks import create_network

        torch.manual_seed(0)
        network, images = create_network("lenet_mnist", 1), torch.rand(8, 1, 28, 28)
        labels = torch.arange(8)
        adversarial = pgd(network, images, labels, JobSettings(num_steps=10).attack)
        assert float((adversarial - images).abs().max()) <= 0.3 + 1e-6
        assert 0 <= float(adversarial.min()) and float(adversarial.max()) <= 1
        assert F.cross_entropy(network(adversarial), labels) > F.cross_entropy(network(images), labels)
        assert all(p.grad is None for p in network.parameters())

    def test_the_projection_is_that_of_rap_jax(self) -> None:
        import torch

        from benchmarks.pytorch.admm import filter_mask

        weight = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        ours = mask(Filter(0.5), jnp.asarray(weight.permute(2, 3, 1, 0).numpy()))
        np.testing.assert_array_equal(filter_mask(weight, 0.5).permute(2, 3, 1, 0).numpy(), ours)

    def test_pruned_weights_stay_zero_in_the_retrain_and_the_dual_step_agrees_with_eq_10(self) -> None:
        import torch

        from benchmarks.pytorch.admm import Admm, cut
        from benchmarks.pytorch.networks import create_network
        from benchmarks.pytorch.step import train_step

        torch.manual_seed(0)
        network = create_network("lenet_mnist", 2)
        sparsity = {"conv1.weight": 0.5, "fc1.weight": 0.75}
        admm = Admm(network, sparsity, rho=1.0, growth=1.3)
        w, u = network.conv1.weight.detach().clone(), admm.u["conv1.weight"].clone()
        admm.dual_step()
        torch.testing.assert_close(admm.u["conv1.weight"], u + w - admm.z["conv1.weight"])
        assert admm.rho == 1.3
        masks = cut(network, sparsity)
        optimizer = torch.optim.Adam(network.parameters())
        images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
        for _ in range(2):
            train_step(network, optimizer, images, labels, JobSettings(num_steps=1).attack, masks=masks)
        for name, kept in masks.items():
            assert (network.get_parameter(name)[kept == 0] == 0).all(), name
        assert float((network.conv1.weight != 0).float().mean()) == 0.5


def copy_weights(params: dict[str, Any], network: Any, last_channels: int) -> None:
    """From kernels [H, W, in, out] and [in, out]; LeNet flattens [height, width, channel], PyTorch channels first."""
    import torch

    for path, layer in layers(params):
        module = network.get_submodule(path)
        dense = layer["kernel"].ndim == 2
        kernel = layer["kernel"]
        if path == "fc1" and last_channels:
            kernel = kernel.reshape(7, 7, last_channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        target = module if dense or hasattr(module, "weight") else module.conv
        target.weight.copy_(torch.tensor(kernel.T if dense else kernel.transpose(3, 2, 0, 1)))
        if "bias" in layer:
            target.bias.copy_(torch.tensor(layer["bias"]))
        if "scale" in layer:
            module.norm.weight.copy_(torch.tensor(layer["scale"]))
            module.norm.bias.copy_(torch.tensor(layer["shift"]))


def layers(params: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """(path, arrays) of every layer, paths as PyTorch writes them."""
    found = []
    for name, value in params.items():
        is_layer = "kernel" in value
        found += [(prefix + name, value)] if is_layer else layers(value, f"{prefix}{name}.")
    return found
