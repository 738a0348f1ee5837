"""ADMM weight pruning as one optax transformation.

Training minimises  L(w) + sum_l rho_l / 2 ||w_l - z_l + u_l||^2  over w by the optimizer that follows in the chain;
every so often a dual step sets  z = P(w + u),  u = u + w - z  (Ye et al., 2019, eq. 8 and 10, in scaled form; Boyd et
al., "Distributed Optimization and Statistical Learning via ADMM", 2011, section 3.1.1).

Differs from the authors' code: (1) z and u are constants of the gradient; theirs differentiates through u, which
multiplies the penalty's gradient by 1 + the number of dual steps, available as `dual_keeps_graph=True`. (2) When rho
changes, u is rescaled so that the unscaled multiplier rho u stays what it was (Boyd, section 3.4.1); theirs leaves u,
available as `rescale_dual=False`. (3) z exists from the first step on and lives in the optimizer state, so it is
sharded, saved and restored with it. (4) rho may follow the layer, see `add_admm_penalty`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

_GRADIENT_DECAY = 0.98
_TINY = 1e-12

ProjectFn = Callable[[chex.ArrayTree], chex.ArrayTree]


class AdmmState(NamedTuple):
    """State of `add_admm_penalty`; trees have the structure of the params that are pruned.

    Attributes:
      z: the sparse copy of the weights, same shapes.
      u: scaled dual variable, same shapes.
      rho: penalty in force per weight array, tree of scalars.
      gradient_square: running mean of the squared norm of the incoming gradient, tree of scalars.
      dual_residual: ||z - z before|| of the last dual step, tree of scalars (times rho it is Boyd's s, section 3.3).
      num_steps: updates so far, int32.
      num_dual_steps: dual steps so far, int32.
    """

    z: chex.ArrayTree
    u: chex.ArrayTree
    rho: chex.ArrayTree
    gradient_square: chex.ArrayTree
    dual_residual: chex.ArrayTree
    num_steps: jax.Array
    num_dual_steps: jax.Array


def add_admm_penalty(
    rho: float | optax.Schedule,
    project_fn: ProjectFn,
    *,
    rho_rule: Literal["uniform", "gradient"] = "uniform",
    rescale_dual: bool = True,
    dual_keeps_graph: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of the augmented Lagrangian, rho (w - z + u), to the updates.

    `update(updates, state, params, *, dual_step)` needs the params and the keyword `dual_step`, a bool that may be
    traced: where it is True z and u (and rho) step first, then the penalty is taken with the new ones. Must come
    before anything that rescales gradients. Wrap it in `optax.masked` to prune some leaves only.

    Args:
      rho: penalty, above 0, or a schedule of it over the number of dual steps so far.
      project_fn: projects a tree like the params on the sparsity sets.
      rho_rule: `uniform` is the paper's one rho for all layers. `gradient` takes rho_l = rho ||g_l|| / ||w_l||, with
        ||g_l|| the running root mean square of the loss gradient's norm, measured anew at each dual step: then rho is
        a pure number, the pull on a layer relative to what its loss gradient can pull back. A penalty in units of
        loss / weight^2 must scale so (the ratio is the one by which LARS normalises a layer's step, You et al., 2017,
        https://arxiv.org/abs/1708.03888); one rho for all starves layers with large gradients and few weights.
      rescale_dual: keep rho u, not u, when rho changes.
      dual_keeps_graph: the penalty that the authors' results really had. They never detach w in u = u + w - z, so that
        du/dw grows by 1 with each dual step, and the gradient is (1 + num_dual_steps) rho (w - z + u). The `rho` of
        the state stays without that factor. For their numbers take `rescale_dual=False` with it.

    Raises:
      ValueError: at once if rho is not above 0 or the rule is unknown; in `update` if params are missing.
    """
    if not callable(rho) and not rho > 0:
        raise ValueError(f"rho is {rho!r}; expected a number above 0, or a schedule.")
    if rho_rule not in ("uniform", "gradient"):
        raise ValueError(f"rho_rule is {rho_rule!r}; expected uniform or gradient.")
    schedule: optax.Schedule = rho if callable(rho) else optax.constant_schedule(rho)

    def with_new_rho(state: AdmmState, params: chex.ArrayTree) -> AdmmState:
        return _set_rho(state, params, schedule(state.num_dual_steps), rho_rule, rescale_dual)

    def take_dual_step(state: AdmmState, params: chex.ArrayTree) -> AdmmState:
        return with_new_rho(_dual_step(state, params, project_fn), params)

    def init_fn(params: optax.Params) -> AdmmState:
        scalars = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        count = jnp.zeros((), jnp.int32)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdmmState(project_fn(params), zeros, scalars, scalars, scalars, count, count)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        dual_step: jax.Array | bool,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None:
            raise ValueError("add_admm_penalty needs the params: tx.update(updates, state, params, dual_step=...).")
        unchanged = lambda state, _: state
        state = _measure_gradient(state, updates)
        state = jax.lax.cond(state.num_steps == 1, with_new_rho, unchanged, state, params)
        state = jax.lax.cond(dual_step, take_dual_step, unchanged, state, params)
        growth = 1 + state.num_dual_steps if dual_keeps_graph else 1
        pull = jax.tree.map(lambda rho: growth * rho, state.rho)
        return jax.tree.map(_penalised, updates, params, state.z, state.u, pull), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x * x))


def _penalised(gradient: jax.Array, w: jax.Array, z: jax.Array, u: jax.Array, rho: jax.Array) -> jax.Array:
    return gradient + (rho * (w - z + u)).astype(gradient.dtype)


def _measure_gradient(state: AdmmState, gradients: chex.ArrayTree) -> AdmmState:
    mean = jax.tree.map(
        lambda old, g: _GRADIENT_DECAY * old + (1 - _GRADIENT_DECAY) * jnp.sum(g * g), state.gradient_square, gradients
    )
    return state._replace(gradient_square=mean, num_steps=state.num_steps + 1)


def _dual_step(state: AdmmState, params: chex.ArrayTree, project_fn: ProjectFn) -> AdmmState:
    shifted = jax.tree.map(jnp.add, params, state.u)
    z = project_fn(shifted)
    return state._replace(
        z=z,
        u=jax.tree.map(jnp.subtract, shifted, z),
        dual_residual=jax.tree.map(lambda new, old: _norm(new - old), z, state.z),
        num_dual_steps=state.num_dual_steps + 1,
    )


def _set_rho(state: AdmmState, params: chex.ArrayTree, base: chex.Numeric, rule: str, rescale_dual: bool) -> AdmmState:
    """Puts the rule's rho in force, and rescales u to it."""
    base = jnp.asarray(base, jnp.float32)
    # An exponential mean that starts at 0 is too small by this factor after num_steps steps.
    correction = 1 - _GRADIENT_DECAY**state.num_steps

    def rho_of(w: jax.Array, gradient_square: jax.Array) -> jax.Array:
        if rule == "uniform":
            return base
        # Weights that are all zero have no scale to follow, and nothing to prune.
        norm = _norm(w)
        return jnp.where(norm > 0, base * jnp.sqrt(gradient_square / correction) / jnp.maximum(norm, _TINY), base)

    rho = jax.tree.map(rho_of, params, state.gradient_square)
    if rescale_dual:
        rescale = lambda u, old, new: u * (old / jnp.maximum(new, _TINY))
        state = state._replace(u=jax.tree.map(rescale, state.u, state.rho, rho))
    return state._replace(rho=rho)


class Residuals(NamedTuple):
    """How far ADMM is from agreement, one scalar per weight array, all relative to ||w||.

    Attributes:
      primal: ||w - z||.
      dual: ||z - z before|| at the last dual step (without the factor rho, which Adam takes out anyway).
      distance: ||w - P(w)||, the distance to the sparse set: what the cut at the end will take away.
      rho: the penalty in force, not relative.
    """

    primal: chex.ArrayTree
    dual: chex.ArrayTree
    distance: chex.ArrayTree
    rho: chex.ArrayTree


def residuals(state: AdmmState, params: chex.ArrayTree, project_fn: ProjectFn) -> Residuals:
    """Residuals of `state` at `params`, the pruned part of the params (same structure as `state.z`)."""

    def relative(difference: jax.Array, w: jax.Array) -> jax.Array:
        return _norm(difference) / jnp.maximum(_norm(w), _TINY)

    primal = jax.tree.map(lambda w, z: relative(w - z, w), params, state.z)
    dual = jax.tree.map(lambda moved, w: moved / jnp.maximum(_norm(w), _TINY), state.dual_residual, params)
    distance = jax.tree.map(lambda w, p: relative(w - p, w), params, project_fn(params))
    return Residuals(primal, dual, distance, state.rho)


def find_admm_state(opt_state: chex.ArrayTree) -> AdmmState:
    """The one `AdmmState` inside an optimizer state, however it is wrapped.

    Raises:
      ValueError: there is none, or more than one.
    """
    is_admm: Callable[[Any], bool] = lambda node: isinstance(node, AdmmState)
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_admm) if is_admm(node)]
    if len(found) != 1:
        raise ValueError(f"The optimizer state holds {len(found)} AdmmState; expected exactly 1.")
    return found[0]
