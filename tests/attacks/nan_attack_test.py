"""Attacks on networks whose logits or gradients are NaN, on losses of other shapes, with settings that cannot be."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.attacks import (
    apgd,
    apgd_targeted,
    cw_l2,
    fab,
    fab_targeted,
    fgsm,
    is_inside,
    momentum_pgd,
    pgd,
    pgd_restarts,
    run_attack,
    square,
)
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.checks import check_count, check_size
from rap_jax.attacks.losses import cross_entropy
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


def steps(norm: str) -> dict[str, Any]:
    return {"epsilon": 0.2, "step_size": 0.05, "num_steps": 4, "norm": norm}


LOSS_ATTACKS: dict[str, Callable[..., jax.Array]] = {
    "pgd": lambda loss, x, norm: pgd(KEY, loss, x, random_start=False, **steps(norm)),
    "restarts": lambda loss, x, norm: pgd(KEY, loss, x, num_restarts=3, **steps(norm)),
    "trace": lambda loss, x, norm: pgd(KEY, loss, x, random_start=False, transform=optax.trace(0.9), **steps(norm)),
    "momentum": lambda loss, x, norm: momentum_pgd(KEY, loss, x, **steps(norm)),
    "fgsm": lambda loss, x, norm: fgsm(loss, x, epsilon=0.2, norm=norm),
}
LOGITS_ATTACKS: dict[str, Callable[..., Any]] = {
    "apgd": lambda f, y: apgd(KEY, f, IMAGES, y, epsilon=0.2, num_steps=4),
    "apgd l2": lambda f, y: apgd(KEY, f, IMAGES, y, epsilon=0.5, norm="l2", loss="dlr", num_steps=4),
    "apgd_targeted": lambda f, y: apgd_targeted(KEY, f, IMAGES, y, epsilon=0.2, num_targets=2, num_steps=4),
    "fab": lambda f, y: fab(KEY, f, IMAGES, y, epsilon=0.2, num_steps=4),
    "fab_targeted": lambda f, y: fab_targeted(KEY, f, IMAGES, y, epsilon=0.2, num_targets=2, num_steps=4),
    "square": lambda f, y: square(KEY, f, IMAGES, y, epsilon=0.2, num_steps=4),
    "pgd": lambda f, y: run_attack(Pgd(0.2, 0.05, num_steps=4), f, KEY, IMAGES, y),
    "cw_l2": lambda f, y: cw_l2(f, IMAGES, y, num_steps=4, num_search_steps=2),
}


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
        return LOSS_ATTACKS[name](loss_fn, IMAGES, norm)

    found = attack(jnp.ones_like(IMAGES).at[:2, 0, 0].set(bad))
    assert is_inside(found, IMAGES, epsilon=0.2, norm=norm).all()
    if name != "restarts":  # from a random start nothing can be said of a single pixel
        moved = np.asarray(found - IMAGES)[:2]
        assert (moved[:, 0, 0] == 0).all() if np.isnan(bad) else (np.sign(moved[:, 0, 0]) == np.sign(bad)).all()
        if np.isnan(bad):
            assert (moved[:, 1:] > 0).all()


@pytest.mark.parametrize("name", ["pgd", "trace", "momentum", "fgsm"])
def test_a_gradient_that_is_nan_is_warned_of(name: str) -> None:
    loss = lambda x: cross_entropy(nan_gradient(x), LABELS)
    with pytest.warns(RuntimeWarning, match="NaN at 2 of 6 images"):
        LOSS_ATTACKS[name](loss, IMAGES, "linf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LOSS_ATTACKS[name](lambda x: cross_entropy(plain(x), LABELS), IMAGES, "linf")
        jax.jit(lambda x: LOSS_ATTACKS[name](loss, x, "linf"))(IMAGES)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("name", LOGITS_ATTACKS)
def test_an_image_whose_logits_are_nan_is_not_broken(name: str, label: int) -> None:
    labels = jnp.where(NAN, label, LABELS)
    with pytest.warns(RuntimeWarning, match="NaN at 2 of 6 images"):
        found = LOGITS_ATTACKS[name](nan_logits, labels)
    assert not np.asarray(found.broken)[NAN].any()
    assert jnp.isfinite(found.adversarial).all()


@pytest.mark.parametrize("name", ["apgd", "fab", "pgd", "cw_l2"])
def test_a_stepwise_attack_goes_on_where_a_gradient_is_nan(name: str) -> None:
    from_image = {"pgd": lambda f, y: run_attack(Pgd(0.0, 0.05, num_steps=4), f, KEY, IMAGES, y)}
    from_image["apgd"] = lambda f, y: apgd(KEY, f, IMAGES, y, epsilon=0.0, num_steps=4)
    with pytest.warns(RuntimeWarning, match="NaN at 2 of 6 images"):
        found = (LOGITS_ATTACKS | from_image)[name](nan_gradient, LABELS)
    assert jnp.isfinite(found.adversarial).all()


def test_a_restart_whose_loss_is_nan_is_the_last_to_be_kept() -> None:
    nan_high = lambda x: jnp.where(x.mean((1, 2, 3)) > 0.5, jnp.nan, x.mean((1, 2, 3)))
    images = jnp.full((N, 3, 4, 1), 0.5)
    settings = steps("linf") | {"num_steps": 0, "num_restarts": 8}
    every = pgd_restarts(KEY, nan_high, images, **settings)
    losses = np.asarray(jax.vmap(nan_high)(every))
    assert np.isnan(losses).any(0).all() and not np.isnan(losses).all(0).any()
    np.testing.assert_array_equal(nan_high(pgd(KEY, nan_high, images, **settings)), np.nanmax(losses, 0))


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
        pgd(KEY, loss, IMAGES, num_restarts=restarts, **steps("linf"))


@pytest.mark.parametrize("returned", ["[N]", "[1, K]", "integers", "tuple"])
@pytest.mark.parametrize("name", LOGITS_ATTACKS)
def test_logits_that_are_not_a_row_for_each_image_are_refused(name: str, returned: str) -> None:
    logits_fn = lambda x: {
        "[N]": plain(x)[:, 0],
        "[1, K]": plain(x)[:1],
        "integers": plain(x).astype(jnp.int32),
        "tuple": (plain(x), x),
    }[returned]
    with pytest.raises(ValueError, match="logits_fn returns "):
        LOGITS_ATTACKS[name](logits_fn, LABELS)


@pytest.mark.parametrize("name", LOGITS_ATTACKS)
def test_labels_that_are_no_classes_are_refused(name: str) -> None:
    for labels in (LABELS.at[0].set(-1), LABELS.at[0].set(K), LABELS[:, None], LABELS > 0):
        with pytest.raises(ValueError, match="labels are"):
            LOGITS_ATTACKS[name](plain, labels)


@pytest.mark.parametrize("images", [IMAGES * 255, IMAGES - 0.5, IMAGES.at[0].set(jnp.nan), IMAGES[:, 0, 0, 0], 0.5])
def test_images_outside_the_box_are_refused(images: Any) -> None:
    with pytest.raises(ValueError, match="images (are|have)"):
        pgd(KEY, lambda x: x.sum((1, 2, 3)), images, **steps("linf"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, "8/255", None, True, np.ones(2), 1j])
def test_a_radius_that_is_no_number_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="epsilon is .*; expected one finite number of 0 or more"):
        check_size("epsilon", bad)


@pytest.mark.parametrize("bad", [True, 2.0, "3", None, -1, np.ones(2, int)])
def test_a_number_of_steps_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="num_steps is .*; expected at least 0 steps, as a whole number"):
        check_count("num_steps", bad, 0, "0 steps")


def test_a_traced_number_of_steps_is_refused_by_name() -> None:
    attack = lambda n: pgd(KEY, lambda x: x.sum((1, 2, 3)), IMAGES, epsilon=0.1, step_size=0.1, num_steps=n)
    with pytest.raises(ValueError, match=r"num_steps is traced, int32\[\]"):
        jax.jit(attack)(3)
    np.testing.assert_array_equal(attack(np.int64(3)), attack(3))


def test_a_radius_may_be_mapped_over_and_has_no_gradient() -> None:
    attack = lambda e: pgd(KEY, lambda x: x.sum((1, 2, 3)), IMAGES, epsilon=e, step_size=e / 4, num_steps=3)
    radii = jnp.array([0.0, 0.1, 0.2])
    np.testing.assert_allclose(jax.vmap(attack)(radii), jnp.stack([attack(e) for e in radii]), atol=1e-6)
    assert jax.grad(lambda e: attack(e).sum())(0.1) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_of_16_bits_are_moved_by_steps_that_they_cannot_hold(dtype: str, norm: str) -> None:
    images = IMAGES.astype(dtype)
    settings = {"epsilon": np.float32(0.2), "step_size": 0.0005, "num_steps": 300, "norm": norm}
    loss = lambda x: cross_entropy(plain(x.astype(jnp.float32)), LABELS)
    with jax.numpy_dtype_promotion("strict"):
        found = jax.jit(lambda x: pgd(KEY, loss, x, random_start=False, **settings))(images)
    assert found.dtype == images.dtype and is_inside(found, images, epsilon=0.2, norm=norm).all()
    assert np.abs(np.asarray(found - images, np.float32)).max() > (0.1 if norm == "linf" else 0.05)


def test_no_images_give_no_images() -> None:
    loss_fn = lambda x: cross_entropy(plain(x), LABELS[:0])
    assert pgd(KEY, loss_fn, IMAGES[:0], num_restarts=3, **steps("l2")).shape == (0, 3, 4, 1)
    assert apgd(KEY, plain, IMAGES[:0], LABELS[:0], epsilon=0.1, num_steps=2).broken.shape == (0,)
    assert cw_l2(plain, IMAGES[:0], LABELS[:0]).distance.shape == (0,)


@pytest.mark.parametrize("width", ["float32", "float64"])
@pytest.mark.parametrize("name", LOGITS_ATTACKS)
def test_dtypes_stay_under_x64_and_strict_promotion(name: str, width: str) -> None:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        images, weights = jnp.asarray(IMAGES, width), jnp.asarray(WEIGHTS, "bfloat16")
        logits_fn = lambda x: x.reshape(len(x), -1).astype(jnp.bfloat16) @ weights
        labels = logits_fn(images).argmax(-1)  # int64
        attack = {
            "square": lambda: square(KEY, logits_fn, images, labels, epsilon=0.2, norm="l2", num_steps=3),
            "fab": lambda: fab(KEY, logits_fn, images, labels, epsilon=0.2, num_steps=2, num_restarts=2),
            "fab_targeted": lambda: fab_targeted(
                KEY, logits_fn, images, labels, epsilon=0.2, num_targets=2, num_steps=2
            ),
            "apgd": lambda: apgd(KEY, logits_fn, images, labels, epsilon=0.2, num_steps=3),
            "apgd l2": lambda: apgd(KEY, logits_fn, images, labels, epsilon=0.2, norm="l2", loss="dlr", num_steps=3),
            "apgd_targeted": lambda: apgd_targeted(
                KEY, logits_fn, images, labels, epsilon=0.2, num_targets=2, num_steps=3
            ),
            "pgd": lambda: run_attack(Pgd(0.2, 0.05, num_steps=3), logits_fn, KEY, images, labels),
            "cw_l2": lambda: cw_l2(logits_fn, images, labels, num_steps=3, num_search_steps=2),
        }[name]
        found = attack()
        assert found.adversarial.dtype == images.dtype
        if name != "cw_l2":
            assert is_inside(found.adversarial, images, epsilon=0.2, norm="l2" if name == "square" else "linf").all()


@pytest.mark.parametrize("name", ["apgd", "fab", "square"])
def test_a_radius_in_bytes_is_refused_under_linf(name: str) -> None:
    attack = {"apgd": apgd, "fab": fab, "square": square}[name]
    with pytest.raises(ValueError, match="epsilon is 8; expected at most 1 under linf: .* so 8/255 is meant"):
        attack(KEY, plain, IMAGES, LABELS, epsilon=8, num_steps=2)
    assert attack(KEY, plain, IMAGES, LABELS, epsilon=8, num_steps=2, norm="l2").broken.any()


def test_a_radius_in_bytes_is_refused_by_pgd() -> None:
    loss = lambda x: cross_entropy(plain(x), LABELS)
    for attack in (
        lambda: pgd(KEY, loss, IMAGES, epsilon=8.0, step_size=2.0, num_steps=2),
        lambda: momentum_pgd(KEY, loss, IMAGES, epsilon=8.0, step_size=2.0, num_steps=2),
        lambda: fgsm(loss, IMAGES, epsilon=8.0),
    ):
        with pytest.raises(ValueError, match="8/255 is meant"):
            attack()


@pytest.mark.parametrize("rho", [-0.1, 2.0, float("nan")])
def test_a_share_of_steps_that_is_none_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        Apgd(0.1, rho=rho)


def test_keys_of_another_shape_are_refused_by_pgd() -> None:
    keys = jax.random.split(KEY, N)[:, None]
    with pytest.raises(ValueError, match=r"keys \[6, 1\]; expected one, or one for each image \[6\]"):
        pgd(keys, lambda x: cross_entropy(plain(x), LABELS), IMAGES, **steps("linf"))
