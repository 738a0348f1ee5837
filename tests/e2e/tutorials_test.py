"""The tutorials run as they stand there, one after the other."""

from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, blocks

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("optimised")]
TUTORIALS = DOCS / "tutorials"


def run(name: str, names: dict[str, Any], *, without: str = "nothing") -> dict[str, Any]:
    """What the blocks of a page leave behind."""
    for block in blocks(TUTORIALS / f"{name}.md"):
        if without not in block:
            exec(block, names)
    return names


@pytest.fixture(scope="module", name="trained")
def make_trained() -> dict[str, Any]:
    return run("robust_training", {})


def test_adversarial_training(trained: dict[str, Any]) -> None:
    assert trained["loss"] < 1.8  # log(10) is 2.30


def test_auto_attack(
    trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("auto_attack", dict(trained), without="import foolbox")
    printed = capsys.readouterr().out
    assert 0 <= names["found"].robust_accuracy <= names["found"].clean_accuracy and "apgd-ce" in printed
    assert "robust accuracy at 0.01" in printed and printed.endswith("True\n")


def test_pruning(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("pruning", dict(trained))
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[:2] == ["conv1/kernel: 50.0% zeros, 4 of 8 filters", "conv2/kernel: 50.0% zeros, 8 of 16 filters"]


def test_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = run("own_images", {})["data"]
    assert data.class_names == ("dark", "light") and len(data.test.labels) == 16
