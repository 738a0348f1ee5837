"""HYDRA and HARP: the weights stay as they are, and what is learned is which of them to keep.

HYDRA (Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020,
https://arxiv.org/abs/2002.10509). Each weight w has a score s, and the network computes with w where |s| is among the
largest of its layer, with 0 elsewhere. The gradient of the mask is passed straight through to |s|, as if m were |s|:

    ds = sign(s) w dL/dp,    s starts at sqrt(6 / fan_in) w / max |w|

HARP (Zhao and Wressnegger, "Holistic Adversarially Robust Pruning", ICLR 2023). The share k that a layer keeps is
learned as well, with one number r per layer:

    k = k_min + (1 - k_min) sigmoid(r),    dk = the sum of the mask's gradients,
    loss + gamma max(0, kept / target - 1),    gamma grows by `growth` an epoch until the target is reached

The kept weights of all layers are counted together; from the update `exact_step` on their number is the target.

Differs from the authors' code (https://github.com/inspire-group/hydra, https://github.com/intellisec/harp): (1)
Counts are those of `projections.num_kept`; theirs are rounded down. (2) Under `Filter`, `Column` and
`BatchNormFilter` a structure has one score, which starts at its norm. A removed filter takes bias, scale and shift
along, and the gradient of its mask is the sum over all of them: behind a BatchNorm the kernel alone has none. HARP
removes input channels. (3) Without weights under a filter relu passes nothing on, so a removed filter gets no
gradient: it comes back only where others fall below it. (4) HARP counts weights for all structures, in place of FLOPs
for channels. (5) The shares of HARP start at the square root of the share to keep, as 0.1 for 0.01 in the paper;
theirs are read from a file. (6) Theirs ends with the shares that it has found, 4 digits from the target or better,
after some epochs. Here the shares are multiplied by one factor from `exact_step` on, so that the total is the target:
structures enter by (rank + 1) / (k n), n the structures of their layer, until it is full. Without it the shares of a
short training, or of a small learning rate, do not come down."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax._runtime.arrays import at_least_float32
from rap_jax.pruning.latent import LatentState, train_latent
from rap_jax.pruning.layers import arrays_by_name, is_weight, leaves_by_name, siblings, tree_by_name
from rap_jax.pruning.ownership import Leaves, Specs, kernels_of, outputs_of, owned, resolve_specs
from rap_jax.pruning.projections import BatchNormFilter, Filter, Spec, keep_largest, num_kept
from rap_jax.pruning.scores import masks_by_score, structure_axes, structure_norms, with_weights
from rap_jax.pruning.specs import complete_masks, on_outputs

_TINY = 1e-12
_REACHED = 5e-5  # an excess that the authors round to 0
_MOST = 0.99  # of a share at the start: sigmoid is never 1


@dataclasses.dataclass(frozen=True)
class LearnedRates:
    """How HARP learns what share of each layer to keep."""

    exact_step: int  # from this update on the total is exact
    steps_per_epoch: int
    growth: float = 0.01  # of gamma, per epoch (0.1 for ImageNet)
    least: float = 0.1  # k_min, as a share of the share to keep of all weights

    def __post_init__(self) -> None:
        if self.exact_step < 1 or self.steps_per_epoch < 1:
            raise ValueError(
                f"exact_step is {self.exact_step!r} and steps_per_epoch {self.steps_per_epoch!r}; expected 1 or more."
            )
        if not (math.isfinite(self.growth) and self.growth > 0):
            raise ValueError(f"growth is {self.growth!r}; expected a number above 0, such as 0.01.")
        if not 0 <= self.least < 1:
            raise ValueError(f"least is {self.least!r}; expected a share in [0, 1), such as 0.1.")


def learn_scores(
    inner: optax.GradientTransformation,
    specs: Specs,
    *,
    rates: LearnedRates | None = None,
    held: chex.ArrayTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """HYDRA; with `rates` HARP. `inner` moves the scores, and scale and shift of every BatchNorm; all else is fixed.

    See `train_latent`, which this is. All masks are in the state, from `init` on.

    Args:
      inner: an optimizer with its learning rate and decay.
      specs: the sparsity sets. With `rates` their counts add up to the target, and each layer gets its own.
      rates: see `LearnedRates`.
      held: bool tree like the params, False where a weight is zero already and stays so.

    Raises:
      ValueError: in `init`, as `specs.masks_of`; `rates` for stacks of layers.
    """
    stacked = [name for name, spec in specs.items() if spec.stack_axes] if rates is not None else []
    if stacked:
        raise ValueError(f"{', '.join(stacked)} are stacks of layers; expected stack_axes=0 where rates are learned.")

    def init(params: optax.Params) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        found, leaves = resolve_specs(specs, params)
        frozen = {name for name in leaves if _is_frozen(name, leaves)}
        latent = {
            "scores": _some(params, {name: first_scores(spec, leaves[name]) for name, spec in found.items()}),
            "trained": _some(params, {name: leaf for name, leaf in leaves.items() if name not in frozen}),
        }
        fixed: dict[str, Any] = {"frozen": _some(params, {name: leaves[name] for name in frozen})}
        if rates is not None:
            first = _first_rate(_target(found, leaves) / _size(found, leaves), rates.least)
            latent["rates"] = _some(params, {name: jnp.full((), first, jnp.float32) for name in found})
            fixed |= {"gamma": jnp.full((), rates.growth, jnp.float32), "reached": jnp.zeros((), bool)}
        return latent, fixed

    def advance(state: LatentState, params: optax.Params) -> LatentState:
        found, leaves = resolve_specs(specs, params)
        scores = jax.tree.map(jnp.abs, leaves_by_name(state.latent["scores"]))
        if rates is None:
            return state._replace(masks=masks_by_score(found, params, scores))
        shares = _shares(state, found, leaves, rates)
        masks = jax.lax.cond(
            state.num_steps >= rates.exact_step,
            lambda: _masks_of_total(found, params, scores, shares),
            lambda: _masks_of_shares(found, params, scores, shares),
        )
        return state._replace(masks=masks, fixed=state.fixed | _grown(state, _excess(shares, found, leaves), rates))

    def penalty(state: LatentState) -> jax.Array:
        found, leaves = resolve_specs(specs, state.masks)
        assert rates is not None
        return state.fixed["gamma"] * _excess(_shares(state, found, leaves, rates), found, leaves)

    return train_latent(
        inner,
        init_fn=init,
        effective_fn=lambda state: _effective(state, specs, rates),
        advance_fn=advance,
        penalty_fn=None if rates is None else penalty,
        held=held,
    )


def first_scores(spec: Spec, weights: jax.Array) -> jax.Array:
    """sqrt(6 / fan_in) w / max |w|, in the shape of scores; of structures of several weights w is their norm."""
    stack = spec.stack_axes or 0
    norms = structure_norms(spec, weights)
    values = norms if structure_axes(spec, weights.ndim) else at_least_float32(weights)
    largest = norms.max(tuple(range(stack, norms.ndim)), keepdims=True)
    fan_in = math.prod(weights.shape[stack:-1])
    return math.sqrt(6 / fan_in) * values / jnp.maximum(largest, _TINY)


def _is_frozen(name: str, leaves: Leaves) -> bool:
    """Weights, and what lies beside them but the scale and shift of a BatchNorm."""
    beside = any(is_weight(other, leaf) for other, leaf in siblings(name, leaves).items())
    return is_weight(name, leaves[name]) or (beside and name.rsplit("/", 1)[-1] not in ("scale", "shift"))


def _some(params: chex.ArrayTree, leaves: Leaves) -> Any:
    """A tree like the params with these leaves alone, as `optax.masked` shows it."""
    return tree_by_name(params, {name: leaves.get(name, optax.MaskedNode()) for name in arrays_by_name(params)})


def _effective(state: LatentState, specs: Specs, rates: LearnedRates | None) -> optax.Params:
    """The weights under their masks. The gradient of a mask is passed to |s| and to k, which do not change it."""
    values = leaves_by_name(state.fixed["frozen"]) | leaves_by_name(state.latent["trained"])
    specs, masks = resolve_specs(specs, state.masks)
    scores = leaves_by_name(state.latent["scores"])
    shares = {} if rates is None else _shares(state, specs, masks, rates)
    factors = {name: mask.astype(values[name].dtype) for name, mask in masks.items()}
    for owner, spec in specs.items():
        soft = jnp.abs(scores[owner]) + (shares[owner].astype(scores[owner].dtype) if shares else 0)
        for name in _removed_with(owner, spec, masks):
            of_leaf = _on_leaf(soft, name, owner, spec, masks)
            factors[name] += (of_leaf - jax.lax.stop_gradient(of_leaf)).astype(factors[name].dtype)
    return tree_by_name(state.masks, {name: values[name] * factors[name] for name in masks})


def _removed_with(owner: str, spec: Spec, leaves: Leaves) -> list[str]:
    """The leaves of a structure: the weights that have the spec, and what goes with their outputs."""
    if not isinstance(spec, Filter | BatchNormFilter):
        return [owner]
    kernels = kernels_of(owner, spec, leaves) if isinstance(spec, BatchNormFilter) else []
    return list(dict.fromkeys([owner, *owned(owner, spec, leaves), *kernels]))


def _on_leaf(scores: jax.Array, name: str, owner: str, spec: Spec, leaves: Leaves) -> jax.Array:
    """Scores of the structures of `owner`, each on all its weights in the leaf `name`."""
    if name == owner:
        return jnp.broadcast_to(scores, leaves[name].shape)
    return on_outputs(scores.reshape(outputs_of(owner, spec, leaves)), leaves[name].shape)


def _num_structures(spec: Spec, leaf: Any) -> int:
    axes = structure_axes(spec, len(leaf.shape))
    return math.prod(length for axis, length in enumerate(leaf.shape) if axis not in axes)


def _size(specs: Specs, leaves: Leaves) -> int:
    return sum(math.prod(leaves[name].shape) for name in specs)


def _target(specs: Specs, leaves: Leaves) -> int:
    """Weights that are to be kept in all."""
    total = 0
    sharing = {name: spec for name, spec in specs.items() if spec.budget == "global"}
    if sharing:
        total += num_kept(next(iter(sharing.values())), _size(sharing, leaves))
    for name in [name for name in specs if name not in sharing]:
        number = _num_structures(specs[name], leaves[name])
        total += num_kept(specs[name], number) * (math.prod(leaves[name].shape) // number)
    return total


def _first_rate(share: float, least: float) -> float:
    """r at the start, where k is the square root of the share to keep of all weights."""
    smallest = least * share
    value = min((math.sqrt(share) - smallest) / (1 - smallest), _MOST)
    return math.log(value / (1 - value))


def _shares(state: LatentState, specs: Specs, leaves: Leaves, rates: LearnedRates) -> dict[str, jax.Array]:
    """k of each layer, float32 scalars."""
    least = rates.least * _target(specs, leaves) / _size(specs, leaves)
    found = leaves_by_name(state.latent["rates"])
    return {name: least + (1 - least) * jax.nn.sigmoid(rate) for name, rate in found.items()}


def _excess(shares: Leaves, specs: Specs, leaves: Leaves) -> jax.Array:
    """max(0, kept / target - 1)."""
    target = _target(specs, leaves)
    kept = sum((share * (math.prod(leaves[name].shape) / target) for name, share in shares.items()), jnp.zeros(()))
    return jnp.maximum(kept - 1, 0)


def _grown(state: LatentState, excess: jax.Array, rates: LearnedRates) -> dict[str, jax.Array]:
    """gamma after an update: it grows after each epoch, until the target has been reached after one."""
    is_due = (state.num_steps > 0) & (state.num_steps % rates.steps_per_epoch == 0)
    reached = state.fixed["reached"] | (is_due & (excess < _REACHED))
    grows = (is_due & ~reached).astype(jnp.float32)
    return {"gamma": state.fixed["gamma"] + rates.growth * grows, "reached": reached}


def _masks_of_shares(specs: Specs, params: chex.ArrayTree, scores: Leaves, shares: Leaves) -> chex.ArrayTree:
    """Of each layer the share k of the structures, those of largest score."""
    kept = dict[str, jax.Array]()
    for name, values in scores.items():
        count = jnp.clip(jnp.round(shares[name] * values.size).astype(jnp.int32), 1, values.size)
        kept[name] = keep_largest(values.ravel(), count).reshape(values.shape)
    weights = with_weights(params, {name: mask.astype(jnp.float32) for name, mask in kept.items()})
    leaves = leaves_by_name(params)
    masks = {name: jnp.broadcast_to(mask, leaves[name].shape) for name, mask in kept.items()}
    return complete_masks(specs, weights, masks)


def _masks_of_total(specs: Specs, params: chex.ArrayTree, scores: Leaves, shares: Leaves) -> chex.ArrayTree:
    """The same shares, all of them times one factor, so that the total is the target."""
    leaves = leaves_by_name(params)
    sparsity = 1 - _target(specs, leaves) / _size(specs, leaves)
    together = {name: dataclasses.replace(spec, sparsity=sparsity, budget="global") for name, spec in specs.items()}
    entering = dict[str, jax.Array]()
    for name, values in scores.items():
        best_first = jnp.argsort(values.ravel(), descending=True, stable=True)
        rank = jnp.argsort(best_first).reshape(values.shape).astype(jnp.float32)
        # A score of zero is that of weights that are zero already: they come after all others.
        entering[name] = jnp.where(values > 0, shares[name] * (values.size / (rank + 1)), 0)
    return masks_by_score(together, params, entering)
