"""The README's code runs as it stands there."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import README, blocks

import rap_jax as rap
from rap_jax.config import ModelConfig
from rap_jax.models import create_model
from rap_jax.runs.network import SavedNetwork

IMPORT, PGD, AUTO_ATTACK, PRUNING, COMPACTION = blocks(README)


@pytest.fixture(name="names")
def make_names() -> dict[str, Any]:
    names = dict[str, Any]()
    exec(IMPORT, names)
    return names


def test_it_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_the_attack(names: dict[str, Any]) -> None:
    names["apply"] = lambda params, x: x.reshape(len(x), -1) @ params
    exec(PGD, names)
    images, params = jnp.full((4, 2, 2, 1), 0.5), jax.random.normal(jax.random.key(0), (4, 3))
    result = names["attack"](jax.random.key(1), params, images, jnp.array([0, 1, 2, 0]))
    assert 0 < float(jnp.abs(result.adversarial - images).max()) <= 8 / 255 + 1e-6 and result.broken.shape == (4,)


def test_auto_attack(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = jax.random.normal(jax.random.key(0), (16, 3))
    images = np.random.default_rng(0).uniform(0, 1, (4, 4, 4, 1)).astype(np.float32)
    labels = (images.reshape(4, 16) @ weights).argmax(-1)
    names |= {"apply": lambda params, x: x.reshape(len(x), -1) @ params, "params": weights}
    exec(AUTO_ATTACK, names | {"images": images, "labels": labels})
    robust, certified = (float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[-2:])
    assert 0 <= certified <= robust <= 1 and (tmp_path / "state.npz").exists()


def test_the_pruning(names: dict[str, Any]) -> None:
    params = {
        "conv1": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 1, 4)), "bias": jnp.ones(4)},
        "fc1": {"kernel": jax.random.normal(jax.random.key(1), (6, 4)), "bias": jnp.ones(4)},
    }
    names |= {"params": params, "gradients": params}
    exec(PRUNING, names)
    updates, _ = names["tx"].update(params, names["tx"].init(names["params"]), names["params"])
    after = jax.tree.map(jnp.add, names["params"], updates)
    assert (np.asarray(after["fc1"]["kernel"]) == 0).all(0).sum() == 3
    assert (np.asarray(after["conv1"]["bias"]) == 0).sum() == 2


def test_the_smaller_network(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("lenet_mnist", 1)
    model = create_model(config, input_shape=(8, 8, 1), num_classes=10)
    weights = jax.tree.map(np.array, jax.jit(model.init)(jax.random.key(0)))
    for leaf in weights.params["conv2"].values():
        leaf[..., :2] = 0
    saved = SavedNetwork(config, model, weights, weights, {})
    monkeypatch.setattr(rap, "load_network", lambda _: saved, raising=False)
    names |= {"images": jnp.full((2, 8, 8, 1), 0.5)}
    exec(COMPACTION, names)
    np.testing.assert_allclose(names["logits"], model.logits(weights, names["images"]), rtol=1e-4, atol=1e-4)
    assert names["small"].params["conv2"]["kernel"].shape[-1] == 2
