"""What a damaged JSON file of a run says: never another number."""

import json
import random

import pytest

from rap_jax._runtime.integrity import read_checked, write_checked

VALUE = {"accuracy": 0.9371, "steps": {3: [1, 2.5]}, "name": "né", "none": None, "loss": float("inf"), "ramp": (0, 1)}
EXPECTED = {**VALUE, "steps": {"3": [1, 2.5]}, "ramp": [0, 1]}


def test_values_come_back_without_the_checksum() -> None:
    text = write_checked(VALUE)
    assert read_checked(text) == EXPECTED
    assert read_checked(json.dumps(json.loads(text), sort_keys=True)) == EXPECTED, "however it is laid out"


def test_a_changed_value_is_refused() -> None:
    with pytest.raises(ValueError, match="a value in it was changed after it was written"):
        read_checked(write_checked(VALUE).replace("0.9371", "0.9471"))
    with pytest.raises(ValueError, match="it has no checksum"):
        read_checked('{"accuracy": 0.5}')
    with pytest.raises(ValueError, match=r"it holds \[1\] and no object"):
        read_checked("[1]")


def test_no_flipped_bit_gives_another_value() -> None:
    text = write_checked(VALUE)
    generator, refused = random.Random(0), 0
    for _ in range(2000):
        place = generator.randrange(len(text))
        damaged = text[:place] + chr(ord(text[place]) ^ (1 << generator.randrange(7))) + text[place + 1 :]
        try:
            found = read_checked(damaged)
        except ValueError:
            refused += 1
            continue
        assert found == EXPECTED
    assert refused > 1000
