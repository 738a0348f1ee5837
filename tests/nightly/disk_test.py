"""A disk that is full, as a limit on the size of files: the error names the file, and with room the run goes on."""

import resource
import time
from pathlib import Path

import pytest
import tiny

SECONDS = 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = tiny.start_command(folder, num_devices=1)
    said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return folder


def without_late_writes(said: str) -> list[str]:
    """The lines but for one traceback: a thread of TensorStore whose write failed too, after our error was decided."""
    late = "RuntimeError: Event loop is closed"
    lines = said.splitlines()
    return [line for line in lines if late not in lines or (line != late and not line.startswith(("Traceback", "  ")))]


# In an array of a checkpoint, and in a line of the metrics.
@pytest.mark.parametrize(
    ("most_bytes", "expected"),
    [
        (20_000, ("error: Checkpoint ", "/checkpoints/admm (...", "The one before it is kept. Make room")),
        (300, ("metrics.jsonl", "File too large; what was saved before is whole", "run the same command to go on")),
    ],
)
def test_a_full_disk_loses_nothing(tmp_path: Path, whole: Path, most_bytes: int, expected: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    process = tiny.start_command(folder, num_devices=1)
    end = time.monotonic() + SECONDS
    while not any(line["stage"] == "admm" for line in tiny.metrics_of(folder)):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert all(words in said for words in expected), said
    assert without_late_writes(said)[-1].startswith("error: "), said
    again = tiny.start_command(folder, num_devices=1)
    assert again.wait(timeout=SECONDS) == 0, again.communicate()
    again.communicate()
    assert tiny.digests_of(folder) == tiny.digests_of(whole)
    assert tiny.metrics_of(folder) == tiny.metrics_of(whole)
