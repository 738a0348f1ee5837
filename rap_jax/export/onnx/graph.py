"""An ONNX graph while it is being written: nodes in order, constants, unique names; and the fusion of nodes.

`fuse` makes a bias part of its convolution or matrix product, and removes the factor and divisor of a mean.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rap_jax._runtime.environment import optional_module

# What most runtimes of the last years read.
OPSET, IR_VERSION = 17, 8


@dataclasses.dataclass
class Graph:
    """Nodes and constants so far."""

    # `onnx.NodeProto`s with one output each, in an order in which each comes after those that it reads.
    nodes: list[Any] = dataclasses.field(default_factory=list)
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # by name
    _names: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, op: str, inputs: Sequence[str | np.ndarray], *, scope: str = "", **attributes: Any) -> str:
        """Appends a node and returns the name of its output.

        Args:
          op: the ONNX operator.
          inputs: names of values; arrays become constants.
          scope: the layer that it belongs to, which begins its name.
          attributes: of the operator.
        """
        name = self._name(f"{scope}/{op}" if scope else op)
        names = [
            given if isinstance(given, str) else self._constant(f"{name}/{place}", given)
            for place, given in enumerate(inputs)
        ]
        node = optional_module("onnx.helper").make_node(op, names, [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def producers(self) -> dict[str, Any]:
        """Name of a value -> the node that makes it."""
        return {node.output[0]: node for node in self.nodes}

    def num_readers(self) -> Counter[str]:
        """Name of a value -> how many nodes read it."""
        return Counter(name for node in self.nodes for name in node.input)

    def replace_output(self, node: Any, name: str) -> None:
        """Lets `node` make the value `name`, in place of the node that made it, which goes."""
        self.nodes = [other for other in self.nodes if other.output[0] != name]
        node.output[0] = name

    def to_model(self, *, images: tuple[int, int, int], logits: str, num_classes: int, metadata: dict[str, str]) -> Any:
        """The `onnx.ModelProto`: `images` float32 [batch, H, W, C] -> `logits` float32 [batch, num_classes]."""
        onnx = optional_module("onnx")
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        read = self.num_readers()
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [logits], ["logits"], name="logits")],
            "rap_jax",
            [helper.make_tensor_value_info("images", kind, ["batch", *images])],
            [helper.make_tensor_value_info("logits", kind, ["batch", num_classes])],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items() if read[name]],
        )
        model = helper.make_model(
            graph, producer_name="rap_jax", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def _name(self, wanted: str) -> str:
        self._names[wanted] += 1
        return wanted if self._names[wanted] == 1 else f"{wanted}_{self._names[wanted]}"


def fuse(graph: Graph) -> None:
    """Changes the graph in place; the function that it computes stays the same up to rounding."""
    while any(_fuse_one(graph, node) for node in list(graph.nodes)):
        pass


def _fuse_one(graph: Graph, node: Any) -> bool:
    for value, constant in _with_constant(graph, node):
        before = _only_for(graph, value)
        if node.op_type == "Add" and before is not None and _takes_bias(graph, before, constant):
            graph.constants[constant] = graph.constants[constant].reshape(-1)
            _owner(graph, before).input.append(constant)
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
