"""ADMM weight pruning as one optax transformation.

Training minimises  L(w) + sum_l rho_l / 2 ||w_l - z_l + u_l||^2  over w by the optimizer that follows in the chain;
every so often a dual step sets  z = P(w + u),  u = u + w - z  (Ye et al., 2019, eq. 8 and 10, in scaled form; Boyd et
al., "Distributed Optimization and Statistical Learning via ADMM", 2011, section 3.1.1).

Differs from the authors' code: (1) z and u are constants of the gradient; theirs differentiates through u, which
multiplies the penalty's gradient by 1 + the number of dual steps, available as `dual_keeps_graph=True`. (2) When rho
changes, u is rescaled so that the unscaled multiplier rho u stays what it was (Boyd, section 3.4.1); theirs leaves u,
available as `rescale_dual=False`. (3) z exists from the first step on and lives in the optimizer state, so it is
sharded, saved and restored with it. (4) rho may follow the layer, see `add_admm_penalty`."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rap_jax._runtime.arrays import at_least_float32, is_number
from rap_jax.pruning.layers import arrays_by_name, leaves_by_name

_GRADIENT_DECAY = 0.98
_TINY = 1e-12
_LEAVE_UPDATES_OUT = (
    optax.MultiStepsState,
    optax.ApplyIfFiniteState,
    optax.ConditionallyTransformState,
    optax.ConditionallyMaskState,
)

ProjectFn = Callable[[chex.ArrayTree], chex.ArrayTree]


class AdmmState(NamedTuple):
    """State of `add_admm_penalty`; trees have the structure of the params that are pruned."""

    z: chex.ArrayTree  # sparse copy of the weights, same shapes
    u: chex.ArrayTree  # scaled dual variable, same shapes
    rho: chex.ArrayTree  # penalty of each weight array, tree of scalars
    gradient_square: chex.ArrayTree  # running mean of the squared norm of the incoming gradient, tree of scalars
    dual_residual: chex.ArrayTree  # ||z - previous z|| of the last dual step, scalars; times rho Boyd's s, section 3.3
    num_steps: jax.Array  # updates so far, int32
    num_dual_steps: jax.Array  # dual steps so far, int32
    dual_interval: jax.Array | None = None  # updates between dual steps, int32; None with the keyword `dual_step`


def add_admm_penalty(
    rho: chex.Numeric | optax.Schedule,
    project_fn: ProjectFn,
    *,
    rho_rule: Literal["uniform", "gradient"] = "uniform",
    rescale_dual: bool = True,
    dual_keeps_graph: bool = False,
    dual_interval: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of the augmented Lagrangian, rho (w - z + u), to the updates.

    `update(updates, state, params, *, dual_step)` needs the params and, without `dual_interval`, the keyword
    `dual_step`, a bool that may be traced. Where it is True, z and u (and rho) are updated before the penalty is
    computed. The transformation must come before any that rescales gradients. Wrap it in `optax.masked` to prune some
    leaves only.

    z and u have the dtype of their weights, and an update keeps its own. All sums are computed in float32 or wider.

    Args:
      rho: penalty, one number above 0 that may be traced, or a schedule of it over the number of dual steps. The first
        number of a schedule is checked in `init`, outside of `jit`; the later ones must stay above 0 too.
      project_fn: projects a tree like the params on the sparsity sets: `project_tree`, not `masks_of`. The result is
        cast to the dtype of the weights.
      rho_rule: `uniform` is the paper's one rho for all layers. `gradient` takes rho_l = rho ||g_l|| / ||w_l||, with
        ||g_l|| the running root mean square of the loss gradient's norm, measured anew at each dual step. `rho` becomes
        dimensionless, and one value suits all layers, as in LARS (You et al., 2017,
        https://arxiv.org/abs/1708.03888); a uniform rho starves layers with large gradients and few weights.
      rescale_dual: keep rho u, not u, when rho changes.
      dual_keeps_graph: the penalty of the authors' results. They never detach w in u = u + w - z, so du/dw grows by 1
        with each dual step, and the gradient is (1 + num_dual_steps) rho (w - z + u). The `rho` of the state is without
        that factor. For their numbers set `rescale_dual=False` as well.
      dual_interval: updates from one dual step to the next; the first update is none. It equals the flag
        `step % dual_interval == 0 and step > 0` of a loop. Inside a wrapper that skips updates, such as
        `optax.MultiSteps`, it is required: a flag is lost with its update.

    Raises:
      ValueError: at once if rho is not above 0, the interval no whole number, 1 or more, `project_fn` no function, or
        the rule unknown; in `init` if weights have no floating-point dtype, a schedule starts at a rho that is not
        above 0, or `project_fn` returns other shapes, names, or no floating-point numbers; in `update` if params are
        missing, or `dual_step` is and no interval was given, or both are given.
    """
    _check_settings(project_fn, rho_rule, dual_interval)
    schedule = _schedule_of(rho)

    def with_new_rho(state: AdmmState, params: chex.ArrayTree) -> AdmmState:
        return _set_rho(state, params, schedule(state.num_dual_steps), rho_rule, rescale_dual)

    def take_dual_step(state: AdmmState, params: chex.ArrayTree) -> AdmmState:
        return with_new_rho(_dual_step(state, params, project_fn), params)

    def init_fn(params: optax.Params) -> AdmmState:
        _check_floating(params)
        if callable(rho):
            _check_number("rho of the schedule at 0", schedule(jnp.zeros((), jnp.int32)), "one finite number above 0")
        projected = project_fn(params)
        _check_projected(projected, params)
        return _initial_state(projected, params, dual_interval)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        dual_step: jax.Array | bool | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None:
            raise ValueError("add_admm_penalty needs the params: tx.update(updates, state, params, dual_step=...).")
        unchanged = lambda state, _: state
        is_dual_step = _is_dual_step(state, dual_step)
        state = _measure_gradient(state, updates)
        state = jax.lax.cond(state.num_steps == 1, with_new_rho, unchanged, state, params)
        state = jax.lax.cond(is_dual_step, take_dual_step, unchanged, state, params)
        growth = 1 + state.num_dual_steps if dual_keeps_graph else 1
        pull = jax.tree.map(lambda rho: jnp.asarray(growth, rho.dtype) * rho, state.rho)
        return jax.tree.map(_penalised, updates, params, state.z, state.u, pull), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _initial_state(projected: chex.ArrayTree, params: chex.ArrayTree, dual_interval: int | None) -> AdmmState:
    """Every array is a new one: a state that holds an array twice, or a weight, cannot be donated."""
    scalars = lambda: jax.tree.map(lambda w: jnp.zeros((), at_least_float32(w).dtype), params)
    z = jax.tree.map(lambda z, w: jnp.array(z, w.dtype, copy=True), projected, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    count = lambda: jnp.zeros((), jnp.int32)
    interval = None if dual_interval is None else jnp.array(dual_interval, jnp.int32)
    return AdmmState(z, zeros, scalars(), scalars(), scalars(), count(), count(), interval)


def _check_settings(project_fn: ProjectFn, rho_rule: str, dual_interval: int | None) -> None:
    if dual_interval is not None:
        expected = "a whole number of updates, 1 or more"
        _check_number("dual_interval", dual_interval, expected, least=1, dtype=jnp.integer)
    if not callable(project_fn):
        raise ValueError(
            f"project_fn is {project_fn!r:.60}; expected a function of the weights, such as "
            f"functools.partial(project_tree, specs)."
        )
    if rho_rule not in ("uniform", "gradient"):
        raise ValueError(f"rho_rule is {rho_rule!r}; expected uniform or gradient.")


def _schedule_of(rho: chex.Numeric | optax.Schedule) -> optax.Schedule:
    """The schedule, or that of a constant; schedules multiply counts with fractions, which strict promotion refuses."""
    if not callable(rho):
        _check_number("rho", rho, "one finite number above 0, or a schedule")
        return optax.constant_schedule(rho)

    def schedule(count: chex.Numeric) -> chex.Numeric:
        with jax.numpy_dtype_promotion("standard"):
            return rho(count)

    return schedule


def _check_number(name: str, value: Any, expected: str, least: float = 0, dtype: Any = jnp.number) -> None:
    """Refuses what is not one number above 0 and at least `least`; of a traced one the value is open."""
    is_good = is_number(value) and jnp.issubdtype(jnp.result_type(value), dtype)
    if is_good and not isinstance(value, jax.core.Tracer):
        is_good = np.isfinite(value) and value > 0 and value >= least
    if not is_good:
        raise ValueError(f"{name} is {value!r}; expected {expected}.")


def _check_floating(params: chex.ArrayTree) -> None:
    others = {name: w.dtype for name, w in arrays_by_name(params).items() if not jnp.issubdtype(w.dtype, jnp.floating)}
    if others:
        found = ", ".join(f"{name} ({dtype})" for name, dtype in others.items())
        raise ValueError(f"ADMM cannot pull at {found}; expected floating-point weights. Leave others to optax.masked.")


def _check_projected(projected: chex.ArrayTree, params: chex.ArrayTree) -> None:
    found: Any = jax.tree.structure(projected)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(f"project_fn returns a tree {found}; expected the one of the weights, {expected}.")
    for (name, w), leaf in zip(leaves_by_name(params).items(), leaves_by_name(projected).values(), strict=True):
        dtype = jnp.result_type(leaf)
        if jnp.shape(leaf) != w.shape or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"project_fn returns {dtype}{list(jnp.shape(leaf))} for {name}; expected the weights projected, "
                f"{w.dtype}{list(w.shape)}: project_tree, not masks_of."
            )


def _is_dual_step(state: AdmmState, dual_step: jax.Array | bool | None) -> jax.Array | bool:
    interval = state.dual_interval
    if dual_step is not None and interval is None:
        return dual_step
    if dual_step is None and interval is not None:
        return (state.num_steps > 0) & (state.num_steps % interval == 0)
    raise ValueError(
        f"dual_step is {dual_step!r} and dual_interval is {interval!r}; expected one of the two: the flag, "
        f"tx.update(updates, state, params, dual_step=step % 200 == 0), or add_admm_penalty(..., dual_interval=200), "
        f"which needs no flag."
    )


def _minus(x: jax.Array, y: jax.Array) -> jax.Array:
    return at_least_float32(x) - at_least_float32(y)


def _square_sum(x: jax.Array) -> jax.Array:
    wide = at_least_float32(x)
    return jnp.sum(wide * wide)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(_square_sum(x))


def _penalised(gradient: jax.Array, w: jax.Array, z: jax.Array, u: jax.Array, rho: jax.Array) -> jax.Array:
    pull = rho * (_minus(w, z) + at_least_float32(u))
    wide = at_least_float32(gradient)
    return (wide + pull.astype(wide.dtype)).astype(gradient.dtype)


def _measure_gradient(state: AdmmState, gradients: chex.ArrayTree) -> AdmmState:
    def mean(old: jax.Array, g: jax.Array) -> jax.Array:
        return _GRADIENT_DECAY * old + (1 - _GRADIENT_DECAY) * _square_sum(g).astype(old.dtype)

    square = jax.tree.map(mean, state.gradient_square, gradients)
    return state._replace(gradient_square=square, num_steps=state.num_steps + 1)


def _dual_step(state: AdmmState, params: chex.ArrayTree, project_fn: ProjectFn) -> AdmmState:
    shifted = jax.tree.map(lambda w, u: at_least_float32(w) + at_least_float32(u), params, state.u)
    z = jax.tree.map(lambda z, old: z.astype(old.dtype), project_fn(shifted), state.z)
    return state._replace(
        z=z,
        u=jax.tree.map(lambda x, z, u: _minus(x, z).astype(u.dtype), shifted, z, state.u),
        dual_residual=jax.tree.map(lambda new, old: _norm(_minus(new, old)), z, state.z),
        num_dual_steps=state.num_dual_steps + 1,
    )


def _set_rho(state: AdmmState, params: chex.ArrayTree, base: chex.Numeric, rule: str, rescale_dual: bool) -> AdmmState:
    """Puts the rule's rho in force, and rescales u to it."""

    def rho_of(w: jax.Array, gradient_square: jax.Array) -> jax.Array:
        rho = jnp.asarray(base, gradient_square.dtype)
        if rule == "uniform":
            return rho
        # An exponential mean that starts at 0 is too small by this factor after num_steps steps.
        correction = 1 - jax.lax.pow(jnp.asarray(_GRADIENT_DECAY, rho.dtype), state.num_steps)
        # Weights that are all zero have no scale to follow, and nothing to prune.
        norm = _norm(w)
        return jnp.where(norm > 0, rho * jnp.sqrt(gradient_square / correction) / jnp.maximum(norm, _TINY), rho)

    rho = jax.tree.map(rho_of, params, state.gradient_square)
    if rescale_dual:
        rescale = lambda u, old, new: (at_least_float32(u) * (old / jnp.maximum(new, _TINY))).astype(u.dtype)
        state = state._replace(u=jax.tree.map(rescale, state.u, state.rho, rho))
    return state._replace(rho=rho)


class Residuals(NamedTuple):
    """Residuals of ADMM, one scalar per weight array; the first three are relative to ||w||."""

    primal: chex.ArrayTree  # ||w - z||
    dual: chex.ArrayTree  # ||z - previous z|| at the last dual step, without the factor rho, which Adam cancels
    distance: chex.ArrayTree  # ||w - P(w)||, the distance to the sparsity set, which the cut removes
    rho: chex.ArrayTree  # the penalty, not relative


def residuals(state: AdmmState, params: chex.ArrayTree, project_fn: ProjectFn) -> Residuals:
    """Residuals of `state` at `params`, the pruned part of the params (same structure as `state.z`)."""

    def relative(difference: jax.Array, w: jax.Array) -> jax.Array:
        return _norm(difference) / jnp.maximum(_norm(w), _TINY)

    primal = jax.tree.map(lambda w, z: relative(_minus(w, z), w), params, state.z)
    dual = jax.tree.map(lambda moved, w: moved / jnp.maximum(_norm(w), _TINY), state.dual_residual, params)
    distance = jax.tree.map(lambda w, p: relative(_minus(w, p), w), params, project_fn(params))
    # A copy: it outlives a state that is donated to the next step.
    return Residuals(primal, dual, distance, jax.tree.map(jnp.copy, state.rho))


def find_admm_state(opt_state: chex.ArrayTree) -> AdmmState:
    """The one `AdmmState` inside an optimizer state, however it is wrapped.

    Raises:
      ValueError: there is none, or more than one; or it waits for `dual_step` inside a wrapper that loses flags.
    """
    found = _nodes(opt_state, AdmmState)
    if len(found) != 1:
        raise ValueError(f"The optimizer state holds {len(found)} AdmmState; expected exactly 1.")
    lossy = [type(node).__name__ for node in _nodes(opt_state, _LEAVE_UPDATES_OUT) if _nodes(node, AdmmState)]
    if lossy and found[0].dual_interval is None:
        raise ValueError(
            f"The AdmmState lies inside a {lossy[0]}, which leaves updates out, and the flag dual_step with them; "
            f"expected add_admm_penalty(..., dual_interval=n), which counts the updates that it sees."
        )
    return found[0]


def _nodes(tree: chex.ArrayTree, kind: type | tuple[type, ...]) -> list[Any]:
    """The outermost nodes of a kind."""
    is_one: Callable[[Any], bool] = lambda node: isinstance(node, kind)
    return [node for node in jax.tree.leaves(tree, is_leaf=is_one) if is_one(node)]
