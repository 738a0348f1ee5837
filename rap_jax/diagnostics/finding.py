"""Something that should make one doubt a robust accuracy."""

from typing import NamedTuple


class Finding(NamedTuple):
    """Something that should make one doubt. Attributes: name: in short; text: what it means and what to do."""

    name: str
    text: str
