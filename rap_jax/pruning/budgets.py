"""Layer budgets: how many structures each layer keeps, at a total for all layers together.

    specs = {"conv1/kernel": Irregular(0.9), "fc1/kernel": Irregular(0.9)}
    specs = layer_budgets(specs, params, rule="lamp")              as many weights as before, shared in another way
    specs = layer_budgets(specs, params, rule="erk", total=2_000)  or as many as are asked for

A rule gives every structure of every layer a priority. Those of highest priority are kept, as many as the total allows:

    uniform             the same share of each layer
    erk                 Erdos-Renyi-Kernel: shares proportional to (n_in + n_out + kh + kw) / (n_in n_out kh kw), and
                        at most 1 (Evci et al., 2020)
    lamp                one threshold for w_i^2 / sum of w_j^2 over |w_j| >= |w_i| of the layer (Lee et al., 2021)
    global_normalised   one threshold for scores over the l2 norm of all scores of their layer (Molchanov et al., 2017)

The best structure of each layer is always kept. Among equals the earlier layer of the tree wins. Which structures of a
layer are kept is decided by their scores, as in `rap_jax.pruning.projections`: the result is one sparsity per layer.

`lamp` takes the squared norms of filters and columns for w^2, and the scales of BatchNorm filters for w. The share of
`erk` is that of the filters or columns of a layer. That the next layer loses inputs with the filters is part of the
total, if `count` knows of it, and not of the shares.

Runs on the host, in float64.

Differs from its sources: (1) the total is met to within one structure, where theirs round layer by layer. (2) In `lamp`
equal weights have equal scores, as the formula says; in the authors' code their scores follow the order of a sort.
(3) Structures that are zero already come last.

Source: Evci et al., "Rigging the Lottery", 2020, https://arxiv.org/abs/1911.11134; Lee et al., "Layer-adaptive Sparsity
for the Magnitude-based Pruning", 2021, https://arxiv.org/abs/2010.07611; Molchanov et al., "Pruning Convolutional
Neural Networks for Resource Efficient Inference", 2017, https://arxiv.org/abs/1611.06440.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import chex
import jax
import numpy as np

from rap_jax.pruning.ownership import Specs, kernels_of, resolve_specs
from rap_jax.pruning.projections import BatchNormFilter, Irregular, Spec, check_weights, num_kept, scores

Rule = Literal["uniform", "erk", "lamp", "global_normalised"]
# Name of a spec -> structures kept; in all that is so many parameters, or multiply-adds.
Count = Callable[[Mapping[str, int]], float]


def layer_budgets(
    specs: Specs, params: chex.ArrayTree, *, rule: Rule, total: float | None = None, count: Count | None = None
) -> dict[str, Spec]:
    """The specs with a sparsity for each layer, see above.

    Args:
      specs: the layers that are pruned, and by which structure.
      params: weights.
      total: the most that is kept, as `count` counts it; None for what `specs` keep.
      count: grows with what is kept; None for `count_weights(specs, params)`.

    Returns:
      A spec of each layer that loses something. One structure more would exceed the total.

    Raises:
      ValueError: no such rule; the total is below one structure of each layer; a spec has the budget `global` or a
        stack of layers; see `masks_of`.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}; expected one of {', '.join(get_args(Rule))}.")
    specs, leaves = resolve_specs(specs, params)
    _check(specs, leaves)
    specs = {name: specs[name] for name in leaves if name in specs}  # in the order of the tree
    ranked = {name: _priorities(rule, name, spec, leaves) for name, spec in specs.items()}
    sizes = {name: len(values) for name, values in ranked.items()}
    count = count_weights(specs, params) if count is None else count
    if total is None:
        total = count({name: num_kept(spec, sizes[name]) for name, spec in specs.items()})
    kept = _fill(ranked, total, count)
    return {
        name: dataclasses.replace(spec, sparsity=(sizes[name] - kept[name]) / sizes[name])
        for name, spec in specs.items()
        if kept[name] < sizes[name]
    }


def count_weights(specs: Specs, params: chex.ArrayTree, uses: Mapping[str, int] | None = None) -> Count:
    """Counts the weights of the structures that are kept; of BatchNorm filters, the scales.

    Args:
      uses: what a weight counts, by the name of its array, such as its multiply-adds; None for 1.
    """
    specs, leaves = resolve_specs(specs, params)
    uses = dict.fromkeys(specs, 1) if uses is None else uses
    num_structures = lambda name: jax.eval_shape(functools.partial(scores, specs[name]), leaves[name]).size
    each = {name: leaves[name].size // num_structures(name) * uses[name] for name in specs}
    return lambda kept: sum(number * each[name] for name, number in kept.items())


def best_first(spec: Spec, weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the structures in the order in which a projection keeps them, and their scores, float64."""
    values = np.asarray(scores(spec, weights)).astype(np.float64)
    order = np.argsort(-values, kind="stable")
    return order, values[order]


def _check(specs: Specs, leaves: Mapping[str, Any]) -> None:
    for name, spec in specs.items():
        check_weights(spec, leaves[name], name)
        if spec.stack_axes or spec.budget != "layer":
            raise ValueError(
                f"The spec of {name} has stack_axes {spec.stack_axes!r} and the budget {spec.budget!r}; expected no "
                f"stack of layers, and the budget 'layer': its sparsity is to be found."
            )


def _priorities(rule: Rule, name: str, spec: Spec, leaves: Mapping[str, Any]) -> np.ndarray:
    """Of the structures of a layer, best first: float64 [structures] that never rise."""
    _, values = best_first(spec, leaves[name])
    if rule == "lamp":
        squares = values**2 if isinstance(spec, Irregular | BatchNormFilter) else values
        # The sum goes to the last of the equals.
        sums = np.cumsum(squares)[np.searchsorted(-squares, -squares, side="right") - 1]
        found = _divide(squares, sums)
    elif rule == "global_normalised":
        found = _divide(values, np.linalg.norm(values))
    else:
        kernel = kernels_of(name, spec, leaves)[0] if isinstance(spec, BatchNormFilter) else name
        shape = leaves[kernel].shape
        density = sum(shape) / math.prod(shape) if rule == "erk" else 1.0
        # Layers reach their shares together; halves round to the nearest count.
        found = -(np.arange(len(values)) + 0.5) / (len(values) * density)
    found = np.where(values > 0, found, -np.inf)
    found[0] = np.inf
    return found


def _divide(values: np.ndarray, by: np.ndarray | np.floating) -> np.ndarray:
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)


def _fill(ranked: Mapping[str, np.ndarray], total: float, count: Count) -> dict[str, int]:
    """Structures that each layer keeps: by bisection on how many are kept in all."""
    if not ranked:
        return {}
    layers = np.repeat(np.arange(len(ranked)), [len(values) for values in ranked.values()])
    layers = layers[np.argsort(-np.concatenate(list(ranked.values())), kind="stable")]
    kept = lambda number: dict(zip(ranked, np.bincount(layers[:number], minlength=len(ranked)).tolist(), strict=True))
    fits, exceeds = len(ranked), len(layers) + 1
    if count(kept(fits)) > total:
        raise ValueError(f"total is {total!r}; expected {count(kept(fits))!r} or more: each layer keeps one structure.")
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        fits, exceeds = (middle, exceeds) if count(kept(middle)) <= total else (fits, middle)
    return kept(fits)
