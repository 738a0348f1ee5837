"""What `benchmarks.accelerator` keeps, goes on with, stops at and reports; its rows run in tiny form on the CPU."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from repository import ROOT

from benchmarks import accelerator
from benchmarks.accelerators import tables
from benchmarks.accelerators.attacked import open_attacked, read_trades, trades_logits
from benchmarks.accelerators.process import Process, RowError
from benchmarks.accelerators.row_log import RowLog
from benchmarks.accelerators.session import Bench, Row, Settings, run_rows
from benchmarks.rows import Row as StepRow

MACHINE = {"device": "a card", "platform": "gpu", "driver": "1.2", "date": "2026-01-01", "processor": "a processor",
           "cores": 2, "versions": {"jax": "0.11"}}  # fmt: skip


def read(log: RowLog) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> RowLog:
    return RowLog(tmp_path / "out" / "rows.jsonl", tiny=False)


def test_a_line_that_was_cut_off_is_not_done_and_the_next_is_a_line_of_its_own(log: RowLog) -> None:
    for name in "ab":
        log.append({"row": name, "status": "done"})
    log.path.write_text(log.path.read_text()[:-9])
    assert log.is_done("a") and not log.is_done("b")
    log.append({"row": "b", "status": "done", "again": True})
    assert log.is_done("b") and log.latest()["b"]["again"] is True


def test_a_row_that_failed_is_not_done_and_takes_no_place_of_one_that_is(log: RowLog) -> None:
    log.append({"row": "a", "status": "failed", "error": "first"})
    assert not log.is_done("a")
    log.append({"row": "a", "status": "done", "found": 1})
    log.append({"row": "a", "status": "failed", "error": "second"})
    assert log.is_done("a") and log.latest()["a"]["found"] == 1


def test_tiny_rows_count_for_tiny_calls_alone(log: RowLog) -> None:
    RowLog(log.path, tiny=True).append({"row": "a", "status": "done"})
    assert not log.is_done("a") and RowLog(log.path, tiny=True).is_done("a")


def row(name: str, called: list[str], error: Exception | None = None) -> Row:
    def measure(bench: Bench) -> dict[str, Any]:
        called.append(name)
        if error is not None:
            raise error
        return {"left": bench.deadline - time.monotonic()}

    return Row(name, 1.0, measure)


def test_a_row_that_fails_says_why_and_the_next_goes_on(log: RowLog, tmp_path: Path) -> None:
    called: list[str] = []
    rows = [row("p/a", called, ValueError("x" * 3000)), row("p/b", called, RowError("no network")), row("p/c", called)]
    run_rows(rows, Settings(tmp_path), log, MACHINE)
    a, b, c = read(log)
    assert [line["status"] for line in (a, b, c)] == ["failed", "failed", "done"]
    assert a["error"].startswith("ValueError: xxx") and len(a["error"]) == 2000 and b["error"] == "no network"
    assert c["machine"] == MACHINE and c["seconds"] >= 0 and c["tiny"] is False


def test_a_later_call_measures_what_is_missing_or_failed(log: RowLog, tmp_path: Path) -> None:
    called: list[str] = []
    settings, fails = Settings(tmp_path), row("p/b", called, ValueError())
    run_rows([row("p/a", called), fails], settings, log, MACHINE)
    run_rows([row("p/a", called), row("p/b", called), row("p/c", called)], settings, log, MACHINE)
    assert called == ["p/a", "p/b", "p/b", "p/c"]
    run_rows([row("p/a", called)], settings, log, MACHINE, again=True)
    assert called[-1] == "p/a"


def test_it_stops_before_a_row_that_would_not_fit(
    log: RowLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []
    run_rows([row("p/a", called)], Settings(tmp_path), log, MACHINE, minutes=0.9)
    assert called == [] and "Stopped before p/a: it takes 1 minutes, 0.9 are left" in capsys.readouterr().out
    run_rows([row("p/a", called)], Settings(tmp_path), log, MACHINE, minutes=2)
    assert called == ["p/a"] and 100 < read(log)[0]["found"]["left"] <= 120


WORKER = """
import os, time
from benchmarks.accelerators.process import serve_object

class Subject:
    def double(self, x): return {"is": 2 * x}
    def fail(self): raise KeyError("why")
    def crash(self): print("last words", flush=True); os._exit(3)
    def hang(self): time.sleep(600)

serve_object(Subject, "double", "fail", "crash", "hang")
"""


@pytest.mark.e2e
def test_an_error_a_crash_and_a_hang_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    (tmp_path / "subject.py").write_text(WORKER)
    start = lambda seconds: Process("subject", log=tmp_path / "log", deadline=time.monotonic() + seconds)
    with start(60) as process:
        assert process.ask("double", x=4) == {"is": 8}
        with pytest.raises(RowError, match="KeyError: 'why'"):
            process.ask("fail")
        with pytest.raises(RowError, match="(?s)subject ended. .*last words$"):
            process.ask("crash")
    with start(3) as process, pytest.raises(RowError, match="subject was stopped when the time of the row was up"):
        process.ask("hang")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--part=steps,stepz", r"part is 'stepz'; expected one of autoattack, job, steps"),
        ("--minutes=0", r"minutes is 0.0; expected a number above 0"),
        ("--minutes=soon", r"argument --minutes: invalid float value: 'soon'"),
        ("--num_images=0", r"num_images is 0; expected 1 or more"),
        ("--raw_data_dir=nowhere", r"raw_data_dir is 'nowhere'; expected a folder with the official files of MNIST"),
        ("--trades=nowhere.npz", r"trades is 'nowhere.npz'; expected a file .npz"),
        ("--part=steps --only=steps/alexnet", r"only is 'steps/alexnet'; expected the beginning of .* steps/lenet_w1"),
        ("--part=job", r"raw_data_dir is None; expected the folder of MNIST, for job"),
        ("--report --out=nowhere", r"out is 'nowhere'; expected a folder with rows"),
        ("--step=1", r"unrecognized arguments: --step=1"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(flags: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerator", *flags.split()])
    with pytest.raises(SystemExit, match=f"^error: {message}") as refused:
        accelerator.main()
    assert "\n" not in str(refused.value)


def names(settings: Settings, *parts: str) -> list[str]:
    return list(dict.fromkeys(row.part for row in accelerator.rows_of(settings, parts or None, "")))


def test_the_network_is_trained_before_it_is_attacked_unless_another_is_given() -> None:
    without, data = Settings(Path("out")), Path("mnist")
    assert names(without) == ["steps", "seeds", "memory", "equality"]
    assert names(Settings(Path("out"), raw_data_dir=data))[:2] == ["job", "autoattack"]
    assert names(Settings(Path("out"), raw_data_dir=data, trades=Path("t.npz")))[:2] == ["autoattack", "job"]
    assert names(without, "memory", "steps") == ["memory", "steps"]


def test_what_a_row_lacks_is_named(tmp_path: Path) -> None:
    settings = Settings(tmp_path, raw_data_dir=tmp_path)
    rows = {row.name: row for row in accelerator.rows_of(settings, ("job", "autoattack"), "")}
    for name in ("job/evaluate", "autoattack/lenet_1000/rap_jax_default"):
        with pytest.raises(RowError, match=r"job.run holds no finished run; expected .*--only=job/main"):
            rows[name].measure(Bench(settings, name, time.monotonic() + 60))


def draw_trades(path: Path) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"conv1": (32, 1, 3, 3), "conv2": (32, 32, 3, 3), "conv3": (64, 32, 3, 3), "conv4": (64, 64, 3, 3)}
    dense = {"fc1": (200, 1024), "fc2": (200, 200), "fc3": (10, 200)}
    state = {}
    for prefix, layers in (("feature_extractor", shapes), ("classifier", dense)):
        for name, shape in layers.items():
            draw = lambda *size: generator.normal(size=size).astype(np.float32) * 0.05
            state |= {f"{prefix}.{name}.weight": draw(*shape), f"{prefix}.{name}.bias": draw(shape[0])}
    np.savez(path, **state)  # type: ignore[arg-type]
    return state


def test_a_file_that_is_not_the_network_of_trades(tmp_path: Path) -> None:
    state = draw_trades(tmp_path / "trades.npz")
    assert read_trades(tmp_path / "trades.npz").keys() == state.keys()
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz holds weight; expected the arrays classifier.fc1.bias"):
        read_trades(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="raw_data_dir .* lacks t10k-images-idx3-ubyte.gz"):
        open_attacked(str(tmp_path / "trades.npz"), str(tmp_path), 1)


def test_the_network_of_trades_is_that_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch.trades_network import trades_network

    state = draw_trades(tmp_path / "trades.npz")
    images = np.random.default_rng(1).random((4, 28, 28, 1), np.float32)
    with torch.no_grad():
        theirs = trades_network(state)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(jax.jit(trades_logits(state))(images), theirs, atol=1e-5)


def autoattack_line(name: str, flags: str, seconds: float, **changes: Any) -> dict[str, Any]:
    side, _, products = name.rpartition("/")[2].rpartition("_")
    found = {"side": side, "products": products, "num_images": 4, "flags": flags, "seconds": seconds, "robust": 0.5,
             "parts": {"apgd-ce": 1.0}, "examples_per_second": 4 / seconds}  # fmt: skip
    return {"row": name, "status": "done", "found": found, "machine": MACHINE | changes}


def test_the_report_compares_rows_of_one_network_and_one_device() -> None:
    name = "autoattack/trades_4/{}_{}".format
    lines = [
        autoattack_line(name("rap_jax", "default"), "1100", 2.0),
        autoattack_line(name("official", "default"), "1000", 6.0),
        autoattack_line(name("rap_jax", "highest"), "1100", 4.0),
        autoattack_line(name("official", "highest"), "1100", 8.0, device="another card"),
    ]
    text = tables.report({line["row"]: line for line in lines})
    assert "| trades_4/rap_jax_default | 2.0 | 3.00 | 3 of 4 | 50.00% | 2.0 |" in text
    assert "| trades_4/rap_jax_highest | 1.0 |  |  | 50.00% | 4.0 |" in text
    assert "trades_4: rap_jax says the same of 4 of 4 with either products." in text
    assert "- a card, driver 1.2; 2026-01-01: a processor, 2 cores; jax 0.11\n- another card" in text


def test_the_report_of_the_job_leaves_empty_what_was_not_attacked() -> None:
    main = {
        "command_seconds": 80.0,
        "megabytes": 900.0,
        "natural": 0.98,
        "robust": 0.9,
        "stage_seconds": {"admm": 12.0},
    }
    evaluated = {"command_seconds": 36.0, "megabytes": None, "clean": {"natural_accuracy": 0.97}, "auto_attack": None,
                 "pgd": {"robust_accuracy": 0.8}, "combined": {}}  # fmt: skip
    found = {"job/main": main, "job/evaluate": evaluated}
    text = tables.report({n: {"row": n, "status": "done", "found": f, "machine": MACHINE} for n, f in found.items()})
    assert "| main | 80.0 | 98.00% | 90.00% |  | 900 | admm 12.0 |" in text
    assert "| evaluate | 36.0 | 97.00% | 80.00% |  |  |  |" in text


def test_a_report_keeps_rows_of_earlier_ones_and_names_what_failed(tmp_path: Path) -> None:
    first, second = (autoattack_line(f"autoattack/{n}_4/rap_jax_default", "1111", 1.0) for n in ("a", "b"))
    failed = {"row": first["row"], "status": "failed", "error": "no\nmemory", "machine": MACHINE}
    tables.write_report({first["row"]: first}, tmp_path)
    text = tables.write_report({second["row"]: second, first["row"]: failed}, tmp_path)
    assert "| a_4/rap_jax_default |" in text and "| b_4/rap_jax_default |" in text and "memory" not in text
    assert (tmp_path / "accelerator.md").read_text() == text
    text = tables.write_report({"steps/x": failed | {"row": "steps/x"}}, tmp_path)
    assert "## Not measured\n\n- steps/x: no memory" in text
    assert len(json.loads((tmp_path / "accelerator.json").read_text())["rows"]) == 3


@pytest.mark.e2e
def test_the_tiny_form_measures_everything_goes_on_after_a_cut_and_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--out={tmp_path}"]
    call: Callable[..., str] = lambda *flags: (
        subprocess.run(
            [*command, *flags],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    said = call()
    assert "Without --raw_data_dir these parts are left out: autoattack, job." in said
    log = RowLog(tmp_path / "accelerator.jsonl", tiny=True)
    found = log.latest()
    assert {line["status"] for line in found.values()} == {"done"}, said
    assert list(found) == [
        *("steps/lenet_w1", "seeds/lenet_w1_n1", "seeds/lenet_w1_n2", "memory/lenet_w1"),
        *("equality/lenet_mnist_w1", "equality/lenet_mnist_w1_autoattack"),
    ]
    assert min(found["steps/lenet_w1"]["found"]["images_per_second"].values()) > 0
    assert found["equality/lenet_mnist_w1"]["found"]["holds"]
    assert found["equality/lenet_mnist_w1_autoattack"]["found"]["robust"] == {"cpu": 0.5, "default": 0.5}
    assert found["steps/lenet_w1"]["machine"]["platform"] == "cpu"

    kept = log.path.read_text().splitlines()
    log.path.write_text("\n".join([*kept[:2], kept[2][:50]]))
    said = call("--part=steps,seeds")
    assert [line for line in said.splitlines() if "done before" in line] == [
        "steps/lenet_w1: done before",
        "seeds/lenet_w1_n1: done before",
    ]
    assert log.is_done("seeds/lenet_w1_n2")

    text = call("--report")
    assert (tmp_path / "accelerator.md").read_text().strip() == text.strip()
    assert "## Training steps" in text and "| lenet_w1_n2 | 2 |" in text and "## Measured on\n\n- cpu; " in text


@pytest.mark.parametrize("way", ["eager_tf32", "bf16_channels_last"])
def test_the_attack_of_pytorch_sees_the_network_in_evaluation_mode(way: str) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch.accelerator_step_worker import Steps

    steps = Steps(StepRow("", "resnet18", 1, 4, 2), way)
    before = [parameter.detach().clone() for parameter in steps._network.parameters()]
    assert steps.steps(2)["seconds"] > 0
    assert {int(m.num_batches_tracked) for m in steps._network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {2}
    assert all((a != b).any() for a, b in zip(before, steps._network.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in steps._network.parameters())


def test_seconds_of_the_attacks_of_the_official_code() -> None:
    pytest.importorskip("pyautoattack")
    from benchmarks.pytorch.accelerator_autoattack_worker import Clock

    clock = Clock()
    for message in ("using standard version", "running apgd-ce", "robust accuracy", "running square"):
        clock.emit(logging.makeLogRecord({"msg": message}))
    clock.begun = {name: float(number) for number, name in enumerate(clock.begun, start=1)}
    assert clock.seconds(5.0) == {"apgd-ce": 1.0, "square": 3.0}
