"""launch.export and launch.predict: what they write, what they say, and what they refuse in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
import tiny
from exported_run import TEST, make_pruned_run, whole_logits_fn
from PIL import Image
from safetensors import safe_open
from tiny_run import make_run

from launch import export, export_flags, predict
from rap_jax import data
from rap_jax._runtime import environment
from rap_jax._runtime.integrity import write_checked
from rap_jax.evaluation.network import open_network
from rap_jax.export import files
from rap_jax.export.onnx.file import METADATA_KEY, open_session
from rap_jax.export.onnx.int8 import set_props

pytestmark = pytest.mark.e2e

SUFFIXES = {"stablehlo": "jax", "onnx": "onnx", "npz": "npz", "safetensors": "safetensors"}


@pytest.fixture(scope="module", name="run")
def make_run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pruned_run(tmp_path_factory.mktemp("runs") / "tiny_run")


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load_dataset", lambda config, seed: tiny.tiny_dataset())


def command(*arguments: str) -> None:
    export.FLAGS.unparse_flags()
    export.main(["export", *arguments])


def show(*arguments: str) -> None:
    predict.FLAGS.unparse_flags()
    predict.main(["predict", *arguments])


def refused(run: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    text = str(stopped.value.code)
    assert text.startswith("error: ") and "\n" not in text
    return text


def metadata_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any]
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as file:
            found = json.loads(file.metadata()["rap_jax"])
    else:
        found = files.open_file(path).metadata
    return found


def written(run: Path, folder: Path, file_format: str, *arguments: str) -> Path:
    path = folder / f"network.{SUFFIXES[file_format]}"
    command(f"--checkpoint={run}", f"--format={file_format}", f"--out={path}", *arguments)
    return path


@pytest.mark.parametrize("file_format", SUFFIXES)
def test_each_format_and_what_it_says_of_itself(
    run: Path, tmp_path: Path, file_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(run, tmp_path / "new" / "folder", file_format)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100 or str(path) in text
    assert "90.00% [80.00, 95.00] clean, 50.00% [40.00, 60.00]" in " ".join(text.split())
    found, results = metadata_of(path), json.loads((run / "results.json").read_text())
    assert found["input"] == {
        "name": "images", "dtype": "float32", "layout": "NHWC", "shape": ["batch", 8, 8, 1], "range": [0.0, 1.0],
        "normalisation": "none before the network: pixel / 255",
    }  # fmt: skip
    assert found["output"]["classes"] == [str(label) for label in range(10)]
    assert (found["format"], found["name"]) == (file_format, "tiny_run")
    accuracy = found["accuracy"]
    assert (accuracy["clean"], accuracy["robust"], accuracy["attack"]) == (0.9, 0.5, TEST["attack"])
    assert (accuracy["num_images"], accuracy["split"], accuracy["evaluation"]) == (60, "test", None)
    training = found["training"]
    assert (training["config"], training["data"]) == (results["config"], results["data"])
    assert (training["command"], training["versions"]["jax"]) == ("python -m launch.main", "0.10")
    assert found["exported"]["command"].startswith("python -m launch.export --checkpoint=")
    assert found["exported"]["rap_jax"] == found["exported"]["versions"]["rap-jax"]
    whole = found["sparsity"]["of_the_run"]
    assert whole["zeros"] == 2 * 25 * 2 and whole["sparsity"] == whole["zeros"] / whole["size"]
    is_compact = file_format != "safetensors"
    assert found["network"]["features"] == ({"conv2": 2} if is_compact else {})
    assert found["sparsity"]["of_this_file"]["zeros"] == (0 if is_compact else whole["zeros"])
    assert found["network"]["num_params"] < found["network"]["num_params_of_the_run"] or not is_compact
    assert "zeros make the file small, but the network runs no faster" in text or file_format != "npz"


def test_what_an_evaluation_has_found_is_in_the_file(run: Path, tmp_path: Path) -> None:
    sha = metadata_of(written(run, tmp_path / "whole", "npz", "--nocompact"))["network"]["sha256"]
    (run / "evaluation").mkdir()
    try:
        found = {"network": {"sha256": sha}, "config": {"epsilon": 0.1}, "findings": [], "combined": {"robust": 0.4}}
        (run / "evaluation" / "results.json").write_text(write_checked(found))
        evaluation = metadata_of(written(run, tmp_path / "a", "npz"))["accuracy"]["evaluation"]
        assert evaluation["combined"] == {"robust": 0.4} and evaluation["attack"] == {"epsilon": 0.1}
        for other in (json.dumps(found | {"network": {"sha256": "of another"}}), "{", "[]"):
            (run / "evaluation" / "results.json").write_text(other)
            path = written(run, tmp_path / str(len(other)), "npz")
            assert metadata_of(path)["accuracy"]["evaluation"] is None
    finally:
        (run / "evaluation" / "results.json").unlink()
        (run / "evaluation").rmdir()


def test_the_files_compute_what_the_run_does_and_can_be_attacked(run: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    logits = whole_logits_fn(run)(images)
    for file_format in ("stablehlo", "onnx", "npz"):
        for compact in ("--compact", "--nocompact"):
            path = written(run, tmp_path / compact, file_format, compact)
            np.testing.assert_allclose(files.open_file(path).logits_fn(images), logits, atol=1e-4)
    attacked = open_network(str(tmp_path / "--compact" / "network.jax"))
    gradient = jax.jit(jax.grad(lambda x: attacked.logits_fn(x)[:, 0].sum()))(images)
    assert float(np.abs(gradient).max()) > 0


def test_a_second_file_in_8_bits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--int8", "--num_calibration_images=40", "--num_images=30", "--num_queries=5")
    path = written(run, tmp_path, "onnx", *settings)
    text = " ".join(capsys.readouterr().out.split())
    session = open_session(tmp_path / "network.int8.onnx")
    about = session.metadata["int8"]
    assert about["calibrated_on"] == "40 training images"
    measured = about["measured"]
    assert (measured["num_images"], measured["split"], measured["epsilon"]) == (30, "test", 0.1)
    for which in ("file", "float"):
        assert measured[which]["robust"] <= min(measured[which][name] for name in ("clean", "transfer", "square"))
    assert "no gradient of the file was taken, so its robust accuracy is an upper bound" in text
    assert session.metadata["accuracy"]["robust"] == 0.5
    quantized, whole = (onnx.load(tmp_path / name) for name in ("network.int8.onnx", "network.onnx"))
    kinds = {node.op_type for node in quantized.graph.node}
    assert "QuantizeLinear" in kinds and "QuantizeLinear" not in {node.op_type for node in whole.graph.node}
    images = tiny.tiny_dataset().test.images[:20].astype(np.float32) / 255
    first, second = open_session(path).logits_fn(images), session.logits_fn(images)
    assert 0 < np.abs(first - second).max() < 0.2 * np.abs(first).max()


def test_8_bits_of_other_data(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny.dataclasses.replace(tiny.tiny_dataset(), name="other", sha256="1")
    monkeypatch.setattr(data, "load_dataset", lambda config, seed: other)
    text = refused(written, run, tmp_path, "onnx", "--int8")
    assert "the data is 'other'; expected those of the run, tiny of sha256" in text
    assert not list(tmp_path.iterdir())
    assert "num_queries is -1" in refused(written, run, tmp_path, "onnx", "--int8", "--num_queries=-1")
    assert "num_images is 0" in refused(written, run, tmp_path, "onnx", "--int8", "--num_images=0")


def test_what_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    checkpoint = f"--checkpoint={run}"
    assert "checkpoint is None; expected the folder of a finished run" in refused(command, "--format=onnx")
    assert "format is None; expected one of stablehlo, onnx, npz, safetensors" in refused(command, checkpoint)
    assert "format is 'tflite'; expected one of" in refused(command, checkpoint, "--format=tflite")
    assert "holds no results.json" in refused(command, f"--checkpoint={tmp_path}", "--format=npz")
    assert "int8 is True; expected --format=onnx" in refused(command, checkpoint, "--format=npz", "--int8")
    wrong = f"--out={tmp_path / 'network.pb'}"
    assert "expected a name that ends in .onnx for onnx" in refused(command, checkpoint, "--format=onnx", wrong)
    assert "Unexpected argument 'more'" in refused(command, checkpoint, "--format=npz", "more")
    path = written(run, tmp_path, "stablehlo")
    content = path.read_bytes()
    assert f"{path} exists; delete it" in refused(written, run, tmp_path, "stablehlo")
    path.unlink()
    assert f"{path}.json exists; delete it" in refused(written, run, tmp_path, "stablehlo")
    assert content and not path.exists()
    (tmp_path / "network.int8.onnx").touch()
    assert "network.int8.onnx exists" in refused(written, run, tmp_path, "onnx", "--int8")
    assert not (tmp_path / "network.onnx").exists()
    assert "cannot be made" in refused(written, run, tmp_path / "network.int8.onnx", "npz")
    unfinished = make_run(tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    assert "expected the folder of a run that has finished" in refused(written, unfinished, tmp_path, "npz")


def test_a_file_that_computes_something_else_does_not_stay(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = files.open_file
    monkeypatch.setattr(
        files, "open_file", lambda path: opened(path)._replace(logits_fn=lambda x: np.ones((len(x), 10)))
    )
    assert "differ from those of the network by" in refused(written, run, tmp_path, "stablehlo")
    assert not list(tmp_path.iterdir())


def test_without_the_packages_of_an_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("none")))
    for file_format, package in (("onnx", "onnx"), ("safetensors", "safetensors")):
        text = refused(written, run, tmp_path, file_format)
        assert f"{package} cannot be imported" in text and "pip install 'rap_jax[export]'" in text
    assert not list(tmp_path.iterdir())


def test_images_that_are_looked_at(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = tiny.tiny_dataset().test.images[0, ..., 0]
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([np.kron(pixels, np.ones((2, 2), np.uint8))] * 3, -1)).save(tmp_path / "colour.png")
    logits = whole_logits_fn(run)(pixels[None, ..., None] / np.float32(255))[0]
    label, share = int(logits.argmax()), float(jax.nn.softmax(logits).max())
    names = [str(tmp_path / name) for name in ("grey.png", "colour.png")]
    for file_format in ("stablehlo", "onnx", "npz"):
        path = written(run, tmp_path, file_format)
        capsys.readouterr()
        show(f"--model={path}", "--top=2", *names)
        grey, colour = capsys.readouterr().out.splitlines()
        assert grey.startswith(f"{names[0]}: {label} {share:.1%}, ") and grey.count("%") == 2
        assert colour.endswith("(converted from RGB to grey, resized from 16x16 to 8x8)")


def test_what_cannot_be_looked_at(run: Path, tmp_path: Path) -> None:
    model = f"--model={written(run, tmp_path, 'npz')}"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tiff")
    image = str(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    assert "model is None; expected a file that launch.export has written" in refused(show, image)
    assert "images is []; expected one or more image files" in refused(show, model)
    assert "top is 0; expected 1 or more" in refused(show, model, "--top=0", image)
    assert "nowhere.onnx is no file" in refused(show, f"--model={tmp_path / 'nowhere.onnx'}", image)
    assert "expected one of .jax, .onnx, .npz" in refused(show, f"--model={image}", image)
    torch = written(run, tmp_path, "safetensors")
    assert "holds the weights of a PyTorch network" in refused(show, f"--model={torch}", image)
    for name in ("text.png", "nowhere.png", "float.tiff"):
        assert f"The image {tmp_path / name} cannot be read" in refused(show, model, str(tmp_path / name))
    onnx_file, jax_file = (written(run, tmp_path, name) for name in ("onnx", "stablehlo"))
    for path, message in ((onnx_file, "cannot be read"), (jax_file, "is not the file that network.jax.json tells of")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert f"{path} {message}" in refused(show, f"--model={path}", image)
        path.write_bytes(whole)
    (tmp_path / "network.jax.json").write_text("{")
    assert "network.jax.json is damaged" in refused(show, f"--model={jax_file}", image)
    (tmp_path / "network.jax.json").unlink()
    show(f"--model={jax_file}", image)
    jax_file.write_bytes(jax_file.read_bytes()[:2000])
    assert f"{jax_file} cannot be read" in refused(show, f"--model={jax_file}", image)
    odd = onnx.load(onnx_file)
    set_props(odd, {METADATA_KEY: "{"})
    onnx.save(odd, tmp_path / "odd.onnx")
    assert "metadata of" in refused(show, f"--model={tmp_path / 'odd.onnx'}", image)
    value = lambda name: onnx.helper.make_tensor_value_info(name, 1, ["n", 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value("x")], [value("y")])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "flat.onnx",
    )
    assert "expected an ONNX file with the input images" in refused(show, f"--model={tmp_path / 'flat.onnx'}", image)


def test_a_network_that_fails_when_it_is_asked_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: np.ndarray) -> np.ndarray:
        raise TypeError("no such\noperation")

    path = written(run, tmp_path, "npz")
    broken = files.open_file(path)._replace(logits_fn=fail)
    monkeypatch.setattr(files, "open_file", lambda name: broken)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    text = refused(show, f"--model={path}", str(tmp_path / "image.png"))
    assert f"{path} cannot be run (TypeError: no such operation); export it again" in text


@pytest.mark.parametrize("file_format", ["onnx", "stablehlo", "npz"])
def test_a_flipped_bit_is_noticed(run: Path, tmp_path: Path, file_format: str) -> None:
    """Wherever it is, but for places that no reader looks at, such as fields of a zip header."""
    path = written(run, tmp_path, file_format)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    images = np.random.default_rng(1).random((2, 8, 8, 1), np.float32)
    logits = files.open_file(path).logits_fn(images)
    noticed = 0
    for place in rng.integers(0, len(whole), 12):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            found = files.open_file(path)
        except ValueError as error:
            noticed += str(path) in str(error)
        else:
            np.testing.assert_array_equal(found.logits_fn(images), logits)
    assert noticed >= (12 if file_format != "npz" else 6)


def test_one_image_that_cannot_be_read_does_not_hide_the_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = np.stack([np.zeros((8, 8), np.uint8)] * 3 + [np.eye(8, dtype=np.uint8) * 255], -1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    (tmp_path / "text.png").write_text("no image")
    images = [str(tmp_path / name) for name in ("text.png", "clear.png")]
    model = written(run, tmp_path, "npz")
    capsys.readouterr()
    assert images[0] in refused(show, f"--model={model}", *images)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{images[1]}: ") and "transparency laid on white, converted from RGBA to grey" in line


@pytest.mark.e2e
def test_the_default_place_and_help(run: Path, tmp_path: Path) -> None:
    export_flags.FLAGS.unparse_flags()
    export_flags.FLAGS(["export", f"--checkpoint={run}", "--format=onnx"])
    config = export_flags.export_from_flags()
    assert config.path == run / "export" / "tiny_run.onnx" and config.int8 is None
    assert config.int8_path == run / "export" / "tiny_run.int8.onnx"
    assert (config.compact, config.fold) == (True, True)
    for text, groups in ((export_flags.help_text(100), export_flags.GROUPS), (predict.help_text(100), predict.GROUPS)):
        assert max(map(len, text.splitlines())) <= 100
        assert all(f"  --{name}" in text or f"[no]{name}" in text for names in groups.values() for name in names)
    for name in ("export", "predict"):
        line = [sys.executable, "-m", f"launch.{name}"]
        settings: dict[str, Any] = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 120}
        found = subprocess.run(line, env=os.environ | {"XLA_FLAGS": ""}, **settings)
        assert found.returncode == 1 and found.stdout == "" and found.stderr.count("\n") == 1
        assert found.stderr.startswith("error: ")
