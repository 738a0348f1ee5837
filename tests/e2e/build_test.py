"""What docs/contributing.md says of adding an attack, a network and a data set, and then a whole run."""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from repository import ROOT

from rap_jax.attacks import ThreatModel
from rap_jax.attacks.stepwise import run_attack
from rap_jax.config import DataConfig, ModelConfig, PruneConfig
from rap_jax.data import load, load_dataset
from rap_jax.evaluation.auto_attack import auto_attack
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.models import create
from rap_jax.runs.network import load_network
from rap_jax.training import pipeline

PAGE = (ROOT / "docs/contributing.md").read_text()
CONFIG = tiny.tiny_config()
SHORT = dataclasses.replace(CONFIG.pretrain, num_epochs=1)


def file_and_line(heading: str) -> tuple[str, str, str]:
    """Name and content of the file that a section shows, and the line that goes into the table."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    name = re.findall(r"`rap_jax/(?:attacks|models|data)/(\w+)\.py`:\n", section)[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    return name, code, re.findall(r'`("\w+": [^`]*),`', section)[0]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules can be imported."""
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    before = set(sys.modules)
    yield tmp_path / "modules"
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def add_network(modules: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name, code, line = file_and_line("To add a network")
    (modules / f"{name}.py").write_text(code)
    module: Any = __import__(name)
    entry = eval(f"{{{line}}}", vars(module))
    monkeypatch.setattr(create, "_NETWORKS", create._NETWORKS | entry)
    return next(iter(entry))


def add_dataset(modules: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> str:
    name, code, line = file_and_line("To add a data set")
    (modules / f"{name}.py").write_text(code.replace('"SHA256"', repr(hashlib.sha256(raw).hexdigest())))
    entry = eval(f"{{{line}}}".replace("rap_jax.data.", ""))
    monkeypatch.setattr(load, "_PREPARED", dict(load._PREPARED) | entry)
    return next(iter(entry))


def test_a_new_network_on_a_new_data_set(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (480, 1), np.uint8)
    pixels = generator.integers(0, 60, (480, 4, 4), np.uint8)
    pixels[np.arange(480), :, np.where(labels[:, 0], 3, 0)] += 150
    raw = np.concatenate([labels, pixels.reshape(480, 16)], 1).tobytes()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dots.bin").write_bytes(raw)
    data = DataConfig(add_dataset(modules, monkeypatch, raw), str(tmp_path / "data"), str(tmp_path / "raw"))
    dataset = load_dataset(data, seed=0)
    assert (dataset.name, dataset.class_names) == ("dots", ("left", "right"))
    np.testing.assert_array_equal(dataset.test.images[..., 0], pixels[240:])

    model = ModelConfig(add_network(modules, monkeypatch), width=1)
    prune = PruneConfig(structure="bn_filter", sparsity=(("*", 0.5),), dual_interval=1, dual_interval_unit="steps")
    stages = {"pretrain": SHORT, "admm": SHORT, "retrain": SHORT}
    config = dataclasses.replace(CONFIG, data=data, model=model, prune=prune, **stages)
    results = pipeline.run(config, dataset, tmp_path / "run", output=tiny.EVERY_LINE)
    assert results["sparsity"]["layers"]["conv1/kernel"]["filters_kept"] == 4
    assert results["sparsity"]["overall"]["leftovers"] == 0
    params = load_network(tmp_path / "run").weights.params["conv1"]
    gone = np.asarray(params["scale"]) == 0
    assert gone.sum() == 4 and (np.asarray(params["shift"])[gone] == 0).all()
    assert (np.asarray(params["kernel"])[..., gone] == 0).all()
    assert results["data"]["name"] == "dots" and results["data"]["num_classes"] == 2


@pytest.mark.parametrize("threat_model", [ThreatModel("linf", 0.3), ThreatModel("l2", 1.0)])
def test_a_new_attack(modules: Path, threat_model: ThreatModel) -> None:
    section = PAGE.split("## To add an attack\n")[1].split("\n## ")[0]
    (modules / "random_search.py").write_text(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
    attack = __import__("random_search").RandomSearch(threat_model, num_steps=20, num_restarts=2)
    images = np.random.default_rng(0).uniform(0, 1, (12, 4, 4, 1)).astype(np.float32)
    logits_fn = lambda x: jnp.stack([x[:, 0, 0, 0], x[:, 0, 1, 0], 0 * x[:, 0, 0, 0]], -1)
    labels = np.asarray(logits_fn(images).argmax(-1), np.int32)
    alone = run_attack(attack, logits_fn, jnp.asarray(images), jnp.asarray(labels), key=jax.random.key(0))
    assert threat_model.contains(alone.adversarial, images).all() and 0 < alone.broken.sum() < 12
    np.testing.assert_array_equal(logits_fn(alone.adversarial).argmax(-1) != labels, alone.broken)
    given = {"threat_model": threat_model, "key": jax.random.key(0), "diagnostics": False}
    found = auto_attack(logits_fn, images, labels, components=(Component("random-search", attack),), **given)
    broken = found.broken_by == "random-search"
    np.testing.assert_array_equal(logits_fn(found.adversarial).argmax(-1) != labels, broken)
    assert 0 < broken.sum() < 12
    nothing = run_attack(attack, lambda x: logits_fn(x) * jnp.nan, images[:0], labels[:0], key=jax.random.key(0))
    assert nothing.broken.shape == (0,)
