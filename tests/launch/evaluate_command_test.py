"""The command: what it evaluates, where its settings come from, and what it refuses in one line."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import flags
from jax import export
from tiny_run import COMPONENTS, EPSILON, make_run, tiny_function

from launch import evaluate, evaluate_flags
from launch.evaluate_flags import GROUPS, data_for, evaluation_from_flags, help_text, without_training
from launch.flagfiles import expand_flagfiles
from rap_jax import data
from rap_jax.config import DataConfig
from rap_jax.evaluation import suite
from rap_jax.evaluation.auto_attack import AutoAttackResult, auto_attack
from rap_jax.evaluation.network import open_network

FAST = ("--num_images=20", "--pgd_num_steps=2", "--pgd_num_restarts=1", "--compilation_cache_dir=")
FUNCTION = """
import numpy as np
rng = np.random.default_rng(0)
weights = rng.normal(size=(64, 10)).astype(np.float32)
logits = lambda images: images.reshape(len(images), -1) @ weights
number = 3
"""


@pytest.fixture(scope="module", name="run")
def make_run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny_run")


@pytest.fixture(autouse=True)
def tiny_data_and_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load_dataset", lambda config, seed: tiny.tiny_dataset())

    def short(*given: Any, **settings: Any) -> AutoAttackResult:
        threat_model = settings["threat_model"]
        same = [one._replace(attack=dataclasses.replace(one.attack, threat_model=threat_model)) for one in COMPONENTS]
        return auto_attack(*given, **settings | {"components": settings["components"] or same})

    monkeypatch.setattr(suite, "auto_attack", short)


def command(*arguments: str) -> None:
    evaluate.FLAGS.unparse_flags()
    evaluate.main(["evaluate", *arguments])


def refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(*FAST, *arguments)
    text = str(stopped.value.code)
    assert text.startswith("error: ")
    return text


def parse(*arguments: str) -> Any:
    evaluate_flags.FLAGS.unparse_flags()
    assert evaluate_flags.FLAGS(expand_flagfiles(["evaluate", *arguments], without_training)) == ["evaluate"]
    return evaluate_flags.FLAGS


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def exported(path: Path, batch: int | str = "b", vjp_order: int = 1, dtype: str = "float32") -> Path:
    """The tiny function in a file of jax.export."""
    shape = export.symbolic_shape(f"{batch}, 8, 8, 1") if isinstance(batch, str) else (batch, 8, 8, 1)
    found = export.export(jax.jit(tiny_function()))(jax.ShapeDtypeStruct(shape, dtype))
    path.write_bytes(found.serialize(vjp_order=vjp_order))
    return path


@pytest.mark.e2e
def test_a_run_is_evaluated_in_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(f"--checkpoint={run}", *FAST, "--certify=interval")
    table = capsys.readouterr().out
    results = json.loads((run / "evaluation" / "results.json").read_text())
    attack = results_of(run)["config"]["report_attack"]
    assert (results["config"]["norm"], results["config"]["epsilon"]) == (attack["norm"], attack["epsilon"])
    assert f"{results['combined']['robust_accuracy']:.2%}" in table and "Findings" in table
    assert max(map(len, table.splitlines())) <= 100
    assert results["command"].startswith(f"python -m launch.evaluate --checkpoint={run} --num_images=20")
    assert results["certificates"]["method"] == "interval" and "certified, up to interval" in table
    assert "evaluation.epsilon: 0.1 in the folder, 0.2 now" in refused(f"--checkpoint={run}", "--epsilon=0.2")


@pytest.mark.e2e
def test_a_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets_of_a_user.py").write_text(FUNCTION)
    command("--checkpoint=nets_of_a_user:logits", f"--epsilon={EPSILON}", *FAST)
    results = json.loads((tmp_path / "evaluations" / "nets_of_a_user.logits" / "results.json").read_text())
    assert results["network"] == {
        "kind": "function", "function": "nets_of_a_user:logits", "checkpoint": "nets_of_a_user:logits",
    }  # fmt: skip
    assert "epsilon is None; expected the radius" in refused("--checkpoint=nets_of_a_user:logits")
    for name, message in {
        "nets_of_a_user:no_such": "nets_of_a_user has no function no_such; expected the folder of a finished run",
        "nets_of_a_user:number": "has no function number",
        "no_such_module:logits": "no_such_module cannot be imported (ModuleNotFoundError",
    }.items():
        assert message in refused(f"--checkpoint={name}", "--epsilon=0.1")


@pytest.mark.e2e
def test_a_file_of_jax_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network gives the same numbers, whatever way it comes and whatever batch it takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("same_as_exported.py").write_text("from tiny_run import tiny_function\nlogits = tiny_function()\n")
    arrays = []
    for name, checkpoint in {"file": exported(Path("five.jax"), 5), "function": "same_as_exported:logits"}.items():
        command(f"--checkpoint={checkpoint}", f"--out_dir={name}", f"--epsilon={EPSILON}", *FAST)
        with np.load(Path(name) / "examples.npz") as file:
            arrays.append({key: file[key] for key in file.files})
    np.testing.assert_array_equal(arrays[0]["broken_by"], arrays[1]["broken_by"])
    np.testing.assert_allclose(arrays[0]["adversarial"], arrays[1]["adversarial"], atol=1e-3)


@pytest.mark.parametrize("batch", ["b", 1, 3, 64])
def test_an_exported_function_takes_any_batch_and_can_be_mapped(tmp_path: Path, batch: int | str) -> None:
    """FAB takes the gradients of all classes by `vmap`."""
    network = open_network(str(exported(tmp_path / "network.jax", batch)))
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    np.testing.assert_allclose(network.logits_fn(images), tiny_function()(images), atol=1e-4)
    jacobian = lambda logits_fn: jax.jit(jax.jacrev(lambda x: logits_fn(x).sum(0)))(images)
    np.testing.assert_allclose(jacobian(network.logits_fn), jacobian(tiny_function()), atol=1e-3)
    assert (network.batch_size, network.num_classes) == (0 if batch == "b" else batch, 10)


def test_files_that_cannot_be_attacked(tmp_path: Path) -> None:
    no_gradient = exported(tmp_path / "a.jax", vjp_order=0)
    assert "without its gradient, so only Square could attack it" in refused(f"--checkpoint={no_gradient}")
    damaged = exported(tmp_path / "b.jax")
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert "b.jax cannot be read" in refused(f"--checkpoint={damaged}")
    (tmp_path / "c.jax").write_bytes(b"no such file")
    assert "expected a file written by exported.serialize(vjp_order=1)" in refused(f"--checkpoint={tmp_path / 'c.jax'}")
    two = export.export(jax.jit(lambda x, y: x + y))(jnp.ones((2, 3)), jnp.ones((2, 3)))
    (tmp_path / "d.jax").write_bytes(two.serialize(vjp_order=1))
    assert "holds a function of" in refused(f"--checkpoint={tmp_path / 'd.jax'}")


def test_checkpoints_that_are_none(run: Path, tmp_path: Path) -> None:
    assert "checkpoint is None; expected what is to be evaluated" in refused()
    assert "which does not exist; expected the folder of a finished run" in refused("--checkpoint=runs/none")
    (tmp_path / "empty").mkdir()
    assert "holds no results.json" in refused(f"--checkpoint={tmp_path / 'empty'}")
    broken = make_run(tmp_path / "broken")
    for file in (broken / "network" / "0").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    assert "network cannot be used" in refused(f"--checkpoint={broken}")
    assert "which does not exist" in refused(f"--checkpoint={run}", "--transfer_from=runs/none")
    assert "Unexpected argument 'surplus'" in refused(f"--checkpoint={run}", "surplus")
    assert "Unknown command line flag 'width'" in refused(f"--checkpoint={run}", "--width=2")
    assert "epsilon is 8.0; expected at most 1" in refused(f"--checkpoint={run}", "--epsilon=8")
    assert "Run folder" in refused(f"--checkpoint={run}", f"--out_dir={run}")


def test_data_come_from_the_run_and_flags_win(run: Path, tmp_path: Path) -> None:
    results = results_of(run)
    results["config"]["data"] = {
        "dataset": "mnist", "data_dir": "/prepared", "raw_data_dir": str(tmp_path), "fallback_dataset": "mnist_5k",
        "validation_fraction": 0.2, "validation_seed": None, "image_size": None,
    }  # fmt: skip
    results["data"] |= {"name": "mnist", "validation_seed": 7}
    of_run = DataConfig("mnist", "/prepared", str(tmp_path), None, 0.2, 7)
    assert data_for(results, parse()) == of_run
    assert data_for(results, parse("--data_dir=/mine", "--validation_seed=3")) == DataConfig(
        "mnist", "/mine", str(tmp_path), None, 0.2, 3
    )
    flagfile = parse("--dataset=mnist", "--fallback_dataset=mnist_5k")
    assert data_for(results, flagfile).fallback_dataset is None
    assert data_for(None, flagfile).fallback_dataset == "mnist_5k"
    assert data_for(results, parse("--dataset=svhn")) == DataConfig("svhn", "/prepared", None, None, 0.2, 7)
    assert data_for(None, parse("--dataset=svhn")) == DataConfig("svhn")
    results["data"]["name"], results["config"]["data"]["raw_data_dir"] = "mnist_5k", str(tmp_path / "gone")
    found = data_for(results, parse())
    assert (found.dataset, found.raw_data_dir) == ("mnist_5k", None)
    flagfile = parse("--dataset=mnist", "--fallback_dataset=mnist_5k")
    assert data_for(results, flagfile).fallback_dataset == "mnist_5k"
    results["config"]["data"] |= {"dataset": "folder:/images", "image_size": [20, 30], "fallback_dataset": None}
    assert data_for(results, parse()).image_size == (20, 30)


def test_a_flagfile_of_a_training_run(tmp_path: Path) -> None:
    values = parse("--flagfile=launch/lenet_mnist.flags", "--checkpoint=runs/a")
    assert (values.norm, values.epsilon, values.dataset, values.checkpoint) == ("linf", 0.3, "mnist", "runs/a")
    lines = ["--out_dir=/run", "--norandom_start", "--width=2", "--epsilon=8/255", "--seed=5", "--nosmall_retrain"]
    (tmp_path / "run.flags").write_text("\n".join(lines))
    values = parse(f"--flagfile={tmp_path / 'run.flags'}", "--num_images=7")
    config = evaluation_from_flags(None, values)
    assert (config.epsilon, config.seed, config.num_images, values.out_dir) == (8 / 255, 5, 7, None)
    (tmp_path / "mine.flags").write_text("--out_dir=/evaluation\n--epsilon=0.1\n")
    assert parse(f"--flagfile={tmp_path / 'mine.flags'}").out_dir == "/evaluation"
    (tmp_path / "wrong.flags").write_text("--no_such_flag=1\n")
    with pytest.raises(flags.Error, match="no_such_flag"):
        parse(f"--flagfile={tmp_path / 'wrong.flags'}")


def test_settings_of_an_evaluation(run: Path) -> None:
    given = ("--norm=l2", "--epsilon=3/2", "--split=validation", "--num_images=0", "--seed=4", "--pgd_num_steps=7")
    given += ("--pgd_step_size=1/4", "--pgd_num_restarts=3", "--auto_attack=plus", "--pgd_losses=margin")
    config = evaluation_from_flags(results_of(run), parse(*given))
    assert config == evaluate_flags.EvaluationConfig(1.5, "l2", "validation", 0, 4, 7, 0.25, 3, "plus", ("margin",))
    assert config.pgd is not None and config.pgd.step_size == 0.25
    default = evaluation_from_flags(results_of(run), parse()).pgd
    assert default is not None and default.step_size == pytest.approx(2.5 * 0.1 / 50)
    for wrong, message in {
        "--num_images=-1": "num_images is -1; expected 1 or more images, or 0 for all",
        "--pgd_num_steps=-1": "pgd_num_steps is -1; expected 1 or more steps, or 0 for no PGD",
        "--pgd_step_size=0": "pgd_step_size is 0.0; expected a number above 0",
        "--pgd_num_restarts=0": "pgd_num_restarts is 0; expected 1 or more",
        "--pgd_losses=ce,dlr": "pgd_losses is ('ce', 'dlr'); expected one or more of ce, margin, each once",
        "--epsilon=0": "epsilon is 0.0; expected a number above 0",
        "--seed=-1": "seed is -1; expected a whole number",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            evaluation_from_flags(results_of(run), parse(wrong))


def test_help() -> None:
    text = help_text(100)
    assert max(map(len, text.splitlines())) <= 100
    for name in (name for names in GROUPS.values() for name in names):
        assert text.count(f"  --{name}") >= 1, name


@pytest.mark.e2e
def test_the_command_ends_with_one_line(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "launch.evaluate"]
    settings: dict[str, Any] = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 120}
    settings["env"] = os.environ | {"XLA_FLAGS": ""}
    found = subprocess.run([*line, "--checkpoint=nowhere", "--epsilon=0.1"], **settings)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("error: checkpoint is 'nowhere', which does not exist")
    assert found.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    shown = subprocess.run([*line, "--help"], **settings)
    assert shown.stdout == help_text(80)
