"""kill -9 at random moments: every run that comes to its end has the bits of one that nothing interrupted."""

import json
import random
from pathlib import Path

import pytest
import tiny
from kills import as_table, kill_again_and_again
from tiers import few_and_many

SEED = 20191027


@pytest.mark.parametrize("number", few_and_many(1, 6))
def test_kills_change_no_bit(tmp_path: Path, number: int) -> None:
    process = tiny.start_command(tmp_path / "whole", num_devices=2)
    said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    start = lambda folder: tiny.start_command(folder, num_devices=2)
    kills, finished = kill_again_and_again(tmp_path, start, num_kills=number, generator=random.Random(SEED))
    print(f"seed {SEED}, {len(kills)} kills, {len(finished)} runs finished\n{as_table(kills)}")
    expected = json.loads((tmp_path / "whole" / "results.json").read_text())
    for folder in finished:
        assert tiny.digests_of(folder) == tiny.digests_of(tmp_path / "whole")
        results = json.loads((folder / "results.json").read_text())
        assert tiny.without_time_and_place(results) == tiny.without_time_and_place(expected)
        assert tiny.metrics_of(folder) == tiny.metrics_of(tmp_path / "whole")
