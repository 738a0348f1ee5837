"""Attacks on networks whose logits or gradients are NaN, on losses of other shapes, with settings that cannot be."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from smooth_net import raise_loss

from rap_jax.attacks import (
    AttackResult,
    ThreatModel,
    apgd,
    apgd_targeted,
    cw_l2,
    fab,
    fab_targeted,
    fgsm,
    momentum_pgd,
    pgd,
    pgd_restarts,
    square,
)
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.checks import check_count, check_size
from rap_jax.attacks.fab import Fab
from rap_jax.attacks.losses import cross_entropy
from rap_jax.attacks.square import Square
from rap_jax.attacks.stepwise import run_attack
from rap_jax.attacks.stepwise_pgd import Pgd

KEY, N, K = jax.random.key(0), 6, 4
WEIGHTS = np.random.default_rng(0).normal(size=(12, K)).astype(np.float32)
IMAGES = jnp.asarray(np.random.default_rng(1).uniform(0.2, 0.8, (N, 3, 4, 1)), jnp.float32).at[:2, 0, 0].set(0.5)
NAN = np.arange(N) < 2  # at which images sqrt(0) has a gradient that is NaN


def plain(images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ WEIGHTS


LABELS = plain(IMAGES).argmax(-1).astype(jnp.int32)


def nan_gradient(images: jax.Array) -> jax.Array:
    return plain(images) + jnp.sqrt(jnp.square(images[:, 0, 0] - 0.5))


def nan_logits(images: jax.Array) -> jax.Array:
    return jnp.where(NAN[:, None], jnp.nan, plain(images))


STEPS: dict[str, Any] = {"step_size": 0.05, "num_steps": 4}
FEW: dict[str, Any] = {"num_targets": 2, "num_steps": 4}
LINF, L2 = ThreatModel("linf", 0.2), ThreatModel("l2", 0.5)
# Of a loss of the images alone.
LOSS_ATTACKS: dict[str, Callable[..., jax.Array]] = {
    "pgd": functools.partial(raise_loss, pgd, KEY, random_start=False, **STEPS),
    "restarts": functools.partial(raise_loss, pgd, KEY, num_restarts=3, **STEPS),
    "trace": functools.partial(raise_loss, pgd, KEY, random_start=False, transform=optax.trace(0.9), **STEPS),
    "momentum": functools.partial(raise_loss, momentum_pgd, KEY, **STEPS),
    "fgsm": functools.partial(raise_loss, fgsm, None),
}
# Attacks as they are called, but for the threat model of another norm.
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "pgd": functools.partial(pgd, **STEPS),
    "momentum_pgd": functools.partial(momentum_pgd, **STEPS),
    "fgsm": fgsm,
    "apgd": functools.partial(apgd, num_steps=4),
    "apgd dlr": functools.partial(apgd, loss="dlr", num_steps=4),
    "apgd_targeted": functools.partial(apgd_targeted, **FEW),
    "fab": functools.partial(fab, num_steps=4, num_restarts=2),
    "fab_targeted": functools.partial(fab_targeted, **FEW),
    "square": functools.partial(square, num_steps=4),
    "stepwise pgd": lambda *given, threat_model, key: run_attack(Pgd(threat_model, **STEPS), *given, key=key),
    "cw_l2": functools.partial(cw_l2, num_steps=4, num_search_steps=2),
}


# Those that look at the logits themselves; PGD and its kin leave them to the loss.
STEPWISE = [name for name in ATTACKS if name not in ("pgd", "momentum_pgd", "fgsm")]


def attack_by(name: str, logits_fn: Callable[..., Any], images: Any, labels: Any, **changes: Any) -> AttackResult:
    threat_model = L2 if name in ("cw_l2", "apgd dlr") else LINF
    return ATTACKS[name](logits_fn, images, labels, **{"threat_model": threat_model, "key": KEY} | changes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", LOSS_ATTACKS)
def test_images_stay_in_ball_and_box_whatever_the_gradient(name: str, norm: str, bad: float) -> None:
    @jax.jit
    def attack(gradient: jax.Array) -> jax.Array:
        @jax.custom_vjp
        def loss_fn(images: jax.Array) -> jax.Array:
            return images.sum((1, 2, 3))

        loss_fn.defvjp(lambda x: (loss_fn(x), None), lambda _, g: (gradient * g[:, None, None, None],))
        return LOSS_ATTACKS[name](loss_fn, IMAGES, epsilon=0.2, norm=norm)

    found = attack(jnp.ones_like(IMAGES).at[:2, 0, 0].set(bad))
    assert ThreatModel(norm, 0.2).contains(found, IMAGES).all()
    if name != "restarts":  # from a random start nothing can be said of a single pixel
        moved = np.asarray(found - IMAGES)[:2]
        assert (moved[:, 0, 0] == 0).all() if np.isnan(bad) else (np.sign(moved[:, 0, 0]) == np.sign(bad)).all()
        if np.isnan(bad):
            assert (moved[:, 1:] > 0).all()


@pytest.mark.parametrize("name", ["pgd", "trace", "momentum", "fgsm"])
def test_a_gradient_that_is_nan_is_warned_of(name: str) -> None:
    loss = lambda x: cross_entropy(nan_gradient(x), LABELS)
    with pytest.warns(RuntimeWarning, match="NaN at 2 of 6 images"):
        LOSS_ATTACKS[name](loss, IMAGES, epsilon=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LOSS_ATTACKS[name](lambda x: cross_entropy(plain(x), LABELS), IMAGES, epsilon=0.2)
        jax.jit(lambda x: LOSS_ATTACKS[name](loss, x, epsilon=0.2))(IMAGES)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_whose_logits_are_nan_is_not_broken(name: str, label: int) -> None:
    labels = jnp.where(NAN, label, LABELS)
    with pytest.warns(RuntimeWarning, match="NaN at 2 of 6 images"):
        found = attack_by(name, nan_logits, IMAGES, labels)
    assert not np.asarray(found.broken)[NAN].any()
    assert jnp.isfinite(found.adversarial).all()


@pytest.mark.parametrize("name", ["apgd", "fab", "stepwise pgd", "cw_l2"])
def test_a_stepwise_attack_goes_on_where_a_gradient_is_nan(name: str) -> None:
    from_image = {"threat_model": ThreatModel("linf", 0.0)} if "pgd" in name else {}
    with pytest.warns(RuntimeWarning, match="NaN at 2 of 6 images"):
        found = attack_by(name, nan_gradient, IMAGES, LABELS, **from_image)
    assert jnp.isfinite(found.adversarial).all()


def test_a_restart_whose_loss_is_nan_is_the_last_to_be_kept() -> None:
    nan_high = lambda x: jnp.where(x.mean((1, 2, 3)) > 0.5, jnp.nan, x.mean((1, 2, 3)))
    images = jnp.full((N, 3, 4, 1), 0.5)
    settings: dict[str, Any] = {"step_size": 0.05, "num_steps": 0, "num_restarts": 8}
    every = pgd_restarts(nan_high, images, threat_model=LINF, key=KEY, **settings).adversarial
    losses = np.asarray(jax.vmap(nan_high)(every))
    assert np.isnan(losses).any(0).all() and not np.isnan(losses).all(0).any()
    kept = raise_loss(pgd, KEY, nan_high, images, epsilon=0.2, **settings)
    np.testing.assert_array_equal(nan_high(kept), np.nanmax(losses, 0))


@pytest.mark.parametrize("returned", ["[N, 1]", "[N, K]", "scalar", "integers", "tuple", "dict"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_loss_that_is_not_one_number_for_each_image_is_refused(returned: str, restarts: int) -> None:
    loss = lambda x: {
        "[N, 1]": plain(x)[:, :1],
        "[N, K]": plain(x),
        "scalar": plain(x).mean(),
        "integers": plain(x).argmax(-1),
        "tuple": (plain(x)[:, 0], x),
        "dict": {"loss": plain(x)[:, 0]},
    }[returned]
    with pytest.raises(ValueError, match=r"loss_fn returns .*; expected one loss for each image, float \[6\]"):
        raise_loss(pgd, KEY, loss, IMAGES, epsilon=0.2, num_restarts=restarts, **STEPS)


@pytest.mark.parametrize("returned", ["[N]", "[1, K]", "integers", "tuple"])
@pytest.mark.parametrize("name", STEPWISE)
def test_logits_that_are_not_a_row_for_each_image_are_refused(name: str, returned: str) -> None:
    logits_fn = lambda x: {
        "[N]": plain(x)[:, 0],
        "[1, K]": plain(x)[:1],
        "integers": plain(x).astype(jnp.int32),
        "tuple": (plain(x), x),
    }[returned]
    with pytest.raises(ValueError, match="logits_fn returns "):
        attack_by(name, logits_fn, IMAGES, LABELS)


@pytest.mark.parametrize("name", ATTACKS)
def test_labels_that_are_no_classes_are_refused(name: str) -> None:
    for labels in (LABELS.at[0].set(-1), LABELS.at[0].set(K), LABELS[:, None], LABELS > 0):
        with pytest.raises(ValueError, match="labels are"):
            attack_by(name, plain, IMAGES, labels)


@pytest.mark.parametrize("images", [IMAGES * 255, IMAGES - 0.5, IMAGES.at[0].set(jnp.nan), IMAGES[:, 0, 0, 0], 0.5])
def test_images_outside_the_box_are_refused(images: Any) -> None:
    with pytest.raises(ValueError, match="images (are|have)"):
        pgd_restarts(lambda x: x.sum((1, 2, 3)), images, threat_model=LINF, key=KEY, **STEPS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, "8/255", None, True, np.ones(2), 1j])
def test_a_radius_that_is_no_number_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="epsilon is .*; expected one finite number of 0 or more"):
        check_size("epsilon", bad)


@pytest.mark.parametrize("bad", [True, 2.0, "3", None, -1, np.ones(2, int)])
def test_a_number_of_steps_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="num_steps is .*; expected at least 0 steps, as a whole number"):
        check_count("num_steps", bad, 0, "0 steps")


def test_a_traced_number_of_steps_is_refused_by_name() -> None:
    attack = lambda n: raise_loss(pgd, KEY, lambda x: x.sum((1, 2, 3)), IMAGES, epsilon=0.1, step_size=0.1, num_steps=n)
    with pytest.raises(ValueError, match=r"num_steps is traced, int32\[\]"):
        jax.jit(attack)(3)
    np.testing.assert_array_equal(attack(np.int64(3)), attack(3))


def test_a_radius_may_be_mapped_over_and_has_no_gradient() -> None:
    attack = lambda e: raise_loss(pgd, KEY, lambda x: x.sum((1, 2, 3)), IMAGES, epsilon=e, step_size=e / 4, num_steps=3)
    radii = jnp.array([0.0, 0.1, 0.2])
    np.testing.assert_allclose(jax.vmap(attack)(radii), jnp.stack([attack(e) for e in radii]), atol=1e-6)
    assert jax.grad(lambda e: attack(e).sum())(0.1) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_of_16_bits_are_moved_by_steps_that_they_cannot_hold(dtype: str, norm: str) -> None:
    images = IMAGES.astype(dtype)
    threat_model = ThreatModel(norm, np.float32(0.2))
    settings = {"step_size": 0.0005, "num_steps": 300, "random_start": False}
    logits_fn = lambda x: plain(x.astype(jnp.float32))
    with jax.numpy_dtype_promotion("strict"):
        attack = jax.jit(lambda x: pgd(logits_fn, x, LABELS, threat_model=threat_model, key=KEY, **settings))
        found = attack(images).adversarial
    assert found.dtype == images.dtype and threat_model.contains(found, images).all()
    assert np.abs(np.asarray(found - images, np.float32)).max() > (0.1 if norm == "linf" else 0.05)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_of_16_bits_are_rounded_into_the_ball(dtype: str, norm: str) -> None:
    """From the border of the ball, rounding to the nearest number would lead out of it."""
    threat_model, images = ThreatModel(norm, 0.1), IMAGES.astype(dtype)
    found = fgsm(lambda x: plain(x.astype(jnp.float32)), images, LABELS, threat_model=threat_model).adversarial
    assert threat_model.contains(found, images).all()
    moved = threat_model.size(found.astype(jnp.float32) - images.astype(jnp.float32))
    assert (moved > 0.09).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_transform_that_overflows_gives_no_nan(norm: str) -> None:
    """Infinity times a gradient of 0 is NaN; of the other pixels the sign is left."""
    loss = lambda x: x[:, 1:].sum((1, 2, 3))
    settings: dict[str, Any] = {"random_start": False, "transform": optax.scale(float("inf"))}
    found = raise_loss(pgd, KEY, loss, IMAGES, epsilon=0.1, norm=norm, **settings, **STEPS)
    assert ThreatModel(norm, 0.1).contains(found, IMAGES).all()
    np.testing.assert_array_equal(found[:, 0], IMAGES[:, 0])
    assert (found[:, 1:] > IMAGES[:, 1:]).all()


@pytest.mark.parametrize(
    "attack", [Pgd(LINF, 0.05), Apgd(LINF), Fab(LINF), Square(LINF)], ids=lambda attack: type(attack).__name__
)
def test_logits_that_become_nan_on_the_way_are_noted(attack: Any) -> None:
    """The network is finite at the clean image and at the first one, and nowhere else."""
    given = jax.random.split(KEY, N), IMAGES, LABELS, jnp.zeros(N, jnp.int32)
    first = attack.start(plain, *given).adversarial
    away = lambda x, image: jnp.abs(x - image).max((1, 2, 3)) > 1e-4
    network = lambda x: jnp.where((away(x, first) & away(x, IMAGES))[:, None], jnp.nan, plain(x))
    state = attack.start(network, *given)
    assert state.valid.all() and not state.broken.all()
    end = attack.advance(network, state, 5 if isinstance(attack, Square) else 1)
    assert not end.valid[~end.broken].any() and (end.broken == state.broken).all()


def test_no_images_give_no_images() -> None:
    for name in ATTACKS:
        found = attack_by(name, plain, IMAGES[:0], LABELS[:0])
        assert found.adversarial.shape == (0, 3, 4, 1) and found.broken.shape == (0,), name


@pytest.mark.parametrize("width", ["float32", "float64"])
@pytest.mark.parametrize("name", ATTACKS)
def test_dtypes_stay_under_x64_and_strict_promotion(name: str, width: str) -> None:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        images, weights = jnp.asarray(IMAGES, width), jnp.asarray(WEIGHTS, "bfloat16")
        logits_fn = lambda x: x.reshape(len(x), -1).astype(jnp.bfloat16) @ weights
        labels = logits_fn(images).argmax(-1)  # int64
        found = attack_by(name, logits_fn, images, labels)
        assert found.adversarial.dtype == images.dtype
        threat_model = L2 if name in ("cw_l2", "apgd dlr") else LINF
        assert threat_model.contains(found.adversarial, images).all()


def test_a_radius_of_another_kind_is_refused_by_all() -> None:
    for name in ATTACKS:
        with pytest.raises(ValueError, match="threat_model is 0.2; expected one, such as ThreatModel"):
            attack_by(name, plain, IMAGES, LABELS, threat_model=0.2)


@pytest.mark.parametrize("name", ["apgd", "fab", "square"])
def test_a_large_radius_is_fine_under_l2(name: str) -> None:
    assert attack_by(name, plain, IMAGES, LABELS, threat_model=ThreatModel("l2", 8)).broken.any()


@pytest.mark.parametrize("rho", [-0.1, 2.0, float("nan")])
def test_a_share_of_steps_that_is_none_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        Apgd(LINF, rho=rho)


def test_keys_of_another_shape_are_refused_by_pgd() -> None:
    keys = jax.random.split(KEY, N)[:, None]
    with pytest.raises(ValueError, match=r"keys \[6, 1\]; expected one, or one for each image \[6\]"):
        pgd(plain, IMAGES, LABELS, threat_model=LINF, key=keys, **STEPS)
