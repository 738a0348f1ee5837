"""Which leaves are removed together with an output, and which sparsity sets are refused as ambiguous.

    specs, leaves = resolve_specs(specs, params)
    names = owned("conv1/kernel", Filter(0.5), leaves)

To the outputs of a weight belong the leaves that `layers.leaves_of_outputs` finds beside it, and those that its spec
names. A filter of which a part stays would go on sending a constant, so a spec is refused where a part may lie
elsewhere."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import chex

from rap_jax.pruning.layers import (
    arrays_by_name,
    ends,
    is_kernel,
    is_per_output,
    is_weight,
    leaves_of_outputs,
    names_left_out,
    sibling,
    siblings,
)
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular, Spec

Specs = Mapping[str, Spec]
Leaves = Mapping[str, Any]


def owned(name: str, spec: Spec | None, leaves: Leaves) -> list[str]:
    """Names of the leaves that go with the outputs of the weights `name`, in the order of the tree.

    Leaves that `optax.masked` hides are left out. Without a spec these are the leaves beside.
    """
    if spec is None:
        return leaves_of_outputs(name, leaves)
    found = {*leaves_of_outputs(name, leaves, spec.stack_axes or 0), *(spec.belongs or ())}
    return [leaf for leaf in leaves if leaf in found]


def has_inputs(name: str, leaf: Any, outputs: tuple[int, ...]) -> bool:
    """Whether a leaf has inputs and outputs; of a stack [L, out], one number per output and layer, has none."""
    return is_weight(name, leaf) and (is_kernel(name) or not is_per_output(leaf, outputs))


def kernels_of(scale: str, spec: Spec, leaves: Leaves) -> list[str]:
    """The weights whose outputs a scale selects: the kernel beside it, and those that its spec names."""
    layer, outputs = siblings(scale, leaves), outputs_of(scale, spec, leaves)
    kernel = sibling(scale, "kernel")
    weights = [name for name, leaf in layer.items() if has_inputs(name, leaf, outputs)]
    own = [kernel] if kernel in layer else weights if len(weights) == 1 else []
    own = [name for name in own if ends(leaves[name].shape, outputs) == outputs]
    return own + [name for name in spec.belongs or () if name in leaves and is_weight(name, leaves[name])]


def specs_of_owners(specs: Specs, leaves: Leaves) -> dict[str, Spec]:
    """The specs, and one for each kernel whose outputs a `BatchNormFilter` selects."""
    found = dict(specs)
    for name, spec in specs.items():
        if isinstance(spec, BatchNormFilter):
            members = {name, *owned(name, spec, leaves)}
            for kernel in kernels_of(name, spec, leaves):
                found[kernel] = dataclasses.replace(spec, belongs=members - {kernel})
    return found


def outputs_of(name: str, spec: Spec | None, leaves: Leaves) -> tuple[int, ...]:
    """[*stack, outputs] of the weights `name`."""
    stack_axes = 0 if spec is None else spec.stack_axes or 0
    return tuple(leaves[name].shape[:stack_axes] + leaves[name].shape[-1:])


def _with_names_of(specs: Specs, names: Collection[str]) -> dict[str, Spec]:
    """The specs by the names of the tree: `conv1/kernel/value` of an `nnx.State` is `conv1/kernel`."""
    of_tree = lambda name: name if name in names else name.removesuffix("/value")

    def renamed(spec: Spec) -> Spec:
        return spec if not spec.belongs else dataclasses.replace(spec, belongs=[of_tree(name) for name in spec.belongs])

    return {of_tree(name): renamed(spec) for name, spec in specs.items()}


def resolve_specs(specs: Specs, params: chex.ArrayTree) -> tuple[dict[str, Spec], dict[str, Any]]:
    """The specs by the names of the tree, and its leaves.

    Raises:
      ValueError: see `check_specs`; the specs are no mapping of names to sparsity sets, or a leaf is no array.
    """
    _check_types(specs)
    leaves, left_out = arrays_by_name(params), names_left_out(params)
    specs = _with_names_of(specs, leaves.keys() | left_out)
    check_specs(specs, leaves, left_out)
    return specs, leaves


def _check_types(specs: Any) -> None:
    expected = "expected {'conv1/kernel': Filter(0.5), ...}: a set Irregular, Filter, Column or BatchNormFilter by name"
    if not isinstance(specs, Mapping):
        raise ValueError(f"specs are {specs!r:.60}; {expected}.")
    for name, spec in specs.items():
        if not (isinstance(name, str) and isinstance(spec, Spec)):
            raise ValueError(f"specs hold {name!r}: {spec!r:.60}; {expected}. The specs are not the params.")


def check_specs(specs: Specs, leaves: Leaves, left_out: Collection[str] = ()) -> None:
    """Refuses specs that mean no weights, or of which it is open what they mean; `layers.names_left_out` are hidden.

    Raises:
      ValueError: names the spec, what is open, and what to write.
    """
    unknown = [name for name in specs if name not in leaves]
    if unknown:
        raise ValueError(
            f"Specs name {', '.join(unknown)}, but the weights are {', '.join(leaves)}; expected their paths as keys."
        )
    scales = [name for name, spec in specs.items() if isinstance(spec, BatchNormFilter)]
    twice = [name for name in scales if sibling(name, "kernel") in specs]
    if twice:
        raise ValueError(f"Specs name {', '.join(twice)} and the kernel beside; expected one spec to a layer.")
    sharing = {name: spec for name, spec in specs.items() if spec.budget == "global"}
    if len({dataclasses.replace(spec, belongs=None) for spec in sharing.values()}) > 1:
        raise ValueError(f"Specs with the budget 'global' are {sharing}; expected one set with one sparsity for all.")
    for name, spec in specs.items():
        _check_named(name, spec, leaves, left_out)
        _check_outputs_last(name, spec, leaves)
        check_stack(name, spec, leaves)
        _check_first_axes(name, spec, leaves, left_out)
        if spec.belongs is None:
            _check_elsewhere(name, spec, leaves, left_out)


def _check_named(name: str, spec: Spec, leaves: Leaves, left_out: Collection[str]) -> None:
    outputs, named = outputs_of(name, spec, leaves), tuple(spec.belongs or ())
    unknown = [leaf for leaf in named if leaf == name or (leaf not in leaves and leaf not in left_out)]
    if unknown:
        raise ValueError(f"belongs of {name} names {', '.join(unknown)}; expected other leaves of {', '.join(leaves)}.")
    for leaf in [leaf for leaf in named if leaf in leaves]:
        if ends(leaves[leaf].shape, outputs) != outputs:
            raise ValueError(
                f"belongs of {name} names {leaf} of shape {leaves[leaf].shape}; expected {outputs[-1]} outputs on the "
                f"last axis{f' and {outputs[:-1]} before all others' if outputs[:-1] else ''}."
            )


def _check_outputs_last(name: str, spec: Spec, leaves: Leaves) -> None:
    """Weights of other libraries may have their outputs first."""
    shape, last = leaves[name].shape, name.rsplit("/", 1)[-1]
    if not isinstance(spec, Filter | Column) or len(shape) < 2:
        return
    bias = leaves.get(sibling(name, "bias"))
    if last == "kernel":
        if bias is not None and not _fits(bias, name, spec, leaves):
            raise ValueError(
                f"{name} has shape {shape} and its bias {bias.shape}: its outputs are not on the last axis "
                f"(ConvTranspose with transpose_kernel, nn.scan over another axis than 0), or on several. Prune a tree "
                f"with jnp.moveaxis(kernel, outputs, -1), or take Irregular, which has no outputs."
            )
        return
    layer = siblings(name, leaves).values()
    first = any(leaf.shape and leaf.size == leaf.shape[0] == shape[0] != shape[-1] for leaf in layer)
    if last == "weight" or (first and not owned(name, spec, leaves)):
        raise ValueError(
            f"{name} has shape {shape}; expected outputs on the last axis, but in layers with a `weight` (Equinox, "
            f"PyTorch), or with a bias as long as the first axis, they lie on the first one. Prune a tree with "
            f"jnp.moveaxis(weight, 0, -1) under the name `kernel`, or take Irregular, which has no outputs."
        )


def _fits(bias: Any, name: str, spec: Spec, leaves: Leaves) -> bool:
    """Whether a bias has one number per output, is one number for all, or tells of other axes, see `check_stack`."""
    is_one = math.prod(bias.shape) == 1
    return is_one or is_per_output(bias, outputs_of(name, spec, leaves)) or _is_part(bias.shape, leaves[name].shape)


def check_stack(name: str, spec: Spec | None, leaves: Leaves) -> None:
    """Refuses weights beside which a leaf has more than one number per output."""
    parts = _parts(name, spec, leaves)
    if isinstance(spec, Irregular):  # single weights need no outputs, but each layer of a stack makes its own choice
        told = spec.stack_axes is not None
        parts = {other: part for other, part in parts.items() if not told and _is_of_stack(part, leaves[name].shape)}
    if parts:
        raise _unclear_axes(name, leaves, f"{parts} beside it, more than one number per output")


def _parts(name: str, spec: Spec | None, leaves: Leaves) -> dict[str, tuple[int, ...]]:
    """The leaves beside some weights that have more than one number per output, as far as the spec tells."""
    shape, outputs = leaves[name].shape, outputs_of(name, spec, leaves)
    return {
        other: leaf.shape
        for other, leaf in siblings(name, leaves).items()
        if 1 < len(leaf.shape) < len(shape) and not is_per_output(leaf, outputs) and _is_part(leaf.shape, shape)
    }


def has_clear_outputs(name: str, spec: Spec | None, leaves: Leaves) -> bool:
    """Whether the outputs of some weights are on their last axis, as far as the leaves beside them tell."""
    return not _parts(name, spec, leaves)


def _check_first_axes(name: str, spec: Spec, leaves: Leaves, left_out: Collection[str]) -> None:
    """A kernel of 3 axes, and of more than 4, is one layer if something beside it has one number per output."""
    axes = len(leaves[name].shape)
    beside_it = bool(owned(name, spec, leaves) or _parts(name, spec, leaves))
    decided = spec.stack_axes is not None or beside_it or _hides_siblings(name, left_out)
    if (axes == 3 or axes > 4) and not decided:
        raise _unclear_axes(name, leaves, "nothing beside it tells which")


def _unclear_axes(name: str, leaves: Leaves, reason: str) -> ValueError:
    return ValueError(
        f"{name} has shape {leaves[name].shape}: the kernel of one layer, a stack of layers (nn.scan, nn.vmap), or "
        f"outputs on several axes (DenseGeneral); {reason}. Write stack_axes=1 in its spec where the first axis counts "
        f"layers, and stack_axes=0 where it does not. Outputs on several axes cannot be pruned: make them one, or take "
        f"Irregular. Without specs nothing tells either: give those of the weights that were pruned."
    )


def _is_part(shape: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether a shape is the first axes of a kernel and its outputs, or its last axes."""
    return _is_of_stack(shape, kernel) or shape == kernel[-len(shape) :]


def _is_of_stack(shape: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    return shape == kernel[: len(shape) - 1] + kernel[-1:]


def _check_elsewhere(name: str, spec: Spec, leaves: Leaves, left_out: Collection[str]) -> None:
    found, hint = list[str](), ""
    if isinstance(spec, Filter):
        found = [*_could_belong(name, spec, leaves), *_wider(name, spec, leaves)]
    elif isinstance(spec, BatchNormFilter) and not (kernels_of(name, spec, leaves) or _hides_siblings(name, left_out)):
        outputs, hint = outputs_of(name, spec, leaves), "no kernel lies beside the scale; "
        weights = [other for other, leaf in leaves.items() if has_inputs(other, leaf, outputs)]
        found = [other for other in weights if leaves[other].shape[-1:] == outputs[-1:]]
    if found:
        raise ValueError(
            f"{name} with {type(spec).__name__}({spec.sparsity}): {hint}{', '.join(found)} could belong to its outputs "
            f"and would stay behind. Name those that do, belongs={{{found[0]!r}, ...}}, or write belongs=() for none."
        )


def _could_belong(name: str, spec: Spec, leaves: Leaves) -> list[str]:
    """Leaves with a number per output that lie beside no kernel: a BatchNorm, GroupNorm or LayerNorm by itself.

    A layer with a `shift` is one of this package's BatchNorms, which a network of its own knows by its wiring.
    Leaves beside the weights count where nothing tells to which of several weights they belong.
    """
    outputs, beside_it = outputs_of(name, spec, leaves), owned(name, spec, leaves)
    layers: dict[str, dict[str, Any]] = {}
    for other, leaf in leaves.items():
        layers.setdefault(other.rpartition("/")[0], {})[other] = leaf
    has_weights = lambda layer: any(has_inputs(other, leaf, outputs) for other, leaf in layer.items())
    # This package has no stacks of layers.
    is_ours = lambda layer: len(outputs) == 1 and sibling(next(iter(layer)), "shift") in layer
    lone = [layer for layer in layers.values() if name in layer or not (has_weights(layer) or is_ours(layer))]
    return [
        other
        for layer in lone
        for other, leaf in layer.items()
        if other != name and other not in beside_it and not is_kernel(other) and is_per_output(leaf, outputs)
    ]


def _wider(name: str, spec: Spec, leaves: Leaves) -> list[str]:
    """Leaves beside a kernel, or below it, with its outputs on the last axis and more axes, as of a LoRA."""
    outputs, layer = outputs_of(name, spec, leaves), name.rpartition("/")[0]
    if not is_kernel(name):
        return []
    below = {other: leaf for other, leaf in leaves.items() if layer and other.startswith(f"{layer}/")}
    return [
        other
        for other, leaf in {**below, **siblings(name, leaves)}.items()
        if has_inputs(other, leaf, outputs) and not is_kernel(other) and ends(leaf.shape, outputs) == outputs
    ]


def _hides_siblings(name: str, left_out: Collection[str]) -> bool:
    """Inside `optax.masked` leaves of the same layer are hidden, and the whole tree was looked at before."""
    return any(other.rpartition("/")[0] == name.rpartition("/")[0] for other in left_out)
