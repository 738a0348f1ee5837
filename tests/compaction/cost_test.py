"""What a network costs: counted as by hand, measured, written into a run's results and report, and never in its way."""

import copy
import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reported_run
import tiny
from jax import lax

from benchmarks.flops import forward_flops
from rap_jax._runtime.devices import usable_cores
from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax._runtime.interrupt import Interrupted
from rap_jax.compaction import cost as measure_lib
from rap_jax.compaction.cost import NetworkForm, cost_table, file_sizes, forms_of, measure_cost, multiply_adds_of
from rap_jax.compaction.multiply_adds import MultiplyAdds, count_multiply_adds
from rap_jax.config import ModelConfig, OutputConfig
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights
from rap_jax.runs.network import load_network
from rap_jax.training import pipeline, report
from rap_jax.training import stage as stage_lib


def network(name: str, width: int, shape: tuple[int, int, int]) -> tuple[Model, Weights]:
    """With weights of which none is zero."""
    model = create_model(ModelConfig(name, width), input_shape=shape, num_classes=10, implementation="xla")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    generator = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(leaf.dtype), shapes)


def multiply_adds(model: Model, weights: Weights) -> MultiplyAdds:
    return multiply_adds_of(NetworkForm(model, weights))


def remove_filter(weights: Weights, layer: str, filters: Any) -> None:
    for leaf in weights.params[layer].values():
        leaf[..., filters] = 0


def test_multiply_adds_of_a_lenet_by_hand() -> None:
    model, weights = network("lenet_mnist", 1, (28, 28, 1))
    convs, dense = (784 * 25 * 2, 196 * 25 * 2 * 4), (196 * 64, 64 * 10)
    assert multiply_adds(model, weights) == (sum(convs + dense), sum(convs + dense))
    remove_filter(weights, "conv2", [1, 2, 3])
    weights.params["fc2"]["kernel"][:, 3] = 0
    found = multiply_adds(model, weights)
    assert found == (sum(convs + dense), convs[0] + convs[1] // 4 + dense[0] + dense[1] * 9 // 10)


@pytest.mark.parametrize("width", [1, 2])
def test_multiply_adds_of_a_resnet_are_those_of_the_benchmarks(width: int) -> None:
    found = multiply_adds(*network("resnet18", width, (32, 32, 3)))
    assert found == (forward_flops("resnet18", width) // 2,) * 2


def test_zeros_are_seen_behind_a_batch_norm() -> None:
    model, weights = network("resnet18", 1, (8, 8, 3))
    before = multiply_adds(model, weights)
    remove_filter(weights, "conv1", 0)
    after = multiply_adds(model, weights)
    assert after.all == before.all and before.effective - after.effective == 64 * 9 * 3


@pytest.mark.parametrize(("stride", "groups", "dilation"), [(1, 1, 1), (2, 2, 1), (1, 4, 2), (3, 1, 1)])
def test_convolutions_of_any_kind_are_counted_as_their_sums(stride: int, groups: int, dilation: int) -> None:
    kernel = np.random.default_rng(0).integers(-1, 2, (3, 3, 4 // groups, 8)).astype(np.float32)

    def function(kernel: Any, images: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            images, kernel, (stride, stride), "VALID", rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    # Each output of ones and ones is the number of its multiplications.
    ones = function(jnp.ones_like(kernel), jnp.ones((2, 11, 9, 4)))
    nonzero = function(jnp.asarray(kernel != 0, jnp.float32), jnp.ones((2, 11, 9, 4)))
    expected = MultiplyAdds(int(ones.sum()), int(nonzero.sum()))
    assert count_multiply_adds(function, kernel, (2, 11, 9, 4)) == expected


def test_matrix_products_that_know_no_weight_count_whole() -> None:
    attention = lambda weights, x: jnp.einsum("nhwc,nhvc->nhwv", x * weights.reshape(1, 1, 1, -1), x)
    assert count_multiply_adds(attention, np.zeros(5, np.float32), (2, 3, 4, 5)) == (480, 480)


def test_a_product_in_a_loop_is_refused() -> None:
    looped = lambda weights, x: lax.fori_loop(0, 3, lambda _, x: x @ weights, x)
    with pytest.raises(ValueError, match='inside a .*create the model with implementation="xla"'):
        count_multiply_adds(looped, np.ones((3, 3), np.float32), (1, 2, 2, 3))
    harmless = lambda weights, x: lax.fori_loop(0, 3, lambda _, x: x + 1, x) @ weights
    assert count_multiply_adds(harmless, np.ones((3, 3), np.float32), (1, 2, 2, 3)).all == 36


def test_bytes_are_those_of_a_file(tmp_path: Path) -> None:
    _, weights = network("lenet_mnist", 1, (28, 28, 1))
    plain, gzipped = file_sizes(weights)
    path = tmp_path / "weights.npz"
    np.savez(path, **{f"params/{layer}/{name}": leaf for layer, leaves in weights.params.items()
                      for name, leaf in leaves.items()})  # fmt: skip
    assert plain == path.stat().st_size == pytest.approx(4 * 13_514, rel=0.05)
    weights.params["fc1"]["kernel"][:, :32] = 0
    plain_with_zeros, gzipped_with_zeros = file_sizes(weights)
    assert plain_with_zeros == plain and gzipped_with_zeros < 0.7 * gzipped < 0.7 * plain


def test_the_forms_are_the_network_with_all_its_weights_with_its_zeros_and_without() -> None:
    model, weights = network("lenet_mnist", 1, (8, 8, 1))
    remove_filter(weights, "conv2", [0, 2])
    before = copy.deepcopy(weights)
    forms, refused = forms_of(model, weights)
    assert not refused and list(forms) == ["dense", "pruned", "compacted"]
    for leaf, zeros, all_of_it in zip(*map(jax.tree.leaves, (before, forms["pruned"].weights, forms["dense"].weights)),
                                      strict=True):  # fmt: skip
        np.testing.assert_array_equal(leaf, zeros)
        np.testing.assert_array_equal(all_of_it[leaf != 0], leaf[leaf != 0])
        assert all_of_it.all() and all_of_it.dtype == leaf.dtype
    assert forms["compacted"].model.features == {"conv2": 2}


@pytest.fixture(scope="module")
def small_cost() -> dict[str, Any]:
    model, weights = network("lenet_mnist", 1, (8, 8, 1))
    remove_filter(weights, "conv2", [0, 2])
    found: dict[str, Any] = measure_cost(model, weights, device=jax.devices()[3], batch_sizes=(1, 8))
    return found


def test_cost_of_a_network(small_cost: dict[str, Any]) -> None:
    assert small_cost == json.loads(json.dumps(small_cost))
    assert small_cost["device"] == f"cpu (cpu), 1 of 8 devices, {usable_cores()} cores in all"
    dense, pruned, small = (small_cost["forms"][form] for form in ("dense", "pruned", "compacted"))
    assert dense["parameters"] == dense["nonzero_parameters"] == pruned["parameters"] == 1994
    assert pruned["nonzero_parameters"] == 1994 - 2 * 51
    assert small["parameters"] == small["nonzero_parameters"] == 1994 - 2 * (51 + 4 * 64)
    # 8x8 images, 4x4 and 2x2 after pooling; two of four filters, and half of what fc1 reads.
    assert dense["multiply_adds"] == dense["effective_multiply_adds"] == 3200 + 3200 + 1024 + 640
    assert pruned["multiply_adds"] == 8064 and pruned["effective_multiply_adds"] == 8064 - 1600
    assert small["multiply_adds"] == small["effective_multiply_adds"] == 8064 - 1600 - 512
    assert small["file_bytes"] < dense["file_bytes"] == pruned["file_bytes"] > pruned["gzipped_bytes"]
    for size in ("1", "8"):
        assert dense["peak_bytes"][size] == pruned["peak_bytes"][size]
        # At the least the weights, the images and the logits.
        assert small["peak_bytes"][size] >= 4 * (small["parameters"] + int(size) * (64 + 10))
        assert small["peak_bytes"][size] < dense["peak_bytes"][size]
        assert all(0 < form["seconds"][size] < 1 for form in (dense, pruned, small))


def test_the_table_has_every_form_and_the_ratio(small_cost: dict[str, Any]) -> None:
    text = cost_table(small_cost)
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
             for line in text.splitlines() if line.startswith("|")}  # fmt: skip
    assert cells["Parameters"] == ["1,994", "1,994", "1,380", "0.692"]
    assert cells["Multiply-adds of an image"] == ["8,064", "8,064", "5,952", "0.738"]
    assert cells["of these not with a zero"] == ["8,064", "6,464", "5,952", "0.738"]
    assert {f"{what} at batch {n}, {unit}" for what, unit in (("Memory", "MB"), ("Time", "ms")) for n in (1, 8)} < set(
        cells
    )
    assert "cpu" in text and "There is no compacted form" not in text


def test_a_network_that_cannot_be_compacted_has_a_note_instead() -> None:
    model, weights = network("lenet_mnist", 1, (8, 8, 1))
    remove_filter(weights, "conv2", slice(None))
    found = measure_cost(model, weights, device=jax.devices()[0], batch_sizes=(1,))
    assert set(found["forms"]) == {"dense", "pruned"}
    text = cost_table(found)
    assert "- There is no compacted form: Nothing would be left of conv1, conv2" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| Parameters"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["1,994", "1,994", "-", "-"]


def test_the_report_shows_it_and_does_without(tmp_path: Path, small_cost: dict[str, Any]) -> None:
    results = reported_run.make_results()
    assert "## Cost" not in report.write_report(reported_run.make_run(tmp_path / "old", results)).read_text()
    text = report.write_report(reported_run.make_run(tmp_path / "new", results | {"cost": small_cost})).read_text()
    assert f"## Cost\n\n{cost_table(small_cost)}\n\n## Run it again" in text


SHORT = tiny.tiny_config()
SHORT = dataclasses.replace(
    SHORT, **{stage: dataclasses.replace(SHORT.stage(stage), num_epochs=n) for stage, n in
              zip(tiny.STAGES, (1, 0, 0), strict=True)}
)  # fmt: skip


@pytest.mark.e2e
def test_a_run_measures_it_last_and_a_signal_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lambda: pipeline.run(SHORT, tiny.tiny_dataset(), tmp_path / "run", output=OutputConfig())
    count = measure_lib.count_multiply_adds
    with monkeypatch.context() as patch:
        stopped: Any = lambda *given: (signal.raise_signal(signal.SIGTERM), count(*given))[1]
        patch.setattr(measure_lib, "count_multiply_adds", stopped)
        with pytest.raises(Interrupted, match="SIGTERM while measuring what the network costs"):
            run()
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.setattr(pipeline.SplitEvaluator, "__call__", lambda *_: pytest.fail("evaluated again"))
    monkeypatch.setattr(stage_lib, "train_stage", lambda *_: pytest.fail("trained again"))
    results = run()
    pruned = results["cost"]["forms"]["pruned"]
    assert pruned["parameters"] == results["model"]["num_params"]
    assert pruned["nonzero_parameters"] <= pruned["parameters"] - results["sparsity"]["overall"]["zeros"]
    assert "| Time at batch 64, ms" in (tmp_path / "run" / "report.md").read_text()
    assert read_checked((tmp_path / "run" / "results.json").read_text()) == results
    load_network(tmp_path / "run")


@pytest.mark.e2e
def test_a_run_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "measure_cost", lambda *_, **__: pytest.fail("measured"))
    run = lambda output: pipeline.run(SHORT, tiny.tiny_dataset(), tmp_path / "run", output=output)
    results = run(tiny.AS_USUAL)
    tested = json.loads((tmp_path / "run" / "stages" / "test.json").read_text())
    assert tested["test"] == results["test"]
    assert "cost" not in results and "## Cost" not in (tmp_path / "run" / "report.md").read_text()
    assert run(OutputConfig()) == results  # as a run that finished before there was any


@pytest.mark.e2e
def test_the_test_result_of_another_network_does_not_count(tmp_path: Path) -> None:
    run = lambda: pipeline.run(SHORT, tiny.tiny_dataset(), tmp_path / "run", output=tiny.AS_USUAL)
    results, path = run(), tmp_path / "run" / "stages" / "test.json"
    (tmp_path / "run" / "results.json").unlink()
    path.write_text(
        write_checked(read_checked(path.read_text()) | {"network": "another", "test": {"robust_accuracy": 1.0}})
    )
    assert run()["test"] == results["test"]
