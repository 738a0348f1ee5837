"""What tracing a network shows, before anything is computed: whether it has a gradient, and a mesh of its own.

    program = trace(logits_fn, images)          program.no_gradient, own_mesh(program.jaxpr)

JAX 0.12 made one class of the jaxpr and of the one that is closed over its constants: `closed` and `inner_jaxprs` are
the only places that know.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh, NamedSharding


class Traced(NamedTuple):
    """A network, taken apart.

    Attributes:
      jaxpr: of its logits and their gradient; of its logits alone if it has no gradient.
      no_gradient: why it has none, in the words of JAX; empty if it has one.
    """

    jaxpr: Any
    no_gradient: str


def trace(logits_fn: Callable[..., jax.Array], *arguments: Any) -> Traced:
    """Traces a function of images, or (images, key), with arrays or `jax.ShapeDtypeStruct`s."""
    logits = jax.make_jaxpr(logits_fn)(*arguments)  # what it raises is no matter of the gradient
    try:
        return Traced(jax.make_jaxpr(add_gradient(logits_fn))(*arguments), "")
    except Exception as error:  # each kind of function without a gradient raises another one
        return Traced(logits, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def add_gradient(logits_fn: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The function that returns its logits, and the gradient of their sum by its first argument."""

    def with_gradient(images: jax.Array, *draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, pull_back = jax.vjp(lambda x: logits_fn(x, *draw), images)
        return logits, pull_back(jnp.ones_like(logits))[0]

    return with_gradient


def closed(jaxpr: Any) -> Any:
    """The jaxpr with its constants, `.jaxpr` and `.consts`; none for one that has not been closed over any."""
    return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())


def inner_jaxprs(equation: Any) -> list[core.Jaxpr]:
    """The jaxprs that an equation holds, without their constants."""
    opened: Callable[[Any], Any] = lambda value: getattr(value, "jaxpr", value)
    is_jaxpr = lambda value: isinstance(opened(value), core.Jaxpr)
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [opened(leaf) for leaf in leaves if is_jaxpr(leaf)]


def own_mesh(jaxpr: Any) -> Mesh | None:
    """The mesh on which a function places what it computes, the largest of several; None if it places nothing.

    It does so by `with_sharding_constraint`, `shard_map`, `pmap`, `device_put` or shardings of a function under
    `jax.jit`, or since a mesh is set around all of it.
    """
    meshes = [mesh for mesh in (jax.sharding.get_mesh(), *_meshes(jaxpr)) if not mesh.empty]
    return max(meshes, key=lambda mesh: mesh.size, default=None)


def _meshes(jaxpr: Any) -> Iterator[Mesh]:
    """Every mesh that an equation names, at any depth."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for inner in inner_jaxprs(equation):
            yield from _meshes(inner)
        for value in jax.tree.leaves(list(equation.params.values())):
            mesh = value.mesh if isinstance(value, NamedSharding) else value
            if isinstance(mesh, Mesh):
                yield mesh
