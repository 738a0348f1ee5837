"""FAB against a NumPy version of its iteration, on linear classifiers, and by its properties."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from numpy_hyperplane import perturbation_onto

from rap_jax.attacks import ThreatModel
from rap_jax.attacks.fab import Fab, FabState, fab, fab_targeted, nearest_boundary
from rap_jax.attacks.norms import NORMS
from rap_jax.attacks.stepwise import fold_in_each, keys_of_examples

SHAPE, NUM_CLASSES, NUM_STEPS = (3, 4, 1), 5, 12
THREAT_MODEL = ThreatModel("linf", 0.1)
KEY = jax.random.key(7)
KEYS = jax.random.split(KEY, 9)
_RNG = np.random.default_rng(0)
IN, OUT = 2 * _RNG.normal(size=(12, 16)), _RNG.normal(size=(16, NUM_CLASSES))
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
both_kinds = pytest.mark.parametrize("num_targets", [0, 3])


def logits_fn(images: jax.Array) -> jax.Array:
    """A smooth network of one hidden layer."""
    flat = images.reshape(len(images), -1) - 0.5
    return jnp.tanh(flat @ jnp.asarray(IN, jnp.float32)) @ jnp.asarray(OUT, jnp.float32)


def numpy_logits(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [K] of a flat image, and their gradients [K, D]."""
    hidden = np.tanh((image - 0.5) @ IN)
    return hidden @ OUT, (OUT.T * (1 - hidden**2)) @ IN.T


@pytest.fixture(name="images", scope="module")
def make_images() -> jax.Array:
    uniform = jax.random.uniform(jax.random.key(0), (9, *SHAPE))
    return jnp.clip(1.2 * uniform - 0.1, 0, 1)  # some pixels sit on the border of the box


@pytest.fixture(name="labels", scope="module")
def make_labels(images: jax.Array) -> jax.Array:
    return logits_fn(images).argmax(-1).astype(jnp.int32)


def attack_of(norm: str = "linf", num_targets: int = 0) -> Fab:
    """The same few attacks in all tests, so that each is compiled once."""
    return Fab(ThreatModel(norm, 0.1), NUM_STEPS, num_targets, num_restarts=2)


@partial(jax.jit, static_argnames="attack")
def advance(attack: Fab, state: FabState, num_steps: int) -> FabState:
    return attack.advance(logits_fn, state, num_steps)


def begin(
    attack: Fab, images: jax.Array, labels: jax.Array, starts: jax.Array | int = 0, keys: jax.Array = KEYS
) -> FabState:
    return attack.start(logits_fn, keys, images, labels, jnp.broadcast_to(starts, 9))


def run(
    attack: Fab, images: jax.Array, labels: jax.Array, starts: jax.Array | int = 0, keys: jax.Array = KEYS
) -> FabState:
    return advance(attack, begin(attack, images, labels, starts, keys), NUM_STEPS)


def numpy_fab(image: np.ndarray, label: int, norm: str, rank: int | None) -> dict[str, np.ndarray | float]:
    """One image's path in float64, written from the paper."""
    clean = image.astype(np.float64).ravel()
    target = None if rank is None else np.argsort(-numpy_logits(clean)[0])[rank - 1]
    size = lambda d: np.linalg.norm(d, np.inf if norm == "linf" else 2)
    current, found = clean, {"adversarial": clean, "distance": np.inf}
    for _ in range(NUM_STEPS):
        logits, gradients = numpy_logits(current)
        others = [k for k in range(NUM_CLASSES) if k != label] if target is None else [target]
        planes = [(logits[k] - logits[label], gradients[k] - gradients[label]) for k in others]
        height, normal = min(planes, key=lambda p: abs(p[0]) / np.linalg.norm(p[1], 1 if norm == "linf" else 2))
        here = perturbation_onto(current, normal, height, norm)
        there = perturbation_onto(clean, normal, height + normal @ (clean - current), norm)
        alpha = min(size(here) / (size(here) + size(there)), 0.1)
        current = np.clip((1 - alpha) * (current + 1.05 * here) + alpha * (clean + 1.05 * there), 0, 1)
        if numpy_logits(current)[0].argmax() != label:
            if size(current - clean) < found["distance"]:
                found = {"adversarial": current, "distance": size(current - clean)}
            current = clean + 0.9 * (current - clean)
    return {"current": current, **found}


@both_norms
@pytest.mark.parametrize("num_targets,start", [(0, 0), (3, 0), (3, 4)])
def test_equals_numpy(images: jax.Array, labels: jax.Array, norm: str, num_targets: int, start: int) -> None:
    state = run(attack_of(norm, num_targets), images, labels, start)
    rank = start // 2 + 2 if num_targets else None
    pairs = zip(np.asarray(images), np.asarray(labels), strict=True)
    expected = [numpy_fab(image, label, norm, rank) for image, label in pairs]
    for part in ("current", "adversarial", "distance"):
        ours = np.asarray(getattr(state, part))
        theirs = np.array([e[part] for e in expected]).reshape(ours.shape)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=part)
    assert 0 < state.broken.sum() < len(images)  # else the radius puts nothing to the test


@pytest.mark.parametrize("norm,expected", [("linf", 1), ("l2", 2)])
def test_which_boundary_is_nearest_depends_on_the_norm(norm: str, expected: int) -> None:
    normals = jnp.asarray([[0.0, 0, 0, 0], [1, 1, 1, 1], [2.5, 0, 0, 0]])  # 1/4 and 2/5 away; or 1/2 and 2/5
    network = lambda x: x @ normals.T - jnp.asarray([[0.0, 1, 1]])
    height, normal = nearest_boundary(network, jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), norm)
    np.testing.assert_array_equal(height, -1)
    np.testing.assert_array_equal(normal, np.tile(normals[expected], (2, 1)))


@both_norms
def test_finds_the_nearest_boundary_of_a_linear_classifier(norm: str) -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(20, 6)).astype(np.float32)
    linear = lambda x: x @ jnp.asarray(weights)
    images = rng.uniform(0.4, 0.6, (32, 20)).astype(np.float32)  # so far from the border that the box has no part in it
    logits = images @ weights
    labels = logits.argmax(1)
    behind = logits - logits.max(1, keepdims=True)
    normals = weights[:, None, :] - weights[:, labels][..., None]  # [D, N, K]
    with np.errstate(invalid="ignore"):
        distances = -behind / np.linalg.norm(normals, 1 if norm == "linf" else 2, axis=0)
    least = np.nanmin(distances, axis=1)
    attack, keys = Fab(ThreatModel(norm, 1.0), 20), jax.random.split(KEY, len(images))
    start = lambda x, y: attack.start(linear, keys, x, y, jnp.zeros(len(x), jnp.int32))
    state = jax.jit(lambda x, y: attack.advance(linear, start(x, y), 20))(images, labels)
    adversarial, found = state.adversarial, state.distance
    assert (linear(adversarial).argmax(-1) != labels).all()
    assert (found >= 0.9999 * least).all() and (found <= 1.01 * least).all()


@both_norms
@both_kinds
def test_what_is_broken_is_inside_ball_and_box_and_wrong(
    images: jax.Array, labels: jax.Array, norm: str, num_targets: int
) -> None:
    state = run(attack_of(norm, num_targets), images, labels)
    found = state.distance < np.inf
    assert state.adversarial.min() >= 0 and state.adversarial.max() <= 1 and found.any()
    np.testing.assert_array_equal(logits_fn(state.adversarial).argmax(-1) != labels, found)
    size = NORMS[norm].size(state.adversarial - images)
    # XLA may round a pixel near 1, to 6e-8, once for the image and otherwise for its distance.
    np.testing.assert_allclose(size[found], state.distance[found], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(size[found] <= np.float32(0.1), state.broken[found])
    assert not state.broken[~found].any()
    np.testing.assert_array_equal(state.adversarial[~found], images[~found])


def test_the_radius_is_exact(images: jax.Array, labels: jax.Array) -> None:
    distance = run(attack_of(), images, labels).distance
    middle = jnp.sort(distance)[4]
    for epsilon, expected in ((middle, distance <= middle), (np.nextafter(middle, 0), distance < middle)):
        attack = dataclasses.replace(attack_of(), threat_model=ThreatModel("linf", float(epsilon)))
        np.testing.assert_array_equal(run(attack, images, labels).broken, expected)


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_targets_are_the_next_classes(images: jax.Array, labels: jax.Array, num_restarts: int) -> None:
    ranked = np.argsort(-np.asarray(logits_fn(images)), axis=1)
    attack = Fab(THREAT_MODEL, num_targets=4, num_restarts=num_restarts)
    assert attack.num_starts == 4 * num_restarts
    for start in range(attack.num_starts):
        targets = begin(attack, images, labels, start).targets
        np.testing.assert_array_equal(targets, ranked[:, 1 + start // num_restarts])
    assert Fab(THREAT_MODEL, num_restarts=num_restarts).num_starts == num_restarts


@both_kinds
def test_first_restart_draws_nothing(images: jax.Array, labels: jax.Array, num_targets: int) -> None:
    """A state holds no key, so equal states go the same way."""
    attack = attack_of("linf", num_targets)
    for start in range(0, attack.num_starts, 2):
        chex.assert_trees_all_equal(*(begin(attack, images, labels, start, keys) for keys in (KEYS, KEYS[::-1])))


@both_norms
def test_later_restarts_begin_at_half_the_radius(norm: str) -> None:
    grey, labels = jnp.full((9, *SHAPE), 0.5), jnp.zeros(9, jnp.int32)
    attack = attack_of(norm, 2)
    one, other = (begin(attack, grey, labels, jnp.arange(9) % 4, keys).current for keys in (KEYS, KEYS[::-1]))
    first = jnp.arange(9) % 2 == 0
    np.testing.assert_allclose(NORMS[norm].size(one - grey), jnp.where(first, 0, 0.05), rtol=1e-4)
    assert (NORMS[norm].size(one - other)[jnp.asarray([1, 3, 5, 7])] > 0.01).all()
    # Images on the border of the box: half of the pixels cannot follow.
    edge = begin(attack, 0 * grey, labels, 1).current
    assert edge.min() == 0 and edge.max() > 0 and (edge == 0).mean() > 0.3


@both_kinds
def test_pieces_make_a_whole(images: jax.Array, labels: jax.Array, num_targets: int) -> None:
    attack = attack_of("linf", num_targets)
    state = begin(attack, images, labels, 1)
    for num_steps in (3, 0, 7, 2):
        state = advance(attack, state, num_steps)
    chex.assert_trees_all_equal(state, run(attack, images, labels, 1))


@both_kinds
def test_examples_do_not_see_each_other(images: jax.Array, labels: jax.Array, num_targets: int) -> None:
    attack = attack_of("linf", num_targets)
    starts = jnp.arange(9) % attack.num_starts
    together = run(attack, images, labels, starts)
    others = jnp.asarray([7, 2, 2, 2, 2, 3, 3, 5, 0])
    apart = run(attack, images[others], labels[others], starts[others], KEYS[others])
    chex.assert_trees_all_close(apart, jax.tree.map(lambda leaf: leaf[others], together), atol=1e-5)


@both_kinds
def test_what_is_wrong_already_is_broken_at_no_distance(images: jax.Array, num_targets: int) -> None:
    labels = jnp.argsort(logits_fn(images), axis=-1)[:, -2].astype(jnp.int32)  # the first target is the label itself
    attack = attack_of("linf", num_targets)
    for state in (begin(attack, images, labels), run(attack, images, labels)):
        np.testing.assert_array_equal(state.distance, 0)
        np.testing.assert_array_equal(state.adversarial, images)
        assert state.broken.all() and np.isfinite(state.current).all()


@both_kinds
def test_hands_over_the_first_start_that_breaks(images: jax.Array, labels: jax.Array, num_targets: int) -> None:
    function = partial(fab_targeted, num_targets=num_targets) if num_targets else fab
    settings = {"threat_model": THREAT_MODEL, "num_steps": NUM_STEPS, "num_restarts": 2}
    found = function(logits_fn, images, labels, key=KEY, **settings)
    attack, keys = attack_of("linf", num_targets), keys_of_examples(KEY, 9)
    states = [run(attack, images, labels, i, fold_in_each(keys, i)) for i in range(attack.num_starts)]
    broken = np.stack([state.broken for state in states])
    np.testing.assert_array_equal(found.broken, broken.any(0))
    first = np.stack([state.adversarial for state in states])[broken.argmax(0), np.arange(9)]
    expected = np.where(broken.any(0)[:, None, None, None], first, images)
    np.testing.assert_allclose(found.adversarial, expected, atol=1e-5)


def test_runs_on_many_devices(images: jax.Array, labels: jax.Array) -> None:
    attack = attack_of()
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    def share(keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array) -> FabState:
        return attack.advance(logits_fn, attack.start(logits_fn, keys, images, labels, starts), NUM_STEPS)

    starts = jnp.arange(9) % 2
    split = share(KEYS, images, labels, starts)
    chex.assert_trees_all_close(split, run(attack, images, labels, starts), atol=1e-5)


def test_flat_networks_stay_finite(images: jax.Array) -> None:
    flat = lambda x: jnp.zeros((len(x), NUM_CLASSES)) + jnp.arange(5.0)[None] + 0 * x.sum()
    attack = attack_of("l2")
    state = attack.start(flat, KEYS, images, jnp.full(9, 4), jnp.zeros(9, int))
    state = attack.advance(flat, state, 2)
    np.testing.assert_allclose(state.current, images, atol=1e-6)
    assert not state.broken.any()


def test_too_many_targets(images: jax.Array, labels: jax.Array) -> None:
    with pytest.raises(ValueError, match="num_targets is 9; expected at most 4 with 5 classes"):
        fab_targeted(logits_fn, images, labels, threat_model=THREAT_MODEL, key=KEY)


@pytest.mark.parametrize("bad", [{"num_steps": -1}, {"num_restarts": 0}, {"num_targets": -2}, {"threat_model": 0.1}])
def test_refuses(bad: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Fab(**{"threat_model": THREAT_MODEL} | bad)
