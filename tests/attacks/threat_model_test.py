"""The threat model by its properties, as a pytree, and what it refuses; and that all attacks are called alike."""

import inspect
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from smooth_net import examples, logits_fn

from rap_jax import attacks
from rap_jax.attacks import AttackResult, ThreatModel
from rap_jax.attacks.norms import NORMS

pytestmark = pytest.mark.usefixtures("optimised")

SHAPE = (5, 4, 3, 2)
KEY = jax.random.key(0)
IMAGES = jnp.clip(1.4 * jax.random.uniform(jax.random.key(1), SHAPE) - 0.2, 0, 1)  # some on the border of the box
SETTINGS: dict[str, dict[str, Any]] = {
    "pgd": {"step_size": 0.02, "num_steps": 3},
    "fgsm": {},
    "momentum_pgd": {"step_size": 0.02, "num_steps": 3},
    "apgd": {"num_steps": 3},
    "apgd_targeted": {"num_targets": 2, "num_steps": 3},
    "fab": {"num_steps": 3},
    "fab_targeted": {"num_targets": 2, "num_steps": 3},
    "square": {"num_steps": 5},
    "pma": {"num_steps": 3},
    "cw_l2": {"num_steps": 10, "num_search_steps": 2, "initial_c": 1.0},
}
by_norm = pytest.mark.parametrize("norm", NORMS)


def numpy_size(norm: str, perturbation: jax.Array) -> np.ndarray:
    flat = np.asarray(perturbation, np.float64).reshape(len(perturbation), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.linalg.norm(flat, axis=1)


@by_norm
@hypothesis.given(st.integers(0, 2**31), st.sampled_from([0.0, 0.01, 0.3, 1.0]), st.sampled_from([0.1, 1.0, 100.0]))
@hypothesis.settings(deadline=None, max_examples=20)
def test_a_projection_is_inside_and_the_nearest(norm: str, seed: int, epsilon: float, scale: float) -> None:
    threat_model = ThreatModel(norm, epsilon)
    wild = scale * jax.random.normal(jax.random.key(seed), SHAPE)
    projected = threat_model.project(wild)
    assert (numpy_size(norm, projected) <= epsilon * (1 + 1e-6)).all()
    within = numpy_size(norm, wild) <= epsilon
    np.testing.assert_array_equal(projected[within], wild[within])
    # No point of the ball is nearer in L2, to which both projections belong.
    others = threat_model.random_start(jax.random.key(seed + 1), wild)
    assert (numpy_size("l2", wild - projected) <= numpy_size("l2", wild - others) + 1e-4 * scale).all()


@by_norm
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.9])
def test_what_is_perturbed_is_inside_and_a_little_more_is_not(norm: str, epsilon: float) -> None:
    threat_model = ThreatModel(norm, epsilon)
    perturbed = threat_model.perturb(IMAGES, jax.random.normal(KEY, SHAPE))
    assert threat_model.contains(perturbed, IMAGES).all()
    grey = jnp.full(SHAPE, 0.5)
    for factor, inside in ((1.0, True), (1.01, False)):
        step = factor * threat_model.steepest(jax.random.normal(KEY, SHAPE)) * min(epsilon + 1e-3 * (factor > 1), 0.49)
        assert bool(threat_model.contains(grey + step, grey).all()) == (inside or epsilon > 0.49)


@by_norm
def test_contains_refuses_nan_and_what_leaves_the_range(norm: str) -> None:
    threat_model = ThreatModel(norm, 1.0)
    white = jnp.ones(SHAPE)
    np.testing.assert_array_equal(threat_model.contains(white.at[0, 0].set(1.01), white), [False] + [True] * 4)
    np.testing.assert_array_equal(threat_model.contains(white.at[1, 0].set(jnp.nan), white), [True, False] + [True] * 3)
    with pytest.raises(ValueError, match=r"adversarial images are float32\[4, 4, 3, 2\]; expected the shape of"):
        threat_model.contains(white[:4], white)


@by_norm
@pytest.mark.parametrize("key", [KEY, jax.random.split(KEY, 5)], ids=["one key", "a key for each"])
def test_random_starts_are_inside_and_reach_far(norm: str, key: jax.Array) -> None:
    threat_model = ThreatModel(norm, 0.4)
    starts = threat_model.random_start(key, IMAGES)
    sizes = numpy_size(norm, starts)
    assert (sizes <= 0.4 * (1 + 1e-6)).all() and sizes.max() > 0.35
    np.testing.assert_allclose(threat_model.size(starts), sizes, rtol=1e-6)
    if key.ndim:
        alone = threat_model.random_start(key[2:3], IMAGES[2:3])
        np.testing.assert_array_equal(alone[0], starts[2])
        directions = threat_model.random_direction(key, IMAGES)
        np.testing.assert_allclose(threat_model.size(directions), 1, rtol=1e-5)


@by_norm
def test_the_steepest_direction_raises_a_linear_loss_most(norm: str) -> None:
    threat_model = ThreatModel(norm, 1.0)
    gradient = jax.random.normal(KEY, SHAPE)
    steepest = threat_model.steepest(gradient)
    np.testing.assert_allclose(threat_model.size(steepest), 1, rtol=1e-6)
    rises = lambda direction: np.asarray((gradient * direction).sum((1, 2, 3)))
    for seed in range(20):
        keys = jax.random.split(jax.random.key(seed), 5)
        assert (rises(steepest) > rises(threat_model.random_direction(keys, IMAGES))).all()


@by_norm
def test_it_is_a_pytree_whose_radius_may_be_traced(norm: str) -> None:
    perturbation = jax.random.normal(KEY, SHAPE)
    threat_models = [ThreatModel(norm, epsilon) for epsilon in (0.1, 0.2)]
    traces = 0

    @jax.jit
    def project(threat_model: ThreatModel, perturbation: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return threat_model.project(perturbation)

    for threat_model in threat_models:
        expected = threat_model.project(perturbation)
        np.testing.assert_allclose(project(threat_model, perturbation), expected, rtol=1e-6)
    assert traces == 1
    (leaf,), tree = jax.tree.flatten(threat_models[0])
    assert leaf == 0.1 and jax.tree.unflatten(tree, [0.1]) == threat_models[0]
    assert jax.tree.map(lambda _: None, threat_models[0]).epsilon is None  # trees of what is no number are built, too
    ramp = jax.vmap(lambda epsilon: ThreatModel(norm, epsilon).project(perturbation))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(ramp[1], threat_models[1].project(perturbation), rtol=1e-6)


@by_norm
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_traced_radius_of_another_dtype_is_converted(norm: str, dtype: str) -> None:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        images = IMAGES.astype(dtype)
        project = jax.jit(lambda epsilon, x: ThreatModel(norm, epsilon).project(x))
        assert project(jnp.float64(0.1), images).dtype == images.dtype
        inside = jax.jit(lambda epsilon, x: ThreatModel(norm, epsilon).contains(x, images))
        assert inside(jnp.float64(0.1), images).all()


def test_it_is_a_static_argument_where_the_radius_is_known() -> None:
    project = jax.jit(lambda x, threat_model: threat_model.project(x), static_argnames="threat_model")
    threat_model = ThreatModel("linf", np.float32(0.25))
    assert type(threat_model.epsilon) is float and threat_model == ThreatModel("linf", 0.25)
    assert len({threat_model, ThreatModel("linf", 0.25), ThreatModel("l2", 0.25)}) == 2
    assert project(IMAGES, threat_model=threat_model).max() == 0.25


@pytest.mark.parametrize(
    ("norm", "epsilon", "message"),
    [
        ("l1", 0.1, "norm is 'l1'; expected one of linf, l2"),
        (["linf"], 0.1, r"norm is \['linf'\]; expected one of linf, l2"),
        ("linf", -0.1, "epsilon is -0.1; expected one finite number of 0 or more"),
        ("linf", float("nan"), "epsilon is nan; expected one finite number"),
        ("l2", float("inf"), "epsilon is inf; expected one finite number"),
        ("linf", "8/255", "epsilon is '8/255'; expected one finite number"),
        ("linf", np.ones(2), r"epsilon is float64\[2\]; expected one finite number"),
        ("linf", 8, "epsilon is 8; expected at most 1 under linf: .* so 8/255 is meant"),
    ],
)
def test_refuses(norm: Any, epsilon: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThreatModel(norm, epsilon)


def test_all_attacks_are_here() -> None:
    assert {name for name in attacks.__all__ if name.islower()} == {*SETTINGS, "pgd_restarts", "leaky_backward"}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_attack_has_one_signature_and_one_result(name: str) -> None:
    attack: Callable[..., AttackResult] = getattr(attacks, name)
    signature = inspect.signature(attack)
    parameters = list(signature.parameters.values())
    assert [parameter.name for parameter in parameters[:5]] == ["logits_fn", "images", "labels", "threat_model", "key"]
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters[:3])
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[3:])
    assert signature.return_annotation is AttackResult
    images, labels = map(jnp.asarray, examples(8, wrong=2))
    threat_model = ThreatModel("l2", 1.0)
    run = jax.jit(lambda key: attack(logits_fn, images, labels, threat_model=threat_model, key=key, **SETTINGS[name]))
    found = run(KEY)
    assert type(found) is AttackResult
    assert found.adversarial.shape == images.shape and found.adversarial.dtype == images.dtype
    assert found.broken.shape == (8,) and found.broken.dtype == bool
    assert threat_model.contains(found.adversarial, images).all()
    wrong = np.asarray(logits_fn(found.adversarial).argmax(-1) != labels)
    assert wrong[np.asarray(found.broken)].all() and found.broken[:2].all()


@pytest.mark.parametrize("name", ["pgd", "fgsm", "momentum_pgd"])
def test_the_pass_that_decides_who_is_broken_costs_nothing_where_it_is_not_read(name: str) -> None:
    images, labels = map(jnp.asarray, examples(4))
    attack = getattr(attacks, name)
    settings = SETTINGS[name] | {"threat_model": ThreatModel("linf", 0.1), "key": KEY}
    found = lambda x: attack(logits_fn, x, labels, **settings)
    flops = lambda function: jax.jit(function).lower(images).compile().cost_analysis()["flops"]
    logits = flops(lambda x: logits_fn(x))
    assert flops(lambda x: found(x).adversarial) < flops(found) - 0.9 * logits


@pytest.mark.parametrize("name", SETTINGS)
def test_every_attack_refuses_what_is_no_function(name: str) -> None:
    images, labels = map(jnp.asarray, examples(4))
    settings = SETTINGS[name] | {"threat_model": ThreatModel("l2" if name == "cw_l2" else "linf", 0.1), "key": KEY}
    with pytest.raises(ValueError, match="logits_fn is 'f'; expected a function of images that returns logits"):
        getattr(attacks, name)("f", images, labels, **settings)


def test_a_loss_by_name_is_refused_by_pgd() -> None:
    images, labels = map(jnp.asarray, examples(4))
    settings: Any = SETTINGS["pgd"] | {"threat_model": ThreatModel("linf", 0.1), "key": KEY, "loss": "margin"}
    with pytest.raises(ValueError, match="loss is 'margin'; expected a function of logits and labels, such as"):
        attacks.pgd(logits_fn, images, labels, **settings)
