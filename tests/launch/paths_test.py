"""Paths in flags and in run.flags mean the same from any folder."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import parse_flags as parse

from launch import evaluate_flags
from launch.configs import config_from_flags
from launch.flagfiles import expand_flagfiles, serialize_flags
from launch.parsers import expand_path
from rap_jax.config import DataConfig

PATHS = ("data_dir", "raw_data_dir", "out_dir", "start_run", "compilation_cache_dir")


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("value", ["sub/x", "./sub/x", "../here/sub/x", "sub/x/", "$HERE/sub/x", "${HERE}/sub/x"])
def test_a_relative_path_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HERE", str(here))
    values = parse(f"--{name}={value}", f"--dataset=folder:{value}")
    monkeypatch.chdir("/")
    assert Path(values[name].value).is_absolute()
    assert Path(values[name].value).resolve() == here / "sub" / "x"
    kind, _, place = config_from_flags(values).data.dataset.partition(":")
    assert kind == "folder" and Path(place).resolve() == here / "sub" / "x"


def test_what_names_a_place_by_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--data_dir=~/x")["data_dir"].value == "~/x"
    assert parse("--dataset=folder:~/x")["dataset"].value == "folder:~/x"
    assert parse("--raw_data_dir=")["raw_data_dir"].value == ""
    assert parse("--dataset=mnist")["dataset"].value == "mnist"


@pytest.mark.parametrize("value", ["$NO_SUCH_NAME/x", "${NO_SUCH_NAME}", "~no_such_user/x", "a\0b"])
def test_a_path_that_is_none_is_refused(value: str) -> None:
    for argument in (f"--data_dir={value}", f"--dataset=folder:{value}", f"--out_dir={value}"):
        with pytest.raises(Exception, match="not set; set it|not known; write the whole|no zero byte") as error:
            parse(argument)
        assert argument.partition("=")[0] in str(error.value)


def test_a_folder_with_the_name_of_a_variable_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$RECYCLE").mkdir()
    assert expand_path("$RECYCLE") == "$RECYCLE"


def written_run(folder: Path, *flags: str) -> Path:
    """The flagfile of a run in `folder`, as the command leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}\n")
    (folder / "run.flags").write_text(serialize_flags(parse(*flags), out_dir=folder))
    return folder / "run.flags"


def test_the_flagfile_of_a_run_depends_on_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--dataset=folder:images", "--data_dir=prepared", "--start_run=other", "--raw_data_dir=")
    path = written_run(Path("runs") / "r", *given)
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    values = parse(f"--flagfile=../{path}")
    assert values["dataset"].value == f"folder:{tmp_path / 'images'}"
    assert values["start_run"].value == str(tmp_path / "other")
    assert values["data_dir"].value == str(tmp_path / "prepared")
    assert values["out_dir"].value == str(tmp_path / "runs" / "r")


@pytest.mark.parametrize("named", [True, False])
def test_the_flagfile_of_a_run_that_was_moved_means_its_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "runs" / "r"
    written_run(old, *((f"--out_dir={old}",) if named else ()))
    new = tmp_path / "else where"
    old.rename(new)
    assert parse(f"--flagfile={new}/run.flags")["out_dir"].value == str(new)
    (tmp_path / "link.flags").symlink_to(new / "run.flags")
    assert parse("--flagfile=link.flags")["out_dir"].value == str(new)
    assert parse(f"--flagfile={new}/run.flags", "--out_dir=/mine")["out_dir"].value == "/mine"


def test_a_flagfile_of_an_earlier_version_means_its_folder_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}\n")
    (tmp_path / "run.flags").write_text("--name=a\n--out_dir=runs/a\n")
    assert parse(f"--flagfile={tmp_path}/run.flags")["out_dir"].value == str(tmp_path)


def test_any_other_flagfile_means_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "run.flags").write_text("--name=a\n--out_dir=/runs/a\n")
    assert expand_flagfiles(["command", f"--flagfile={tmp_path}/run.flags"])[-1] == "--out_dir=/runs/a"


def evaluation_flags(*arguments: str) -> Any:
    evaluate_flags.FLAGS.unparse_flags()
    evaluate_flags.FLAGS(["evaluate", *arguments])
    return evaluate_flags.FLAGS


def test_an_evaluation_finds_the_data_of_a_run_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_from_flags(parse("--dataset=folder:images", "--data_dir=prepared"))
    monkeypatch.chdir("/")
    results: dict[str, Any] = {"config": {"data": vars(config.data)}, "data": {"name": "folder_images"}}
    values = evaluation_flags()
    expected = DataConfig(f"folder:{tmp_path / 'images'}", str(tmp_path / "prepared"))
    assert evaluate_flags.data_for(results, values) == expected


def test_data_that_have_changed_are_refused_unless_they_are_named() -> None:
    run = {"data": {"sha256": "0" * 64}, "config": {"data": {"dataset": "folder:/images"}}}
    values = evaluation_flags()
    with pytest.raises(ValueError, match=r"data folder:/images have changed since the run: .* expected 0{64}"):
        evaluate_flags.check_same_data(run, tiny.tiny_dataset(), values)
    values = evaluation_flags("--dataset=folder:/new")
    evaluate_flags.check_same_data(run, tiny.tiny_dataset(), values)
    evaluate_flags.check_same_data(None, tiny.tiny_dataset(), values)


@pytest.mark.e2e
def test_commands_start_without_what_draws_pictures_and_without_devices() -> None:
    code = """
import sys
from launch import evaluate, export, main, predict, reproduce
sys.argv = ["command", "--help"]
for command in (evaluate, export, main, predict, reproduce):
    command.run()
from jax._src import xla_bridge
sys.exit(str({"matplotlib", "tensorflow_datasets"} & set(sys.modules) or xla_bridge._backends or ""))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert not found.stderr.strip() and found.stdout.count("    python -m launch.") == 5


_FULL = """
import jax
from rap_jax.training import pipeline
def full(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
pipeline.run = full
"""


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("out_dir", "patch", "message"),
    [
        ("images/runs/r", "", "error: out_dir is '.*images/runs/r'; expected a folder outside of the images in"),
        ("r", _FULL, r"error: out of memory \(RESOURCE_EXHAUSTED: no room\). Take a smaller --width or --batch_size"),
    ],
)
def test_a_run_on_a_folder_ends_with_one_line(tmp_path: Path, out_dir: str, patch: str, message: str) -> None:
    """What only the command knows: where it writes, and that the memory is full."""
    for number in range(40):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), number, np.uint8)).save(file)
    flags = ["--dataset=folder:images", f"--out_dir={out_dir}", "--batch_size=8", "--width=1", "--sparsity=fc1:0.5"]
    code = f"import sys\nfrom launch import main\n{patch}\nsys.argv = ['command', *{flags}]\nmain.run()"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1 and re.match(message, found.stderr.splitlines()[-1])
    assert "Traceback" not in found.stderr and [path.name for path in tmp_path.iterdir()] == ["images"]
