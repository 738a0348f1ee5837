"""A run as users have it, with every optimisation, beside one as the tests compile it (see compiling.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny

AS_THE_TESTS = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")


def run_as_users_do(out_dir: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in AS_THE_TESTS}
    line = [sys.executable, tiny.__file__, f"--out_dir={out_dir}", "--log_every_steps=1", "--compilation_cache_dir="]
    subprocess.run(line, env=environment, check=True, capture_output=True)


def test_it_has_the_same_numbers(tmp_path: Path) -> None:
    run_as_users_do(tmp_path / "optimised")
    process = tiny.start_command(tmp_path / "quick", num_devices=1)
    said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    optimised, quick = (tiny.metrics_of(tmp_path / name) for name in ("optimised", "quick"))
    assert [(line["stage"], line["step"]) for line in optimised] == [(line["stage"], line["step"]) for line in quick]
    losses = [np.array([line["loss"] for line in lines if line["kind"] == "train"]) for lines in (optimised, quick)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("optimised", "quick")]
    assert found[0]["sparsity"] == found[1]["sparsity"]
