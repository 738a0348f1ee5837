"""The networks that are kept with the results: their files can be read, and are the networks that were measured."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from repository import OFFICIAL_MNIST, ROOT

from rap_jax._runtime.integrity import read_checked
from rap_jax.attacks import ThreatModel, pgd
from rap_jax.data.builders import RapMnist
from rap_jax.data.raw_files import read_verified
from rap_jax.export.npz import read_npz

FILES = sorted((ROOT / "results" / "quick" / "networks").glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_has_the_accuracy_of_its_run(path: Path) -> None:
    """Natural on all test images; under PGD-20 on 200 it is not far above that of PGD-40 on all."""
    run = read_checked((ROOT / "results" / "quick" / "runs" / path.stem / "results.json").read_text())
    network = read_npz(path)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network.weights.params))
    assert parameters == run["cost"]["forms"]["compacted"]["parameters"]
    assert network.metadata["training"]["config"]["data"]["raw_data_dir"] is None, "a folder of some machine"
    if not OFFICIAL_MNIST.is_dir():
        pytest.skip(f"no official files in {OFFICIAL_MNIST}")
    paths = RapMnist.find_raw(OFFICIAL_MNIST)
    _, test = RapMnist.parse({file.name: read_verified(paths[file.name], file) for file in RapMnist.FILES})
    images, labels = test.images.astype(np.float32) / 255, test.labels.astype(np.int32)
    logits_fn = jax.jit(lambda x: network.model.logits(network.weights, x))
    found = np.concatenate([logits_fn(jnp.asarray(batch)).argmax(-1) for batch in np.split(images, 20)])
    assert np.mean(found == labels) == pytest.approx(run["test"]["natural_accuracy"], abs=2e-4)
    result = pgd(
        logits_fn, jnp.asarray(images[:200]), jnp.asarray(labels[:200]), threat_model=ThreatModel("linf", 0.3),
        key=jax.random.key(0), step_size=0.03, num_steps=20,
    )  # fmt: skip
    assert 1 - float(result.broken.mean()) == pytest.approx(run["test"]["robust_accuracy"], abs=0.06)


def test_there_are_some() -> None:
    assert FILES
