"""JSON objects that carry a checksum of their values: a number that was changed on disk is refused, not believed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_CHECKSUM = "checksum"


def write_checked(value: Mapping[str, Any]) -> str:
    """The text of a JSON object, with the checksum as its last key."""
    as_read = json.loads(json.dumps(value))  # numbers as keys are text there
    return json.dumps({**as_read, _CHECKSUM: _checksum(as_read)}, indent=2) + "\n"


def read_checked(text: str) -> dict[str, Any]:
    """The JSON object in a text, without its checksum.

    Raises:
      ValueError: it is no JSON object, it has no checksum, or its values are not those that were written.
    """
    value = read_object(text)
    if _CHECKSUM not in value:
        raise ValueError("it has no checksum, so its values may be others than were written")
    if value.pop(_CHECKSUM) != _checksum(value):
        raise ValueError("a value in it was changed after it was written")
    return value


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, whatever it holds.

    Raises:
      ValueError: it is no JSON object.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {value!r:.40} and no object")
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    """Of the values alone, whatever the file looks like: keys sorted, numbers as JSON writes them."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
