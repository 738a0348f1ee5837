"""Finished pieces of a long job on disk, so that it can be stopped and gone on with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rap_jax._runtime.integrity import write_atomically
from rap_jax.runs.folder import difference

Answer = dict[str, Any]


class NotDoneError(Exception):
    """A piece is asked for that has not been done and is not to be done now."""


class Kept:
    """Pieces in a folder, one file of JSON each.

    Args:
      folder: made if it is not there.
      identity: what must be the same for all pieces in it.

    Raises:
      ValueError: the folder holds pieces of another identity.
    """

    def __init__(self, folder: Path, identity: Answer):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path, expected = folder / "identity.json", json.loads(json.dumps(identity))
        if path.exists() and (found := json.loads(path.read_text())) != expected:
            changes = difference(found, expected)
            raise ValueError(f"{folder} holds pieces of another job:\n{changes}\nName another folder.")
        write_atomically(path, json.dumps(expected, indent=1))

    def get(self, name: str, make: Callable[[], Answer], *, may_run: bool) -> Answer:
        """The piece `name`, made now if it is not there.

        Raises:
          NotDoneError: it is not there and `may_run` is False.
        """
        path = self._folder / f"{name}.json"
        if not path.exists():
            if not may_run:
                raise NotDoneError(name)
            print(f"{self._folder.name}/{name}", flush=True)
            write_atomically(path, json.dumps(make()))
        answer: Answer = json.loads(path.read_text())
        return answer
