"""metrics.jsonl: what was written is read, and what was changed since is not."""

import json
import random
import struct
from pathlib import Path

import pytest
from absl import logging

from rap_jax.runs.metrics import EventFiles, Line, as_text, read_lines, read_metrics

LINES: list[Line] = [
    {"kind": "train", "stage": "pretrain", "step": 1, "epoch": 0.1, "loss": 2.25, "accuracy": 0.125},
    {"kind": "validation", "stage": "pretrain", "step": 10, "epoch": 1.0, "natural_accuracy": 0.9}
    | {"robust_accuracy": 0.1 + 0.2, "selected": True},
    {"kind": "admm", "stage": "admm", "step": 5, "epoch": 0.5, "layer": "conv1/kernel", "distance": 1e-30}
    | {"primal_residual": 0.5, "dual_residual": float("inf"), "rho": 0.01},
]
TRAIN = LINES[0]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the library warns of, as the user reads it."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines


def write(path: Path, *texts: str) -> Path:
    path.write_text("\n".join(texts))
    return path


def test_what_was_written_is_read(tmp_path: Path, warnings: list[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(as_text(line) for line in LINES))
    assert list(read_lines(path)) == LINES and not warnings
    assert read_metrics(path) == [LINES[0], LINES[2], LINES[1]], "in the order of the steps"


def test_lines_of_earlier_versions_have_no_checksum(tmp_path: Path, warnings: list[str]) -> None:
    path = write(tmp_path / "metrics.jsonl", *(json.dumps(line) for line in LINES))
    assert list(read_lines(path)) == LINES and not warnings


def test_a_half_line_is_skipped_and_of_a_repeated_step_the_last_counts(tmp_path: Path, warnings: list[str]) -> None:
    first = [as_text(TRAIN | {"step": step, "loss": 1.0}).strip() for step in (0, 1, 2)]
    again = [as_text(TRAIN | {"step": step, "loss": 2.0}).strip() for step in (1, 2)]
    path = write(tmp_path / "metrics.jsonl", *first, first[0][:20], *again, "3")
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(0, 1.0), (1, 2.0), (2, 2.0)]
    assert warnings == [f"{path}: 2 lines that cannot be read were skipped."]


@pytest.mark.parametrize(
    "change",
    [*({"step": "1"}, {"epoch": None}, {"loss": "2"}, {"kind": "other"}, {"kind": []}, {"stage": "test"})]
    + [{"kind": "admm"}, {"kind": "validation"}],
)
def test_what_is_no_line_of_its_kind_is_skipped(tmp_path: Path, warnings: list[str], change: Line) -> None:
    path = write(tmp_path / "metrics.jsonl", json.dumps(TRAIN | change), json.dumps(TRAIN))
    assert read_metrics(path) == [TRAIN] and len(warnings) == 1


def test_no_damage_gives_a_number_that_was_not_written(tmp_path: Path, warnings: list[str]) -> None:
    whole = "".join(as_text(line) for line in LINES).encode()
    generator = random.Random(20191027)
    path = tmp_path / "metrics.jsonl"
    for _ in range(2000):
        place, length = generator.randrange(len(whole)), generator.randrange(1, 12)
        put_in = bytes(generator.choice(b'0123456789."abcdeklnp, {}\n\xc3') for _ in range(generator.randrange(3)))
        path.write_bytes(whole[:place] + put_in + whole[place + length :])
        assert all(line in LINES for line in read_lines(path)), path.read_bytes()
    assert len(warnings) > 1000


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard reads: tag and step -> value. A record is its length, a checksum, the bytes, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            content = content[16 + length :]
    return found


def test_event_files_have_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    events = EventFiles(tmp_path / "tensorboard")
    events.close()
    assert not (tmp_path / "tensorboard").exists(), "a finished run that is called again"
    for line in LINES:
        events.add(line)
    events.close()
    expected = {
        ("pretrain/train/epoch", 1): 0.1, ("pretrain/train/loss", 1): 2.25, ("pretrain/train/accuracy", 1): 0.125,
        ("pretrain/validation/epoch", 10): 1.0, ("pretrain/validation/natural_accuracy", 10): 0.9,
        ("pretrain/validation/robust_accuracy", 10): 0.3, ("admm/admm/conv1/kernel/epoch", 5): 0.5,
        ("admm/admm/conv1/kernel/distance", 5): 1e-30, ("admm/admm/conv1/kernel/primal_residual", 5): 0.5,
        ("admm/admm/conv1/kernel/dual_residual", 5): float("inf"), ("admm/admm/conv1/kernel/rho", 5): 0.01,
    }  # fmt: skip
    assert scalars(tmp_path / "tensorboard") == pytest.approx(expected, rel=1e-6)
