"""A retrain on the small network is the retrain on the whole one, up to rounding, and goes on like any stage."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import chex
import pytest
import tiny
from normed_net import add_normed_net
from tiny import Watched

from rap_jax.config import ModelConfig, PruneConfig, RunConfig, StageConfig, StartConfig

pytestmark = pytest.mark.e2e

CONFIG = tiny.tiny_config()


@pytest.fixture
def normed_net(monkeypatch: pytest.MonkeyPatch) -> None:
    add_normed_net(monkeypatch)


def config_of(**changes: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, **changes)


def saved_layout(folder: Path) -> dict[str, str]:
    """Shapes of the weights in the retrain's last checkpoint."""
    path = folder / "checkpoints" / "retrain" / str(tiny.STEPS) / "meta" / "metadata"
    layout = json.loads(path.read_text())["layout"]
    return {name.split("params/")[1]: shape for name, shape in layout.items() if name.startswith("train/params/")}


def assert_same_within_rounding(ours: Watched, theirs: Watched) -> None:
    chex.assert_trees_all_equal(ours.starts["retrain"], theirs.starts["retrain"])
    found, expected = ours.outcomes["retrain"], theirs.outcomes["retrain"]
    assert found.step == expected.step
    chex.assert_trees_all_equal_shapes_and_dtypes(found.weights, expected.weights)
    chex.assert_trees_all_close(found.weights.params, expected.weights.params, rtol=0, atol=1e-4)
    assert ours.results["sparsity"] == theirs.results["sparsity"]
    for kind in ("natural_accuracy", "robust_accuracy"):
        assert ours.results["test"][kind] == pytest.approx(theirs.results["test"][kind], abs=1 / 60 + 1e-9)


def test_a_run_gives_what_it_gives_on_the_whole_network(finished: Watched, tmp_path: Path) -> None:
    whole = tiny.run_and_watch(tmp_path / "run", config_of(small_retrain=False))
    assert_same_within_rounding(finished, whole)
    # Of 2 + 4 filters 1 + 2 are left, of 64 neurons 16; fc1 sees 2x2 pixels.
    assert saved_layout(whole.folder)["fc1/kernel"] == "float32[16,64]"
    assert saved_layout(finished.folder)["fc1/kernel"] == "float32[8,16]"


def test_a_run_goes_on_in_the_middle_of_the_retrain(finished: Watched, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    for name in ("results.json", "report.md", "stages/retrain.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints" / "retrain" / str(tiny.STEPS))
    found = tiny.run_and_watch(folder)
    assert found.began["retrain"] == tiny.STEPS - 1
    assert tiny.digests_of(folder) == tiny.digests_of(finished.folder)
    chex.assert_trees_all_equal(found.outcomes["retrain"].weights, finished.outcomes["retrain"].weights)
    with pytest.raises(ValueError, match="small_retrain: True in the folder, False now"):
        tiny.run_and_watch(folder, config_of(small_retrain=False))


def test_batch_norm_and_zeros_that_cannot_go(normed_net: None, tmp_path: Path) -> None:
    """Single weights were pruned before, filters go now: the small network still has masks."""
    once = StageConfig(1, CONFIG.retrain.optimizer)
    common = {"model": ModelConfig("normed_net", width=1), "admm": StageConfig(0), "retrain": once}
    thin = PruneConfig(structure="irregular", sparsity=(("conv2", 0.5),))
    thinned = tiny.run_and_watch(tmp_path / "thin", config_of(**common, pretrain=once, prune=thin))
    start = StartConfig(str(tmp_path / "thin"))
    again = common | {"prune": PruneConfig(sparsity=(("conv*", 0.5),)), "pretrain": StageConfig(0), "start": start}
    ours, whole = (
        tiny.run_and_watch(tmp_path / str(small), config_of(**again, small_retrain=small)) for small in (True, False)
    )
    assert_same_within_rounding(ours, whole)
    assert ours.results["sparsity"]["overall"]["leftovers"] == 0
    before, after = (run.outcomes["retrain"].weights.params["conv2"]["kernel"] for run in (thinned, ours))
    assert not after[before == 0].any() and (before == 0).mean() == 0.5
    left = after[..., after.any((0, 1, 2))]
    assert left.shape[-1] == 2 and not left.all()
