"""A command of `launch` as users call it, and then the peak of the card's memory in a file.

python -m benchmarks.accelerators.command_worker main|evaluate MEMORY.json FLAGS...
"""

import json
import sys
from pathlib import Path

from benchmarks.accelerators.step_worker import peak_memory
from launch import evaluate
from launch import main as train

_COMMANDS = {"main": train.main, "evaluate": evaluate.main}


def main(command: str, path: str, *flags: str) -> None:
    """Runs the command; if it fails this process ends as it does, and there is no file."""
    _COMMANDS[command]([f"launch.{command}", *flags])
    Path(path).write_text(json.dumps(peak_memory()))


if __name__ == "__main__":
    main(*sys.argv[1:])
