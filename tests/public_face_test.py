"""`import rap_jax` and `--help`: which names there are, and that neither starts JAX or what draws and stores."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

import rap_jax as rap
from launch.configs import config_from_flags
from launch.flags import FLAGS
from rap_jax.config import STRUCTURES, PruneConfig, RunConfig
from rap_jax.config.data import Initializer, Network
from rap_jax.models import INITIALIZERS, NETWORKS
from rap_jax.training.optimizer import specs_from_config

HEAVY = ("jax", "flax", "optax", "orbax", "scipy", "matplotlib", "tensorflow_datasets", "grain", "PIL")


def modules_after(code: str) -> set[str]:
    """What a process has imported in the end, of `HEAVY`."""
    code = f"{code}\nprint(*set({HEAVY}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and not found.stderr, found.stderr
    return set(found.stdout.splitlines()[-1].split())


def test_help_and_the_import_start_nothing() -> None:
    commands = "from launch import evaluate, export, main, predict, reproduce"
    run = "sys.argv = ['command', '--help']\nfor each in (evaluate, export, main, predict, reproduce): each.run()"
    assert modules_after(f"import rap_jax\ndir(rap_jax), rap_jax.__version__\n{commands}\n{run}") == set()


def test_what_is_used_is_imported() -> None:
    assert "jax" in modules_after("import rap_jax\nassert callable(rap_jax.pgd)")
    used = "import rap_jax\nassert callable(rap_jax.auto_attack) and callable(rap_jax.diagnose)"
    assert not {"matplotlib", "tensorflow_datasets", "grain"} & modules_after(used)


def test_every_public_name_is_there() -> None:
    for name in rap.__all__:
        assert getattr(rap, name) is not None and name in dir(rap)
    with pytest.raises(AttributeError, match="module 'rap_jax' has no attribute 'no_such'"):
        rap.no_such  # noqa: B018
    assert rap.attacks.pgd is rap.pgd


def test_a_type_checker_sees_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(rap.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == rap._MODULES and set(typed) | {"__version__"} == set(rap.__all__)


def test_a_function_works_through_the_package() -> None:
    kernel = jnp.asarray(np.arange(6.0).reshape(3, 2))
    params = {"fc1": {"kernel": kernel}}
    pruned = rap.project_tree({"fc1/kernel": rap.Irregular(0.5)}, params)
    np.testing.assert_array_equal(pruned["fc1"]["kernel"], [[0, 0], [0, 3], [4, 5]])


def test_names_in_the_config_are_those_of_the_registries() -> None:
    assert (get_args(Network), get_args(Initializer)) == (NETWORKS, INITIALIZERS)
    params = {"conv1": {"kernel": jnp.zeros((1, 1, 1, 2)), "scale": jnp.zeros(2), "shift": jnp.zeros(2)}}
    for structure in STRUCTURES:
        config = PruneConfig(structure=structure)
        assert specs_from_config(config, params, output_layer="fc2")


def test_a_run_without_flags_is_a_config_without_settings() -> None:
    FLAGS.unparse_flags()
    FLAGS(["command"])
    assert config_from_flags() == RunConfig()
