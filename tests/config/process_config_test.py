"""Settings of processes that cannot work are refused."""

from typing import Any

import pytest

from rap_jax.config import ProcessConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator_address": "host"}, "coordinator_address is 'host'; expected HOST:PORT"),
        ({"coordinator_address": "host:0", "num_processes": 2}, "expected HOST:PORT"),
        ({"coordinator_address": "host:1"}, "num_processes is 1; expected 2 or more processes"),
        ({"num_processes": 2}, "num_processes is 2; expected 1 without --coordinator_address"),
        ({"coordinator_address": "host:1", "num_processes": 2, "process_id": 2}, "process_id is 2; expected a number"),
        ({"coordinator_address": "host:1", "num_processes": 2}, "process_id is None; expected a number from 0 to 1"),
        ({"process_id": 0}, "process_id is 0; expected none without --coordinator_address"),
        ({"initialization_timeout": 0}, "initialization_timeout is 0; expected 1 second or more"),
        ({"coordinator_address": "host:1", "distributed": True}, "expected none with --distributed"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessConfig(**settings)
