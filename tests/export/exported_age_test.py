"""A `.jax` file that this JAX cannot read says which JAX wrote it, how long such files last, and what to do."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from jax import export

from rap_jax.evaluation.network import read_exported
from rap_jax.export.stablehlo import metadata_path, stablehlo_bytes

OLD = {"exported": {"versions": {"jax": "0.4.1"}}}


def write(folder: Path, metadata: dict[str, Any] | None) -> Path:
    path = folder / "network.jax"
    path.write_bytes(stablehlo_bytes(lambda images: images.reshape(images.shape[0], -1)[:, :3], (2, 2, 1)))
    if metadata is not None:
        metadata_path(path).write_text(json.dumps(metadata))
    return path


@pytest.mark.parametrize(
    ("metadata", "version"), [(OLD, "JAX 0.4.1"), (None, "an unknown version"), ({}, "an unknown")]
)
@pytest.mark.parametrize("part", ["file", "program"])
def test_an_expired_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: Any, version: str, part: str
) -> None:
    path = write(tmp_path, metadata)
    assert read_exported(path).num_classes == 3  # of another version, but this JAX reads it

    def fail(*_: Any) -> None:
        raise NotImplementedError("calling convention version 1 is not supported")

    if part == "file":
        monkeypatch.setattr(export, "deserialize", fail)
    else:
        monkeypatch.setattr(export.Exported, "mlir_module", fail)
    with pytest.raises(ValueError, match=f"cannot be read .*It was written by {version}") as error:
        read_exported(path)
    for words in (f"here is JAX {jax.__version__}", "six months", "python -m launch.export", "--format=npz"):
        assert words in str(error.value)
