"""The notebook runs from its first cell to its last, on the CPU, and leaves what it promises."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from repository import ROOT

NOTEBOOK = ROOT / "notebooks" / "rap_jax_colab.ipynb"
SHORT = (
    *("--width=2", "--steps_per_epoch=3", "--pretrain_epochs=2", "--admm_epochs=2", "--retrain_epochs=1"),
    *("--pretrain_epsilon_ramp_epochs=1", "--train_num_steps=2", "--select_num_steps=2", "--report_num_steps=2"),
)


@pytest.mark.nightly
def test_the_notebook_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("rap_jax", "launch"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copy(ROOT / "setup.cfg", tmp_path)  # by which the notebook finds the repository
    monkeypatch.setenv("RAP_JAX_NOTEBOOK_FLAGS", " ".join(SHORT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "parameters ->" in said and "bytes; answers:" in said
    assert json.loads((tmp_path / "runs" / "notebook" / "results.json").read_text())["dataset"] == "mnist_5k"


def test_it_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
