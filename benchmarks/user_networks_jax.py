"""The JAX side of `benchmarks.user_networks`: a process that attacks on command, and its networks.

python -m benchmarks.user_networks_jax CASE ARRAYS.npz CACHE
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import rap_jax as rap
from benchmarks.trades_network import trades_network
from benchmarks.worker import Answer, clocked, serve
from launch.command import enable_compilation_cache
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax.attacks import ThreatModel, pgd
from rap_jax.evaluation.correctness import on_each_device

CHANNELS = (16, 64)
NUM_STEPS = 5


class ConvNorm(nn.Module):
    """A convolution without bias, then BatchNorm, as users of Flax write them."""

    features: int
    kernel_size: int
    stride: int = 1

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        padding, size = self.kernel_size // 2, (self.kernel_size, self.kernel_size)
        outputs = nn.Conv(self.features, size, self.stride, padding, use_bias=False, name="conv")(images)
        return nn.BatchNorm(use_running_average=True, name="norm")(outputs)


class Block(nn.Module):
    """relu(conv2(relu(conv1(x))) + shortcut(x))."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = nn.relu(ConvNorm(self.features, 3, self.stride, name="conv1")(images))
        hidden = ConvNorm(self.features, 3, name="conv2")(hidden)
        if images.shape != hidden.shape:
            images = ConvNorm(self.features, 1, self.stride, name="shortcut")(images)
        return nn.relu(hidden + images)


class ResNet18(nn.Module):
    """ResNet-18 with so many channels in its first group, for images 32x32x3, in evaluation mode."""

    channels: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, 32, 32, 3] -> logits [N, 10]."""
        hidden = nn.relu(ConvNorm(self.channels, 3, name="conv1")(images))
        for group, stride in enumerate((1, 2, 2, 2)):
            for number in range(2):
                block = Block(
                    self.channels * 2**group, stride if number == 0 else 1, name=f"group{group + 1}_block{number}"
                )
                hidden = block(hidden)
        return nn.Dense(10, name="fc")(hidden.mean((1, 2)))


_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def state_of(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The variables by the names and in the layout of `benchmarks.pytorch.networks.ResNet18`."""
    state = {}
    for path, value in jax.tree_util.tree_flatten_with_path(dict(variables))[0]:
        _, *layers, leaf = (entry.key for entry in path)
        array = np.asarray(value)
        moved = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[".".join([*layers, _NAMES[leaf]])] = np.ascontiguousarray(moved)
    return state


def variables_of(network: nn.Module, state: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `state_of`."""
    like = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))

    def of(path: Any, _: Any) -> np.ndarray:
        _, *layers, leaf = (entry.key for entry in path)
        array = state[".".join([*layers, _NAMES[leaf]])]
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T

    return jax.tree_util.tree_map_with_path(of, like)


def network_of(case: str, path: str) -> Callable[[jax.Array], jax.Array]:
    """Images [N, H, W, C] -> logits [N, 10], with XLA's convolutions."""
    with np.load(path, allow_pickle=False) as file:
        state = {name.removeprefix("state/"): file[name] for name in file.files if name.startswith("state/")}
    if case == "trades":
        weights = f"{path}.state.npz"
        np.savez(weights, **state)
        return trades_network(weights)
    network = ResNet18(int(case.rpartition("_")[2]))
    variables = jax.device_put(variables_of(network, state))
    return lambda images: network.apply(variables, images)  # type: ignore[return-value]


def main(case: str, path: str, cache: str) -> None:
    """Answers the requests of `benchmarks.user_networks`. Devices are those of the commands."""
    start_cpu_devices(0, batch_size=64)
    enable_compilation_cache(cache)
    arrays, logits_fn = np.load(path, allow_pickle=False), network_of(case, path)
    images, labels, epsilon = arrays["images"], arrays["labels"], float(arrays["epsilon"])
    threat_model, key = ThreatModel("linf", epsilon), jax.random.key(0)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def attack_of(network: Callable[[jax.Array], jax.Array]) -> jax.stages.Wrapped:
        given: dict[str, Any] = {"threat_model": threat_model, "step_size": epsilon / 4, "num_steps": NUM_STEPS}
        one = lambda _, key, batch: pgd(network, *batch, key=key, **given).adversarial
        return on_each_device(one, mesh)

    attacks = {fast: attack_of(rap.fast_on_cpu(logits_fn) if fast else logits_fn) for fast in (False, True)}

    def run_pgd(count: int, fast: bool) -> Answer:
        batch = (images[:count], labels[:count].astype(np.int32))
        return clocked(lambda: jax.block_until_ready(attacks[fast]((), key, batch)))

    def run_auto_attack(count: int, fast: bool) -> Answer:
        found = []
        run = lambda: rap.auto_attack(
            logits_fn, images[:count], labels[:count], threat_model=threat_model, key=key, fast_on_cpu=fast
        )
        times = clocked(lambda: found.append(run()))
        return times | {"robust": f"{found[0].robust_accuracy:.1%}"}

    serve({"pgd": run_pgd, "auto_attack": run_auto_attack})


if __name__ == "__main__":
    main(*sys.argv[1:])
