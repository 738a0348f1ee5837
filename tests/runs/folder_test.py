"""A run folder is whole, belongs to one run, and one process writes in it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rap_jax._runtime import integrity
from rap_jax._runtime.integrity import difference, write_atomically
from rap_jax.runs.folder import RunFolder, open_run_folder
from rap_jax.runs.metrics import read_lines

CONFIG = {"seed": 0, "prune": {"rho": 0.01, "sparsity": (("conv*", 0.5),)}, "data": {"sha256": "ab"}}


def record(stage: str, step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "stage": stage, "step": step, "epoch": step / 5, "loss": 1.0, "accuracy": 0.5} | values


def metrics(folder: RunFolder) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in read_lines(folder.path / "metrics.jsonl")]


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_write_atomically_replaces_the_whole_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "a long first text")
    write_atomically(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "second"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_death_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    write_atomically(tmp_path / "file", "old")

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(integrity.os, moment, die)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    write_atomically(tmp_path / "file", "new")  # what the death left behind is in nobody's way
    assert (tmp_path / "file").read_text() == "new" and names(tmp_path) == ["file"]


def test_contents_are_on_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            integrity.os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))
        )
    write_atomically(tmp_path / "file", "text")
    assert calls == ["fsync", "replace"]


def test_new_folder_holds_its_config_and_opens_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with open_run_folder(path, CONFIG) as folder:
        folder.write_json("stages/pretrain.json", {"step": 6})
        assert folder.checkpoints("admm") == path.resolve() / "checkpoints" / "admm"
    assert json.loads((path / "config.json").read_text()) == json.loads(json.dumps(CONFIG))
    with open_run_folder(path, CONFIG) as folder:  # tuples in it are not another config
        assert folder.read_json("stages/pretrain.json") == {"step": 6}
        assert folder.read_json("results.json") is None


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_run_folder(Path("~/run"), CONFIG) as folder:
        assert folder.path == tmp_path.resolve() / "run"


def test_folder_of_which_only_the_making_was_begun_is_made(tmp_path: Path) -> None:
    (tmp_path / ".config.json.tmp").write_text('{"seed"')
    (tmp_path / "run.flags").write_text("--seed=0\n")
    with open_run_folder(tmp_path, CONFIG):
        assert (tmp_path / "config.json").exists()


def test_metrics_after_the_resumed_step_go(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, CONFIG) as folder:
        folder.forget_metrics_after("pretrain", -1)  # no metrics yet
        assert not (tmp_path / "metrics.jsonl").exists()
        for stage, last in (("pretrain", 4), ("admm", 3)):
            for step in range(last + 1):
                folder.log(record(stage, step))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "stage": "ad')
        folder.forget_metrics_after("admm", 2)
        assert metrics(folder) == [("pretrain", step) for step in range(5)] + [("admm", step) for step in range(3)]
        folder.log(record("admm", 3, loss=0.5))
        lines = list(read_lines(tmp_path / "metrics.jsonl"))
        assert lines[-1] == record("admm", 3, loss=0.5) and len(lines) == 9


def test_starting_a_stage_afresh_drops_all_its_metrics(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, CONFIG) as folder:
        for stage, step in (("pretrain", 0), ("pretrain", 6), ("admm", 0), ("admm", 1)):
            folder.log(record(stage, step))
        folder.forget_metrics_after("admm", -1)
        assert metrics(folder) == [("pretrain", 0), ("pretrain", 6)]


def test_going_back_in_a_stage_keeps_later_stages(tmp_path: Path) -> None:
    # As when the last checkpoint of pretrain turns out to be damaged while ADMM, with good ones, is under way.
    with open_run_folder(tmp_path, CONFIG) as folder:
        for stage, step in (("pretrain", 5), ("pretrain", 6), ("admm", 1), ("admm", 2)):
            folder.log(record(stage, step))
        folder.forget_metrics_after("pretrain", 5)
        assert metrics(folder) == [("pretrain", 5), ("admm", 1), ("admm", 2)]


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, CONFIG):
        pass
    before = (tmp_path / "config.json").read_text()
    other = {"seed": 0, "prune": {"rho": 0.02, "sparsity": (("conv*", 0.5),)}, "data": {"sha256": "ab"}, "new": 1}
    with pytest.raises(ValueError, match="other settings") as error:
        open_run_folder(tmp_path, other)
    message = str(error.value)
    assert str(tmp_path) in message and "--out_dir" in message
    assert "prune.rho: 0.01 in the folder, 0.02 now" in message and "new: absent in the folder, 1 now" in message
    assert "seed" not in message and "sparsity" not in message and "sha256" not in message
    assert (tmp_path / "config.json").read_text() == before
    with open_run_folder(tmp_path, CONFIG):  # a refused caller leaves no lock behind, though its error lives on
        pass


def test_difference_has_one_line_per_setting() -> None:
    before, now = {"a": {"x": 1, "y": 2}, "gone": True}, {"a": {"x": 1, "y": 3}, "new": None}
    assert difference(before, now).splitlines() == [
        "  a.y: 2 in the folder, 3 now",
        "  gone: True in the folder, absent now",
        "  new: absent in the folder, None now",
    ]
    assert difference(now, now) == ""


def test_folder_of_strangers_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("thesis.tex", "b", "c", "d"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=r"holds b, c, d but no config\.json.*choose an empty or new folder"):
        open_run_folder(tmp_path, CONFIG)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["b", "c", "d", "thesis.tex"]


@pytest.mark.parametrize("below", ["file", "file/run", "file/a/run"])
def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written \(.+\); choose another --out_dir") as error:
        open_run_folder(tmp_path / below, CONFIG)
    assert str(tmp_path / below) in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "results.json", "stages/pretrain.json"])
@pytest.mark.parametrize(
    "damage", [b'{"seed": 0', b"", b'{"a": "\xff"}', b"[1]"], ids=["cut", "empty", "bytes", "list"]
)
def test_damaged_json_is_named(tmp_path: Path, name: str, damage: bytes) -> None:
    with open_run_folder(tmp_path, CONFIG) as folder:
        folder.write_json(name, CONFIG)
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(ValueError, match="is damaged") as error:
            folder.read_json(name)
        assert str(tmp_path / name) in str(error.value)
    if name == "config.json":
        with pytest.raises(ValueError, match="is damaged"):
            open_run_folder(tmp_path, CONFIG)


HOLD = """
import sys, time
from pathlib import Path
from rap_jax.runs.folder import open_run_folder
with open_run_folder(Path(sys.argv[1]), {}):
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.e2e
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match="in use by another process.*another --out_dir"):
            open_run_folder(tmp_path, {})
        first.send_signal(signal.SIGKILL)
        first.wait()
        with open_run_folder(tmp_path, {}):  # the lock died with its process; no file has to be deleted by hand
            second = subprocess.run(command, capture_output=True, text=True, input="")
            assert second.returncode != 0 and "in use by another process" in second.stderr


def test_lock_ends_with_the_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error, open_run_folder(tmp_path, CONFIG):
        raise RuntimeError("as a run that fails does")
    with open_run_folder(tmp_path, CONFIG):  # the error, with the frames of the run, is still alive
        assert error.value is not None


def test_incomplete_json_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with open_run_folder(tmp_path / "run", CONFIG) as folder:
        folder.write_json("part.json", {"seconds": 3})
        assert folder.read_json("part.json", ("seconds",)) == {"seconds": 3}
        with pytest.raises(
            ValueError, match=r"part\.json has no validation, step: another version .*move the file away"
        ):
            folder.read_json("part.json", ("seconds", "validation", "step"))
