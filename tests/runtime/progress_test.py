"""Progress is a bar on a terminal and a line every few seconds elsewhere."""

import io

import pytest

from rap_jax._runtime import progress as progress_lib
from rap_jax._runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_lib, "time", clock)
    return clock


def test_lines_come_every_ten_seconds_and_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("retrain", 100, stream=stream) as progress:
        for count in range(1, 101):
            clock.now += 1.0
            progress.update(count, f"loss {count / 100:.2f}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "retrain step 10/100  ETA 0:01:30  loss 0.10"
    assert lines[8] == "retrain step 90/100  ETA 0:00:10  loss 0.90"
    assert lines[9] == "retrain step 100/100  loss 1.00"
    assert len(lines) == 10


def test_quick_work_gives_its_last_line_only(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("test", 3, unit="image", stream=stream) as progress:
        for count in (1, 2, 3):
            progress.update(count)
    assert stream.getvalue() == "test image 3/3\n"


def test_time_left_counts_from_where_a_resumed_stage_began(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("admm", 8000, start=4000, stream=stream) as progress:
        clock.now += 10.0
        progress.update(4000)
        clock.now += 10.0
        progress.update(4010)
    # 10 steps in 20 seconds, 3990 are left: 7980 seconds.
    assert stream.getvalue().splitlines() == ["admm step 4000/8000", "admm step 4010/8000  ETA 2:13:00"]


def test_a_text_is_a_line_of_its_own_at_once() -> None:
    stream = io.StringIO()
    with Progress("admm", 100, stream=stream) as progress:
        progress.update(1)
        progress.line("epoch 1/6: validation 90%")
    assert stream.getvalue() == "epoch 1/6: validation 90%\n"


def test_lines_do_not_wait_in_a_buffer() -> None:
    flushed: list[str] = []

    class Stream(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    with Progress("admm", 100, stream=Stream()) as progress:
        progress.line("one")
        assert flushed[-1] == "one\n"


def test_terminal_gets_a_bar_with_the_note() -> None:
    stream = Terminal()
    with Progress("pretrain", 50, stream=stream) as progress:
        progress.update(25, "loss 2.301")
        progress.line("epoch 1/2: validation 90%")
        progress.update(50, "loss 1.000")
    text = stream.getvalue()
    assert "pretrain: 100%" in text and "50/50" in text and "loss 1.000" in text
    assert "\r" in text
    assert "epoch 1/2: validation 90%\n" in text
    assert "pretrain step" not in text  # no plain lines beside the bar


def test_bar_of_a_resumed_stage_starts_where_it_was() -> None:
    stream = Terminal()
    with Progress("pretrain", 50, start=40, stream=stream):
        pass
    assert "40/50" in stream.getvalue() and "80%" in stream.getvalue()


def test_bar_is_closed_when_the_work_fails() -> None:
    stream = Terminal()
    with pytest.raises(RuntimeError), Progress("pretrain", 50, stream=stream) as progress:
        progress.update(10)
        raise RuntimeError
    assert stream.getvalue().endswith("\n")  # what is printed next does not land in the bar


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("test", 1) as progress:
        progress.update(1)
    captured = capsys.readouterr()
    assert captured.err == "test step 1/1\n" and captured.out == ""


@pytest.mark.parametrize(
    ("style", "bar", "text"), [("bar", True, True), ("plain", False, True), ("none", False, False)]
)
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_the_style_wins_over_the_kind_of_stream(
    style: progress_lib.Style, bar: bool, text: bool, kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_lib, "_style", "auto")
    progress_lib.show_as(style)
    stream = kind()
    with Progress("admm", 2, stream=stream) as progress:
        progress.update(2)
        progress.line("epoch 1/1")
    found = stream.getvalue()
    assert ("2/2 [" in found) is bar and ("epoch 1/1\n" in found) is text and bool(found) is text
