"""The README's code runs as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from repository import ROOT

from rap_jax.attacks import ThreatModel
from rap_jax.config import ModelConfig
from rap_jax.models import create_model

README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block_with(text: str) -> str:
    (block,) = (block for block in blocks() if text in block)
    return block


def test_the_attack() -> None:
    names = {"apply": lambda params, x: x.reshape(len(x), -1) @ params}
    exec(block_with("import ThreatModel, pgd"), names)
    images, params = jnp.full((4, 2, 2, 1), 0.5), jax.random.normal(jax.random.key(0), (4, 3))
    found = names["attack"](jax.random.key(1), params, images, jnp.array([0, 1, 2, 0]))
    assert 0 < float(jnp.abs(found.adversarial - images).max()) <= 8 / 255 + 1e-6 and found.broken.shape == (4,)


def test_auto_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    weights = jax.random.normal(jax.random.key(0), (16, 3))
    images = np.random.default_rng(0).uniform(0, 1, (4, 4, 4, 1)).astype(np.float32)
    labels = (images.reshape(4, 16) @ weights).argmax(-1)
    names = {"apply": lambda params, x: x.reshape(len(x), -1) @ params, "params": weights, "jax": jax}
    exec(block_with("import auto_attack"), names | {"images": images, "labels": labels})
    assert 0 <= float(capsys.readouterr().out.split()[0]) <= 1
    assert (tmp_path / "state.npz").exists()


def test_certificates(capsys: pytest.CaptureFixture[str]) -> None:
    weights = jax.random.normal(jax.random.key(0), (16, 3))
    logits_fn = lambda x: x.reshape(len(x), -1) @ weights
    images = np.random.default_rng(0).uniform(0, 1, (4, 4, 4, 1)).astype(np.float32)
    names = {"logits_fn": logits_fn, "images": images, "labels": logits_fn(images).argmax(-1)}
    exec(block_with("import certify"), names | {"ThreatModel": ThreatModel})
    least, most = map(float, capsys.readouterr().out.split())
    assert 0 <= least <= most <= 1


def test_the_smaller_network() -> None:
    model = create_model(ModelConfig("lenet_mnist", 1), input_shape=(8, 8, 1), num_classes=10)
    params, batch_stats = jax.tree.map(np.array, jax.jit(model.init)(jax.random.key(0)))
    for leaf in params["conv2"].values():
        leaf[..., :2] = 0
    names = {"model": model, "params": params, "batch_stats": batch_stats, "images": jnp.full((2, 8, 8, 1), 0.5)}
    exec(block_with("import compact"), names)
    expected = model.apply(params, batch_stats, names["images"], False)[0]
    np.testing.assert_allclose(names["logits"], expected, rtol=1e-4, atol=1e-4)
    assert names["small"].params["conv2"]["kernel"].shape[-1] == 2


def test_the_pruning() -> None:
    params = {
        "conv1": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 1, 4)), "bias": jnp.ones(4)},
        "fc1": {"kernel": jax.random.normal(jax.random.key(1), (6, 4)), "bias": jnp.ones(4)},
    }
    pruning, retraining = block_with("add_admm_penalty").split("\n\ntx = optax.chain(optax.adam")
    names = {"params": params, "gradients": params, "step": 200, "__builtins__": __builtins__}
    before_update, update = pruning.split("updates, state")
    exec(before_update, names)
    names["state"] = names["tx"].init(params)
    exec(f"updates, state{update}", names)
    exec(f"tx = optax.chain(optax.adam{retraining}", names)
    updates, _ = names["tx"].update(params, names["tx"].init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    assert (np.asarray(after["fc1"]["kernel"]) == 0).all(0).sum() == 3
    assert (np.asarray(after["conv1"]["bias"]) == 0).sum() == 2
    exec(block_with("layer_budgets(specs"), names)
    kept = {name: 1 - spec.sparsity for name, spec in names["smaller"].items()}
    assert 9 * 4 * kept.get("conv1/kernel", 1) + 6 * 4 * kept.get("fc1/kernel", 1) <= 30
    assert names["shared"].keys() <= names["specs"].keys()
