"""What is decided is not attacked again, every batch is full that can be, and the answer is that of attacking all."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rap_jax.evaluation.accuracy import robust_examples

pytestmark = pytest.mark.usefixtures("optimised")


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 5), st.integers(1, 12), st.data())
@hypothesis.settings(deadline=None)
def test_the_answer_and_what_it_took(
    seed: int, num_examples: int, num_restarts: int, batch_size: int, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    broken = generator.random((100, num_restarts)) < share
    examples = np.sort(generator.permutation(100)[:num_examples]).astype(np.int32)
    batches, left = [], []

    def attack_batch(numbers: np.ndarray, restarts: np.ndarray) -> np.ndarray:
        assert numbers.shape == restarts.shape == (batch_size,) and numbers.dtype == restarts.dtype == np.int32
        batches.append(list(zip(numbers.tolist(), restarts.tolist(), strict=True)))
        return ~broken[numbers, restarts]

    found = robust_examples(
        examples, attack_batch, num_restarts=num_restarts, batch_size=batch_size, on_batch=left.append
    )
    np.testing.assert_array_equal(found, [n for n in examples if not broken[n].any()])
    assert found.dtype == np.int32

    first_broken = np.where(broken.any(1), broken.argmax(1) + 1, num_restarts)
    needed = {(int(n), r) for n in examples for r in range(first_broken[n])}
    distinct = [list(dict.fromkeys(batch)) for batch in batches]
    attacked = [pair for batch in distinct for pair in batch]
    assert len(attacked) == len(set(attacked)) and set(attacked) == needed
    assert left == sorted(left, reverse=True) and (not left or left[-1] == 0)
    # A batch has gaps only if everything that waited was in it: what follows are later restarts of the same examples.
    for batch, later in itertools.pairwise(distinct):
        if len(batch) < batch_size:
            assert {n for n, _ in later} <= {n for n, _ in batch}


@pytest.mark.parametrize("bad", [{"num_restarts": 0}, {"batch_size": 0}])
def test_refuses(bad: dict[str, int]) -> None:
    name = next(iter(bad))
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
        robust_examples(
            np.zeros(0, np.int32), lambda *pairs: pairs[0] == 0, **({"num_restarts": 1, "batch_size": 1} | bad)
        )
