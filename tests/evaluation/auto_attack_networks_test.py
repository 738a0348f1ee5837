"""AutoAttack on networks of others: that place themselves, have no gradient, or want one batch size."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import export
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from smooth_net import _W1, _W2, CLASSES, examples, logits_fn

from rap_jax._runtime.functions import on_any_batch, own_mesh, trace
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.square import Square
from rap_jax.evaluation.auto_attack import auto_attack
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.evaluation.diagnostics import diagnose
from rap_jax.models import cpu_forms

pytestmark = pytest.mark.e2e

THREAT_MODEL = ThreatModel("linf", 0.04)
IMAGES, LABELS = examples(11, wrong=1)
KEY = jax.random.key(0)
APGD = (Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=4)),)
SQUARE = (Component("square", Square(THREAT_MODEL, num_steps=20)),)
MESH = Mesh(np.array(jax.devices()[:2]), ("model",))
COLUMNS, ROWS = NamedSharding(MESH, P(None, "model")), NamedSharding(MESH, P("model"))
WEIGHT = jax.device_put(np.random.default_rng(0).normal(size=(36, 16)).astype(np.float32), COLUMNS)
LAST = jnp.asarray(np.random.default_rng(1).normal(size=(16, CLASSES)), jnp.float32)

Network = Callable[[jax.Array], jax.Array]


def broken_by(network: Network, components: tuple[Component, ...] = APGD, **settings: object) -> list[str]:
    found = auto_attack(
        network, IMAGES, LABELS,
        **{"threat_model": THREAT_MODEL, "key": KEY, "components": components, "diagnostics": False} | settings,
    )  # fmt: skip
    return list(found.broken_by)


@functools.cache
def expected(name: str = "apgd") -> list[str]:
    return broken_by(logits_fn, {"apgd": APGD, "square": SQUARE}[name], devices=jax.devices()[:1])


@jax.custom_vjp
def constrained_backward(x: jax.Array) -> jax.Array:
    return x


constrained_backward.defvjp(lambda x: (x, None), lambda _, g: (jax.lax.with_sharding_constraint(g, COLUMNS),))
flat = lambda images: images.reshape(len(images), -1)
constrain = jax.lax.with_sharding_constraint
PLACED: dict[str, Network] = {
    "constraint": lambda x: logits_fn(constrain(flat(x), COLUMNS).reshape(x.shape)),
    "constraint under jit": jax.jit(
        lambda x: logits_fn(jax.jit(lambda x: constrain(x, ROWS))(jnp.moveaxis(x, 0, -1)).transpose(3, 0, 1, 2))
    ),
    "constraint of the gradient alone": lambda x: logits_fn(constrained_backward(flat(x)).reshape(x.shape)),
    "batch that is split": lambda x: logits_fn(constrain(x, ROWS)),
    "shard_map": jax.shard_map(logits_fn, mesh=MESH, in_specs=P("model"), out_specs=P("model")),
    "shardings of jit": lambda x: jax.jit(logits_fn, in_shardings=ROWS, out_shardings=ROWS)(x),
}


@pytest.mark.parametrize("name", PLACED)
def test_a_network_that_places_itself_is_attacked(name: str) -> None:
    assert broken_by(PLACED[name], devices=jax.devices()[5:6]) == expected()


def test_a_network_that_places_itself_is_attacked_as_on_one_device_with_all_of_it(tmp_path: Path) -> None:
    hidden = lambda x: constrain(jnp.tanh(flat(x) @ WEIGHT), COLUMNS) @ LAST
    whole = jax.device_put((WEIGHT, LAST), jax.devices()[0])
    plain = lambda x: jnp.tanh(flat(x) @ whole[0]) @ whole[1]
    path = tmp_path / "state.npz"
    found = broken_by(hidden, state_path=path)
    assert found == broken_by(plain, devices=jax.devices()[:1]) == broken_by(hidden, state_path=path)


def test_a_mesh_that_is_set_is_where_the_network_runs() -> None:
    with jax.set_mesh(jax.make_mesh((2,), ("model",), devices=jax.devices()[:2])):
        assert broken_by(logits_fn) == expected()


def test_the_mesh_is_found_at_any_depth() -> None:
    mesh = lambda network: own_mesh(trace(network, jnp.asarray(IMAGES[:2])).jaxpr)
    assert all(mesh(network) == MESH for network in PLACED.values())
    in_loop = lambda x: jax.lax.scan(lambda x, _: (constrain(x, ROWS), None), x, None, length=2)[0]
    assert mesh(lambda x: logits_fn(in_loop(x))) == MESH
    assert mesh(logits_fn) is None and mesh(jax.jit(logits_fn)) is None


KERNEL = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3, IMAGES.shape[-1], 4)), jnp.float32)
OUTPUTS = jnp.asarray(np.random.default_rng(3).normal(size=(IMAGES[0, ..., 0].size, CLASSES)), jnp.float32)


def convolutional(images: jax.Array) -> jax.Array:
    scores = jax.lax.conv_general_dilated(images, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return nn.max_pool(nn.relu(scores), (2, 2), (2, 2)).reshape(len(images), -1) @ OUTPUTS


def test_the_form_for_a_cpu_changes_rounding_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[Network] = []
    make = cpu_forms.fast_on_cpu
    monkeypatch.setattr(cpu_forms, "fast_on_cpu", lambda network: forms.append(network) or make(network))
    labels = np.asarray(convolutional(jnp.asarray(IMAGES)).argmax(1))

    def attack(**settings: Any) -> list[str]:
        given = {"threat_model": THREAT_MODEL, "key": KEY, "components": APGD, "devices": jax.devices()[:2]}
        found = auto_attack(convolutional, IMAGES, labels, state_path=tmp_path / "state.npz", **given, **settings)
        return list(found.broken_by)

    found = attack(diagnostics=False)
    assert forms and {"apgd-ce", ""} == set(found)
    forms.clear()
    assert attack() == found and forms  # diagnostics alone: the attack is in the state
    forms.clear()
    assert attack(fast_on_cpu=False) == found  # the state is recognised
    (tmp_path / "state.npz").unlink()
    assert attack(fast_on_cpu=False) == found and not forms


def elsewhere(images: np.ndarray) -> np.ndarray:
    return np.tanh(np.asarray(images).reshape(len(images), -1) @ np.asarray(_W1)) @ np.asarray(_W2)


shape_of = lambda x: jax.ShapeDtypeStruct((x.shape[0], CLASSES), jnp.float32)
WITHOUT: dict[str, Network] = {
    "pure_callback": lambda x: jax.pure_callback(elsewhere, shape_of(x), x),
    "io_callback": lambda x: jax.experimental.io_callback(elsewhere, shape_of(x), x),
    "while_loop": lambda x: jax.lax.while_loop(
        lambda c: c[0] < 1, lambda c: (c[0] + 1, logits_fn(x)), (0, jnp.zeros((len(x), CLASSES)))
    )[1],
}


@pytest.mark.parametrize("name", WITHOUT)
def test_square_attacks_a_network_without_a_gradient(name: str, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    settings = {"devices": jax.devices()[:2], "state_path": path}
    assert broken_by(WITHOUT[name], SQUARE, **settings) == expected("square")
    assert broken_by(WITHOUT[name], SQUARE, **settings) == expected("square")  # the state is recognised


def test_what_a_network_without_a_gradient_cannot_have_is_said() -> None:
    network = WITHOUT["pure_callback"]
    with pytest.raises(
        ValueError, match=r"has no gradient \(ValueError: Pure callbacks.*\), which apgd-ce, mine need;"
    ):
        broken_by(network, (*APGD, *SQUARE, Component("mine", Apgd(THREAT_MODEL, num_targets=2))))
    found = diagnose(network, IMAGES, LABELS, threat_model=THREAT_MODEL, key=KEY)
    assert [finding.name for finding in found.findings] == ["no gradient"]
    assert found.zero_gradients == 1 and [point.epsilon for point in found.sweep] == [0]


def exported(batch_size: int) -> Network:
    shape = jax.ShapeDtypeStruct((batch_size, 6, 6, 1), jnp.float32)
    return export.deserialize(export.export(jax.jit(logits_fn))(shape).serialize(vjp_order=1)).call


@pytest.mark.parametrize("batch_size", [2, 8, 24])
@pytest.mark.parametrize("kind", ["reshaped", "exported"])
def test_a_network_of_one_batch_size_is_called_with_that_alone(batch_size: int, kind: str, tmp_path: Path) -> None:
    reshaped = lambda x: logits_fn(x.reshape(batch_size, 6, 6, 1))
    network = reshaped if kind == "reshaped" else exported(batch_size)
    settings = {"devices": jax.devices()[:2], "state_path": tmp_path / "state.npz"}
    assert broken_by(network, batch_size=batch_size, **settings) == expected()
    with pytest.raises(ValueError, match=r"cannot be called with float32\[6, 6, 6, 1\].* pass that as batch_size"):
        broken_by(network, **settings)


def test_one_batch_size_holds_for_diagnostics_too() -> None:
    sizes: set[int] = set()

    def network(images: jax.Array) -> jax.Array:
        sizes.add(len(images))
        return logits_fn(images.reshape(8, 6, 6, 1))

    broken_by(network, batch_size=8, diagnostics=True, devices=jax.devices()[:1])
    assert sizes - {8} == {1}  # what it was tried with


def test_a_network_of_any_batch_size_stays_as_it_is() -> None:
    assert on_any_batch(logits_fn, (6, 6, 1), (4, 8)) == (logits_fn, CLASSES)
    multiples = lambda x: logits_fn(x.reshape(-1, 4, 6, 6, 1).reshape(x.shape))
    found, _ = on_any_batch(multiples, (6, 6, 1), (3, 8))
    np.testing.assert_allclose(found(jnp.asarray(IMAGES)), logits_fn(jnp.asarray(IMAGES)), atol=1e-5)


class Module:
    """Stands for modules that are called."""

    def __call__(self, images: jax.Array) -> jax.Array:
        return logits_fn(images)

    @functools.partial(jax.jit, static_argnums=0)
    def method(self, images: jax.Array) -> jax.Array:
        return logits_fn(images)


with_params = lambda params, images, train=False: logits_fn(images) * params["scale"] + 100 * train
PARAMS = {"scale": jnp.ones(())}


@pytest.mark.parametrize(
    "network",
    [
        Module(),
        Module().__call__,
        Module().method,
        functools.partial(with_params, PARAMS),
        jax.jit(functools.partial(with_params, PARAMS)),
        functools.partial(jax.jit(with_params, static_argnames="train"), PARAMS, train=False),
        jax.tree_util.Partial(with_params, PARAMS),
        jax.checkpoint(logits_fn),
        jax.jit(lambda x: logits_fn(x), donate_argnums=0),
        jax.vmap(lambda x: logits_fn(x[None])[0]),
    ],
)
def test_any_callable_is_a_network(network: Network) -> None:
    assert broken_by(network, devices=jax.devices()[:1]) == expected()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (3, "logits_fn is 3; expected a function"),
        (lambda x: logits_fn(x)[:, :1], r"number of logits is 1; expected 2 or more: one logit z becomes \[0, z\]"),
        (lambda x: logits_fn(x)[:, 0], r"logits_fn returns float32\[6\]; expected logits float \[6, K\]"),
        (elsewhere, "TracerArrayConversionError.*pure_callback.*Square alone"),
        (jax.jit(logits_fn).lower(IMAGES).compile(), "expected the function before"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused(network: Network, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        broken_by(network, devices=jax.devices()[:2])


@pytest.mark.parametrize("components", [APGD, SQUARE])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_logits_that_are_no_numbers_are_never_counted(components: tuple[Component, ...], bad: float) -> None:
    def network(images: jax.Array) -> jax.Array:
        moved = jnp.abs(images[:, None] - jnp.asarray(IMAGES)[None]).max((2, 3, 4)).min(1) > 1e-6
        return jnp.where(moved[:, None], bad, logits_fn(images))

    with pytest.raises(ValueError, match="NaN"):
        broken_by(network, components)


class Normed(nnx.Module):
    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(36, rngs=nnx.Rngs(0))

    def __call__(self, images: jax.Array) -> jax.Array:
        return logits_fn(self.norm(images.reshape(len(images), -1)).reshape(images.shape))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, train: bool = True) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(images)
        return logits_fn(nn.Dropout(0.5, deterministic=not train)(x))


def exported_for(shape: tuple[int, ...] = (4, 6, 6, 1), dtype: str = "float32", **settings: Any) -> export.Exported:
    network = lambda x: logits_fn(x.reshape(-1, 6, 6, 1).astype(jnp.float32))
    return export.export(jax.jit(network), **settings)(jax.ShapeDtypeStruct(shape, dtype))


MODULE = Dropped()
VARIABLES = MODULE.init({"params": KEY, "dropout": KEY}, IMAGES)


@pytest.mark.parametrize(
    ("network", "hint"),
    [
        (Normed(), r"call model.eval\(\)"),
        (nnx.jit(Normed()), r"call model.eval\(\)"),
        (functools.partial(MODULE.apply, VARIABLES), "call it with train=False, or use_running_average=True"),
        (nn.Dropout(0.5, deterministic=False).bind({}), "deterministic=True for Dropout"),
        (MODULE, "lambda images: model.apply"),
        (lambda images, key: logits_fn(images), r'version="rand" calls logits_fn\(images, key\)'),
        (lambda images: (logits_fn(images), {}), r"lambda images: network\(images\)\[0\]"),
        (exported_for(), "logits_fn is 'an Exported'; expected its function: pass exported.call.$"),
        (exported_for().call, "pass that as batch_size"),
        (lambda x: logits_fn(x.reshape(7, 6, 6, 1)), "pass that as batch_size"),
        (exported_for((11, 6, 6, 1), "bfloat16").call, "Convert the images"),
        (exported_for((11, 1, 6, 6)).call, "channels last"),
        (exported_for((11, 6, 6, 1), platforms=["tpu"]).call, "cannot run here .*platforms="),
        (export.deserialize(exported_for((11, 6, 6, 1)).serialize()).call, "vjp_order=1"),
        (lambda x: {}["missing"], "KeyError: 'missing'.*Try it by jax.eval_shape"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_called_is_refused_with_what_to_do(network: Network, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as refused:
        broken_by(network, devices=jax.devices()[:1], batch_size=11)
    assert len(str(refused.value)) < 900
    assert ("batch_size" in str(refused.value)) == ("batch_size" in hint)
