"""Whether training on all cores goes on and on: `python -m benchmarks.soak --minutes=60`.

A process of its own takes training steps and evaluates in turn, on the devices that `launch.main` would choose, while
another keeps all cores busy with matrix products. This one only watches: a line every minute, and at the end one
verdict, which also goes into `benchmarks/results/soak.json`. It has failed if the process ends, or if nothing is heard
of it for `--limit` seconds.
"""

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.records import RESULTS

Beat = dict[str, Any]


class Tally:
    """What has been heard so far, in all and since the last line."""

    def __init__(self) -> None:
        self.began = self.last_line = time.monotonic()
        self.devices = ""
        self.counts = {"step": 0, "evaluation": 0}
        self.slowest = {"step": 0.0, "evaluation": 0.0}
        self.slowest_since = dict(self.slowest)

    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.began) / 60

    def add(self, beat: Beat) -> None:
        """Counts a beat, and prints a line if a minute is over."""
        if beat["kind"] == "devices":
            self.devices = beat["text"]
            print(self.devices, flush=True)
        elif beat["kind"] in self.counts:
            kind, seconds = beat["kind"], beat["seconds"]
            # What compiles is the first of its kind.
            if self.counts[kind]:
                self.slowest[kind] = max(self.slowest[kind], seconds)
                self.slowest_since[kind] = max(self.slowest_since[kind], seconds)
            self.counts[kind] += 1
        if time.monotonic() - self.last_line >= 60:
            self.last_line = time.monotonic()
            slowest = self.slowest_since
            print(f"{self.minutes():4.0f} min: {self.in_words(slowest)}", flush=True)
            self.slowest_since = dict.fromkeys(slowest, 0.0)

    def in_words(self, slowest: dict[str, float]) -> str:
        """The counts and the longest times."""
        steps, evaluations = self.counts["step"], self.counts["evaluation"]
        return (
            f"{steps} steps, {evaluations} evaluations; slowest step {slowest['step']:.2f} s, slowest evaluation "
            f"{slowest['evaluation']:.2f} s"
        )


def watch(command: list[str], minutes: float, limit: float, tally: Tally) -> str | None:
    """Runs the command for so long; returns what went wrong, or None."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        beats: queue.Queue[Beat | None] = queue.Queue()
        threading.Thread(target=_listen, args=(process.stdout, beats), daemon=True).start()
        try:
            while tally.minutes() < minutes:
                beat = beats.get(timeout=limit)
                if beat is None:
                    return f"the process ended with {process.wait()}"
                tally.add(beat)
        except queue.Empty:
            return f"nothing was heard of the process for {limit:g} s"
        finally:
            process.kill()
    return None


def _listen(lines: Iterable[str], beats: "queue.Queue[Beat | None]") -> None:
    for line in lines:
        beats.put(json.loads(line))
    beats.put(None)


def main() -> None:
    """Watches, and ends with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds without a sign of life that are too many")
    given = parser.parse_args()
    worker = [sys.executable, "-m", "benchmarks.soak_worker"]
    tally = Tally()
    with subprocess.Popen([*worker, "neighbour"]) as neighbour:
        try:
            wrong = watch([*worker, "train"], given.minutes, given.limit, tally)
        finally:
            neighbour.kill()
    verdict = f"{'failed: ' + wrong if wrong else 'passed'}; {tally.minutes():.1f} minutes"
    record = {"verdict": verdict, "minutes": tally.minutes(), "devices": tally.devices, "counts": tally.counts}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(record | {"slowest_seconds": tally.slowest, "measured": describe_machine()}, indent=1)
    (RESULTS / "soak.json").write_text(f"{text}\n")
    print(f"soak {verdict}, {tally.in_words(tally.slowest)}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
