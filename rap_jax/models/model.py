"""Networks as pure functions, and passes in bfloat16.

    model = create_model(ModelConfig(width=4), input_shape=(28, 28, 1), num_classes=10)
    weights = model.init(jax.random.key(0))
    logits = model.logits(weights, images)                                           # evaluation mode
    logits, batch_stats = model.apply(*weights, images, train=True)
    smaller = model.replace(features={"conv1": 4})

`Weights` are two plain nested dicts, {"conv1": {"kernel": [5, 5, 1, 8], "bias": [8]}, ...}, with kernels
[height, width, in, out] and [in, out]. Networks without BatchNorm have the empty `batch_stats` {}.

`in_dtype(model, "bfloat16")` computes in a narrow float. Weights, gradients, optimizer, logits, loss and the images of
an attack stay float32; only what lies between images and logits is bfloat16. It has the exponents of float32, so small
gradients do not vanish and the loss needs no scale. The moments and the running statistics of BatchNorm stay float32.
The gradient of a bias is summed over images and pixels in bfloat16: in a training step no less exact than the rest,
but in evaluation mode, where BatchNorm is a bias too and no step takes that gradient, it can be off by half.

It pays on a GPU or TPU, which have units for it. A CPU without them is slower than in float32: a step of a LeNet of
width 4 with PGD-10 takes 1.55 times as long on 2 cores, and 7 times with `implementation` xla.

Reference: Micikevicius et al., "Mixed Precision Training", 2018, https://arxiv.org/abs/1710.03740; Kalamkar et al., "A
Study of BFLOAT16 for Deep Learning Training", 2019, https://arxiv.org/abs/1905.12322.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from rap_jax.config import require
from rap_jax.models.wiring import Wiring

Params = dict[str, Any]
BatchStats = dict[str, Any]

_NO_WIRING = Wiring()


class Weights(NamedTuple):
    """The arrays of a network."""

    params: chex.ArrayTree
    batch_stats: chex.ArrayTree  # running statistics of BatchNorm; {} without


class ApplyFn(Protocol):
    """Computes `(logits, new_batch_stats)`: images [N, H, W, C] in [0, 1] -> logits [N, num_classes].

    With `train` BatchNorm normalises by the batch and moves its statistics; without, it uses `batch_stats` and returns
    them unchanged. `train` is static: mark it so under `jax.jit`, or close over it.

    It computes in the dtype of the params, and so are the logits: images of other floats are cast to it, and their
    gradient is in their own. N may be 0 without `train`.
    """

    def __call__(
        self, params: Params, batch_stats: BatchStats, images: jax.Array, train: bool
    ) -> tuple[jax.Array, BatchStats]: ...


class Features(dict[str, int]):
    """Path of a layer -> number of its outputs. Never changed, so that a model can be a static argument of a jit."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions. Hashable: a static argument of `jax.jit`, or closed over."""

    init: Callable[[jax.Array], Weights]  # from a PRNG key; `jax.jit(model.init, out_shardings=...)` places them
    apply: ApplyFn
    input_shape: tuple[int, int, int]  # (height, width, channels) of one image
    num_classes: int  # number of logits
    output_layer: str  # path of the layer that gives the logits, such as `fc2`; its outputs are the classes
    wiring: Wiring = _NO_WIRING  # layers whose outputs can be removed, and their readers
    features: Features = Features()  # noqa: RUF009  # path of a layer -> its outputs, where the width says otherwise
    folded: bool = False  # whether BatchNorm has been made part of its neighbours
    remake: "Callable[..., Model] | None" = None  # `create_model` with the keywords of this network; None if unknown

    def logits(self, weights: Weights, images: jax.Array) -> jax.Array:
        """Logits [N, num_classes] of images [N, H, W, C] in [0, 1], in evaluation mode.

        Raises:
            ValueError: weights that are no pair, or images of another shape.
        """
        pair = isinstance(weights, tuple) and len(weights) == len(Weights._fields)
        require(pair, "weights", type(weights).__name__, "Weights(params, batch_stats), and the images after them")
        return self.apply(*weights, images, False)[0]

    def replace(self, **changes: Any) -> "Model":
        """The network made again with other keywords of `create_model`, such as `features` or `implementation`.

        Raises:
            ValueError: it was not made by `create_model`, or `create_model` refuses the keywords.
        """
        if self.remake is None:
            raise ValueError(f"The model {self} cannot be made again with {changes}; expected one of create_model.")
        return self.remake(**changes)


def from_linen(
    module: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    output_layer: str,
    wiring: Wiring = _NO_WIRING,
) -> Model:
    """A Linen module as a `Model`. Its `apply` raises a `ValueError` for images of another shape, or of whole numbers.

    Args:
        module: `__call__(images, train)` maps images [N, *input_shape] to logits [N, num_classes].
        input_shape, num_classes, output_layer, wiring: see `Model`.

    Raises:
        ValueError: for a shape or a number of classes that no network can have.
    """
    shaped = len(input_shape) == 3 and min(input_shape) >= 1
    require(shaped, "input_shape", input_shape, "(height, width, channels), such as (28, 28, 1)")
    require(num_classes >= 2, "num_classes", num_classes, "2 or more classes")

    height, width, channels = input_shape

    def init(key: jax.Array) -> Weights:
        variables = module.init(key, jnp.zeros((1, *input_shape), jnp.float32), train=False)
        return Weights(variables["params"], variables.get("batch_stats", {}))

    def apply(params: Params, batch_stats: BatchStats, images: jax.Array, train: bool) -> tuple[jax.Array, BatchStats]:
        require(images.shape[1:] == input_shape, "images.shape", images.shape, f"[N, {height}, {width}, {channels}]")
        require(not train or images.shape[0] != 0, "number of images", 0, "1 or more, for the statistics of a batch")
        floating = jnp.issubdtype(images.dtype, jnp.floating)
        require(floating, "dtype of images", str(images.dtype), "floats in [0, 1]: bytes / 255")
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}  # with several of them images stay as they are
        images = images.astype(dtypes.pop()) if len(dtypes) == 1 else images
        variables = {"params": params, "batch_stats": batch_stats}
        # Any: the type of Linen's apply depends on `mutable`.
        outputs: Any = module.apply(variables, images, train=train, mutable=["batch_stats"] if train else False)
        if not train:
            return outputs, batch_stats
        logits, moved = outputs
        return logits, moved.get("batch_stats", {})

    return Model(init, apply, input_shape, num_classes, output_layer, wiring)


def num_params(params: Params) -> int:
    """How many numbers `params` holds; arrays, and each `jax.ShapeDtypeStruct` too."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


DTYPES: tuple[str, ...] = ("float32", "bfloat16")


def in_dtype(model: Model, dtype: str) -> Model:
    """The same network with passes in `dtype`: `float32` leaves it as it is, `bfloat16` casts params and images.

    The casts are part of the function, so its gradients are float32 like the params and images that it is given.

    Raises:
        ValueError: for another dtype.
    """
    require(dtype in DTYPES, "compute_dtype", dtype, f"one of {', '.join(DTYPES)}")
    if dtype == "float32":
        return model
    cast: Any = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def apply(params: Params, batch_stats: BatchStats, images: jax.Array, train: bool) -> tuple[jax.Array, BatchStats]:
        logits, moved = model.apply(cast(params), batch_stats, cast(images), train)
        return logits.astype(jnp.float32), moved

    # Made again, it is narrow again.
    remake = None if model.remake is None else lambda **changes: in_dtype(model.replace(**changes), dtype)
    return dataclasses.replace(model, apply=apply, remake=remake)
