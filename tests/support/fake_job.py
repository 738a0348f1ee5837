"""A command that takes the place of a training run in tests of the runner: seconds become milliseconds."""

import fcntl
import json
import signal
import sys
import time
from pathlib import Path

from rap_jax._runtime.integrity import write_checked


def wait_for(path: Path) -> None:
    """Ends the process with an error if another job does not begin."""
    late = time.monotonic() + 120
    while not path.exists():
        if time.monotonic() > late:
            sys.exit(f"error: {path} is not there.")
        time.sleep(0.02)


def main() -> None:
    given = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
    folder = Path(given["out_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "calls").open("a") as file:
        file.write(json.dumps({"began": time.time()} | given) + "\n")
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"error: Run folder {folder} is in use by another process; wait.")
        signal.signal(signal.SIGTERM, lambda *_: (folder / "stopped").touch() or sys.exit(143))
        time.sleep(float(given.get("seconds", 0)))
        if "meets" in given:
            wait_for(folder.parent / given["meets"] / "calls")
        if "fail" in given:
            sys.exit(given["fail"])
        if "kill" in given:
            signal.raise_signal(signal.SIGKILL)
        if "damage" in given:
            (folder / "results.json").write_text("{")
        elif "silent" not in given:
            (folder / "results.json").write_text(write_checked({"ended": time.time()} | given))


if __name__ == "__main__":
    main()
