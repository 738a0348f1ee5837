"""Square against NumPy with loops and slices on the same random numbers, and by its properties."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy_square import numpy_first, numpy_next, numpy_pattern

from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import margin
from rap_jax.attacks.norms import NORMS
from rap_jax.attacks.square import _DRAWN_AHEAD, HybridSquare, Square, SquareState, accept, square
from rap_jax.attacks.square_candidates import (
    CANDIDATES,
    Draws,
    FirstDraws,
    draw,
    draw_first,
    pattern,
    tiling,
    window_sides,
)

SHAPE = (6, 11, 13, 2)
SHAPES = [(11, 13, 2), (28, 28, 1), (13, 7, 3), (2, 5, 1)]
RADIUS = {"linf": 0.1, "l2": 1.0}
LINF = ThreatModel("linf", RADIUS["linf"])
by_norm = pytest.mark.parametrize("norm", NORMS)


def some_images(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    uniform = np.random.default_rng(0).random(shape, np.float32)
    return np.clip(1.4 * uniform - 0.2, 0, 1)  # some pixels lie on the border of the box


def keys_for(images: jax.Array) -> jax.Array:
    return jax.random.split(jax.random.key(1), len(images))


@functools.cache
def a_network() -> LogitsFn:
    """Two layers of random weights, with the same sums for an example in any batch."""
    size = int(np.prod(SHAPE[1:]))
    rng = np.random.default_rng(2)
    first = jnp.asarray(rng.normal(size=(1, size, 20)) / size**0.5, jnp.float32)
    second = jnp.asarray(rng.normal(size=(1, 20, 4)), jnp.float32)

    @jax.jit
    def logits_fn(images: jax.Array) -> jax.Array:
        hidden = jnp.tanh(4 * (images.reshape(len(images), -1, 1) * first).sum(1))
        return (hidden[..., None] * second).sum(1)

    return logits_fn


def labelled(num_images: int = SHAPE[0]) -> tuple[jax.Array, jax.Array]:
    """Images with what the network makes of them."""
    images = jnp.asarray(some_images((num_images, *SHAPE[1:])))
    return images, a_network()(images).argmax(-1)


Advance = Callable[[SquareState, int], SquareState]


@functools.cache
def a_search(norm: str) -> tuple[Square, SquareState, Advance]:
    """An attack, its start, and the compiled function (state, number of steps) -> state."""
    attack, (images, labels) = Square(ThreatModel(norm, RADIUS[norm]), num_steps=60), labelled()
    start = jax.jit(lambda keys: attack.start(a_network(), keys, images, labels, labels))
    return attack, start(keys_for(images)), jax.jit(lambda state, steps: attack.advance(a_network(), state, steps))


@functools.cache
def next_images(norm: str) -> Callable[..., jax.Array]:
    return jax.jit(CANDIDATES[norm].next)


def some_draws(num_images: int, num_channels: int, seed: int) -> Draws:
    uniforms = np.random.default_rng(seed).random((num_images, 5 + num_channels), np.float32)
    return Draws(uniforms[:, :2], uniforms[:, 2:4], uniforms[:, 4] > 0.5, np.sign(uniforms[:, 5:] - 0.5))


def some_first_draws(num_images: int, grid: tuple[int, int], num_channels: int) -> FirstDraws:
    uniforms = np.random.default_rng(3).random((num_images, *grid, 1 + num_channels), np.float32)
    return FirstDraws(np.sign(uniforms[..., 1:] - 0.5), uniforms[..., 0] > 0.5)


def assert_same(found: Any, expected: Any, **tolerance: float) -> None:
    found, expected = (tree._replace(keys=jax.random.key_data(tree.keys)) for tree in (found, expected))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), found, expected)


def numpy_search(attack: Square, state: SquareState, num_steps: int) -> list[np.ndarray]:
    """The best images after `num_steps` candidates, in float64 but for the network."""
    norm, epsilon = attack.threat_model.norm, float(attack.threat_model.epsilon)
    images, best = (np.asarray(x, np.float64) for x in (state.images, state.adversarial))
    queries = jnp.broadcast_to(jnp.arange(1, num_steps + 1)[:, None], (num_steps, len(images)))
    draws = jax.jit(jax.vmap(draw, (None, 0, None)), static_argnums=2)(state.keys, queries, SHAPE[-1])
    draws = Draws(*map(np.asarray, draws))

    def ask(i: int, image: np.ndarray) -> tuple[float, bool]:
        logits = np.asarray(a_network()(jnp.asarray(image[None], jnp.float32)))[0]
        label = int(state.labels[i])
        return logits[label] - np.delete(logits, label).max(), logits.argmax() != label

    for i in range(len(images)):
        lead, wrong = ask(i, best[i])
        for iteration in range(num_steps):
            if wrong:
                break
            halvings = sum(iteration > step for step in (10, 50))
            side = int(window_sides(norm, *SHAPE[1:3], 0.8)[halvings])
            one = Draws(*(x[iteration, i] for x in draws))
            candidate = numpy_next(norm, images[i], best[i], one, side, epsilon)
            new_lead, new_wrong = ask(i, candidate)
            if new_lead < lead or new_lead <= 0:
                best[i], lead, wrong = candidate, new_lead, new_wrong
    return list(best)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 11])
def test_pattern_equals_numpy(side: int) -> None:
    np.testing.assert_allclose(pattern(side), numpy_pattern(side), atol=1e-6)


@by_norm
@pytest.mark.parametrize("shape", SHAPES)
def test_first_images_equal_numpy(norm: str, shape: tuple[int, ...]) -> None:
    images, epsilon, candidates = some_images((4, *shape)), RADIUS[norm], CANDIDATES[norm]
    draws = some_first_draws(4, candidates.grid(*shape[:2]), shape[2])
    found = jax.jit(candidates.first)(images, draws, epsilon)
    each = zip(images.astype(np.float64), *draws, strict=True)
    expected = [numpy_first(norm, image, signs, transposed, epsilon) for image, signs, transposed in each]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@by_norm
@pytest.mark.parametrize("shape", SHAPES)
def test_candidates_equal_numpy(norm: str, shape: tuple[int, ...]) -> None:
    """From an image that has gone some steps; each example has another side."""
    images, epsilon, candidates = some_images((8, *shape)), RADIUS[norm], CANDIDATES[norm]
    sides = window_sides(norm, *shape[:2], 0.8)[:8]
    draws = some_first_draws(8, candidates.grid(*shape[:2]), shape[2])
    best = np.asarray([numpy_first(norm, *one, epsilon) for one in zip(images, *draws, strict=True)])
    for query in range(5):
        draws = some_draws(8, shape[2], query)
        found = next_images(norm)(images, best, draws, sides, epsilon)
        for i in range(8):
            one = Draws(*(x[i] for x in draws))
            clean, before = (x[i].astype(np.float64) for x in (images, best))
            expected = numpy_next(norm, clean, before, one, int(sides[i]), epsilon)
            np.testing.assert_allclose(found[i], expected, atol=3e-6)
        best = np.asarray(found)


@by_norm
def test_a_search_equals_numpy(norm: str) -> None:
    attack, state, advance = a_search(norm)
    found = advance(state, 60)
    assert 0 < found.broken.sum() < len(found.broken), "else half of the rules are not put to the test"
    np.testing.assert_allclose(found.adversarial, numpy_search(attack, state, 60), atol=2e-5)


def test_sides_follow_the_schedule() -> None:
    """28 x 28 pixels: the square root of 0.8 * 784 / 2^k; and what the limits make of it."""
    np.testing.assert_array_equal(window_sides("linf", 28, 28, 0.8), [25, 18, 13, 9, 6, 4, 3, 2, 2, 1])
    np.testing.assert_array_equal(window_sides("l2", 28, 28, 0.8), [25, 19, 13, 9, 7, 5, 3, 3, 3, 3])
    np.testing.assert_array_equal(window_sides("linf", 8, 40, 0.8)[:4], [8, 8, 8, 6])
    np.testing.assert_array_equal(window_sides("l2", 2, 2, 0.8), [2] * 10)
    steps = jnp.asarray([0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2001, 4001, 6001, 8000, 8001, 20000])
    sides = Square(LINF).sides(steps, 28, 28)
    np.testing.assert_array_equal(sides, [25, 25, 18, 18, 13, 13, 9, 9, 6, 6, 4, 3, 2, 2, 2, 1, 1])


def test_tiles() -> None:
    assert tiling(28, 28) == (5, 1, 5, 5)
    assert tiling(224, 224) == (44, 2, 5, 5)
    assert tiling(30, 47) == (6, 0, 5, 7)
    assert tiling(4, 4) == (1, 0, 4, 4)


@by_norm
def test_windows_reach_every_corner(norm: str) -> None:
    images = jnp.full((1, 9, 9, 1), 0.5)
    for corner in [(0, 0), (0, 0.999), (0.999, 0), (0.999, 0.999)]:
        draws = Draws(jnp.asarray([corner]), jnp.full((1, 2), 0.5), jnp.zeros(1, bool), jnp.ones((1, 1)))
        found = next_images(norm)(images, images, draws, jnp.asarray([3]), 0.1)
        changed = np.argwhere(np.asarray(found != images)[0, :, :, 0])
        row, column = (6 if u else 0 for u in corner)
        assert changed.min(0).tolist() == [row, column] and changed.max(0).tolist() == [row + 2, column + 2]


def test_draws() -> None:
    """Uniform, and independent between examples, queries and each other."""
    number = 2000
    keys = jax.random.split(jax.random.key(0), number)
    of_query = jax.jit(lambda query: draw(keys, jnp.full(number, query), 3))
    first, second = (Draws(*map(np.asarray, of_query(query))) for query in (1, 2))
    columns = np.concatenate([x.reshape(number, -1) for x in first + second], axis=1)
    for uniform in (*first.corner.T, *first.other_corner.T):
        np.testing.assert_allclose(np.sort(uniform), np.linspace(0, 1, number), atol=0.04)
    np.testing.assert_allclose(first.transposed.mean(), 0.5, atol=0.04)
    np.testing.assert_allclose(first.signs.mean(0), 0, atol=0.08)
    np.testing.assert_array_equal(np.abs(first.signs), 1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1])).max() < 0.1
    tiles = jax.jit(lambda keys: draw_first(keys, (5, 5), 3))(keys[:100])
    assert tiles.signs.shape == (100, 5, 5, 3) and tiles.transposed.shape == (100, 5, 5)
    np.testing.assert_allclose([tiles.signs.mean(), tiles.transposed.mean()], [0, 0.5], atol=0.05)


def test_acceptance() -> None:
    """A higher margin, a tie or a misclassified candidate; nothing once the example is broken; no NaN."""
    cases = [  # margin before, broken before, margin and verdict of the candidate, accepted, broken after
        (-1.0, False, -0.5, False, True, False),
        (-1.0, False, -1.5, False, False, False),
        (-1.0, False, -1.0, False, False, False),
        (-1.0, False, 0.3, True, True, True),
        (-1.0, False, 0.0, True, True, True),
        (-1.0, False, 0.0, False, True, False),
        (0.0, False, 0.0, False, True, False),
        (0.2, True, 0.5, True, False, True),
        (-1.0, False, np.nan, True, False, False),
    ]
    columns = (np.array(x) for x in zip(*cases, strict=True))
    before, was_broken, after, wrong, accepted, broken = (
        x.astype(np.float32) if x.dtype == float else x for x in columns
    )
    number = len(cases)
    zeros, ones = jnp.zeros((number, 1, 1, 1)), jnp.ones((number, 1, 1, 1))
    steps = jnp.full(number, 7, jnp.int32)
    keys = jax.random.split(jax.random.key(0), number)
    state = SquareState(keys, zeros, steps, steps, zeros, before, was_broken, jnp.ones(number, bool), steps)
    found = accept(state, ones, after, wrong)
    np.testing.assert_array_equal(found.adversarial[:, 0, 0, 0], accepted)
    np.testing.assert_array_equal(found.margin, np.where(accepted, after, before))
    np.testing.assert_array_equal(found.broken, broken)
    np.testing.assert_array_equal(found.iteration, 7 + ~was_broken)


@by_norm
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_stays_in_ball_and_box(norm: str, share: float) -> None:
    """Wherever it goes: every candidate is accepted."""
    images, epsilon, candidates = some_images(), share * RADIUS[norm], CANDIDATES[norm]
    draws = some_first_draws(6, candidates.grid(*SHAPE[1:3]), SHAPE[3])
    best = jax.jit(candidates.first)(images, draws, epsilon)
    for query in range(40):
        delta = np.asarray(best, np.float64) - images
        size = np.abs(delta).max((1, 2, 3)) if norm == "linf" else np.sqrt((delta**2).sum((1, 2, 3)))
        assert (size <= epsilon * (1 + 1e-6) + 1e-7).all()
        assert best.min() >= 0 and best.max() <= 1
        sides = window_sides(norm, *SHAPE[1:3], 0.8)[query % 5 : query % 5 + 6]
        best = next_images(norm)(images, best, some_draws(6, SHAPE[3], query), sides, epsilon)


@by_norm
def test_pieces_make_a_whole(norm: str) -> None:
    _, state, advance = a_search(norm)
    pieces = state
    for num_steps in (1, 14, 0, 45):
        pieces = advance(pieces, num_steps)
    assert_same(pieces, advance(state, 60))


@by_norm
def test_an_example_goes_its_own_way(norm: str) -> None:
    """Neither neighbours nor their iterations matter to what comes out in the end."""
    _, state, advance = a_search(norm)
    once, end = advance(state, 8), advance(state, 60)
    odd = np.arange(len(state.broken)) % 2 == 1
    mix = lambda x, y: jax.tree.map(lambda x, y: jnp.stack([(y if o else x)[i] for i, o in enumerate(odd)]), x, y)
    assert_same(advance(mix(state, once), 60), end, atol=1e-6)
    alone = jax.tree.map(lambda x: x[1:2], once)
    assert_same(advance(alone, 52), jax.tree.map(lambda x: x[1:2], end), atol=1e-6)


@pytest.mark.parametrize("drawn", [2, 3])
def test_candidates_that_change_nothing_are_not_asked_about(drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All else stays as it is, bit for bit, up to the last candidate and no further."""
    attack, state, _ = a_search("linf")
    hard = a_network()
    found, num_queries = [], []
    for number in (1, drawn):
        monkeypatch.setitem(_DRAWN_AHEAD, "linf", number)
        step = jax.jit(lambda state: attack.step(hard, state))
        now, count = state._replace(due=jnp.full(len(state.broken), 60)), 0
        while (~now.broken & (now.iteration < 60)).any():
            now, count = step(now), count + 1
        found.append(now)
        num_queries.append(count)
    jax.tree.map(np.testing.assert_array_equal, *(tree._replace(keys=()) for tree in found))
    assert num_queries[1] < num_queries[0] == 60 and (found[1].iteration[~found[1].broken] == 60).all()


def test_the_key_decides() -> None:
    images, labels = labelled()
    attack = jax.jit(lambda key: square(a_network(), images, labels, threat_model=LINF, key=key, num_steps=9))
    first, again, other = (attack(jax.random.key(seed)) for seed in (5, 5, 6))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first.broken.any() and jnp.abs(first.adversarial - other.adversarial).max() > 0.01


@by_norm
def test_what_is_broken_stays(norm: str) -> None:
    _, state, advance = a_search(norm)
    broken = []
    for _ in range(40):
        after, was_broken = advance(state, 1), state.broken
        assert (after.margin >= state.margin).all(), "more steps were worse"
        np.testing.assert_array_equal(after.adversarial[was_broken], state.adversarial[was_broken])
        np.testing.assert_array_equal(after.margin[was_broken], state.margin[was_broken])
        assert (after.iteration >= after.due)[~after.broken].all() and (after.due == state.due + 1).all()
        np.testing.assert_array_equal(after.iteration[was_broken], state.iteration[was_broken])
        broken.append(int(after.broken.sum()))
        state = after
    assert broken[0] < broken[-1] < len(state.broken)
    np.testing.assert_array_equal(state.broken, a_network()(state.adversarial).argmax(-1) != state.labels)


@by_norm
def test_breaks_an_easy_network_and_ends(norm: str) -> None:
    """Long before the last of more steps than anybody can wait for."""
    images, labels = labelled()
    easy = {"threat_model": ThreatModel(norm, 5 * RADIUS[norm]), "num_steps": 2**31 - 1}
    found = jax.jit(lambda key: square(a_network(), images, labels, key=key, **easy))(jax.random.key(0))
    assert found.broken.all()
    assert (a_network()(found.adversarial).argmax(-1) != labels).all()


@by_norm
def test_a_hybrid_goes_on_from_apgd(norm: str) -> None:
    """From its best image, or from that which it has broken, with the windows of a later query; never worse than it."""
    threat_model, (images, labels) = ThreatModel(norm, RADIUS[norm] / 4), labelled(12)
    keys, zeros = keys_for(images), jnp.zeros(len(images), jnp.int32)
    attack = HybridSquare(threat_model, num_steps=30, gradient_steps=5, first_query=60)
    apgd = Apgd(threat_model, num_steps=5)
    ascent = jax.jit(lambda: apgd.advance(a_network(), apgd.start(a_network(), keys, images, labels, zeros), 5))()
    state = jax.jit(lambda: attack.start(a_network(), keys, images, labels, zeros))()
    assert ascent.broken.any() and not ascent.broken.all()
    np.testing.assert_array_equal(state.broken, ascent.broken)
    expected = jnp.where(ascent.broken[:, None, None, None], ascent.adversarial, ascent.best)
    np.testing.assert_allclose(state.adversarial, expected, atol=1e-6)
    np.testing.assert_allclose(state.margin, margin(a_network()(state.adversarial), labels), atol=1e-5)
    assert (state.iteration == 60).all() and (
        attack.sides(state.iteration, 11, 13) == window_sides(norm, 11, 13, 0.8)[2]
    ).all()
    # Of a start that is worse than what APGD has found, the search makes something better.
    worse = attack.start(lambda x: a_network()(2 * jax.lax.stop_gradient(x) - x), keys, images, labels, zeros)
    end = jax.jit(lambda state: attack.advance(a_network(), state, 30))(worse)
    assert (end.iteration[~end.broken] == 90).all()
    assert (end.margin >= worse.margin).all() and (end.margin > worse.margin).any()
    assert threat_model.contains(end.adversarial, images).all()
    np.testing.assert_array_equal(end.broken, a_network()(end.adversarial).argmax(-1) != labels)
    alone = attack.start(a_network(), keys[2:4], images[2:4], labels[2:4], zeros[2:4])
    np.testing.assert_allclose(alone.adversarial, state.adversarial[2:4], atol=1e-5)


def test_a_constant_network_is_not_broken() -> None:
    """All classes tie, and `argmax` names the first."""
    images, labels = jnp.asarray(some_images()), jnp.asarray([0, 0, 0, 0, 1, 2])
    constant = lambda images: jnp.zeros((len(images), 3))
    attack = jax.jit(lambda key: square(constant, images, labels, threat_model=LINF, key=key, num_steps=20))
    found = attack(jax.random.key(0))
    np.testing.assert_array_equal(found.broken, labels > 0)
    np.testing.assert_array_equal(found.adversarial[:4], images[:4])


def test_restarts_break_more() -> None:
    images, labels = labelled(24)
    settings = {"threat_model": ThreatModel("linf", 0.08), "key": jax.random.key(0), "num_steps": 4}
    run = lambda num_restarts: square(a_network(), images, labels, num_restarts=num_restarts, **settings)
    once, often = (jax.jit(run, static_argnums=0)(num_restarts).broken for num_restarts in (1, 8))
    assert (often | ~once).all() and once.sum() < often.sum() < len(images)


@by_norm
def test_inside_a_shard_map(norm: str) -> None:
    attack, state, advance = a_search(norm)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    share = PartitionSpec("data")
    all_steps = lambda state: attack.advance(a_network(), state, 60)
    split = jax.jit(jax.shard_map(all_steps, mesh=mesh, in_specs=share, out_specs=share, check_vma=False))
    program = split.lower(jax.device_put(state, NamedSharding(mesh, share))).compile()
    assert "all-" not in program.as_text(), "the devices wait for each other"
    assert_same(split(state), advance(state, 60), atol=1e-6)


def test_no_gradient_flows_through() -> None:
    images, labels = labelled()

    def total(scale: jax.Array, images: jax.Array) -> jax.Array:
        network = lambda images: scale * a_network()(images)
        found = square(network, images, labels, threat_model=LINF, key=jax.random.key(0), num_steps=2)
        return found.adversarial.sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.ones(()), images):
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"threat_model": 0.1}, "threat_model is 0.1; expected one"),
        ({"num_steps": -1}, "num_steps is -1; expected at least 0 steps"),
        ({"num_restarts": 0}, "num_restarts is 0; .* 1 restart"),
        ({"initial_share": 0.0}, "initial_share is 0.0; expected above 0"),
        ({"initial_share": 1.5}, "initial_share is 1.5; expected .* up to 1"),
    ],
)
def test_refuses_settings(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Square(**{"threat_model": LINF} | bad)


@pytest.mark.parametrize("name", ["gradient_steps", "first_query"])
def test_a_hybrid_refuses_settings(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1; expected at least 0"):
        HybridSquare(LINF, **{name: -1})


def test_refuses_images_without_channels() -> None:
    flat = jnp.zeros((2, 5, 5))
    with pytest.raises(ValueError, match=r"images have shape \[2, 5, 5\]; expected \[N, H, W, C\]"):
        square(lambda x: x[:, 0], flat, jnp.zeros(2, int), threat_model=LINF, key=jax.random.key(0))
