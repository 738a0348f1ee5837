"""Nodes that another one can do as well: a bias belongs to its convolution, and a mean need not be a sum first."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rap_jax.export.onnx_graph import Graph


def fuse(graph: Graph) -> None:
    """Changes the graph in place; the function that it computes stays the same up to rounding."""
    while any(_fuse_one(graph, node) for node in list(graph.nodes)):
        pass


def _fuse_one(graph: Graph, node: Any) -> bool:
    for value, constant in _with_constant(graph, node):
        before = _only_for(graph, value)
        if node.op_type == "Add" and before is not None and _takes_bias(graph, before, constant):
            _owner(graph, before).input.append(_flat(graph, constant))
            graph.replace_output(before, node.output[0])
            return True
        if node.op_type == "Div" and before is not None and before.op_type == "Mul":
            source, factor = before.input
            if np.array_equal(graph.constants.get(factor, np.nan), graph.constants[constant]):
                graph.nodes.remove(before)
                graph.replace_output(graph.producers()[source], node.output[0])
                return True
    return False


def _with_constant(graph: Graph, node: Any) -> Iterator[tuple[str, str]]:
    """(value, constant) of a node of both."""
    if len(node.input) == 2:
        first, second = node.input
        if second in graph.constants:
            yield first, second
        elif first in graph.constants and node.op_type == "Add":
            yield second, first


def _only_for(graph: Graph, value: str) -> Any:
    """The node that makes a value which one node reads."""
    return graph.producers().get(value) if graph.num_readers()[value] == 1 else None


def _owner(graph: Graph, node: Any) -> Any:
    """The layer whose output passes through the node: adding a number commutes with taking a maximum."""
    return _only_for(graph, node.input[0]) if node.op_type == "MaxPool" else node


def _takes_bias(graph: Graph, node: Any, constant: str) -> bool:
    owner = _owner(graph, node)
    if owner is None or owner.op_type not in ("Conv", "Gemm") or len(owner.input) != 2:
        return False
    kernel, bias = graph.constants[owner.input[1]], graph.constants[constant]
    outputs = kernel.shape[0 if owner.op_type == "Conv" else 1]
    return bias.size == outputs and bias.ndim == kernel.ndim and bias.shape[1] == outputs


def _flat(graph: Graph, constant: str) -> str:
    graph.constants[constant] = graph.constants[constant].reshape(-1)
    return constant
