"""The README's code runs as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_attack() -> None:
    names = {"apply": lambda params, x: x.reshape(len(x), -1) @ params}
    exec(blocks()[0], names)
    images, params = jnp.full((4, 2, 2, 1), 0.5), jax.random.normal(jax.random.key(0), (4, 3))
    found = names["attack"](jax.random.key(1), params, images, jnp.array([0, 1, 2, 0]))
    assert 0 < float(jnp.abs(found - images).max()) <= 8 / 255 + 1e-6


def test_the_pruning() -> None:
    params = {
        "conv1": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 1, 4)), "bias": jnp.ones(4)},
        "fc1": {"kernel": jax.random.normal(jax.random.key(1), (6, 4)), "bias": jnp.ones(4)},
    }
    pruning, retraining = blocks()[1].split("\n\ntx = optax.chain(optax.adam")
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
