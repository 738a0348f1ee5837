"""ONNX: a network as a file, its graph, the rules from jaxpr to nodes, int8, robustness of a file."""
